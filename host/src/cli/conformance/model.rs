//! A model: what its metadata says of it, and a request that it takes.

use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::check::{Problem, Verdict};
use super::grpc::Status;
use super::http::Answer;
use super::message::{self, Post, Reply};
use super::server::Server;
use super::tensor::{Fill, Port, Tensor};

/// The most inputs or outputs of a model that is looked at.
const MAX_PORTS: usize = 64;

/// A model that is looked at.
pub(super) struct Model {
    pub(super) server: Arc<Server>,
    pub(super) name: String,
    /// The path of its metadata.
    pub(super) path: String,
    /// What the metadata endpoint answers.
    pub(super) metadata: Result<Value, Problem>,
    pub(super) sample: Result<Sample, Problem>,
    binary: OnceLock<Verdict>,
    /// The answers to requests that were to be refused.
    pub(super) refusals: Mutex<Vec<Answer>>,
    /// The same over gRPC.
    pub(super) codes: Mutex<Vec<Status>>,
}

/// A request that the model takes, and what it answers.
#[derive(Clone, Debug)]
pub(super) struct Sample {
    pub(super) inputs: Vec<Tensor>,
    pub(super) outputs: Vec<Tensor>,
    /// The same inputs give the same outputs.
    pub(super) is_steady: bool,
    /// What came of it in JSON.
    pub(super) json: Verdict,
    /// How long the answer took, the model being in memory.
    pub(super) took: Duration,
}

impl Model {
    /// Looks at the model `name`. `given` are inputs that it is known to take; without them they are made from its
    /// metadata.
    pub(super) fn new(server: Arc<Server>, name: &str, given: Option<Vec<Tensor>>) -> Model {
        let path = format!("/v2/models/{}", segment(name));
        let metadata = server.http.get(&path).and_then(Answer::ok).and_then(|answer| answer.json());
        let mut model = Model {
            server,
            name: name.to_owned(),
            path,
            metadata,
            sample: Err(Problem::skip("not looked for")),
            binary: OnceLock::new(),
            refusals: Mutex::default(),
            codes: Mutex::default(),
        };
        model.sample = match given {
            Some(inputs) => model.try_out(inputs),
            None => model.find_sample(),
        };
        model
    }

    /// `inputs` or `outputs` as the metadata lists them, without those that have no name, datatype or shape.
    pub(super) fn ports(&self, which: &str) -> Vec<Port> {
        let listed = self.metadata.as_ref().ok().and_then(|metadata| metadata.get(which)?.as_array());
        listed.into_iter().flatten().take(MAX_PORTS).filter_map(Port::read).collect()
    }

    pub(super) fn versions(&self) -> Vec<String> {
        let listed = self.metadata.as_ref().ok().and_then(|metadata| metadata.get("versions")?.as_array());
        listed.into_iter().flatten().filter_map(|name| name.as_str().map(str::to_owned)).take(8).collect()
    }

    /// The path of `rest` for one of the model's versions.
    pub(super) fn versioned(&self, version: &str, rest: &str) -> String {
        format!("{}/versions/{}{rest}", self.path, segment(version))
    }

    /// The request that it takes; a reason to skip where none is known.
    pub(super) fn sample(&self) -> Result<&Sample, Problem> {
        self.sample.as_ref().map_err(|_| Problem::skip("no request is known that this model takes"))
    }

    /// As [`sample`](Self::sample), where it may be sent in JSON.
    pub(super) fn json_sample(&self) -> Result<&Sample, Problem> {
        let sample = self.sample()?;
        sample.json.clone().map_err(|_| Problem::skip("this model takes no tensors in JSON"))?;
        Ok(sample)
    }

    /// As [`sample`](Self::sample), where it may be sent in binary: the extension is announced, or works.
    pub(super) fn binary_sample(&self) -> Result<&Sample, Problem> {
        let sample = self.sample()?;
        self.binary.get_or_init(|| self.try_binary(sample)).clone()?;
        Ok(sample)
    }

    fn try_binary(&self, sample: &Sample) -> Verdict {
        if self.server.announces("binary_tensor_data") {
            return Ok(());
        }
        let (head, data) = message::binary_request(&sample.inputs);
        let answer = self.infer(&Post::binary(&head, &data))?;
        message::read(answer.clone()).map(drop).map_err(|_| {
            let status = answer.status;
            Problem::skip(format!(
                "`binary_tensor_data` is not announced, and a binary request gets status {status}"
            ))
        })
    }

    /// Posts to the model's inference endpoint.
    pub(super) fn infer(&self, post: &Post) -> Result<Answer, Problem> {
        self.server.http.post(&format!("{}/infer", self.path), &post.headers(), post.body.clone())
    }

    /// As [`infer`](Self::infer); the answer must be one of the protocol.
    pub(super) fn call(&self, post: &Post) -> Result<Reply, Problem> {
        message::read(self.infer(post)?)
    }

    /// The outputs must be those of the sample, in any order.
    pub(super) fn agrees(&self, outputs: &[Tensor]) -> Verdict {
        let sample = self.sample()?;
        let agree = outputs.len() == sample.outputs.len()
            && sample
                .outputs
                .iter()
                .all(|expected| outputs.iter().any(|output| sample.matches(expected, output)));
        match agree {
            true => Ok(()),
            false => Err(Problem::wrong(message::told(&sample.outputs), message::told(outputs))),
        }
    }

    /// Numbers that can be told apart, then zeros, then ones: the first that the model takes.
    fn find_sample(&self) -> Result<Sample, Problem> {
        self.metadata.clone().map_err(|problem| problem.elsewhere())?;
        if self.ports("inputs").is_empty() {
            return Err(Problem::wrong(
                "metadata with `inputs`, each with `name`, `datatype` and `shape`, or a request by --request",
                "none",
            ));
        }
        let mut refused = Problem::skip("nothing was tried");
        for fill in [Fill::Counting, Fill::Zeros, Fill::Ones] {
            let inputs = self.filled(fill).map_err(|told| {
                Problem::skip(format!("no input can be made: {told}; give a request with --request"))
            })?;
            match self.try_out(inputs) {
                Ok(sample) => return Ok(sample),
                Err(problem) => refused = problem,
            }
        }
        Err(refused)
    }

    /// Inputs for each that the metadata lists.
    fn filled(&self, fill: Fill) -> Result<Vec<Tensor>, String> {
        let ports = self.ports("inputs");
        ports.iter().enumerate().map(|(index, port)| Tensor::filled(port, fill, index)).collect()
    }

    /// A sample of these inputs, where the model takes them.
    fn try_out(&self, inputs: Vec<Tensor>) -> Result<Sample, Problem> {
        let json = Post::json(&message::json_request(&inputs));
        let first = self.call(&json);
        let (post, reply, json) = match first {
            Ok(reply) => (json, reply, Ok(())),
            Err(refused) => {
                let (mut head, data) = message::binary_request(&inputs);
                head["parameters"] = serde_json::json!({ "binary_data_output": true });
                let binary = Post::binary(&head, &data);
                let reply = self.call(&binary).map_err(|_| refused.clone())?;
                (binary, reply, Err(refused))
            }
        };
        let started = Instant::now();
        let again = self.call(&post);
        let took = started.elapsed();
        let mut sample = Sample { inputs, outputs: reply.tensors(), is_steady: true, json, took };
        sample.is_steady = again.is_ok_and(|again| {
            let again = again.tensors();
            again.len() == sample.outputs.len()
                && sample.outputs.iter().zip(&again).all(|(a, b)| a.is_like(b))
        });
        Ok(sample)
    }

    /// What the model answers to other inputs, for answers that can be told apart.
    pub(super) fn another(&self) -> Option<Sample> {
        let sample = self.sample().ok()?;
        let others = [Fill::Ones, Fill::Zeros].into_iter().filter_map(|fill| self.filled(fill).ok());
        let other = others.into_iter().find(|inputs| !inputs.is_empty() && *inputs != sample.inputs)?;
        self.try_out(other).ok().filter(|other| other.is_steady && other.json.is_ok())
    }
}

impl Sample {
    /// Whether an output is the expected one, as far as the model answers the same twice.
    fn matches(&self, expected: &Tensor, output: &Tensor) -> bool {
        let is_same_kind = expected.name == output.name && expected.datatype == output.datatype;
        is_same_kind && (!self.is_steady || expected.is_like(output))
    }

    /// The answer without a tensor, which one has no number that JSON writes, such as FP16.
    pub(super) fn has_raw_only(&self) -> bool {
        self.inputs.iter().chain(&self.outputs).any(|tensor| tensor.datatype.is_raw_only())
    }
}

/// A name as one segment of a path.
pub(super) fn segment(name: &str) -> String {
    let keep = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
    name.bytes()
        .map(|byte| if keep(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_become_segments() {
        let check = |name: &str, expected: &str| assert_eq!(segment(name), expected);
        check("digits-1.0_a~b", "digits-1.0_a~b");
        check("a/b c?", "a%2Fb%20c%3F");
        check("ß", "%C3%9F");
    }
}

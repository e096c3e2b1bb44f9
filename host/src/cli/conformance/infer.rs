//! Inference with tensors in JSON: requests that are to be answered.

use std::time::Duration;

use serde_json::{Value, json};

use super::check::{Check, Level, Problem, Verdict};
use super::message::{self, Post, json_request, wanting, with};
use super::model::{Model, Sample};
use super::server::{NO_MODEL, is_json, text};
use super::tensor::Tensor;

const REQUEST: &str = "Inference Request";
const RESPONSE: &str = "Inference Response";

/// How many requests are under way at once in the check for that, and how many follow each other.
const AT_ONCE: (usize, usize) = (8, 4);
/// As many of a model that takes longer than this for one.
const SLOW: Duration = Duration::from_millis(250);
const AT_ONCE_OF_SLOW: (usize, usize) = (2, 1);

pub(super) const CHECKS: &[Check<Model>] = &[
    Check {
        id: "infer.json",
        level: Level::Required,
        section: "Tensor Data",
        says: "flat tensors in JSON are answered with tensors in JSON",
        run: |model| match &model.sample {
            Err(problem) => Err(problem.clone()),
            Ok(sample) if sample.has_raw_only() => {
                sample.json.clone().map_err(|_| Problem::skip("FP16 and BF16 have no agreed form in JSON"))
            }
            Ok(sample) => sample.json.clone(),
        },
    },
    Check {
        id: "infer.json.nested",
        level: Level::Required,
        section: "Tensor Data",
        says: "tensors nested as their shapes are answered as flat ones are",
        run: |model| {
            let nested = message::request(model.json_sample()?.inputs.iter().map(Tensor::nested));
            answered_alike(model, &nested)
        },
    },
    Check {
        id: "infer.model",
        level: Level::Required,
        section: RESPONSE,
        says: "the answer has the model's name, and a version that is a text where it has one",
        run: |model| {
            let head = call(model, |_, head| head)?.head;
            let version = head.get("model_version");
            let is_good = version.is_none_or(|version| version.is_string() || version.is_null());
            match text(&head, "model_name")? == model.name && is_good {
                true => Ok(()),
                false => Err(Problem::wrong(format!("`model_name` `{}`", model.name), head.to_string())),
            }
        },
    },
    Check {
        id: "infer.outputs",
        level: Level::Required,
        section: RESPONSE,
        says: "without `outputs` every output of the metadata is answered, in its datatype and shape",
        run: |model| {
            let reply = call(model, |_, head| head)?;
            fits(model, &reply.tensors())
        },
    },
    Check {
        id: "infer.outputs.chosen",
        level: Level::Required,
        section: "Request Output",
        says: "each output can be asked for alone",
        run: |model| {
            let sample = model.json_sample()?;
            sample.outputs.iter().try_for_each(|output| {
                let reply = call(model, |_, head| wanting(head, [(output.name.clone(), Value::Null)]))?;
                match reply.tensors().as_slice() {
                    [only] if only.name == output.name => Ok(()),
                    _ => Err(Problem::wrong(format!("`{}` alone", output.name), reply.told())),
                }
            })
        },
    },
    Check {
        id: "infer.outputs.order",
        level: Level::Advised,
        section: "Request Output",
        says: "outputs that are asked for come in the order in which they were asked for",
        run: |model| {
            let names = model.json_sample()?.outputs.iter().map(|output| output.name.clone()).rev();
            let names: Vec<String> = names.collect();
            if names.len() < 2 {
                return Err(Problem::skip("the model has one output"));
            }
            let wanted = names.iter().map(|name| (name.clone(), Value::Null));
            let reply = call(model, |_, head| wanting(head, wanted))?;
            let got: Vec<String> = reply.tensors().into_iter().map(|tensor| tensor.name).collect();
            if got == names { Ok(()) } else { Err(Problem::wrong(names.join(", "), got.join(", "))) }
        },
    },
    Check {
        id: "infer.outputs.empty",
        level: Level::Advised,
        section: REQUEST,
        says: "an empty list `outputs` is as none: every output is answered",
        run: |model| {
            let reply = call(model, |_, head| with(head, "outputs", json!([])))?;
            model.agrees(&reply.tensors())
        },
    },
    Check {
        id: "infer.id",
        level: Level::Required,
        section: REQUEST,
        says: "the id of a request comes back",
        run: |model| identified(model, "42"),
    },
    Check {
        id: "infer.id.odd",
        level: Level::Advised,
        section: REQUEST,
        says: "an id comes back as it was sent, whatever it holds",
        run: |model| {
            let ids = ["a b/c?&\"\\", "größe", &"x".repeat(200)];
            ids.into_iter().try_for_each(|id| identified(model, id))
        },
    },
    Check {
        id: "infer.version",
        level: Level::Required,
        section: "Inference",
        says: "each version that the metadata lists takes inference requests by its name",
        run: |model| {
            let post = Post::json(&json_request(&model.json_sample()?.inputs));
            let versions = model.versions();
            if versions.is_empty() {
                return Err(Problem::skip("the metadata lists no versions"));
            }
            versions.iter().try_for_each(|version| {
                let path = model.versioned(version, "/infer");
                message::read(model.server.http.post(&path, &post.headers(), post.body.clone())?).map(drop)
            })
        },
    },
    Check {
        id: "infer.unknown",
        level: Level::Required,
        section: "Inference Response JSON Error Object",
        says: "inference with a model or version that is not there is an error status with {\"error\"}",
        run: |model| {
            let post = Post::json(&json_request(&model.json_sample()?.inputs));
            let paths =
                [format!("/v2/models/{NO_MODEL}/infer"), model.versioned("no-such-version", "/infer")];
            paths.iter().try_for_each(|path| {
                model.server.http.post(path, &post.headers(), post.body.clone())?.refusal()
            })
        },
    },
    Check {
        id: "infer.parameters",
        level: Level::Advised,
        section: "Parameters",
        says: "parameters that the server does not know, of a request and of its parts, do no harm",
        run: |model| {
            let own =
                json!({ "tenon_text": "a", "tenon_number": 1.5, "tenon_whole": 7, "tenon_truth": true });
            let reply = call(model, |sample, mut head| {
                head["parameters"] = own.clone();
                head["inputs"][0]["parameters"] = own.clone();
                wanting(head, sample.outputs.iter().map(|output| (output.name.clone(), own.clone())))
            })?;
            model.agrees(&reply.tensors())
        },
    },
    Check {
        id: "infer.inputs.order",
        level: Level::Advised,
        section: "Request Input",
        says: "inputs are told by their names, in whatever order they come",
        run: |model| {
            let sample = model.json_sample()?;
            if sample.inputs.len() < 2 {
                return Err(Problem::skip("the model has one input"));
            }
            answered_alike(model, &message::request(sample.inputs.iter().rev().map(Tensor::flat)))
        },
    },
    Check {
        id: "infer.type",
        level: Level::Required,
        section: RESPONSE,
        says: "an answer in JSON has the content type application/json",
        run: |model| {
            let post = Post::json(&json_request(&model.json_sample()?.inputs));
            is_json(&model.infer(&post)?.ok()?)
        },
    },
    Check {
        id: "infer.type.absent",
        level: Level::Advised,
        section: REQUEST,
        says: "a request needs no content type, which clients in use leave out",
        run: |model| {
            let post = Post::json(&json_request(&model.json_sample()?.inputs)).without("content-type");
            model.agrees(&model.call(&post)?.tensors())
        },
    },
    Check {
        id: "infer.chunked",
        level: Level::Advised,
        section: "HTTP",
        says: "a request may come in chunks, without a Content-Length",
        run: |model| {
            let post = Post::json(&json_request(&model.json_sample()?.inputs));
            let path = format!("{}/infer", model.path);
            let answer = model.server.http.post_chunked(&path, &post.headers(), &post.body)?;
            model.agrees(&message::read(answer)?.tensors())
        },
    },
    Check {
        id: "infer.at-once",
        level: Level::Required,
        section: REQUEST,
        says: "requests that are under way at once each get their own id and their own answer",
        run: at_once,
    },
];

/// Calls the model with the sample's request in JSON, changed.
fn call(model: &Model, change: impl FnOnce(&Sample, Value) -> Value) -> Result<message::Reply, Problem> {
    let sample = model.json_sample()?;
    model.call(&Post::json(&change(sample, json_request(&sample.inputs))))
}

fn identified(model: &Model, id: &str) -> Verdict {
    let head = call(model, |_, head| with(head, "id", json!(id)))?.head;
    match head.get("id").and_then(Value::as_str) == Some(id) {
        true => Ok(()),
        false => Err(Problem::wrong(format!("the id `{id}`"), head.to_string())),
    }
}

fn answered_alike(model: &Model, head: &Value) -> Verdict {
    model.agrees(&model.call(&Post::json(head))?.tensors())
}

/// The outputs must be those of the metadata.
fn fits(model: &Model, outputs: &[Tensor]) -> Verdict {
    let ports = model.ports("outputs");
    if ports.is_empty() {
        return Err(Problem::skip("the metadata lists no outputs"));
    }
    let is_there = |port: &super::tensor::Port| {
        outputs.iter().any(|output| output.name == port.name && port.takes(output.datatype, &output.shape))
    };
    if outputs.len() == ports.len() && ports.iter().all(is_there) {
        return Ok(());
    }
    let expected: Vec<String> =
        ports.iter().map(|port| format!("{} {} {:?}", port.name, port.datatype, port.shape)).collect();
    Err(Problem::wrong(format!("outputs {}", expected.join("; ")), message::told(outputs)))
}

/// Sends requests that can be told apart from several threads.
fn at_once(model: &Model) -> Verdict {
    let first = model.json_sample()?;
    if !first.is_steady {
        return Err(Problem::skip("the model answers differently to the same inputs"));
    }
    let other = model.another();
    let samples: Vec<&Sample> = std::iter::once(first).chain(other.as_ref()).collect();
    let (threads, turns) = if first.took > SLOW { AT_ONCE_OF_SLOW } else { AT_ONCE };
    let ask = |thread: usize| {
        (0..turns).try_for_each(|turn| {
            let sample = samples[(thread + turn) % samples.len()];
            let id = format!("{thread}-{turn}");
            let reply = model.call(&Post::json(&with(json_request(&sample.inputs), "id", json!(id))))?;
            let got = reply.tensors();
            let is_own = got.len() == sample.outputs.len()
                && sample.outputs.iter().all(|expected| got.iter().any(|output| expected.is_like(output)));
            match reply.head["id"] == json!(id) && is_own {
                true => Ok(()),
                false => Err(Problem::wrong(
                    format!("id {id}, {}", message::told(&sample.outputs)),
                    format!("id {}, {}", reply.head["id"], reply.told()),
                )),
            }
        })
    };
    let verdicts: Vec<Verdict> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..threads).map(|thread| scope.spawn(move || ask(thread))).collect();
        let joined = threads.into_iter().map(std::thread::ScopedJoinHandle::join);
        joined.map(|joined| joined.unwrap_or_else(|_| Err(Problem::skip("the check broke off")))).collect()
    });
    verdicts.into_iter().collect()
}

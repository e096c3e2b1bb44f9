//! Inference requests and answers over HTTP: with tensors in JSON, in binary, or both.

use serde_json::{Value, json};

use super::check::Problem;
use super::http::Answer;
use super::tensor::Tensor;

pub(super) const HEADER_LENGTH: &str = "inference-header-content-length";
pub(super) const JSON: &str = "application/json";
pub(super) const OCTETS: &str = "application/octet-stream";

/// What is posted to an inference endpoint.
#[derive(Clone, Debug)]
pub(super) struct Post {
    pub(super) headers: Vec<(&'static str, String)>,
    pub(super) body: Vec<u8>,
}

impl Post {
    /// Text that may or may not be JSON.
    pub(super) fn text(body: impl Into<Vec<u8>>) -> Post {
        Post { headers: vec![("content-type", JSON.to_owned())], body: body.into() }
    }

    pub(super) fn json(head: &Value) -> Post {
        Post::text(head.to_string())
    }

    /// A request of JSON, followed by the binary data of the tensors that have theirs there.
    pub(super) fn binary(head: &Value, data: &[u8]) -> Post {
        let mut body = head.to_string().into_bytes();
        let length = body.len().to_string();
        body.extend(data);
        Post { headers: vec![("content-type", OCTETS.to_owned()), (HEADER_LENGTH, length)], body }
    }

    /// Nothing but the data of the one input.
    pub(super) fn raw(data: Vec<u8>) -> Post {
        let headers = vec![("content-type", OCTETS.to_owned()), (HEADER_LENGTH, "0".to_owned())];
        Post { headers, body: data }
    }

    /// With this header, in place of one of the same name.
    pub(super) fn header(mut self, name: &'static str, value: impl Into<String>) -> Post {
        self = self.without(name);
        self.headers.push((name, value.into()));
        self
    }

    pub(super) fn without(mut self, name: &str) -> Post {
        self.headers.retain(|(other, _)| *other != name);
        self
    }

    pub(super) fn headers(&self) -> Vec<(&str, &str)> {
        self.headers.iter().map(|(name, value)| (*name, value.as_str())).collect()
    }
}

/// A request with these inputs, all outputs wanted.
pub(super) fn request(inputs: impl IntoIterator<Item = Value>) -> Value {
    json!({ "inputs": inputs.into_iter().collect::<Vec<_>>() })
}

/// A request with inputs in JSON.
pub(super) fn json_request(inputs: &[Tensor]) -> Value {
    request(inputs.iter().map(Tensor::flat))
}

/// A request with all inputs in binary, and the data that follows it.
pub(super) fn binary_request(inputs: &[Tensor]) -> (Value, Vec<u8>) {
    let (heads, data): (Vec<_>, Vec<_>) = inputs.iter().map(binary_input).unzip();
    (request(heads), data.concat())
}

/// An input whose data follows in binary.
pub(super) fn binary_input(tensor: &Tensor) -> (Value, Vec<u8>) {
    let (mut head, data) = (tensor.head(), tensor.raw());
    head["parameters"] = json!({ "binary_data_size": data.len() });
    (head, data)
}

/// The request for some outputs, each with its parameters.
pub(super) fn wanting(mut head: Value, outputs: impl IntoIterator<Item = (String, Value)>) -> Value {
    let output = |(name, parameters): (String, Value)| match parameters {
        Value::Null => json!({ "name": name }),
        parameters => json!({ "name": name, "parameters": parameters }),
    };
    head["outputs"] = outputs.into_iter().map(output).collect();
    head
}

/// A member of the request set to a value.
pub(super) fn with(mut head: Value, member: &str, value: Value) -> Value {
    head[member] = value;
    head
}

/// What a model answered.
#[derive(Clone, Debug)]
pub(super) struct Reply {
    pub(super) head: Value,
    pub(super) outputs: Vec<Output>,
}

#[derive(Clone, Debug)]
pub(super) struct Output {
    pub(super) tensor: Tensor,
    /// Its data came in binary.
    pub(super) is_binary: bool,
}

impl Reply {
    pub(super) fn tensors(&self) -> Vec<Tensor> {
        self.outputs.iter().map(|output| output.tensor.clone()).collect()
    }

    /// What a person is shown.
    pub(super) fn told(&self) -> String {
        told(&self.tensors())
    }
}

/// Tensors as a person is shown them.
pub(super) fn told(tensors: &[Tensor]) -> String {
    let told: Vec<String> = tensors.iter().map(Tensor::told).collect();
    format!("outputs {}", told.join("; "))
}

/// Reads an answer, which must have status 200 and the protocol's form.
pub(super) fn read(answer: Answer) -> Result<Reply, Problem> {
    let answer = answer.ok()?;
    let wrong = |why: &str| Problem::wrong("an inference response", format!("{why}: {}", answer.told()));
    let length = match answer.header(HEADER_LENGTH) {
        "" => answer.body.len(),
        length => length.parse().map_err(|_| wrong("a header length that is no number"))?,
    };
    let (head, mut data) =
        answer.body.split_at_checked(length).ok_or_else(|| wrong("a header that is longer than the body"))?;
    let head: Value = serde_json::from_slice(head).map_err(|_| wrong("no JSON"))?;
    let outputs = head.get("outputs").and_then(Value::as_array).ok_or_else(|| wrong("no `outputs`"))?;
    let mut read = Vec::with_capacity(outputs.len());
    for output in outputs {
        let size = output.pointer("/parameters/binary_data_size");
        let tensor = match size {
            None => Tensor::read_json(output),
            Some(size) => {
                let size = size.as_u64().and_then(|size| usize::try_from(size).ok());
                let cut = size.and_then(|size| data.split_at_checked(size));
                let (own, rest) = cut.ok_or_else(|| wrong("a `binary_data_size` beyond the body"))?;
                data = rest;
                Tensor::read_binary(output, own)
            }
        };
        let tensor = tensor.map_err(|told| wrong(&told))?;
        read.push(Output { tensor, is_binary: size.is_some() });
    }
    if !data.is_empty() {
        return Err(wrong("bytes after the last output"));
    }
    Ok(Reply { head, outputs: read })
}

#[cfg(test)]
mod tests {
    use ureq::http::HeaderMap;

    use super::*;

    fn answer(length: Option<&str>, body: &[u8]) -> Answer {
        let mut headers = HeaderMap::new();
        if let Some(length) = length {
            headers.insert(HEADER_LENGTH, length.parse().unwrap());
        }
        Answer { status: 200, headers, body: body.to_vec() }
    }

    fn check(length: Option<&str>, body: &[u8], expected: Result<usize, &str>) {
        match (read(answer(length, body)), expected) {
            (Ok(reply), Ok(outputs)) => assert_eq!(reply.outputs.len(), outputs),
            (Err(Problem::Wrong { got, .. }), Err(expected)) => assert!(got.contains(expected), "{got}"),
            (got, expected) => panic!("{got:?}, not {expected:?}"),
        }
    }

    #[test]
    fn answers_are_read_strictly() {
        let json = br#"{"outputs":[{"name":"y","datatype":"UINT8","shape":[2],"data":[1,2]}]}"#;
        let head = br#"{"outputs":[{"name":"y","datatype":"UINT8","shape":[2],"parameters":{"binary_data_size":2}}]}"#;
        let length = head.len().to_string();
        check(None, json, Ok(1));
        check(Some(&length), &[head.as_slice(), &[1, 2]].concat(), Ok(1));
        check(Some(&length), &[head.as_slice(), &[1]].concat(), Err("beyond"));
        check(Some(&length), &[head.as_slice(), &[1, 2, 3]].concat(), Err("after the last"));
        check(Some("999"), json, Err("longer"));
        check(Some("-1"), json, Err("no number"));
        check(None, b"{}", Err("outputs"));
        check(None, b"", Err("no JSON"));
        check(None, br#"{"outputs":[{}]}"#, Err("name"));
    }

    #[test]
    fn posts_say_where_their_parts_end() {
        let tensor = json!({ "name": "x", "datatype": "INT16", "shape": [1], "data": [1] });
        let tensor = Tensor::read_json(&tensor).unwrap();
        let (head, data) = binary_request(&[tensor]);
        let post = Post::binary(&head, &data);
        let length: usize = post.headers[1].1.parse().unwrap();
        assert_eq!(&post.body[length..], [1, 0]);
        assert_eq!(head["inputs"][0]["parameters"]["binary_data_size"], 2);
        let post = post.header(HEADER_LENGTH, "7");
        assert_eq!(post.headers().iter().filter(|(name, _)| *name == HEADER_LENGTH).count(), 1);
        assert_eq!(post.without("content-type").headers, [(HEADER_LENGTH, "7".to_owned())]);
    }
}

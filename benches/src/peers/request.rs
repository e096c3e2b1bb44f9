//! The same tensor as each server and protocol takes it.

use crate::load::Request;

/// A model with one input of 32-bit floats.
pub struct Model {
    pub name: &'static str,
    pub path: std::path::PathBuf,
    /// With a first dimension of 1.
    pub shape: Vec<usize>,
    /// How many threads ONNX Runtime gets for one run in the peers.
    pub threads: usize,
}

/// How a tensor travels.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// The Open Inference Protocol's JSON.
    Json,
    /// Its extension for binary tensors.
    Binary,
    /// `ModelInfer` with raw contents.
    Grpc,
    /// JSON as BentoML takes it: nested arrays by the name of the argument.
    NestedJson,
}

impl Protocol {
    pub fn name(self) -> &'static str {
        match self {
            Protocol::Json | Protocol::NestedJson => "REST JSON",
            Protocol::Binary => "REST binary",
            Protocol::Grpc => "gRPC",
        }
    }

    /// A call of the model, which every server knows as `model`, with its input `image`.
    pub fn request(self, model: &Model) -> Request {
        const INFER: &str = "/v2/models/model/infer";
        const JSON: &str = "application/json";
        let elements: usize = model.shape.iter().product();
        // Three decimals: a pixel has no more to say, and few callers send more.
        let values: Vec<f32> = (0..elements).map(|index| (index * 7919 % 1000) as f32 / 1000.0).collect();
        let raw: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        let texts = || values.iter().map(f32::to_string).collect::<Vec<_>>();
        let input = format!(r#""name":"image","datatype":"FP32","shape":{:?}"#, model.shape);
        match self {
            Protocol::Json => {
                let body = format!(r#"{{"inputs":[{{{input},"data":[{}]}}]}}"#, texts().join(","));
                Request::post(INFER, JSON, body.as_bytes())
            }
            Protocol::NestedJson => {
                let body = format!(r#"{{"image":{}}}"#, nested(texts(), &model.shape));
                Request::post("/infer", JSON, body.as_bytes())
            }
            Protocol::Binary => binary(INFER, &model.shape, &raw),
            Protocol::Grpc => {
                Request::grpc("/inference.GRPCInferenceService/ModelInfer", &message(model, &raw))
            }
        }
    }
}

/// A call at `path` with the input `image` behind the JSON that describes it.
pub fn binary(path: &str, shape: &[usize], raw: &[u8]) -> Request {
    let head = format!(
        r#"{{"inputs":[{{"name":"image","datatype":"FP32","shape":{shape:?},"parameters":{{"binary_data_size":{}}}}}],"parameters":{{"binary_data_output":true}}}}"#,
        raw.len()
    );
    let headers =
        format!("content-type: application/octet-stream\r\ninference-header-content-length: {}", head.len());
    Request::post_with(path, &headers, &[head.as_bytes(), raw].concat())
}

fn nested(mut values: Vec<String>, shape: &[usize]) -> String {
    for length in shape.iter().rev() {
        values = values.chunks(*length).map(|row| format!("[{}]", row.join(","))).collect();
    }
    values.concat()
}

/// A `ModelInferRequest` in protobuf.
fn message(model: &Model, raw: &[u8]) -> Vec<u8> {
    let mut shape = Vec::new();
    for length in &model.shape {
        varint(*length, &mut shape);
    }
    let mut input = Vec::new();
    field(1, b"image", &mut input);
    field(2, b"FP32", &mut input);
    field(3, &shape, &mut input);
    let mut message = Vec::new();
    field(1, b"model", &mut message);
    field(5, &input, &mut message);
    field(7, raw, &mut message);
    message
}

fn field(number: usize, value: &[u8], message: &mut Vec<u8>) {
    const LENGTH_DELIMITED: usize = 2;
    varint(number << 3 | LENGTH_DELIMITED, message);
    varint(value.len(), message);
    message.extend_from_slice(value);
}

fn varint(mut value: usize, message: &mut Vec<u8>) {
    while value >= 128 {
        message.push((value % 128) as u8 | 128);
        value /= 128;
    }
    message.push(value as u8);
}

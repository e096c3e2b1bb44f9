//! Calls wasi:nn as the query says, from an HTTP component written with wstd, and tells what came back.
//!
//! `/?model=digits&input=image:FP32:1,1,8,8` runs a granted model; the body is the inputs' data one after the
//! other, zeros where it ends. A fourth part of an input is the length of its data, right or wrong. `/?load=onnx`
//! loads the body as a model; `/sdk?model=digits` calls it through tenon-sdk.

use wstd::http::{Body, Error, Request, Response};

use bindings::wasi::nn::errors::Error as NnError;
use bindings::wasi::nn::graph::{ExecutionTarget, Graph, GraphEncoding, load, load_by_name};
use bindings::wasi::nn::tensor::{Tensor, TensorType};

#[allow(clippy::all, clippy::allow_attributes_without_reason, reason = "generated")]
mod bindings {
    wit_bindgen::generate!({ path: "../../../wit/deps/nn", world: "ml" });
}

#[wstd::http_server]
async fn main(request: Request<Body>) -> Result<Response<Body>, Error> {
    let uri = request.uri().clone();
    let mut body = request.into_body();
    let body = body.contents().await?;
    let query: Vec<(&str, &str)> =
        uri.query().unwrap_or("").split('&').filter_map(|pair| pair.split_once('=')).collect();
    let answer = match uri.path().ends_with("/sdk") {
        true => through_the_sdk(&query),
        false => run(&query, body),
    };
    let (status, text) = match answer {
        Ok(text) => (200, text),
        Err(text) => (500, text),
    };
    Ok(Response::builder().status(status).header("content-type", "text/plain").body(text.into())?)
}

fn value<'a>(query: &[(&str, &'a str)], key: &str) -> Option<&'a str> {
    query.iter().find(|(name, _)| *name == key).map(|(_, value)| *value)
}

/// One line an output: name, type, shape, data in hexadecimal.
fn run(query: &[(&str, &str)], body: &[u8]) -> Result<String, String> {
    let graph = graph(query, body)?;
    let session = graph.init_execution_context().map_err(|error| told("init", &error))?;
    let mut answer = String::new();
    let times = value(query, "times").and_then(|times| times.parse().ok()).unwrap_or(1);
    for _ in 0..times {
        let outputs = session.compute(inputs(query, body)?).map_err(|error| told("compute", &error))?;
        for (name, tensor) in &outputs {
            let data: String = tensor.data().iter().map(|byte| format!("{byte:02x}")).collect();
            answer += &format!("{name} {:?} {:?} {data}\n", tensor.ty(), tensor.dimensions());
        }
    }
    Ok(answer)
}

fn graph(query: &[(&str, &str)], body: &[u8]) -> Result<Graph, String> {
    if let Some(encoding) = value(query, "load") {
        let encoding = match encoding {
            "openvino" => GraphEncoding::Openvino,
            "onnx" => GraphEncoding::Onnx,
            "ggml" => GraphEncoding::Ggml,
            _ => GraphEncoding::Autodetect,
        };
        return load(&[body.to_vec()], encoding, ExecutionTarget::Cpu).map_err(|error| told("load", &error));
    }
    let model = value(query, "model").unwrap_or_default();
    load_by_name(model).map_err(|error| told("load-by-name", &error))
}

fn inputs(query: &[(&str, &str)], mut body: &[u8]) -> Result<Vec<(String, Tensor)>, String> {
    let mut inputs = Vec::new();
    for (_, input) in query.iter().filter(|(key, _)| *key == "input") {
        let mut parts = input.split(':');
        let (name, ty) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
        let ty = tensor_type(ty).ok_or_else(|| format!("there is no type `{ty}`"))?;
        let sizes = parts.next().unwrap_or_default().split(',').filter(|size| !size.is_empty());
        let shape: Vec<u32> = sizes.map(str::parse).collect::<Result<_, _>>().map_err(|_| "not a shape")?;
        let right = shape.iter().map(|&size| size as usize).product::<usize>() * element_bytes(ty);
        let bytes = parts.next().and_then(|bytes| bytes.parse().ok()).unwrap_or(right);
        let (now, later) = body.split_at(bytes.min(body.len()));
        let mut data = now.to_vec();
        data.resize(bytes, 0);
        inputs.push((name.to_owned(), Tensor::new(&shape, ty, &data)));
        body = later;
    }
    Ok(inputs)
}

fn tensor_type(name: &str) -> Option<TensorType> {
    Some(match name {
        "FP16" => TensorType::Fp16,
        "BF16" => TensorType::Bf16,
        "FP32" => TensorType::Fp32,
        "FP64" => TensorType::Fp64,
        "U8" => TensorType::U8,
        "I32" => TensorType::I32,
        "I64" => TensorType::I64,
        _ => return None,
    })
}

fn element_bytes(ty: TensorType) -> usize {
    match ty {
        TensorType::U8 => 1,
        TensorType::Fp16 | TensorType::Bf16 => 2,
        TensorType::Fp32 | TensorType::I32 => 4,
        TensorType::Fp64 | TensorType::I64 => 8,
    }
}

fn told(at: &str, error: &NnError) -> String {
    format!("{at} {:?}: {}", error.code(), error.data())
}

/// Zeros for each input, as tenon-sdk does it inside an HTTP component.
fn through_the_sdk(query: &[(&str, &str)]) -> Result<String, String> {
    let answer = || -> tenon_sdk::Result<String> {
        let model = tenon_sdk::Model::named(value(query, "model").unwrap_or_default())?;
        let metadata = model.metadata();
        let inputs = metadata.inputs.iter().map(|input| {
            let shape: Vec<usize> =
                input.shape.iter().map(|&size| usize::try_from(size).unwrap_or(1)).collect();
            let zeros = vec![0.0_f32; shape.iter().product()];
            Ok((&input.name, tenon_sdk::Tensor::new(shape, zeros)?))
        });
        let outputs = model.infer(inputs.collect::<tenon_sdk::Result<Vec<_>>>()?)?;
        let names: Vec<&str> = outputs.names().collect();
        Ok(format!("{} {:?} {:?}\n", metadata.backend, names, outputs.at::<f32>(0)?.shape()))
    };
    answer().map_err(|error| error.to_string())
}

//! Answers the tensors that it is given, each on the way that the parameter of its name says: `convert` turns it
//! into one of wasi:nn and back, `infer` sends it through the model of its name, `compute` does so with wasi:nn.

use bindings::exports::tenon::function::function::{
    Error, Guest, Metadata, Parameter, ParameterValue, Request, Response,
};
use bindings::tenon::function::models::Model;
use bindings::tenon::function::nn_tensors::{from_nn, to_nn};
use bindings::tenon::function::tensors::{Datatype, NamedTensor, Tensor, TensorMetadata};
use bindings::wasi::nn::graph::load_by_name;

#[allow(clippy::all, clippy::allow_attributes_without_reason, unsafe_code, reason = "generated")]
mod bindings {
    wit_bindgen::generate!({ path: "../../../wit", world: "tenon:function/platform", generate_all });
    use super::Ways;
    export!(Ways);
}

/// One input and output for each datatype.
const PORTS: [(&str, Datatype); 14] = [
    ("bool", Datatype::Bool),
    ("uint8", Datatype::Uint8),
    ("uint16", Datatype::Uint16),
    ("uint32", Datatype::Uint32),
    ("uint64", Datatype::Uint64),
    ("int8", Datatype::Int8),
    ("int16", Datatype::Int16),
    ("int32", Datatype::Int32),
    ("int64", Datatype::Int64),
    ("fp16", Datatype::Fp16),
    ("bf16", Datatype::Bf16),
    ("fp32", Datatype::Fp32),
    ("fp64", Datatype::Fp64),
    ("bytes", Datatype::Bytes),
];

struct Ways;

impl Guest for Ways {
    fn describe() -> Metadata {
        let ports =
            PORTS.map(|(name, datatype)| TensorMetadata { name: name.to_owned(), datatype, shape: vec![-1] });
        Metadata { inputs: ports.to_vec(), outputs: ports.to_vec(), accepts: Vec::new(), answers: None }
    }

    fn call(request: Request) -> Result<Response, Error> {
        let parameters = request.parameters;
        let outputs = request.inputs.into_iter().map(|NamedTensor { name, tensor }| {
            let tensor = match way(&parameters, &name) {
                "convert" => converted(tensor),
                "infer" => inferred(&name, tensor),
                "compute" => computed(&name, tensor),
                _ => Ok(tensor),
            };
            let refused = |message| Error { code: "refused".to_owned(), message, status: Some(500) };
            Ok(NamedTensor { tensor: tensor.map_err(refused)?, name })
        });
        Ok(Response { outputs: outputs.collect::<Result<_, _>>()?, parameters: Vec::new() })
    }
}

fn way<'a>(parameters: &'a [Parameter], name: &str) -> &'a str {
    let parameter = parameters.iter().find(|parameter| parameter.name == name);
    match parameter.map(|parameter| &parameter.value) {
        Some(ParameterValue::Text(way)) => way,
        _ => "",
    }
}

fn converted(tensor: Tensor) -> Result<Tensor, String> {
    from_nn(to_nn(tensor)?)
}

fn inferred(name: &str, tensor: Tensor) -> Result<Tensor, String> {
    let answer = Model::load(name).and_then(|model| model.infer(&[("x".to_owned(), &tensor)]));
    let outputs = answer.map_err(|error| format!("{:?}: {}", error.code, error.message))?;
    outputs
        .into_iter()
        .find(|output| output.name == "y")
        .map(|output| output.tensor)
        .ok_or("no `y`".to_owned())
}

fn computed(name: &str, tensor: Tensor) -> Result<Tensor, String> {
    let input = to_nn(tensor)?;
    let answer = load_by_name(name)
        .and_then(|graph| graph.init_execution_context())
        .and_then(|session| session.compute(vec![("x".to_owned(), input)]));
    let outputs = answer.map_err(|error| format!("{:?}: {}", error.code(), error.data()))?;
    let output = outputs.into_iter().find(|(name, _)| name == "y").ok_or("no `y`")?;
    from_nn(output.1)
}

//! Models: granted or not, and called with inputs that do not fit.

use tenon_sdk::bindings::tenon::function::models::{Error, Model};
use tenon_sdk::bindings::tenon::function::tensors::{Datatype, NamedTensor, Tensor, TensorMetadata};

pub(crate) fn behave(name: &str, argument: &str) -> Option<String> {
    let (model, variant) = argument.split_once(':').unwrap_or((argument, ""));
    let result = match name {
        "load" => {
            Model::load(argument).map(|model| format!("loaded, served by {}", model.metadata().backend))
        }
        "infer" => infer(model, variant),
        _ => return None,
    };
    Some(result.unwrap_or_else(|error| format!("{:?}: {}", error.code, error.message)))
}

/// `infer:<model>:<variant>`: one element for each dimension that is free, zeros everywhere, and one mistake.
fn infer(name: &str, variant: &str) -> Result<String, Error> {
    let model = Model::load(name)?;
    let mut inputs = model.metadata().inputs;
    match variant {
        "wrong-name" => inputs.iter_mut().for_each(|input| input.name.push_str("-not")),
        "wrong-type" => inputs.iter_mut().for_each(|input| input.datatype = other(input.datatype)),
        "wrong-rank" => inputs.iter_mut().for_each(|input| input.shape.push(1)),
        "wrong-shape" => inputs.iter_mut().for_each(wider),
        "zero-shape" => inputs.iter_mut().for_each(|input| input.shape.fill(0)),
        "missing" => drop(inputs.pop()),
        "extra" => {
            inputs.push(TensorMetadata { name: "extra".to_owned(), datatype: Datatype::Fp32, shape: vec![1] })
        }
        "twice" => inputs.extend(inputs.clone()),
        "empty-name" => inputs.iter_mut().for_each(|input| input.name.clear()),
        _ => {}
    }
    let inputs: Vec<_> = inputs.iter().map(zeros).collect();
    let lent: Vec<_> = inputs.iter().map(|input| (input.name.clone(), &input.tensor)).collect();
    let outputs = model.infer(&lent)?;
    let outputs = outputs.iter().map(|output| {
        let tensor = &output.tensor;
        format!("{} {:?} {:?} {} bytes", output.name, tensor.datatype(), tensor.shape(), tensor.data().len())
    });
    Ok(outputs.collect::<Vec<_>>().join("\n"))
}

fn other(datatype: Datatype) -> Datatype {
    match datatype {
        Datatype::Fp32 => Datatype::Int64,
        _ => Datatype::Fp32,
    }
}

fn wider(input: &mut TensorMetadata) {
    match input.shape.last_mut() {
        Some(size) => *size = size.max(&mut 1).wrapping_add(5),
        None => input.shape.push(5),
    }
}

fn zeros(input: &TensorMetadata) -> NamedTensor {
    let shape: Vec<u64> = input.shape.iter().map(|&size| u64::try_from(size).unwrap_or(1)).collect();
    let elements: u64 = shape.iter().product();
    let data = vec![0; (elements * element_bytes(input.datatype)) as usize];
    let tensor =
        Tensor::create(input.datatype, &shape, &data).expect("zeros of the right length are a tensor");
    NamedTensor { name: input.name.clone(), tensor }
}

/// For BYTES, those of an empty element.
fn element_bytes(datatype: Datatype) -> u64 {
    match datatype {
        Datatype::Bool | Datatype::Uint8 | Datatype::Int8 => 1,
        Datatype::Uint16 | Datatype::Int16 | Datatype::Fp16 | Datatype::Bf16 => 2,
        Datatype::Uint32 | Datatype::Int32 | Datatype::Fp32 | Datatype::Bytes => 4,
        Datatype::Uint64 | Datatype::Int64 | Datatype::Fp64 => 8,
    }
}

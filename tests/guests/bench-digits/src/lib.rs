//! The least that a model function can do: floats in binary go to the model, its scores come back. 64 of them are an
//! image for the digits model, more are one for a model of ImageNet's images.

use tenon_sdk::{AnyTensor, Bytes, Datatype, Model, Result};

#[tenon_sdk::function(accepts("application/octet-stream"), answers("application/octet-stream"))]
fn digits(image: Bytes) -> Result<Bytes> {
    let shape = if image.len() == 256 { [1, 1, 8, 8] } else { [1, 3, 224, 224] };
    let image = AnyTensor::new(Datatype::Fp32, &shape, &image)?;
    let outputs = Model::named("digits")?.infer([("image", image)])?;
    Ok(outputs.any("scores")?.data().into())
}

//! The least that a model function can do: 64 floats in binary go to the digits model, its scores come back.

use tenon_sdk::{Bytes, Error, Model, Result, Tensor};

#[tenon_sdk::function(accepts("application/octet-stream"), answers("application/octet-stream"))]
fn digits(image: Bytes) -> Result<Bytes> {
    let (floats, rest) = image.as_chunks::<4>();
    if !rest.is_empty() {
        return Err(Error::invalid_input("the body is not a number of 4-byte floats"));
    }
    let floats: Vec<f32> = floats.iter().map(|float| f32::from_le_bytes(*float)).collect();
    let image = Tensor::new([1, 1, 8, 8], floats)?;
    let outputs = Model::named("digits")?.infer([("image", image)])?;
    let scores = outputs.tensor::<f32>("scores")?;
    Ok(scores.iter().flat_map(|score| score.to_le_bytes()).collect::<Vec<u8>>().into())
}

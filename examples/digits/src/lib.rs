//! Reads a handwritten digit: a light digit on a dark ground, as PNG or JPEG.

use serde::Serialize;
use tenon_sdk::image::{Filter, Image, Scaling};
use tenon_sdk::{Bytes, Error, Json, Model, Result, scores};

#[derive(Serialize)]
struct Digit {
    digit: usize,
    /// Probabilities of the digits 0 to 9.
    scores: Vec<f32>,
}

#[tenon_sdk::function(accepts("image/png", "image/jpeg"))]
fn digits(image: Bytes) -> Result<Json<Digit>> {
    // The model saw digits of 8x8 pixels, each the mean of an area: larger images are made so too.
    let image = Image::decode(&image)?.grey().resize(8, 8, Filter::Area);
    let outputs = Model::named("digits")?.infer([("image", image.to_nchw(Scaling::UNIT))])?;
    let scores = outputs.tensor::<f32>("scores")?.into_vec();
    let digit = scores::argmax(&scores).ok_or_else(|| Error::failed("the model answered no scores"))?;
    Ok(Json(Digit { digit, scores }))
}

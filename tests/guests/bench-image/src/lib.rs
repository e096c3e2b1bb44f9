//! A model function that passes on what it gets: the image goes to the model and the scores to the caller as handles.

use tenon_sdk::{AnyTensor, Model, Result};

#[tenon_sdk::function(outputs(scores(datatype = "FP32", shape = [-1, 1000])))]
fn image(#[tensor(datatype = "FP32", shape = [-1, 3, 224, 224])] image: AnyTensor) -> Result<AnyTensor> {
    Model::named("digits")?.infer([("image", image)])?.any("scores")
}

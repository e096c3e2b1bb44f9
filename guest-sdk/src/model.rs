//! The models that the function was granted.

use std::fmt;

use crate::element::Element;
use crate::{AnyTensor, Error, IntoTensor, Result, Tensor, TensorMetadata};

/// A model that the app manifest grants to this component, ready to run.
///
/// ```no_run
/// use tenon_sdk::{Model, Result, Tensor};
///
/// fn scores(image: Tensor<f32>) -> Result<Vec<f32>> {
///     let outputs = Model::named("digits")?.infer([("image", image)])?;
///     Ok(outputs.tensor::<f32>("scores")?.into_vec())
/// }
/// ```
pub struct Model {
    resource: resource::Resource,
    name: String,
}

/// Inputs and outputs of a model, and the backend that serves it.
#[derive(Clone, Debug)]
pub struct ModelMetadata {
    /// Inputs in the model's order; -1 in a shape is a dimension that the caller chooses.
    pub inputs: Vec<TensorMetadata>,
    /// Outputs in the model's order.
    pub outputs: Vec<TensorMetadata>,
    /// Such as `onnxruntime`.
    pub backend: String,
}

impl Model {
    /// The model of this name under `[component.<id>.tool.tenon]` in `spin.toml`. It is loaded if it is not in
    /// memory. An error where no such model is granted or it cannot be loaded (`model-unavailable`).
    pub fn named(name: &str) -> Result<Self> {
        Ok(Self { resource: resource::load(name)?, name: name.to_owned() })
    }

    /// Runs the model once on inputs by name, and answers all its outputs.
    ///
    /// The errors are `invalid-input` where names, datatypes or shapes do not fit the model, `inference-failed`,
    /// `deadline-exceeded`, `model-unavailable` and `over-memory-budget`.
    ///
    /// Inputs of different types are made alike first: `("mask", mask.into_tensor()?)`.
    pub fn infer<N: AsRef<str>, T: IntoTensor>(
        &self,
        inputs: impl IntoIterator<Item = (N, T)>,
    ) -> Result<ModelOutputs> {
        let tensors = resource::infer(&self.resource, inputs)?;
        Ok(ModelOutputs { tensors, model: self.name.clone() })
    }

    /// Inputs, outputs and backend.
    pub fn metadata(&self) -> ModelMetadata {
        resource::metadata(&self.resource)
    }
}

impl fmt::Debug for Model {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Model").field("name", &self.name).finish_non_exhaustive()
    }
}

/// What one inference answered: tensors by name, in the model's order.
#[derive(Clone, Debug)]
pub struct ModelOutputs {
    tensors: Vec<(String, AnyTensor)>,
    model: String,
}

impl ModelOutputs {
    /// The output of this name, with elements of type `T`. An error where there is none or it has another
    /// datatype.
    pub fn tensor<T: Element>(&self, name: &str) -> Result<Tensor<T>> {
        self.any(name)?.typed().map_err(|error| self.about(error, name))
    }

    /// The output at this place, with elements of type `T`. An error where there is none or it has another
    /// datatype.
    pub fn at<T: Element>(&self, index: usize) -> Result<Tensor<T>> {
        let (name, tensor) = self.tensors.get(index).ok_or_else(|| {
            let (model, outputs) = (&self.model, self.tensors.len());
            Error::failed(format_args!("model `{model}` has {outputs} outputs, and none at {index}"))
        })?;
        tensor.clone().typed().map_err(|error| self.about(error, name))
    }

    /// The output of this name as a handle. Its bytes stay with the host.
    pub fn any(&self, name: &str) -> Result<AnyTensor> {
        let found = self.tensors.iter().find(|(output, _)| output == name);
        found.map(|(_, tensor)| tensor.clone()).ok_or_else(|| {
            let names: Vec<&str> = self.names().collect();
            Error::failed(format_args!("model `{}` has no output `{name}`, it has {names:?}", self.model))
        })
    }

    /// The outputs' names, in the model's order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.iter().map(|(name, _)| name.as_str())
    }

    /// The tensors by name. Passed on from here they cross as handles, without a copy.
    pub fn into_tensors(self) -> Vec<(String, AnyTensor)> {
        self.tensors
    }

    /// A wrong read of an output is the function's mistake, not the caller's.
    fn about(&self, error: Error, output: &str) -> Error {
        Error::failed(format_args!("output `{output}` of model `{}`: {}", self.model, error.message()))
    }
}

fn handles<N: AsRef<str>, T: IntoTensor>(
    inputs: impl IntoIterator<Item = (N, T)>,
) -> impl Iterator<Item = Result<(String, AnyTensor)>> {
    inputs.into_iter().map(|(name, tensor)| {
        let name = name.as_ref();
        let tensor = tensor.into_tensor().map_err(|error| error.about(format_args!("input `{name}`")))?;
        Ok((name.to_owned(), tensor))
    })
}

#[cfg(target_family = "wasm")]
mod resource {
    use super::{AnyTensor, Error, IntoTensor, ModelMetadata, Result, handles};
    use crate::bindings::tenon::function::models;
    use crate::bindings::tenon::function::models::ErrorCode;

    pub(super) use models::Model as Resource;

    pub(super) fn load(name: &str) -> Result<Resource> {
        Resource::load(name).map_err(|mut error| {
            if error.code == ErrorCode::NotFound {
                let table = "`[component.<id>.tool.tenon]` of spin.toml";
                error.message +=
                    &format!("; `models.{name} = {{ path = \"...\" }}` under {table} grants one");
            }
            from_wit(error)
        })
    }

    pub(super) fn metadata(model: &Resource) -> ModelMetadata {
        let models::Metadata { inputs, outputs, backend } = model.metadata();
        ModelMetadata { inputs, outputs, backend }
    }

    pub(super) fn infer<N: AsRef<str>, T: IntoTensor>(
        model: &Resource,
        inputs: impl IntoIterator<Item = (N, T)>,
    ) -> Result<Vec<(String, AnyTensor)>> {
        let inputs = handles(inputs).collect::<Result<Vec<_>>>()?;
        let lent: Vec<_> = inputs.iter().map(|(name, tensor)| (name.clone(), tensor.handle())).collect();
        let outputs = model.infer(&lent).map_err(from_wit)?;
        Ok(outputs.into_iter().map(|output| (output.name, AnyTensor::from_handle(output.tensor))).collect())
    }

    fn from_wit(error: models::Error) -> Error {
        let (code, status) = match error.code {
            ErrorCode::NotFound | ErrorCode::Unavailable => ("model-unavailable", 502),
            ErrorCode::InvalidInput => ("invalid-input", 400),
            ErrorCode::Failed => ("inference-failed", 502),
            ErrorCode::Timeout => ("deadline-exceeded", 504),
            ErrorCode::TooLarge => ("over-memory-budget", 503),
        };
        Error::new(code, error.message).with_status(status)
    }
}

#[cfg(not(target_family = "wasm"))]
mod resource {
    use super::{AnyTensor, IntoTensor, ModelMetadata, Result, handles};
    pub(super) use crate::testing::Resource;
    pub(super) use crate::testing::load;

    pub(super) fn metadata(_: &Resource) -> ModelMetadata {
        ModelMetadata { inputs: Vec::new(), outputs: Vec::new(), backend: "testing".to_owned() }
    }

    pub(super) fn infer<N: AsRef<str>, T: IntoTensor>(
        model: &Resource,
        inputs: impl IntoIterator<Item = (N, T)>,
    ) -> Result<Vec<(String, AnyTensor)>> {
        model(handles(inputs).collect::<Result<Vec<_>>>()?)
    }
}

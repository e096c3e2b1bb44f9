//! Stand-ins for models, so that a function's own tests run with a plain `cargo test`.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;

use crate::{AnyTensor, Error, Result};

/// Tensors by name.
pub type NamedTensors = Vec<(String, AnyTensor)>;

pub(crate) type Resource = Rc<dyn Fn(NamedTensors) -> Result<NamedTensors>>;

thread_local! {
    static MODELS: RefCell<HashMap<String, Resource>> = RefCell::default();
}

/// Grants a stand-in for a model to the calling thread, which is that of one test.
///
/// ```
/// use tenon_sdk::{IntoTensor, Model, Tensor, testing};
///
/// testing::grant("double", |inputs| {
///     let (_, x) = inputs.into_iter().next().expect("one input");
///     let doubled: Tensor<f32> = x.typed::<f32>()?.iter().map(|x| 2.0 * x).collect();
///     Ok(vec![("y".to_owned(), doubled.into_tensor()?)])
/// });
///
/// let x = Tensor::from(vec![1.0_f32, 2.0]);
/// let outputs = Model::named("double")?.infer([("x", &x)])?;
/// assert_eq!(*outputs.tensor::<f32>("y")?, [2.0, 4.0]);
/// # Ok::<(), tenon_sdk::Error>(())
/// ```
pub fn grant(name: &str, model: impl Fn(NamedTensors) -> Result<NamedTensors> + 'static) {
    MODELS.with_borrow_mut(|models| models.insert(name.to_owned(), Rc::new(model)));
}

pub(crate) fn load(name: &str) -> Result<Resource> {
    MODELS.with_borrow(|models| models.get(name).cloned()).ok_or_else(|| {
        let message = format!("no model `{name}` here: models run inside Tenon, tests use `testing::grant`");
        Error::new("model-unavailable", message).with_status(502)
    })
}

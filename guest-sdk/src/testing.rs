//! Stand-ins for models and callers, so that a function's own tests run with a plain `cargo test`.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;

use crate::send::{Sent, another_caller};
use crate::{AnyTensor, Error, Input, Metadata, Result, datatype};

/// Tensors by name.
pub type NamedTensors = Vec<(String, AnyTensor)>;

pub(crate) type Resource = Rc<dyn Fn(NamedTensors) -> Result<NamedTensors>>;

thread_local! {
    static MODELS: RefCell<HashMap<String, Resource>> = RefCell::default();
    static LINE: RefCell<Line> = RefCell::default();
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

/// What a caller does with the answers that [`send`](crate::send) sends it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Caller {
    /// It takes them all, as every test's caller does unless [`caller`] says else.
    TakesAll,
    /// It takes one answer only: what the function returns.
    TakesOne,
    /// It takes as many, and has gone when the next is sent.
    Leaves {
        /// The answers that it takes before.
        after: usize,
    },
}

/// Sets who calls from here on, in the calling thread, and forgets what was sent before.
///
/// ```
/// use tenon_sdk::testing::{self, Caller};
/// # use tenon_sdk::Result;
/// #
/// # #[tenon_sdk::function]
/// # fn countdown(from: i64) -> Result<i64> {
/// #     for n in (1..=from).rev() {
/// #         tenon_sdk::send(n)?;
/// #     }
/// #     Ok(0)
/// # }
///
/// testing::caller(Caller::TakesOne);
/// assert_eq!(countdown(3), Ok(0));
/// assert!(testing::sent::<i64>("output")?.is_empty());
///
/// testing::caller(Caller::Leaves { after: 2 });
/// assert_eq!(countdown(3).unwrap_err().code(), "caller-gone");
/// assert_eq!(testing::sent::<i64>("output")?, [3, 2]);
/// # Ok::<(), tenon_sdk::Error>(())
/// ```
pub fn caller(caller: Caller) {
    LINE.with_borrow_mut(|line| *line = Line { caller: Some(caller), ..Line::default() });
    another_caller();
}

/// What was sent as the output of this name, oldest first: by the calling thread, since it began or set its
/// [`caller`]. An answer without this output is left out. An error where an output is not of type `T`.
pub fn sent<T: Input>(name: &str) -> Result<Vec<T>> {
    let of_name = |line: &Line| {
        let outputs = line.sent.iter().flatten().filter(|(output, _)| *output == name);
        outputs.map(|(_, tensor)| tensor.clone()).collect::<Vec<_>>()
    };
    let tensors = LINE.with_borrow(of_name).into_iter();
    tensors
        .map(|tensor| T::from_tensor(tensor).map_err(|error| error.about(format_args!("output `{name}`"))))
        .collect()
}

/// The line to the caller.
#[derive(Default)]
struct Line {
    caller: Option<Caller>,
    sent: Vec<Vec<(&'static str, AnyTensor)>>,
    /// Of the function that ran last.
    describe: Option<fn() -> Metadata>,
}

pub(crate) fn running(describe: fn() -> Metadata) {
    LINE.with_borrow_mut(|line| line.describe = Some(describe));
}

/// Does what the host does: refuses what the function does not describe, and hands on the rest.
pub(crate) fn send(outputs: Vec<(&'static str, AnyTensor)>) -> Result<Sent> {
    let describe = LINE.with_borrow(|line| line.describe);
    if let Some(metadata) = describe.map(|describe| describe()) {
        outputs.iter().try_for_each(|(name, tensor)| check(&metadata, name, tensor))?;
    }
    LINE.with_borrow_mut(|line| match line.caller {
        Some(Caller::TakesOne) => Ok(Sent::Single),
        Some(Caller::Leaves { after }) if line.sent.len() >= after => Ok(Sent::Gone),
        Some(Caller::TakesAll | Caller::Leaves { .. }) | None => {
            line.sent.push(outputs);
            Ok(Sent::Taken)
        }
    })
}

fn check(metadata: &Metadata, name: &str, tensor: &AnyTensor) -> Result<()> {
    let Some(described) = metadata.outputs.iter().find(|output| output.name == name) else {
        let names: Vec<&str> = metadata.outputs.iter().map(|output| &*output.name).collect();
        return Err(Error::failed(format_args!("the function sent `{name}`, and its outputs are {names:?}")));
    };
    let (has, wants) = (tensor.datatype(), described.datatype);
    if has != wants {
        let (has, wants) = (datatype::name(has), datatype::name(wants));
        return Err(Error::failed(format_args!(
            "the function sent `{name}` as {has}, and describes {wants}"
        )));
    }
    let (has, wants) = (tensor.shape(), &described.shape);
    let fits = |(&has, &wants): (&usize, &i64)| wants == -1 || usize::try_from(wants) == Ok(has);
    if has.len() != wants.len() || !has.iter().zip(wants).all(fits) {
        return Err(Error::failed(format_args!(
            "the function sent `{name}` with shape {has:?}, and describes {wants:?}"
        )));
    }
    Ok(())
}

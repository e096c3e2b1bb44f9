//! Answers before the last one: what is sent, under which names, and to whom.

use std::cell::RefCell;

use crate::export::{Function, Reply};
use crate::function::{Output, Outputs};
use crate::{Error, Result};

/// Sends an answer to the caller now, before the last one, which is what the function returns.
///
/// `Ok(true)`: the answer is on its way, or the caller asked for none of these outputs. `Ok(false)`: the caller
/// takes one answer only, and nothing was sent; the function goes on, and what it returns is all that the caller
/// gets. It waits while the caller takes no more, within the deadline of the call.
///
/// What is sent is an [`Answer`]: whatever the function can return, or a part of it.
///
/// ```
/// use tenon_sdk::{Outputs, Result, testing};
///
/// #[derive(Outputs)]
/// struct Word {
///     word: String,
///     index: u64,
/// }
///
/// /// Each word of a text as it is found, and at last the text and the number of words.
/// #[tenon_sdk::function]
/// fn words(text: String) -> Result<Word> {
///     let mut index = 0;
///     for word in text.split_whitespace() {
///         tenon_sdk::send(Word { word: word.to_owned(), index })?;
///         index += 1;
///     }
///     Ok(Word { word: text, index })
/// }
///
/// let last = words("so it goes".to_owned())?;
/// assert_eq!(testing::sent::<String>("word")?, ["so", "it", "goes"]);
/// assert_eq!((last.word.as_str(), last.index), ("so it goes", 3));
/// # Ok::<(), tenon_sdk::Error>(())
/// ```
///
/// The host takes a component that calls this, wherever it does so, for one that streams: the protocol's
/// configuration of the model says `decoupled`, and its answers are not cached.
///
/// # Errors
/// Where the caller has gone (code `caller-gone`): `?` ends the function early, and frees what it holds. The
/// host may also end the instance where it stands. And where the function's memory limit is reached.
pub fn send(answer: impl Answer) -> Result<bool> {
    let Some(mut reply) = CALL.with_borrow(Call::reply) else { return Ok(false) };
    answer.write(&mut reply)?;
    let outputs = reply.into_tensors();
    // The caller wants other outputs than these.
    if outputs.is_empty() {
        return Ok(true);
    }
    match caller::send(outputs)? {
        Sent::Taken => Ok(true),
        Sent::Single => {
            CALL.with_borrow_mut(|call| call.single = true);
            Ok(false)
        }
        Sent::Gone => {
            Err(Error::new("caller-gone", "the caller has gone").with_status(CLIENT_CLOSED_REQUEST))
        }
    }
}

/// For the host's own books: nobody is there to be answered.
const CLIENT_CLOSED_REQUEST: u16 = 499;

/// What can be sent to the caller before the last answer: what a function can return.
///
/// - one output: under the name that `#[function(outputs(name))]` gives it, or else `output`;
/// - a tuple, under the names of `#[function(outputs(first, second))]`;
/// - a struct with `#[derive(Outputs)]`, under its own. It may have fewer outputs than the last answer.
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot be sent to the caller",
    label = "neither an output nor outputs",
    note = "send what the function returns, without its `Result`: `Tensor<T>`, a number, `bool`, `String`, \
            `Bytes`, `Json<T>` with `T: Serialize`, a struct with `#[derive(tenon_sdk::Outputs)]`, or a tuple of \
            up to 8 outputs"
)]
pub trait Answer {
    /// Adds the outputs that the caller wants.
    #[doc(hidden)]
    fn write(self, reply: &mut Reply) -> Result<()>;
}

impl<T: Outputs> Answer for T {
    fn write(self, reply: &mut Reply) -> Result<()> {
        Outputs::write(self, reply)
    }
}

macro_rules! tuples {
    ($($count:literal: $($ty:ident $field:tt),*;)*) => {$(
        impl<$($ty: Output),*> Answer for ($($ty,)*) {
            fn write(self, reply: &mut Reply) -> Result<()> {
                let names = reply.names_of_tuple($count)?;
                $(reply.add(names[$field], self.$field)?;)*
                Ok(())
            }
        }
    )*};
}

tuples! {
    1: A 0;
    2: A 0, B 1;
    3: A 0, B 1, C 2;
    4: A 0, B 1, C 2, D 3;
    5: A 0, B 1, C 2, D 3, E 4;
    6: A 0, B 1, C 2, D 3, E 4, F 5;
    7: A 0, B 1, C 2, D 3, E 4, F 5, G 6;
    8: A 0, B 1, C 2, D 3, E 4, F 5, G 6, H 7;
}

/// What is known of the call that runs, from where `send` cannot see it.
#[derive(Default)]
struct Call {
    /// The outputs that the caller wants; empty for all.
    wanted: Vec<String>,
    /// The names in `#[function(outputs(...))]`.
    named: &'static [&'static str],
    /// Whether the caller is known to take one answer only.
    single: bool,
}

impl Call {
    /// The answer to fill, if there is a use for one.
    fn reply(&self) -> Option<Reply> {
        (!self.single).then(|| Reply::new(self.wanted.clone(), self.named))
    }
}

thread_local! {
    static CALL: RefCell<Call> = RefCell::default();
}

/// Runs a function for a caller who wants these outputs.
pub(crate) fn answering<T>(wanted: &[String], function: impl FnOnce() -> T) -> T {
    let begin = |wanted| CALL.with_borrow_mut(|call| *call = Call { wanted, ..Call::default() });
    begin(wanted.to_vec());
    let answered = function();
    begin(Vec::new());
    answered
}

/// Whose outputs are sent from here on.
pub(crate) fn running<F: Function>() {
    CALL.with_borrow_mut(|call| call.named = F::NAMED_OUTPUTS);
    #[cfg(not(target_family = "wasm"))]
    crate::testing::running(F::describe);
}

/// Forgets what kind of caller there was.
#[cfg(not(target_family = "wasm"))]
pub(crate) fn another_caller() {
    CALL.with_borrow_mut(|call| call.single = false);
}

/// What became of an answer.
pub(crate) enum Sent {
    /// The caller gets it.
    Taken,
    /// The caller takes one answer only.
    Single,
    /// There is no caller any more.
    Gone,
}

#[cfg(not(target_family = "wasm"))]
use crate::testing as caller;

#[cfg(target_family = "wasm")]
mod caller {
    use super::{Result, Sent};
    use crate::AnyTensor;
    use crate::bindings::tenon::function::responses::{self, SendError};
    use crate::export::named_tensors;

    pub(super) fn send(outputs: Vec<(&'static str, AnyTensor)>) -> Result<Sent> {
        Ok(match responses::send(named_tensors(outputs)?) {
            Ok(()) => Sent::Taken,
            Err(SendError::Single) => Sent::Single,
            Err(SendError::Gone) => Sent::Gone,
        })
    }
}

//! Write model functions for Tenon: plain Rust fns from tensors to tensors.
//!
//! A model function is a machine-learning model with its pre- and post-processing as one WebAssembly component.
//! The attribute [`function`](macro@function) on one fn makes it: the fn's arguments are the inputs, what it
//! returns are the outputs, and the metadata comes from both.
//!
//! ```
//! use tenon_sdk::{Result, Tensor};
//!
//! /// The sum and the difference of two lists of numbers.
//! #[tenon_sdk::function(outputs(sum, difference))]
//! fn add(a: Tensor<i64>, b: Tensor<i64>) -> Result<(Tensor<i64>, Tensor<i64>)> {
//!     let sum = a.iter().zip(b.iter()).map(|(a, b)| a + b).collect();
//!     let difference = a.iter().zip(b.iter()).map(|(a, b)| a - b).collect();
//!     Ok((sum, difference))
//! }
//! ```
//!
//! - [`Tensor`] and [`AnyTensor`]: values with a shape; [`Bytes`] and [`Json`]: files, text and records.
//! - [`Model`]: the models that `spin.toml` grants to the function. It works in every component, also in an HTTP
//!   function written with spin-sdk or wstd: only `function` makes a component export a model function.
//! - [`Error`]: what the caller is told.
//! - [`send`]: answers before the last one, such as the words of a text as they are found.
#![cfg_attr(feature = "image", doc = "- [`image`]: PNG and JPEG to tensors.")]
//! - [`scores`]: softmax, the best classes and their labels.
#![cfg_attr(
    not(target_family = "wasm"),
    doc = "- [`testing`]: stand-ins for models and callers, for tests outside wasm."
)]
//!
//! Build for the target `wasm32-wasip2`; every fn also runs in a plain `cargo test`, with stand-ins for what it
//! calls. What it prints, and the message of a panic, is in `.tenon/logs` beside `spin.toml`.

#[doc(hidden)]
#[allow(
    missing_docs,
    unreachable_pub,
    clippy::all,
    clippy::allow_attributes_without_reason,
    reason = "generated"
)]
pub mod bindings;

mod bytes;
mod datatype;
mod element;
mod error;
#[doc(hidden)]
pub mod export;
mod function;
mod handle;
mod model;
mod tensor;

#[cfg(feature = "ndarray")]
mod array;
#[cfg(feature = "image")]
pub mod image;
#[cfg(feature = "json")]
mod json;
pub mod scores;
mod send;
#[cfg(not(target_family = "wasm"))]
pub mod testing;

/// A datatype of the Open Inference Protocol: `Datatype::Fp32` is FP32.
#[doc(inline)]
pub use bindings::tenon::function::tensors::Datatype;
/// Name, datatype and shape of an input or output; -1 for a dimension that the caller chooses.
#[doc(inline)]
pub use bindings::tenon::function::tensors::TensorMetadata;

/// How a function describes itself.
#[doc(hidden)]
pub use bindings::exports::tenon::function::function::Metadata;
/// The value of a request parameter.
#[doc(inline)]
pub use bindings::exports::tenon::function::function::ParameterValue;

pub use bytes::Bytes;
pub use element::Element;
pub use error::{Error, Result};
pub use function::{Input, Output, Outputs, Parameter};
pub use half::{bf16, f16};
#[cfg(feature = "json")]
pub use json::Json;
pub use model::{Model, ModelMetadata, ModelOutputs};
pub use send::{Answer, send};
pub use tenon_sdk_macros::{Outputs, function};
pub use tensor::{AnyTensor, IntoTensor, Tensor};

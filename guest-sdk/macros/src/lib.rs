//! The attribute `function` and the derive `Outputs` of tenon-sdk, where they are documented.

mod arguments;
mod function;
mod outputs;

use proc_macro::TokenStream;

/// Makes a fn the model function of this component.
///
/// The arguments are the inputs, each of a type that is an `Input`; the fn returns outputs or a `Result` of them.
/// One fn of a component carries the attribute. It stays callable as the plain fn that it is.
///
/// ```
/// use tenon_sdk::{Json, Result, Tensor};
///
/// #[tenon_sdk::function]
/// fn largest(
///     #[tensor(shape = [-1, 64])] x: Tensor<f32>,
///     #[parameter(default = 1)] k: usize,
/// ) -> Result<Json<Vec<usize>>> {
///     let best = tenon_sdk::scores::top_k(&x, k);
///     Ok(Json(best.into_iter().map(|(index, _)| index).collect()))
/// }
/// ```
///
/// What it answers before it returns, it sends with `tenon_sdk::send`.
///
/// # On the fn
///
/// - `outputs(sum, "the-rest"(shape = [-1, 4]))` names the output, or the elements of the tuple that is returned,
///   with what `#[tensor(...)]` takes in parentheses. Without it the one output is named `output`. A struct with
///   `#[derive(Outputs)]` names its own.
/// - `accepts("image/png", "image/jpeg")`: media types of raw request bodies that become the one BYTES input.
///   Without it `Json<T>` accepts `application/json`, `String` accepts `text/*`, and bytes none.
/// - `answers("text/csv")`: the media type of the one BYTES output, answered as a raw body to callers that sent
///   one. Without it `application/json` for `Json<T>`, `text/plain; charset=utf-8` for `String`, and
///   `application/octet-stream` for bytes.
///
/// # On an argument
///
/// - `#[tensor(name = "...", shape = [-1, 64], datatype = "FP32")]`, each where what the argument's name and type
///   say is not enough; -1 is a dimension that the caller chooses. The host checks what it is given against it.
/// - `#[parameter]`, `#[parameter(default = 5)]`, `#[parameter(name = "top-k")]`: a request parameter rather than
///   a tensor: `bool`, an integer, a float, `String`, or an `Option` of one.
#[proc_macro_attribute]
pub fn function(arguments: TokenStream, item: TokenStream) -> TokenStream {
    function::expand(arguments.into(), item.into()).unwrap_or_else(syn::Error::into_compile_error).into()
}

/// Makes a struct the outputs of a function: each field is one, of the field's name.
///
/// ```
/// use tenon_sdk::{Outputs, Result, Tensor};
///
/// #[derive(Outputs)]
/// struct Digits {
///     #[tensor(shape = [-1, 10])]
///     scores: Tensor<f32>,
///     #[tensor(name = "best-digit")]
///     digit: Tensor<i64>,
/// }
///
/// #[tenon_sdk::function]
/// fn digits(#[tensor(shape = [-1, 1, 8, 8])] image: Tensor<f32>) -> Result<Digits> {
///     let batch = image.shape()[0];
///     let scores = Tensor::new([batch, 10], vec![0.1; 10 * batch])?;
///     Ok(Digits { scores, digit: vec![0; batch].into() })
/// }
/// ```
///
/// A field takes `#[tensor(name = "...", shape = [...], datatype = "...")]` as an argument of a function does.
#[proc_macro_derive(Outputs, attributes(tensor))]
pub fn outputs(item: TokenStream) -> TokenStream {
    outputs::expand(item.into()).unwrap_or_else(syn::Error::into_compile_error).into()
}

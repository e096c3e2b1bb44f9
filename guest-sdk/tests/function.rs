//! What `#[function]` and `#[derive(Outputs)]` make of a fn: its metadata, and its calls.

use tenon_sdk::export::{Function, Request};
use tenon_sdk::{
    AnyTensor, Bytes, Datatype, Error, IntoTensor, Json, Metadata, Outputs, ParameterValue, Result, Tensor,
};

mod sums {
    use super::*;

    #[tenon_sdk::function(outputs(sum, "the-rest"(shape = [1])))]
    fn sums(
        #[tensor(shape = [-1, 2])] a: Tensor<i64>,
        #[tensor(name = "b-side")] b: Tensor<i64>,
        #[parameter(default = 1)] factor: i64,
        #[parameter] note: Option<String>,
    ) -> Result<(Tensor<i64>, String)> {
        let sum = a.iter().zip(b.iter()).map(|(a, b)| factor * (a + b)).collect();
        Ok((sum, note.unwrap_or_default()))
    }

    pub(super) use __tenon_sums as Sums;
}

mod picture {
    use super::*;

    #[derive(Outputs)]
    pub(super) struct Seen {
        #[tensor(shape = [-1, 10])]
        scores: Tensor<f32>,
        #[tensor(datatype = "bool", name = "sure")]
        is_sure: AnyTensor,
    }

    #[tenon_sdk::function(accepts("image/png", "image/*"))]
    fn picture(body: Bytes) -> Result<Seen> {
        if body.is_empty() {
            return Err(Error::new("empty", "there is nothing"));
        }
        Ok(Seen {
            scores: Tensor::new([1, 10], vec![0.0; 10])?,
            is_sure: Tensor::from(vec![true]).into_tensor()?,
        })
    }

    pub(super) use __tenon_picture as Picture;
}

mod plain {
    use super::*;

    #[tenon_sdk::function]
    fn plain(value: Json<Vec<u32>>) -> Json<u32> {
        Json(value.iter().sum())
    }

    pub(super) use __tenon_plain as Plain;
}

type Described<'a> = Vec<(&'a str, Datatype, &'a [i64])>;

fn described(metadata: &Metadata) -> (Described<'_>, Described<'_>) {
    let inputs = metadata.inputs.iter().map(|input| (&*input.name, input.datatype, &*input.shape));
    let outputs = metadata.outputs.iter().map(|output| (&*output.name, output.datatype, &*output.shape));
    (inputs.collect(), outputs.collect())
}

fn request<const N: usize>(inputs: [(&str, AnyTensor); N]) -> Request {
    let inputs = inputs.map(|(name, tensor)| (name.to_owned(), tensor)).into();
    Request { inputs, ..Request::default() }
}

fn text(text: &str) -> AnyTensor {
    Tensor::from(vec![text.to_owned()]).into_tensor().expect("a text fits into memory")
}

#[test]
fn metadata_comes_from_the_signature() {
    let metadata = sums::Sums::describe();
    let (inputs, outputs) = described(&metadata);
    assert_eq!(inputs, [("a", Datatype::Int64, &[-1, 2][..]), ("b-side", Datatype::Int64, &[-1])]);
    assert_eq!(outputs, [("sum", Datatype::Int64, &[-1][..]), ("the-rest", Datatype::Bytes, &[1])]);
    assert_eq!((metadata.accepts.len(), metadata.answers), (0, None));

    let metadata = picture::Picture::describe();
    let (inputs, outputs) = described(&metadata);
    assert_eq!(inputs, [("body", Datatype::Bytes, &[1][..])]);
    assert_eq!(outputs, [("scores", Datatype::Fp32, &[-1, 10][..]), ("sure", Datatype::Bool, &[-1])]);
    assert_eq!((metadata.accepts, metadata.answers), (vec!["image/png".into(), "image/*".into()], None));

    let metadata = plain::Plain::describe();
    let (inputs, outputs) = described(&metadata);
    assert_eq!(inputs, [("value", Datatype::Bytes, &[1][..])]);
    assert_eq!(outputs, [("output", Datatype::Bytes, &[1][..])]);
    assert_eq!(metadata.accepts, ["application/json"]);
    assert_eq!(metadata.answers.as_deref(), Some("application/json"));
}

#[test]
fn a_call_takes_inputs_and_parameters_and_answers_what_is_wanted() {
    let tensor = |elements: &[i64]| Tensor::from(elements).into_tensor().unwrap();
    let mut request = request([("b-side", tensor(&[3, 4])), ("a", tensor(&[1, 2]))]);
    request.parameters = vec![("factor".into(), ParameterValue::Int64(10))];
    request.outputs = vec!["sum".into()];
    let reply = sums::Sums::call(request).unwrap().finish().unwrap();
    assert_eq!(reply.len(), 1);
    assert_eq!(reply[0].0, "sum");
    assert_eq!(*reply[0].1.clone().typed::<i64>().unwrap(), [40, 60]);
}

#[test]
fn what_the_caller_did_wrong_is_named() {
    let message = |request| plain::Plain::call(request).map(drop).unwrap_err().message().to_owned();
    assert_eq!(message(request([])), "input `value` is missing");
    assert_eq!(
        message(request([("value", text("[-1]"))])),
        "input `value`: invalid value: integer `-1`, expected u32 at line 1 column 3"
    );
    let mut unknown = request([("value", text("[1]"))]);
    unknown.outputs = vec!["nothing".into()];
    let error = plain::Plain::call(unknown).unwrap().finish().unwrap_err();
    assert_eq!(error.message(), "there is no output `nothing`");
    assert_eq!(picture::Picture::call(request([("body", text(""))])).map(drop).unwrap_err().code(), "empty");
}

#[test]
fn a_parameter_that_does_not_fit_is_named() {
    let tensor = || Tensor::from(vec![1_i64, 2]).into_tensor().unwrap();
    let mut request = request([("b-side", tensor()), ("a", tensor())]);
    request.parameters = vec![("factor".into(), ParameterValue::Text("ten".into()))];
    let error = sums::Sums::call(request).map(drop).unwrap_err();
    assert_eq!(
        (error.message(), error.status()),
        ("parameter `factor` is not an integer in range", Some(400))
    );
}

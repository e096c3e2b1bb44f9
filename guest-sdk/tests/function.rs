//! What `#[function]` and `#[derive(Outputs)]` make of a fn: its metadata, and its calls.

use tenon_sdk::export::{Function, Request};
use tenon_sdk::testing::{self, Caller};
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
        pub(super) scores: Tensor<f32>,
        #[tensor(datatype = "bool", name = "sure")]
        pub(super) is_sure: AnyTensor,
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

mod stream {
    use super::*;

    #[derive(Outputs)]
    struct Piece {
        text: String,
    }

    #[tenon_sdk::function(outputs(text, length))]
    fn stream(words: Vec<String>, #[parameter(default = false)] as_struct: bool) -> Result<(String, u64)> {
        const LAST: &str = "last";
        for word in words {
            let length = word.len() as u64;
            match as_struct {
                true => tenon_sdk::send(Piece { text: word })?,
                false => tenon_sdk::send((word, length))?,
            };
        }
        Ok((LAST.to_owned(), 0))
    }

    pub(super) use __tenon_stream as Stream;
}

mod mistakes {
    use super::*;

    #[tenon_sdk::function(outputs(scores(shape = [-1, 2])))]
    fn mistakes(what: String) -> Result<Tensor<f32>> {
        let scores = Tensor::new([1, 2], [0.5, 0.5])?;
        match what.as_str() {
            "datatype" => tenon_sdk::send("0.5".to_owned())?,
            "rank" => tenon_sdk::send(scores.clone().reshape([2])?)?,
            "size" => tenon_sdk::send(scores.clone().reshape([2, 1])?)?,
            "tuple" => tenon_sdk::send((scores.clone(), 1_i64))?,
            "name" => tenon_sdk::send(picture::Seen {
                scores: scores.clone(),
                is_sure: Tensor::from(vec![true]).into_tensor()?,
            })?,
            _ => tenon_sdk::send(scores.clone())?,
        };
        Ok(scores)
    }

    #[test]
    fn what_is_not_described_is_not_sent() {
        let check = |what: &str, expected: &str| {
            let error = mistakes(what.to_owned()).unwrap_err();
            assert_eq!((error.message(), error.status()), (expected, Some(500)));
        };
        check("datatype", "the function sent `scores` as BYTES, and describes FP32");
        check("rank", "the function sent `scores` with shape [2], and describes [-1, 2]");
        check("size", "the function sent `scores` with shape [2, 1], and describes [-1, 2]");
        check("name", "the function sent `sure`, and its outputs are [\"scores\"]");
        check(
            "tuple",
            "2 outputs were sent as a tuple, and `#[function(outputs(...))]` names 1: send what the function \
             returns, or a struct with `#[derive(Outputs)]`",
        );
        mistakes("nothing".to_owned()).unwrap();
        let sent = testing::sent::<Tensor<f32>>("scores").unwrap();
        assert_eq!(sent.iter().map(Tensor::shape).collect::<Vec<_>>(), [[1, 2]]);
    }
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

/// Calls `stream` on three words, and answers what was sent as `text` and `length`, and what was returned.
fn streamed(outputs: &[&str], as_struct: bool) -> Result<(Vec<String>, Vec<u64>, Vec<&'static str>)> {
    let words: Tensor<String> = ["so", "it", "goes"].map(str::to_owned).into_iter().collect();
    let mut request = request([("words", words.into_tensor()?)]);
    request.outputs = outputs.iter().map(|&output| output.to_owned()).collect();
    request.parameters = vec![("as_struct".to_owned(), ParameterValue::Bool(as_struct))];
    let last = stream::Stream::call(request)?.finish()?;
    let names = last.iter().map(|&(name, _)| name).collect();
    Ok((testing::sent("text")?, testing::sent("length")?, names))
}

#[test]
fn answers_are_sent_under_the_function_s_names() {
    let (texts, lengths, last) = streamed(&[], false).unwrap();
    assert_eq!((texts, lengths), (["so", "it", "goes"].map(str::to_owned).to_vec(), vec![2, 2, 4]));
    assert_eq!(last, ["text", "length"]);
}

#[test]
fn an_answer_that_is_sent_may_have_fewer_outputs() {
    let (texts, lengths, last) = streamed(&[], true).unwrap();
    assert_eq!((texts.len(), lengths.len(), last.len()), (3, 0, 2));
}

#[test]
fn of_an_answer_that_is_sent_the_caller_gets_what_it_wants() {
    let (texts, lengths, last) = streamed(&["length"], false).unwrap();
    assert_eq!((texts.len(), lengths, last), (0, vec![2, 2, 4], vec!["length"]));
    testing::caller(Caller::Leaves { after: 0 });
    let (texts, lengths, _) =
        streamed(&["length"], true).expect("nothing of it is sent, so nobody is missed");
    assert_eq!((texts.len(), lengths.len()), (0, 0));
}

#[test]
fn a_caller_takes_one_answer_or_leaves() {
    testing::caller(Caller::TakesOne);
    let (texts, _, last) = streamed(&[], false).unwrap();
    assert_eq!((texts.len(), last.len()), (0, 2));
    testing::caller(Caller::Leaves { after: 1 });
    let error = streamed(&[], false).unwrap_err();
    assert_eq!((error.code(), error.status()), ("caller-gone", Some(499)));
    assert_eq!(testing::sent::<String>("text").unwrap(), ["so"]);
    testing::caller(Caller::TakesAll);
    assert_eq!(streamed(&[], false).unwrap().0.len(), 3);
}

#[test]
fn a_parameter_that_does_not_fit_is_named() {
    let tensor = || Tensor::from(vec![1_i64, 2]).into_tensor().unwrap();
    let mut request = request([("b-side", tensor()), ("a", tensor())]);
    request.parameters = vec![("factor".into(), ParameterValue::Text("ten".into()))];
    let error = sums::Sums::call(request).map(drop).unwrap_err();
    assert_eq!(
        (error.message(), error.status()),
        ("parameter `factor` is not an integer from -9223372036854775808 to 9223372036854775807", Some(400))
    );
}

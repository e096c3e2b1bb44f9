//! Answers that break the function's own promise, and errors of every kind.

use tenon_sdk::bindings::exports::tenon::function::function::{Error, Response};
use tenon_sdk::bindings::tenon::function::tensors::{Datatype, Tensor};

use crate::{failed, respond, text_tensor};

pub(crate) fn behave(name: &str, argument: &str) -> Option<Result<Response, Error>> {
    Some(match name {
        "wrong-shape" => create(Datatype::Bytes, &[2], &[0; 8]),
        "wrong-datatype" => create(Datatype::Fp32, &[1], &[0; 4]),
        "wrong-output-names" => text_tensor("ok").map(|tensor| respond("not-the-answer", tensor)),
        "missing-output" => Ok(Response { outputs: Vec::new(), parameters: Vec::new() }),
        "output-twice" => twice(),
        "huge-answer" => {
            text_tensor(&"huge ".repeat(mebibytes(argument))).map(|tensor| respond("answer", tensor))
        }
        "own-error" => Err(own_error(argument.parse().ok())),
        "bad-status" => Err(own_error(Some(99))),
        "ok-status" => Err(own_error(Some(200))),
        "bad-code" => Err(Error { code: "Not a code\r\nx: y".to_owned(), ..own_error(None) }),
        "huge-error" => Err(Error { message: "huge ".repeat(mebibytes(argument)), ..own_error(None) }),
        _ => return None,
    })
}

fn mebibytes(argument: &str) -> usize {
    (argument.parse::<usize>().unwrap_or(64) << 20) / "huge ".len()
}

fn create(datatype: Datatype, shape: &[u64], data: &[u8]) -> Result<Response, Error> {
    let tensor = Tensor::create(datatype, shape, data).map_err(|error| failed(&error))?;
    Ok(respond("answer", tensor))
}

fn twice() -> Result<Response, Error> {
    let mut response = respond("answer", text_tensor("one")?);
    response.outputs.extend(respond("answer", text_tensor("two")?).outputs);
    Ok(response)
}

fn own_error(status: Option<u16>) -> Error {
    Error { code: "asked-for".to_owned(), message: "an error on purpose".to_owned(), status }
}

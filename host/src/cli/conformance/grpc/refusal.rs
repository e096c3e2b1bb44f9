//! Inference requests over gRPC that no model can take.

use std::sync::PoisonError;

use super::infer::{INFERENCE, agrees, check, contents, raw, typed};
use super::server::grpc;
use super::{INVALID_ARGUMENT, pb};
use crate::cli::conformance::check::{Check, Level, Problem, Verdict};
use crate::cli::conformance::model::Model;
use crate::cli::conformance::tensor::{Kind, Tensor};

pub(in crate::cli::conformance) const CHECKS: &[Check<Model>] = &[
    required("grpc.refuse.missing", "a request that lacks an input is refused", |model| {
        raw_refused(model, |request| {
            request.inputs.pop();
            request.raw_input_contents.pop();
        })
    }),
    advised("grpc.refuse.unknown", "an input that the model does not have is refused", |model| {
        raw_refused(model, |request| {
            request.inputs.push(pb::model_infer_request::InferInputTensor {
                name: "tenon-conformance-no-such-input".to_owned(),
                ..request.inputs[0].clone()
            });
            request.raw_input_contents.push(request.raw_input_contents[0].clone());
        })
    }),
    advised("grpc.refuse.twice", "the same input given twice is refused", |model| {
        raw_refused(model, |request| {
            request.inputs.push(request.inputs[0].clone());
            request.raw_input_contents.push(request.raw_input_contents[0].clone());
        })
    }),
    advised("grpc.refuse.outputs", "an output that the model does not have is refused", |model| {
        raw_refused(model, |request| {
            request.outputs = vec![pb::model_infer_request::InferRequestedOutputTensor {
                name: "tenon-conformance-no-such-output".to_owned(),
                ..Default::default()
            }];
        })
    }),
    required("grpc.refuse.datatype", "an input of another datatype is refused", |model| {
        let other = model.sample()?.inputs[0].datatype.another();
        raw_refused(model, |request| other.clone_into(&mut request.inputs[0].datatype))
    }),
    required("grpc.refuse.datatype.unknown", "a datatype that is none is refused", |model| {
        raw_refused(model, |request| "FLOAT".clone_into(&mut request.inputs[0].datatype))
    }),
    required("grpc.refuse.shape.rank", "a shape of another rank is refused", |model| {
        raw_refused(model, |request| request.inputs[0].shape.extend([1, 1, 1]))
    }),
    required("grpc.refuse.shape.negative", "a negative dimension is refused", |model| {
        reshaped(model, |dim| -dim.max(1))
    }),
    required("grpc.refuse.shape.huge", "a shape beyond all memory is refused", |model| {
        reshaped(model, |_| 1 << 62)
    }),
    required(
        "grpc.refuse.shape.overflow",
        "a shape whose size overflows 64 bits to fit is refused",
        |model| {
            if model.sample()?.inputs[0].shape.len() < 2 {
                return Err(Problem::skip("the model's first input has less than two dimensions"));
            }
            raw_refused(model, |request| {
                request.inputs[0].shape.fill(1 << 32);
                request.raw_input_contents[0] = Vec::new().into();
            })
        },
    ),
    required("grpc.refuse.raw.short", "raw contents that end within an element are refused", |model| {
        with_raw(model, |raw| _ = raw.pop())
    }),
    required("grpc.refuse.raw.long", "raw contents with bytes after the last element are refused", |model| {
        with_raw(model, |raw| raw.extend([0; 8]))
    }),
    required("grpc.refuse.raw.fewer", "fewer raw contents than inputs are refused", |model| {
        raw_refused(model, |request| {
            request.raw_input_contents.pop();
        })
    }),
    required("grpc.refuse.raw.more", "more raw contents than inputs are refused", |model| {
        raw_refused(model, |request| request.raw_input_contents.push(vec![0; 8].into()))
    }),
    required(
        "grpc.refuse.raw.bytes",
        "an element of BYTES whose length runs beyond its data is refused",
        |model| {
            let first = &model.sample()?.inputs[0];
            if first.datatype.kind != Kind::Bytes || first.elements.is_empty() {
                return Err(Problem::skip("the model's first input is not of BYTES"));
            }
            with_raw(model, |raw| raw[..4].copy_from_slice(&u32::MAX.to_le_bytes()))
        },
    ),
    required("grpc.refuse.both", "raw and typed contents in one request are refused", |model| {
        let raw_input_contents = raw(model)?.raw_input_contents;
        is_refused(model, &pb::ModelInferRequest { raw_input_contents, ..typed(model)? })
    }),
    required("grpc.refuse.typed.short", "fewer typed elements than the shape says are refused", |model| {
        with_elements(model, |first| first.elements.pop().is_some())
    }),
    required("grpc.refuse.typed.long", "more typed elements than the shape says are refused", |model| {
        with_elements(model, |first| {
            first.elements.extend(first.elements.first().cloned());
            !first.elements.is_empty()
        })
    }),
    required(
        "grpc.refuse.typed.field",
        "typed contents in the field of another datatype are refused",
        |model| {
            let first = &model.sample()?.inputs[0];
            let count = first.elements.len();
            let other = match first.datatype.kind {
                Kind::Bytes => {
                    pb::InferTensorContents { fp64_contents: vec![0.5; count], ..Default::default() }
                }
                _ => pb::InferTensorContents {
                    bytes_contents: vec![b"1".to_vec().into(); count],
                    ..Default::default()
                },
            };
            with_contents(model, other)
        },
    ),
    advised("grpc.refuse.typed.range", "typed numbers that the datatype cannot hold are refused", |model| {
        let first = &model.sample()?.inputs[0];
        let count = first.elements.len();
        let beyond = match (first.datatype.kind, first.datatype.width) {
            (Kind::Signed, 1 | 2) => {
                pb::InferTensorContents { int_contents: vec![i32::MAX; count], ..Default::default() }
            }
            (Kind::Unsigned, 1 | 2) => {
                pb::InferTensorContents { uint_contents: vec![u32::MAX; count], ..Default::default() }
            }
            _ => return Err(Problem::skip("the field of the first input's datatype holds no others")),
        };
        with_contents(model, beyond)
    }),
    advised(
        "grpc.refuse.code",
        "what is the caller's fault is INVALID_ARGUMENT, so that nobody tries it again",
        |model| {
            let codes = model.codes.lock().unwrap_or_else(PoisonError::into_inner);
            if codes.is_empty() {
                return Err(Problem::skip("nothing was refused"));
            }
            let bad: Vec<_> = codes.iter().filter(|status| status.code != INVALID_ARGUMENT).collect();
            match bad.first() {
                None => Ok(()),
                Some(first) => {
                    let (bad, all) = (bad.len(), codes.len());
                    let got = format!("{bad} of {all} otherwise, the first {}", first.told());
                    Err(Problem::wrong("INVALID_ARGUMENT for each", got))
                }
            }
        },
    ),
    check(
        "grpc.after.infer",
        Level::Required,
        INFERENCE,
        "after all requests that were refused, the model answers as before",
        |model| agrees(model, &raw(model)?),
    ),
];

const fn required(id: &'static str, says: &'static str, run: fn(&Model) -> Verdict) -> Check<Model> {
    check(id, Level::Required, INFERENCE, says, run)
}

const fn advised(id: &'static str, says: &'static str, run: fn(&Model) -> Verdict) -> Check<Model> {
    check(id, Level::Advised, INFERENCE, says, run)
}

/// The call must fail.
fn is_refused(model: &Model, request: &pb::ModelInferRequest) -> Verdict {
    let status = grpc(&model.server)?.status("ModelInfer", request)?;
    let verdict = status.refused();
    if verdict.is_ok() {
        model.codes.lock().unwrap_or_else(PoisonError::into_inner).push(status);
    }
    verdict
}

/// The sample's request with raw contents, changed, must be refused.
fn raw_refused(model: &Model, change: impl FnOnce(&mut pb::ModelInferRequest)) -> Verdict {
    let mut request = raw(model)?;
    change(&mut request);
    is_refused(model, &request)
}

fn with_raw(model: &Model, change: impl FnOnce(&mut Vec<u8>)) -> Verdict {
    raw_refused(model, |request| {
        let mut raw = request.raw_input_contents[0].to_vec();
        change(&mut raw);
        request.raw_input_contents[0] = raw.into();
    })
}

fn reshaped(model: &Model, change: impl Fn(i64) -> i64) -> Verdict {
    if model.sample()?.inputs[0].shape.is_empty() {
        return Err(Problem::skip("the model's first input has no dimensions"));
    }
    raw_refused(model, |request| request.inputs[0].shape.iter_mut().for_each(|dim| *dim = change(*dim)))
}

/// The sample's request with other typed contents of its first input must be refused.
fn with_contents(model: &Model, contents: pb::InferTensorContents) -> Verdict {
    let mut request = typed(model)?;
    request.inputs[0].contents = Some(contents);
    is_refused(model, &request)
}

/// As [`with_contents`], of the elements as `change` leaves them; it answers whether there were any.
fn with_elements(model: &Model, change: impl FnOnce(&mut Tensor) -> bool) -> Verdict {
    let mut first = model.sample()?.inputs[0].clone();
    if first.datatype.is_raw_only() || !change(&mut first) {
        return Err(Problem::skip("the model's first input has no typed contents to change"));
    }
    with_contents(model, contents(&first))
}

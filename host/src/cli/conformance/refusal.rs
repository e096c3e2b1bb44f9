//! Inference requests that no model can take: each is to be refused, in the protocol's form, and do no harm.

use std::sync::PoisonError;

use serde_json::{Value, json};

use super::check::{Check, Level, Problem, Verdict};
use super::http::Answer;
use super::message::{self, Post, json_request, wanting, with};
use super::model::{Model, Sample};
use super::tensor::{Kind, Tensor};

const INPUT: &str = "Request Input";
const REQUEST: &str = "Inference Request";
const DATA: &str = "Tensor Data";

/// How deeply the nested request is nested.
const DEPTH: usize = 100_000;

pub(super) const CHECKS: &[Check<Model>] = &[
    check("refuse.not-json", Level::Required, REQUEST, "a body that is not JSON is refused", |model| {
        refuses(model, |_| Ok(Post::text("{\"inputs\": [")))
    }),
    check("refuse.empty", Level::Required, REQUEST, "an empty body is refused", |model| {
        refuses(model, |_| Ok(Post::text("")))
    }),
    check("refuse.not-an-object", Level::Required, REQUEST, "JSON that is no object is refused", |model| {
        refuses(model, |_| Ok(Post::json(&json!([1, 2]))))
    }),
    check(
        "refuse.inputs.absent",
        Level::Required,
        REQUEST,
        "a request without `inputs` is refused",
        |model| refuses(model, |_| Ok(Post::json(&json!({ "id": "1" })))),
    ),
    check("refuse.inputs.kind", Level::Required, REQUEST, "`inputs` that are no list are refused", |model| {
        refuses(model, |_| Ok(Post::json(&json!({ "inputs": "x" }))))
    }),
    check(
        "refuse.inputs.missing",
        Level::Required,
        REQUEST,
        "a request that lacks an input is refused",
        |model| refuses(model, |sample| Ok(Post::json(&json_request(&sample.inputs[1..])))),
    ),
    check(
        "refuse.inputs.unknown",
        Level::Advised,
        REQUEST,
        "an input that the model does not have is refused",
        |model| {
            refuses(model, |sample| {
                let mut surplus = sample.inputs[0].flat();
                surplus["name"] = json!("tenon-conformance-no-such-input");
                Ok(Post::json(&message::request(sample.inputs.iter().map(Tensor::flat).chain([surplus]))))
            })
        },
    ),
    check("refuse.inputs.twice", Level::Advised, REQUEST, "the same input given twice is refused", |model| {
        refuses(model, |sample| {
            let inputs = sample.inputs.iter().chain(&sample.inputs[..1]);
            Ok(Post::json(&message::request(inputs.map(Tensor::flat))))
        })
    }),
    check("refuse.input.unnamed", Level::Required, INPUT, "an input without a name is refused", |model| {
        changed(model, |_, input| _ = input.remove("name"))
    }),
    check("refuse.datatype", Level::Required, INPUT, "an input of another datatype is refused", |model| {
        refuses(model, |sample| {
            let first = &sample.inputs[0];
            let other = first.datatype.another();
            let value = if other == "BYTES" { json!("no number") } else { json!(0.5) };
            let mut input = first.flat();
            input["datatype"] = json!(other);
            input["data"] = vec![value; first.elements.len()].into();
            Ok(first_input(sample, input))
        })
    }),
    check("refuse.datatype.unknown", Level::Required, INPUT, "a datatype that is none is refused", |model| {
        changed(model, |_, input| input["datatype"] = json!("FLOAT"))
    }),
    check("refuse.datatype.case", Level::Required, INPUT, "a datatype in lower case is refused", |model| {
        changed(model, |first, input| input["datatype"] = json!(first.datatype.name.to_lowercase()))
    }),
    check(
        "refuse.datatype.absent",
        Level::Required,
        INPUT,
        "an input without a datatype is refused",
        |model| changed(model, |_, input| _ = input.remove("datatype")),
    ),
    check("refuse.shape.rank", Level::Required, INPUT, "a shape of another rank is refused", |model| {
        changed(model, |first, input| {
            input["shape"] = std::iter::repeat_n(1, 3).chain(first.shape.iter().copied()).collect();
        })
    }),
    check("refuse.shape.absent", Level::Required, INPUT, "an input without a shape is refused", |model| {
        changed(model, |_, input| _ = input.remove("shape"))
    }),
    check("refuse.shape.negative", Level::Required, INPUT, "a negative dimension is refused", |model| {
        reshaped(model, |first| first.shape.iter().map(|dim| json!(-dim.cast_signed().max(1))).collect())
    }),
    check(
        "refuse.shape.fraction",
        Level::Required,
        INPUT,
        "a dimension that is no whole number is refused",
        |model| reshaped(model, |first| vec![json!(1.5); first.shape.len()]),
    ),
    check("refuse.shape.huge", Level::Required, INPUT, "a shape beyond all memory is refused", |model| {
        reshaped(model, |first| vec![json!(1_u64 << 62); first.shape.len()])
    }),
    check(
        "refuse.shape.overflow",
        Level::Required,
        INPUT,
        "a shape whose size overflows 64 bits to fit is refused",
        |model| {
            refuses(model, |sample| {
                let first = &sample.inputs[0];
                if first.shape.len() < 2 {
                    return Err(Problem::skip("the model's first input has less than two dimensions"));
                }
                // 2^32 times 2^32 is 0 in 64 bits, and no data are then expected.
                let mut input = first.flat();
                input["shape"] = vec![json!(1_u64 << 32); first.shape.len()].into();
                input["data"] = json!([]);
                Ok(first_input(sample, input))
            })
        },
    ),
    check("refuse.data.absent", Level::Required, INPUT, "an input without data is refused", |model| {
        changed(model, |_, input| _ = input.remove("data"))
    }),
    check(
        "refuse.data.short",
        Level::Required,
        DATA,
        "fewer elements than the shape says are refused",
        |model| redata(model, |data| _ = data.pop()),
    ),
    check(
        "refuse.data.long",
        Level::Required,
        DATA,
        "more elements than the shape says are refused",
        |model| redata(model, |data| data.extend(data.last().cloned())),
    ),
    check(
        "refuse.data.kind",
        Level::Advised,
        DATA,
        "elements of another kind than the datatype's are refused",
        |model| {
            refuses(model, |sample| {
                let first = &sample.inputs[0];
                let value = if first.datatype.kind == Kind::Bytes { json!({}) } else { json!("no number") };
                let mut input = first.flat();
                input["data"] = vec![value; first.elements.len()].into();
                Ok(first_input(sample, input))
            })
        },
    ),
    check("refuse.data.null", Level::Advised, DATA, "elements that are null are refused", |model| {
        redata(model, |data| data.fill(Value::Null))
    }),
    check(
        "refuse.data.range",
        Level::Advised,
        DATA,
        "numbers that the datatype cannot hold are refused",
        |model| {
            let first = &model.json_sample()?.inputs[0];
            let beyond = match first.datatype.kind {
                Kind::Unsigned => json!(-1),
                Kind::Signed => json!(1_u64 << 63),
                _ => return Err(Problem::skip("the model's first input holds no whole numbers")),
            };
            redata(model, |data| data.fill(beyond.clone()))
        },
    ),
    check(
        "refuse.data.ragged",
        Level::Advised,
        DATA,
        "nested data whose rows differ in length are refused",
        |model| {
            refuses(model, |sample| {
                let first = &sample.inputs[0];
                if first.elements.len() < 2 {
                    return Err(Problem::skip("the model's first input has one element"));
                }
                let mut input = first.flat();
                let mut rows = input["data"].as_array().cloned().unwrap_or_default();
                let row = rows.split_off(1);
                input["data"] = json!([rows, [row, []]]);
                input["shape"] = json!(first.shape);
                Ok(first_input(sample, input))
            })
        },
    ),
    check(
        "refuse.outputs.unknown",
        Level::Advised,
        "Request Output",
        "an output that the model does not have is refused",
        |model| {
            refuses(model, |sample| {
                let wanted = ("tenon-conformance-no-such-output".to_owned(), Value::Null);
                Ok(Post::json(&wanting(json_request(&sample.inputs), [wanted])))
            })
        },
    ),
    check(
        "refuse.parameters",
        Level::Advised,
        "Parameters",
        "a parameter that is a list is refused",
        |model| {
            refuses(model, |sample| {
                let head = json_request(&sample.inputs);
                Ok(Post::json(&with(head, "parameters", json!({ "tenon_list": [1] }))))
            })
        },
    ),
    check(
        "refuse.depth",
        Level::Required,
        DATA,
        "data nested a hundred thousand deep are refused",
        |model| {
            refuses(model, |sample| {
                let mut head = sample.inputs[0].head();
                head["data"] = json!("nested");
                let nested = format!("{}{}", "[".repeat(DEPTH), "]".repeat(DEPTH));
                let body = message::request([head]).to_string();
                Ok(Post::text(body.replace("\"nested\"", &nested)))
            })
        },
    ),
    Check {
        id: "refuse.form",
        level: Level::Required,
        section: "Inference Response JSON Error Object",
        says: "what is refused is refused with {\"error\": \"…\"} and nothing but JSON",
        run: |model| {
            let has_form = |answer: &Answer| answer.error().is_some();
            each_refusal(model, "an error status and {\"error\": \"…\"} for each", has_form)
        },
    },
    Check {
        id: "refuse.status",
        level: Level::Advised,
        section: "Inference Response JSON Error Object",
        says: "what is the caller's fault is refused with 4xx, so that nobody tries it again",
        run: |model| each_refusal(model, "4xx for each", |answer| answer.status < 500),
    },
    Check {
        id: "accept.zero-elements",
        level: Level::Advised,
        section: DATA,
        says: "a tensor without elements, where a dimension is free, is answered or refused in good form",
        run: zero_elements,
    },
    Check {
        id: "after.infer",
        level: Level::Required,
        section: "Inference",
        says: "after all requests that were refused, the model answers as before",
        run: |model| {
            let sample = model.json_sample()?;
            model.agrees(&model.call(&Post::json(&json_request(&sample.inputs)))?.tensors())
        },
    },
];

const fn check(
    id: &'static str,
    level: Level,
    section: &'static str,
    says: &'static str,
    run: fn(&Model) -> Verdict,
) -> Check<Model> {
    Check { id, level, section, says, run }
}

/// Posts what `make` makes of the sample; it must be refused.
pub(super) fn refuses(model: &Model, make: impl FnOnce(&Sample) -> Result<Post, Problem>) -> Verdict {
    is_refused(model, &make(model.json_sample()?)?)
}

/// The model must refuse the request, in whatever form.
pub(super) fn is_refused(model: &Model, post: &Post) -> Verdict {
    let answer = model.infer(post)?;
    if !(400..600).contains(&answer.status) {
        return Err(Problem::wrong("an error status", answer.told()));
    }
    model.refusals.lock().unwrap_or_else(PoisonError::into_inner).push(answer);
    Ok(())
}

/// Whether all that was refused so far was refused well.
fn each_refusal(model: &Model, expected: &str, is_good: impl Fn(&Answer) -> bool) -> Verdict {
    let refusals = model.refusals.lock().unwrap_or_else(PoisonError::into_inner);
    let bad: Vec<&Answer> = refusals.iter().filter(|answer| !is_good(answer)).collect();
    match bad.first() {
        None if refusals.is_empty() => Err(Problem::skip("nothing was refused")),
        None => Ok(()),
        Some(first) => {
            let (bad, all) = (bad.len(), refusals.len());
            Err(Problem::wrong(expected, format!("{bad} of {all} otherwise, the first {}", first.told())))
        }
    }
}

/// The sample's request with another first input.
fn first_input(sample: &Sample, input: Value) -> Post {
    let others = sample.inputs.iter().skip(1).map(Tensor::flat);
    Post::json(&message::request(std::iter::once(input).chain(others)))
}

/// The sample's request with its first input changed must be refused.
fn changed(model: &Model, change: impl FnOnce(&Tensor, &mut serde_json::Map<String, Value>)) -> Verdict {
    refuses(model, |sample| {
        let mut input = sample.inputs[0].flat();
        if let Value::Object(members) = &mut input {
            change(&sample.inputs[0], members);
        }
        Ok(first_input(sample, input))
    })
}

fn reshaped(model: &Model, shape: impl FnOnce(&Tensor) -> Vec<Value>) -> Verdict {
    if model.json_sample()?.inputs[0].shape.is_empty() {
        return Err(Problem::skip("the model's first input has no dimensions"));
    }
    changed(model, |first, input| input["shape"] = shape(first).into())
}

fn redata(model: &Model, change: impl FnOnce(&mut Vec<Value>)) -> Verdict {
    changed(model, |_, input| {
        if let Value::Array(data) = &mut input["data"] {
            change(data);
        }
    })
}

fn zero_elements(model: &Model) -> Verdict {
    let sample = model.json_sample()?;
    let ports = model.ports("inputs");
    let free = ports.iter().find(|port| port.name == sample.inputs[0].name);
    let free = free.and_then(|port| port.shape.iter().position(|dim| *dim < 0));
    let Some(free) = free else {
        return Err(Problem::skip("the model's first input has no free dimension"));
    };
    let empty = sample.inputs.iter().map(|input| {
        let mut input = input.clone();
        if let Some(dim) = input.shape.get_mut(free) {
            *dim = 0;
            input.elements.clear();
        }
        input.flat()
    });
    let answer = model.infer(&Post::json(&message::request(empty)))?;
    if answer.is_ok() { message::read(answer).map(drop) } else { answer.refusal() }
}

//! The binary tensor extension: tensors after the JSON, in both directions, and lengths that lie.

use serde_json::{Value, json};

use super::check::{Check, Level, Problem, Verdict};
use super::message::{self, HEADER_LENGTH, Post, Reply, binary_input, binary_request, wanting, with};
use super::model::{Model, Sample};
use super::refusal::is_refused;
use super::tensor::{Kind, Tensor};

const SECTION: &str = "Binary Tensor Data extension";

pub(super) const CHECKS: &[Check<Model>] = &[
    check("binary.input", "inputs in binary are answered as inputs in JSON are", |model| {
        let sample = json_outputs(model)?;
        let (head, data) = binary_request(&sample.inputs);
        model.agrees(&call(model, &head, &data, &[false])?.tensors())
    }),
    check("binary.output", "an output with `binary_data` is answered in binary", |model| {
        let sample = model.binary_sample()?;
        let wanted = each_output(sample, |_| json!({ "binary_data": true }));
        let (head, data) = binary_request(&sample.inputs);
        let reply = call(model, &wanting(head, wanted), &data, &[true])?;
        model.agrees(&reply.tensors())
    }),
    check("binary.output.all", "with `binary_data_output` all outputs are answered in binary", |model| {
        let reply = all_binary(model)?;
        expect_forms(&reply, &[true])?;
        model.agrees(&reply.tensors())
    }),
    check("binary.output.json-input", "inputs in JSON may have outputs in binary", |model| {
        let sample = model.json_sample()?;
        model.binary_sample()?;
        let head = with(message::json_request(&sample.inputs), "parameters", BINARY_OUTPUT());
        let reply = model.call(&Post::json(&head))?;
        expect_forms(&reply, &[true])?;
        model.agrees(&reply.tensors())
    }),
    check("binary.output.override", "`binary_data` of an output wins over `binary_data_output`", |model| {
        let sample = json_outputs(model)?;
        let (head, data) = binary_request(&sample.inputs);
        let wanted = each_output(sample, |index| json!({ "binary_data": index != 0 }));
        let head = with(wanting(head, wanted), "parameters", BINARY_OUTPUT());
        let forms: Vec<bool> = (0..sample.outputs.len()).map(|index| index != 0).collect();
        model.agrees(&call(model, &head, &data, &forms)?.tensors())
    }),
    check("binary.input.mixed", "inputs in JSON and in binary may stand in one request", |model| {
        let sample = model.binary_sample()?;
        if sample.inputs.len() < 2 {
            return Err(Problem::skip("the model has one input"));
        }
        model.json_sample()?;
        // The last in binary, then the first: data go by the order of the inputs that have theirs there.
        for in_binary in [sample.inputs.len() - 1, 0] {
            let mut data = Vec::new();
            let inputs = sample.inputs.iter().enumerate().map(|(index, tensor)| {
                if index != in_binary {
                    return tensor.flat();
                }
                let (head, own) = binary_input(tensor);
                data = own;
                head
            });
            let head = message::request(inputs.collect::<Vec<_>>());
            model.agrees(&model.call(&Post::binary(&head, &data))?.tensors())?;
        }
        Ok(())
    }),
    check(
        "binary.type",
        "an answer with binary data has the content type application/octet-stream",
        |model| {
            let (head, data) = all_binary_request(model.binary_sample()?);
            let answer = model.infer(&Post::binary(&head, &data))?.ok()?;
            match answer.header("content-type").eq_ignore_ascii_case(message::OCTETS) {
                true => Ok(()),
                false => Err(Problem::wrong(message::OCTETS, answer.header("content-type"))),
            }
        },
    ),
    check(
        "binary.header-length",
        "only an answer with binary data has Inference-Header-Content-Length",
        |model| {
            let (head, data) = all_binary_request(model.binary_sample()?);
            let binary = model.infer(&Post::binary(&head, &data))?.ok()?;
            if binary.header(HEADER_LENGTH).is_empty() {
                return Err(Problem::wrong(HEADER_LENGTH, binary.told()));
            }
            let sample = model.json_sample()?;
            let json = model.infer(&Post::json(&message::json_request(&sample.inputs)))?.ok()?;
            match json.header(HEADER_LENGTH) {
                "" => Ok(()),
                length => Err(Problem::wrong("no such header with JSON alone", length)),
            }
        },
    ),
    check(
        "binary.raw",
        "a body of nothing but the one input's data is answered, where the model allows it",
        |model| {
            let sample = model.binary_sample()?;
            let data = raw_request(model, sample)?;
            let reply = model.call(&Post::raw(data))?;
            expect_forms(&reply, &[true])?;
            let is_same = |output: &Tensor| {
                sample.outputs.iter().any(|expected| expected.elements.len() == output.elements.len())
            };
            match reply.tensors().iter().all(is_same) {
                true => Ok(()),
                false => Err(Problem::wrong(message::told(&sample.outputs), reply.told())),
            }
        },
    ),
    check("binary.raw.odd", "raw data that are no whole tensor are refused", |model| {
        let sample = model.binary_sample()?;
        let mut data = raw_request(model, sample)?;
        data.push(7);
        if sample.inputs[0].datatype.width <= 1 {
            return Err(Problem::skip("every number of bytes is a whole number of elements"));
        }
        is_refused(model, &Post::raw(data))
    }),
    check("binary.refuse.header.long", "a header length beyond the body is refused", |model| {
        lies(model, |post| post.header(HEADER_LENGTH, "1000000"))
    }),
    check("binary.refuse.header.short", "a header length that cuts the JSON is refused", |model| {
        lies(model, |post| post.header(HEADER_LENGTH, "10"))
    }),
    check("binary.refuse.header.odd", "a header length that is no number from 0 on is refused", |model| {
        ["-1", "x", "1.5", "99999999999999999999999999", "+5", "0x10"]
            .into_iter()
            .try_for_each(|value| lies(model, |post| post.header(HEADER_LENGTH, value)))
    }),
    check("binary.refuse.header.absent", "binary data without a header length are refused", |model| {
        lies(model, |post| post.without(HEADER_LENGTH))
    }),
    check("binary.refuse.size.long", "a size beyond the bytes that follow is refused", |model| {
        resized(model, |size| json!(size + 8))
    }),
    check("binary.refuse.size.short", "a size that is less than the shape says is refused", |model| {
        resized(model, |size| json!(size.saturating_sub(1)))
    }),
    check("binary.refuse.size.odd", "a size that is no whole number from 0 on is refused", |model| {
        [json!(-1), json!("8"), json!(1.5), json!(true), json!(u64::MAX), json!(1_u64 << 63)]
            .into_iter()
            .try_for_each(|size| resized(model, |_| size))
    }),
    check("binary.refuse.data.long", "bytes after the last input are refused", |model| {
        lies(model, |mut post| {
            post.body.extend([0; 8]);
            post
        })
    }),
    check("binary.refuse.data.short", "a body that ends within the data is refused", |model| {
        lies(model, |mut post| {
            post.body.pop();
            post
        })
    }),
    check(
        "binary.refuse.data.both",
        "an input with both `data` and `binary_data_size` is refused",
        |model| {
            let sample = model.binary_sample()?;
            model.json_sample()?;
            let (mut head, data) = binary_request(&sample.inputs);
            head["inputs"][0]["data"] = sample.inputs[0].flat()["data"].take();
            is_refused(model, &Post::binary(&head, &data))
        },
    ),
    check("binary.refuse.shape", "a shape whose size overflows to fit the data is refused", |model| {
        let sample = model.binary_sample()?;
        if sample.inputs[0].shape.len() < 2 {
            return Err(Problem::skip("the model's first input has less than two dimensions"));
        }
        let (mut head, data) = binary_request(&sample.inputs);
        let own = sample.inputs[0].raw().len();
        head["inputs"][0]["shape"] = vec![json!(1_u64 << 32); sample.inputs[0].shape.len()].into();
        head["inputs"][0]["parameters"]["binary_data_size"] = json!(0);
        is_refused(model, &Post::binary(&head, &data[own..]))
    }),
    check(
        "binary.refuse.bytes.long",
        "an element of BYTES whose length runs beyond its data is refused",
        |model| bytes(model, |data| data[..4].copy_from_slice(&u32::MAX.to_le_bytes())),
    ),
    check("binary.refuse.bytes.more", "more elements of BYTES than the shape says are refused", |model| {
        bytes(model, |data| data.extend([0; 4]))
    }),
    check(
        "binary.refuse.bool",
        "an element of BOOL that is neither 0 nor 1 is refused or taken as true",
        |model| {
            let sample = model.binary_sample()?;
            if sample.inputs[0].datatype.kind != Kind::Bool {
                return Err(Problem::skip("the model's first input is not of BOOL"));
            }
            let (head, mut data) = binary_request(&sample.inputs);
            data[0] = 2;
            let answer = model.infer(&Post::binary(&head, &data))?;
            if answer.is_ok() { message::read(answer).map(drop) } else { answer.refusal() }
        },
    ),
];

/// The request's parameter that asks for all outputs in binary.
const BINARY_OUTPUT: fn() -> Value = || json!({ "binary_data_output": true });

const fn check(id: &'static str, says: &'static str, run: fn(&Model) -> Verdict) -> Check<Model> {
    Check { id, level: Level::Extension, section: SECTION, says, run }
}

/// The sample, where its outputs may be answered in JSON.
fn json_outputs(model: &Model) -> Result<&Sample, Problem> {
    let sample = model.binary_sample()?;
    model.json_sample()?;
    Ok(sample)
}

fn each_output(sample: &Sample, parameters: impl Fn(usize) -> Value) -> Vec<(String, Value)> {
    let outputs = sample.outputs.iter().enumerate();
    outputs.map(|(index, output)| (output.name.clone(), parameters(index))).collect()
}

fn all_binary_request(sample: &Sample) -> (Value, Vec<u8>) {
    let (head, data) = binary_request(&sample.inputs);
    (with(head, "parameters", BINARY_OUTPUT()), data)
}

fn all_binary(model: &Model) -> Result<Reply, Problem> {
    let (head, data) = all_binary_request(model.binary_sample()?);
    model.call(&Post::binary(&head, &data))
}

/// Posts a binary request; its outputs must have these forms.
fn call(model: &Model, head: &Value, data: &[u8], is_binary: &[bool]) -> Result<Reply, Problem> {
    let reply = model.call(&Post::binary(head, data))?;
    expect_forms(&reply, is_binary)?;
    Ok(reply)
}

/// Whether each output came in binary, the last form holding for all that follow.
fn expect_forms(reply: &Reply, is_binary: &[bool]) -> Verdict {
    let expected = is_binary.iter().chain(std::iter::repeat(is_binary.last().unwrap_or(&false)));
    let form = |is_binary: bool| if is_binary { "binary" } else { "JSON" };
    match reply.outputs.iter().zip(expected).find(|(output, expected)| output.is_binary != **expected) {
        None => Ok(()),
        Some((output, expected)) => Err(Problem::wrong(
            format!("`{}` in {}", output.tensor.name, form(*expected)),
            format!("it in {}", form(output.is_binary)),
        )),
    }
}

/// The sample's request in binary, made to lie, must be refused.
fn lies(model: &Model, change: impl FnOnce(Post) -> Post) -> Verdict {
    let (head, data) = binary_request(&model.binary_sample()?.inputs);
    is_refused(model, &change(Post::binary(&head, &data)))
}

/// As [`lies`], about the size of the first input.
fn resized(model: &Model, size: impl FnOnce(usize) -> Value) -> Verdict {
    let sample = model.binary_sample()?;
    let (mut head, data) = binary_request(&sample.inputs);
    head["inputs"][0]["parameters"]["binary_data_size"] = size(sample.inputs[0].raw().len());
    is_refused(model, &Post::binary(&head, &data))
}

/// As [`lies`], about the data of a first input of BYTES; its size is that of the data.
fn bytes(model: &Model, change: impl FnOnce(&mut Vec<u8>)) -> Verdict {
    let sample = model.binary_sample()?;
    let first = &sample.inputs[0];
    if first.datatype.kind != Kind::Bytes || first.elements.is_empty() {
        return Err(Problem::skip("the model's first input is not of BYTES"));
    }
    let (mut head, data) = binary_request(&sample.inputs);
    let (mut own, rest) = (first.raw(), data[first.raw().len()..].to_vec());
    change(&mut own);
    head["inputs"][0]["parameters"]["binary_data_size"] = json!(own.len());
    is_refused(model, &Post::binary(&head, &[own, rest].concat()))
}

/// The data of a raw request, where the model allows one: a single input, of which at most one dimension is free.
fn raw_request(model: &Model, sample: &Sample) -> Result<Vec<u8>, Problem> {
    let ports = model.ports("inputs");
    let [port] = ports.as_slice() else {
        return Err(Problem::skip("the model has not exactly one input"));
    };
    if port.shape.iter().filter(|dim| **dim < 0).count() > 1 {
        return Err(Problem::skip("more than one dimension of the input is free"));
    }
    if port.datatype != "BYTES" {
        return Ok(sample.inputs[0].raw());
    }
    if port.shape.len() != 1 {
        return Err(Problem::skip("an input of BYTES must have one dimension"));
    }
    // An element of BYTES is the body itself, without its length.
    match sample.inputs[0].elements.as_slice() {
        [super::tensor::Element::Bytes(element)] if !element.is_empty() => Ok(element.clone()),
        _ => Ok(b"tenon".to_vec()),
    }
}

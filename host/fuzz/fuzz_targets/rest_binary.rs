//! Requests with binary tensors. The first byte chooses a description, the second one how the length of the JSON is
//! said: not at all, by the next two bytes, or by the first byte 0x1e in the rest, which goes.

#![no_main]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use rest::instance::typed::{Description, Reply};
use rest::serve::oip::message::{self, Encoded, InferRequest, Wanted};
use rest::tensor::Tensor;
use rest::{Asked, description, heads};
use serde_json::{Value, json};

fuzz_target!(|data: &[u8]| {
    let [choice, way, data @ ..] = data else { return };
    let description = description(*choice);
    let (body, header_length) = match (way % 4, data) {
        (0, _) => (data.to_vec(), None),
        (1, [low, high, body @ ..]) => (body.to_vec(), Some(usize::from(u16::from_le_bytes([*low, *high])))),
        _ => {
            let length = data.iter().position(|byte| *byte == 0x1e).unwrap_or(data.len());
            let tail = data.get(length + 1..).unwrap_or_default();
            ([&data[..length], tail].concat(), Some(length))
        }
    };
    let body = Bytes::from(body);
    let mut asked = Asked::default();
    let read = message::decode(body.clone(), header_length, &description, &mut |more| asked.more(more));
    asked.check(body.len());
    let Ok(InferRequest { id, call, wanted, holds_body }) = read else { return };
    // Nothing but the body itself and what was asked for is held.
    let held = |tensor: &Tensor| body.as_ptr_range().contains(&tensor.data().as_ptr());
    assert_eq!(holds_body, call.inputs.iter().any(|(_, tensor)| held(tensor)));
    let reply = Reply { outputs: call.inputs.clone(), parameters: call.parameters };
    answer(id.as_deref(), &reply, &wanted, usize::from(*choice) << 2);
    again(&call.inputs, &description);
});

/// An answer in the form that was asked for keeps to its limit and says what is in it.
fn answer(id: Option<&str>, reply: &Reply, wanted: &Wanted, limit: usize) {
    let whole = message::encode("m", "1", id, reply, wanted, usize::MAX >> 1).expect("it is not too long");
    match message::encode("m", "1", id, reply, wanted, limit) {
        Ok(short) => assert!(short == whole && short.length() <= limit),
        Err(_) => assert!(whole.length() > limit),
    }
    split(&whole);
}

/// The JSON of an answer and the bytes behind it, which are as many as it says.
fn split(encoded: &Encoded) -> (Value, Vec<u8>) {
    let mut body = encoded.body.concat();
    let tail = body.split_off(encoded.header_length.unwrap_or(body.len()));
    let value: Value = serde_json::from_slice(&body).expect("it is JSON");
    let outputs = value["outputs"].as_array().expect("there are outputs");
    let sizes = outputs.iter().filter_map(|output| output["parameters"]["binary_data_size"].as_u64());
    assert_eq!(sizes.sum::<u64>(), tail.len() as u64);
    (value, tail)
}

/// What was read goes there and back as binary tensors, and is the same.
fn again(inputs: &[(String, Tensor)], description: &Description) {
    let text = json!({ "inputs": heads(inputs), "parameters": { "binary_data_output": true } }).to_string();
    let tail: Vec<u8> = inputs.iter().flat_map(|(_, tensor)| tensor.data().iter().copied()).collect();
    let body = Bytes::from([text.as_bytes(), &tail].concat());
    let read = message::decode(body, Some(text.len()), description, &mut |_| true);
    let read = read.unwrap_or_else(|refused| panic!("{refused:?}: {text}"));
    assert_eq!(read.call.inputs, inputs);
    let reply = Reply { outputs: read.call.inputs, parameters: vec![] };
    let encoded =
        message::encode("m", "1", None, &reply, &read.wanted, usize::MAX >> 1).expect("it is not too long");
    let (value, behind) = split(&encoded);
    assert_eq!(behind, tail);
    for (output, (name, tensor)) in value["outputs"].as_array().into_iter().flatten().zip(inputs) {
        assert_eq!(output["name"], *name);
        assert_eq!(output["shape"], json!(tensor.shape()));
    }
}

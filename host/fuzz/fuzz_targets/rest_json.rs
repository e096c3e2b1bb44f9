//! JSON requests and generate requests. The first byte chooses a description, the rest is the body.

#![no_main]

use libfuzzer_sys::fuzz_target;
use rest::instance::typed::{Description, Reply};
use rest::serve::json::{self, Refused};
use rest::serve::oip::generate;
use rest::tensor::Datatype;
use rest::{Asked, description, numbers};
use serde::de::IgnoredAny;

fuzz_target!(|data: &[u8]| {
    let Some((choice, body)) = data.split_first() else { return };
    let description = description(*choice);
    agrees_on_json(body);
    request(body, &description);
    plain(body, &description);
});

/// The host and serde_json agree on what is JSON, but for how deep it may be.
fn agrees_on_json(body: &[u8]) {
    let (ours, theirs) = (rest::serve::is_json(body), serde_json::from_slice::<IgnoredAny>(body));
    match ours {
        Err(Refused::Input(reason)) if reason.contains("deeper than") => {}
        ours => assert_eq!(ours.is_ok(), theirs.is_ok(), "{ours:?} {theirs:?}"),
    }
}

/// What is read is written, and read again as the same tensors.
fn request(body: &[u8], description: &Description) {
    let mut asked = Asked::default();
    let read = json::request(body, description, &mut |more| asked.more(more));
    asked.check(body.len());
    let Ok((_, request)) = read else { return };
    assert!(rest::serve::is_json(body).is_ok());
    doubles(body, &request.inputs[0].1);
    let reply = Reply { outputs: request.inputs.clone(), parameters: request.parameters };
    let written = json::reply("f", None, &reply, usize::MAX).expect("it is not too long");
    assert_eq!(json::reply("f", None, &reply, written.len() - 1), Err(json::TooLong));
    let text = String::from_utf8(written).expect("JSON is UTF-8");
    let again = text.replacen("\"outputs\":[", "\"inputs\":[", 1);
    let again = json::request(again.as_bytes(), description, &mut |_| true);
    let (_, again) = again.unwrap_or_else(|refused| panic!("{refused:?}: {text}"));
    assert_eq!(again.inputs, request.inputs);
    assert_eq!(again.parameters, reply.parameters);
}

/// FP64 are read as serde_json reads them.
fn doubles(body: &[u8], tensor: &rest::tensor::Tensor) {
    if tensor.datatype() != Datatype::Fp64 {
        return;
    }
    let Ok(value) = serde_json::from_slice::<serde_json::Value>(body) else { return };
    let mut theirs = Vec::new();
    numbers(&value["inputs"][0]["data"], &mut theirs);
    let theirs: Vec<u8> = theirs.iter().flat_map(|value| value.to_le_bytes()).collect();
    assert_eq!(tensor.data(), theirs.as_slice());
}

fn plain(body: &[u8], description: &Description) {
    let mut asked = Asked::default();
    let read = generate::decode_generate(body, description, &mut |more| asked.more(more));
    asked.check(body.len());
    let Ok((id, request)) = read else { return };
    assert!(rest::serve::is_json(body).is_ok());
    let reply = Reply { outputs: request.inputs, parameters: request.parameters };
    let written =
        generate::encode_generate("m", "1", id.as_deref(), &reply, usize::MAX).expect("it is not too long");
    assert!(generate::encode_generate("m", "1", id.as_deref(), &reply, written.len() - 1).is_err());
    let again = generate::decode_generate(&written, description, &mut |_| true);
    let (again_id, again) = again.unwrap_or_else(|refused| panic!("{refused:?}"));
    assert_eq!(again_id, id);
    // Arrays are written without nesting, so that shapes may differ.
    for ((_, before), (_, after)) in reply.outputs.iter().zip(&again.inputs) {
        assert_eq!(before.data(), after.data());
    }
}

//! Requests with and without binary tensors, every trap that a request can set, and their answers.

use super::*;
use crate::backend::{Port, Signature};

fn port(name: &str, datatype: Datatype, shape: &[Option<usize>]) -> Port {
    Port { name: name.to_owned(), datatype, shape: Some(shape.to_vec()) }
}

/// Two inputs and two outputs.
fn description() -> Description {
    let inputs = vec![port("x", Datatype::Fp32, &[None, Some(2)]), port("s", Datatype::Bytes, &[Some(2)])];
    let outputs = vec![port("y", Datatype::Fp32, &[None, Some(2)]), port("t", Datatype::Bytes, &[None])];
    Description { signature: Signature { inputs, outputs }, ..Description::default() }
}

/// The input `x` with elements that are said somehow.
fn x(shape: &str, elements: &str) -> String {
    format!(r#"{{"name":"x","datatype":"FP32","shape":{shape},{elements}}}"#)
}

/// The input `s` with elements that are said somehow.
fn s(elements: &str) -> String {
    format!(r#"{{"name":"s","datatype":"BYTES","shape":[2],{elements}}}"#)
}

fn binary(size: impl std::fmt::Display) -> String {
    format!(r#""parameters":{{"binary_data_size":{size}}}"#)
}

const TWO: &[u8] = b"\0\0\x80\x3f\0\0\0\x40";
const STRINGS: &[u8] = b"\x01\0\0\0a\x02\0\0\0bc";

/// A body of JSON and what follows it, and the length of the JSON.
fn body(inputs: &[String], more: &str, tail: &[u8]) -> (Bytes, usize) {
    let text = format!(r#"{{"inputs":[{}]{more}}}"#, inputs.join(","));
    (Bytes::from([text.as_bytes(), tail].concat()), text.len())
}

fn read(body: Bytes, header_length: Option<usize>) -> Result<InferRequest, Refused> {
    decode(body, header_length, &description(), &mut |_| true)
}

fn check_at(body: Bytes, header_length: Option<usize>, expected: Result<&str, &str>) {
    let actual = read(body, header_length);
    let actual = actual.map(|request| format!("{request:?}")).map_err(|refused| format!("{refused:?}"));
    match (actual, expected) {
        (Ok(actual), Ok(expected)) => assert!(actual.contains(expected), "{actual}"),
        (Err(actual), Err(expected)) => assert!(actual.contains(expected), "{actual}"),
        (actual, expected) => panic!("{actual:?}, expected {expected:?}"),
    }
}

fn check(inputs: &[String], tail: &[&[u8]], expected: Result<&str, &str>) {
    let (body, length) = body(inputs, "", &tail.concat());
    check_at(body, Some(length), expected);
}

#[test]
fn tensors_come_in_json_or_behind_it() {
    let data = r#""data":[[1,2]]"#;
    let strings = r#""data":["a","bc"]"#;
    let call = r#"inputs: [("x", Tensor(FP32 [1, 2], 8 bytes)), ("s", Tensor(BYTES [2], 11 bytes))]"#;
    check(&[x("[1,2]", data), s(strings)], &[], Ok(call));
    check(&[x("[1,2]", &binary(8)), s(strings)], &[TWO], Ok(call));
    check(&[x("[1,2]", data), s(&binary(11))], &[STRINGS], Ok(call));
    check(&[x("[1,2]", &binary(8)), s(&binary(11))], &[TWO, STRINGS], Ok(call));
    check(&[s(&binary(11)), x("[1,2]", &binary(8))], &[STRINGS, TWO], Ok(call));
    let (whole, length) = body(&[x("[1,2]", &binary(8)), s(&binary(11))], "", &[TWO, STRINGS].concat());
    let request = read(whole.clone(), Some(length)).unwrap();
    assert!(request.holds_body);
    // Nothing was copied, wherever the JSON ends.
    assert_eq!(request.call.inputs[0].1.data().as_ptr(), whole[length..].as_ptr());
    assert_eq!(request.call.inputs[0].1.data(), TWO);
    assert_eq!(request.call.inputs[1].1.data(), STRINGS);
    let (json, _) = body(&[x("[1,2]", data), s(strings)], "", b"");
    let request = read(json, None).unwrap();
    assert!(!request.holds_body);
    assert_eq!(request.call.inputs[0].1.data(), TWO);
    assert_eq!(request.call.inputs[1].1.data(), STRINGS);
}

#[test]
fn sizes_that_lie_are_refused() {
    let both = |size: &str| [x("[1,2]", &binary(size)), s(&binary(11))];
    let (lie, length) = body(&both("8"), "", &[TWO, STRINGS].concat());
    for header in [lie.len() + 1, usize::MAX] {
        check_at(lie.clone(), Some(header), Err("bytes are JSON, but the body has"));
    }
    check_at(lie.clone(), Some(length - 1), Err("not JSON: expected `,` or `}`, and the body ends"));
    check_at(lie.clone(), Some(length + 1), Err("not JSON: more follows its end at line 1"));
    check_at(lie.clone(), None, Err("bytes follow the JSON; where they are binary tensors"));
    let (no_tail, length) = body(&both("8"), "", b"");
    check_at(no_tail.clone(), None, Err("input `x`: a binary tensor needs the header"));
    check_at(
        no_tail,
        Some(length),
        Err("`x`: `binary_data_size` is 8, but only 0 bytes of the body are left"),
    );
    check(&both("8"), &[TWO], Err("`s`: `binary_data_size` is 11, but only 0 bytes of the body are left"));
    check(
        &both("8"),
        &[TWO, STRINGS, b"!"],
        Err("20 bytes follow the JSON, but the `binary_data_size` of its inputs add up to 19"),
    );
    check(
        &[x("[1,2]", r#""data":[1,2]"#), s(r#""data":["a","bc"]"#)],
        &[TWO],
        Err("8 bytes follow the JSON"),
    );
    check(&both("4"), &[TWO, STRINGS], Err("`x`: FP32 [1, 2] takes 8 bytes, but 4 were given"));
    check(&both("9"), &[TWO, b"!", STRINGS], Err("takes 8 bytes, but 9 were given"));
    check(&both("18446744073709551615"), &[TWO, STRINGS], Err("but only 19 bytes"));
    for size in ["-1", "8.5", "8e-1", "\"8\"", "true", "[8]", "18446744073709551616"] {
        check(&both(size), &[TWO, STRINGS], Err("`x`: `binary_data_size` is not a whole number of bytes"));
    }
    let huge = |shape: &str, expected| check(&[x(shape, &binary(8))], &[TWO], Err(expected));
    huge("[-1,2]", "there is no `shape`, an array of numbers that are not negative");
    huge("[4294967296,4294967296]", "more elements than can be addressed");
    huge("[18446744073709551615,2]", "more elements than can be addressed");
    huge("[18446744073709551616,2]", "there is no `shape`");
    huge("[0,2]", "takes 0 bytes, but 8");
    huge("[1.5,2]", "there is no `shape`");
    huge(&format!("[{}1]", "1,".repeat(99)), "at most 16 dimensions");
    huge("[3,2]", "takes 24 bytes, but 8");
}

#[test]
fn elements_of_bytes_fill_their_tensor() {
    let strings = |tail: &[u8], expected| {
        check(&[x("[1,2]", r#""data":[1,2]"#), s(&binary(tail.len()))], &[tail], Err(expected));
    };
    strings(b"\x01\0\0\0a\x03\0\0\0bc", "`s`: BYTES element 1 of 2 does not fit");
    strings(b"\xff\xff\xff\xffa\x02\0\0\0bc", "`s`: BYTES element 0 of 2 does not fit");
    strings(b"\x01\0\0\0a\x02\0", "`s`: BYTES element 1 of 2 does not fit");
    strings(b"", "`s`: BYTES element 0 of 2 does not fit");
    strings(b"\x01\0\0\0a\x02\0\0\0bc\0\0\0\0", "4 bytes follow the last one");
}

#[test]
fn an_input_says_its_elements_once() {
    let given = |inputs: &[String], expected| check(inputs, &[TWO], Err(expected));
    given(
        &[x("[1,2]", &format!("{},{}", r#""data":[1,2]"#, binary(8)))],
        "both `data` and `binary_data_size`",
    );
    given(
        &[x("[1,2]", &format!("{},{}", binary(8), r#""data":[1,2]"#))],
        "both `data` and `binary_data_size`",
    );
    given(&[x("[1,2]", r#""parameters":{}"#)], "`x`: there is no `data`, and no `binary_data_size`");
    given(&[x("[1,2]", r#""data":null"#)], "`x`: there is no `data`");
    given(&[x("[1,2]", r#""parameters":{"binary_data_size":8,"binary_data_size":8}"#)], "duplicate field");
    given(&[x("[1,2]", r#""parameters":7"#)], "`x`: `parameters` is not an object");
    let shared = |key: &str| x("[1,2]", &format!(r#""parameters":{{"{key}":"r","binary_data_size":8}}"#));
    for key in ["shared_memory_region", "shared_memory_byte_size", "shared_memory_offset"] {
        given(&[shared(key)], "`x`: shared memory is not supported");
    }
    let twice = [x("[1,2]", &binary(8)), x("[1,2]", r#""data":[1,2]"#)];
    given(&twice, "input `x` is given twice");
    given(&[x("[1,2]", &binary(8))], "`s` is missing");
    given(&[x("[1,2]", &binary(8)).replace("FP32", "INT32")], "takes FP32, but INT32");
    given(&[x("[1,2]", &binary(8)).replace("\"x\"", "\"z\"")], "no input `z`");
    let long = format!("\"{}\"", "z".repeat(1 << 20));
    given(&[x("[1,2]", &binary(8)).replace("\"x\"", &long)], "zzz...` is longer than a name may be");
    given(
        &[x("[1,2]", &binary(8)).replace("\"FP32\"", &long)],
        "no datatype `zzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzz`;",
    );
    check(&[x("[0,2]", &binary(0))], &[], Err("has no elements: the shape [0, 2] has a zero"));
    check(&[x("[0,2]", r#""data":[]"#)], &[], Err("has no elements: the shape [0, 2] has a zero"));
    // What others understand of an input's parameters is no concern of ours.
    let unknown = r#""parameters":{"content_type":"np","other":{}},"data":[1,2]"#;
    check(&[x("[1,2]", unknown), s(r#""data":["a","bc"]"#)], &[], Ok("FP32 [1, 2]"));
}

/// A good request with more in it.
fn with(more: &str) -> Bytes {
    body(&[x("[1,2]", r#""data":[1,2]"#), s(r#""data":["a","bc"]"#)], more, b"").0
}

fn wanted(more: &str, expected: &[(&str, bool, usize)]) {
    let wanted = read(with(more), None).unwrap().wanted.outputs;
    let wanted: Vec<_> =
        wanted.iter().map(|output| (output.name.as_str(), output.is_binary, output.classes)).collect();
    assert_eq!(wanted, expected, "{more}");
}

#[test]
fn outputs_are_wanted_in_a_form() {
    wanted("", &[("y", false, 0), ("t", false, 0)]);
    let all = r#","parameters":{"binary_data_output":true}"#;
    wanted(all, &[("y", true, 0), ("t", true, 0)]);
    wanted(r#","outputs":[],"parameters":{"binary_data_output":false}"#, &[("y", false, 0), ("t", false, 0)]);
    wanted(r#","outputs":null,"parameters":null"#, &[("y", false, 0), ("t", false, 0)]);
    let own = r#","outputs":[{"name":"t"},{"parameters":{"binary_data":false},"name":"y"}]"#;
    wanted(&format!("{own}{all}"), &[("t", true, 0), ("y", false, 0)]);
    wanted(r#","outputs":[{"name":"y","parameters":{"binary_data":true}}]"#, &[("y", true, 0)]);
    wanted(r#","outputs":[{"name":"y","parameters":{"classification":3,"other":[]}}]"#, &[("y", false, 3)]);
    wanted(r#","outputs":[{"name":"y","parameters":{"classification":0}}]"#, &[("y", false, 0)]);
    let refused = |more: &str, expected| check_at(with(more), None, Err(expected));
    refused(r#","parameters":{"binary_data_output":1}"#, "`binary_data_output` is not true or false");
    refused(
        r#","outputs":[{"name":"y","parameters":{"binary_data":1}}]"#,
        "output `y`: `binary_data` is not true",
    );
    refused(r#","outputs":[{"name":"y","parameters":[]}]"#, "output `y`: `parameters` is not an object");
    refused(r#","outputs":[{"name":"y"},{"name":"y"}]"#, "output `y` is asked for twice");
    refused(r#","outputs":[{"name":"z"}]"#, "no output `z`; it has `y`, `t`");
    let long = format!(r#","outputs":[{{"name":"{}"}}]"#, "z".repeat(1 << 20));
    refused(&long, "zzz...` is longer than a name may be");
    refused(r#","outputs":[{}]"#, "an entry of `outputs` has no `name`");
    refused(r#","outputs":["y"]"#, "an entry of `outputs` is not an object");
    refused(r#","outputs":{}"#, "`outputs` is not an array");
    let of_y = |parameter: &str| format!(r#","outputs":[{{"name":"y","parameters":{{{parameter}}}}}]"#);
    refused(&of_y(r#""classification":-1"#), "output `y`: `classification` is not a number of classes");
    refused(&of_y(r#""shared_memory_region":"r""#), "output `y`: shared memory is not supported");
    refused(&of_y(r#""shared_memory_offset":1"#), "output `y`: shared memory is not supported");
    let classes = r#","outputs":[{"name":"t","parameters":{"classification":1}}]"#;
    refused(classes, "output `t` is BYTES, which has no best classes");
}

#[test]
fn parameters_go_to_the_function_but_those_of_the_form() {
    let more = r#","id":"7","parameters":{"k":1,"binary_data_output":true,"priority":2,"n":null,"b":true}"#;
    let request = read(with(more), None).unwrap();
    assert_eq!(request.id.as_deref(), Some("7"));
    let parameters =
        [("b", Parameter::Bool(true)), ("k", Parameter::Int64(1)), ("priority", Parameter::Int64(2))];
    assert_eq!(request.call.parameters, parameters.map(|(name, value)| (name.to_owned(), value)));
    assert!(request.call.outputs.is_empty());
    // What stays when the body goes takes room: the id, the names and texts.
    let more = r#","id":"seven","parameters":{"text":"1234"}"#;
    let asked = |body| {
        let mut asked = 0;
        let read = decode(body, None, &description(), &mut |more| {
            asked += more;
            true
        });
        assert!(read.is_ok());
        asked
    };
    assert_eq!(asked(with(more)) - asked(with("")), 5 + 4 + 4);
    let request = read(with(r#","outputs":[{"name":"t"}]"#), None).unwrap();
    assert_eq!(request.call.outputs, ["t"]);
    check_at(with(r#","parameters":{"k":1,"k":1}"#), None, Err("parameter `k` is given twice"));
}

#[test]
fn a_body_may_be_the_one_input() {
    let mut description = description();
    description.signature.inputs.truncate(1);
    let read = |body: &'static [u8]| decode(Bytes::from_static(body), Some(0), &description, &mut |_| true);
    let request = read(TWO).unwrap();
    assert_eq!(format!("{:?}", request.call.inputs), r#"[("x", Tensor(FP32 [1, 2], 8 bytes))]"#);
    assert!(request.holds_body && request.wanted.outputs.iter().all(|output| output.is_binary));
    let refused = |body: &'static [u8], expected: &str| {
        let Err(Refused::Input(actual)) = read(body) else { panic!("it is taken") };
        assert!(actual.contains(expected), "{actual}");
    };
    refused(b"", "has no elements");
    refused(b"123", "no multiple of 8");
    check_at(Bytes::from_static(TWO), Some(0), Err("this one has `x`, `s`"));
}

fn reply() -> Reply {
    let y = Tensor::new(Datatype::Fp32, vec![1, 2], Bytes::from_static(TWO)).unwrap();
    let t = Tensor::from_elements(vec![2], &["é", "\""]).unwrap();
    Reply {
        outputs: vec![("t".to_owned(), t), ("y".to_owned(), y)],
        parameters: vec![("k".to_owned(), Parameter::Double(0.5))],
    }
}

fn encoded(more: &str, limit: usize) -> Result<Encoded, TooLong> {
    let request = read(with(more), None).unwrap();
    encode("m", "1", request.id.as_deref(), &reply(), &request.wanted, limit)
}

#[test]
fn answers_have_the_form_that_is_wanted() {
    let check = |more: &str, json: &str, tail: &[&[u8]]| {
        let encoded = encoded(more, 4096).unwrap();
        let body = encoded.body.concat();
        assert_eq!(encoded.length(), body.len());
        let (text, behind) = body.split_at(encoded.header_length.unwrap_or(body.len()));
        assert_eq!(std::str::from_utf8(text).unwrap(), json);
        assert_eq!(behind, tail.concat());
        let is_binary = more.contains("true");
        assert_eq!(encoded.header_length.is_some(), is_binary);
        assert_eq!(
            encoded.content_type(),
            ["application/json", "application/octet-stream"][usize::from(is_binary)]
        );
    };
    let y = r#"{"data":[1.0,2.0],"datatype":"FP32","name":"y","shape":[1,2]}"#;
    let t = r#"{"data":["é","\""],"datatype":"BYTES","name":"t","shape":[2]}"#;
    let binary_y = r#"{"datatype":"FP32","name":"y","parameters":{"binary_data_size":8},"shape":[1,2]}"#;
    let binary_t = r#"{"datatype":"BYTES","name":"t","parameters":{"binary_data_size":11},"shape":[2]}"#;
    let strings = b"\x02\0\0\0\xc3\xa9\x01\0\0\0\"";
    let message = |outputs: &[&str]| {
        let outputs = outputs.join(",");
        format!(r#"{{"model_name":"m","model_version":"1","outputs":[{outputs}],"parameters":{{"k":0.5}}}}"#)
    };
    check("", &message(&[y, t]), &[]);
    check(r#","id":"7\"""#, &message(&[y, t]).replacen('{', r#"{"id":"7\"","#, 1), &[]);
    check(r#","outputs":[{"name":"t"},{"name":"y"}]"#, &message(&[t, y]), &[]);
    check(r#","outputs":[{"name":"t"}]"#, &message(&[t]), &[]);
    check(r#","parameters":{"binary_data_output":true}"#, &message(&[binary_y, binary_t]), &[TWO, strings]);
    let mixed = r#","outputs":[{"name":"t","parameters":{"binary_data":true}},{"name":"y"}]"#;
    check(mixed, &message(&[binary_t, y]), &[strings]);
    let best = r#"{"data":["2.0:1"],"datatype":"BYTES","name":"y","shape":[1,1]}"#;
    check(r#","outputs":[{"name":"y","parameters":{"classification":1}}]"#, &message(&[best]), &[]);
}

#[test]
fn answers_are_bounded_as_a_whole() {
    for more in [
        "",
        r#","parameters":{"binary_data_output":true}"#,
        r#","outputs":[{"name":"y","parameters":{"classification":2}}]"#,
    ] {
        let length = encoded(more, 4096).unwrap().length();
        assert_eq!(encoded(more, length).unwrap().length(), length);
        for limit in 0..length {
            assert_eq!(encoded(more, limit), Err(TooLong));
        }
    }
}

#[test]
fn long_tensors_are_sent_from_where_they_are() {
    let data = Bytes::from(vec![0; 1 << 20]);
    let tensor = Tensor::new(Datatype::Fp32, vec![1 << 17, 2], data.clone()).unwrap();
    let reply = Reply { outputs: vec![("y".to_owned(), tensor)], parameters: vec![] };
    let request = read(with(r#","outputs":[{"name":"y","parameters":{"binary_data":true}}]"#), None).unwrap();
    let encoded = encode("m", "1", None, &reply, &request.wanted, 2 << 20).unwrap();
    let [json, tensor] = encoded.body.as_slice() else { panic!("it is not of two parts") };
    assert_eq!(encoded.header_length, Some(json.len()));
    assert_eq!(tensor.as_ptr(), data.as_ptr());
}

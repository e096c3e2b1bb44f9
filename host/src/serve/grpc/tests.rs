//! What is read and written by hand, against the messages that the build makes from the same files.

use bytes::Bytes;
use prost::Message as _;

use super::super::body::Budget;
use super::super::json::TooLong;
use super::super::status::AnswerError;
use super::call::{Call, Names, Wanted};
use super::proto::inference as pb;
use super::proto::inference::infer_parameter::ParameterChoice;
use super::proto::inference::model_infer_request::{InferInputTensor, InferRequestedOutputTensor};
use super::reply::{self, Form};
use crate::backend::{Port, Signature};
use crate::instance::typed::{Description, Parameter, Reply, Request};
use crate::tensor::{Datatype, Tensor};

fn port(name: &str, datatype: Datatype, shape: &[Option<usize>]) -> Port {
    Port { name: name.to_owned(), datatype, shape: Some(shape.to_vec()) }
}

fn description(inputs: Vec<Port>) -> Description {
    let outputs = vec![port("y", Datatype::Fp32, &[None]), port("z", Datatype::Int64, &[None])];
    Description { signature: Signature { inputs, outputs }, ..Description::default() }
}

fn input(name: &str, datatype: &str, shape: &[i64]) -> InferInputTensor {
    InferInputTensor {
        name: name.to_owned(),
        datatype: datatype.to_owned(),
        shape: shape.to_vec(),
        ..InferInputTensor::default()
    }
}

fn typed(name: &str, datatype: &str, shape: &[i64], contents: pb::InferTensorContents) -> InferInputTensor {
    InferInputTensor { contents: Some(contents), ..input(name, datatype, shape) }
}

fn contents() -> pb::InferTensorContents {
    pb::InferTensorContents::default()
}

fn ints(int_contents: &[i32]) -> pb::InferTensorContents {
    pb::InferTensorContents { int_contents: int_contents.to_vec(), ..contents() }
}

fn request(inputs: Vec<InferInputTensor>, raw: &[&[u8]]) -> pb::ModelInferRequest {
    let raw_input_contents = raw.iter().map(|raw| Bytes::copy_from_slice(raw)).collect();
    pb::ModelInferRequest { inputs, raw_input_contents, ..pb::ModelInferRequest::default() }
}

/// What a message asks for, read with room for a megabyte.
fn read(message: Vec<u8>, description: &Description) -> Result<(Request, bool), AnswerError> {
    let message = Bytes::from(message);
    let mut share = Budget::new(1 << 20).share();
    share.grow(message.len())?;
    let call = Call::read(&message)?;
    Ok((call.request(&message, description, &mut share)?, call.is_raw()))
}

/// Checks a request to a function with an INT8 input `x` of [-1, 2] and a BYTES input `s` of [1].
fn check(message: &pb::ModelInferRequest, expected: Result<&str, &str>) {
    let description = description(vec![
        port("x", Datatype::Int8, &[None, Some(2)]),
        port("s", Datatype::Bytes, &[Some(1)]),
    ]);
    let actual = read(message.encode_to_vec(), &description);
    match (actual.map(|(request, _)| format!("{request:?}")), expected) {
        (Ok(actual), Ok(expected)) => assert!(actual.contains(expected), "{actual}"),
        (Err(error), Err(expected)) => {
            let actual = error.to_string();
            assert!(actual.contains(expected), "{actual}, expected {expected}");
        }
        (actual, expected) => panic!("{actual:?}, expected {expected:?}"),
    }
}

fn s() -> InferInputTensor {
    typed(
        "s",
        "BYTES",
        &[1],
        pb::InferTensorContents { bytes_contents: vec![Bytes::from_static(b"seven")], ..contents() },
    )
}

#[test]
fn typed_requests_are_read_strictly() {
    let x = |shape: &[i64], contents| request(vec![s(), typed("x", "INT8", shape, contents)], &[]);
    let good = Ok(r#"("x", Tensor(INT8 [2, 2], 4 bytes)), ("s", Tensor(BYTES [1], 9 bytes))"#);
    check(&x(&[2, 2], ints(&[1, -2, 127, -128])), good);
    check(&x(&[1, 2], ints(&[1, 300])), Err("input `x`: element 1, 300, is not a INT8"));
    check(&x(&[1, 2], ints(&[-129, 1])), Err("input `x`: element 0, -129, is not a INT8"));
    check(&x(&[1, 2], ints(&[1])), Err("input `x`: INT8 [1, 2] takes 2 elements, `int_contents` has 1"));
    check(&x(&[1, 2], contents()), Err("`int_contents` has 0"));
    check(&x(&[1, 3], ints(&[1, 2, 3])), Err("takes the shape [-1, 2], but [1, 3]"));
    check(&x(&[-1, 2], ints(&[1, 2])), Err("input `x`: the shape [-1, 2] has a dimension below zero"));
    check(&x(&[i64::MAX, i64::MAX], ints(&[1])), Err("input `x`: the shape"));
    check(&x(&[0, 2], contents()), Err("has a zero"));
    check(&x(&[1; 17], ints(&[1])), Err("more than 16 dimensions"));
    let wrong = pb::InferTensorContents { fp32_contents: vec![1.0], ..ints(&[1, 2]) };
    check(&x(&[1, 2], wrong), Err("input `x`: INT8 elements go in `int_contents`, but `fp32_contents` has"));
    let wrong = pb::InferTensorContents { bytes_contents: vec![Bytes::new()], ..ints(&[1, 2]) };
    check(&x(&[1, 2], wrong), Err("but `bytes_contents` has some"));
    let twice = typed("x", "INT8", &[1, 2], ints(&[1, 2]));
    check(&request(vec![s(), twice.clone(), twice], &[]), Err("input `x` is given twice"));
    check(&request(vec![s()], &[]), Err("input `x` is missing"));
    check(&request(vec![s(), input("x", "INT8", &[1, 2])], &[]), Err("input `x`: neither"));
    check(&request(vec![s(), typed("w", "INT8", &[1], ints(&[1]))], &[]), Err("has no input `w`"));
    check(&request(vec![s(), typed("x", "int8", &[1], ints(&[1]))], &[]), Err("no datatype `int8`"));
    check(&request(vec![s(), typed("x", "FP16", &[1], contents())], &[]), Err("send all inputs in `raw"));
    check(&request(vec![s(), typed("x", "INT16", &[1, 2], ints(&[1, 2]))], &[]), Err("takes INT8"));
}

#[test]
fn raw_requests_are_read_strictly() {
    let x = |shape: &[i64]| vec![input("x", "INT8", shape), input("s", "BYTES", &[1])];
    let seven = b"\x05\0\0\0seven".as_slice();
    let good = Ok(r#"("x", Tensor(INT8 [1, 2], 2 bytes)), ("s", Tensor(BYTES [1], 9 bytes))"#);
    check(&request(x(&[1, 2]), &[&[1, 255], seven]), good);
    check(&request(x(&[1, 2]), &[&[1, 2, 3], seven]), Err("input `x`: INT8 [1, 2] takes 2 bytes, but 3"));
    check(&request(x(&[1, 2]), &[&[], seven]), Err("input `x`: INT8 [1, 2] takes 2 bytes, but 0"));
    check(&request(x(&[1, 2]), &[&[1, 2]]), Err("`raw_input_contents` has 1 entries for 2 inputs"));
    check(&request(x(&[1, 2]), &[&[1, 2], seven, seven]), Err("3 entries for 2 inputs"));
    check(&request(x(&[1, 2]), &[&[1, 2], &seven[..8]]), Err("input `s`: BYTES element 0"));
    check(&request(x(&[1, 2]), &[&[1, 2], b"\xff\xff\xff\xff"]), Err("input `s`: BYTES element 0"));
    check(&request(x(&[-3, 2]), &[&[1, 2], seven]), Err("below zero"));
    let mixed = vec![typed("x", "INT8", &[1, 2], ints(&[1, 2])), input("s", "BYTES", &[1])];
    check(&request(mixed, &[&[1, 2], seven]), Err("input `x`: `contents` is filled, but the request has"));
    // Contents with nothing in them are none.
    let empty = vec![typed("x", "INT8", &[1, 2], contents()), input("s", "BYTES", &[1])];
    check(&request(empty, &[&[1, 2], seven]), good);
}

#[test]
fn what_the_host_does_not_offer_is_refused_by_name() {
    let good =
        || request(vec![input("x", "INT8", &[1, 2]), input("s", "BYTES", &[1])], &[&[1, 2], b"\0\0\0\0"]);
    let one = || pb::InferParameter { parameter_choice: Some(ParameterChoice::Int64Param(1)) };
    for name in ["shared_memory_region", "shared_memory_offset", "shared_memory_byte_size"] {
        let mut asked = good();
        asked.inputs[0].parameters.insert(name.to_owned(), one());
        check(&asked, Err(name));
        let mut asked = good();
        let parameters = [(name.to_owned(), one())].into();
        asked.outputs.push(InferRequestedOutputTensor { name: "y".to_owned(), parameters });
        check(&asked, Err(name));
    }
    let mut asked = good();
    let flag = || pb::InferParameter { parameter_choice: Some(ParameterChoice::BoolParam(true)) };
    let parameters = [("classification".to_owned(), flag())].into();
    asked.outputs.push(InferRequestedOutputTensor { name: "y".to_owned(), parameters });
    check(&asked, Err("`classification` is not a number"));
    let mut asked = good();
    asked.inputs[0].parameters.insert("binary_data_size".to_owned(), one());
    check(&asked, Ok("x"));
}

#[test]
fn outputs_and_parameters_are_passed_on() {
    let good =
        || request(vec![input("x", "INT8", &[1, 2]), input("s", "BYTES", &[1])], &[&[1, 2], b"\0\0\0\0"]);
    let output = |name: &str| InferRequestedOutputTensor { name: name.to_owned(), ..Default::default() };
    check(&pb::ModelInferRequest { outputs: vec![output("z"), output("y")], ..good() }, Ok(r#"["z", "y"]"#));
    let twice = pb::ModelInferRequest { outputs: vec![output("y"), output("y")], ..good() };
    check(&twice, Err("output `y` is asked for twice"));
    let unknown = pb::ModelInferRequest { outputs: vec![output("w")], ..good() };
    check(&unknown, Err("the function has no output `w`; it has `y`, `z`"));
    for (choice, expected) in [
        (ParameterChoice::BoolParam(true), r#"[("k", Bool(true))]"#),
        (ParameterChoice::Int64Param(-3), r#"[("k", Int64(-3))]"#),
        (ParameterChoice::StringParam("é".to_owned()), r#"[("k", Text("é"))]"#),
        (ParameterChoice::DoubleParam(0.5), r#"[("k", Double(0.5))]"#),
        (ParameterChoice::Uint64Param(u64::MAX), r#"[("k", Uint64(18446744073709551615))]"#),
    ] {
        let value = pb::InferParameter { parameter_choice: Some(choice) };
        check(
            &pb::ModelInferRequest { parameters: [("k".to_owned(), value)].into(), ..good() },
            Ok(expected),
        );
    }
    let none = [("k".to_owned(), pb::InferParameter::default())].into();
    check(&pb::ModelInferRequest { parameters: none, ..good() }, Err("parameter `k` has no value"));
    let flag = pb::InferParameter { parameter_choice: Some(ParameterChoice::BoolParam(true)) };
    let parameters = [("triton_enable_empty_final_response".to_owned(), flag)].into();
    check(&pb::ModelInferRequest { parameters, ..good() }, Ok("parameters: []"));
}

#[test]
fn entries_are_bounded() {
    let wrong = |message: pb::ModelInferRequest| {
        Call::read(&message.encode_to_vec()).map(|_| ()).map_err(|error| error.to_string())
    };
    let many = |count| request(vec![InferInputTensor::default(); count], &[]);
    assert_eq!(wrong(many(256)), Ok(()));
    assert!(wrong(many(257)).unwrap_err().contains("more than 256 inputs"));
    let raw = vec![Bytes::new(); 257];
    let message = pb::ModelInferRequest { raw_input_contents: raw, ..Default::default() };
    assert!(wrong(message).unwrap_err().contains("more than 256 raw_input_contents"));
    let outputs = vec![InferRequestedOutputTensor::default(); 257];
    let message = pb::ModelInferRequest { outputs, ..Default::default() };
    assert!(wrong(message).unwrap_err().contains("more than 256 outputs"));
    let parameters = (0..257).map(|index| (index.to_string(), pb::InferParameter::default())).collect();
    let message = pb::ModelInferRequest { parameters, ..Default::default() };
    assert!(wrong(message).unwrap_err().contains("more than 256 parameters"));
}

/// Every message is read, or refused, whatever is cut off of it or changed in it.
#[test]
fn broken_messages_are_refused() {
    let whole = pb::ModelInferRequest {
        model_name: "m".to_owned(),
        id: "7".to_owned(),
        parameters: [("k".to_owned(), pb::InferParameter { parameter_choice: None })].into(),
        ..request(vec![s(), typed("x", "INT8", &[2, 2], ints(&[1, -2, 127, -128]))], &[])
    };
    let whole = whole.encode_to_vec();
    let description = description(vec![
        port("x", Datatype::Int8, &[None, Some(2)]),
        port("s", Datatype::Bytes, &[Some(1)]),
    ]);
    for end in 0..whole.len() {
        let cut = read(whole[..end].to_vec(), &description);
        assert!(matches!(cut, Err(AnswerError::InvalidInput(_))), "up to {end}");
    }
    for index in 0..whole.len() {
        for byte in [0, 1, 0x7f, 0x80, 0xff, whole[index] ^ 1, whole[index] ^ 7, whole[index].wrapping_add(8)]
        {
            let mut changed = whole.clone();
            changed[index] = byte;
            let _ = (read(changed.clone(), &description), Names::of(&changed));
        }
    }
    let mut text = whole;
    let name = text.iter().position(|byte| *byte == b'm').unwrap();
    text[name] = 0xff;
    let refused = read(text, &description).unwrap_err().to_string();
    assert!(refused.contains("`model_name` is not UTF-8"), "{refused}");
}

/// What is read of a message by hand is what the build's own reading finds in it, however the message was changed.
#[test]
fn changed_messages_are_read_as_others_read_them() {
    let parameter = pb::InferParameter { parameter_choice: Some(ParameterChoice::Int64Param(-3)) };
    let whole = pb::ModelInferRequest {
        model_name: "model".to_owned(),
        id: "7".to_owned(),
        parameters: [("k".to_owned(), parameter)].into(),
        ..request(vec![typed("x", "INT32", &[2, 2], ints(&[1, -2, 300, i32::MIN]))], &[])
    };
    let whole = whole.encode_to_vec();
    let description = description(vec![port("x", Datatype::Int32, &[None, None])]);
    let mut state = 1u64;
    let mut random = |below: usize| {
        // Marsaglia's xorshift.
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state % below as u64) as usize
    };
    let (mut same, mut refused) = (0, 0);
    for _ in 0..50_000 {
        let mut message = whole.clone();
        for _ in 0..=random(3) {
            let (index, byte) = (random(message.len()), random(256) as u8);
            match random(4) {
                0 => message[index] ^= 1 << random(8),
                1 => message[index] = byte,
                2 => drop(message.remove(index)),
                _ => message.insert(index, byte),
            }
        }
        let theirs = pb::ModelInferRequest::decode(message.as_slice());
        let message = Bytes::from(message);
        let (Ok(ours), Ok(theirs)) = (Call::read(&message), theirs) else {
            refused += 1;
            continue;
        };
        assert_eq!(
            (ours.model, ours.version, ours.id),
            (theirs.model_name.as_str(), theirs.model_version.as_str(), theirs.id.as_str())
        );
        let mut share = Budget::new(1 << 20).share();
        let Ok(read) = ours.request(&message, &description, &mut share) else { continue };
        let [input] = theirs.inputs.as_slice() else { panic!("{message:?}") };
        let elements = &input.contents.as_ref().unwrap().int_contents;
        let elements: Vec<_> = elements.iter().flat_map(|element| element.to_le_bytes()).collect();
        assert_eq!(read.inputs[0].1.data(), &elements, "{message:?}");
        assert_eq!(read.parameters.len(), theirs.parameters.len(), "{message:?}");
        same += 1;
    }
    assert!(same > 1000 && refused > 1000, "{same} were read, {refused} refused");
}

#[test]
fn names_are_found_where_the_rest_is_broken() {
    let names = |bytes: &[u8]| {
        let Names { model, version, id } = Names::of(bytes);
        format!("{model} {version} {id}")
    };
    let named = pb::ModelInferRequest {
        model_name: "m".to_owned(),
        model_version: "1".to_owned(),
        id: "7".to_owned(),
        ..request(vec![s()], &[])
    };
    let mut message = named.encode_to_vec();
    assert_eq!(names(&message), "m 1 7");
    message.truncate(message.len() - 1);
    assert_eq!(names(&message), "m 1 7");
    assert_eq!(names(&message[..4]), "m  ");
}

/// Contents of every datatype, in one run and one by one, are the tensor that they were made of.
#[test]
fn tensors_are_written_as_they_are_read() {
    let long = vec![7u8; 40_000];
    for (datatype, data) in [
        (Datatype::Bool, vec![0, 1, 1]),
        (Datatype::Uint8, vec![0, 127, 128, 255]),
        (Datatype::Uint16, vec![0, 0, 255, 255, 128, 0]),
        (Datatype::Uint32, vec![255, 255, 255, 255, 1, 0, 0, 0]),
        (Datatype::Uint64, vec![255; 16]),
        (Datatype::Int8, vec![0, 127, 128, 255]),
        (Datatype::Int16, vec![0, 128, 255, 127, 255, 255]),
        (Datatype::Int32, vec![0, 0, 0, 128, 255, 255, 255, 127]),
        (Datatype::Int64, vec![0, 0, 0, 0, 0, 0, 0, 128]),
        (Datatype::Fp32, vec![0, 0, 192, 127, 1, 0, 0, 0]),
        (Datatype::Fp32, long.clone()),
        (Datatype::Fp64, long.clone()),
        (Datatype::Uint8, long.clone()),
        (Datatype::Fp16, vec![0, 60, 0, 60]),
        (Datatype::Bf16, vec![128, 63]),
        (Datatype::Bytes, b"\x05\0\0\0seven\0\0\0\0".to_vec()),
    ] {
        let elements = datatype.size().map_or(2, |size| data.len() / size);
        let tensor = Tensor::new(datatype, vec![elements], data.into()).unwrap();
        for is_raw in [true, false] {
            let written = message(&tensor, is_raw);
            let output = &written.outputs[0];
            let asked = InferInputTensor {
                name: "x".to_owned(),
                datatype: output.datatype.clone(),
                shape: output.shape.clone(),
                contents: output.contents.clone(),
                ..InferInputTensor::default()
            };
            let is_typed = !is_raw && ![Datatype::Fp16, Datatype::Bf16].contains(&datatype);
            assert_eq!(output.contents.is_some(), is_typed, "{datatype}");
            let asked = pb::ModelInferRequest {
                raw_input_contents: written.raw_output_contents.clone(),
                ..request(vec![asked], &[])
            };
            let description = description(vec![port("x", datatype, &[None])]);
            for message in [asked.encode_to_vec(), unpacked(&asked)] {
                let (read, read_raw) = read(message, &description).unwrap();
                assert_eq!(read.inputs, [("x".to_owned(), tensor.clone())], "{datatype}");
                assert_eq!(read_raw, !is_typed, "{datatype}");
            }
        }
    }
}

/// A message as an old library writes it: each number of the contents in a field of its own.
fn unpacked(request: &pb::ModelInferRequest) -> Vec<u8> {
    let mut message = Vec::new();
    for input in &request.inputs {
        let contents = input.contents.clone().unwrap_or_default();
        let mut fields = Vec::new();
        let mut each = |number: u32, write: &dyn Fn(u32, &mut Vec<u8>)| write(number, &mut fields);
        use prost::encoding;
        contents.bool_contents.iter().for_each(|v| each(1, &|n, to| encoding::bool::encode(n, v, to)));
        contents.int_contents.iter().for_each(|v| each(2, &|n, to| encoding::int32::encode(n, v, to)));
        contents.int64_contents.iter().for_each(|v| each(3, &|n, to| encoding::int64::encode(n, v, to)));
        contents.uint_contents.iter().for_each(|v| each(4, &|n, to| encoding::uint32::encode(n, v, to)));
        contents.uint64_contents.iter().for_each(|v| each(5, &|n, to| encoding::uint64::encode(n, v, to)));
        contents.fp32_contents.iter().for_each(|v| each(6, &|n, to| encoding::float::encode(n, v, to)));
        contents.fp64_contents.iter().for_each(|v| each(7, &|n, to| encoding::double::encode(n, v, to)));
        contents.bytes_contents.iter().for_each(|v| each(8, &|n, to| encoding::bytes::encode(n, v, to)));
        let head = InferInputTensor { contents: None, ..input.clone() };
        let mut inner = head.encode_to_vec();
        if input.contents.is_some() {
            encoding::bytes::encode(5, &fields, &mut inner);
        }
        encoding::bytes::encode(5, &inner, &mut message);
    }
    for raw in &request.raw_input_contents {
        prost::encoding::bytes::encode(7, raw, &mut message);
    }
    message
}

fn form(is_raw: bool, is_last: Option<bool>) -> Form<'static> {
    Form { model: "m", version: "1", id: "7", wanted: &[], is_raw, is_last }
}

/// An answer's message without what stands before it.
fn joined(parts: Vec<Bytes>) -> Vec<u8> {
    let bytes = parts.concat();
    let (head, message) = bytes.split_at(5);
    assert_eq!(head, [&[0], u32::try_from(message.len()).unwrap().to_be_bytes().as_slice()].concat());
    message.to_vec()
}

fn message(tensor: &Tensor, is_raw: bool) -> pb::ModelInferResponse {
    let reply = Reply { outputs: vec![("x".to_owned(), tensor.clone())], ..Reply::default() };
    let parts = reply::write(&form(is_raw, None), &reply, 1 << 20).unwrap();
    let large = parts.iter().filter(|part| part.as_ptr() == tensor.data().as_ptr()).count();
    let is_apart = tensor.data().len() > 16 << 10 && (is_raw || tensor.datatype() != Datatype::Uint8);
    assert_eq!(large, usize::from(is_apart), "what is large is not copied");
    pb::ModelInferResponse::decode(joined(parts).as_slice()).unwrap()
}

#[test]
fn answers_say_what_was_asked_for() {
    let fp32 =
        |value: f32| Tensor::new(Datatype::Fp32, vec![1], value.to_le_bytes().to_vec().into()).unwrap();
    let fp16 = Tensor::new(Datatype::Fp16, vec![1], vec![0, 60].into()).unwrap();
    let scalar = Tensor::new(Datatype::Fp32, vec![], vec![0; 4].into()).unwrap();
    let reply = Reply {
        outputs: vec![("y".to_owned(), fp32(0.5)), ("z".to_owned(), scalar), ("h".to_owned(), fp16)],
        parameters: vec![
            ("bool".to_owned(), Parameter::Bool(false)),
            ("int64".to_owned(), Parameter::Int64(-1)),
            ("uint64".to_owned(), Parameter::Uint64(u64::MAX)),
            ("double".to_owned(), Parameter::Double(0.5)),
            ("text".to_owned(), Parameter::Text("é".to_owned())),
        ],
    };
    let wanted = ["z", "y"].map(|name| Wanted { name: name.to_owned(), classes: 0 });
    let parts = reply::write(&Form { wanted: &wanted, ..form(false, None) }, &reply, 1 << 20).unwrap();
    let answer = pb::ModelInferResponse::decode(joined(parts).as_slice()).unwrap();
    assert_eq!(
        (answer.model_name.as_str(), answer.model_version.as_str(), answer.id.as_str()),
        ("m", "1", "7")
    );
    let names: Vec<_> = answer.outputs.iter().map(|output| output.name.as_str()).collect();
    assert_eq!(names, ["z", "y"]);
    assert_eq!(answer.outputs[1].contents.as_ref().unwrap().fp32_contents, [0.5]);
    assert!(answer.raw_output_contents.is_empty());
    let choice = |name: &str| answer.parameters[name].parameter_choice.clone().unwrap();
    assert_eq!(choice("bool"), ParameterChoice::BoolParam(false));
    assert_eq!(choice("int64"), ParameterChoice::Int64Param(-1));
    assert_eq!(choice("uint64"), ParameterChoice::Uint64Param(u64::MAX));
    assert_eq!(choice("double"), ParameterChoice::DoubleParam(0.5));
    assert_eq!(choice("text"), ParameterChoice::StringParam("é".to_owned()));

    // One output that has no typed contents makes all of them raw.
    let parts = reply::write(&form(false, None), &reply, 1 << 20).unwrap();
    let length = parts.iter().map(Bytes::len).sum::<usize>() - 5;
    let answer = pb::ModelInferResponse::decode(joined(parts).as_slice()).unwrap();
    assert_eq!(answer.raw_output_contents.len(), 3);
    assert!(answer.outputs.iter().all(|output| output.contents.is_none()));
    assert_eq!(reply::write(&form(false, None), &reply, length - 1), Err(TooLong));
    assert!(reply::write(&form(false, None), &reply, length).is_ok());
}

#[test]
fn classes_go_in_place_of_numbers() {
    let data: Vec<u8> = [0.25f32, 0.5, 0.125].into_iter().flat_map(f32::to_le_bytes).collect();
    let tensor = Tensor::new(Datatype::Fp32, vec![1, 3], data.into()).unwrap();
    let reply = Reply { outputs: vec![("y".to_owned(), tensor)], ..Reply::default() };
    let wanted = [Wanted { name: "y".to_owned(), classes: 2 }];
    let parts = reply::write(&Form { wanted: &wanted, ..form(false, None) }, &reply, 1 << 20).unwrap();
    let answer = pb::ModelInferResponse::decode(joined(parts).as_slice()).unwrap();
    let output = &answer.outputs[0];
    assert_eq!((output.datatype.as_str(), output.shape.as_slice()), ("BYTES", [1, 2].as_slice()));
    assert_eq!(output.contents.as_ref().unwrap().bytes_contents, ["0.5:1", "0.25:0"]);
}

#[test]
fn answers_on_a_stream_say_whether_they_are_the_last() {
    let plain = Reply { outputs: vec![], parameters: vec![("k".to_owned(), Parameter::Bool(true))] };
    for is_last in [true, false] {
        let parts = reply::write(&form(true, Some(is_last)), &plain, 1 << 20).unwrap();
        let answer = pb::ModelStreamInferResponse::decode(joined(parts).as_slice()).unwrap();
        assert_eq!(answer.error_message, "");
        let answer = answer.infer_response.unwrap();
        let choice = ParameterChoice::BoolParam(is_last);
        assert_eq!(answer.parameters["triton_final_response"].parameter_choice, Some(choice));
        assert_eq!((answer.id.as_str(), answer.parameters.len()), ("7", 2));
    }
}

/// Memory is asked for before it is taken, and never for more than the message has elements.
#[test]
fn room_is_asked_for() {
    let many = pb::InferTensorContents { int64_contents: vec![0; 100_000], ..contents() };
    let description = description(vec![port("x", Datatype::Int64, &[None])]);
    let asked = |shape: i64, room: usize| {
        let asked = request(vec![typed("x", "INT64", &[shape], many.clone())], &[]);
        let message = Bytes::from(asked.encode_to_vec());
        let mut share = Budget::new(room).share();
        share.grow(message.len()).unwrap();
        let call = Call::read(&message).unwrap();
        call.request(&message, &description, &mut share).map(|_| ()).map_err(|error| error.to_string())
    };
    assert_eq!(asked(100_000, 1 << 20), Ok(()));
    assert!(asked(100_000, 1 << 19).unwrap_err().contains("no room"));
    assert!(asked(1 << 40, 1 << 19).unwrap_err().contains("takes 1099511627776 elements"));
}

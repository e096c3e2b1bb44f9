//! JSON tensors in the form of the Open Inference Protocol, to and from typed calls.

use serde_json::json;

use crate::backend::{Port, validate};
use crate::instance::typed::{Description, Request};
use crate::tensor::{Datatype, Tensor, elements};

pub(in crate::serve) mod data;
mod number;
pub(in crate::serve) mod reader;
pub(in crate::serve) mod reply;
pub(in crate::serve) mod scan;
pub(in crate::serve) mod text;

pub use data::Room;
pub use reply::{TooLong, reply};

use reader::{Content, Message};
use scan::Scan;

/// Why a request's body is not a call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refused {
    /// Says which input is wrong, and how.
    Input(String),
    /// There was no room for its tensors.
    NoRoom,
}

impl Refused {
    /// Says of which input it is.
    pub(in crate::serve) fn of_input(self, name: &str) -> Refused {
        match self {
            Refused::Input(what) => Refused::Input(format!("input `{name}`: {what}")),
            Refused::NoRoom => Refused::NoRoom,
        }
    }
}

/// A request's body as a typed call.
///
/// What is held beside the body are the tensors, which take at most four times its length; `room` is asked for their
/// bytes before memory is taken for them.
///
/// # Errors
/// Says which input is wrong, and how, or that there is no room.
pub fn request(
    body: &[u8],
    description: &Description,
    room: &mut Room<'_>,
) -> Result<(Option<String>, Request), Refused> {
    let Message { id, inputs, parameters, outputs } = message(body, room)?;
    let inputs = inputs.into_iter().map(|input| match input.content {
        Content::Here(tensor) => Ok((input.name, tensor)),
        Content::Binary(_) => {
            Err(wrong("binary tensors are taken below `/v2` alone; send `data` here").of_input(&input.name))
        }
    });
    let inputs = inputs.collect::<Result<Vec<_>, _>>()?;
    let inputs = in_order(inputs, description).map_err(Refused::Input)?;
    let outputs = outputs.into_iter().map(|output| {
        known_output(&output.name, description)?;
        Ok(output.name)
    });
    let outputs = outputs.collect::<Result<Vec<_>, Refused>>()?;
    Ok((id, Request { inputs, parameters, outputs, ..Request::default() }))
}

/// A request's JSON, in which JSON tensors are read already.
pub(in crate::serve) fn message(text: &[u8], room: &mut Room<'_>) -> Result<Message, Refused> {
    checked(text, reader::message(text, room))
}

/// What is not JSON at all is told first, wherever in it a reader stopped.
pub(in crate::serve) fn checked<T>(text: &[u8], read: Result<T, Refused>) -> Result<T, Refused> {
    read.map_err(|refused| match refused {
        Refused::Input(_) => Scan::check(text).err().unwrap_or(refused),
        Refused::NoRoom => refused,
    })
}

/// A request of zeros that the function takes; nothing where its inputs have no rank or would be long.
pub fn example(description: &Description) -> Option<String> {
    const LONGEST: usize = 64;
    let input = |port: &Port| {
        let shape: Vec<usize> = port.shape.as_ref()?.iter().map(|dim| dim.unwrap_or(1)).collect();
        let elements = elements(&shape).ok().filter(|elements| *elements <= LONGEST)?;
        let zero = match port.datatype {
            Datatype::Bool => json!(false),
            Datatype::Bytes => json!(""),
            _ => json!(0),
        };
        let data = vec![zero; elements];
        Some(json!({ "name": port.name, "datatype": port.datatype.name(), "shape": shape, "data": data }))
    };
    let inputs = description.signature.inputs.iter().map(input).collect::<Option<Vec<_>>>()?;
    Some(json!({ "inputs": inputs }).to_string())
}

/// The inputs in the description's order, each checked against it.
///
/// # Errors
/// Names the first input that does not fit, and what would.
pub fn in_order(
    given: Vec<(String, Tensor)>,
    description: &Description,
) -> Result<Vec<(String, Tensor)>, String> {
    let signature = &description.signature;
    let ordered = validate::inputs(signature, given, usize::MAX).map_err(|error| error.to_string())?;
    Ok(signature.inputs.iter().map(|port| port.name.clone()).zip(ordered).collect())
}

/// Whether the function has an output of this name.
pub(in crate::serve) fn known_output<'a>(
    name: &str,
    description: &'a Description,
) -> Result<&'a Port, Refused> {
    let outputs = &description.signature.outputs;
    outputs.iter().find(|port| port.name == name).ok_or_else(|| {
        let names: Vec<_> = outputs.iter().map(|port| format!("`{}`", port.name)).collect();
        wrong(&format!("the function has no output `{name}`; it has {}", names.join(", ")))
    })
}

fn wrong(what: &str) -> Refused {
    Refused::Input(what.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::Signature;
    use crate::instance::typed::{Parameter, Reply};

    fn description() -> Description {
        let port = |name: &str, datatype, shape: &[Option<usize>]| Port {
            name: name.to_owned(),
            datatype,
            shape: Some(shape.to_vec()),
        };
        let inputs =
            vec![port("x", Datatype::Int8, &[None, Some(2)]), port("s", Datatype::Bytes, &[Some(1)])];
        let outputs = vec![port("y", Datatype::Fp32, &[None])];
        Description { signature: Signature { inputs, outputs }, ..Description::default() }
    }

    fn check(body: &str, expected: Result<&str, &str>) {
        let actual = request(body.as_bytes(), &description(), &mut |_| true);
        let actual =
            actual.map(|(_, request)| format!("{request:?}")).map_err(|refused| format!("{refused:?}"));
        match (actual, expected) {
            (Ok(actual), Ok(expected)) => assert!(actual.contains(expected), "{actual}"),
            (Err(actual), Err(expected)) => assert!(actual.contains(expected), "{actual}"),
            (actual, expected) => panic!("{body}: {actual:?}, expected {expected:?}"),
        }
    }

    #[test]
    fn requests_are_read_strictly() {
        let with = |x: &str| {
            format!(
                r#"{{"id":"7","inputs":[{{"name":"s","datatype":"BYTES","shape":[1],"data":["é"]}},{x}],
                   "parameters":{{"k":3}}}}"#
            )
        };
        let x = |shape: &str, data: &str| {
            with(&format!(r#"{{"name":"x","datatype":"INT8","shape":{shape},"data":{data}}}"#))
        };
        check(
            &x("[2,2]", "[1,2,3,-128]"),
            Ok(r#"("x", Tensor(INT8 [2, 2], 4 bytes)), ("s", Tensor(BYTES [1]"#),
        );
        check(&x("[2,2]", "[[1,2],[3,4]]"), Ok("Int64(3)"));
        check(&x("[2,2]", "[1,2,3]"), Err("takes 4 elements, `data` has 3"));
        check(&x("[1,2]", "[1,128]"), Err("element 1, `128`, is not INT8"));
        check(&x("[1,2]", "[1,1.5]"), Err("element 1, `1.5`, is not INT8"));
        check(&x("[1,2]", "[1,null]"), Err("is not INT8"));
        check(&x("[1,3]", "[1,2,3]"), Err("takes the shape [-1, 2]"));
        check(&x("[-1,2]", "[1,2]"), Err("no `shape`"));
        check(&x("[18446744073709551615,2]", "[1,2]"), Err("more elements"));
        check(&x("[0,2]", "[]"), Err("has a zero"));
        check(
            &with(r#"{"name":"x","datatype":"int8","shape":[1,2],"data":[1,2]}"#),
            Err("no datatype `int8`"),
        );
        check(&x("[1,2]", "[1,2],\"data\":[1,2]"), Err("duplicate field `data`"));
        check(&x("[1,2]", "[1,{}]"), Err("is an object"));
        check(&x(&format!("[{}1]", "1,".repeat(99)), "[1]"), Err("at most 16 dimensions"));
        check(&x("[1,2]", "[1,2]").replace("\"7\"", "7"), Err("`id` is not a string"));
        check(&x("[1,2]", "[1,2]").replace("{\"k\":3}", "3"), Err("`parameters` is not an object"));
        check(&x("[1,2]", "[1,2]").replace("\"k\":3", "\"k\":[]"), Err("parameter `k` is not"));
        check(&x("[1,2]", "[1,2]").replace("\"é\"", "7"), Err("input `s`: an element is not a string"));
        check(&with("7"), Err("an entry of `inputs` is not an object"));
        check(&with("{}"), Err("an entry of `inputs` has no `name`"));
        check(&with(r#"{"name":"x","datatype":"INT8","shape":[1,2]}"#), Err("there is no `data`"));
        check("[]", Err("not a JSON object"));
        check("7", Err("not a JSON object"));
        check("{}", Err("no array `inputs`"));
        check(r#"{"inputs":{}}"#, Err("no array `inputs`"));
        check(r#"{"inputs":[],"inputs":[]}"#, Err("duplicate field `inputs`"));
        check("{} {}", Err("not JSON"));
        // What is not JSON is told before what does not fit.
        check(r#"{"inputs":[7,{"#, Err("not JSON"));
        check(&format!(r#"{{"inputs":{}"#, "[".repeat(100_000)), Err("deeper than 128"));
        check(&x("[1,2]", &"[".repeat(100_000)), Err("deeper than 128"));
        check("{", Err("not JSON"));
        check(r#"{"inputs":[]}"#, Err("`x` is missing"));
    }

    #[test]
    fn keys_may_come_in_any_order() {
        let s = r#"{"data":["é"],"shape":[1],"name":"s","datatype":"BYTES"}"#;
        let x = |data: &str| format!(r#"{{"shape":[1,2],"data":{data},"datatype":"INT8","name":"x"}}"#);
        let body = |data: &str| format!(r#"{{"other":[{{}}],"inputs":[{s},{}],"outputs":[]}}"#, x(data));
        let (_, call) = request(body("[[1],[-2]]").as_bytes(), &description(), &mut |_| true).unwrap();
        let data: Vec<_> = call.inputs.iter().map(|(_, tensor)| tensor.data().as_ref()).collect();
        assert_eq!(data, [b"\x01\xfe".as_slice(), b"\x02\0\0\0\xc3\xa9"]);
        check(&body("[1,400]"), Err("input `x`: element 1, `400`, is not INT8"));
        check(&body("[1,2],\"data\":[1,2]"), Err("duplicate field `data`"));
        check(&body("[1,2").replace("],\"datatype\"", ",\"datatype\""), Err("not JSON"));
    }

    #[test]
    fn entries_are_bounded() {
        let outputs = |count: usize| {
            let names = vec![r#"{"name":"y"}"#; count].join(",");
            format!(r#"{{"inputs":[],"outputs":[{names}]}}"#)
        };
        check(&outputs(256), Err("`x` is missing"));
        check(&outputs(257), Err("more than 256 outputs"));
        let input = r#"{"name":"x","datatype":"INT8","shape":[1],"data":[1]},"#;
        check(&format!(r#"{{"inputs":[{}7]}}"#, input.repeat(256)), Err("more than 256 inputs"));
        let parameters: Vec<_> = (0..257).map(|index| format!("\"{index}\":1")).collect();
        let body = format!(r#"{{"inputs":[],"parameters":{{{}}}}}"#, parameters.join(","));
        check(&body, Err("more than 256 parameters"));
    }

    /// What is asked for is what is allocated, and it is not much more than the text.
    #[test]
    fn room_is_asked_for() {
        let body = |shape: &str, datatype: &str, data: &str| {
            format!(
                r#"{{"inputs":[{{"name":"x","datatype":"{datatype}","shape":{shape},"data":[{data}]}}]}}"#
            )
        };
        let asked = |body: &str| {
            let mut asked = 0;
            let _ = request(body.as_bytes(), &description(), &mut |more| {
                asked += more;
                true
            });
            asked
        };
        assert_eq!(asked(&body("[2]", "FP64", "1,2")), 16);
        assert_eq!(asked(&body("[1000000000]", "FP64", "1,2")), 0, "so many cannot be in so short a text");
        assert_eq!(asked(&body("[3]", "BYTES", r#""a","b","""#)), 24);
        let long = "x".repeat(1 << 20);
        assert_eq!(asked(&body("[1]", "BYTES", &format!("\"{long}\""))), 4 + (1 << 20));
        let many = "0,".repeat(50_000);
        let many = body("[50001]", "FP64", &format!("{many}0"));
        assert!(asked(&many) <= 4 * many.len(), "{}", asked(&many));
        for body in [&many, &body("[1]", "BYTES", &format!("\"{long}\""))] {
            let refused = request(body.as_bytes(), &description(), &mut |more| more < 4096);
            assert_eq!(refused.err(), Some(Refused::NoRoom));
        }
    }

    #[test]
    fn every_number_is_read_as_it_is_written() {
        let read = |datatype: Datatype, data: &str| {
            let mut description = description();
            let port = Port { name: "x".to_owned(), datatype, shape: Some(vec![None]) };
            description.signature.inputs = vec![port];
            let shape = data.split(',').count();
            let body = format!(
                r#"{{"inputs":[{{"name":"x","datatype":"{datatype}","shape":[{shape}],"data":[{data}]}}]}}"#
            );
            let call = request(body.as_bytes(), &description, &mut |_| true);
            call.map(|(_, request)| request.inputs[0].1.clone())
        };
        let kept = [
            (Datatype::Bool, "true,false"),
            (Datatype::Uint8, "0,255"),
            (Datatype::Uint64, "0,18446744073709551615"),
            (Datatype::Int64, "-9223372036854775808,9223372036854775807"),
            (Datatype::Fp16, "0.5,-65504.0"),
            (Datatype::Bf16, "-2.5,1.0"),
            (Datatype::Fp32, "0.1,-0.25,16777216.0,1.1754944e-38,-0.0"),
            (Datatype::Fp64, "51.2481783755054,5e-324,1.7976931348623157e+308"),
            (Datatype::Bytes, r#""seven","","ß\"\n""#),
        ];
        for (datatype, data) in kept {
            let outputs = vec![("x".to_owned(), read(datatype, data).unwrap())];
            let body = reply("f", None, &Reply { outputs, ..Reply::default() }, 4096).unwrap();
            let body = String::from_utf8(body).unwrap();
            assert!(body.contains(&format!(r#"{{"data":[{data}],"datatype":"{datatype}""#)), "{body}");
        }
        // Some clients write every number with a fraction.
        let whole = read(Datatype::Int64, "1.0,-2.5e3,0e9").unwrap();
        assert_eq!(whole.data()[..], [1_i64, -2500, 0].map(i64::to_le_bytes).concat());
        for (datatype, data) in [
            (Datatype::Bool, "1"),
            (Datatype::Uint8, "-1"),
            (Datatype::Uint64, "18446744073709551616"),
            (Datatype::Int64, "9223372036854775808"),
            (Datatype::Int64, "1.5"),
            (Datatype::Int64, "1e19"),
            (Datatype::Uint8, "-1.0"),
            (Datatype::Uint8, "25.6e1"),
            (Datatype::Fp32, "\"1\""),
            (Datatype::Fp32, "true"),
            (Datatype::Fp64, "null"),
            (Datatype::Bytes, "null"),
        ] {
            assert!(matches!(read(datatype, data), Err(Refused::Input(_))), "{datatype} {data}");
        }
    }

    #[test]
    fn replies_say_what_json_can() {
        let fp =
            |value: f32| Tensor::new(Datatype::Fp32, vec![1], value.to_le_bytes().to_vec().into()).unwrap();
        let answer = Reply {
            outputs: vec![("y".to_owned(), fp(0.1)), ("n".to_owned(), fp(f32::NAN))],
            parameters: vec![("k".to_owned(), Parameter::Bool(true))],
        };
        let expected = r#"{"id":"7","model_name":"app/f","outputs":[{"data":[0.1],"datatype":"FP32","name":"y","shape":[1]},{"data":[null],"datatype":"FP32","name":"n","shape":[1]}],"parameters":{"k":true}}"#;
        let body = reply("app/f", Some("7"), &answer, expected.len()).unwrap();
        assert_eq!(String::from_utf8(body).unwrap(), expected);
        assert_eq!(reply("app/f", Some("7"), &answer, expected.len() - 1), Err(TooLong));
        let plain = Reply::default();
        let body = String::from_utf8(reply("app/f", None, &plain, 64).unwrap()).unwrap();
        assert_eq!(body, r#"{"model_name":"app/f","outputs":[]}"#);
    }
}

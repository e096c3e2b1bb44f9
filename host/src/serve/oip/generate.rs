//! The generate extension: inputs and outputs as the keys of a plain JSON object, as models of text are called.

use std::collections::BTreeMap;

use crate::backend::Port;
use crate::backend::validate::shape_text;
use crate::instance::typed::{Description, Parameter, Reply, Request};
use crate::serve::json::reader::{self, ENTRIES};
use crate::serve::json::reply::Json;
use crate::serve::json::scan::{Scan, Value};
use crate::serve::json::text::Text;
use crate::serve::json::{self, Refused, Room, TooLong, data};
use crate::tensor::Tensor;

/// Reads a request: its id and the call.
///
/// A key that is an input's name holds the elements of that input, one or an array of them; `id` and `parameters` are
/// what they are elsewhere; any other key is a parameter. The tensors take at most four times the body's length; `room`
/// is asked for their bytes before memory is taken.
///
/// # Errors
/// Says which key is wrong, and how, or that there is no room.
pub fn decode_generate(
    body: &[u8],
    description: &Description,
    room: &mut Room<'_>,
) -> Result<(Option<String>, Request), Refused> {
    let Read { id, inputs, parameters } = json::checked(body, read(body, description, room))?;
    let given = inputs.into_iter().zip(&description.signature.inputs);
    let given = given.filter_map(|(tensor, port)| Some((port.name.clone(), tensor?)));
    let inputs = json::in_order(given.collect(), description).map_err(Refused::Input)?;
    let parameters = parameters.into_iter().collect();
    Ok((id, Request { inputs, parameters, ..Request::default() }))
}

struct Read {
    id: Option<String>,
    /// In the order of the description.
    inputs: Vec<Option<Tensor>>,
    parameters: BTreeMap<String, Parameter>,
}

fn read(body: &[u8], description: &Description, room: &mut Room<'_>) -> Result<Read, Refused> {
    let ports = &description.signature.inputs;
    let mut scan = Scan::new(body);
    let Value::Object = scan.value()? else {
        return Err(wrong("the body is not a JSON object with the function's inputs"));
    };
    let mut read = Read { id: None, inputs: vec![None; ports.len()], parameters: BTreeMap::new() };
    let (mut first, mut has_id, mut has_parameters) = (true, false, false);
    while let Some(key) = scan.key(&mut first)? {
        if let Some(index) = ports.iter().position(|port| key.is(&port.name)) {
            let port = &ports[index];
            if read.inputs[index].is_some() {
                return Err(wrong(&format!("input `{}` is given twice", port.name)));
            }
            let tensor = tensor(&mut scan, port, room);
            read.inputs[index] = Some(tensor.map_err(|refused| refused.of_input(&port.name))?);
        } else if key.is("id") {
            once(&mut has_id, "id")?;
            let value = scan.value()?;
            reader::kept(&value, room)?;
            read.id = match value {
                Value::Text(text) => Some(text.read()?),
                Value::Null => None,
                _ => return Err(wrong("`id` is not a string")),
            };
        } else if key.is("parameters") {
            once(&mut has_parameters, "parameters")?;
            match scan.value()? {
                Value::Object => {
                    for (name, value) in reader::parameters(&mut scan, room)? {
                        read.parameter(name, value)?;
                    }
                }
                Value::Null => {}
                _ => return Err(wrong("`parameters` is not an object")),
            }
        } else {
            let value = scan.value()?;
            other(key, &value, ports, &mut read, room)?;
        }
    }
    scan.end()?;
    Ok(read)
}

fn once(has: &mut bool, key: &str) -> Result<(), Refused> {
    if std::mem::replace(has, true) { Err(wrong(&format!("duplicate field `{key}`"))) } else { Ok(()) }
}

/// A key that names no input.
fn other(
    key: Text<'_>,
    value: &Value<'_>,
    ports: &[Port],
    read: &mut Read,
    room: &mut Room<'_>,
) -> Result<(), Refused> {
    reader::kept(&Value::Text(key), room)?;
    let name = key.read()?;
    if matches!(value, Value::Array | Value::Object) {
        let names: Vec<_> = ports.iter().map(|port| format!("`{}`", port.name)).collect();
        return Err(wrong(&format!(
            "the function has no input `{name}`; its inputs are {}, and a parameter is a string, number or boolean",
            names.join(", ")
        )));
    }
    match reader::parameter(&name, value, room)? {
        Some(value) => read.parameter(name, value),
        None => Ok(()),
    }
}

impl Read {
    fn parameter(&mut self, name: String, value: Parameter) -> Result<(), Refused> {
        if self.parameters.len() == ENTRIES {
            return Err(wrong(&format!("there are more than {ENTRIES} parameters")));
        }
        if self.parameters.contains_key(&name) {
            return Err(wrong(&format!("parameter `{name}` is given twice")));
        }
        self.parameters.insert(name, value);
        Ok(())
    }
}

fn tensor(scan: &mut Scan<'_>, port: &Port, room: &mut Room<'_>) -> Result<Tensor, Refused> {
    let mut counted = Counted::default();
    counted.count(&mut scan.clone(), 0)?;
    data::tensor(scan, port.datatype, counted.shape(port)?, room)
}

/// How many elements a value has, and how they are nested.
#[derive(Default)]
struct Counted {
    elements: usize,
    /// The lengths of the first array of each depth.
    lengths: Vec<usize>,
}

impl Counted {
    fn count(&mut self, scan: &mut Scan<'_>, depth: usize) -> Result<(), Refused> {
        match scan.value()? {
            Value::Array => {
                let is_first = self.lengths.len() == depth;
                if is_first {
                    self.lengths.push(0);
                }
                let (mut first, mut length) = (true, 0);
                // The scan bounds the depth.
                while scan.element(&mut first)? {
                    self.count(scan, depth + 1)?;
                    length += 1;
                }
                if is_first {
                    self.lengths[depth] = length;
                }
            }
            Value::Object => return Err(wrong("an element is an object")),
            _ => self.elements += 1,
        }
        Ok(())
    }

    /// The shape that is meant. Arrays as deep as the input has dimensions say it themselves. Else the fixed dimensions
    /// are what they are, the last one that the caller chooses takes the rest, and the others are 1.
    fn shape(self, port: &Port) -> Result<Vec<usize>, Refused> {
        let nested: Option<usize> = self.lengths.iter().try_fold(1, |all: usize, dim| all.checked_mul(*dim));
        let Some(dims) = port.shape.as_ref().filter(|dims| dims.len() != self.lengths.len()) else {
            return match nested {
                Some(elements) if elements == self.elements => Ok(self.lengths),
                _ => Err(wrong("arrays at the same depth differ in length")),
            };
        };
        let fixed = dims.iter().flatten().try_fold(1, |product: usize, dim| product.checked_mul(*dim));
        let rest = match fixed {
            Some(fixed) if fixed > 0 && self.elements.is_multiple_of(fixed) => self.elements / fixed,
            _ => 0,
        };
        let open = dims.iter().rposition(Option::is_none);
        if rest == 0 || (open.is_none() && rest != 1) {
            let shape = shape_text(dims);
            return Err(wrong(&format!("the shape {shape} is not filled by {} elements", self.elements)));
        }
        let dims = dims.iter().enumerate();
        Ok(dims.map(|(index, dim)| dim.unwrap_or(if Some(index) == open { rest } else { 1 })).collect())
    }
}

/// Writes an answer, or one of several, of at most `limit` bytes: each output and parameter is a key. An output of one
/// element is that element, any other an array without nesting.
///
/// # Errors
/// Where it is longer.
pub fn encode_generate(
    model: &str,
    version: &str,
    id: Option<&str>,
    reply: &Reply,
    limit: usize,
) -> Result<Vec<u8>, TooLong> {
    let own = [("id", id), ("model_name", Some(model)), ("model_version", Some(version))];
    // A key stands for one thing: outputs go first, parameters last.
    let is_output = |key: &str| reply.outputs.iter().any(|(name, _)| name == key);
    let is_own = |key: &str| own.iter().any(|(name, _)| *name == key);
    let mut json = Json::new(reply.outputs.iter().map(|(_, tensor)| tensor.data().len()).sum(), limit);
    let mut keys = Keys { json: &mut json, first: true };
    for (key, value) in own {
        if let Some(value) = value.filter(|_| !is_output(key)) {
            keys.key(key)?.text(value)?;
        }
    }
    let parameters: BTreeMap<_, _> = reply.parameters.iter().map(|(name, value)| (name, value)).collect();
    for (name, value) in parameters {
        if !is_output(name) && !is_own(name) {
            keys.key(name)?.parameter(value)?;
        }
    }
    for (name, tensor) in &reply.outputs {
        let json = keys.key(name)?;
        if tensor.len() == 1 { json.elements(tensor)? } else { json.data(tensor)? }
    }
    json.raw(b"}")?;
    Ok(json.into_bytes())
}

/// An object that is being written.
struct Keys<'a> {
    json: &'a mut Json,
    first: bool,
}

impl Keys<'_> {
    fn key(&mut self, key: &str) -> Result<&mut Json, TooLong> {
        self.json.raw(if std::mem::take(&mut self.first) { b"{" } else { b"," })?;
        self.json.text(key)?;
        self.json.raw(b":")?;
        Ok(self.json)
    }
}

/// A JSON object, which has no line breaks, as one server-sent event.
pub fn event(json: &[u8]) -> Vec<u8> {
    [b"data: ", json, b"\n\n"].concat()
}

fn wrong(what: &str) -> Refused {
    Refused::Input(what.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::Signature;
    use crate::tensor::Datatype;

    fn description() -> Description {
        let port = |name: &str, datatype, shape: &[Option<usize>]| Port {
            name: name.to_owned(),
            datatype,
            shape: Some(shape.to_vec()),
        };
        let inputs = vec![
            port("text", Datatype::Bytes, &[Some(1), Some(1)]),
            port("x", Datatype::Fp32, &[None, Some(2), None]),
        ];
        Description { signature: Signature { inputs, outputs: vec![] }, ..Description::default() }
    }

    fn check(body: &str, expected: Result<&str, &str>) {
        let actual = decode_generate(body.as_bytes(), &description(), &mut |_| true);
        match (actual, expected) {
            (Ok(actual), Ok(expected)) => {
                let actual = format!("{actual:?}");
                assert!(actual.contains(expected), "{actual}");
            }
            (Err(actual), Err(expected)) => {
                let actual = format!("{actual:?}");
                assert!(actual.contains(expected), "{actual}");
            }
            (actual, expected) => panic!("{body}: {actual:?}, expected {expected:?}"),
        }
    }

    #[test]
    fn keys_are_inputs_and_parameters() {
        let with = |more: &str| format!(r#"{{"text":"hello","x":[1,2]{more}}}"#);
        check(
            &with(""),
            Ok(r#"("text", Tensor(BYTES [1, 1], 9 bytes)), ("x", Tensor(FP32 [1, 2, 1], 8 bytes))"#),
        );
        check(&with(r#","id":"7""#), Ok(r#"(Some("7"), Request"#));
        check(&with(r#","id":null,"parameters":null"#), Ok("(None, Request"));
        check(
            &with(r#","stream":false,"parameters":{"k":1.5,"s":"t"},"n":7,"none":null"#),
            Ok(
                r#"parameters: [("k", Double(1.5)), ("n", Int64(7)), ("s", Text("t")), ("stream", Bool(false))]"#,
            ),
        );
        check(&with(r#","id":7"#), Err("`id` is not a string"));
        check(&with(r#","id":"7","id":"7""#), Err("duplicate field `id`"));
        check(&with(r#","parameters":[]"#), Err("`parameters` is not an object"));
        check(&with(r#","parameters":{"k":[]}"#), Err("parameter `k` is not a string"));
        check(&with(r#","k":1,"parameters":{"k":1}"#), Err("parameter `k` is given twice"));
        check(&with(r#","k":1,"k":1"#), Err("parameter `k` is given twice"));
        check(&with(r#","k":[]"#), Err("no input `k`; its inputs are `text`, `x`, and"));
        check(&with(r#","text":"again""#), Err("input `text` is given twice"));
        check(r#"{"text":"hello"}"#, Err("`x` is missing"));
        check("[]", Err("not a JSON object"));
        check(r#"{"text":7,"#, Err("not JSON"));
        check(r#"{"text":7}"#, Err("input `text`: an element is not a string"));
        check(r#"{"text":["a","b"]}"#, Err("input `text`: the shape [1, 1] is not filled by 2 elements"));
        check(r#"{"text":[]}"#, Err("not filled by 0 elements"));
        check(r#"{"text":{}}"#, Err("input `text`: an element is an object"));
        let many: Vec<_> = (0..257).map(|index| format!("\"{index}\":1")).collect();
        check(&format!("{{{}}}", many.join(",")), Err("more than 256 parameters"));
    }

    #[test]
    fn shapes_follow_from_the_elements() {
        let x = |x: &str| format!(r#"{{"text":["hello"],"x":{x}}}"#);
        check(&x("[1,2,3,4]"), Ok("FP32 [1, 2, 2]"));
        check(&x("[[1,2],[3,4]]"), Ok("FP32 [1, 2, 2]"));
        check(&x("[[[1],[2]],[[3],[4]]]"), Ok("FP32 [2, 2, 1]"));
        check(&x("[[[1,2]]]"), Err("takes the shape [-1, 2, -1], but [1, 1, 2]"));
        check(&x("[[[1],[2]],[[3]]]"), Err("arrays at the same depth differ"));
        check(&x("[1,2,3]"), Err("the shape [-1, 2, -1] is not filled by 3 elements"));
        check(&x("7"), Err("not filled by 1 elements"));
        check(&x("[[[]]]"), Err("takes the shape [-1, 2, -1], but [1, 1, 0]"));
        check(&x("[1,\"2\"]"), Err("element 1, `\\\"2\\\"`, is not FP32"));
    }

    #[test]
    fn room_is_asked_for() {
        let body = format!(r#"{{"text":"","x":[0{}]}}"#, ",0".repeat(9_999));
        let mut asked = 0;
        let read = decode_generate(body.as_bytes(), &description(), &mut |more| {
            asked += more;
            true
        });
        assert!(read.is_ok());
        assert_eq!(asked, 4 + 40_000);
        let refused = decode_generate(body.as_bytes(), &description(), &mut |more| more < 100);
        assert_eq!(refused.err(), Some(Refused::NoRoom));
    }

    #[test]
    fn answers_have_a_key_for_each_output() {
        let tensor = |shape: &[usize], values: &[f32]| {
            let data: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
            Tensor::new(Datatype::Fp32, shape.to_vec(), data.into()).unwrap()
        };
        let text = Tensor::from_elements(vec![1, 1], &["a \"b\"\n"]).unwrap();
        let mut reply = Reply {
            outputs: vec![
                ("text_output".to_owned(), text),
                ("one".to_owned(), tensor(&[1], &[0.5])),
                ("two".to_owned(), tensor(&[1, 2], &[0.5, f32::NAN])),
                ("none".to_owned(), tensor(&[0], &[])),
            ],
            parameters: vec![
                ("k".to_owned(), Parameter::Int64(3)),
                ("two".to_owned(), Parameter::Bool(true)),
            ],
        };
        let expected = r#"{"id":"7","model_name":"m","model_version":"1","k":3,"text_output":"a \"b\"\n","one":0.5,"two":[0.5,null],"none":[]}"#;
        let written = encode_generate("m", "1", Some("7"), &reply, expected.len()).unwrap();
        assert_eq!(String::from_utf8(written.clone()).unwrap(), expected);
        assert_eq!(encode_generate("m", "1", Some("7"), &reply, expected.len() - 1), Err(TooLong));
        assert_eq!(event(&written), format!("data: {expected}\n\n").into_bytes());
        reply.outputs = vec![("id".to_owned(), tensor(&[1], &[0.5]))];
        reply.parameters = vec![("model_name".to_owned(), Parameter::Bool(true))];
        let written = encode_generate("m", "1", Some("7"), &reply, 4096).unwrap();
        assert_eq!(written, br#"{"model_name":"m","model_version":"1","id":0.5}"#);
        let nothing = encode_generate("m", "1", None, &Reply::default(), 4096).unwrap();
        assert_eq!(nothing, br#"{"model_name":"m","model_version":"1"}"#);
    }
}

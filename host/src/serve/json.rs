//! JSON tensors in the form of the Open Inference Protocol, to and from typed calls.

use bytes::Bytes;
use half::{bf16, f16};
use serde_json::{Map, Value, json};

use crate::backend::Port;
use crate::backend::validate::{self, shape_text};
use crate::instance::typed::{Description, Parameter, Reply, Request};
use crate::tensor::{Datatype, Tensor, elements};

/// A request's body as a typed call.
///
/// # Errors
/// Says which input is wrong, and how.
pub fn request(body: &[u8], description: &Description) -> Result<(Option<String>, Request), String> {
    let body: Value =
        serde_json::from_slice(body).map_err(|error| format!("the body is not JSON: {error}"))?;
    let Value::Object(mut body) = body else {
        return Err("the body is not a JSON object with `inputs`".to_owned());
    };
    let id = match body.remove("id") {
        None => None,
        Some(Value::String(id)) => Some(id),
        Some(_) => return Err("`id` is not a string".to_owned()),
    };
    let Some(Value::Array(inputs)) = body.remove("inputs") else {
        return Err("the body has no array `inputs`".to_owned());
    };
    let inputs = inputs.into_iter().map(input).collect::<Result<Vec<_>, _>>()?;
    let inputs = in_order(inputs, description)?;
    let parameters = match body.remove("parameters") {
        None => Vec::new(),
        Some(Value::Object(parameters)) => {
            parameters.into_iter().map(parameter).collect::<Result<Vec<_>, _>>()?
        }
        Some(_) => return Err("`parameters` is not an object".to_owned()),
    };
    let outputs = match body.remove("outputs") {
        None => Vec::new(),
        Some(Value::Array(outputs)) => outputs.iter().map(output_name).collect::<Result<Vec<_>, _>>()?,
        Some(_) => return Err("`outputs` is not an array".to_owned()),
    };
    for name in &outputs {
        if !description.signature.outputs.iter().any(|port| port.name == *name) {
            return Err(format!(
                "the function has no output `{name}`; it has {}",
                names(&description.signature.outputs)
            ));
        }
    }
    Ok((id, Request { inputs, parameters, outputs }))
}

/// A typed reply as a body.
pub fn reply(function: &str, id: Option<&str>, reply: &Reply) -> Vec<u8> {
    let outputs: Vec<Value> = reply.outputs.iter().map(|(name, tensor)| output(name, tensor)).collect();
    let mut body = Map::new();
    body.insert("model_name".to_owned(), json!(function));
    if let Some(id) = id {
        body.insert("id".to_owned(), json!(id));
    }
    if !reply.parameters.is_empty() {
        let parameters = reply.parameters.iter().map(|(name, value)| (name.clone(), parameter_value(value)));
        body.insert("parameters".to_owned(), Value::Object(parameters.collect()));
    }
    body.insert("outputs".to_owned(), Value::Array(outputs));
    serde_json::to_vec(&body).expect("a JSON value can be written")
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

fn names(ports: &[Port]) -> String {
    let names: Vec<_> = ports.iter().map(|port| format!("`{}`", port.name)).collect();
    names.join(", ")
}

fn output_name(output: &Value) -> Result<String, String> {
    let name = output.get("name").and_then(Value::as_str);
    name.map(str::to_owned).ok_or_else(|| "an entry of `outputs` has no `name`".to_owned())
}

fn parameter((name, value): (String, Value)) -> Result<(String, Parameter), String> {
    let value = match &value {
        Value::Bool(value) => Some(Parameter::Bool(*value)),
        Value::String(value) => Some(Parameter::Text(value.clone())),
        Value::Number(number) => number
            .as_i64()
            .map(Parameter::Int64)
            .or_else(|| number.as_u64().map(Parameter::Uint64))
            .or_else(|| number.as_f64().map(Parameter::Double)),
        _ => None,
    };
    match value {
        Some(value) => Ok((name, value)),
        None => Err(format!("parameter `{name}` is not a string, number or boolean")),
    }
}

fn parameter_value(value: &Parameter) -> Value {
    match value {
        Parameter::Bool(value) => json!(value),
        Parameter::Int64(value) => json!(value),
        Parameter::Uint64(value) => json!(value),
        Parameter::Double(value) => json!(value),
        Parameter::Text(value) => json!(value),
    }
}

fn input(input: Value) -> Result<(String, Tensor), String> {
    let Value::Object(mut input) = input else {
        return Err("an entry of `inputs` is not an object".to_owned());
    };
    let Some(Value::String(name)) = input.remove("name") else {
        return Err("an entry of `inputs` has no `name`".to_owned());
    };
    let wrong = |what: &str| format!("input `{name}`: {what}");
    let Some(Value::String(datatype)) = input.remove("datatype") else {
        return Err(wrong("there is no `datatype`, such as \"FP32\""));
    };
    let datatype = Datatype::from_name(&datatype).ok_or_else(|| {
        wrong(&format!("there is no datatype `{datatype}`; FP32 and INT64 are two of them"))
    })?;
    let shape = input.remove("shape").and_then(|shape| serde_json::from_value::<Vec<u64>>(shape).ok());
    let Some(shape) = shape else {
        return Err(wrong("there is no `shape`, an array of numbers that are not negative"));
    };
    let shape: Vec<usize> = shape.into_iter().map(|dim| usize::try_from(dim).unwrap_or(usize::MAX)).collect();
    let Some(data) = input.remove("data") else { return Err(wrong("there is no `data`")) };
    let tensor = tensor(datatype, shape, &data).map_err(|error| wrong(&error))?;
    Ok((name, tensor))
}

fn tensor(datatype: Datatype, shape: Vec<usize>, data: &Value) -> Result<Tensor, String> {
    let expected = elements(&shape).map_err(|error| error.to_string())?;
    let mut flat = Vec::new();
    flatten(data, &mut flat)?;
    if flat.len() != expected {
        let shape: Vec<_> = shape.iter().copied().map(Some).collect();
        return Err(format!(
            "the shape {} takes {expected} elements, `data` has {}",
            shape_text(&shape),
            flat.len()
        ));
    }
    if datatype == Datatype::Bytes {
        let texts = flat.iter().map(|value| value.as_str().ok_or("an element is not a string"));
        let texts = texts.collect::<Result<Vec<_>, _>>()?;
        return Tensor::from_elements(shape, &texts).map_err(|error| error.to_string());
    }
    let mut bytes = Vec::with_capacity(expected * datatype.size().unwrap_or(1));
    for (index, value) in flat.iter().enumerate() {
        push(datatype, value, &mut bytes)
            .ok_or_else(|| format!("element {index}, `{}`, is not a {datatype}", short(value)))?;
    }
    Tensor::new(datatype, shape, Bytes::from(bytes)).map_err(|error| error.to_string())
}

fn short(value: &Value) -> String {
    let text = value.to_string();
    text.chars().take(32).collect()
}

/// Elements in row-major order, whether the array is nested or flat.
fn flatten<'a>(data: &'a Value, flat: &mut Vec<&'a Value>) -> Result<(), String> {
    // Depth is bounded: the JSON reader refuses nesting beyond 128.
    match data {
        Value::Array(values) => values.iter().try_for_each(|value| flatten(value, flat)),
        Value::Object(_) => Err("an element of `data` is an object".to_owned()),
        value => {
            flat.push(value);
            Ok(())
        }
    }
}

/// Appends an element; `None` where the value is not of the type. Nothing is rounded into a type but floats.
fn push(datatype: Datatype, value: &Value, bytes: &mut Vec<u8>) -> Option<()> {
    let int = || value.as_i64();
    let uint = || value.as_u64();
    match datatype {
        Datatype::Bool => bytes.push(u8::from(value.as_bool()?)),
        Datatype::Uint8 => bytes.extend(u8::try_from(uint()?).ok()?.to_le_bytes()),
        Datatype::Uint16 => bytes.extend(u16::try_from(uint()?).ok()?.to_le_bytes()),
        Datatype::Uint32 => bytes.extend(u32::try_from(uint()?).ok()?.to_le_bytes()),
        Datatype::Uint64 => bytes.extend(uint()?.to_le_bytes()),
        Datatype::Int8 => bytes.extend(i8::try_from(int()?).ok()?.to_le_bytes()),
        Datatype::Int16 => bytes.extend(i16::try_from(int()?).ok()?.to_le_bytes()),
        Datatype::Int32 => bytes.extend(i32::try_from(int()?).ok()?.to_le_bytes()),
        Datatype::Int64 => bytes.extend(int()?.to_le_bytes()),
        Datatype::Fp16 => bytes.extend(f16::from_f64(value.as_f64()?).to_le_bytes()),
        Datatype::Bf16 => bytes.extend(bf16::from_f64(value.as_f64()?).to_le_bytes()),
        #[expect(clippy::cast_possible_truncation, reason = "FP32 is what the caller asked for")]
        Datatype::Fp32 => bytes.extend((value.as_f64()? as f32).to_le_bytes()),
        Datatype::Fp64 => bytes.extend(value.as_f64()?.to_le_bytes()),
        Datatype::Bytes => return None,
    }
    Some(())
}

fn output(name: &str, tensor: &Tensor) -> Value {
    json!({
        "name": name,
        "datatype": tensor.datatype().name(),
        "shape": tensor.shape(),
        "data": data(tensor),
    })
}

/// The elements as JSON. What JSON cannot say, an infinity or NaN, is null.
fn data(tensor: &Tensor) -> Value {
    fn each<const N: usize>(data: &[u8], value: impl Fn([u8; N]) -> Value) -> Value {
        let (chunks, _) = data.as_chunks::<N>();
        Value::Array(chunks.iter().map(|chunk| value(*chunk)).collect())
    }
    let bytes = tensor.data();
    match tensor.datatype() {
        Datatype::Bool => each(bytes, |[byte]: [u8; 1]| json!(byte != 0)),
        Datatype::Uint8 => each(bytes, |byte| json!(u8::from_le_bytes(byte))),
        Datatype::Uint16 => each(bytes, |chunk| json!(u16::from_le_bytes(chunk))),
        Datatype::Uint32 => each(bytes, |chunk| json!(u32::from_le_bytes(chunk))),
        Datatype::Uint64 => each(bytes, |chunk| json!(u64::from_le_bytes(chunk))),
        Datatype::Int8 => each(bytes, |byte| json!(i8::from_le_bytes(byte))),
        Datatype::Int16 => each(bytes, |chunk| json!(i16::from_le_bytes(chunk))),
        Datatype::Int32 => each(bytes, |chunk| json!(i32::from_le_bytes(chunk))),
        Datatype::Int64 => each(bytes, |chunk| json!(i64::from_le_bytes(chunk))),
        Datatype::Fp16 => each(bytes, |chunk| json!(f16::from_le_bytes(chunk).to_f32())),
        Datatype::Bf16 => each(bytes, |chunk| json!(bf16::from_le_bytes(chunk).to_f32())),
        Datatype::Fp32 => each(bytes, |chunk| json!(f32::from_le_bytes(chunk))),
        Datatype::Fp64 => each(bytes, |chunk| json!(f64::from_le_bytes(chunk))),
        Datatype::Bytes => {
            Value::Array(tensor.elements().map(|element| json!(String::from_utf8_lossy(element))).collect())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::Signature;

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
        let actual = request(body.as_bytes(), &description()).map(|(_, request)| format!("{request:?}"));
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
        check(&x("[1,2]", "[1,128]"), Err("element 1, `128`, is not a INT8"));
        check(&x("[1,2]", "[1,1.5]"), Err("element 1, `1.5`, is not a INT8"));
        check(&x("[1,2]", "[1,null]"), Err("is not a INT8"));
        check(&x("[1,3]", "[1,2,3]"), Err("takes the shape [-1, 2]"));
        check(&x("[-1,2]", "[1,2]"), Err("no `shape`"));
        check(&x("[18446744073709551615,2]", "[1,2]"), Err("more elements"));
        check(&x("[0,2]", "[]"), Err("has a zero"));
        check(
            &with(r#"{"name":"x","datatype":"int8","shape":[1,2],"data":[1,2]}"#),
            Err("no datatype `int8`"),
        );
        check("[]", Err("not a JSON object"));
        check("{", Err("not JSON"));
        check(r#"{"inputs":[]}"#, Err("`x` is missing"));
    }

    #[test]
    fn replies_say_what_json_can() {
        let fp =
            |value: f32| Tensor::new(Datatype::Fp32, vec![1], value.to_le_bytes().to_vec().into()).unwrap();
        let body = Reply {
            outputs: vec![("y".to_owned(), fp(0.5)), ("n".to_owned(), fp(f32::NAN))],
            parameters: vec![("k".to_owned(), Parameter::Bool(true))],
        };
        let text = String::from_utf8(reply("app/f", Some("7"), &body)).unwrap();
        let value: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(value["id"], "7");
        assert_eq!(value["outputs"][0]["data"], json!([0.5]));
        assert_eq!(value["outputs"][1]["data"], json!([null]));
        assert_eq!(value["parameters"]["k"], true);
    }
}

//! Tensors as the checks send and read them, in each form that the protocol knows.
//!
//! The host's own codecs are not used: a mistake that both sides of a call share would not show.

use serde_json::{Value, json};

/// The most elements of a tensor that is made or read.
pub(super) const MAX_ELEMENTS: usize = 1 << 20;

/// The most dimensions of a tensor that is made or read.
const MAX_RANK: usize = 32;

/// How the elements of a datatype are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Bool,
    Unsigned,
    Signed,
    Float,
    /// The upper half of an FP32.
    Brain,
    Bytes,
}

/// An element type of the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Datatype {
    pub(super) name: &'static str,
    pub(super) kind: Kind,
    /// Bytes of an element; 0 where they differ.
    pub(super) width: usize,
}

const fn datatype(name: &'static str, kind: Kind, width: usize) -> Datatype {
    Datatype { name, kind, width }
}

const DATATYPES: [Datatype; 14] = [
    datatype("BOOL", Kind::Bool, 1),
    datatype("UINT8", Kind::Unsigned, 1),
    datatype("UINT16", Kind::Unsigned, 2),
    datatype("UINT32", Kind::Unsigned, 4),
    datatype("UINT64", Kind::Unsigned, 8),
    datatype("INT8", Kind::Signed, 1),
    datatype("INT16", Kind::Signed, 2),
    datatype("INT32", Kind::Signed, 4),
    datatype("INT64", Kind::Signed, 8),
    datatype("FP16", Kind::Float, 2),
    datatype("FP32", Kind::Float, 4),
    datatype("FP64", Kind::Float, 8),
    datatype("BF16", Kind::Brain, 2),
    datatype("BYTES", Kind::Bytes, 0),
];

impl Datatype {
    pub(super) fn of(name: &str) -> Option<Datatype> {
        DATATYPES.into_iter().find(|datatype| datatype.name == name)
    }

    /// A datatype whose elements nobody takes for those of this one.
    pub(super) fn another(self) -> &'static str {
        if self.kind == Kind::Bytes { "FP64" } else { "BYTES" }
    }

    /// Has no agreed form as a number of JSON, and none among gRPC's typed contents.
    pub(super) fn is_raw_only(self) -> bool {
        self.width == 2 && matches!(self.kind, Kind::Float | Kind::Brain)
    }
}

#[derive(Clone, Debug, PartialEq)]
pub(super) enum Element {
    Bool(bool),
    Unsigned(u64),
    Signed(i64),
    Float(f64),
    Bytes(Vec<u8>),
}

/// What an input is filled with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fill {
    /// 1, 2, 3 and again, so that order and byte order show.
    Counting,
    Zeros,
    Ones,
}

/// An input or output as a model's metadata describes it.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Port {
    pub(super) name: String,
    pub(super) datatype: String,
    /// Negative where a dimension is free.
    pub(super) shape: Vec<i64>,
}

impl Port {
    pub(super) fn read(value: &Value) -> Option<Port> {
        let text = |name: &str| Some(value.get(name)?.as_str()?.to_owned());
        let shape = value.get("shape")?.as_array()?.iter().map(Value::as_i64).collect::<Option<Vec<_>>>()?;
        Some(Port { name: text("name")?, datatype: text("datatype")?, shape })
    }

    pub(super) fn takes(&self, datatype: Datatype, shape: &[usize]) -> bool {
        let fits =
            |(free, dim): (&i64, &usize)| *free < 0 || usize::try_from(*free).is_ok_and(|free| free == *dim);
        self.datatype == datatype.name
            && self.shape.len() == shape.len()
            && self.shape.iter().zip(shape).all(fits)
    }
}

#[derive(Clone, Debug, PartialEq)]
pub(super) struct Tensor {
    pub(super) name: String,
    pub(super) datatype: Datatype,
    pub(super) shape: Vec<usize>,
    /// As many as the shape says.
    pub(super) elements: Vec<Element>,
}

impl Tensor {
    /// An input that `port` takes, with free dimensions of 1. Counting starts `from` there.
    pub(super) fn filled(port: &Port, fill: Fill, from: usize) -> Result<Tensor, String> {
        let Some(datatype) = Datatype::of(&port.datatype) else {
            return Err(format!("`{}` has the datatype `{}`, which is none", port.name, port.datatype));
        };
        let shape: Vec<usize> = port.shape.iter().map(|dim| usize::try_from(*dim).unwrap_or(1)).collect();
        let count =
            count(&shape).ok_or_else(|| format!("`{}` has more than {MAX_ELEMENTS} elements", port.name))?;
        let element = |index: usize| {
            let number: u8 = match fill {
                Fill::Counting => [1, 2, 3][(from + index) % 3],
                Fill::Zeros => 0,
                Fill::Ones => 1,
            };
            match datatype.kind {
                Kind::Bool => Element::Bool(number % 2 == 1),
                Kind::Unsigned => Element::Unsigned(number.into()),
                Kind::Signed => Element::Signed(number.into()),
                Kind::Float | Kind::Brain => Element::Float(number.into()),
                Kind::Bytes if number == 0 => Element::Bytes(Vec::new()),
                Kind::Bytes => Element::Bytes(number.to_string().into_bytes()),
            }
        };
        Ok(Tensor { name: port.name.clone(), datatype, shape, elements: (0..count).map(element).collect() })
    }

    /// A tensor in the JSON form, flat or nested.
    pub(super) fn read_json(value: &Value) -> Result<Tensor, String> {
        let tensor = Tensor::read_head(value)?;
        let data = value.get("data").ok_or_else(|| format!("`{}` has no `data`", tensor.name))?;
        let mut elements = Vec::new();
        flatten(data, tensor.datatype, &mut elements)
            .map_err(|wrong| format!("`{}`: {wrong}", tensor.name))?;
        tensor.put(elements)
    }

    /// A tensor whose elements are `raw`, and whose name, datatype and shape are in `head`.
    pub(super) fn read_binary(head: &Value, raw: &[u8]) -> Result<Tensor, String> {
        let head = Tensor::read_head(head)?;
        let (name, datatype) = (head.name.clone(), head.datatype);
        let elements = from_raw(datatype, raw).map_err(|wrong| format!("`{name}`: {wrong}"))?;
        head.put(elements)
    }

    /// A tensor of parts.
    pub(super) fn of(
        name: &str,
        datatype: &str,
        shape: &[i64],
        elements: Vec<Element>,
    ) -> Result<Tensor, String> {
        Tensor::read_head(&json!({ "name": name, "datatype": datatype, "shape": shape }))?.put(elements)
    }

    /// The tensor without elements, whose shape is one that can be read.
    fn read_head(value: &Value) -> Result<Tensor, String> {
        let text = |name: &str| value.get(name).and_then(Value::as_str);
        let name = text("name").ok_or("a tensor has no `name`")?.to_owned();
        let datatype = text("datatype").and_then(Datatype::of);
        let datatype = datatype.ok_or_else(|| format!("`{name}` has no `datatype` of the protocol"))?;
        let shape = value.get("shape").and_then(Value::as_array);
        let dims = shape.map(|shape| shape.iter().map(|dim| usize::try_from(dim.as_u64()?).ok()));
        let shape = dims.and_then(Iterator::collect::<Option<Vec<_>>>);
        let shape = shape.ok_or_else(|| format!("`{name}` has no `shape` of whole numbers from 0 on"))?;
        count(&shape).ok_or_else(|| format!("`{name}` has too many elements to be looked at: {shape:?}"))?;
        Ok(Tensor { name, datatype, shape, elements: Vec::new() })
    }

    fn put(mut self, elements: Vec<Element>) -> Result<Tensor, String> {
        let expected = count(&self.shape).unwrap_or_default();
        if elements.len() != expected {
            let (name, shape, count) = (&self.name, &self.shape, elements.len());
            return Err(format!("`{name}` has {count} elements, its shape {shape:?} says {expected}"));
        }
        self.elements = elements;
        Ok(self)
    }

    /// An element as JSON writes it.
    fn json_element(element: &Element) -> Value {
        match element {
            Element::Bool(value) => json!(value),
            Element::Unsigned(value) => json!(value),
            Element::Signed(value) => json!(value),
            Element::Float(value) => json!(value),
            Element::Bytes(value) => json!(String::from_utf8_lossy(value)),
        }
    }

    /// Name, datatype and shape.
    pub(super) fn head(&self) -> Value {
        json!({ "name": self.name, "datatype": self.datatype.name, "shape": self.shape })
    }

    /// The JSON form with flat data.
    pub(super) fn flat(&self) -> Value {
        let mut value = self.head();
        value["data"] = self.elements.iter().map(Tensor::json_element).collect();
        value
    }

    /// The JSON form with data nested as deeply as the shape.
    pub(super) fn nested(&self) -> Value {
        let mut level: Vec<Value> = self.elements.iter().map(Tensor::json_element).collect();
        for dim in self.shape.iter().skip(1).rev() {
            level = level.chunks(*dim.max(&1)).map(|row| Value::from(row.to_vec())).collect();
        }
        let mut value = self.head();
        value["data"] = level.into();
        value
    }

    /// The elements as the binary extension and gRPC's raw contents write them.
    pub(super) fn raw(&self) -> Vec<u8> {
        let mut raw = Vec::with_capacity(self.elements.len() * self.datatype.width.max(4));
        for element in &self.elements {
            put_raw(element, self.datatype, &mut raw);
        }
        raw
    }

    /// Whether the other holds the same, floating point numbers as nearly as two ways of computing them may be.
    pub(super) fn is_like(&self, other: &Tensor) -> bool {
        let alike = |(one, other): (&Element, &Element)| match (one, other) {
            (Element::Float(one), Element::Float(other)) => {
                let near = 1e-5 + 1e-3 * one.abs().max(other.abs());
                one == other || (one.is_nan() && other.is_nan()) || (one - other).abs() <= near
            }
            _ => one == other,
        };
        self.name == other.name
            && self.datatype == other.datatype
            && self.shape == other.shape
            && self.elements.len() == other.elements.len()
            && self.elements.iter().zip(&other.elements).all(alike)
    }

    /// What a person is shown.
    pub(super) fn told(&self) -> String {
        let first: Vec<String> =
            self.elements.iter().take(4).map(|element| Tensor::json_element(element).to_string()).collect();
        let more = if self.elements.len() > 4 { ", …" } else { "" };
        format!("{} {} {:?} [{}{more}]", self.name, self.datatype.name, self.shape, first.join(", "))
    }
}

/// The elements of a shape, where they are few enough.
pub(super) fn count(shape: &[usize]) -> Option<usize> {
    if shape.len() > MAX_RANK {
        return None;
    }
    if shape.contains(&0) {
        return Some(0);
    }
    shape
        .iter()
        .try_fold(1_usize, |count, dim| count.checked_mul(*dim).filter(|count| *count <= MAX_ELEMENTS))
}

fn flatten(value: &Value, datatype: Datatype, into: &mut Vec<Element>) -> Result<(), String> {
    if let Value::Array(values) = value {
        return values.iter().try_for_each(|value| flatten(value, datatype, into));
    }
    let element = match datatype.kind {
        Kind::Bool => value.as_bool().map(Element::Bool),
        Kind::Unsigned => value.as_u64().map(Element::Unsigned),
        Kind::Signed => value.as_i64().map(Element::Signed),
        // What JSON cannot write, servers write as null.
        Kind::Float | Kind::Brain if value.is_null() => Some(Element::Float(f64::NAN)),
        Kind::Float | Kind::Brain => value.as_f64().map(|number| Element::Float(rounded(number, datatype))),
        Kind::Bytes => value.as_str().map(|text| Element::Bytes(text.as_bytes().to_vec())),
    };
    let element = element.filter(|element| fits(element, datatype));
    into.push(element.ok_or_else(|| format!("{value} is no element of {}", datatype.name))?);
    Ok(())
}

/// As near as the datatype holds it.
fn rounded(number: f64, datatype: Datatype) -> f64 {
    match (datatype.kind, datatype.width) {
        (Kind::Brain, _) => half::bf16::from_f64(number).to_f64(),
        (_, 2) => half::f16::from_f64(number).to_f64(),
        #[expect(clippy::cast_possible_truncation, reason = "rounding is what is wanted")]
        (_, 4) => f64::from(number as f32),
        _ => number,
    }
}

fn fits(element: &Element, datatype: Datatype) -> bool {
    let bits = 8 * datatype.width;
    match element {
        Element::Unsigned(value) => bits == 64 || *value >> bits == 0,
        Element::Signed(value) => bits == 64 || (-(1_i64 << (bits - 1))..1 << (bits - 1)).contains(value),
        _ => true,
    }
}

fn put_raw(element: &Element, datatype: Datatype, raw: &mut Vec<u8>) {
    let width = datatype.width;
    match element {
        Element::Bool(value) => raw.push(u8::from(*value)),
        Element::Unsigned(value) => raw.extend(&value.to_le_bytes()[..width]),
        Element::Signed(value) => raw.extend(&value.to_le_bytes()[..width]),
        Element::Float(value) => match (datatype.kind, width) {
            (Kind::Brain, _) => raw.extend(half::bf16::from_f64(*value).to_le_bytes()),
            (_, 2) => raw.extend(half::f16::from_f64(*value).to_le_bytes()),
            #[expect(clippy::cast_possible_truncation, reason = "it was rounded when it was made")]
            (_, 4) => raw.extend((*value as f32).to_le_bytes()),
            _ => raw.extend(value.to_le_bytes()),
        },
        Element::Bytes(value) => {
            raw.extend(u32::try_from(value.len()).unwrap_or(u32::MAX).to_le_bytes());
            raw.extend(value);
        }
    }
}

fn from_raw(datatype: Datatype, raw: &[u8]) -> Result<Vec<Element>, String> {
    if datatype.kind == Kind::Bytes {
        return byte_strings(raw);
    }
    if !raw.len().is_multiple_of(datatype.width) {
        return Err(format!("{} bytes are no whole number of {} elements", raw.len(), datatype.name));
    }
    let element = |bytes: &[u8]| {
        let mut word = [0; 8];
        word[..bytes.len()].copy_from_slice(bytes);
        let number = u64::from_le_bytes(word);
        let unused = 64 - 8 * u32::try_from(datatype.width).unwrap_or(8);
        #[expect(clippy::cast_possible_truncation, reason = "the bytes beyond the width are zeros")]
        match (datatype.kind, datatype.width) {
            (Kind::Bool, _) if number > 1 => Err(format!("{number} is no BOOL")),
            (Kind::Bool, _) => Ok(Element::Bool(number == 1)),
            (Kind::Unsigned, _) => Ok(Element::Unsigned(number)),
            (Kind::Signed, _) => Ok(Element::Signed(number.cast_signed() << unused >> unused)),
            (Kind::Brain, _) => Ok(Element::Float(half::bf16::from_bits(number as u16).to_f64())),
            (_, 2) => Ok(Element::Float(half::f16::from_bits(number as u16).to_f64())),
            (_, 4) => Ok(Element::Float(f32::from_bits(number as u32).into())),
            _ => Ok(Element::Float(f64::from_bits(number))),
        }
    };
    raw.chunks(datatype.width).map(element).collect()
}

fn byte_strings(mut raw: &[u8]) -> Result<Vec<Element>, String> {
    let mut elements = Vec::new();
    while !raw.is_empty() {
        let cut = raw.split_first_chunk::<4>().and_then(|(length, rest)| {
            rest.split_at_checked(usize::try_from(u32::from_le_bytes(*length)).ok()?)
        });
        let (element, rest) = cut.ok_or_else(|| format!("element {} runs beyond the end", elements.len()))?;
        elements.push(Element::Bytes(element.to_vec()));
        raw = rest;
    }
    Ok(elements)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn port(datatype: &str, shape: &[i64]) -> Port {
        Port { name: "x".to_owned(), datatype: datatype.to_owned(), shape: shape.to_vec() }
    }

    #[test]
    fn every_datatype_goes_through_every_form() {
        for datatype in DATATYPES {
            for fill in [Fill::Counting, Fill::Zeros, Fill::Ones] {
                let tensor = Tensor::filled(&port(datatype.name, &[-1, 2, 3]), fill, 1).unwrap();
                assert_eq!(tensor.elements.len(), 6);
                for form in [tensor.flat(), tensor.nested()] {
                    assert!(Tensor::read_json(&form).unwrap().is_like(&tensor), "{form}");
                }
                let raw = tensor.raw();
                assert!(Tensor::read_binary(&tensor.head(), &raw).unwrap().is_like(&tensor), "{raw:?}");
                assert!(port(datatype.name, &[-1, 2, -1]).takes(datatype, &tensor.shape));
                assert!(!port(datatype.name, &[2, 2, -1]).takes(datatype, &tensor.shape));
            }
        }
    }

    #[test]
    fn edges_survive() {
        let check = |datatype: &str, data: Value| {
            let shape = data.as_array().unwrap().len();
            let form = json!({ "name": "x", "datatype": datatype, "shape": [shape], "data": data });
            let tensor = Tensor::read_json(&form).unwrap();
            assert_eq!(Tensor::read_binary(&tensor.head(), &tensor.raw()).unwrap(), tensor, "{form}");
            assert_eq!(tensor.flat()["data"], data);
        };
        check("UINT8", json!([0, 255]));
        check("INT8", json!([-128, 127]));
        check("INT16", json!([-32768, 32767]));
        check("UINT64", json!([u64::MAX]));
        check("INT64", json!([i64::MIN, i64::MAX]));
        check("FP16", json!([65504.0, -0.5]));
        check("BF16", json!([-2.5]));
        check("FP64", json!([1.0e-300]));
        check("BYTES", json!(["", "ß", "a\u{0}b"]));
        check("BOOL", json!([true, false]));
    }

    #[test]
    fn data_that_does_not_fit_is_named() {
        let check = |form: Value, expected: &str| {
            let told = Tensor::read_json(&form).unwrap_err();
            assert!(told.contains(expected), "{told}");
        };
        let form = |datatype: &str, shape: Value, data: Value| json!({ "name": "x", "datatype": datatype, "shape": shape, "data": data });
        check(form("UINT8", json!([1]), json!([256])), "256");
        check(form("INT8", json!([1]), json!([128])), "128");
        check(form("BOOL", json!([1]), json!([1])), "BOOL");
        check(form("FP32", json!([2]), json!([1])), "1 elements");
        check(form("FP32", json!([-1]), json!([])), "shape");
        check(form("FP32", json!([u64::MAX, 2]), json!([])), "too many");
        check(form("F32", json!([1]), json!([1])), "datatype");
        check(json!({ "name": "x", "datatype": "FP32", "shape": [1] }), "data");
        check(json!([]), "name");
        assert!(byte_strings(&[1, 0, 0, 0]).is_err());
        assert!(byte_strings(&[1, 0, 0]).is_err());
        assert!(from_raw(Datatype::of("FP32").unwrap(), &[0; 6]).is_err());
        assert!(from_raw(Datatype::of("BOOL").unwrap(), &[2]).is_err());
    }

    #[test]
    fn shapes_are_counted_within_bounds() {
        assert_eq!(count(&[]), Some(1));
        assert_eq!(count(&[0, usize::MAX, usize::MAX]), Some(0));
        assert_eq!(count(&[usize::MAX, 2]), None);
        assert_eq!(count(&[MAX_ELEMENTS + 1]), None);
        assert_eq!(count(&[1; MAX_RANK + 1]), None);
    }
}

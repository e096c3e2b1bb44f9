//! One pass over an inference request in JSON, which leaves nothing of it but what a call takes.

use std::collections::BTreeMap;

use super::data::{self, Room};
use super::scan::{Scan, Value};
use super::text::Text;
use super::{Refused, wrong};
use crate::instance::typed::Parameter;
use crate::tensor::{Datatype, MAX_RANK, Tensor};

/// The most inputs, parameters and outputs that a request may name, each.
pub(in crate::serve) const ENTRIES: usize = 256;

/// An inference request as it is written.
#[derive(Default)]
pub(in crate::serve) struct Message {
    pub(in crate::serve) id: Option<String>,
    pub(in crate::serve) inputs: Vec<Input>,
    pub(in crate::serve) parameters: Vec<(String, Parameter)>,
    pub(in crate::serve) outputs: Vec<Output>,
}

/// One of `inputs`.
pub(in crate::serve) struct Input {
    pub(in crate::serve) name: String,
    pub(in crate::serve) datatype: Datatype,
    pub(in crate::serve) shape: Vec<usize>,
    pub(in crate::serve) content: Content,
}

/// Where the elements of an input are.
pub(in crate::serve) enum Content {
    /// They stood in the JSON.
    Here(Tensor),
    /// So many bytes of what follows the JSON.
    Binary(usize),
}

/// One of `outputs`.
pub(in crate::serve) struct Output {
    pub(in crate::serve) name: String,
    /// What it says of its own form.
    pub(in crate::serve) is_binary: Option<bool>,
    /// How many of the best classes are wanted in its place; 0 stands for the tensor itself.
    pub(in crate::serve) classes: usize,
}

/// A value of one form; what is not of it was seen, and skipped. A null is no value.
#[derive(Default)]
enum Field<T> {
    #[default]
    Absent,
    Wrong,
    Is(T),
}

impl<T> Field<T> {
    /// A second value of the same key is refused.
    fn once(&self, key: &str) -> Result<(), Refused> {
        match self {
            Field::Absent => Ok(()),
            Field::Wrong | Field::Is(_) => Err(twice(key)),
        }
    }

    /// Takes the value at the place: `read` goes past it, and answers nothing for one of another form.
    fn take<'a>(
        &mut self,
        key: &str,
        scan: &mut Scan<'a>,
        read: impl FnOnce(&mut Scan<'a>, &Value<'a>) -> Result<Option<T>, Refused>,
    ) -> Result<(), Refused> {
        self.once(key)?;
        let value = scan.value()?;
        *self = match read(scan, &value)? {
            Some(read) => Field::Is(read),
            None if matches!(value, Value::Null) => Field::Absent,
            None => Field::Wrong,
        };
        Ok(())
    }

    fn value(self) -> Option<T> {
        match self {
            Field::Is(value) => Some(value),
            Field::Absent | Field::Wrong => None,
        }
    }

    fn is_wrong(&self) -> bool {
        matches!(self, Field::Wrong)
    }
}

fn twice(key: &str) -> Refused {
    wrong(&format!("duplicate field `{key}`"))
}

/// Goes past a value that is not of the form.
fn other<T>(scan: &mut Scan<'_>, value: &Value<'_>) -> Result<Option<T>, Refused> {
    scan.leave(value)?;
    Ok(None)
}

/// Reads a request.
pub(super) fn message(text: &[u8], room: &mut Room<'_>) -> Result<Message, Refused> {
    let mut scan = Scan::new(text);
    let Value::Object = scan.value()? else {
        return Err(wrong("the body is not a JSON object with `inputs`"));
    };
    let (mut id, mut inputs, mut parameters, mut outputs) =
        (Field::Absent, Field::Absent, Field::Absent, Field::Absent);
    let mut first = true;
    while let Some(key) = scan.key(&mut first)? {
        if key.is("inputs") {
            inputs.take("inputs", &mut scan, |scan, value| match value {
                Value::Array => self::inputs(scan, room).map(Some),
                _ => other(scan, value),
            })?;
        } else if key.is("outputs") {
            outputs.take("outputs", &mut scan, |scan, value| match value {
                Value::Array => self::outputs(scan).map(Some),
                _ => other(scan, value),
            })?;
        } else if key.is("parameters") {
            parameters.take("parameters", &mut scan, |scan, value| match value {
                Value::Object => self::parameters(scan, room).map(Some),
                _ => other(scan, value),
            })?;
        } else if key.is("id") {
            id.take("id", &mut scan, |scan, value| {
                kept(value, room)?;
                string(scan, value)
            })?;
        } else {
            scan.skip()?;
        }
    }
    scan.end()?;
    let rows = [
        (id.is_wrong(), "`id` is not a string"),
        (parameters.is_wrong(), "`parameters` is not an object"),
        (outputs.is_wrong(), "`outputs` is not an array"),
    ];
    if let Some((_, what)) = rows.iter().find(|(is_wrong, _)| *is_wrong) {
        return Err(wrong(what));
    }
    Ok(Message {
        id: id.value(),
        inputs: inputs.value().ok_or_else(|| wrong("the body has no array `inputs`"))?,
        parameters: parameters.value().unwrap_or_default(),
        outputs: outputs.value().unwrap_or_default(),
    })
}

fn inputs(scan: &mut Scan<'_>, room: &mut Room<'_>) -> Result<Vec<Input>, Refused> {
    let (mut first, mut inputs) = (true, Vec::new());
    while scan.element(&mut first)? {
        if inputs.len() == ENTRIES {
            return Err(wrong(&format!("there are more than {ENTRIES} inputs")));
        }
        let Value::Object = scan.value()? else {
            return Err(wrong("an entry of `inputs` is not an object"));
        };
        inputs.push(input(scan, room)?);
    }
    Ok(inputs)
}

/// An input as far as it has been read.
#[derive(Default)]
struct Entry<'a> {
    name: Field<String>,
    datatype: Field<Text<'a>>,
    shape: Field<Vec<usize>>,
    parameters: Field<Binary>,
    data: Field<Elements<'a>>,
}

enum Elements<'a> {
    /// Where they begin: what they are stands behind them.
    Later(Scan<'a>),
    Are(Tensor),
}

/// What an input's parameters say of where its elements are.
#[derive(Default)]
struct Binary {
    size: Field<usize>,
    is_shared: bool,
}

fn input(scan: &mut Scan<'_>, room: &mut Room<'_>) -> Result<Input, Refused> {
    let (mut first, mut entry) = (true, Entry::default());
    while let Some(key) = scan.key(&mut first)? {
        if key.is("data") {
            entry.data.once("data")?;
            let place = scan.clone();
            if matches!(scan.clone().value()?, Value::Null) {
                scan.skip()?;
            } else if let Ok((name, datatype, shape)) = entry.head() {
                let tensor = data::tensor(scan, datatype, shape.to_vec(), room);
                entry.data = Field::Is(Elements::Are(tensor.map_err(|refused| refused.of_input(name))?));
            } else {
                scan.skip()?;
                entry.data = Field::Is(Elements::Later(place));
            }
        } else if key.is("name") {
            entry.name.take("name", scan, name)?;
        } else if key.is("shape") {
            entry.shape.take("shape", scan, shape)?;
        } else if key.is("datatype") {
            entry.datatype.take("datatype", scan, |scan, value| match value {
                Value::Text(text) => Ok(Some(*text)),
                _ => other(scan, value),
            })?;
        } else if key.is("parameters") {
            entry.parameters.take("parameters", scan, binary)?;
        } else {
            scan.skip()?;
        }
    }
    entry.finish(room)
}

impl Entry<'_> {
    fn head(&self) -> Result<(&str, Datatype, &[usize]), Refused> {
        let Field::Is(name) = &self.name else {
            return Err(wrong("an entry of `inputs` has no `name`"));
        };
        let wrong = |what: &str| wrong(what).of_input(name);
        let Field::Is(text) = &self.datatype else {
            return Err(wrong("there is no `datatype`, such as \"FP32\""));
        };
        let datatype = Datatype::ALL.into_iter().find(|datatype| text.is(datatype.name()));
        let Some(datatype) = datatype else {
            let text = text.start();
            return Err(wrong(&format!("there is no datatype `{text}`; FP32 and INT64 are two of them")));
        };
        let Field::Is(shape) = &self.shape else {
            return Err(wrong("there is no `shape`, an array of numbers that are not negative"));
        };
        Ok((name, datatype, shape))
    }

    fn finish(self, room: &mut Room<'_>) -> Result<Input, Refused> {
        let (name, datatype, shape) = self.head()?;
        let (name, shape) = (name.to_owned(), shape.to_vec());
        let wrong = |what: &str| wrong(what).of_input(&name);
        if self.parameters.is_wrong() {
            return Err(wrong("`parameters` is not an object"));
        }
        let Binary { size, is_shared } = self.parameters.value().unwrap_or_default();
        if is_shared {
            return Err(wrong("shared memory is not supported; send `data`, or a binary tensor"));
        }
        if size.is_wrong() {
            return Err(wrong("`binary_data_size` is not a whole number of bytes"));
        }
        let content = match (self.data.value(), size.value()) {
            (Some(_), Some(_)) => {
                return Err(wrong("there are both `data` and `binary_data_size`; send one of them"));
            }
            (None, None) => {
                return Err(wrong("there is no `data`, and no `binary_data_size` in its `parameters`"));
            }
            (None, Some(size)) => Content::Binary(size),
            (Some(Elements::Are(tensor)), None) => Content::Here(tensor),
            (Some(Elements::Later(mut scan)), None) => {
                let tensor = data::tensor(&mut scan, datatype, shape.clone(), room);
                Content::Here(tensor.map_err(|refused| refused.of_input(&name))?)
            }
        };
        Ok(Input { name, datatype, shape, content })
    }
}

fn string<'a>(scan: &mut Scan<'a>, value: &Value<'a>) -> Result<Option<String>, Refused> {
    match value {
        Value::Text(text) => text.read().map(Some),
        _ => other(scan, value),
    }
}

/// The name of an input or output.
fn name<'a>(scan: &mut Scan<'a>, value: &Value<'a>) -> Result<Option<String>, Refused> {
    /// No function has longer ones, however they are written.
    const LONGEST: usize = 6 * 256;
    match value {
        Value::Text(text) if text.longest() > LONGEST => {
            Err(wrong(&format!("the name `{}...` is longer than a name may be", text.start())))
        }
        _ => string(scan, value),
    }
}

fn shape<'a>(scan: &mut Scan<'a>, value: &Value<'a>) -> Result<Option<Vec<usize>>, Refused> {
    let Value::Array = value else { return other(scan, value) };
    let (mut first, mut shape) = (true, Some(Vec::new()));
    while scan.element(&mut first)? {
        let value = scan.value()?;
        scan.leave(&value)?;
        let dim = match &value {
            Value::Number(number) => number.uint(),
            _ => None,
        };
        shape = shape.zip(dim).map(|(mut shape, dim)| {
            // One more than there may be is kept, by which the shape is refused.
            if shape.len() <= MAX_RANK {
                shape.push(usize::try_from(dim).unwrap_or(usize::MAX));
            }
            shape
        });
    }
    Ok(shape)
}

fn is_shared_memory(key: Text<'_>) -> bool {
    ["shared_memory_region", "shared_memory_byte_size", "shared_memory_offset"]
        .iter()
        .any(|name| key.is(name))
}

fn binary<'a>(scan: &mut Scan<'a>, value: &Value<'a>) -> Result<Option<Binary>, Refused> {
    let Value::Object = value else { return other(scan, value) };
    let (mut first, mut binary) = (true, Binary::default());
    while let Some(key) = scan.key(&mut first)? {
        if key.is("binary_data_size") {
            binary.size.take("binary_data_size", scan, size)?;
        } else {
            binary.is_shared |= is_shared_memory(key);
            scan.skip()?;
        }
    }
    Ok(Some(binary))
}

fn size<'a>(scan: &mut Scan<'a>, value: &Value<'a>) -> Result<Option<usize>, Refused> {
    match value {
        Value::Number(number) => Ok(number.uint().map(|size| usize::try_from(size).unwrap_or(usize::MAX))),
        _ => other(scan, value),
    }
}

fn outputs(scan: &mut Scan<'_>) -> Result<Vec<Output>, Refused> {
    let (mut first, mut outputs) = (true, Vec::new());
    while scan.element(&mut first)? {
        if outputs.len() == ENTRIES {
            return Err(wrong(&format!("there are more than {ENTRIES} outputs")));
        }
        let Value::Object = scan.value()? else {
            return Err(wrong("an entry of `outputs` is not an object"));
        };
        outputs.push(output(scan)?);
    }
    Ok(outputs)
}

/// What an output's parameters say of the form that is wanted.
#[derive(Default)]
struct Form {
    is_binary: Field<bool>,
    classes: Field<usize>,
    is_shared: bool,
}

fn output(scan: &mut Scan<'_>) -> Result<Output, Refused> {
    let (mut named, mut parameters) = (Field::Absent, Field::Absent);
    let mut first = true;
    while let Some(key) = scan.key(&mut first)? {
        if key.is("name") {
            named.take("name", scan, name)?;
        } else if key.is("parameters") {
            parameters.take("parameters", scan, form)?;
        } else {
            scan.skip()?;
        }
    }
    let name = named.value().ok_or_else(|| wrong("an entry of `outputs` has no `name`"))?;
    let wrong = |what: &str| wrong(&format!("output `{name}`: {what}"));
    if parameters.is_wrong() {
        return Err(wrong("`parameters` is not an object"));
    }
    let Form { is_binary, classes, is_shared } = parameters.value().unwrap_or_default();
    if is_shared {
        return Err(wrong("shared memory is not supported; take the tensor from the answer"));
    }
    if is_binary.is_wrong() {
        return Err(wrong("`binary_data` is not true or false"));
    }
    if classes.is_wrong() {
        return Err(wrong("`classification` is not a number of classes"));
    }
    Ok(Output { is_binary: is_binary.value(), classes: classes.value().unwrap_or_default(), name })
}

fn form<'a>(scan: &mut Scan<'a>, value: &Value<'a>) -> Result<Option<Form>, Refused> {
    let Value::Object = value else { return other(scan, value) };
    let (mut first, mut form) = (true, Form::default());
    while let Some(key) = scan.key(&mut first)? {
        if key.is("binary_data") {
            form.is_binary.take("binary_data", scan, |scan, value| match value {
                Value::Bool(value) => Ok(Some(*value)),
                _ => other(scan, value),
            })?;
        } else if key.is("classification") {
            form.classes.take("classification", scan, size)?;
        } else {
            form.is_shared |= is_shared_memory(key);
            scan.skip()?;
        }
    }
    Ok(Some(form))
}

/// Reads the object that the place is in, which holds values beside the tensors. A null is none.
pub(in crate::serve) fn parameters(
    scan: &mut Scan<'_>,
    room: &mut Room<'_>,
) -> Result<Vec<(String, Parameter)>, Refused> {
    let (mut first, mut parameters) = (true, BTreeMap::new());
    while let Some(key) = scan.key(&mut first)? {
        kept(&Value::Text(key), room)?;
        let (name, value) = (key.read()?, scan.value()?);
        if parameters.len() == ENTRIES {
            return Err(wrong(&format!("there are more than {ENTRIES} parameters")));
        }
        if let Some(value) = parameter(&name, &value, room)?
            && parameters.insert(name, value).is_some()
        {
            return Err(wrong(&format!("parameter `{}` is given twice", key.read()?)));
        }
    }
    Ok(parameters.into_iter().collect())
}

/// Takes room for a text that stays when the body goes.
pub(in crate::serve) fn kept(value: &Value<'_>, room: &mut Room<'_>) -> Result<(), Refused> {
    match value {
        Value::Text(text) if !room(text.longest()) => Err(Refused::NoRoom),
        _ => Ok(()),
    }
}

/// A value beside the tensors.
pub(in crate::serve) fn parameter(
    name: &str,
    value: &Value<'_>,
    room: &mut Room<'_>,
) -> Result<Option<Parameter>, Refused> {
    kept(value, room)?;
    let parameter = match value {
        Value::Null => return Ok(None),
        Value::Bool(value) => Some(Parameter::Bool(*value)),
        Value::Text(text) => Some(Parameter::Text(text.read()?)),
        Value::Number(number) => number
            .int()
            .map(Parameter::Int64)
            .or_else(|| number.uint().map(Parameter::Uint64))
            .or_else(|| number.fp64().map(Parameter::Double)),
        Value::Array | Value::Object => None,
    };
    let what = || wrong(&format!("parameter `{name}` is not a string, number or boolean"));
    parameter.map(Some).ok_or_else(what)
}

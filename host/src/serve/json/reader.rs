//! The two passes over a request's body, which leave nothing of it but what a call takes.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde::de::{DeserializeSeed, Error, IgnoredAny, MapAccess, SeqAccess};

use super::data::{Elements, Room};
use super::take::{Any, Scalar, Take};
use super::{Refused, not_json, wrong};
use crate::instance::typed::Parameter;
use crate::tensor::{Datatype, MAX_RANK, Tensor};

/// The most inputs, parameters and outputs that a request may name, each.
const ENTRIES: usize = 256;

/// What a call takes of a body.
pub(super) fn call(body: &[u8], room: &mut Room<'_>) -> Result<Call, Refused> {
    let mut reader = Reader { call: Call::default(), longest: body.len(), room, again: false };
    reader.walk(body)?;
    if reader.call.inputs.iter().any(|entry| matches!(entry.data, Data::Later)) {
        for entry in &reader.call.inputs {
            entry.head()?;
        }
        // What the elements are stood behind them: now that it is known, they are read.
        reader.again = true;
        reader.walk(body)?;
    }
    reader.call.checked()
}

/// A value of one form; what is not of it was seen, and skipped.
#[derive(Default)]
pub(super) enum Field<T> {
    #[default]
    Absent,
    Wrong,
    Is(T),
}

impl<T> Field<T> {
    /// A second value of the same key is refused.
    fn begin<E: Error>(&mut self, key: &'static str) -> Result<&mut Self, E> {
        if !matches!(self, Field::Absent) {
            return Err(E::duplicate_field(key));
        }
        *self = Field::Wrong;
        Ok(self)
    }

    pub(super) fn value(self) -> Option<T> {
        match self {
            Field::Is(value) => Some(value),
            Field::Absent | Field::Wrong => None,
        }
    }
}

/// What was read of a body.
#[derive(Default)]
pub(super) struct Call {
    is_object: bool,
    pub(super) id: Field<String>,
    has_inputs: Field<()>,
    pub(super) inputs: Vec<Entry>,
    has_parameters: Field<()>,
    pub(super) parameters: BTreeMap<String, Field<Parameter>>,
    has_outputs: Field<()>,
    pub(super) outputs: Vec<Field<String>>,
}

impl Call {
    fn checked(self) -> Result<Call, Refused> {
        let rows = [
            (!self.is_object, "the body is not a JSON object with `inputs`"),
            (matches!(self.id, Field::Wrong), "`id` is not a string"),
            (!matches!(self.has_inputs, Field::Is(())), "the body has no array `inputs`"),
            (matches!(self.has_parameters, Field::Wrong), "`parameters` is not an object"),
            (matches!(self.has_outputs, Field::Wrong), "`outputs` is not an array"),
        ];
        match rows.iter().find(|(is_wrong, _)| *is_wrong) {
            Some((_, what)) => Err(wrong(what)),
            None => Ok(self),
        }
    }
}

/// One of `inputs`.
#[derive(Default)]
pub(super) struct Entry {
    is_object: bool,
    name: Field<String>,
    datatype: Field<String>,
    shape: Field<Vec<usize>>,
    data: Data,
}

#[derive(Default)]
enum Data {
    #[default]
    Absent,
    /// It was skipped: what its elements are was not known yet.
    Later,
    Is(Result<Tensor, Refused>),
}

impl Entry {
    fn head(&self) -> Result<(Datatype, &[usize]), Refused> {
        if !self.is_object {
            return Err(wrong("an entry of `inputs` is not an object"));
        }
        let Field::Is(name) = &self.name else {
            return Err(wrong("an entry of `inputs` has no `name`"));
        };
        let wrong = |what: &str| wrong(&format!("input `{name}`: {what}"));
        let Field::Is(datatype) = &self.datatype else {
            return Err(wrong("there is no `datatype`, such as \"FP32\""));
        };
        let datatype = Datatype::from_name(datatype).ok_or_else(|| {
            wrong(&format!("there is no datatype `{datatype}`; FP32 and INT64 are two of them"))
        })?;
        let Field::Is(shape) = &self.shape else {
            return Err(wrong("there is no `shape`, an array of numbers that are not negative"));
        };
        Ok((datatype, shape))
    }

    pub(super) fn input(self) -> Result<(String, Tensor), Refused> {
        self.head()?;
        let name = self.name.value().unwrap_or_default();
        match self.data {
            Data::Is(Ok(tensor)) => Ok((name, tensor)),
            Data::Is(Err(Refused::Input(what))) => Err(wrong(&format!("input `{name}`: {what}"))),
            Data::Is(Err(Refused::NoRoom)) => Err(Refused::NoRoom),
            Data::Absent | Data::Later => Err(wrong(&format!("input `{name}`: there is no `data`"))),
        }
    }
}

/// One pass over a body. The second one is only for what the first one could not read.
struct Reader<'a, 'b> {
    call: Call,
    longest: usize,
    room: &'a mut Room<'b>,
    again: bool,
}

impl Reader<'_, '_> {
    fn walk(&mut self, body: &[u8]) -> Result<(), Refused> {
        let mut deserializer = serde_json::Deserializer::from_slice(body);
        let read = Any(&mut *self).deserialize(&mut deserializer).and_then(|()| deserializer.end());
        let Err(error) = read else { return Ok(()) };
        if let Some(entry) = self.call.inputs.iter_mut().find(|entry| matches!(entry.data, Data::Is(Err(_))))
        {
            std::mem::take(entry).input()?;
        }
        Err(if error.is_data() { Refused::Input(error.to_string()) } else { not_json(&error) })
    }
}

#[derive(Deserialize)]
#[serde(field_identifier, rename_all = "lowercase")]
enum Key {
    Id,
    Inputs,
    Parameters,
    Outputs,
    Name,
    Datatype,
    Shape,
    Data,
    #[serde(other)]
    Unknown,
}

impl<'de> Take<'de> for &mut Reader<'_, '_> {
    fn object<A: MapAccess<'de>>(self, mut fields: A) -> Result<(), A::Error> {
        self.call.is_object = true;
        while let Some(key) = fields.next_key::<Key>()? {
            let call = &mut self.call;
            match key {
                Key::Inputs => {
                    if !self.again {
                        call.has_inputs.begin("inputs")?;
                    }
                    fields.next_value_seed(Any(Inputs(&mut *self)))?;
                }
                _ if self.again => drop(fields.next_value::<IgnoredAny>()?),
                Key::Id => fields.next_value_seed(Any(call.id.begin("id")?))?,
                Key::Parameters => {
                    call.has_parameters.begin("parameters")?;
                    fields.next_value_seed(Any(Parameters(call)))?;
                }
                Key::Outputs => {
                    call.has_outputs.begin("outputs")?;
                    fields.next_value_seed(Any(Outputs(call)))?;
                }
                _ => drop(fields.next_value::<IgnoredAny>()?),
            }
        }
        Ok(())
    }
}

struct Inputs<'a, 'b, 'c>(&'a mut Reader<'b, 'c>);

impl<'de> Take<'de> for Inputs<'_, '_, '_> {
    fn array<A: SeqAccess<'de>>(self, mut elements: A) -> Result<(), A::Error> {
        let Inputs(reader) = self;
        reader.call.has_inputs = Field::Is(());
        for index in 0.. {
            if !reader.again {
                reader.call.inputs.push(Entry::default());
            }
            let entry = EntryOf { index, reader: &mut *reader };
            if elements.next_element_seed(Any(entry))?.is_none() {
                break;
            }
            if index == ENTRIES {
                return Err(A::Error::custom(format!("there are more than {ENTRIES} inputs")));
            }
        }
        if !reader.again {
            // The one that was made for an element that did not come.
            reader.call.inputs.pop();
        }
        Ok(())
    }
}

struct EntryOf<'a, 'b, 'c> {
    index: usize,
    reader: &'a mut Reader<'b, 'c>,
}

impl<'de> Take<'de> for EntryOf<'_, '_, '_> {
    fn object<A: MapAccess<'de>>(self, mut fields: A) -> Result<(), A::Error> {
        let Reader { call, longest, room, again } = self.reader;
        let entry = &mut call.inputs[self.index];
        entry.is_object = true;
        while let Some(key) = fields.next_key::<Key>()? {
            match (key, &entry.data, *again) {
                (Key::Data, Data::Absent, false) | (Key::Data, Data::Later, true) => {
                    let Ok((datatype, shape)) = entry.head() else {
                        entry.data = Data::Later;
                        fields.next_value::<IgnoredAny>()?;
                        continue;
                    };
                    let read = Elements::read(datatype, shape.to_vec(), *longest, *room, &mut fields)?;
                    let is_refused = read.is_err();
                    entry.data = Data::Is(read);
                    if is_refused {
                        return Err(A::Error::custom("refused"));
                    }
                }
                (Key::Data, _, false) => return Err(A::Error::duplicate_field("data")),
                (Key::Name, _, false) => fields.next_value_seed(Any(entry.name.begin("name")?))?,
                (Key::Datatype, _, false) => {
                    fields.next_value_seed(Any(entry.datatype.begin("datatype")?))?
                }
                (Key::Shape, _, false) => fields.next_value_seed(Any(entry.shape.begin("shape")?))?,
                _ => drop(fields.next_value::<IgnoredAny>()?),
            }
        }
        Ok(())
    }
}

struct Parameters<'a>(&'a mut Call);

impl<'de> Take<'de> for Parameters<'_> {
    fn object<A: MapAccess<'de>>(self, mut fields: A) -> Result<(), A::Error> {
        let Call { has_parameters, parameters, .. } = self.0;
        *has_parameters = Field::Is(());
        while let Some(name) = fields.next_key::<String>()? {
            if parameters.len() == ENTRIES {
                return Err(A::Error::custom(format!("there are more than {ENTRIES} parameters")));
            }
            let mut value = Field::Wrong;
            fields.next_value_seed(Any(&mut value))?;
            parameters.insert(name, value);
        }
        Ok(())
    }
}

struct Outputs<'a>(&'a mut Call);

impl<'de> Take<'de> for Outputs<'_> {
    fn array<A: SeqAccess<'de>>(self, mut elements: A) -> Result<(), A::Error> {
        let Call { has_outputs, outputs, .. } = self.0;
        *has_outputs = Field::Is(());
        loop {
            let mut name = Field::Absent;
            if elements.next_element_seed(Any(OutputName(&mut name)))?.is_none() {
                return Ok(());
            }
            if outputs.len() == ENTRIES {
                return Err(A::Error::custom(format!("there are more than {ENTRIES} outputs")));
            }
            outputs.push(name);
        }
    }
}

struct OutputName<'a>(&'a mut Field<String>);

impl<'de> Take<'de> for OutputName<'_> {
    fn object<A: MapAccess<'de>>(self, mut fields: A) -> Result<(), A::Error> {
        while let Some(key) = fields.next_key::<Key>()? {
            match key {
                Key::Name => fields.next_value_seed(Any(self.0.begin("name")?))?,
                _ => drop(fields.next_value::<IgnoredAny>()?),
            }
        }
        Ok(())
    }
}

impl<'de> Take<'de> for &mut Field<String> {
    fn scalar<E: Error>(self, value: Scalar<'_>) -> Result<(), E> {
        if let Scalar::Text(text) = value {
            *self = Field::Is(text.to_owned());
        }
        Ok(())
    }
}

impl<'de> Take<'de> for &mut Field<Parameter> {
    fn scalar<E: Error>(self, value: Scalar<'_>) -> Result<(), E> {
        *self = Field::Is(match value {
            Scalar::Null => return Ok(()),
            Scalar::Bool(value) => Parameter::Bool(value),
            Scalar::Int(value) => Parameter::Int64(value),
            Scalar::Uint(value) => i64::try_from(value).map_or(Parameter::Uint64(value), Parameter::Int64),
            Scalar::Float(value) => Parameter::Double(value),
            Scalar::Text(text) => Parameter::Text(text.to_owned()),
        });
        Ok(())
    }
}

impl<'de> Take<'de> for &mut Field<usize> {
    fn scalar<E: Error>(self, value: Scalar<'_>) -> Result<(), E> {
        if let Scalar::Uint(dim) = value {
            *self = Field::Is(usize::try_from(dim).unwrap_or(usize::MAX));
        }
        Ok(())
    }
}

impl<'de> Take<'de> for &mut Field<Vec<usize>> {
    fn array<A: SeqAccess<'de>>(self, mut elements: A) -> Result<(), A::Error> {
        let mut shape = Some(Vec::new());
        loop {
            let mut dim = Field::Wrong;
            if elements.next_element_seed(Any(&mut dim))?.is_none() {
                break;
            }
            // One more than there may be is kept, by which the shape is refused.
            shape = shape.zip(dim.value()).map(|(mut shape, dim)| {
                if shape.len() <= MAX_RANK {
                    shape.push(dim);
                }
                shape
            });
        }
        if let Some(shape) = shape {
            *self = Field::Is(shape);
        }
        Ok(())
    }
}

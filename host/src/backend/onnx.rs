//! What an ONNX file declares of itself: its inputs and outputs, read without its weights or its graph.
//!
//! Engines that map INT64 to INT32, or that tell nothing of a model, cannot say what a caller may send. The
//! file can, and its top levels are walked to their end on the way, so that a file cut short is found out.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::{self, BufReader, Read as _};
use std::path::Path;

use thiserror::Error;

use super::{Encoding, ExecutionTarget, LoadError, ModelFile, Port, Precision, Signature};
use crate::tensor::Datatype;

/// The longest name that is read; a longer one is an attack on memory.
const MAX_NAME: u64 = 1 << 16;

/// Why a file does not tell its signature.
#[derive(Debug, Error)]
pub(super) enum OnnxError {
    #[error("the file cannot be read: {0}")]
    Io(#[from] io::Error),
    #[error("the file is not ONNX, or is damaged or cut short, at byte {0}")]
    Malformed(u64),
    #[error("the graph has no outputs")]
    NoOutputs,
    #[error("`{0}` is declared to be something other than a tensor")]
    NotTensor(String),
    #[error("`{name}` has the ONNX type {number}, which no datatype matches")]
    Datatype { name: String, number: u64 },
    #[error("`{name}` has a dimension of {size}")]
    Dimension { name: String, size: i64 },
}

impl OnnxError {
    /// The error as the one of a backend's that was to load the file.
    pub(super) fn of(self, backend: &'static str) -> LoadError {
        match self {
            OnnxError::Io(error) => LoadError::Io(error),
            other => LoadError::Model { backend, reason: other.to_string() },
        }
    }
}

/// The signature of an ONNX file, and which of its free dimensions bear the same name.
#[derive(Debug)]
pub(super) struct Declared {
    pub(super) signature: Signature,
    /// For each input and dimension the symbol that stands for it.
    symbols: Vec<Vec<Option<String>>>,
}

impl Declared {
    /// Checks that dimensions of one name are of one size, where a call may choose them.
    pub(super) fn same_symbols(&self, shapes: &[Vec<usize>]) -> Result<(), String> {
        let mut known: HashMap<&str, (usize, &str)> = HashMap::new();
        for ((port, symbols), shape) in self.signature.inputs.iter().zip(&self.symbols).zip(shapes) {
            for (symbol, size) in symbols.iter().zip(shape) {
                let Some(symbol) = symbol else { continue };
                let (first, input) = *known.entry(symbol).or_insert((*size, &port.name));
                if first != *size {
                    let name = &port.name;
                    return Err(format!(
                        "`{symbol}` is {first} in input `{input}`, but {size} in input `{name}`"
                    ));
                }
            }
        }
        Ok(())
    }

    /// Refuses, in a backend's name, inputs and outputs of datatypes that it cannot do.
    pub(super) fn check(&self, backend: &'static str, can: fn(Datatype) -> bool) -> Result<(), LoadError> {
        let mut ports = self.signature.inputs.iter().chain(&self.signature.outputs);
        match ports.find(|port| !can(port.datatype)) {
            Some(Port { name, datatype, .. }) => {
                let reason = format!("it cannot do {datatype}, the datatype of `{name}`");
                Err(LoadError::Model { backend, reason })
            }
            None => Ok(()),
        }
    }
}

/// Refuses, in the name of an engine that reads ONNX and runs it on the processor, whatever else is asked.
pub(super) fn accept(backend: &'static str, model: &ModelFile) -> Result<(), LoadError> {
    if model.encoding != Encoding::Onnx {
        return Err(LoadError::Encoding { backend, encoding: model.encoding.name() });
    }
    if model.target != ExecutionTarget::Cpu {
        let reason = "it runs on the processor only; choose the target `cpu` or another backend".to_owned();
        return Err(LoadError::Target { backend, target: model.target.name(), reason });
    }
    if model.precision != Precision::F32 {
        let reason = "it computes in `f32` only, not in `bf16`".to_owned();
        return Err(LoadError::Model { backend, reason });
    }
    Ok(())
}

/// What a file says of its inputs and outputs.
///
/// # Errors
/// Where it cannot be read, or is not ONNX.
pub fn signature(path: &Path) -> Result<Signature, String> {
    declared(path).map(|declared| declared.signature).map_err(|error| error.to_string())
}

/// Reads the signature of a file. An input that is also an initializer is a weight, not an input.
pub(super) fn declared(path: &Path) -> Result<Declared, OnnxError> {
    let file = File::open(path)?;
    let end = file.metadata()?.len();
    let mut graph = Values::default();
    // The numbers here and below are those of the fields in onnx.proto.
    Reader { file: BufReader::new(file), at: 0 }.message(end, &mut |reader, field| match field {
        (7, Field::Message(end)) => graph.read(reader, end),
        _ => Ok(()),
    })?;
    let inputs = graph.inputs.into_iter().filter(|value| !graph.weights.contains(&value.name));
    let (inputs, symbols): (Vec<_>, _) =
        inputs.map(Value::port).collect::<Result<Vec<_>, _>>()?.into_iter().unzip();
    let outputs = graph.outputs.into_iter().map(|value| Ok(value.port()?.0));
    let outputs = outputs.collect::<Result<Vec<_>, OnnxError>>()?;
    if outputs.is_empty() {
        return Err(OnnxError::NoOutputs);
    }
    Ok(Declared { signature: Signature { inputs, outputs }, symbols })
}

/// The values at the edges of a graph.
#[derive(Default)]
struct Values {
    inputs: Vec<Value>,
    outputs: Vec<Value>,
    weights: HashSet<String>,
}

impl Values {
    fn read(&mut self, reader: &mut Reader, end: u64) -> Result<(), OnnxError> {
        reader.message(end, &mut |reader, field| {
            match field {
                (5, Field::Message(end)) => reader.message(end, &mut |reader, field| {
                    if let (8, Field::Message(end)) = field {
                        self.weights.insert(reader.text(end)?);
                    }
                    Ok(())
                })?,
                (11, Field::Message(end)) => self.inputs.push(Value::read(reader, end)?),
                (12, Field::Message(end)) => self.outputs.push(Value::read(reader, end)?),
                _ => {}
            }
            Ok(())
        })
    }
}

/// A value as the file tells it.
#[derive(Default)]
struct Value {
    name: String,
    datatype: Option<u64>,
    dims: Option<Vec<Dim>>,
}

enum Dim {
    Unknown,
    Fixed(i64),
    Symbol(String),
}

impl Value {
    fn read(reader: &mut Reader, end: u64) -> Result<Value, OnnxError> {
        let mut value = Value::default();
        reader.message(end, &mut |reader, field| {
            match field {
                (1, Field::Message(end)) => value.name = reader.text(end)?,
                (2, Field::Message(end)) => reader.message(end, &mut |reader, field| match field {
                    (1, Field::Message(end)) => value.read_tensor(reader, end),
                    _ => Ok(()),
                })?,
                _ => {}
            }
            Ok(())
        })?;
        Ok(value)
    }

    fn read_tensor(&mut self, reader: &mut Reader, end: u64) -> Result<(), OnnxError> {
        reader.message(end, &mut |reader, field| {
            match field {
                (1, Field::Number(datatype)) => self.datatype = Some(datatype),
                (2, Field::Message(end)) => {
                    let dims = self.dims.get_or_insert_default();
                    reader.message(end, &mut |reader, field| {
                        if let (1, Field::Message(end)) = field {
                            dims.push(Dim::read(reader, end)?);
                        }
                        Ok(())
                    })?;
                }
                _ => {}
            }
            Ok(())
        })
    }

    /// The value as a port, and the symbols of its dimensions.
    fn port(self) -> Result<(Port, Vec<Option<String>>), OnnxError> {
        let Value { name, datatype: number, dims } = self;
        let Some(number) = number else { return Err(OnnxError::NotTensor(name)) };
        let Some(datatype) = datatype(number) else { return Err(OnnxError::Datatype { name, number }) };
        let mut symbols = Vec::new();
        let mut shape = dims.as_ref().map(|_| Vec::new());
        for dim in dims.into_iter().flatten() {
            let (size, symbol) = match dim {
                // -1 is what exporters write, against the standard, for a size that they do not know.
                Dim::Unknown | Dim::Fixed(-1) => (None, None),
                Dim::Fixed(size) => match usize::try_from(size) {
                    Ok(size) => (Some(size), None),
                    Err(_) => return Err(OnnxError::Dimension { name, size }),
                },
                // `?` and the empty name stand for another unknown each time.
                Dim::Symbol(symbol) => (None, Some(symbol).filter(|name| !matches!(&**name, "" | "?"))),
            };
            shape.get_or_insert_default().push(size);
            symbols.push(symbol);
        }
        Ok((Port { name, datatype, shape }, symbols))
    }
}

impl Dim {
    fn read(reader: &mut Reader, end: u64) -> Result<Dim, OnnxError> {
        let mut dim = Dim::Unknown;
        reader.message(end, &mut |reader, field| {
            match field {
                (1, Field::Number(size)) => dim = Dim::Fixed(size.cast_signed()),
                (2, Field::Message(end)) => dim = Dim::Symbol(reader.text(end)?),
                _ => {}
            }
            Ok(())
        })?;
        Ok(dim)
    }
}

fn datatype(number: u64) -> Option<Datatype> {
    match number {
        1 => Some(Datatype::Fp32),
        2 => Some(Datatype::Uint8),
        3 => Some(Datatype::Int8),
        4 => Some(Datatype::Uint16),
        5 => Some(Datatype::Int16),
        6 => Some(Datatype::Int32),
        7 => Some(Datatype::Int64),
        8 => Some(Datatype::Bytes),
        9 => Some(Datatype::Bool),
        10 => Some(Datatype::Fp16),
        11 => Some(Datatype::Fp64),
        12 => Some(Datatype::Uint32),
        13 => Some(Datatype::Uint64),
        16 => Some(Datatype::Bf16),
        // Complex numbers, and numbers of fewer than eight bits or of eight with a point.
        _ => None,
    }
}

/// Walks protobuf in a file; what nobody asks for is skipped, not read.
struct Reader {
    file: BufReader<File>,
    at: u64,
}

/// The content of a field: a number, or the position at which its bytes end.
#[derive(Clone, Copy)]
enum Field {
    Number(u64),
    Message(u64),
    Fixed,
}

/// Is given each field of a message with its number; what it leaves unread of the field is skipped.
type Visit<'a> = &'a mut dyn FnMut(&mut Reader, (u64, Field)) -> Result<(), OnnxError>;

impl Reader {
    fn message(&mut self, end: u64, visit: Visit<'_>) -> Result<(), OnnxError> {
        while self.at < end {
            let tag = self.varint(end)?;
            let (next, field) = match tag & 7 {
                0 => {
                    let number = self.varint(end)?;
                    (self.at, Field::Number(number))
                }
                1 => (self.at + 8, Field::Fixed),
                2 => {
                    let length = self.varint(end)?;
                    let next = self.at.checked_add(length).ok_or(OnnxError::Malformed(self.at))?;
                    (next, Field::Message(next))
                }
                5 => (self.at + 4, Field::Fixed),
                _ => return Err(OnnxError::Malformed(self.at)),
            };
            if next > end || tag >> 3 == 0 {
                return Err(OnnxError::Malformed(self.at));
            }
            visit(self, (tag >> 3, field))?;
            self.skip_to(next)?;
        }
        Ok(())
    }

    fn varint(&mut self, end: u64) -> Result<u64, OnnxError> {
        let mut number = 0;
        for shift in (0..64).step_by(7) {
            if self.at >= end {
                break;
            }
            let mut byte = [0];
            self.file.read_exact(&mut byte)?;
            self.at += 1;
            number |= u64::from(byte[0] & 0x7f) << shift;
            if byte[0] < 0x80 {
                return Ok(number);
            }
        }
        Err(OnnxError::Malformed(self.at))
    }

    fn text(&mut self, end: u64) -> Result<String, OnnxError> {
        let length = end - self.at;
        if length > MAX_NAME {
            return Err(OnnxError::Malformed(self.at));
        }
        let mut text = String::new();
        let read = (&mut self.file).take(length).read_to_string(&mut text);
        read.map_err(|_| OnnxError::Malformed(self.at))?;
        self.at = end;
        Ok(text)
    }

    fn skip_to(&mut self, position: u64) -> Result<(), OnnxError> {
        let distance = i64::try_from(position - self.at).map_err(|_| OnnxError::Malformed(self.at))?;
        self.file.seek_relative(distance)?;
        self.at = position;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    fn model(name: &str) -> std::path::PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("../tests/models/{name}.onnx"))
    }

    #[test]
    fn the_file_tells_names_datatypes_and_open_dimensions() {
        let declared = declared(&model("two_outputs")).unwrap();
        let port = |name: &str, datatype, shape: &[Option<usize>]| Port {
            name: name.to_owned(),
            datatype,
            shape: Some(shape.to_vec()),
        };
        assert_eq!(declared.signature.inputs, [port("x", Datatype::Fp32, &[None, Some(4)])]);
        let outputs =
            [port("double", Datatype::Fp32, &[None, Some(4)]), port("argmax", Datatype::Int64, &[None])];
        assert_eq!(declared.signature.outputs, outputs);
        assert_eq!(declared.symbols, [[Some("batch".to_owned()), None]]);
    }

    #[test]
    fn weights_are_no_inputs() {
        let declared = declared(&model("dynamic_seq")).unwrap();
        assert_eq!(declared.signature.inputs.len(), 1);
        assert!(declared.same_symbols(&[vec![2, 3]]).is_ok());
    }

    #[test]
    fn no_damage_makes_it_panic() {
        let whole = std::fs::read(model("two_outputs")).unwrap();
        let check = |bytes: &[u8]| {
            let mut file = tempfile::NamedTempFile::new().unwrap();
            file.write_all(bytes).unwrap();
            declared(file.path()).is_ok()
        };
        assert!(check(&whole));
        for end in 0..whole.len() {
            check(&whole[..end]);
        }
        assert!(!check(&whole[..whole.len() / 2]));
        for index in 0..whole.len() {
            for value in [0, 0x7f, 0x80, 0xff, whole[index] ^ 1, whole[index] ^ 0x10] {
                let mut damaged = whole.clone();
                damaged[index] = value;
                check(&damaged);
            }
        }
    }
}

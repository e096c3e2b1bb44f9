//! Reads from an ONNX file what OpenVINO loses: the names of the model's inputs and outputs.
//!
//! OpenVINO removes nodes that do nothing and gives the names of what remains, so that an input may come back
//! under the name of an inner value. Only the outermost fields of the protobuf are looked at.

use std::collections::HashSet;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};

/// Names of inputs and outputs, in the model's order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Names {
    pub(super) inputs: Vec<String>,
    pub(super) outputs: Vec<String>,
}

/// Fields of `ModelProto`, `GraphProto`, `TensorProto` and `ValueInfoProto`.
const MODEL_GRAPH: u64 = 7;
const GRAPH_INITIALIZER: u64 = 5;
const GRAPH_INPUT: u64 = 11;
const GRAPH_OUTPUT: u64 = 12;
const TENSOR_NAME: u64 = 8;
const VALUE_NAME: u64 = 1;

/// The names in `file`, or `None` where it is not an ONNX model.
pub(super) fn names(file: File) -> io::Result<Option<Names>> {
    let length = file.metadata()?.len();
    let mut reader = Reader { source: BufReader::new(file), left: length };
    let mut names = None;
    match reader.message(|field, reader| {
        if field == MODEL_GRAPH { graph(reader).map(|graph| names = Some(graph)) } else { Ok(()) }
    }) {
        Ok(()) => Ok(names),
        Err(error) if matches!(error.kind(), io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof) => {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

fn graph(reader: &mut Reader<impl BufRead + Seek>) -> io::Result<Names> {
    let mut names = Names::default();
    let mut weights = HashSet::new();
    reader.message(|field, reader| {
        match field {
            GRAPH_INITIALIZER => {
                weights.insert(name(reader, TENSOR_NAME)?);
            }
            GRAPH_INPUT => names.inputs.push(name(reader, VALUE_NAME)?),
            GRAPH_OUTPUT => names.outputs.push(name(reader, VALUE_NAME)?),
            _ => {}
        }
        Ok(())
    })?;
    // Old models list their weights among the inputs.
    names.inputs.retain(|name| !weights.contains(name));
    Ok(names)
}

fn name(reader: &mut Reader<impl BufRead + Seek>, wanted: u64) -> io::Result<String> {
    let mut name = String::new();
    reader.message(|field, reader| {
        if field == wanted {
            name = reader.text()?;
        }
        Ok(())
    })?;
    Ok(name)
}

/// Skips without reading; of the traits in std, `Seek` cannot do that inside a buffer.
trait Seek {
    fn skip(&mut self, bytes: u64) -> io::Result<()>;
}

impl Seek for BufReader<File> {
    fn skip(&mut self, bytes: u64) -> io::Result<()> {
        self.seek_relative(i64::try_from(bytes).map_err(|_| invalid())?)
    }
}

/// A protobuf message of which `left` bytes are unread.
struct Reader<R> {
    source: R,
    left: u64,
}

impl<R: BufRead + Seek> Reader<R> {
    /// Calls `visit` for each length-delimited field, with the reader at its content; what `visit` leaves
    /// unread is skipped.
    fn message(&mut self, mut visit: impl FnMut(u64, &mut Reader<R>) -> io::Result<()>) -> io::Result<()> {
        while self.left > 0 {
            let key = self.varint()?;
            match key & 7 {
                0 => drop(self.varint()?),
                1 => self.skip(8)?,
                2 => {
                    let length = self.varint()?;
                    let after = self.left.checked_sub(length).ok_or_else(invalid)?;
                    self.left = length;
                    visit(key >> 3, self)?;
                    self.skip(self.left)?;
                    self.left = after;
                }
                5 => self.skip(4)?,
                _ => return Err(invalid()),
            }
        }
        Ok(())
    }

    fn varint(&mut self) -> io::Result<u64> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let mut byte = [0];
            self.left = self.left.checked_sub(1).ok_or_else(invalid)?;
            self.source.read_exact(&mut byte)?;
            value |= u64::from(byte[0] & 0x7f) << shift;
            if byte[0] < 0x80 {
                return Ok(value);
            }
        }
        Err(invalid())
    }

    fn skip(&mut self, bytes: u64) -> io::Result<()> {
        self.left = self.left.checked_sub(bytes).ok_or_else(invalid)?;
        self.source.skip(bytes)
    }

    fn text(&mut self) -> io::Result<String> {
        let mut text = String::new();
        // `left` was checked against the file's length, so this allocates no more than the file has.
        self.source.by_ref().take(self.left).read_to_string(&mut text)?;
        self.left -= text.len() as u64;
        Ok(text)
    }
}

fn invalid() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "not an ONNX model")
}

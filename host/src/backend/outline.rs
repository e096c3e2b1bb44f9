//! What an ONNX file declares, read without an engine, so that what an engine must not see never reaches it.

#![cfg_attr(not(feature = "onnxruntime"), expect(dead_code, reason = "OpenVINO itself tells the rest"))]

use std::fs::File;
use std::io::{self, BufReader, ErrorKind, Read, Seek};
use std::path::Path;

use super::LoadError;

/// Protobuf's own limit on nested messages.
const MAX_DEPTH: usize = 100;
const MAX_NAME: u64 = 64 * 1024;

/// The parts of an ONNX file that decide how it is loaded.
#[derive(Debug, Default)]
pub(super) struct Outline {
    /// The graph's inputs, among them initializers that a caller may override, and its outputs.
    ports: Vec<(String, Declared)>,
    /// Whether a tensor anywhere in the file keeps its data in another file.
    external_data: bool,
}

#[derive(Debug, Default)]
struct Declared {
    /// What it is where it is no tensor.
    other: Option<&'static str>,
    ranked: bool,
    dims: usize,
    fixed_dims: usize,
}

/// Why a file is no ONNX model that can be looked through.
#[derive(Debug)]
enum OutlineError {
    Io(io::Error),
    Malformed(&'static str),
}

impl From<io::Error> for OutlineError {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            ErrorKind::UnexpectedEof => OutlineError::Malformed("it is cut short"),
            _ => OutlineError::Io(error),
        }
    }
}

impl Outline {
    /// Reads the structure of the file, skipping weights.
    fn read(path: &Path) -> Result<Outline, OutlineError> {
        let file = File::open(path)?;
        let length = file.metadata()?.len();
        Walk::new(BufReader::new(file), length).outline()
    }

    /// The outline of a model that is whole in its file. An engine would follow it to other files, and beside
    /// it in the host's cache lie the models of others.
    ///
    /// # Errors
    /// In the name of `backend`, where the file is no model or points to other files.
    pub(super) fn of_whole(path: &Path, backend: &'static str) -> Result<Outline, LoadError> {
        let refused = |reason| Err(LoadError::Model { backend, reason });
        match Outline::read(path) {
            Ok(outline) if outline.external_data => refused(
                "it keeps weights in other files, which is not supported; save it as one file".to_owned(),
            ),
            Ok(outline) => Ok(outline),
            Err(OutlineError::Io(error)) => Err(LoadError::Io(error)),
            Err(OutlineError::Malformed(what)) => refused(format!("it is not an ONNX model: {what}")),
        }
    }

    /// The name and kind of an input or output that is no tensor.
    pub(super) fn other_kind(&self) -> Option<(&str, &'static str)> {
        self.ports.iter().find_map(|(name, port)| Some((name.as_str(), port.other?)))
    }

    /// Whether the file fixes the rank of the input or output.
    pub(super) fn is_ranked(&self, port: &str) -> bool {
        self.ports.iter().any(|(name, declared)| name == port && declared.ranked)
    }

    /// Whether every dimension of every input and output is a number.
    pub(super) fn is_static(&self) -> bool {
        self.ports.iter().all(|(_, port)| port.ranked && port.dims == port.fixed_dims)
    }
}

/// The protobuf messages that lead to a tensor or describe an input or output.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Message {
    Model,
    Function,
    Graph,
    Node,
    Attribute,
    SparseTensor,
    Tensor,
    Port,
    Type,
    TensorType,
    Shape,
    Dim,
}

impl Message {
    /// The message in this field, by the numbers of `onnx.proto3`; `None` for what is skipped.
    fn field(self, number: u32) -> Option<Message> {
        use Message::*;
        Some(match (self, number) {
            (Model, 7) | (Attribute, 6 | 11) => Graph,
            (Model, 25) => Function,
            (Graph, 1) | (Function, 7) => Node,
            (Graph, 5) | (Attribute, 5 | 10) | (SparseTensor, 1 | 2) => Tensor,
            (Graph, 15) | (Attribute, 22 | 23) => SparseTensor,
            (Graph, 11 | 12) => Port,
            (Node, 5) | (Function, 11) => Attribute,
            (Port, 2) => Type,
            (Type, 1) => TensorType,
            (TensorType, 2) => Shape,
            (Shape, 1) => Dim,
            _ => return None,
        })
    }
}

/// A walk through the file on a stack of its own: hostile nesting costs no call frames.
struct Walk<R> {
    reader: R,
    at: u64,
    /// Open messages and where they end.
    open: Vec<(Message, u64)>,
    name: String,
    port: Declared,
    outline: Outline,
}

impl<R: Read + Seek> Walk<R> {
    fn new(reader: R, length: u64) -> Walk<R> {
        let open = vec![(Message::Model, length)];
        Walk {
            reader,
            at: 0,
            open,
            name: String::new(),
            port: Declared::default(),
            outline: Outline::default(),
        }
    }

    fn outline(mut self) -> Result<Outline, OutlineError> {
        let mut has_graph = false;
        while let Some(&(message, end)) = self.open.last() {
            if self.at < end {
                self.field(message, end)?;
                has_graph |= self.open.last().is_some_and(|(message, _)| *message == Message::Graph);
            } else if self.at == end {
                self.close(message);
            } else {
                return Err(OutlineError::Malformed("a field is longer than what holds it"));
            }
        }
        if has_graph { Ok(self.outline) } else { Err(OutlineError::Malformed("it has no graph")) }
    }

    fn field(&mut self, message: Message, end: u64) -> Result<(), OutlineError> {
        // Protobuf cuts a longer tag off, and so would see other fields than we do.
        let tag = u32::try_from(self.varint()?)
            .map_err(|_| OutlineError::Malformed("it is not in ONNX's format"))?;
        let number = tag >> 3;
        match tag & 7 {
            0 => {
                let value = self.varint()?;
                self.number(message, number, value);
                Ok(())
            }
            1 => self.skip(8, end),
            2 => self.length_delimited(message, number, end),
            5 => self.skip(4, end),
            _ => Err(OutlineError::Malformed("it is not in ONNX's format")),
        }
    }

    fn number(&mut self, message: Message, number: u32, value: u64) {
        match (message, number) {
            (Message::Tensor, 14) if value != 0 => self.outline.external_data = true,
            (Message::Dim, 1) if value.cast_signed() >= 0 => self.port.fixed_dims += 1,
            _ => {}
        }
    }

    fn length_delimited(&mut self, message: Message, number: u32, end: u64) -> Result<(), OutlineError> {
        let length = self.varint()?;
        if length > end.saturating_sub(self.at) {
            return Err(OutlineError::Malformed("a field is longer than what holds it"));
        }
        match (message, number) {
            (Message::Tensor, 13) => self.outline.external_data = true,
            (Message::Type, 4) => self.port.other = Some("a sequence"),
            (Message::Type, 5) => self.port.other = Some("a map"),
            (Message::Type, 7) => self.port.other = Some("an opaque value"),
            (Message::Type, 8) => self.port.other = Some("a sparse tensor"),
            (Message::Type, 9) => self.port.other = Some("an optional value"),
            (Message::Port, 1) => {
                self.name = self.text(length)?;
                return Ok(());
            }
            _ => {}
        }
        match message.field(number) {
            // Inputs and outputs of nested graphs are none of the model's.
            Some(Message::Port) if self.open.len() > 2 => self.skip(length, end),
            Some(inner) => self.enter(inner, self.at + length),
            None => self.skip(length, end),
        }
    }

    fn enter(&mut self, message: Message, end: u64) -> Result<(), OutlineError> {
        if self.open.len() >= MAX_DEPTH {
            return Err(OutlineError::Malformed("it is nested too deeply"));
        }
        match message {
            Message::Shape => self.port.ranked = true,
            Message::Dim => self.port.dims += 1,
            _ => {}
        }
        self.open.push((message, end));
        Ok(())
    }

    fn close(&mut self, message: Message) {
        self.open.pop();
        if message == Message::Port {
            let (name, port) = (std::mem::take(&mut self.name), std::mem::take(&mut self.port));
            self.outline.ports.push((name, port));
        }
    }

    fn skip(&mut self, length: u64, end: u64) -> Result<(), OutlineError> {
        if length > end.saturating_sub(self.at) {
            return Err(OutlineError::Malformed("a field is longer than what holds it"));
        }
        let step = i64::try_from(length).map_err(|_| OutlineError::Malformed("a field is too long"))?;
        self.reader.seek_relative(step)?;
        self.at += length;
        Ok(())
    }

    fn text(&mut self, length: u64) -> Result<String, OutlineError> {
        if length > MAX_NAME {
            return Err(OutlineError::Malformed("a name is too long"));
        }
        let mut bytes = Vec::new();
        (&mut self.reader).take(length).read_to_end(&mut bytes)?;
        self.at += length;
        String::from_utf8(bytes).map_err(|_| OutlineError::Malformed("a name is not UTF-8"))
    }

    fn varint(&mut self) -> Result<u64, OutlineError> {
        let mut value = 0;
        for shift in (0..70).step_by(7) {
            let mut byte = [0];
            self.reader.read_exact(&mut byte)?;
            self.at += 1;
            value |= u64::from(byte[0] & 0x7f).wrapping_shl(shift);
            if byte[0] < 0x80 {
                return Ok(value);
            }
        }
        Err(OutlineError::Malformed("it is not in ONNX's format"))
    }
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use super::*;

    fn field(number: u8, content: &[u8]) -> Vec<u8> {
        let length = u8::try_from(content.len()).unwrap();
        assert!(length < 0x80);
        [&[number << 3 | 2, length], content].concat()
    }

    fn check(model: &[u8], expected: Result<&[&str], &str>) {
        let length = model.len() as u64;
        match (Walk::new(Cursor::new(model), length).outline(), expected) {
            (Ok(outline), Ok(facts)) => {
                let mut found = vec![];
                found.extend(outline.external_data.then(|| "external".to_owned()));
                found.extend(outline.other_kind().map(|(name, kind)| format!("{name} {kind}")));
                found.extend(outline.is_ranked("x").then(|| "ranked".to_owned()));
                found.extend(outline.is_static().then(|| "static".to_owned()));
                assert_eq!(found, facts);
            }
            (Err(OutlineError::Malformed(actual)), Err(expected)) => {
                assert!(actual.contains(expected), "{actual}")
            }
            (actual, expected) => panic!("{actual:?}, expected {expected:?}"),
        }
    }

    #[test]
    fn a_file_is_known_before_it_is_loaded() {
        let dim = |bytes: &[u8]| field(1, bytes);
        let shape = |dims: &[Vec<u8>]| field(2, &dims.concat());
        let input =
            |kind: u8, content: &[u8]| field(11, &[field(1, b"x"), field(2, &field(kind, content))].concat());
        let model = |content: &[u8]| field(7, content);

        check(&model(&input(1, &shape(&[dim(&[8, 3])]))), Ok(&["ranked", "static"]));
        check(&model(&input(1, &shape(&[]))), Ok(&["ranked", "static"]));
        check(&model(&input(1, &shape(&[dim(&[8, 3]), dim(b"\x12\x01n")]))), Ok(&["ranked"]));
        check(&model(&input(1, &[8, 1])), Ok(&[]));
        check(&model(&input(4, &[])), Ok(&["x a sequence"]));
        check(&model(&input(9, &[])), Ok(&["x an optional value"]));
        let external = [0x70, 1];
        check(&model(&field(5, &external)), Ok(&["external", "static"]));
        check(&model(&field(5, &field(13, &[]))), Ok(&["external", "static"]));
        // A weight inside the branch of an `If`, which is a graph in an attribute of a node.
        let branch = field(1, &field(5, &field(6, &field(5, &external))));
        check(&model(&branch), Ok(&["external", "static"]));
        let long_tag = [0xf0, 0x80, 0x80, 0x80, 0x10, 1];
        check(&model(&field(5, &long_tag)), Err("not in ONNX's format"));
        check(&[], Err("no graph"));
        check(b"7 is not a model", Err("not in ONNX's format"));
        check(&model(&[0x0a, 100]), Err("longer than what holds it"));
        check(&[0x3a, 0x80], Err("cut short"));
    }
}

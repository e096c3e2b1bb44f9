//! Adds to a model in ONNX by adding to its file: of two parts of one protobuf message, the second continues the first.

/// `ModelProto.graph`, `ModelProto.doc_string`.
const GRAPH: u64 = 7;
const MODEL_DOC: u64 = 6;
/// `GraphProto.initializer`.
const INITIALIZER: u64 = 5;
/// `TensorProto.dims`, `.data_type`, `.name`, `.raw_data`.
const DIMS: u64 = 1;
const DATA_TYPE: u64 = 2;
const NAME: u64 = 8;
const RAW_DATA: u64 = 9;
const FLOAT: u64 = 1;

/// A note in the model's documentation: other bytes, the same model.
pub fn note(text: &str) -> Vec<u8> {
    field(MODEL_DOC, text.as_bytes())
}

/// Weights that no node uses, of about so many bytes; others for each seed, and of no pattern that could be packed.
pub fn initializer(name: &str, bytes: usize, seed: u32) -> Vec<u8> {
    let count = bytes / 4;
    let mut state = 0x9e37_79b9_7f4a_7c15_u64 ^ (u64::from(seed) << 32);
    let mut data = Vec::with_capacity(count * 4);
    for _ in 0..count {
        // Xorshift, of which the mantissa of a number from 1 to 2 is taken.
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        data.extend((0x3f80_0000 | (state >> 41) as u32).to_le_bytes());
    }
    let tensor = [
        number(DIMS, count as u64),
        number(DATA_TYPE, FLOAT),
        field(NAME, name.as_bytes()),
        field(RAW_DATA, &data),
    ];
    field(GRAPH, &field(INITIALIZER, &tensor.concat()))
}

fn field(number: u64, content: &[u8]) -> Vec<u8> {
    let mut bytes = varint(number << 3 | 2);
    bytes.extend(varint(content.len() as u64));
    bytes.extend(content);
    bytes
}

fn number(field: u64, value: u64) -> Vec<u8> {
    [varint(field << 3), varint(value)].concat()
}

fn varint(mut value: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    while value >= 0x80 {
        bytes.push(value as u8 | 0x80);
        value >>= 7;
    }
    bytes.push(value as u8);
    bytes
}

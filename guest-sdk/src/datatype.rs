//! The names and sizes of the datatypes.

use crate::Datatype;

/// The name in the Open Inference Protocol, such as `FP32`.
pub(crate) fn name(datatype: Datatype) -> &'static str {
    match datatype {
        Datatype::Bool => "BOOL",
        Datatype::Uint8 => "UINT8",
        Datatype::Uint16 => "UINT16",
        Datatype::Uint32 => "UINT32",
        Datatype::Uint64 => "UINT64",
        Datatype::Int8 => "INT8",
        Datatype::Int16 => "INT16",
        Datatype::Int32 => "INT32",
        Datatype::Int64 => "INT64",
        Datatype::Fp16 => "FP16",
        Datatype::Bf16 => "BF16",
        Datatype::Fp32 => "FP32",
        Datatype::Fp64 => "FP64",
        Datatype::Bytes => "BYTES",
    }
}

/// Bytes an element, where that is fixed.
#[cfg(not(target_family = "wasm"))]
pub(crate) fn element_bytes(datatype: Datatype) -> Option<u64> {
    match datatype {
        Datatype::Bool | Datatype::Uint8 | Datatype::Int8 => Some(1),
        Datatype::Uint16 | Datatype::Int16 | Datatype::Fp16 | Datatype::Bf16 => Some(2),
        Datatype::Uint32 | Datatype::Int32 | Datatype::Fp32 => Some(4),
        Datatype::Uint64 | Datatype::Int64 | Datatype::Fp64 => Some(8),
        Datatype::Bytes => None,
    }
}

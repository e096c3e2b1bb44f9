//! The host's modules that read REST messages, with as little around them as they need, and what the targets share.
//!
//! The types of `backend` and `instance` stand here again, since the files that they are in hold the host's engines too.
//! A field that is missing here does not compile.

use backend::{Port, Signature};
use instance::typed::Description;
use tensor::{Datatype, Tensor};

#[path = "../../src/backend"]
pub mod backend {
    use crate::tensor::Datatype;

    pub mod validate;

    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct Priority(pub u32);

    #[derive(Clone, Debug, PartialEq, Eq)]
    pub struct Port {
        pub name: String,
        pub datatype: Datatype,
        pub shape: Option<Vec<Option<usize>>>,
    }

    #[derive(Clone, Debug, Default, PartialEq, Eq)]
    pub struct Signature {
        pub inputs: Vec<Port>,
        pub outputs: Vec<Port>,
    }
}

pub mod instance {
    pub mod typed {
        use crate::backend::{Priority, Signature};
        use crate::tensor::Tensor;

        #[derive(Clone, Debug, Default)]
        pub struct Request {
            pub inputs: Vec<(String, Tensor)>,
            pub parameters: Vec<(String, Parameter)>,
            pub outputs: Vec<String>,
            pub priority: Priority,
        }

        #[derive(Clone, Debug, Default)]
        pub struct Reply {
            pub outputs: Vec<(String, Tensor)>,
            pub parameters: Vec<(String, Parameter)>,
        }

        #[derive(Clone, Debug, PartialEq)]
        pub enum Parameter {
            Bool(bool),
            Int64(i64),
            Uint64(u64),
            Double(f64),
            Text(String),
        }

        #[derive(Clone, Debug, Default)]
        pub struct Description {
            pub signature: Signature,
            pub accepts: Vec<String>,
            pub answers: Option<String>,
        }
    }
}

#[path = "../../src/serve"]
pub mod serve {
    pub mod json;
    pub mod oip {
        pub mod binary;
        pub mod compression;
        pub mod generate;
        pub mod message;
    }

    /// Whether the host takes a text for JSON; the error is its refusal.
    pub fn is_json(text: &[u8]) -> Result<(), json::Refused> {
        json::scan::Scan::check(text)
    }
}

#[path = "../../src/tensor.rs"]
pub mod tensor;

/// One of a few descriptions, whose outputs are its inputs: one tensor of each datatype, and some of two.
pub fn description(choice: u8) -> Description {
    let port = |name: &str, datatype, shape: &[Option<usize>]| Port {
        name: name.to_owned(),
        datatype,
        shape: Some(shape.to_vec()),
    };
    let inputs = match Datatype::ALL.get(usize::from(choice % 16)) {
        Some(datatype) => vec![port("x", *datatype, &[None])],
        None if choice % 16 == 14 => {
            vec![port("x", Datatype::Fp32, &[None, Some(2)]), port("s", Datatype::Bytes, &[None])]
        }
        None => vec![
            port("x", Datatype::Int64, &[None, Some(2), None]),
            port("b", Datatype::Bool, &[]),
            port("s", Datatype::Bytes, &[Some(1), Some(1)]),
        ],
    };
    let outputs = inputs.clone();
    Description { signature: Signature { inputs, outputs }, ..Description::default() }
}

/// Counts the bytes that are asked for.
#[derive(Default)]
pub struct Asked(pub usize);

impl Asked {
    pub fn more(&mut self, bytes: usize) -> bool {
        self.0 += bytes;
        true
    }

    /// What the host promises of a body's length.
    pub fn check(&self, body: usize) {
        assert!(self.0 <= 4 * body + 64, "{} bytes are asked for {body}", self.0);
    }
}

/// The numbers that stand somewhere in a value, in their order.
pub fn numbers(value: &serde_json::Value, into: &mut Vec<f64>) {
    match value {
        serde_json::Value::Array(values) => values.iter().for_each(|value| numbers(value, into)),
        serde_json::Value::Number(number) => into.extend(number.as_f64()),
        _ => {}
    }
}

/// The tensors as the JSON of binary inputs.
pub fn heads(tensors: &[(String, Tensor)]) -> serde_json::Value {
    let head = |(name, tensor): &(String, Tensor)| {
        serde_json::json!({
            "name": name,
            "datatype": tensor.datatype().name(),
            "shape": tensor.shape(),
            "parameters": { "binary_data_size": tensor.data().len() },
        })
    };
    tensors.iter().map(head).collect()
}

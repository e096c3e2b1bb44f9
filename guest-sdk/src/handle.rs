//! A tensor where the host keeps it; outside wasm, for unit tests, a stand-in that keeps it here.

#[cfg(target_family = "wasm")]
pub(crate) use crate::bindings::tenon::function::tensors::Tensor as Handle;

#[cfg(not(target_family = "wasm"))]
pub(crate) use stand_in::Handle;

#[cfg(not(target_family = "wasm"))]
mod stand_in {
    use crate::{Datatype, datatype};

    /// The same fns as the host's resource.
    #[derive(Debug)]
    pub(crate) struct Handle {
        datatype: Datatype,
        shape: Vec<u64>,
        data: Vec<u8>,
    }

    impl Handle {
        pub(crate) fn create(datatype: Datatype, shape: &[u64], data: &[u8]) -> Result<Self, String> {
            let elements: u64 = shape.iter().product();
            match datatype::element_bytes(datatype) {
                Some(bytes) if elements * bytes != data.len() as u64 => {
                    Err(format!("shape {shape:?} does not fit {} bytes of data", data.len()))
                }
                _ => Ok(Self { datatype, shape: shape.to_vec(), data: data.to_vec() }),
            }
        }

        pub(crate) fn datatype(&self) -> Datatype {
            self.datatype
        }

        pub(crate) fn shape(&self) -> Vec<u64> {
            self.shape.clone()
        }

        pub(crate) fn size(&self) -> u64 {
            self.data.len() as u64
        }

        pub(crate) fn data(&self) -> Vec<u8> {
            self.data.clone()
        }
    }
}

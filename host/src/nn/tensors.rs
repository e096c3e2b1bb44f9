//! `tenon:function/tensors` and `nn-tensors`: tensors as resources of the host.

use bytes::Bytes;
use wasmtime::StoreContextMut;
use wasmtime::component::{Linker, Resource};

use super::bindings::tenon::function::{nn_tensors, tensors};
use super::wasi::NnTensor;
use crate::instance::state::State;
use crate::tensor::{Datatype, Tensor};

/// A tensor in an instance's table; its bytes are charged to the instance.
pub struct HostTensor(pub Tensor);

/// What a guest is told when the host may hold no more for it.
pub const OVER_MEMORY: &str = "the function's memory limit is reached";

impl State {
    /// Puts a tensor into the table; `None` where the instance's memory limit forbids it.
    ///
    /// # Errors
    /// Where the table is full.
    pub fn push_tensor(&mut self, tensor: Tensor) -> wasmtime::Result<Option<Resource<HostTensor>>> {
        if !self.limits.charge(tensor.data().len()) {
            return Ok(None);
        }
        Ok(Some(self.table.push(HostTensor(tensor))?))
    }

    /// Takes a tensor out of the table.
    ///
    /// # Errors
    /// Where the guest no longer has it.
    pub fn take_tensor(&mut self, tensor: Resource<HostTensor>) -> wasmtime::Result<Tensor> {
        let tensor = self.table.delete(tensor)?.0;
        self.limits.release(tensor.data().len());
        Ok(tensor)
    }
}

impl tensors::Host for State {}

impl tensors::HostTensor for State {
    fn create(
        &mut self,
        datatype: tensors::Datatype,
        shape: Vec<u64>,
        data: Vec<u8>,
    ) -> wasmtime::Result<Result<Resource<HostTensor>, String>> {
        // A dimension beyond usize saturates, and is then refused for its number of elements.
        let shape = shape.into_iter().map(|dim| usize::try_from(dim).unwrap_or(usize::MAX)).collect();
        match Tensor::new(datatype.into(), shape, Bytes::from(data)) {
            Ok(tensor) => Ok(self.push_tensor(tensor)?.ok_or_else(|| OVER_MEMORY.to_owned())),
            Err(error) => Ok(Err(error.to_string())),
        }
    }

    fn datatype(&mut self, tensor: Resource<HostTensor>) -> wasmtime::Result<tensors::Datatype> {
        Ok(self.table.get(&tensor)?.0.datatype().into())
    }

    fn shape(&mut self, tensor: Resource<HostTensor>) -> wasmtime::Result<Vec<u64>> {
        Ok(self.table.get(&tensor)?.0.shape().iter().map(|dim| *dim as u64).collect())
    }

    fn size(&mut self, tensor: Resource<HostTensor>) -> wasmtime::Result<u64> {
        Ok(self.table.get(&tensor)?.0.data().len() as u64)
    }

    fn data(&mut self, tensor: Resource<HostTensor>) -> wasmtime::Result<Vec<u8>> {
        Ok(self.table.get(&tensor)?.0.data().to_vec())
    }

    fn drop(&mut self, tensor: Resource<HostTensor>) -> wasmtime::Result<()> {
        self.take_tensor(tensor).map(drop)
    }
}

/// Links `data` so that it copies straight from the tensor into the guest.
pub fn link_data(linker: &mut Linker<State>) -> wasmtime::Result<()> {
    linker.instance("tenon:function/tensors@0.1.0")?.func_wrap(
        "[method]tensor.data",
        |store: StoreContextMut<'_, State>, (tensor,): (Resource<HostTensor>,)| {
            Ok((store.data().table.get(&tensor)?.0.data().clone(),))
        },
    )
}

impl nn_tensors::Host for State {
    fn to_nn(
        &mut self,
        tensor: Resource<HostTensor>,
    ) -> wasmtime::Result<Result<Resource<NnTensor>, String>> {
        let tensor = self.take_tensor(tensor)?;
        match NnTensor::try_from(tensor) {
            Ok(tensor) => Ok(self.push_nn(tensor)?.ok_or_else(|| OVER_MEMORY.to_owned())),
            Err(reason) => Ok(Err(reason)),
        }
    }

    fn from_nn(
        &mut self,
        tensor: Resource<NnTensor>,
    ) -> wasmtime::Result<Result<Resource<HostTensor>, String>> {
        match self.take_nn(tensor)?.checked() {
            Ok(tensor) => Ok(self.push_tensor(tensor)?.ok_or_else(|| OVER_MEMORY.to_owned())),
            Err(error) => Ok(Err(error.to_string())),
        }
    }
}

impl From<tensors::Datatype> for Datatype {
    fn from(datatype: tensors::Datatype) -> Datatype {
        match datatype {
            tensors::Datatype::Bool => Datatype::Bool,
            tensors::Datatype::Uint8 => Datatype::Uint8,
            tensors::Datatype::Uint16 => Datatype::Uint16,
            tensors::Datatype::Uint32 => Datatype::Uint32,
            tensors::Datatype::Uint64 => Datatype::Uint64,
            tensors::Datatype::Int8 => Datatype::Int8,
            tensors::Datatype::Int16 => Datatype::Int16,
            tensors::Datatype::Int32 => Datatype::Int32,
            tensors::Datatype::Int64 => Datatype::Int64,
            tensors::Datatype::Fp16 => Datatype::Fp16,
            tensors::Datatype::Bf16 => Datatype::Bf16,
            tensors::Datatype::Fp32 => Datatype::Fp32,
            tensors::Datatype::Fp64 => Datatype::Fp64,
            tensors::Datatype::Bytes => Datatype::Bytes,
        }
    }
}

impl From<Datatype> for tensors::Datatype {
    fn from(datatype: Datatype) -> tensors::Datatype {
        match datatype {
            Datatype::Bool => tensors::Datatype::Bool,
            Datatype::Uint8 => tensors::Datatype::Uint8,
            Datatype::Uint16 => tensors::Datatype::Uint16,
            Datatype::Uint32 => tensors::Datatype::Uint32,
            Datatype::Uint64 => tensors::Datatype::Uint64,
            Datatype::Int8 => tensors::Datatype::Int8,
            Datatype::Int16 => tensors::Datatype::Int16,
            Datatype::Int32 => tensors::Datatype::Int32,
            Datatype::Int64 => tensors::Datatype::Int64,
            Datatype::Fp16 => tensors::Datatype::Fp16,
            Datatype::Bf16 => tensors::Datatype::Bf16,
            Datatype::Fp32 => tensors::Datatype::Fp32,
            Datatype::Fp64 => tensors::Datatype::Fp64,
            Datatype::Bytes => tensors::Datatype::Bytes,
        }
    }
}

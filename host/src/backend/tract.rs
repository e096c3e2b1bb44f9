//! The built-in backend: ONNX models run by tract, by one optimised plan for each tuple of input shapes.
//!
//! tract panics where other engines return errors, on a Gather index out of range for one. Panics are caught
//! here and become errors, the graph stays usable; the process's panic hook still prints them to stderr.

mod plans;
#[cfg(test)]
mod tests;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use bytes::Bytes;
use tract_onnx::prelude::{DatumType, IntoTValue as _, TValue, TVec};
use tract_onnx::tract_core::internal::IntoArcTensor as _;
use tract_onnx::tract_core::plan;
use tract_onnx::tract_hir::internal::{TractResult, bail};

use self::plans::{Plan, Plans};
use super::onnx::{self, Declared};
use super::{
    Backend, Cancel, Encoding, ExecutionTarget, Graph, InferError, LoadError, ModelFile, Signature, Status,
};
use crate::tensor::{Datatype, Tensor};

const NAME: &str = "tract";

/// The version of the tract crates in `Cargo.lock`; a test compares the two.
const VERSION: &str = "0.23.9";

/// The most bytes of an error of tract's that are passed on: it may print whole nodes with their weights.
const MAX_REASON: usize = 400;

/// tract, built into the host.
#[derive(Debug, Default)]
pub struct Tract;

impl Tract {
    pub fn new() -> Tract {
        Tract
    }
}

impl Backend for Tract {
    fn name(&self) -> &'static str {
        NAME
    }

    fn status(&self) -> Status {
        Status {
            available: Ok(()),
            version: VERSION.to_owned(),
            encodings: vec![Encoding::Onnx],
            devices: vec![ExecutionTarget::Cpu],
            library: None,
        }
    }

    fn version(&self) -> String {
        format!("{VERSION} {}", std::env::consts::ARCH)
    }

    fn loads_alone(&self) -> bool {
        true
    }

    fn load(&self, model: &ModelFile) -> Result<Arc<dyn Graph>, LoadError> {
        Ok(Arc::new(TractGraph::load(model)?))
    }
}

struct TractGraph {
    declared: Declared,
    plans: Plans,
}

impl TractGraph {
    fn load(model: &ModelFile) -> Result<TractGraph, LoadError> {
        onnx::accept(NAME, model)?;
        let mut declared = onnx::declared(&model.path).map_err(|error| error.of(NAME))?;
        declared.check(NAME, |datatype| from_datatype(datatype).is_some())?;
        let plans = contained(|| Plans::load(&model.path, &mut declared.signature))
            .map_err(|reason| LoadError::Model { backend: NAME, reason })?;
        Ok(TractGraph { declared, plans })
    }
}

impl Graph for TractGraph {
    fn signature(&self) -> &Signature {
        &self.declared.signature
    }

    fn prefers_few_shapes(&self) -> bool {
        // Each shape has a plan of its own.
        true
    }

    fn runs_on_caller(&self) -> bool {
        true
    }

    fn run(&self, inputs: Vec<Tensor>, cancel: &Cancel) -> Result<Vec<Tensor>, InferError> {
        let shapes: Vec<_> = inputs.iter().map(|tensor| tensor.shape().to_vec()).collect();
        self.declared.same_symbols(&shapes).map_err(InferError::InvalidInput)?;
        if cancel.is_raised() {
            return Err(InferError::Cancelled);
        }
        let plan = self.plans.plan(shapes).map_err(InferError::Failed)?;
        let outcome = contained(|| execute(&plan, &self.declared.signature, inputs, cancel));
        outcome.map_err(InferError::Failed)?.ok_or(InferError::Cancelled)
    }
}

/// Runs a plan node by node; `None` where `cancel` was raised before the last one.
fn execute(
    plan: &Arc<Plan>,
    signature: &Signature,
    inputs: Vec<Tensor>,
    cancel: &Cancel,
) -> TractResult<Option<Vec<Tensor>>> {
    let inputs = inputs.iter().map(from_tenon).collect::<TractResult<TVec<_>>>()?;
    let mut cancelled = false;
    let outputs = plan.spawn()?.run_plan_with_eval(inputs, |context, state, node, inputs| {
        if cancel.is_raised() {
            cancelled = true;
            bail!("cancelled");
        }
        plan::eval(context, state, node, inputs)
    });
    if cancelled {
        return Ok(None);
    }
    let named = outputs?.into_iter().zip(&signature.outputs);
    named.map(|(value, port)| to_tenon(value, port.datatype)).collect::<TractResult<_>>().map(Some)
}

#[expect(unsafe_code, reason = "tract has no safe way to copy bytes into a tensor without clearing it first")]
fn from_tenon(tensor: &Tensor) -> TractResult<TValue> {
    let Some(datatype) = from_datatype(tensor.datatype()) else {
        bail!("tract has no {} tensors", tensor.datatype());
    };
    // SAFETY: every type that `from_datatype` names is plain data for which all bytes are valid, but for
    // BOOL, whose bytes a `Tensor` has checked to be 0 or 1; tract itself checks the length.
    let tensor =
        unsafe { tract_onnx::prelude::Tensor::from_raw_dt(datatype, tensor.shape(), tensor.data())? };
    Ok(tensor.into_tvalue())
}

/// The value as a tensor of ours, which keeps tract's memory instead of copying it.
fn to_tenon(value: TValue, datatype: Datatype) -> TractResult<Tensor> {
    struct Owner(Arc<tract_onnx::prelude::Tensor>);
    impl AsRef<[u8]> for Owner {
        fn as_ref(&self) -> &[u8] {
            self.0.as_bytes()
        }
    }

    let value = value.into_arc_tensor();
    let value = match value.datum_type() {
        // tract computes with dimensions as symbols; by now they are numbers.
        DatumType::TDim => value.cast_to::<i64>()?.into_owned().into_arc_tensor(),
        _ => value,
    };
    if to_datatype(value.datum_type()) != Some(datatype) {
        bail!("tract gives {:?} for an output that is {datatype}", value.datum_type());
    }
    let shape = value.shape().to_vec();
    Ok(Tensor::new(datatype, shape, Bytes::from_owner(Owner(value)))?)
}

/// tract's name of a datatype; `None` for those whose tensors it cannot hold or, like BYTES, not compute with.
fn from_datatype(datatype: Datatype) -> Option<DatumType> {
    match datatype {
        Datatype::Bool => Some(DatumType::Bool),
        Datatype::Uint8 => Some(DatumType::U8),
        Datatype::Uint16 => Some(DatumType::U16),
        Datatype::Uint32 => Some(DatumType::U32),
        Datatype::Uint64 => Some(DatumType::U64),
        Datatype::Int8 => Some(DatumType::I8),
        Datatype::Int16 => Some(DatumType::I16),
        Datatype::Int32 => Some(DatumType::I32),
        Datatype::Int64 => Some(DatumType::I64),
        Datatype::Fp16 => Some(DatumType::F16),
        Datatype::Fp32 => Some(DatumType::F32),
        Datatype::Fp64 => Some(DatumType::F64),
        Datatype::Bf16 | Datatype::Bytes => None,
    }
}

fn to_datatype(datatype: DatumType) -> Option<Datatype> {
    let datatype = match datatype {
        DatumType::TDim => DatumType::I64,
        other => other.unquantized(),
    };
    Datatype::ALL.into_iter().find(|ours| from_datatype(*ours) == Some(datatype))
}

/// What `work` answers; its errors and panics as a text of bounded length.
fn contained<T>(work: impl FnOnce() -> TractResult<T>) -> Result<T, String> {
    // Unwind safety: what `work` shares with later calls are plans and templates, which a run only reads.
    let text = match catch_unwind(AssertUnwindSafe(work)) {
        Ok(Ok(answer)) => return Ok(answer),
        Ok(Err(error)) => format!("{error:#}"),
        Err(panic) => match (panic.downcast_ref::<&str>(), panic.downcast_ref::<String>()) {
            (Some(text), _) => format!("tract panicked: {text}"),
            (_, Some(text)) => format!("tract panicked: {text}"),
            _ => "tract panicked".to_owned(),
        },
    };
    Err(shortened(text))
}

/// A text within [`MAX_REASON`], without its middle where it is longer: where it happened is said first, and
/// what happened last.
fn shortened(text: String) -> String {
    if text.len() <= MAX_REASON {
        return text;
    }
    let head = text.floor_char_boundary(MAX_REASON / 2);
    let tail = text.ceil_char_boundary(text.len() - MAX_REASON / 2);
    format!("{} ... {}", &text[..head], &text[tail..])
}

//! What callers of a function find, as an artifact carries it: its WIT, and its tensors.

use serde::{Deserialize, Serialize};
use wit_component::{DecodedWasm, WitPrinter};

use super::{DESCRIBE_MS, DeployError, Deployer, until};
use crate::artifact::manifest::{Component, Encoding, Source};
use crate::backend::{Port, Signature, onnx};
use crate::instance::log::FunctionLog;
use crate::instance::typed::Description;
use crate::instance::{Program, Surroundings};
use crate::nn::Granted;

/// The interface of one function. It does not depend on the machine that it was made on, nor on its backends.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Interface {
    /// The component's WIT as text, with all that it refers to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub wit: Option<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub inputs: Vec<Tensor>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub outputs: Vec<Tensor>,
    /// Media types of raw bodies that it takes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub accepts: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub answers: Option<String>,
}

/// An input or output.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tensor {
    pub name: String,
    /// The Open Inference Protocol's name of it.
    pub datatype: String,
    /// -1 for a dimension that the caller chooses; absent where the number of dimensions is open.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shape: Option<Vec<i64>>,
}

impl Interface {
    /// What a function that runs says of itself.
    pub fn of(wit: Option<String>, description: &Description) -> Interface {
        let Signature { inputs, outputs } = &description.signature;
        Interface {
            wit,
            inputs: inputs.iter().map(tensor).collect(),
            outputs: outputs.iter().map(tensor).collect(),
            accepts: description.accepts.clone(),
            answers: description.answers.clone(),
        }
    }
}

fn tensor(port: &Port) -> Tensor {
    let dim = |dim: &Option<usize>| dim.map_or(-1, |dim| i64::try_from(dim).unwrap_or(i64::MAX));
    Tensor {
        name: port.name.clone(),
        datatype: port.datatype.name().to_owned(),
        shape: port.shape.as_ref().map(|shape| shape.iter().map(dim).collect()),
    }
}

impl Deployer {
    /// The interface of a component's function. The component is started to describe itself, without its models.
    ///
    /// # Errors
    /// Where it cannot be had, compiled, linked or asked.
    pub async fn interface(&self, name: &str, component: &Component) -> Result<Interface, DeployError> {
        if component.source == Source::Model {
            return Ok(Interface::of(None, &of_model(component)));
        }
        let code = self.code(name, component, &|_| {}).await?;
        let wasm = code.wasm.clone();
        let wit = tokio::task::spawn_blocking(move || wit(&wasm)).await.unwrap_or_default();
        let surroundings = Surroundings {
            engines: std::sync::Arc::clone(&self.engines),
            residency: std::sync::Arc::clone(&self.residency),
            granted: std::sync::Arc::new(Granted::default()),
            take_in: None,
            grants: std::sync::Arc::default(),
            log: FunctionLog::new(&self.logs, &component.id, self.config.log.function_log_mib << 20),
            memory_bytes: usize::try_from(self.config.limits.memory_mib << 20).unwrap_or(usize::MAX),
            table_elements: self.config.limits.table_elements,
            handles: self.config.limits.handles,
        };
        let program = Program::link(&code.compiled.component, code.compiled.flavor, surroundings)?;
        let described = program.describe(until(DESCRIBE_MS)).await.map_err(DeployError::Describe)?;
        Ok(Interface::of(wit, &described.unwrap_or_default()))
    }
}

/// What the file of a model says itself: what a backend makes of it may differ from backend to backend.
fn of_model(component: &Component) -> Description {
    let onnx = component.models.values().find(|model| model.encoding == Encoding::Onnx);
    let signature = onnx.and_then(|model| onnx::signature(&model.path).ok()).unwrap_or_default();
    Description { signature, ..Description::default() }
}

/// The WIT of a component; none where it cannot be told.
fn wit(wasm: &[u8]) -> Option<String> {
    let DecodedWasm::Component(resolve, world) = wit_component::decode(wasm).ok()? else { return None };
    let package = resolve.worlds.get(world)?.package?;
    let others: Vec<_> = resolve.packages.iter().map(|(id, _)| id).filter(|id| *id != package).collect();
    let mut printer = WitPrinter::default();
    printer.emit_docs(false);
    printer.print(&resolve, package, &others).ok()?;
    Some(printer.output.to_string())
}

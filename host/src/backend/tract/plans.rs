//! Which plan serves which input shapes: one plan is made for each tuple of shapes, and few are kept.

use std::collections::HashMap;
use std::num::NonZeroUsize;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use lru::LruCache;
use tract_onnx::pb::{GraphProto, ModelProto};
use tract_onnx::prelude::{
    DatumType, Framework as _, InferenceFact, InferenceModel, InferenceModelExt as _, TypedSimplePlan, onnx,
};
use tract_onnx::tract_hir::internal::{TractResult, bail};

use super::{contained, from_datatype, to_datatype};
use crate::backend::{Port, Signature};
use crate::tensor::Datatype;

pub(super) type Plan = TypedSimplePlan;
pub(super) type Shapes = Vec<Vec<usize>>;
type Making = Arc<OnceLock<Result<Arc<Plan>, String>>>;

/// How many plans of one graph are kept. Each holds its own, repacked copy of convolution and matrix weights.
const KEPT: NonZeroUsize = NonZeroUsize::new(8).expect("8 is not zero");

/// The largest intermediate tensor that a plan may have; a model that asks for more is broken or hostile.
const MAX_TENSOR_BYTES: usize = 4 << 30;

/// The plans of one graph.
pub(super) enum Plans {
    /// The model fixes every dimension.
    One(Arc<Plan>),
    ByShape(ByShape),
}

impl Plans {
    /// Parses the model and makes the plan that is sure to be needed, where there is one. Adds to the signature
    /// the shapes of outputs that only a plan knows.
    pub(super) fn load(path: &Path, ports: &mut Signature) -> TractResult<Plans> {
        let template = parse(&onnx().proto_model_for_path(path)?)?;
        match expected_shapes(&ports.inputs) {
            Some((shapes, true)) => {
                let plan = make(template, ports, &shapes)?;
                for (index, port) in ports.outputs.iter_mut().enumerate() {
                    let fact = plan.model().output_fact(index)?;
                    if let Some(shape) = fact.shape.as_concrete() {
                        port.shape = Some(shape.iter().copied().map(Some).collect());
                    }
                }
                Ok(Plans::One(plan))
            }
            Some((shapes, false)) => {
                let plan = make(template.clone(), ports, &shapes)?;
                let plans = ByShape::new(template, ports.clone());
                plans.kept().made.put(shapes, plan);
                Ok(Plans::ByShape(plans))
            }
            None => Ok(Plans::ByShape(ByShape::new(template, ports.clone()))),
        }
    }

    /// The plan for these input shapes; where there is none yet, it is made while everyone who wants it waits.
    pub(super) fn plan(&self, shapes: Shapes) -> Result<Arc<Plan>, String> {
        match self {
            Plans::One(plan) => Ok(plan.clone()),
            Plans::ByShape(plans) => plans.plan(shapes),
        }
    }
}

/// The plans of a graph whose callers choose dimensions.
pub(super) struct ByShape {
    template: InferenceModel,
    ports: Signature,
    kept: Mutex<Kept>,
}

struct Kept {
    made: LruCache<Shapes, Arc<Plan>>,
    /// Apart from `made`, so that shapes for which no plan can be made evict nothing.
    making: HashMap<Shapes, Making>,
}

impl ByShape {
    fn new(template: InferenceModel, ports: Signature) -> ByShape {
        let kept = Kept { made: LruCache::new(KEPT), making: HashMap::new() };
        ByShape { template, ports, kept: Mutex::new(kept) }
    }

    fn plan(&self, shapes: Shapes) -> Result<Arc<Plan>, String> {
        let making = {
            let mut kept = self.kept();
            if let Some(plan) = kept.made.get(&shapes) {
                return Ok(plan.clone());
            }
            kept.making.entry(shapes.clone()).or_default().clone()
        };
        making
            .get_or_init(|| {
                let plan = contained(|| make(self.template.clone(), &self.ports, &shapes));
                let mut kept = self.kept();
                kept.making.remove(&shapes);
                if let Ok(plan) = &plan {
                    kept.made.put(shapes.clone(), plan.clone());
                }
                plan
            })
            .clone()
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn parse(proto: &ModelProto) -> TractResult<InferenceModel> {
    // What a file says of tensors in between may speak of symbols, which clash with the numbers that replace
    // them; tract works the shapes out by itself.
    let onnx = onnx().with_ignore_value_info(true);
    if let Some(graph) = &proto.graph
        && let Some(operator) = unknown_operator(graph, &|operator| onnx.op_register.0.contains_key(operator))
    {
        bail!("tract does not know the operator `{operator}`");
    }
    // Without a folder: weights in files beside the model are not covered by its digest.
    let parsed = onnx.parse(proto, None)?;
    match parsed.unresolved_inputs.first() {
        Some(name) => bail!("nothing in the graph gives `{name}`"),
        None => Ok(parsed.model),
    }
}

/// The input shapes that calls will have, and whether they can have no other: those that the model fixes, and
/// one item where the batch size is all that it leaves open.
fn expected_shapes(inputs: &[Port]) -> Option<(Shapes, bool)> {
    let mut fixed = true;
    let shapes = inputs.iter().map(|port| {
        let dims = port.shape.as_ref()?.iter().enumerate();
        let sizes = dims.map(|(axis, size)| match size {
            Some(size) => Some(*size),
            None if axis == 0 => {
                fixed = false;
                Some(1)
            }
            None => None,
        });
        sizes.collect()
    });
    let shapes = shapes.collect::<Option<Shapes>>()?;
    Some((shapes, fixed))
}

/// The optimised plan of a model for input shapes that leave nothing open.
fn make(mut model: InferenceModel, ports: &Signature, shapes: &Shapes) -> TractResult<Arc<Plan>> {
    for (index, (port, shape)) in ports.inputs.iter().zip(shapes).enumerate() {
        let Some(datatype) = from_datatype(port.datatype) else { bail!("no {} in tract", port.datatype) };
        model.set_input_fact(index, InferenceFact::dt_shape(datatype, shape))?;
    }
    let model = model.into_optimized()?;
    for (index, port) in ports.outputs.iter().enumerate() {
        check_output(port, model.output_fact(index)?.datum_type)?;
    }
    for node in model.nodes() {
        for output in &node.outputs {
            let elements = output.fact.shape.as_concrete().map(crate::tensor::elements);
            if let Some(elements) = elements
                && elements?.saturating_mul(output.fact.datum_type.size_of()) > MAX_TENSOR_BYTES
            {
                bail!("node `{}` gives a tensor of more than {MAX_TENSOR_BYTES} bytes", node.name);
            }
        }
    }
    Plan::new(model)
}

fn check_output(port: &Port, computed: DatumType) -> TractResult<()> {
    if to_datatype(computed) != Some(port.datatype) {
        let computed = to_datatype(computed).map_or("something else", Datatype::name);
        bail!("output `{}` is declared {}, but tract computes {computed}", port.name, port.datatype);
    }
    Ok(())
}

/// The first operator of the graph, or of a graph nested in it, that `known` does not know.
fn unknown_operator<'a>(graph: &'a GraphProto, known: &dyn Fn(&str) -> bool) -> Option<&'a str> {
    graph.node.iter().find_map(|node| {
        if !known(&node.op_type) {
            return Some(node.op_type.as_str());
        }
        let graphs = node.attribute.iter().flat_map(|attribute| attribute.g.iter().chain(&attribute.graphs));
        graphs.into_iter().find_map(|graph| unknown_operator(graph, known))
    })
}

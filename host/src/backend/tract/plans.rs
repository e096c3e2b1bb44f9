//! Which plan serves which input shapes.
//!
//! tract is two to seven times faster where it knows every dimension, so the first shapes that come get a plan
//! of their own each. Few are kept, and making one takes as long as several runs: further shapes share one
//! plan with symbols for dimensions, until they have come often.

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

/// The most plans for shapes of their own that a graph keeps.
const MAX_KEPT: usize = 8;

/// The size of models, over all kept plans, beyond which fewer are kept: each plan holds a copy of its own of
/// convolution and matrix weights, packed for its shapes.
const KEPT_BYTES: u64 = 256 << 20;

/// How many shapes without such a plan are counted.
const COUNTED: NonZeroUsize = NonZeroUsize::new(64).expect("64 is not zero");

/// How often a shape must come before it takes the place of one that has a plan: about what the plan costs.
const OFTEN: u32 = 16;

/// The largest intermediate tensor that a plan may have; a model that asks for more is broken or hostile.
const MAX_TENSOR_BYTES: usize = 4 << 30;

/// The plans of one graph.
pub(super) enum Plans {
    /// The model fixes every dimension.
    One(Arc<Plan>),
    ByShape(Box<ByShape>),
}

impl Plans {
    /// Parses the model and makes the plan that is sure to be needed, where there is one. Adds to the signature
    /// the shapes of outputs that only a plan knows.
    pub(super) fn load(path: &Path, ports: &mut Signature) -> TractResult<Plans> {
        let limit = kept(std::fs::metadata(path)?.len());
        let template = parse(&onnx().proto_model_for_path(path)?)?;
        match expected_shapes(&ports.inputs) {
            Some((shapes, true)) => {
                let plan = make(specialised(template, ports, &shapes)?, ports)?;
                for (index, port) in ports.outputs.iter_mut().enumerate() {
                    let fact = plan.model().output_fact(index)?;
                    if let Some(shape) = fact.shape.as_concrete() {
                        port.shape = Some(shape.iter().copied().map(Some).collect());
                    }
                }
                Ok(Plans::One(plan))
            }
            Some((shapes, false)) => {
                let plan = make(specialised(template.clone(), ports, &shapes)?, ports)?;
                let plans = ByShape::new(template, ports.clone(), limit);
                plans.kept().made.put(shapes, plan);
                Ok(Plans::ByShape(plans.into()))
            }
            None => Ok(Plans::ByShape(ByShape::new(template, ports.clone(), limit).into())),
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
    /// The plan for shapes that come rarely; `None` where tract cannot make one.
    symbolic: OnceLock<Option<Arc<Plan>>>,
}

struct Kept {
    made: LruCache<Shapes, Arc<Plan>>,
    /// Apart from `made`, so that shapes for which no plan can be made evict nothing.
    making: HashMap<Shapes, Making>,
    counts: LruCache<Shapes, u32>,
}

impl ByShape {
    fn new(template: InferenceModel, ports: Signature, limit: NonZeroUsize) -> ByShape {
        let kept =
            Kept { made: LruCache::new(limit), making: HashMap::new(), counts: LruCache::new(COUNTED) };
        ByShape { template, ports, kept: Mutex::new(kept), symbolic: OnceLock::new() }
    }

    fn plan(&self, shapes: Shapes) -> Result<Arc<Plan>, String> {
        let rare = {
            let mut kept = self.kept();
            if let Some(plan) = kept.made.get(&shapes) {
                return Ok(plan.clone());
            }
            kept.count(&shapes)
        };
        if rare && let Some(plan) = self.symbolic.get_or_init(|| contained(|| self.make(None)).ok()) {
            return Ok(plan.clone());
        }
        let making = {
            let mut kept = self.kept();
            // Another caller may have made it since.
            if let Some(plan) = kept.made.get(&shapes) {
                return Ok(plan.clone());
            }
            kept.making.entry(shapes.clone()).or_default().clone()
        };
        let made = making.get_or_init(|| {
            let plan = contained(|| self.make(Some(&shapes)));
            let mut kept = self.kept();
            kept.making.remove(&shapes);
            if let Ok(plan) = &plan {
                kept.made.put(shapes.clone(), plan.clone());
            }
            plan
        });
        made.clone()
    }

    /// The plan for these shapes, or the symbolic one.
    fn make(&self, shapes: Option<&Shapes>) -> TractResult<Arc<Plan>> {
        let model = match shapes {
            Some(shapes) => specialised(self.template.clone(), &self.ports, shapes)?,
            None => self.template.clone(),
        };
        make(model, &self.ports)
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Kept {
    /// Counts a shape that has no plan; whether it comes too rarely to get one in the place of another.
    fn count(&mut self, shapes: &Shapes) -> bool {
        if self.made.len() < self.made.cap().get() {
            return false;
        }
        let count = self.counts.get_or_insert_mut(shapes.clone(), || 0);
        *count += 1;
        let rare = *count < OFTEN;
        if !rare {
            self.counts.pop(shapes);
        }
        rare
    }
}

/// How many plans are kept of a model of this size.
fn kept(model_bytes: u64) -> NonZeroUsize {
    let fitting = usize::try_from(KEPT_BYTES / model_bytes.max(1)).unwrap_or(MAX_KEPT);
    NonZeroUsize::new(fitting.min(MAX_KEPT)).unwrap_or(NonZeroUsize::MIN)
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

/// A model with the given input shapes.
fn specialised(mut model: InferenceModel, ports: &Signature, shapes: &Shapes) -> TractResult<InferenceModel> {
    for (index, (port, shape)) in ports.inputs.iter().zip(shapes).enumerate() {
        let Some(datatype) = from_datatype(port.datatype) else { bail!("no {} in tract", port.datatype) };
        model.set_input_fact(index, InferenceFact::dt_shape(datatype, shape))?;
    }
    Ok(model)
}

/// The optimised plan of a model.
fn make(model: InferenceModel, ports: &Signature) -> TractResult<Arc<Plan>> {
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

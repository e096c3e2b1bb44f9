//! Calls of typed model functions: tensors in, tensors or the function's own error out.

use std::collections::HashSet;
use std::time::Duration;

use super::{Answered, CallError, Deadline, Kind, Program};
use crate::backend::validate::shape_text;
use crate::backend::{Port, Priority, Signature};
use crate::instance::state::State;
use crate::nn::Usage;
use crate::nn::bindings::PlatformPre;
use crate::nn::bindings::exports::tenon::function::function as export;
use crate::nn::bindings::tenon::function::tensors::{NamedTensor, TensorMetadata};
use crate::nn::responses::Responses;
use crate::tensor::Tensor;

/// A call of a typed function, free of protocol.
#[derive(Clone, Debug, Default)]
pub struct Request {
    /// Inputs in the order of the function's description, already checked against it.
    pub inputs: Vec<(String, Tensor)>,
    pub parameters: Vec<(String, Parameter)>,
    /// The outputs that the caller wants; empty for all.
    pub outputs: Vec<String>,
    /// Who goes first where inferences wait.
    pub priority: Priority,
}

/// What a typed function answered.
#[derive(Clone, Debug, Default)]
pub struct Reply {
    pub outputs: Vec<(String, Tensor)>,
    pub parameters: Vec<(String, Parameter)>,
}

impl Reply {
    /// Bytes of all tensors together.
    pub fn tensor_bytes(&self) -> usize {
        self.outputs.iter().map(|(_, tensor)| tensor.data().len()).sum()
    }
}

/// A value beside the tensors.
#[derive(Clone, Debug, PartialEq)]
pub enum Parameter {
    Bool(bool),
    Int64(i64),
    Uint64(u64),
    Double(f64),
    Text(String),
}

/// How a typed function describes itself.
#[derive(Clone, Debug, Default)]
pub struct Description {
    pub signature: Signature,
    /// Media types of raw bodies that the function takes as its one BYTES input.
    pub accepts: Vec<String>,
    /// The media type of its one BYTES output for callers that sent a raw body.
    pub answers: Option<String>,
}

impl Description {
    /// A function answers what it described: each output that is wanted, once.
    ///
    /// # Errors
    /// Says what else it answered, or did not.
    pub fn check(&self, reply: &Reply, wanted: &[String]) -> Result<(), String> {
        self.check_outputs(&reply.outputs)?;
        let missing = self.signature.outputs.iter().find(|port| {
            (wanted.is_empty() || wanted.contains(&port.name))
                && !reply.outputs.iter().any(|(name, _)| *name == port.name)
        });
        match missing {
            Some(port) => Err(format!("it did not answer its output `{}`", port.name)),
            None => Ok(()),
        }
    }

    /// Names, datatypes and shapes are the described ones.
    ///
    /// # Errors
    /// Names the first output that is another.
    pub fn check_outputs(&self, outputs: &[(String, Tensor)]) -> Result<(), String> {
        for (index, (name, tensor)) in outputs.iter().enumerate() {
            let port = self.signature.outputs.iter().find(|port| port.name == *name);
            let port =
                port.ok_or_else(|| format!("it answered an output `{name}` that it did not describe"))?;
            if outputs[..index].iter().any(|(earlier, _)| earlier == name) {
                return Err(format!("it answered the output `{name}` twice"));
            }
            if tensor.datatype() != port.datatype {
                return Err(format!("its output `{name}` is {}, not {}", tensor.datatype(), port.datatype));
            }
            if let Some(shape) = &port.shape {
                let fits = shape.len() == tensor.shape().len()
                    && shape
                        .iter()
                        .zip(tensor.shape())
                        .all(|(want, have)| want.is_none_or(|want| want == *have));
                if !fits {
                    let described = shape_text(shape);
                    return Err(format!(
                        "its output `{name}` has the shape {:?}, not {described}",
                        tensor.shape()
                    ));
                }
            }
        }
        Ok(())
    }
}

impl Program {
    /// Asks a typed function to describe itself; `None` for the other kinds.
    ///
    /// # Errors
    /// Where the call fails, or the description makes no sense.
    pub async fn describe(&self, deadline: Deadline) -> Result<Option<Description>, CallError> {
        let pre = match &self.kind {
            Kind::Typed(pre) => pre,
            Kind::Model(model) => return self.describe_model(model, deadline.at).await.map(Some),
            Kind::HttpP2(_) | Kind::HttpP3(_) => return Ok(None),
        };
        let _running = self.running();
        let mut store = self.store(deadline, Priority::default())?;
        let described = within(deadline, async {
            let guest = pre.instantiate_async(&mut store).await?;
            guest.tenon_function_function().call_describe(&mut store).await
        });
        match described.await {
            Some(Ok(metadata)) => description(metadata).map(Some),
            Some(Err(error)) => Err(self.failure(&error, &store.data().limits, deadline)),
            None => Err(CallError::DeadlineExceeded(deadline.ms)),
        }
    }

    /// Calls a typed function in a fresh instance. Answers before the last one go to `responses`, where the caller takes
    /// several.
    pub async fn call(
        &self,
        request: Request,
        deadline: Deadline,
        responses: Option<Responses>,
    ) -> Answered<Reply> {
        let pre = match &self.kind {
            Kind::Typed(pre) => pre,
            Kind::Model(model) => return self.infer(model, request, deadline).await,
            Kind::HttpP2(_) | Kind::HttpP3(_) => {
                let error = CallError::Start("the function takes HTTP requests".to_owned());
                return (Err(error), Usage::default());
            }
        };
        let _running = self.running();
        let mut store = match self.store(deadline, request.priority) {
            Ok(store) => store,
            Err(error) => return (Err(error), Usage::default()),
        };
        store.data_mut().responses = responses;
        let answered = match within(deadline, answer(pre, &mut store, request)).await {
            Some(Ok(answered)) => answered,
            Some(Err(error)) => Err(self.failure(&error, &store.data().limits, deadline)),
            None => Err(CallError::DeadlineExceeded(deadline.ms)),
        };
        self.ended(&store);
        let usage = store.data().nn.meter().read();
        (answered, usage)
    }
}

/// The deadline from outside: for guests that wait in the host, where epochs do not reach.
pub(super) async fn within<T>(deadline: Deadline, work: impl Future<Output = T>) -> Option<T> {
    // A little later than the epoch's, so that a guest that computes is told apart from one that waits.
    const SLACK: Duration = Duration::from_millis(2);
    tokio::time::timeout_at((deadline.at + SLACK).into(), work).await.ok()
}

async fn answer(
    pre: &PlatformPre<State>,
    store: &mut wasmtime::Store<State>,
    request: Request,
) -> wasmtime::Result<Result<Reply, CallError>> {
    let request = match lower(store.data_mut(), request)? {
        Some(request) => request,
        None => return Ok(Err(CallError::OverMemory(store.data().limits.limit() >> 20))),
    };
    let guest = pre.instantiate_async(&mut *store).await?;
    let answered = guest.tenon_function_function().call_call(&mut *store, &request).await?;
    let response = match answered {
        Ok(response) => response,
        Err(export::Error { code, message, status }) => {
            return Ok(Err(CallError::Raised { code, message, status }));
        }
    };
    let outputs = store.data_mut().take_named(response.outputs)?;
    let parameters =
        response.parameters.into_iter().map(|parameter| (parameter.name, parameter.value.into()));
    Ok(Ok(Reply { outputs, parameters: parameters.collect() }))
}

fn lower(state: &mut State, request: Request) -> wasmtime::Result<Option<export::Request>> {
    let mut inputs = Vec::with_capacity(request.inputs.len());
    for (name, tensor) in request.inputs {
        let Some(tensor) = state.push_tensor(tensor)? else { return Ok(None) };
        inputs.push(NamedTensor { name, tensor });
    }
    let parameters = request.parameters.into_iter();
    let parameters = parameters.map(|(name, value)| export::Parameter { name, value: value.into() });
    Ok(Some(export::Request { inputs, parameters: parameters.collect(), outputs: request.outputs }))
}

/// Inputs or outputs that a description may have; a call looks at each of them.
const MOST_PORTS: usize = 256;

/// Bytes of a name or media type in a description.
const LONGEST_NAME: usize = 256;

fn description(metadata: export::Metadata) -> Result<Description, CallError> {
    let bad = |reason: String| CallError::BadReply(format!("its description is wrong: {reason}"));
    let names = metadata.accepts.iter().chain(&metadata.answers);
    if metadata.accepts.len() > MOST_PORTS || names.into_iter().any(|name| name.len() > LONGEST_NAME) {
        return Err(bad("it has too many media types, or too long ones".to_owned()));
    }
    let ports = |ports: Vec<TensorMetadata>| {
        if ports.len() > MOST_PORTS {
            return Err(bad(format!("it has more than {MOST_PORTS} inputs or outputs")));
        }
        let ports = ports.into_iter().map(port).collect::<Result<Vec<_>, _>>()?;
        let mut names = HashSet::new();
        match ports.iter().find(|port| !names.insert(port.name.as_str())) {
            Some(port) => Err(bad(format!("`{}` stands in it twice", port.name))),
            None => Ok(ports),
        }
    };
    let description = Description {
        signature: Signature { inputs: ports(metadata.inputs)?, outputs: ports(metadata.outputs)? },
        accepts: metadata.accepts,
        answers: metadata.answers,
    };
    let Signature { inputs, outputs } = &description.signature;
    if !description.accepts.is_empty() && !is_one_bytes(inputs) {
        return Err(bad("it accepts raw bodies, but does not have exactly one BYTES input".to_owned()));
    }
    if description.answers.is_some() && !is_one_bytes(outputs) {
        return Err(bad("it answers raw bodies, but does not have exactly one BYTES output".to_owned()));
    }
    Ok(description)
}

fn is_one_bytes(ports: &[Port]) -> bool {
    matches!(ports, [port] if port.datatype == crate::tensor::Datatype::Bytes)
}

fn port(metadata: TensorMetadata) -> Result<Port, CallError> {
    let dim = |dim: i64| match dim {
        -1 => Ok(None),
        dim => usize::try_from(dim).map(Some),
    };
    if metadata.name.len() > LONGEST_NAME || metadata.shape.len() > crate::tensor::MAX_RANK {
        return Err(CallError::BadReply("a name or a shape in its description is too long".to_owned()));
    }
    let shape: Result<Vec<_>, _> = metadata.shape.into_iter().map(dim).collect();
    let Ok(shape) = shape else {
        return Err(CallError::BadReply(format!(
            "`{}` is described with a negative dimension",
            metadata.name
        )));
    };
    Ok(Port { name: metadata.name, datatype: metadata.datatype.into(), shape: Some(shape) })
}

impl From<export::ParameterValue> for Parameter {
    fn from(value: export::ParameterValue) -> Parameter {
        match value {
            export::ParameterValue::Bool(value) => Parameter::Bool(value),
            export::ParameterValue::Int64(value) => Parameter::Int64(value),
            export::ParameterValue::Uint64(value) => Parameter::Uint64(value),
            export::ParameterValue::Double(value) => Parameter::Double(value),
            export::ParameterValue::Text(value) => Parameter::Text(value),
        }
    }
}

impl From<Parameter> for export::ParameterValue {
    fn from(value: Parameter) -> export::ParameterValue {
        match value {
            Parameter::Bool(value) => export::ParameterValue::Bool(value),
            Parameter::Int64(value) => export::ParameterValue::Int64(value),
            Parameter::Uint64(value) => export::ParameterValue::Uint64(value),
            Parameter::Double(value) => export::ParameterValue::Double(value),
            Parameter::Text(value) => export::ParameterValue::Text(value),
        }
    }
}

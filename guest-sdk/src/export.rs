//! What the `function` attribute writes against: a described function, and the glue to the WIT export.

use crate::function::{Input, Output, Outputs, Parameter};
use crate::{AnyTensor, Datatype, Error, Metadata, ParameterValue, Result, TensorMetadata, send};

pub use crate::bindings::export as export_component;
pub use crate::error::Failure;

/// The name of an output that was given none.
pub(crate) const ONLY_OUTPUT: &str = "output";

/// A model function, as the attribute makes it.
pub trait Function {
    /// The names in `#[function(outputs(...))]`, in the order of what is returned.
    const NAMED_OUTPUTS: &'static [&'static str];

    /// Inputs, outputs and forms.
    fn describe() -> Metadata;

    /// Answers one request.
    fn call(request: Request) -> Result<Reply>;
}

/// The metadata in the making.
#[derive(Default)]
pub struct Description {
    inputs: Vec<TensorMetadata>,
    outputs: Vec<TensorMetadata>,
    accepts: Vec<String>,
    answers: Option<String>,
}

impl Description {
    /// Adds an input.
    pub fn input<T: Input>(&mut self, name: &str, datatype: Option<Datatype>, shape: &[i64]) {
        let datatype = datatype.or(T::DATATYPE).expect("checked when the function was compiled");
        self.inputs.push(TensorMetadata { name: name.to_owned(), datatype, shape: shape.to_vec() });
    }

    /// Adds an output.
    pub fn output<T: Output>(&mut self, name: &str, datatype: Option<Datatype>, shape: &[i64]) {
        let datatype = datatype.or(T::DATATYPE).expect("checked when the function was compiled");
        self.outputs.push(TensorMetadata { name: name.to_owned(), datatype, shape: shape.to_vec() });
    }

    /// Adds the outputs of a return type.
    pub fn outputs<T: Outputs>(&mut self) {
        T::describe(self);
        self.answers(T::ANSWERS);
    }

    /// Sets the media types of raw bodies.
    pub fn accepts(&mut self, accepts: &[&str]) {
        self.accepts = accepts.iter().map(|&media_type| media_type.to_owned()).collect();
    }

    /// Sets the media type of the raw answer.
    pub fn answers(&mut self, answers: Option<&str>) {
        self.answers = answers.map(str::to_owned);
    }

    /// The metadata.
    pub fn finish(self) -> Metadata {
        let Self { inputs, outputs, accepts, answers } = self;
        Metadata { inputs, outputs, accepts, answers }
    }
}

/// One request, taken apart argument by argument.
#[derive(Debug, Default)]
pub struct Request {
    /// Tensors by name.
    pub inputs: Vec<(String, AnyTensor)>,
    /// Parameters by name.
    pub parameters: Vec<(String, ParameterValue)>,
    /// The outputs that the caller wants; empty for all.
    pub outputs: Vec<String>,
}

impl Request {
    /// Takes the input of this name.
    pub fn input<T: Input>(&mut self, name: &str) -> Result<T> {
        let index = self.inputs.iter().position(|(input, _)| input == name);
        let index = index.ok_or_else(|| Error::invalid_input(format!("input `{name}` is missing")))?;
        let (_, tensor) = self.inputs.swap_remove(index);
        T::from_tensor(tensor).map_err(|error| error.about(format_args!("input `{name}`")))
    }

    /// Takes the parameter of this name.
    pub fn parameter<T: Parameter>(&mut self, name: &str) -> Result<T> {
        let index = self.parameters.iter().position(|(parameter, _)| parameter == name);
        let value = index.map(|index| self.parameters.swap_remove(index).1);
        T::from_value(value).map_err(|error| Error::invalid_input(format!("parameter `{name}` {error}")))
    }

    /// The reply to fill.
    pub fn reply(self) -> Reply {
        Reply::new(self.outputs, &[])
    }

    /// Runs the function, whose answers before the last one go to the caller of this request.
    pub fn answered_by<T>(&self, function: impl FnOnce() -> T) -> T {
        send::answering(&self.outputs, function)
    }
}

/// What a function that can fail has answered.
pub fn answered<T, E: Failure>(result: Result<T, E>) -> Result<T> {
    result.map_err(E::into_error)
}

/// Stands at the beginning of the fn, so that what it sends has the right names in a plain call too.
pub fn running<F: Function>() {
    send::running::<F>();
}

/// The reply in the making: outputs that the caller did not ask for never become tensors.
#[derive(Debug)]
pub struct Reply {
    wanted: Vec<String>,
    /// The names of outputs that have none of their own.
    named: &'static [&'static str],
    tensors: Vec<(&'static str, AnyTensor)>,
}

impl Reply {
    pub(crate) fn new(wanted: Vec<String>, named: &'static [&'static str]) -> Self {
        Self { wanted, named, tensors: Vec::new() }
    }

    /// Adds the one output, if the caller wants it.
    pub fn add_only<T: Output>(&mut self, value: T) -> Result<()> {
        let name = match self.named {
            &[name] => name,
            _ => ONLY_OUTPUT,
        };
        self.add(name, value)
    }

    /// The names of a tuple's elements. An error where the function does not name as many.
    pub(crate) fn names_of_tuple(&self, elements: usize) -> Result<&'static [&'static str]> {
        if self.named.len() == elements {
            return Ok(self.named);
        }
        Err(Error::failed(format_args!(
            "{elements} outputs were sent as a tuple, and `#[function(outputs(...))]` names {}: send what the \
             function returns, or a struct with `#[derive(Outputs)]`",
            self.named.len()
        )))
    }

    /// Adds an output, if the caller wants it.
    pub fn add<T: Output>(&mut self, name: &'static str, value: T) -> Result<()> {
        if self.wanted.is_empty() || self.wanted.iter().any(|wanted| wanted == name) {
            let tensor = value.into_output().map_err(|error| error.about(format_args!("output `{name}`")))?;
            self.tensors.push((name, tensor));
        }
        Ok(())
    }

    pub(crate) fn into_tensors(self) -> Vec<(&'static str, AnyTensor)> {
        self.tensors
    }

    /// The tensors by name. An error where the caller wants an output that there is not.
    pub fn finish(self) -> Result<Vec<(&'static str, AnyTensor)>> {
        match self.wanted.iter().find(|&wanted| self.tensors.iter().all(|(name, _)| name != wanted)) {
            Some(unknown) => Err(Error::invalid_input(format!("there is no output `{unknown}`"))),
            None => Ok(self.tensors),
        }
    }
}

/// Stops the compiler where an input's datatype is unknown, or said wrongly.
pub const fn check_input<T: Input>(given: Option<Datatype>) -> Datatype {
    agreed(T::DATATYPE, given)
}

/// Stops the compiler where an output's datatype is unknown, or said wrongly.
pub const fn check_output<T: Output>(given: Option<Datatype>) -> Datatype {
    agreed(T::DATATYPE, given)
}

const fn agreed(own: Option<Datatype>, given: Option<Datatype>) -> Datatype {
    match (own, given) {
        (Some(own), None) => own,
        (None, Some(given)) => given,
        (Some(own), Some(given)) => {
            assert!(
                own as u8 == given as u8,
                "the attribute's `datatype` is not that of the Rust type: leave it out"
            );
            own
        }
        (None, None) => {
            panic!("`AnyTensor` has no datatype of its own: write #[tensor(datatype = \"FP32\")] or another")
        }
    }
}

/// Stops the compiler where a shape makes no sense, or not for a type whose own shape is `own`.
pub const fn check_shape(own: &[i64], given: &[i64]) {
    let mut index = 0;
    while index < given.len() {
        assert!(
            given[index] >= -1,
            "a size in `shape` is a number from 0 on, or -1 where the caller chooses it"
        );
        assert!(
            !matches!(own, [1]) || given[index] == 1,
            "this type is one element, so its shape has nothing but ones; of several a `Tensor<T>` is made"
        );
        index += 1;
    }
}

/// Stops the compiler where raw bodies are taken or answered as something other than BYTES.
pub const fn check_raw(datatype: Datatype) {
    assert!(matches!(datatype, Datatype::Bytes), "{}", NOT_RAW);
}

/// Stops the compiler where what is answered as a raw body is not one BYTES output.
pub const fn check_answers<T: Outputs>() {
    assert!(T::ANSWERS.is_some(), "{}", NOT_RAW);
}

const NOT_RAW: &str =
    "`accepts` and `answers` are for one BYTES input or output: `Bytes`, `String`, `Json` or `Vec<u8>`";

#[cfg(target_family = "wasm")]
pub(crate) use component::named_tensors;

#[cfg(target_family = "wasm")]
mod component {
    use super::{AnyTensor, Error, Function, Metadata, Request};
    use crate::bindings::exports::tenon::function::function as wit;
    use crate::bindings::tenon::function::tensors::NamedTensor;

    impl<T: Function> wit::Guest for T {
        fn describe() -> Metadata {
            <T as Function>::describe()
        }

        fn call(request: wit::Request) -> Result<wit::Response, wit::Error> {
            answer::<T>(request).map_err(|error| wit::Error {
                status: error.status(),
                code: error.code().to_owned(),
                message: error.message().to_owned(),
            })
        }
    }

    fn answer<T: Function>(request: wit::Request) -> Result<wit::Response, Error> {
        let inputs =
            request.inputs.into_iter().map(|input| (input.name, AnyTensor::from_handle(input.tensor)));
        let parameters = request.parameters.into_iter().map(|parameter| (parameter.name, parameter.value));
        let request =
            Request { inputs: inputs.collect(), parameters: parameters.collect(), outputs: request.outputs };
        let outputs = named_tensors(T::call(request)?.finish()?)?;
        Ok(wit::Response { outputs, parameters: Vec::new() })
    }

    /// Hands the tensors over to the host.
    pub(crate) fn named_tensors(tensors: Vec<(&'static str, AnyTensor)>) -> Result<Vec<NamedTensor>, Error> {
        let named = |(name, tensor): (&str, AnyTensor)| {
            Ok(NamedTensor { name: name.to_owned(), tensor: tensor.into_handle()? })
        };
        tensors.into_iter().map(named).collect()
    }
}

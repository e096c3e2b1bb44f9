//! JSON as one BYTES element.

use std::ops::Deref;

use serde::{Serialize, de::DeserializeOwned};

use crate::bytes::{Bytes, only_element};
use crate::function::{Input, Output};
use crate::{AnyTensor, Datatype, Error, Result};

/// A JSON document, as an input or as an output of a function: one BYTES element, or a raw body of type
/// `application/json`.
///
/// As an input it may be any type that serde deserialises; a document that does not fit is answered with
/// `invalid-input` and what serde says. As an output it may be any type that serde serialises.
///
/// ```
/// use serde::{Deserialize, Serialize};
/// use tenon_sdk::{Json, Result};
///
/// #[derive(Deserialize)]
/// struct Person {
///     name: String,
/// }
///
/// #[derive(Serialize)]
/// struct Greeting {
///     text: String,
/// }
///
/// #[tenon_sdk::function]
/// fn greet(person: Json<Person>) -> Result<Json<Greeting>> {
///     Ok(Json(Greeting { text: format!("Hello, {}!", person.name) }))
/// }
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Json<T>(pub T);

impl<T> Deref for Json<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}

impl<T: DeserializeOwned> Input for Json<T> {
    const DATATYPE: Option<Datatype> = Some(Datatype::Bytes);
    const SHAPE: &'static [i64] = &[1];
    const ACCEPTS: &'static [&'static str] = &["application/json"];

    fn from_tensor(tensor: AnyTensor) -> Result<Self> {
        let document = Bytes::from_tensor(tensor)?;
        match serde_json::from_slice(&document) {
            Ok(value) => Ok(Self(value)),
            Err(error) => Err(Error::invalid_input(error.to_string())),
        }
    }
}

impl<T: Serialize> Output for Json<T> {
    const DATATYPE: Option<Datatype> = Some(Datatype::Bytes);
    const SHAPE: &'static [i64] = &[1];
    const ANSWERS: Option<&'static str> = Some("application/json");

    fn into_output(self) -> Result<AnyTensor> {
        let data = only_element(|data| serde_json::to_writer(data, &self.0).map_err(Error::failed))?;
        AnyTensor::create(Datatype::Bytes, &[1], &data)
    }
}

//! The description of the control API that the host serves.

/// An OpenAPI 3.1 document in JSON.
pub const DOCUMENT: &str = include_str!("openapi.json");

//! One deployed version of a function: it never changes.

use std::any::Any;
use std::sync::Arc;

use crate::backend::batch::Batching;
use crate::instance::Program;
use crate::instance::typed::Description;

/// What runs, and within which limits.
pub struct Revision {
    pub program: Arc<Program>,
    /// How a typed function describes itself; absent for HTTP functions.
    pub description: Option<Description>,
    /// SHA-256 of the component, in lower-case hex.
    pub digest: String,
    /// The component's length; 0 for a model without code.
    pub component_bytes: u64,
    pub deadline_ms: u64,
    pub request_body_bytes: usize,
    pub response_body_bytes: usize,
    /// The models that it was granted, for people.
    pub models: Vec<ModelSummary>,
    /// The folder of its files, for as long as anything of the revision runs.
    pub files: Option<tempfile::TempDir>,
    /// Keeps its code on disk, for the next host that serves it. Its models are kept by what loads them.
    pub kept: Arc<dyn Any + Send + Sync>,
}

/// A granted model in a few words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelSummary {
    pub name: String,
    pub digest: String,
    pub backend: &'static str,
    pub encoding: &'static str,
    pub target: &'static str,
    /// How its calls are joined, if they are.
    pub batching: Option<Batching>,
    /// Inputs and outputs, in words.
    pub signature: String,
}

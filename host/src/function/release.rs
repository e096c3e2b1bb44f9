//! An app at one revision: its functions, which go live together.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::{Function, Routes};

/// An app, for those who ask what is served.
#[derive(Clone, Debug, Default)]
pub struct App {
    pub name: String,
    pub version: Option<String>,
}

/// What one deployment made of an app. It never changes.
#[derive(Default)]
pub struct Release {
    pub app: App,
    /// Counted from 1 in each app.
    pub revision: u64,
    /// What tells this deployment from others on every host, such as the digest of its image.
    pub digest: String,
    pub functions: Vec<Arc<Function>>,
    pub routes: Routes,
    /// Functions that take tensors, by their names in the Open Inference Protocol.
    pub models: BTreeMap<String, Arc<Function>>,
}

impl Release {
    pub fn new(
        app: App,
        revision: u64,
        digest: String,
        functions: Vec<Arc<Function>>,
        routes: Routes,
    ) -> Release {
        let typed = functions.iter().filter(|function| function.revision.program.is_typed());
        let models = typed.map(|function| (function.model.clone(), Arc::clone(function))).collect();
        Release { app, revision, digest, functions, routes, models }
    }

    /// The function of this name, which is the app's and the component's.
    pub fn function(&self, name: &str) -> Option<&Arc<Function>> {
        self.functions.iter().find(|function| function.name == name)
    }
}

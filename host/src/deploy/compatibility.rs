//! Whether callers of the live revision get on with a new one, and whether that may do more. Pure: both apps are
//! compared by their manifests and by what their functions say of themselves.

use std::collections::BTreeMap;

use super::Interface;
use crate::artifact::manifest::Manifest;

/// An app as it is compared.
#[derive(Clone, Copy, Debug)]
pub struct Described<'a> {
    pub manifest: &'a Manifest,
    /// By the component's id. A function that is not here says nothing of its inputs and outputs.
    pub interfaces: &'a BTreeMap<String, Interface>,
}

/// What of the new revision breaks callers of the live one: a sentence each, with what to do.
pub fn interface_breaks(_live: &Described<'_>, _new: &Described<'_>) -> Vec<String> {
    Vec::new()
}

/// What the new revision may do more than the live one: a sentence each, with how to allow it.
pub fn capabilities_grown(_live: &Described<'_>, _new: &Described<'_>) -> Vec<String> {
    Vec::new()
}

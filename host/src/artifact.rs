//! What is deployed: components, models and settings, known by their digests.

pub mod archive;
pub mod blobs;
pub mod cache;
pub mod difference;
pub mod fetch;
pub mod layout;
pub mod locked;
pub mod manifest;
pub mod modelpack;
pub mod oci;
pub mod package;
pub mod pins;
pub mod reference;
pub mod registry;
pub mod sample;
pub mod settings;
pub mod signature;
pub mod unpack;
pub mod wasm;

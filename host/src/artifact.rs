//! What is deployed: components, models and settings, known by their digests.

pub mod blobs;
pub mod cache;
pub mod difference;
pub mod fetch;
pub mod manifest;
pub mod oci;
pub mod reference;
pub mod registry;
pub mod signature;

//! The messages of the services, as the build makes them from `host/proto`, and what reflection says of them.

#![allow(
    clippy::all,
    unreachable_pub,
    dead_code,
    reason = "made by the build; tensors are read and written without"
)]

pub(super) mod inference {
    include!(concat!(env!("OUT_DIR"), "/inference.rs"));
}

pub(super) mod health {
    include!(concat!(env!("OUT_DIR"), "/grpc.health.v1.rs"));
}

pub(super) mod reflection {
    include!(concat!(env!("OUT_DIR"), "/grpc.reflection.v1.rs"));
}

/// A file of `host/proto`, described for callers that have none.
pub(super) struct File {
    pub(super) name: &'static str,
    pub(super) services: &'static [&'static str],
    /// The full names of all that stands in it, sorted.
    pub(super) symbols: &'static [&'static str],
    /// A `FileDescriptorProto`.
    pub(super) bytes: &'static [u8],
}

pub(super) const FILES: &[File] = include!(concat!(env!("OUT_DIR"), "/descriptors.rs"));

/// Whether there is such a service with such a method.
pub(super) fn is_method(service: &str, method: &str) -> bool {
    let name = format!("{service}.{method}");
    FILES.iter().any(|file| file.services.contains(&service) && file.describes(&name))
}

impl File {
    /// Whether a service, method, message or enum of this full name stands in the file.
    pub(super) fn describes(&self, name: &str) -> bool {
        self.symbols.binary_search(&name).is_ok()
    }
}

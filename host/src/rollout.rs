//! Rollouts: what becomes of the traffic of an app while a new revision is tried out, decided from numbers.
//!
//! Pure of functions, HTTP and WebAssembly: who drives a rollout hands in the time and what was counted.

pub mod analysis;
pub mod machine;
pub mod plan;
pub mod shadow;
pub mod store;

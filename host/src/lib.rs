//! Tenon runs model functions: a machine-learning model with its pre- and post-processing as one WebAssembly
//! component, started fresh for every request.
//!
//! The modules stand in the order in which a request, and then a deployment, goes through them; each uses only
//! what comes after it.

// A request.
pub mod serve;
// A deployment, which ends where a request begins.
pub mod admin;
pub mod control;
pub mod deploy;
pub mod host;
pub mod samples;
// What both use.
pub mod artifact;
pub mod function;
pub mod instance;
pub mod nn;
// What all use.
pub mod backend;
pub mod background;
pub mod config;
pub mod key_value;
pub mod network;
pub mod rollout;
pub mod telemetry;
pub mod tensor;

pub mod cli;

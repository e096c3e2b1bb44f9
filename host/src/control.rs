//! The control plane: takes deployments and commands, drives rollouts, and keeps what is wanted.

pub mod api;
pub mod client;
pub mod controller;
pub mod interface;
pub mod openapi;
pub mod source;
pub mod token;
pub mod upload;
pub mod wire;

pub use interface::{BoxFuture, Control, ControlError};
pub use upload::Upload;

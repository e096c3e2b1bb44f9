//! The control plane: takes deployments and commands, drives rollouts, and keeps what is wanted.

pub mod client;
pub mod interface;
pub mod upload;
pub mod wire;

pub use interface::{BoxFuture, Control, ControlError};
pub use upload::Upload;

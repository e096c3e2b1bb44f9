//! The control plane: takes deployments and commands, drives rollouts, and keeps what is wanted.

pub mod wire;

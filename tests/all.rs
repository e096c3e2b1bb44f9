//! Tenon's tests: stories of whole hosts, one module a part of the product.

#![allow(clippy::unwrap_used, reason = "a story that cannot go on ends the test, helpers included")]

mod harness;
mod raw;
mod registry;

mod backends;
mod batching;
mod cache;
mod clients;
mod connection;
mod control;
mod deploy;
mod drain;
mod examples;
mod generations;
mod key_value;
mod limits;
mod manifest;
mod nn;
mod oip;
mod outbound;
mod package;
mod request;
mod residency;
mod rollouts;
mod shadow;
mod signatures;
mod spin;
mod stock;
mod tidy;
mod tls;

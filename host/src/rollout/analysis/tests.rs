//! Rollouts, simulated by the thousand.

mod kinds;
mod simulation;

use super::*;
use crate::telemetry::observations::{Distribution, Histogram, Tally, bucket, signed_bucket};

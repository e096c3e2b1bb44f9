//! Whether a candidate is worse than the stable revision that runs beside it.

use serde::{Deserialize, Serialize};

/// What was found of one metric.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Measurement {
    pub function: String,
    pub metric: String,
}

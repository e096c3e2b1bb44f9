//! How a rollout is to go.

use serde::{Deserialize, Serialize};

/// The steps of a rollout, and what judges it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Plan {}

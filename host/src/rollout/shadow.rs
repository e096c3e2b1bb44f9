//! How far a candidate's answers to shadowed calls agree with the stable revision's.

use serde::{Deserialize, Serialize};

/// What was found of one function.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Report {}

//! What outlives the host.

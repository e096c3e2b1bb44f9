//! What a rollout does next.

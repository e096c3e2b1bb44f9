//! How often, and after what wait, something is tried again.

use std::hash::{BuildHasher as _, Hasher as _, RandomState};
use std::time::Duration;

use super::error::{Failure, RegistryError};
use super::http::Client;

/// The longest wait of our own choice.
const MAX_BACKOFF: Duration = Duration::from_secs(10);
/// However much each attempt moves, there is an end.
const MAX_ATTEMPTS: u32 = 100;

/// What is left of the attempts at one thing.
pub(super) struct Patience {
    retries: u32,
    backoff: Duration,
    /// In a row, without progress.
    failed: u32,
    attempts: u32,
    advice: &'static str,
}

impl Patience {
    pub(super) fn new(client: &Client) -> Patience {
        let (retries, backoff) = (client.options.settings.retries, client.options.backoff);
        Patience { retries, backoff, failed: 0, attempts: 0, advice: "" }
    }

    /// With something to say when it ends.
    #[must_use]
    pub(super) fn advising(mut self, advice: &'static str) -> Patience {
        self.advice = advice;
        self
    }

    /// An attempt failed, but moved enough to be worth as many again.
    pub(super) fn progressed(&mut self) {
        self.failed = 0;
    }

    /// Waits before the next attempt; `tell` hears why, and for how long.
    ///
    /// # Errors
    /// The failure, where it does not pass or was met too often.
    pub(super) async fn after(
        &mut self,
        failure: Failure,
        tell: impl FnOnce(&RegistryError, Duration),
    ) -> Result<(), RegistryError> {
        let (error, asked) = match failure {
            Failure::Fatal(error) => return Err(*error),
            Failure::Passing(error, asked) => (error, asked),
        };
        self.failed += 1;
        self.attempts += 1;
        if self.failed > self.retries || self.attempts >= MAX_ATTEMPTS {
            if self.attempts == 1 {
                return Err(*error);
            }
            return Err(RegistryError::GaveUp { error, times: self.attempts, advice: self.advice });
        }
        let own = self.backoff.saturating_mul(1 << (self.failed - 1).min(16)).min(MAX_BACKOFF);
        // Callers that were cut off together do not come back together.
        let chance = (RandomState::new().build_hasher().finish() % 1000) as f32 / 1000.0;
        let own = own.mul_f32(0.75 + 0.5 * chance);
        let wait = asked.map_or(own, |asked| asked.max(own));
        tell(&error, wait);
        tokio::time::sleep(wait).await;
        Ok(())
    }
}

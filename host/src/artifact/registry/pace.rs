//! The pace at which a body must come: what trickles counts as broken, as does what stalls, and what is too slow
//! altogether is not waited for.

use std::time::Duration;

use bytes::Bytes;
use reqwest::Response;
use tokio::time::Instant;

use super::error::{Failure, RegistryError};
use super::http::{broken, reason};

/// The slowest that a blob or a manifest may come, in bytes per second, all in all.
pub(crate) const SLOWEST: u64 = 32 << 10;
/// How far it may fall behind that, beside the time of a stall.
pub(super) const GRACE: Duration = Duration::from_secs(30);
/// How little may come within the time of a stall: less is as good as nothing.
pub(super) const MIN_PROGRESS_BYTES: u64 = 4096;

/// What comes in one transfer, which may take several requests.
pub(super) struct Pace {
    stall: Duration,
    until: Instant,
    /// Since `until` was set.
    came: u64,
    /// How far the transfer may fall behind [`SLOWEST`].
    grace: Duration,
    /// How long it was waited for.
    waited: Duration,
    /// The bytes that it had, or has brought.
    moved: u64,
    /// More of them earn no time: a registry may send the same again and again.
    most: u64,
}

impl Pace {
    /// Of something that has `size` bytes at most.
    pub(super) fn new(stall: Duration, grace: Duration, size: u64) -> Pace {
        let until = Instant::now() + stall;
        Pace { stall, until, came: 0, grace, waited: Duration::ZERO, moved: 0, most: size.saturating_mul(2) }
    }

    /// With what came at another time: a transfer that goes on may take as long as one that began anew.
    #[must_use]
    pub(super) fn having(mut self, bytes: u64) -> Pace {
        self.moved = bytes;
        self
    }

    /// The next piece of a body; `None` at its end.
    ///
    /// # Errors
    /// Where next to nothing comes, or it came too slowly until now.
    pub(super) async fn next(
        &mut self,
        response: &mut Response,
        registry: &str,
        what: &str,
    ) -> Result<Option<Bytes>, Failure> {
        let begun = Instant::now();
        let end = begun + self.left();
        let next = tokio::time::timeout_at(self.until.min(end), response.chunk()).await;
        self.waited += begun.elapsed();
        match next {
            Ok(Ok(Some(chunk))) => {
                self.came += chunk.len() as u64;
                self.moved += chunk.len() as u64;
                if self.came >= MIN_PROGRESS_BYTES {
                    self.restart();
                }
                Ok(Some(chunk))
            }
            Ok(Ok(None)) => Ok(None),
            Ok(Err(error)) => Err(broken(registry, what, &reason(&error))),
            Err(_) if end < self.until => {
                let (what, registry) = (what.to_owned(), registry.to_owned());
                Err(RegistryError::Slow { what, registry }.into())
            }
            Err(_) => {
                let reason = format!("next to nothing came for {} s", self.stall.as_secs_f32());
                Err(broken(registry, what, &reason))
            }
        }
    }

    /// What takes its time at this end, or is another request, is not the registry's stall.
    pub(super) fn restart(&mut self) {
        (self.until, self.came) = (Instant::now() + self.stall, 0);
    }

    /// How much longer it may be waited for.
    fn left(&self) -> Duration {
        let earned = Duration::from_secs(self.moved.min(self.most) / SLOWEST);
        (self.grace + self.stall + earned).saturating_sub(self.waited)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_came_earns_time_and_what_comes_again_and_again_does_not() {
        let second = Duration::from_secs(1);
        let mut pace = Pace::new(30 * second, 30 * second, 10 * SLOWEST);
        assert_eq!(pace.left(), 60 * second);
        pace.waited = 50 * second;
        assert_eq!(pace.left(), 10 * second);
        pace = pace.having(5 * SLOWEST);
        assert_eq!(pace.left(), 15 * second);
        pace.moved += 5 * SLOWEST;
        assert_eq!(pace.left(), 20 * second);
        pace.moved += 100 * SLOWEST;
        assert_eq!(pace.left(), 30 * second);
        pace.waited = 1000 * second;
        assert_eq!(pace.left(), Duration::ZERO);
    }
}

//! Shares of the traffic: percent where people read and write them, whole hundredths of a percent inside.

use serde::{Deserialize, Deserializer, Serializer, de};

/// All of the traffic, in hundredths of a percent.
pub const WHOLE: u16 = 10_000;

/// Hundredths of a percent from percent; `None` where it is not from 0 to 100 with at most two decimals.
pub fn hundredths(percent: f64) -> Option<u16> {
    let exact = percent * 100.0;
    let whole = exact.round();
    let fits = (0.0..=f64::from(WHOLE)).contains(&whole) && (exact - whole).abs() < 1e-6;
    fits.then_some(whole as u16)
}

/// Percent from hundredths of a percent.
pub fn percent(hundredths: u16) -> f64 {
    f64::from(hundredths) / 100.0
}

pub(super) fn serialize<S: Serializer>(share: &u16, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64(percent(*share))
}

pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u16, D::Error> {
    let share = f64::deserialize(deserializer)?;
    hundredths(share)
        .ok_or_else(|| de::Error::custom(format!("{share} is not percent with at most two decimals")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_share_is_written_and_read_as_percent() {
        for share in 0..=WHOLE {
            assert_eq!(hundredths(percent(share)), Some(share));
        }
        for wrong in [-0.01, 100.01, 0.001, 5.555, 1e300, f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
            assert_eq!(hundredths(wrong), None, "{wrong}");
        }
    }
}

//! The time of day, as Kafka's timestamps count it.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Returns the time since 1970; none at all by a clock that stands before it, which is no clock to
/// reckon with.
pub fn since_epoch() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

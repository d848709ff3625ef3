//! The time of day, as Kafka's timestamps count it, and a time that counts while the machine is
//! suspended.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Returns the time since 1970; none at all by a clock that stands before it, which is no clock to
/// reckon with.
pub fn since_epoch() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

/// A moment, as an [`Instant`] is one. But that stands still while the machine is suspended, on
/// Linux, and others' clocks don't.
#[derive(Clone, Copy, Debug)]
pub struct Moment {
    instant: Instant,
    since_epoch: Duration,
}

impl Moment {
    /// Returns this one.
    pub fn now() -> Moment {
        Moment { instant: Instant::now(), since_epoch: since_epoch() }
    }

    /// Returns how long ago it was. A clock that was set back says nothing.
    pub fn elapsed(&self) -> Duration {
        self.instant.elapsed().max(since_epoch().saturating_sub(self.since_epoch))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_of_a_suspended_machine_counts() {
        const HOUR: Duration = Duration::from_secs(3600);
        let now = Moment::now();
        assert!(now.elapsed() < HOUR);
        let suspended = Moment { since_epoch: now.since_epoch - HOUR, ..now };
        assert!(suspended.elapsed() >= HOUR);
        let set_back = Moment { since_epoch: now.since_epoch + HOUR, ..now };
        assert!(set_back.elapsed() < HOUR);
    }
}

//! When to say that the group keeps the worker waiting.
//!
//! A group gives partitions at once, unless a member has ended without a word: then it waits until
//! that member's session is over, 45 s by default, and the worker has nothing to show meanwhile.

use std::time::{Duration, Instant};

/// Before the first line. Mostly the group answers sooner.
const PATIENCE: Duration = Duration::from_secs(3);

/// Between two lines.
const INTERVAL: Duration = Duration::from_secs(30);

/// A wait for partitions.
pub(super) struct Waiting {
    since: Instant,
    next: Instant,
}

impl Waiting {
    /// Begins to wait.
    pub(super) fn since(now: Instant) -> Waiting {
        Waiting { since: now, next: now + PATIENCE }
    }

    /// Returns how long it has been, where it is time for a line.
    pub(super) fn line_due(&mut self, now: Instant) -> Option<Duration> {
        if now < self.next {
            return None;
        }
        self.next = now + INTERVAL;
        Some(now - self.since)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_comes_after_a_while_and_then_rarely() {
        let start = Instant::now();
        let mut waiting = Waiting::since(start);
        let due: Vec<u64> = (0..100)
            .filter_map(|second| waiting.line_due(start + Duration::from_secs(second)))
            .map(|waited| waited.as_secs())
            .collect();
        assert_eq!(due, [3, 33, 63, 93]);
    }
}

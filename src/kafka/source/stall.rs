//! Since when nothing has come of the oldest message in the worker.
//!
//! Messages wait their turn in the worker, on a slow network for as long as a full worker takes:
//! their age doesn't tell a slow worker from one that hangs. That the oldest stays the oldest does.

use std::time::Instant;

use crate::kafka::offsets::Oldest;

/// The oldest message, as it was last looked at.
#[derive(Debug, Default)]
pub(super) struct Stall {
    oldest: Option<(Oldest, Instant)>,
}

impl Stall {
    /// Notes which message is the oldest that isn't settled, and returns since when it has been.
    pub(super) fn since(&mut self, oldest: Option<Oldest>, now: Instant) -> Option<Instant> {
        let before = self.oldest.take();
        self.oldest = oldest.map(|oldest| match before {
            Some((same, since)) if same == oldest => (oldest, since),
            _ => (oldest, now),
        });
        self.oldest.map(|(_, since)| since)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kafka::offsets::{Incoming, OffsetLedger};
    use crate::tracked::{Assignment, Offset};
    use std::time::Duration;

    fn message(offset: i64) -> Incoming {
        Incoming { offset: Offset(offset), bytes: 1, timestamp_ms: None, digest: 0 }
    }

    #[test]
    fn a_worker_that_gets_on_is_not_stalled_however_long_messages_wait() {
        const MESSAGES: i64 = 100;
        let start = Instant::now();
        let mut ledger = OffsetLedger::default();
        let assignments = [Assignment::new(0, 1), Assignment::new(1, 1)];
        for assignment in &assignments {
            ledger.assign(assignment.clone());
        }
        // All at once, and then one a minute from each partition in turn.
        for offset in 0..MESSAGES {
            let received = start + Duration::from_micros(offset as u64);
            ledger.open((offset % 2) as i32, message(offset), received).unwrap();
        }
        let mut stall = Stall::default();
        for offset in 0..MESSAGES {
            let now = start + Duration::from_secs(60 * offset as u64);
            assert_eq!(stall.since(ledger.oldest(), now), Some(now), "at {offset}");
            ledger.settle(&assignments[(offset % 2) as usize], Offset(offset));
        }
        assert_eq!(stall.since(ledger.oldest(), start), None);
    }

    #[test]
    fn one_message_that_nothing_comes_of_is_a_stall_whatever_becomes_of_others() {
        let start = Instant::now();
        let mut ledger = OffsetLedger::default();
        let (stuck, other) = (Assignment::new(0, 1), Assignment::new(1, 1));
        ledger.assign(stuck);
        ledger.assign(other.clone());
        ledger.open(0, message(0), start).unwrap();
        let mut stall = Stall::default();
        for minute in 0..30 {
            let now = start + Duration::from_secs(60 * minute);
            ledger.open(1, message(minute as i64), now).unwrap();
            assert_eq!(stall.since(ledger.oldest(), now), Some(start));
            ledger.settle(&other, Offset(minute as i64));
        }
    }
}

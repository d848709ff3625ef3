//! When it is time to give up a membership of which the group knows nothing.
//!
//! Mostly librdkafka hears of a refused commit what the source hears, and there is a rebalance: the
//! partitions are lost, and the worker joins anew. Where it takes itself for rebalancing already it
//! waits for the end of that. A drain that the group has overtaken, and which ends before the next
//! assignment has come, leaves it in such a state for good: it hears of no other rebalance, every
//! commit is refused, and the captions are another's. Only another consumer helps.

use std::time::{Duration, Instant};

use rdkafka::error::{KafkaResult, RDKafkaErrorCode};

/// How long commits may be refused without a rebalance. In the middle of one that ends they are
/// refused for seconds.
pub(super) const PATIENCE: Duration = Duration::from_secs(60);

/// Commits that the group refuses because it doesn't know the member.
pub(super) struct Refused {
    patience: Duration,
    since: Option<Instant>,
}

impl Refused {
    /// Begins with a member that the group knows.
    pub(super) fn new(patience: Duration) -> Refused {
        Refused { patience, since: None }
    }

    /// Notes how a commit has ended; returns whether the membership is to be given up.
    pub(super) fn committed(&mut self, result: &KafkaResult<()>, now: Instant) -> bool {
        use RDKafkaErrorCode::{IllegalGeneration, UnknownMemberId};
        let error = result.as_ref().err().and_then(|error| error.rdkafka_error_code());
        if !matches!(error, Some(IllegalGeneration | UnknownMemberId)) {
            // Taken, or not answered by the group at all.
            self.since = None;
            return false;
        }
        now - *self.since.get_or_insert(now) >= self.patience
    }

    /// Notes that librdkafka has told of a rebalance, so that it hears of them.
    pub(super) fn rebalanced(&mut self) {
        self.since = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rdkafka::error::KafkaError;

    const UNKNOWN: KafkaResult<()> =
        Err(KafkaError::ConsumerCommit(RDKafkaErrorCode::UnknownMemberId));
    const OLD: KafkaResult<()> =
        Err(KafkaError::ConsumerCommit(RDKafkaErrorCode::IllegalGeneration));
    const AWAY: KafkaResult<()> =
        Err(KafkaError::ConsumerCommit(RDKafkaErrorCode::OperationTimedOut));

    /// Returns the second at which the membership is given up, of a commit a second.
    fn given_up(
        seconds: u64,
        result: impl Fn(u64) -> KafkaResult<()>,
        is_rebalance: impl Fn(u64) -> bool,
    ) -> Option<u64> {
        let start = Instant::now();
        let mut refused = Refused::new(PATIENCE);
        (0..seconds).find(|&second| {
            if is_rebalance(second) {
                refused.rebalanced();
            }
            refused.committed(&result(second), start + Duration::from_secs(second))
        })
    }

    #[test]
    fn a_member_that_is_refused_and_hears_of_no_rebalance_is_given_up() {
        assert_eq!(given_up(600, |_| UNKNOWN, |_| false), Some(60));
        let both = |second| if second % 2 == 0 { OLD } else { UNKNOWN };
        assert_eq!(given_up(600, both, |_| false), Some(60));
    }

    #[test]
    fn a_member_that_was_put_out_while_brokers_were_away_is_not_given_up() {
        // librdkafka hears of it at its next heartbeat, and tells.
        let result = |second| match second {
            0..300 => AWAY,
            300..303 => UNKNOWN,
            _ => Ok(()),
        };
        assert_eq!(given_up(600, result, |second| second == 303), None);
        // The brokers go in the middle of that.
        let result = |second| if (2..100).contains(&second) { AWAY } else { OLD };
        assert_eq!(given_up(150, result, |_| false), None);
        assert_eq!(given_up(600, result, |_| false), Some(160));
        assert_eq!(given_up(600, |_| OLD, |second| second % 59 == 0), None, "it hears of them");
    }

    #[test]
    fn other_errors_are_waited_for() {
        assert_eq!(given_up(600, |_| AWAY, |_| false), None);
        let taken = |second| if second % 30 == 0 { Ok(()) } else { UNKNOWN };
        assert_eq!(given_up(600, taken, |_| false), None);
    }
}

//! Messages that the input topic deleted before they were received: by its retention, mostly.
//!
//! A consumer that asks for a deleted offset is sent on to what is left, and that is all that it
//! sees. Nothing comes for other offsets too ([`Gap`]), but those of deleted messages lie before
//! the partition's beginning. Where that is comes with librdkafka's statistics, every two seconds.

use std::collections::HashMap;

use prometheus::IntCounter;

use crate::kafka::consumer::PartitionEnd;
use crate::kafka::offsets::{Gap, OffsetLedger};

/// Counts them.
pub(super) struct Deleted {
    counter: IntCounter,
    /// Gaps whose partition's beginning is told later: statistics that come now may be older than
    /// the gap.
    gaps: HashMap<i32, Gap>,
}

impl Deleted {
    pub(super) fn new(counter: IntCounter) -> Deleted {
        Deleted { counter, gaps: HashMap::new() }
    }

    /// Looks at what came since the last time; the ends are those of new statistics.
    pub(super) fn report(&mut self, ends: &HashMap<i32, PartitionEnd>, ledger: &mut OffsetLedger) {
        for (partition, end) in ends {
            let Some(gap) = self.gaps.remove(partition) else { continue };
            if end.beginning <= gap.from.0 {
                continue;
            }
            self.counter.inc_by(gap.offsets() as u64);
            tracing::error!(
                partition,
                from = gap.from.0,
                to = gap.to.0,
                at_most = gap.offsets(),
                "the topic deleted messages before they were received, as its retention.ms or retention.bytes asks: \
                 they get no vectors"
            );
        }
        if !ends.is_empty() {
            self.gaps.extend(ledger.take_gaps());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;
    use crate::kafka::offsets::Incoming;
    use crate::metrics::Metrics;
    use crate::tracked::{Assignment, NextOffset, Offset};

    #[test]
    fn only_what_lay_before_the_beginning_was_deleted() {
        let counter = Metrics::new().source.deleted;
        let mut deleted = Deleted::new(counter.clone());
        let mut ledger = OffsetLedger::default();
        for partition in 0..3 {
            ledger.assign(Assignment::new(partition, 1));
        }
        // Where the last one begins isn't known, and so none is missed.
        ledger.begin_at(0, NextOffset(5));
        ledger.begin_at(1, NextOffset(5));
        for (partition, offset) in [(0, 20), (1, 20), (2, 20), (0, 22), (0, 23)] {
            let offset = Offset(offset);
            let message = Incoming { offset, bytes: 1, timestamp_ms: None, digest: 0 };
            ledger.open(partition, message, Instant::now()).unwrap();
        }
        ledger.revoke(0);
        let ends = |beginning: [i64; 3]| -> HashMap<i32, PartitionEnd> {
            let end = |beginning| PartitionEnd { end: 30, withheld: 0, beginning, is_read: true };
            (0..).zip(beginning.map(end)).collect()
        };
        // These are of before the gaps.
        deleted.report(&ends([0, 0, 0]), &mut ledger);
        assert_eq!(counter.get(), 0);
        deleted.report(&HashMap::new(), &mut ledger);
        // In partition 1 nothing was deleted: what has no message was compacted, say.
        deleted.report(&ends([20, 5, 20]), &mut ledger);
        assert_eq!(counter.get(), 15);
        deleted.report(&ends([25, 25, 25]), &mut ledger);
        assert_eq!(counter.get(), 15, "each is counted once");
    }
}

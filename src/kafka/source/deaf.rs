//! Whether the consumer hears of what comes into its partitions.
//!
//! librdkafka takes a partition for read where its fetches bring nothing more, and the lag comes
//! from the same answers. Where it stands still it tells of no error, and the lag stays what it was.
//! (It did of a topic that was deleted and made anew, where the partition's leader had changed
//! before, and does with brokers that have no ids for topics.) So partitions that seem to be read
//! are asked for by another client too, which remembers nothing of them.
//!
//! A consumer that hears knows at each look at least the end that the other was told at the look
//! before, and no end beyond the one that the other is told then. One that doesn't for more than a
//! minute has to be replaced, and so the worker.

use std::collections::HashMap;

use thiserror::Error;

use super::ends::Watermarks;
use crate::kafka::consumer::PartitionEnd;

/// Looks in a row at which it was wrong. A connection that has died without a word is noticed
/// within a minute, which is `socket.timeout.ms`.
const LOOKS: u32 = 5;

/// Offsets by partition.
type Offsets = HashMap<i32, i64>;

/// Looks after what the consumer hears.
#[derive(Default)]
pub(super) struct Deaf {
    /// The ends of which the consumer says that it has read up to there, and positions where it
    /// knows no end.
    read: Offsets,
    /// Those of them for which a question is under way, as they were before it.
    asked: Offsets,
    looks: HashMap<i32, Look>,
}

/// What a look at a partition has shown.
#[derive(Clone, Copy, Debug)]
struct Look {
    /// What the other client was told.
    told: i64,
    /// Looks in a row at which the consumer was wrong.
    wrong: u32,
}

/// What the consumer has missed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error(
    "the consumer knows partition {partition} up to offset {heard}, and the brokers end it at {told}, for more than a \
     minute: the topic was made anew under the worker, or librdkafka stands still; this worker has to join anew"
)]
pub struct Missed {
    /// Where.
    pub partition: i32,
    /// The end that the consumer knows, or where it is.
    pub heard: i64,
    /// The one that the brokers tell.
    pub told: i64,
}

impl Deaf {
    /// Takes what new statistics say of partitions: their ends, and the positions of those whose
    /// ends aren't known. It begins anew with those that have something to be handed over.
    pub(super) fn note(&mut self, ends: &HashMap<i32, PartitionEnd>, positions: Offsets) {
        if ends.is_empty() && positions.is_empty() {
            return;
        }
        self.read = positions;
        let read = ends.iter().filter(|(_, end)| end.is_read);
        self.read.extend(read.map(|(&partition, end)| (partition, end.end)));
        self.asked.retain(|partition, _| self.read.contains_key(partition));
        self.looks.retain(|partition, _| self.read.contains_key(partition));
    }

    /// Returns the partitions that seem to be read.
    pub(super) fn partitions(&self) -> Vec<i32> {
        self.read.keys().copied().collect()
    }

    /// Notes that the other client is asked for them.
    pub(super) fn asked(&mut self) {
        self.asked = self.read.clone();
    }

    /// Notes that it wasn't told anything.
    pub(super) fn not_told(&mut self) {
        self.looks.clear();
    }

    /// Begins anew with a partition.
    pub(super) fn forget(&mut self, partition: i32) {
        self.read.remove(&partition);
        self.asked.remove(&partition);
        self.looks.remove(&partition);
    }

    /// Begins anew with all partitions.
    pub(super) fn forget_all(&mut self) {
        self.read.clear();
        self.asked.clear();
        self.looks.clear();
    }

    /// Compares what the other client was told with what the consumer knew before.
    ///
    /// # Errors
    ///
    /// When the consumer has missed something for too long.
    pub(super) fn judge(&mut self, told: &Watermarks) -> Result<(), Missed> {
        for (partition, heard) in self.asked.drain() {
            let Some(&(_, told)) = told.get(&partition) else { continue };
            let before = self.looks.get(&partition);
            let is_wrong = heard > told || before.is_some_and(|before| heard < before.told);
            let wrong = if is_wrong { before.map_or(0, |before| before.wrong) + 1 } else { 0 };
            if wrong >= LOOKS {
                return Err(Missed { partition, heard, told });
            }
            self.looks.insert(partition, Look { told, wrong });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Returns at which look the consumer is found to be deaf, that knew the first numbers when the
    /// brokers told the second.
    fn found(looks: &[(i64, i64)]) -> Option<usize> {
        let mut deaf = Deaf::default();
        looks.iter().position(|&(heard, told)| {
            deaf.asked = Offsets::from([(0, heard)]);
            deaf.judge(&Watermarks::from([(0, (0, told))])).is_err()
        })
    }

    #[test]
    fn a_consumer_that_hears_of_nothing_new_is_found() {
        assert_eq!(found(&[(5, 5), (5, 20), (5, 20), (5, 20), (5, 20), (5, 20), (5, 20)]), Some(6));
        assert_eq!(found(&[(5, 20), (5, 30), (5, 40), (5, 50), (5, 50), (5, 60)]), Some(5));
        // The topic was made anew, and has less.
        assert_eq!(found(&[(90, 90), (90, 0), (90, 3), (90, 7), (90, 7), (90, 8)]), Some(5));
    }

    #[test]
    fn one_that_is_late_for_a_while_is_not() {
        let late = [(5, 20); LOOKS as usize];
        let looks = [&late[..], &[(20, 20), (20, 30)], &[(20, 30); 3], &[(30, 30)]].concat();
        assert_eq!(found(&looks), None);
    }

    proptest! {
        #[test]
        fn one_that_hears_is_never_found(steps in prop::collection::vec((0i64..5, 0i64..5), 1..50)) {
            // Between two looks the partition gets more, of which the consumer hears at least what
            // the other client was told, and between its last word and the other's answer again.
            let mut told = 0;
            let looks: Vec<(i64, i64)> = steps
                .into_iter()
                .map(|(before, after)| {
                    let heard = told + before;
                    told = heard + after;
                    (heard, told)
                })
                .collect();
            prop_assert_eq!(found(&looks), None);
        }
    }

    #[test]
    fn what_the_consumer_still_fetches_is_not_looked_at() {
        let mut deaf = Deaf::default();
        let end = |is_read| PartitionEnd { end: 7, withheld: 0, beginning: 0, is_read };
        let ends = HashMap::from([(0, end(true)), (1, end(false)), (2, end(true))]);
        deaf.note(&ends, Offsets::from([(3, 4)]));
        deaf.looks.insert(0, Look { told: 9, wrong: LOOKS - 1 });
        deaf.forget(2);
        assert_eq!(deaf.read, Offsets::from([(0, 7), (3, 4)]));
        deaf.note(&HashMap::new(), Offsets::new());
        assert_eq!(deaf.read.len(), 2, "there are no new statistics");
        deaf.note(&HashMap::from([(0, end(false))]), Offsets::new());
        assert!(deaf.partitions().is_empty() && deaf.looks.is_empty());
    }
}

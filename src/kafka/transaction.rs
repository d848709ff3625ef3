//! What a transaction holds until it is committed, and what its errors ask for: plain code without
//! clients, clock or threads.
//!
//! Everything that was sent in a transaction is kept until the brokers say that it is committed, so
//! that it can be sent again without being embedded again.
//!
//! # Invariants
//!
//! - The offset of a partition is the one after the last item of it, which holds since items of an
//!   assignment come in the order of the partition, without gaps.
//! - Nothing of an assignment that is over is sent again.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use rdkafka::error::{KafkaError, RDKafkaError, RDKafkaErrorCode};

use crate::tracked::{Assignment, NextOffset, Offset};

/// What has been sent and isn't committed, in the order in which it left.
#[derive(Debug)]
pub struct Pending<T> {
    items: Vec<Item<T>>,
    bytes: usize,
    positions: BTreeMap<i32, Position>,
    /// Whether there are items of two assignments of one partition, of which the first is over.
    is_superseded: bool,
}

#[derive(Debug)]
struct Item<T> {
    assignment: Arc<Assignment>,
    offset: Offset,
    bytes: usize,
    payload: T,
}

#[derive(Debug)]
struct Position {
    assignment: Arc<Assignment>,
    next: NextOffset,
}

impl<T> Default for Pending<T> {
    fn default() -> Self {
        Pending { items: Vec::new(), bytes: 0, positions: BTreeMap::new(), is_superseded: false }
    }
}

impl<T> Pending<T> {
    /// Enters what is about to be sent.
    pub fn push(&mut self, assignment: &Arc<Assignment>, offset: Offset, bytes: usize, payload: T) {
        let position = Position { assignment: Arc::clone(assignment), next: offset.next() };
        let before = self.positions.insert(assignment.partition, position);
        self.is_superseded |= before.is_some_and(|b| b.assignment.number != assignment.number);
        self.bytes += bytes;
        self.items.push(Item { assignment: Arc::clone(assignment), offset, bytes, payload });
    }

    /// Returns the number of items.
    pub fn len(&self) -> usize {
        self.items.len()
    }

    /// Returns whether there is nothing to commit.
    pub fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    /// Returns the bytes of the items' messages.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Returns the offsets to commit, by partition.
    pub fn offsets(&self) -> impl Iterator<Item = (i32, NextOffset)> {
        self.positions.iter().map(|(&partition, position)| (partition, position.next))
    }

    /// Returns whether a partition of it is on its way out, so that the commit is waited for.
    pub fn is_leaving(&self) -> bool {
        self.positions.values().any(|position| position.assignment.is_leaving())
    }

    /// Returns whether a partition of it is another's: the transaction must not be committed.
    pub fn has_ended(&self) -> bool {
        self.is_superseded || self.positions.values().any(|p| p.assignment.is_revoked())
    }

    /// Returns all items, of a transaction that was committed.
    pub fn take(&mut self) -> impl Iterator<Item = T> + use<T> {
        std::mem::take(self).items.into_iter().map(|item| item.payload)
    }

    /// Forgets the items of partitions that are another's.
    pub fn drop_ended(&mut self) {
        for item in std::mem::take(self).items {
            if !item.assignment.is_revoked() {
                self.push(&item.assignment, item.offset, item.bytes, item.payload);
            }
        }
    }

    /// Takes out what turns out to be committed, by the group's committed offsets, and forgets what
    /// is another's. A commit is this transaction's where it is the offset that was sent; one that
    /// lies further is another owner's, or of a log that has been cut since.
    pub fn resolve(&mut self, committed: &HashMap<i32, NextOffset>) -> Vec<T> {
        let mut settled = Vec::new();
        let Pending { items, positions, .. } = std::mem::take(self);
        for item in items {
            let partition = item.assignment.partition;
            let sent = positions.get(&partition).map(|position| &position.next);
            if sent == committed.get(&partition) {
                settled.push(item.payload);
            } else if !item.assignment.is_revoked() {
                self.push(&item.assignment, item.offset, item.bytes, item.payload);
            }
        }
        settled
    }

    /// Returns the items, to be sent again.
    pub fn items(&self) -> impl Iterator<Item = &T> {
        self.items.iter().map(|item| &item.payload)
    }
}

/// What an error asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The same call again.
    Repeat,
    /// The transaction is aborted, and what it held is sent again.
    Abort,
    /// The producer is at its end, or what became of the transaction isn't known: a producer made
    /// anew ends the transaction, and the group's offsets tell how.
    Remake,
    /// The brokers know a newer producer of the same name, or they timed out this one's
    /// transaction.
    Fenced,
    /// No other try would end better.
    Fail,
}

/// What librdkafka says of an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Said {
    /// Its code.
    pub code: RDKafkaErrorCode,
    /// The producer is of no more use.
    pub is_fatal: bool,
    /// The transaction can only be aborted.
    pub requires_abort: bool,
    /// The call may be repeated.
    pub is_retriable: bool,
}

impl From<&RDKafkaError> for Said {
    fn from(error: &RDKafkaError) -> Said {
        Said {
            code: error.code(),
            is_fatal: error.is_fatal(),
            requires_abort: error.txn_requires_abort(),
            is_retriable: error.is_retriable(),
        }
    }
}

impl From<&KafkaError> for Said {
    fn from(error: &KafkaError) -> Said {
        match error {
            KafkaError::Transaction(error) => error.into(),
            other => {
                let code = other.rdkafka_error_code().unwrap_or(RDKafkaErrorCode::Unknown);
                let is_flush = matches!(other, KafkaError::Flush(_));
                Said {
                    code,
                    is_fatal: code == RDKafkaErrorCode::Fatal,
                    // A record that isn't taken for the state of the transaction, or comes back.
                    requires_abort: matches!(other, KafkaError::MessageProduction(_)),
                    is_retriable: is_flush && code == RDKafkaErrorCode::OperationTimedOut,
                }
            }
        }
    }
}

impl Said {
    /// Returns what the error asks for.
    pub fn verdict(self) -> Verdict {
        if is_refusal(self.code) {
            return Verdict::Fail;
        }
        match self {
            Said {
                is_fatal: true,
                code:
                    RDKafkaErrorCode::Fenced
                    | RDKafkaErrorCode::ProducerFenced
                    | RDKafkaErrorCode::InvalidProducerEpoch,
                ..
            } => Verdict::Fenced,
            Said { is_fatal: true, .. } => Verdict::Remake,
            Said { requires_abort: true, .. } => Verdict::Abort,
            Said { is_retriable: true, .. } => Verdict::Repeat,
            _ => Verdict::Remake,
        }
    }
}

/// Returns whether an error says that the brokers, the client or the system will not have it, now
/// or later.
pub fn is_refusal(code: RDKafkaErrorCode) -> bool {
    matches!(
        code,
        RDKafkaErrorCode::TopicAuthorizationFailed
            | RDKafkaErrorCode::GroupAuthorizationFailed
            | RDKafkaErrorCode::ClusterAuthorizationFailed
            | RDKafkaErrorCode::TransactionalIdAuthorizationFailed
            | RDKafkaErrorCode::InvalidTransactionTimeout
            | RDKafkaErrorCode::UnknownTopicOrPartition
            | RDKafkaErrorCode::UnknownTopic
            | RDKafkaErrorCode::UnknownPartition
            | RDKafkaErrorCode::InvalidTopic
            | RDKafkaErrorCode::UnsupportedFeature
            | RDKafkaErrorCode::CriticalSystemResource
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn each_error_asks_for_one_thing() {
        use RDKafkaErrorCode as Code;
        let said = |code, is_fatal, requires_abort, is_retriable| Said {
            code,
            is_fatal,
            requires_abort,
            is_retriable,
        };
        for (said, verdict) in [
            (said(Code::OperationTimedOut, false, false, true), Verdict::Repeat),
            (said(Code::NotCoordinator, false, false, true), Verdict::Repeat),
            (said(Code::IllegalGeneration, false, true, false), Verdict::Abort),
            (said(Code::MessageTimedOut, false, true, false), Verdict::Abort),
            (said(Code::Fenced, true, false, false), Verdict::Fenced),
            (said(Code::InvalidTransactionalState, true, false, false), Verdict::Remake),
            (said(Code::State, false, false, false), Verdict::Remake),
            (said(Code::TransactionalIdAuthorizationFailed, true, false, false), Verdict::Fail),
            (said(Code::TopicAuthorizationFailed, false, true, false), Verdict::Fail),
        ] {
            assert_eq!(said.verdict(), verdict, "{said:?}");
        }
        let flush = KafkaError::Flush(Code::OperationTimedOut);
        assert_eq!(Said::from(&flush).verdict(), Verdict::Repeat);
        let refused = KafkaError::MessageProduction(Code::State);
        assert_eq!(Said::from(&refused).verdict(), Verdict::Abort);
    }

    #[test]
    fn items_of_two_assignments_of_a_partition_are_no_transaction() {
        let (first, second) = (Assignment::new(3, 1), Assignment::new(3, 2));
        let mut pending = Pending::default();
        pending.push(&first, Offset(1), 10, 'a');
        assert!(!pending.has_ended());
        first.revoke();
        pending.push(&second, Offset(1), 10, 'b');
        assert!(pending.has_ended());
        pending.drop_ended();
        assert!(!pending.has_ended());
        assert_eq!(pending.bytes(), 10);
        assert_eq!(pending.take().collect::<Vec<_>>(), ['b']);
        assert!(pending.is_empty());
    }

    /// The group's offset lies behind the end of a log that was cut, and messages have come anew.
    #[test]
    fn an_offset_beyond_what_was_sent_settles_nothing() {
        let assignment = Assignment::new(3, 1);
        let mut pending = Pending::default();
        pending.push(&assignment, Offset(7), 1, 'a');
        pending.push(&assignment, Offset(8), 1, 'b');
        assert_eq!(pending.resolve(&HashMap::from([(3, NextOffset(1000))])), []);
        assert_eq!(pending.resolve(&HashMap::from([(3, NextOffset(8))])), []);
        assert_eq!(pending.resolve(&HashMap::new()), []);
        assert_eq!(pending.resolve(&HashMap::from([(3, NextOffset(9))])), ['a', 'b']);
    }

    /// What happens to a transaction.
    #[derive(Clone, Debug)]
    enum Step {
        Push {
            partition: i32,
        },
        Commit,
        /// It is aborted, and what it held is sent again.
        Abort,
        /// The answer to the commit is lost; whether the brokers had carried it out.
        Unknown {
            carried_out: bool,
        },
        /// The partition is taken away and comes back, and goes on from its committed offset.
        Revoke {
            partition: i32,
        },
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            6 => (0..3).prop_map(|partition| Step::Push { partition }),
            2 => Just(Step::Commit),
            1 => Just(Step::Abort),
            1 => any::<bool>().prop_map(|carried_out| Step::Unknown { carried_out }),
            1 => (0..3).prop_map(|partition| Step::Revoke { partition }),
        ];
        prop::collection::vec(step, 1..120)
    }

    /// The brokers: what readers of committed records see, and the group's offsets.
    #[derive(Default)]
    struct Brokers {
        open: Vec<(i32, i64)>,
        seen: Vec<(i32, i64)>,
        committed: HashMap<i32, NextOffset>,
    }

    impl Brokers {
        fn commit(&mut self, offsets: impl Iterator<Item = (i32, NextOffset)>) {
            self.seen.append(&mut self.open);
            self.committed.extend(offsets);
        }
    }

    proptest! {
        #[test]
        fn every_message_is_seen_once_whatever_happens(steps in steps()) {
            let mut brokers = Brokers::default();
            let mut pending = Pending::default();
            let mut number = 0;
            let mut assign = |partition| { number += 1; Assignment::new(partition, number) };
            let mut assignments = [0, 1, 2].map(&mut assign);
            let mut next = [0i64; 3];
            let mut settled = Vec::new();
            for step in steps {
                match step {
                    Step::Push { partition } => {
                        let offset = next[partition as usize];
                        next[partition as usize] += 1;
                        let item = (partition, offset);
                        pending.push(&assignments[partition as usize], Offset(offset), 1, item);
                        brokers.open.push(item);
                    }
                    Step::Commit if !pending.has_ended() => {
                        brokers.commit(pending.offsets());
                        settled.extend(pending.take());
                    }
                    Step::Commit | Step::Abort => {
                        pending.drop_ended();
                        brokers.open = pending.items().copied().collect();
                    }
                    Step::Unknown { carried_out } => {
                        if carried_out && !pending.has_ended() {
                            brokers.commit(pending.offsets());
                        }
                        settled.extend(pending.resolve(&brokers.committed));
                        brokers.open = pending.items().copied().collect();
                    }
                    Step::Revoke { partition } => {
                        let index = partition as usize;
                        assignments[index].revoke();
                        assignments[index] = assign(partition);
                        next[index] = brokers.committed.get(&partition).map_or(0, |c| c.0);
                    }
                }
                for partition in 0..3 {
                    // In order, each once, and the group's offset says how many.
                    let of = |items: &[(i32, i64)]| -> Vec<i64> {
                        items.iter().filter(|(p, _)| *p == partition).map(|(_, o)| *o).collect()
                    };
                    let end = brokers.committed.get(&partition).map_or(0, |c| c.0);
                    prop_assert_eq!(of(&brokers.seen), (0..end).collect::<Vec<_>>());
                    prop_assert!(of(&settled).len() <= end as usize);
                }
            }
        }
    }
}

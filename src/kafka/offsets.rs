//! Which offsets may be committed: plain bookkeeping without Kafka, clock or threads.
//!
//! Three offsets matter in a partition: the last received, the settled ones among those received,
//! and the one to commit, which is the first that isn't settled. Messages settle in any order; an
//! offset is committable only when it and all received before it are.
//!
//! # Invariants
//!
//! - No offset is committable before every message received before it is settled.
//! - Offsets of an assignment grow; what goes back is refused by [`OffsetLedger::open`], but for
//!   the last message, which may come twice and is entered once.
//! - A settlement counts for the assignment that it was received under and for no other.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Instant;

use crate::tracked::{Assignment, NextOffset, Offset};

/// The books of all partitions that this worker owns.
#[derive(Debug, Default)]
pub struct OffsetLedger {
    partitions: HashMap<i32, Books>,
    in_flight: InFlight,
    /// The widest of each partition since they were last taken.
    gaps: HashMap<i32, Gap>,
}

/// Offsets for which no message came. They may have been of transaction markers, of messages that
/// were compacted away or whose transaction was aborted, and of messages that were deleted before
/// they were fetched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gap {
    /// The first of them.
    pub from: NextOffset,
    /// That of the message which came instead.
    pub to: Offset,
}

impl Gap {
    /// Returns the number of offsets.
    pub fn offsets(&self) -> i64 {
        self.to.0 - self.from.0
    }
}

/// What has been received and isn't committable yet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct InFlight {
    /// Number of messages.
    pub messages: usize,
    /// Their bytes.
    pub bytes: usize,
}

/// What is noted of a message that was received.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Incoming {
    /// Its offset.
    pub offset: Offset,
    /// What it weighs.
    pub bytes: usize,
    /// Milliseconds since 1970, if it has a timestamp.
    pub timestamp_ms: Option<i64>,
    /// By which it is known from another at the same offset.
    pub digest: u64,
}

/// The books of one assignment.
#[derive(Debug)]
struct Books {
    assignment: Arc<Assignment>,
    /// Received and not yet committable, by offset. The first is unsettled.
    window: VecDeque<Entry>,
    next_sequence: u64,
    /// The last one received.
    last: Option<Incoming>,
    /// Where the assignment began, if that is known.
    begins: Option<NextOffset>,
    committable: Option<NextOffset>,
    /// The timestamp of the message before `committable`.
    passed_timestamp_ms: Option<i64>,
    /// What was last sent to be committed, unless that has failed.
    sent: Option<NextOffset>,
}

/// How far a partition is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// The offset from which the partition would go on; `None` where it isn't known, before the
    /// first has been settled.
    pub position: Option<NextOffset>,
    /// Whether a message is received and not committable.
    pub is_open: bool,
    /// The timestamp of the first such message; where there is none, of the last that was settled.
    pub timestamp_ms: Option<i64>,
}

#[derive(Debug)]
struct Entry {
    offset: Offset,
    bytes: usize,
    timestamp_ms: Option<i64>,
    received: Instant,
    settled: bool,
}

/// The message that has been in the worker for longest; of several that came together the first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Oldest {
    /// When it was received.
    pub received: Instant,
    /// Its partition.
    pub partition: i32,
    /// Its offset.
    pub offset: Offset,
}

/// The offset lies at or before the last one received.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("offset {found} came after {last} of the same partition", found = .found.0, last = .last.0)]
pub struct WentBack {
    /// The last one received.
    pub last: Offset,
    /// The one that came.
    pub found: Offset,
    /// The first that isn't settled, where it lies before that one: to go on from `found` would
    /// skip it.
    pub skipped: Option<Offset>,
}

impl WentBack {
    /// Returns where to go on, to skip nothing.
    pub fn begins(&self) -> NextOffset {
        NextOffset(self.skipped.unwrap_or(self.found).0)
    }
}

impl OffsetLedger {
    /// Begins an assignment. An earlier one of the same partition is forgotten.
    pub fn assign(&mut self, assignment: Arc<Assignment>) {
        let books = Books {
            assignment: assignment.clone(),
            window: VecDeque::new(),
            next_sequence: 0,
            last: None,
            begins: None,
            committable: None,
            passed_timestamp_ms: None,
            sent: None,
        };
        self.revoke(assignment.partition);
        self.partitions.insert(assignment.partition, books);
    }

    /// Ends the partition's assignment and forgets its books; returns it.
    pub fn revoke(&mut self, partition: i32) -> Option<Arc<Assignment>> {
        let books = self.partitions.remove(&partition)?;
        self.in_flight.messages -= books.window.len();
        self.in_flight.bytes -= books.window.iter().map(|entry| entry.bytes).sum::<usize>();
        Some(books.assignment)
    }

    /// Returns the partition's assignment.
    pub fn assignment(&self, partition: i32) -> Option<&Arc<Assignment>> {
        self.partitions.get(&partition).map(|books| &books.assignment)
    }

    /// Enters a message that was received, and returns its number in the assignment; `None` where
    /// the partition isn't assigned, or the message is the last one again, which librdkafka may
    /// hand out twice around a rebalance.
    ///
    /// # Errors
    ///
    /// When the offset isn't after the last one, as after a reset: the assignment is over then.
    pub fn open(
        &mut self,
        partition: i32,
        message: Incoming,
        received: Instant,
    ) -> Result<Option<u64>, WentBack> {
        let Some(books) = self.partitions.get_mut(&partition) else { return Ok(None) };
        let Incoming { offset, bytes, timestamp_ms, .. } = message;
        if books.last == Some(message) {
            return Ok(None);
        }
        if let Some(last) = books.last.filter(|last| offset <= last.offset) {
            let first = books.window.front().map(|entry| entry.offset);
            let skipped = first.filter(|first| *first < offset);
            return Err(WentBack { last: last.offset, found: offset, skipped });
        }
        let due = books.last.map(|last| last.offset.next()).or(books.begins);
        if let Some(from) = due.filter(|due| due.0 < offset.0) {
            let gap = Gap { from, to: offset };
            let widest = self.gaps.entry(partition).or_insert(gap);
            if widest.offsets() < gap.offsets() {
                *widest = gap;
            }
        }
        books.last = Some(message);
        books.window.push_back(Entry { offset, bytes, timestamp_ms, received, settled: false });
        self.in_flight.messages += 1;
        self.in_flight.bytes += bytes;
        books.next_sequence += 1;
        Ok(Some(books.next_sequence - 1))
    }

    /// Settles a message. Returns whether it was open: a settlement of an assignment that is over,
    /// or a second one, is not.
    pub fn settle(&mut self, assignment: &Assignment, offset: Offset) -> bool {
        let Some(books) = self.partitions.get_mut(&assignment.partition) else { return false };
        if books.assignment.number != assignment.number {
            return false;
        }
        let Ok(index) = books.window.binary_search_by_key(&offset, |entry| entry.offset) else {
            return false;
        };
        if std::mem::replace(&mut books.window[index].settled, true) {
            return false;
        }
        while let Some(entry) = books.window.pop_front_if(|entry| entry.settled) {
            books.committable = Some(entry.offset.next());
            books.passed_timestamp_ms = entry.timestamp_ms;
            self.in_flight.messages -= 1;
            self.in_flight.bytes -= entry.bytes;
        }
        true
    }

    /// Returns the widest gap of each partition that has had one since the last call, also of those
    /// that have ended.
    pub fn take_gaps(&mut self) -> HashMap<i32, Gap> {
        std::mem::take(&mut self.gaps)
    }

    /// Notes the offset at which the partition's assignment begins.
    pub fn begin_at(&mut self, partition: i32, offset: NextOffset) {
        if let Some(books) = self.partitions.get_mut(&partition) {
            books.begins = Some(offset);
        }
    }

    /// Begins the partition's assignment at an offset before the group's, which is of a log whose
    /// end was cut off: it is committable though nothing has settled.
    pub fn begin_anew_at(&mut self, partition: i32, offset: NextOffset) {
        if let Some(books) = self.partitions.get_mut(&partition) {
            (books.begins, books.committable) = (Some(offset), Some(offset));
        }
    }

    /// Returns the offsets that may be committed and haven't been, by partition.
    pub fn committable(&self) -> Vec<(i32, NextOffset)> {
        let mut offsets: Vec<_> = self
            .partitions
            .iter()
            .filter(|(_, books)| books.committable != books.sent)
            .filter_map(|(&partition, books)| Some((partition, books.committable?)))
            .collect();
        offsets.sort_unstable();
        offsets
    }

    /// Notes that an offset was sent to be committed. A commit that fails is made good by
    /// [`OffsetLedger::commit_failed`].
    pub fn commit_sent(&mut self, partition: i32, offset: NextOffset) {
        if let Some(books) = self.partitions.get_mut(&partition) {
            books.sent = Some(offset);
        }
    }

    /// Makes the partition's offset committable again.
    pub fn commit_failed(&mut self, partition: i32) {
        if let Some(books) = self.partitions.get_mut(&partition) {
            books.sent = None;
        }
    }

    /// Returns how far a partition is; `None` where it isn't assigned.
    pub fn progress(&self, partition: i32) -> Option<Progress> {
        let books = self.partitions.get(&partition)?;
        let first = books.window.front();
        Some(Progress {
            position: books.committable.or(books.begins),
            is_open: first.is_some(),
            timestamp_ms: first.map_or(books.passed_timestamp_ms, |entry| entry.timestamp_ms),
        })
    }

    /// Begins the end of the partitions' assignments, see [`Assignment::leave`].
    pub fn leave(&self, partitions: &[i32]) {
        for partition in partitions {
            if let Some(books) = self.partitions.get(partition) {
                books.assignment.leave();
            }
        }
    }

    /// Returns whether a message of the partition is still somewhere in the worker: every one holds
    /// on to its assignment. That none is left means that nothing more will settle, not that
    /// everything has settled.
    pub fn is_busy(&self, partition: i32) -> bool {
        let Some(books) = self.partitions.get(&partition) else { return false };
        Arc::strong_count(&books.assignment) > 1
    }

    /// Returns the number of unsettled messages of a partition.
    pub fn unsettled(&self, partition: i32) -> usize {
        let Some(books) = self.partitions.get(&partition) else { return 0 };
        books.window.iter().filter(|entry| !entry.settled).count()
    }

    /// Returns what has been received and isn't committable yet.
    pub fn in_flight(&self) -> InFlight {
        self.in_flight
    }

    /// Returns the oldest unsettled message.
    pub fn oldest(&self) -> Option<Oldest> {
        let first = |(&partition, books): (&i32, &Books)| {
            let Entry { offset, received, .. } = *books.window.front()?;
            Some(Oldest { received, partition, offset })
        };
        self.partitions.iter().filter_map(first).min()
    }

    /// Returns the partitions that are assigned, in order.
    pub fn partitions(&self) -> Vec<i32> {
        let mut partitions: Vec<_> = self.partitions.keys().copied().collect();
        partitions.sort_unstable();
        partitions
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    fn now() -> Instant {
        Instant::now()
    }

    fn message(offset: i64, timestamp_ms: Option<i64>) -> Incoming {
        Incoming { offset: Offset(offset), bytes: 1, timestamp_ms, digest: 7 }
    }

    fn ledger() -> (OffsetLedger, Arc<Assignment>) {
        let assignment = Assignment::new(0, 1);
        let mut ledger = OffsetLedger::default();
        ledger.assign(assignment.clone());
        (ledger, assignment)
    }

    #[test]
    fn progress_tells_of_the_oldest_that_is_open_else_of_the_last_that_was() {
        let (mut ledger, assignment) = ledger();
        assert_eq!(ledger.progress(0), Some(Progress::default()));
        assert_eq!(ledger.progress(1), None, "not assigned");
        ledger.open(0, message(3, Some(30)), now()).unwrap();
        ledger.open(0, message(4, Some(40)), now()).unwrap();
        ledger.settle(&assignment, Offset(4));
        let open = Progress { position: None, is_open: true, timestamp_ms: Some(30) };
        assert_eq!(ledger.progress(0), Some(open));
        ledger.settle(&assignment, Offset(3));
        let position = Some(NextOffset(5));
        let done = Progress { position, is_open: false, timestamp_ms: Some(40) };
        assert_eq!(ledger.progress(0), Some(done));
    }

    #[test]
    fn a_partition_is_where_it_began_before_anything_has_settled() {
        let (mut ledger, assignment) = ledger();
        ledger.begin_at(0, NextOffset(3));
        let position = |ledger: &OffsetLedger| ledger.progress(0).unwrap().position;
        assert_eq!(position(&ledger), Some(NextOffset(3)));
        ledger.open(0, message(5, None), now()).unwrap();
        assert_eq!(position(&ledger), Some(NextOffset(3)));
        ledger.settle(&assignment, Offset(5));
        assert_eq!(position(&ledger), Some(NextOffset(6)));
    }

    #[test]
    fn the_widest_gap_of_a_partition_is_told_once() {
        let (mut ledger, _assignment) = ledger();
        ledger.begin_at(0, NextOffset(3));
        let mut gap_after = |offsets: &[i64]| {
            for &offset in offsets {
                ledger.open(0, message(offset, None), now()).unwrap();
            }
            let gap = ledger.take_gaps().remove(&0)?;
            Some((gap.from.0, gap.to.0, gap.offsets()))
        };
        assert_eq!(gap_after(&[3, 4]), None);
        assert_eq!(gap_after(&[6, 10, 12]), Some((7, 10, 3)), "of three the second");
        assert_eq!(gap_after(&[13]), None);
        // Of one that begins with a gap.
        ledger.assign(Assignment::new(0, 2));
        ledger.begin_at(0, NextOffset(3));
        ledger.open(0, message(5, None), now()).unwrap();
        assert_eq!(ledger.take_gaps()[&0], Gap { from: NextOffset(3), to: Offset(5) });
    }

    #[test]
    fn what_is_on_its_way_keeps_a_partition_busy_and_what_is_settled_does_not_count() {
        let (mut ledger, assignment) = ledger();
        assert!(ledger.is_busy(0), "the test holds on to it");
        assert!(!ledger.is_busy(1), "not assigned");
        for offset in [3, 4, 5] {
            ledger.open(0, message(offset, None), now()).unwrap();
        }
        ledger.settle(&assignment, Offset(4));
        assert_eq!((ledger.unsettled(0), ledger.unsettled(1)), (2, 0));
        drop(assignment);
        assert!(!ledger.is_busy(0));
    }

    #[test]
    fn the_oldest_is_the_one_that_came_first() {
        let (mut ledger, assignment) = ledger();
        ledger.assign(Assignment::new(1, 2));
        assert_eq!(ledger.oldest(), None);
        let first = now();
        let second = first + std::time::Duration::from_millis(1);
        ledger.open(1, message(7, None), second).unwrap();
        ledger.open(0, message(8, None), first).unwrap();
        ledger.open(0, message(9, None), second).unwrap();
        let oldest = |partition, offset, received| {
            Some(Oldest { received, partition, offset: Offset(offset) })
        };
        assert_eq!(ledger.oldest(), oldest(0, 8, first));
        ledger.settle(&assignment, Offset(8));
        assert_eq!(ledger.oldest(), oldest(0, 9, second), "of two that came together");
    }

    #[test]
    fn an_offset_waits_for_all_before_it() {
        let (mut ledger, assignment) = ledger();
        for offset in [3, 5, 9] {
            ledger.open(0, message(offset, None), now()).unwrap();
        }
        assert!(ledger.settle(&assignment, Offset(5)));
        assert_eq!(ledger.committable(), []);
        assert!(ledger.settle(&assignment, Offset(3)));
        assert_eq!(ledger.committable(), [(0, NextOffset(6))]);
        ledger.commit_sent(0, NextOffset(6));
        assert_eq!(ledger.committable(), []);
        ledger.commit_failed(0);
        assert_eq!(ledger.committable(), [(0, NextOffset(6))]);
        assert_ne!(ledger.in_flight().messages, 0);
        assert!(ledger.settle(&assignment, Offset(9)));
        assert_eq!(ledger.in_flight().messages, 0);
    }

    #[test]
    fn a_settlement_of_an_assignment_that_is_over_counts_for_nothing() {
        let (mut ledger, old) = ledger();
        ledger.open(0, message(1, None), now()).unwrap();
        ledger.revoke(0);
        ledger.assign(Assignment::new(0, 2));
        ledger.open(0, message(1, None), now()).unwrap();
        assert!(!ledger.settle(&old, Offset(1)));
        assert_eq!(ledger.committable(), []);
    }

    #[test]
    fn an_offset_that_goes_back_is_refused() {
        let (mut ledger, assignment) = ledger();
        let mut open =
            |offset, digest| ledger.open(0, Incoming { digest, ..message(offset, None) }, now());
        open(7, 0).unwrap();
        let went_back = |last, found, skipped: Option<i64>| {
            Err(WentBack { last: Offset(last), found: Offset(found), skipped: skipped.map(Offset) })
        };
        assert_eq!(open(7, 1), went_back(7, 7, None), "another message");
        open(9, 0).unwrap();
        assert_eq!(open(7, 0), went_back(9, 7, None));
        assert_eq!(open(8, 0), went_back(9, 8, Some(7)), "it isn't settled");
        ledger.settle(&assignment, Offset(7));
        assert_eq!(ledger.open(0, message(8, None), now()), went_back(9, 8, None));
        assert_eq!(ledger.open(1, message(1, None), now()), Ok(None), "not assigned");
    }

    #[test]
    fn the_last_message_again_is_entered_once() {
        let (mut ledger, assignment) = ledger();
        assert_eq!(ledger.open(0, message(7, Some(70)), now()), Ok(Some(0)));
        assert_eq!(ledger.open(0, message(7, Some(70)), now()), Ok(None));
        assert_eq!(ledger.in_flight(), InFlight { messages: 1, bytes: 1 });
        assert!(ledger.settle(&assignment, Offset(7)));
        assert_eq!(ledger.open(0, message(7, Some(70)), now()), Ok(None), "settled or not");
        assert_eq!(ledger.committable(), [(0, NextOffset(8))]);
        assert_eq!(ledger.open(0, message(8, Some(70)), now()), Ok(Some(1)), "without a gap");

        let last = message(8, Some(70));
        for other in [
            Incoming { bytes: 2, ..last },
            Incoming { timestamp_ms: Some(71), ..last },
            Incoming { digest: 8, ..last },
        ] {
            let went_back = ledger.open(0, other, now());
            assert!(went_back.is_err(), "the log was cut, and another is there: {other:?}");
        }
    }

    #[derive(Clone, Debug)]
    enum Step {
        Open {
            partition: i32,
            gap: i64,
        },
        /// Settles one of the messages on their way, old assignments' too.
        Settle {
            which: usize,
        },
        Revoke {
            partition: i32,
        },
        Assign {
            partition: i32,
        },
        Commit,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            6 => (0..3i32, 1..4i64).prop_map(|(partition, gap)| Step::Open { partition, gap }),
            8 => any::<usize>().prop_map(|which| Step::Settle { which }),
            1 => (0..3i32).prop_map(|partition| Step::Revoke { partition }),
            2 => (0..3i32).prop_map(|partition| Step::Assign { partition }),
            2 => Just(Step::Commit),
        ]
    }

    /// What the ledger must agree with: every message of an assignment in a list, looked through
    /// from the beginning.
    #[derive(Default)]
    struct Naive {
        assignments: BTreeMap<i32, NaiveBooks>,
    }

    /// The assignment's number, its messages by offset with whether they are settled, and what is
    /// committed.
    type NaiveBooks = (u64, Vec<(i64, bool)>, Option<i64>);

    impl Naive {
        fn committable(&self) -> Vec<(i32, NextOffset)> {
            let mut all = Vec::new();
            for (&partition, (_, messages, committed)) in &self.assignments {
                let settled = messages.iter().take_while(|(_, settled)| *settled);
                let next = settled.last().map(|(offset, _)| offset + 1);
                if let Some(next) = next.filter(|next| Some(*next) != *committed) {
                    all.push((partition, NextOffset(next)));
                }
            }
            all
        }
    }

    proptest! {
        #[test]
        fn agrees_with_a_naive_model(steps in prop::collection::vec(step(), 0..200)) {
            let mut ledger = OffsetLedger::default();
            let mut naive = Naive::default();
            let mut on_their_way: Vec<(Arc<Assignment>, Offset)> = Vec::new();
            let mut number = 0;
            let mut offsets = [0i64; 3];
            for step in steps {
                match step {
                    Step::Assign { partition } => {
                        number += 1;
                        ledger.assign(Assignment::new(partition, number));
                        naive.assignments.insert(partition, (number, Vec::new(), None));
                    }
                    Step::Revoke { partition } => {
                        ledger.revoke(partition);
                        naive.assignments.remove(&partition);
                    }
                    Step::Open { partition, gap } => {
                        offsets[partition as usize] += gap;
                        let offset = offsets[partition as usize];
                        let opened = ledger.open(partition, message(offset, None), now()).unwrap();
                        let entry = naive.assignments.get_mut(&partition);
                        prop_assert_eq!(opened, entry.as_ref().map(|e| e.1.len() as u64));
                        if let Some((_, messages, _)) = entry {
                            messages.push((offset, false));
                            let assignment = ledger.assignment(partition).unwrap().clone();
                            on_their_way.push((assignment, Offset(offset)));
                        }
                    }
                    Step::Settle { which } if !on_their_way.is_empty() => {
                        let (assignment, offset) =
                            on_their_way.swap_remove(which % on_their_way.len());
                        let expected = naive
                            .assignments
                            .get_mut(&assignment.partition)
                            .filter(|(number, ..)| *number == assignment.number)
                            .and_then(|(_, messages, _)| {
                                messages.iter_mut().find(|(o, _)| *o == offset.0)
                            });
                        let is_open = expected.is_some();
                        if let Some((_, settled)) = expected {
                            *settled = true;
                        }
                        prop_assert_eq!(ledger.settle(&assignment, offset), is_open);
                        prop_assert!(!ledger.settle(&assignment, offset), "twice");
                    }
                    Step::Settle { .. } => {}
                    Step::Commit => {
                        for (partition, next) in ledger.committable() {
                            ledger.commit_sent(partition, next);
                            naive.assignments.get_mut(&partition).unwrap().2 = Some(next.0);
                        }
                    }
                }
                prop_assert_eq!(ledger.committable(), naive.committable());
                let unsettled = naive.assignments.values().flat_map(|(_, m, _)| m);
                prop_assert_eq!(ledger.in_flight().messages == 0, unsettled.clone().all(|(_, s)| *s));
                let waiting = |m: &Vec<(i64, bool)>| m.iter().skip_while(|(_, s)| *s).count();
                let waiting = naive.assignments.values().map(|(_, m, _)| waiting(m)).sum();
                prop_assert_eq!(ledger.in_flight(), InFlight { messages: waiting, bytes: waiting });
            }
        }
    }
}

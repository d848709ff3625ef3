//! Puts what comes out of the embedders back into the order of its partition.
//!
//! Batches finish in any order and rejections overtake them. The sequencer holds a vector back
//! until every message received before it has passed. How much it holds is bounded by the source's
//! in-flight limit.
//!
//! # Invariants
//!
//! - What comes out of one assignment comes out by sequence number, without gaps.
//! - Nothing of an assignment comes out after a later one of the same partition has begun.
//! - Nothing comes out that was received after a message that was abandoned.

use std::collections::{HashMap, VecDeque};

use crate::tracked::Assignment;

/// Reorders items of many partitions.
#[derive(Debug)]
pub struct Sequencer<T> {
    lanes: HashMap<i32, Lane<T>>,
    held_back: usize,
}

#[derive(Debug)]
struct Lane<T> {
    assignment: u64,
    /// The sequence number of the first slot.
    next: u64,
    /// The first abandoned message; nothing from here on comes out.
    end: u64,
    slots: VecDeque<Slot<T>>,
}

#[derive(Debug)]
enum Slot<T> {
    Missing,
    Ready(T),
}

impl<T> Default for Sequencer<T> {
    fn default() -> Self {
        Sequencer { lanes: HashMap::new(), held_back: 0 }
    }
}

impl<T> Sequencer<T> {
    /// Takes the item with this number, and appends all that may leave to `out`.
    pub fn push(&mut self, assignment: &Assignment, sequence: u64, item: T, out: &mut Vec<T>) {
        let Some(lane) = lane_of(&mut self.lanes, &mut self.held_back, assignment) else { return };
        if sequence >= lane.end {
            return;
        }
        let Some(index) = sequence.checked_sub(lane.next) else {
            debug_assert!(false, "a message comes once");
            return;
        };
        let index = index as usize;
        if lane.slots.len() <= index {
            lane.slots.resize_with(index + 1, || Slot::Missing);
        }
        debug_assert!(matches!(lane.slots[index], Slot::Missing), "a message comes once");
        self.held_back += 1;
        lane.slots[index] = Slot::Ready(item);
        while let Some(Slot::Ready(item)) =
            lane.slots.pop_front_if(|slot| matches!(slot, Slot::Ready(_)))
        {
            lane.next += 1;
            self.held_back -= 1;
            out.push(item);
        }
    }

    /// Notes that a message will never come: what was received after it is dropped, for it would
    /// come out of order, and the partition's next owner gets all of it again.
    pub fn abandon(&mut self, assignment: &Assignment, sequence: u64) {
        let Some(lane) = lane_of(&mut self.lanes, &mut self.held_back, assignment) else { return };
        if sequence >= lane.end {
            return;
        }
        lane.end = sequence;
        self.held_back -= lane.ready();
        lane.slots.truncate(sequence.saturating_sub(lane.next) as usize);
        self.held_back += lane.ready();
    }

    /// Returns the number of items that wait for earlier ones.
    pub fn held_back(&self) -> usize {
        self.held_back
    }
}

/// Returns the lane of an assignment; `None` where a later one has begun.
fn lane_of<'a, T>(
    lanes: &'a mut HashMap<i32, Lane<T>>,
    held_back: &mut usize,
    assignment: &Assignment,
) -> Option<&'a mut Lane<T>> {
    let begin =
        || Lane { assignment: assignment.number, next: 0, end: u64::MAX, slots: VecDeque::new() };
    let lane = lanes.entry(assignment.partition).or_insert_with(begin);
    if assignment.number > lane.assignment {
        *held_back -= lane.ready();
        *lane = begin();
    }
    (assignment.number == lane.assignment).then_some(lane)
}

impl<T> Lane<T> {
    /// Returns the number of items in it.
    fn ready(&self) -> usize {
        self.slots.iter().filter(|slot| matches!(slot, Slot::Ready(_))).count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_later_assignment_ends_the_earlier() {
        let (first, second) = (Assignment::new(0, 1), Assignment::new(0, 2));
        let mut sequencer = Sequencer::default();
        let mut out = Vec::new();
        sequencer.push(&first, 1, "old, held back", &mut out);
        sequencer.push(&second, 0, "new", &mut out);
        sequencer.push(&first, 0, "old, late", &mut out);
        assert_eq!(out, ["new"]);
        assert_eq!(sequencer.held_back(), 0);
    }

    #[test]
    fn nothing_comes_out_after_an_abandoned_message() {
        let assignment = Assignment::new(0, 1);
        let mut sequencer = Sequencer::default();
        let mut out = Vec::new();
        sequencer.push(&assignment, 1, 1, &mut out);
        sequencer.push(&assignment, 3, 3, &mut out);
        sequencer.abandon(&assignment, 2);
        assert_eq!(sequencer.held_back(), 1);
        sequencer.push(&assignment, 4, 4, &mut out);
        sequencer.push(&assignment, 0, 0, &mut out);
        assert_eq!(out, [0, 1]);
        sequencer.abandon(&assignment, 1);
        assert_eq!(sequencer.held_back(), 0);
    }

    /// A message's end in one of a partition's assignments: it comes, or it is abandoned.
    #[derive(Clone, Copy, Debug, PartialEq)]
    struct Event {
        partition: i32,
        assignment: u64,
        sequence: u64,
        is_abandoned: bool,
    }

    /// Events in any order, each message once: late ones of an assignment that is over, too.
    fn events() -> impl Strategy<Value = Vec<Event>> {
        let event = |(partition, assignment, sequence, abandons): (i32, u64, u64, u8)| Event {
            partition,
            assignment,
            sequence,
            is_abandoned: abandons == 0,
        };
        let all =
            prop::collection::vec((0..2i32, 1..4u64, 0..8u64, 0..12u8).prop_map(event), 1..80);
        all.prop_map(|all| {
            let mut seen = std::collections::HashSet::new();
            all.into_iter()
                .filter(|e| seen.insert((e.partition, e.assignment, e.sequence)))
                .collect()
        })
    }

    /// What comes out of an assignment, by definition, and what is held back of it: the messages
    /// from the first to one that is missing or abandoned, of what came before a later assignment
    /// began.
    fn naive(events: &[Event], partition: i32, assignment: u64) -> (Vec<u64>, usize) {
        let of_partition = || events.iter().filter(move |e| e.partition == partition);
        let is_over = of_partition().any(|e| e.assignment > assignment);
        let in_time: Vec<&Event> = of_partition()
            .take_while(|e| e.assignment <= assignment)
            .filter(|e| e.assignment == assignment)
            .collect();
        let abandoned = in_time.iter().filter(|e| e.is_abandoned).map(|e| e.sequence).min();
        let came = |s: u64| {
            abandoned.is_none_or(|end| s < end)
                && in_time.iter().any(|e| e.sequence == s && !e.is_abandoned)
        };
        let out: Vec<u64> = (0..).take_while(|s| came(*s)).collect();
        let waiting = (0..8).filter(|s| came(*s)).count() - out.len();
        (out, if is_over { 0 } else { waiting })
    }

    proptest! {
        #[test]
        fn agrees_with_a_naive_model_when_partitions_go_and_come(events in events()) {
            let mut sequencer = Sequencer::default();
            let mut out = Vec::new();
            for (index, event) in events.iter().enumerate() {
                let assignment = Assignment::new(event.partition, event.assignment);
                match event.is_abandoned {
                    true => sequencer.abandon(&assignment, event.sequence),
                    false => sequencer.push(&assignment, event.sequence, *event, &mut out),
                }
                let mut held_back = 0;
                for partition in 0..2 {
                    let of_partition = || out.iter().filter(move |e| e.partition == partition);
                    prop_assert!(of_partition().is_sorted_by_key(|e| e.assignment));
                    for assignment in 1..4 {
                        let (expected, waiting) = naive(&events[..=index], partition, assignment);
                        let found = of_partition().filter(|e| e.assignment == assignment);
                        prop_assert_eq!(found.map(|e| e.sequence).collect::<Vec<_>>(), expected);
                        held_back += waiting;
                    }
                }
                prop_assert_eq!(sequencer.held_back(), held_back);
            }
        }

        #[test]
        fn items_leave_in_order_and_at_once(
            order in (1..40usize).prop_flat_map(|n| {
                let all: Vec<(i32, u64)> =
                    (0..3).flat_map(|p| (0..n as u64).map(move |s| (p, s))).collect();
                Just(all).prop_shuffle()
            }),
        ) {
            let assignments = [0, 1, 2].map(|p| Assignment::new(p, 7));
            let mut sequencer = Sequencer::default();
            let mut left: Vec<(i32, u64)> = Vec::new();
            let mut arrived = std::collections::HashSet::new();
            for (partition, sequence) in order {
                let item = (partition, sequence);
                sequencer.push(&assignments[partition as usize], sequence, item, &mut left);
                arrived.insert((partition, sequence));
                // By definition: of each partition all up to the first that is missing.
                for partition in 0..3 {
                    let expected: Vec<_> =
                        (0..).take_while(|s| arrived.contains(&(partition, *s))).collect();
                    let found: Vec<_> =
                        left.iter().filter(|(p, _)| *p == partition).map(|(_, s)| *s).collect();
                    prop_assert_eq!(found, expected);
                }
                prop_assert_eq!(sequencer.held_back(), arrived.len() - left.len());
            }
        }
    }
}

//! Finds the newest letters of a dead-letter topic from its end, however many lie before them.
//!
//! In a partition later offsets are newer. Between partitions the letters' timestamps decide, which
//! are mostly those of the messages that they were, and where these are equal, the offsets of the
//! messages.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;

use super::letters::{Cause, Letter, Spans};
use super::selection::Selected;

/// Where a letter lies, and how new it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct FoundLetter {
    timestamp_ms: Option<i64>,
    /// The offset of the message that it was.
    source: Option<i64>,
    offset: i64,
}

/// The letters that were found in each partition, the oldest first.
type ByPartition = BTreeMap<i32, VecDeque<FoundLetter>>;

impl Selected {
    /// Returns the newest `number` letters that are selected, the oldest of them first.
    ///
    /// # Errors
    ///
    /// When the topic can't be read.
    pub(super) fn newest(&mut self, number: usize) -> anyhow::Result<Vec<(Letter, Cause)>> {
        let there = self.letters.spans().clone();
        let mut found = ByPartition::new();
        let length = number as i64;
        let last =
            there.iter().map(|(&p, span)| (p, (span.end - length).max(span.start)..span.end));
        let mut spans: Spans = last.collect();
        while !spans.is_empty() {
            self.letters.go_to(spans.clone())?;
            let mut earlier = ByPartition::new();
            while let Some((letter, cause)) = self.next()? {
                let letters = earlier.entry(letter.partition).or_default();
                let (timestamp_ms, offset) = (letter.message.timestamp_ms, letter.offset);
                letters.push_back(FoundLetter { timestamp_ms, source: cause.offset, offset });
                if letters.len() > number {
                    letters.pop_front();
                }
            }
            put_before(&mut found, earlier, number);
            // Other reasons and the markers of transactions have offsets, too.
            let lacks = |partition: &i32| found.get(partition).map_or(0, VecDeque::len) < number;
            spans.retain(|partition, span| {
                *span = before(span, there[partition].start);
                !span.is_empty() && lacks(partition)
            });
        }
        let order = newest_of(found, number);
        // Those of a partition that are selected lie one behind the other.
        let mut spans = Spans::new();
        for &(partition, offset) in &order {
            let span = spans.entry(partition).or_insert(offset..offset);
            span.end = offset + 1;
        }
        self.letters.go_to(spans)?;
        let without_reason = self.without_reason;
        self.by_reason.clear();
        let mut letters = BTreeMap::new();
        while let Some((letter, cause)) = self.next()? {
            letters.insert((letter.partition, letter.offset), (letter, cause));
        }
        self.without_reason = without_reason;
        Ok(order.iter().filter_map(|place| letters.remove(place)).collect())
    }
}

/// Returns the offsets before a span, more than it has, down to `first`.
fn before(span: &Range<i64>, first: i64) -> Range<i64> {
    let length = 4 * (span.end - span.start);
    (span.start - length).max(first)..span.start
}

/// Puts letters before those that were found, up to `number` in each partition.
fn put_before(found: &mut ByPartition, earlier: ByPartition, number: usize) {
    for (partition, letters) in earlier {
        let found = found.entry(partition).or_default();
        let due = number - found.len();
        letters.into_iter().rev().take(due).for_each(|letter| found.push_front(letter));
    }
}

/// Returns partition and offset of the newest `number`, the oldest of them first.
fn newest_of(mut found: ByPartition, number: usize) -> Vec<(i32, i64)> {
    let mut newest = Vec::new();
    while newest.len() < number {
        let last = |(&partition, letters): (&i32, &VecDeque<FoundLetter>)| {
            letters.back().map(|letter| (letter.timestamp_ms, letter.source, partition))
        };
        let Some((.., partition)) = found.iter().filter_map(last).max() else { break };
        let letter = found.get_mut(&partition).and_then(VecDeque::pop_back);
        newest.extend(letter.map(|letter| (partition, letter.offset)));
    }
    newest.reverse();
    newest
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(partitions: &[(i32, &[(i64, i64)])]) -> ByPartition {
        let letters = |letters: &[(i64, i64)]| {
            let found = |&(time, offset)| {
                let source = Some(100 + offset);
                FoundLetter { timestamp_ms: Some(time), source, offset }
            };
            letters.iter().map(found).collect()
        };
        partitions.iter().map(|&(partition, found)| (partition, letters(found))).collect()
    }

    #[test]
    fn the_newest_of_all_partitions_come_in_the_order_of_each() {
        let all = || found(&[(0, &[(10, 0), (30, 1), (20, 2)]), (1, &[(15, 7), (25, 9)])]);
        assert_eq!(newest_of(all(), 3), [(0, 1), (0, 2), (1, 9)]);
        assert_eq!(newest_of(all(), 9), [(0, 0), (1, 7), (0, 1), (0, 2), (1, 9)]);
        assert_eq!(newest_of(ByPartition::new(), 3), []);
    }

    #[test]
    fn of_letters_of_one_time_the_later_messages_are_newer() {
        let mut all = found(&[(0, &[(10, 7), (10, 9)]), (1, &[(10, 8)]), (2, &[(10, 6)])]);
        assert_eq!(newest_of(all.clone(), 3), [(0, 7), (1, 8), (0, 9)]);
        all.values_mut().flatten().for_each(|letter| letter.source = None);
        assert_eq!(newest_of(all, 1), [(2, 6)], "it isn't known");
    }

    #[test]
    fn what_is_put_before_fills_up_and_no_more() {
        let mut all = found(&[(0, &[(30, 8), (40, 9)])]);
        put_before(&mut all, found(&[(0, &[(10, 2), (20, 5)]), (1, &[(1, 1)])]), 3);
        assert_eq!(all, found(&[(0, &[(20, 5), (30, 8), (40, 9)]), (1, &[(1, 1)])]));
    }

    #[test]
    fn spans_go_back_to_the_first_offset_and_leave_none_out() {
        let (mut span, mut spans) = (995..1000, Vec::new());
        while !span.is_empty() {
            spans.push(span.clone());
            span = before(&span, 3);
        }
        assert!(spans.windows(2).all(|two| two[1].end == two[0].start), "{spans:?}");
        assert_eq!((spans[1].clone(), spans.last().unwrap().start), (975..995, 3));
    }
}

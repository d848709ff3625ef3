//! The ends of partitions of which the consumer hears nothing.
//!
//! Of partitions that are paused a consumer hears nothing by right, for minutes where the network
//! is slow: the lag would shrink by what is settled while the topic grows. What another client was
//! told of them counts until the consumer hears of another end.

use std::collections::HashMap;

use super::ends::Watermarks;
use crate::kafka::consumer::PartitionEnd;

/// What the other client was told.
#[derive(Default)]
pub(super) struct Unheard {
    /// The ends that the consumer heard of last.
    heard: HashMap<i32, i64>,
    /// Of the partitions that a question is under way for: what the consumer had heard before it.
    before: HashMap<i32, Option<i64>>,
    told: HashMap<i32, Told>,
    /// Whether something has been told that no lag was reckoned of yet.
    is_news: bool,
}

/// What was told of a partition.
#[derive(Clone, Copy, Debug)]
struct Told {
    beginning: i64,
    end: i64,
    /// The end that the consumer had heard of before; `None` where of none yet.
    heard: Option<i64>,
}

impl Unheard {
    /// Takes the ends that the consumer has heard of.
    pub(super) fn note(&mut self, ends: &HashMap<i32, PartitionEnd>) {
        self.heard.extend(ends.iter().map(|(&partition, end)| (partition, end.end)));
    }

    /// Notes that the other client is asked for partitions.
    pub(super) fn asked(&mut self, partitions: &[i32]) {
        self.before = partitions.iter().map(|p| (*p, self.heard.get(p).copied())).collect();
    }

    /// Takes its answer.
    pub(super) fn told(&mut self, told: &Watermarks) {
        for (partition, heard) in self.before.drain() {
            let Some(&(beginning, end)) = told.get(&partition) else { continue };
            self.told.insert(partition, Told { beginning, end, heard });
            self.is_news = true;
        }
    }

    /// Puts in what was told, where the consumer has heard of nothing else since.
    pub(super) fn complete(&mut self, ends: &mut HashMap<i32, PartitionEnd>) {
        if ends.is_empty() && !self.is_news {
            return;
        }
        self.is_news = false;
        self.told.retain(|&partition, told| {
            let is_unheard = told.heard.is_none();
            let Told { beginning, end, .. } = *told;
            match ends.get_mut(&partition) {
                Some(known) if told.heard != Some(known.end) => return false,
                Some(known) if known.end < end => {
                    let withheld = (known.end + known.withheld - end).max(0);
                    *known = PartitionEnd { end, withheld, is_read: false, ..*known };
                }
                None if is_unheard => {
                    ends.insert(
                        partition,
                        PartitionEnd { end, withheld: 0, beginning, is_read: false },
                    );
                }
                Some(_) | None => {}
            }
            true
        });
    }

    /// Begins anew with a partition.
    pub(super) fn forget(&mut self, partition: i32) {
        self.heard.remove(&partition);
        self.before.remove(&partition);
        self.told.remove(&partition);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_told_counts_until_the_consumer_hears_of_another_end() {
        let mut unheard = Unheard::default();
        let heard = PartitionEnd { end: 7, withheld: 0, beginning: 0, is_read: true };
        let of = |end| HashMap::from([(0, end)]);
        unheard.note(&of(heard));
        unheard.asked(&[0, 1]);
        unheard.told(&Watermarks::from([(0, (3, 20)), (1, (4, 9)), (2, (0, 5))]));
        let told = PartitionEnd { end: 20, is_read: false, ..heard };
        let other = PartitionEnd { end: 9, withheld: 0, beginning: 4, is_read: false };
        let completed = |unheard: &mut Unheard, mut ends| {
            unheard.complete(&mut ends);
            ends
        };
        // At once, where there was no word of a partition before.
        assert_eq!(completed(&mut unheard, HashMap::new()), [(1, other)].into());
        assert_eq!(completed(&mut unheard, HashMap::new()), HashMap::new(), "it is told once");
        for _ in 0..2 {
            assert_eq!(completed(&mut unheard, of(heard)), [(0, told), (1, other)].into());
        }
        let later = PartitionEnd { end: 15, ..heard };
        assert_eq!(completed(&mut unheard, of(later)), [(0, later), (1, other)].into());
        assert_eq!(completed(&mut unheard, of(heard)), [(0, heard), (1, other)].into());
        unheard.forget(1);
        assert_eq!(completed(&mut unheard, of(heard)), of(heard));
    }
}

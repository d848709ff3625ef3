//! Which partitions go first when fetching goes on after a pause.
//!
//! librdkafka throws away what it has fetched when it is paused. When fetching goes on, the brokers
//! that answer first fill what may be in flight, and what the others answer is thrown away again,
//! pause after pause: a partition of a slower broker could stand still for as long as others have a
//! backlog. So those whose last turn is the longest ago go first, and the others a little later.

use std::collections::HashMap;
use std::time::{Duration, Instant};

/// How far the first are ahead. Half of what may be in flight is left when a pause ends, and took
/// longer than this before: the stages behind have enough to do meanwhile.
const HEAD_START: Duration = super::backpressure::HOLD_MAX;

/// Whose turn it is.
#[derive(Default)]
pub(super) struct Turns {
    /// How often fetching has gone on.
    round: u64,
    /// In which round each partition had its last turn.
    last: HashMap<i32, u64>,
    later: Option<Later>,
}

/// Those that are still paused.
struct Later {
    until: Instant,
    first: Vec<i32>,
    others: Vec<i32>,
}

impl Turns {
    /// Notes that a partition has given a message.
    pub(super) fn served(&mut self, partition: i32) {
        self.last.insert(partition, self.round);
    }

    /// Notes that all partitions are paused.
    pub(super) fn paused(&mut self) {
        self.later = None;
    }

    /// Returns which of the partitions go on at once; [`Turns::due`] returns the others.
    pub(super) fn go_on(&mut self, partitions: Vec<i32>, now: Instant) -> Vec<i32> {
        self.round += 1;
        let turn = |partition: &i32| self.last.get(partition).copied().unwrap_or_default();
        let longest_ago = partitions.iter().map(turn).min().unwrap_or_default();
        let (first, others): (Vec<i32>, Vec<i32>) =
            partitions.into_iter().partition(|partition| turn(partition) == longest_ago);
        if !others.is_empty() {
            self.later = Some(Later { until: now + HEAD_START, first: first.clone(), others });
        }
        first
    }

    /// Returns the partitions that go on, once the first have had their time.
    pub(super) fn due(&mut self, now: Instant) -> Vec<i32> {
        let Some(later) = self.later.take_if(|later| now >= later.until) else { return Vec::new() };
        // They had their turn, though there may be nothing in them.
        self.last.extend(later.first.into_iter().map(|partition| (partition, self.round)));
        later.others
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const NONE: [i32; 0] = [];

    #[test]
    fn those_that_gave_nothing_go_first() {
        let (mut turns, now) = (Turns::default(), Instant::now());
        assert_eq!(turns.go_on(vec![0, 1, 2], now), [0, 1, 2], "nobody was served before");
        assert_eq!(turns.due(now + HEAD_START), NONE);
        turns.served(0);
        turns.served(1);
        turns.paused();
        assert_eq!(turns.go_on(vec![0, 1, 2], now), [2]);
        assert_eq!(turns.due(now), NONE);
        assert_eq!(turns.due(now + HEAD_START), [0, 1]);
        assert_eq!(turns.due(now + HEAD_START), NONE, "once");
    }

    #[test]
    fn those_that_a_pause_overtook_are_paused_and_go_first_the_next_time() {
        let (mut turns, now) = (Turns::default(), Instant::now());
        turns.go_on(vec![0, 1], now);
        turns.served(0);
        turns.paused();
        assert_eq!(turns.go_on(vec![0, 1], now), [1]);
        turns.served(1);
        turns.paused();
        assert_eq!(turns.due(now + HEAD_START), NONE);
        assert_eq!(turns.go_on(vec![0, 1], now), [0]);
    }

    proptest! {
        /// Whichever broker answers first, and whichever partitions are empty, one with a backlog
        /// stands still for no more than twice as many rounds as there are partitions.
        #[test]
        fn no_partition_with_a_backlog_stands_still(
            speeds in Just((0..8).collect::<Vec<i32>>()).prop_shuffle(),
            backlog in prop::collection::vec(any::<bool>(), 8),
        ) {
            let (mut turns, mut now) = (Turns::default(), Instant::now());
            let mut since = [0; 8];
            for _ in 0..100 {
                let mut going = turns.go_on((0..8).collect(), now);
                let fastest = |going: &[i32]| {
                    speeds.iter().copied().find(|p| going.contains(p) && backlog[*p as usize])
                };
                let mut winner = fastest(&going);
                if winner.is_none() {
                    now += HEAD_START;
                    going.extend(turns.due(now));
                    winner = fastest(&going);
                }
                since.iter_mut().for_each(|rounds| *rounds += 1);
                if let Some(winner) = winner {
                    turns.served(winner);
                    since[winner as usize] = 0;
                    turns.paused();
                }
                for partition in (0..8).filter(|p| backlog[*p]) {
                    prop_assert!(since[partition] <= 2 * 8, "{partition}: {since:?}");
                }
            }
        }
    }
}

//! Of what happens again and again, when it is worth a line in the log.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use crate::lock::lock;

/// Returns how many lines of this kind were left out since the last, or `None` where this one is
/// left out too: of each kind one in ten seconds is due, whichever thread has it. While brokers are
/// away there are several a second to say.
pub fn repeats(kind: &str) -> Option<u64> {
    static SELDOM: Mutex<Seldom<String>> = Mutex::new(Seldom::new(Duration::from_secs(10), 256));
    lock(&SELDOM).due(kind.to_owned(), Instant::now())
}

/// Says when a line is due: the first of each kind at once, and then one an interval.
#[derive(Debug)]
pub struct Seldom<K> {
    interval: Duration,
    /// Kinds that are told apart; of those beyond every one is due.
    kinds_max: usize,
    told: BTreeMap<K, Told>,
}

#[derive(Debug)]
struct Told {
    at: Instant,
    /// What happened since then.
    since: u64,
}

impl<K: Ord> Seldom<K> {
    /// Returns one that has said nothing yet.
    pub const fn new(interval: Duration, kinds_max: usize) -> Seldom<K> {
        Seldom { interval, kinds_max, told: BTreeMap::new() }
    }

    /// Something of this kind has happened. Returns how many lines about it were left out since the
    /// last one, where another is due, and else leaves this one out too.
    pub fn due(&mut self, kind: K, now: Instant) -> Option<u64> {
        match self.told.get_mut(&kind) {
            Some(told) if now.duration_since(told.at) < self.interval => {
                told.since += 1;
                None
            }
            Some(told) => {
                told.at = now;
                Some(std::mem::take(&mut told.since))
            }
            None => {
                if self.told.len() < self.kinds_max {
                    self.told.insert(kind, Told { at: now, since: 0 });
                }
                Some(0)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_has_a_line_at_once_and_one_an_interval() {
        let mut seldom = Seldom::new(Duration::from_secs(60), 2);
        let start = Instant::now();
        let mut due = |kind, seconds| seldom.due(kind, start + Duration::from_secs(seconds));
        assert_eq!(due("a", 0), Some(0));
        assert_eq!(due("b", 0), Some(0));
        assert_eq!(due("a", 1), None);
        assert_eq!(due("a", 59), None);
        assert_eq!(due("a", 61), Some(2));
        assert_eq!(due("a", 62), None);
        assert_eq!(due("b", 600), Some(0));
        assert_eq!(due("one too many", 600), Some(0));
        assert_eq!(due("one too many", 600), Some(0));
    }
}

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
//!
//! Of partitions that are paused a consumer hears nothing by right, for minutes where the network
//! is slow: the lag would shrink by what is settled while the topic grows. So the other client asks
//! for their ends too, and what it was told counts until the consumer hears of another end.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaResult;
use thiserror::Error;

use crate::config::Config;
use crate::kafka::asker::Asker;
use crate::kafka::caller::Caller;
use crate::kafka::consumer::PartitionEnd;
use crate::kafka::consumer_properties;
use crate::kafka::offsets::OffsetLedger;

/// Between two looks. A consumer hears of new messages within a second.
const INTERVAL: Duration = Duration::from_secs(20);

/// Between two questions for the ends of paused partitions, which nothing else tells.
const PAUSED_INTERVAL: Duration = Duration::from_secs(10);

/// Looks in a row at which it was wrong. A connection that has died without a word is noticed
/// within a minute, which is `socket.timeout.ms`.
const LOOKS: u32 = 5;

/// How long the brokers may take to tell one partition's end.
const PATIENCE: Duration = Duration::from_secs(5);

/// How long a client that asks is polled before.
const SERVE: Duration = Duration::from_millis(100);

/// The ends of partitions.
type Ends = HashMap<i32, i64>;

/// Their beginnings and ends.
type Watermarks = HashMap<i32, (i64, i64)>;

/// Looks after what the consumer hears.
pub(super) struct Hearing {
    caller: Caller<Vec<i32>, KafkaResult<Watermarks>>,
    /// The ends of which the consumer says that it has read up to there, and positions where it
    /// knows no end.
    read: Ends,
    /// Those of them for which a question is under way, as they were before it.
    asked: Ends,
    looks: HashMap<i32, Look>,
    asked_at: Instant,
    /// The ends that the consumer heard of last.
    heard: Ends,
    /// Of the partitions that a question is under way for: what the consumer had heard before it.
    before: HashMap<i32, Option<i64>>,
    told: HashMap<i32, Told>,
    /// Whether something has been told that no lag was reckoned of yet.
    is_news: bool,
}

/// What the other client was told of a partition.
#[derive(Clone, Copy, Debug)]
struct Told {
    beginning: i64,
    end: i64,
    /// The end that the consumer had heard of before; `None` where of none yet.
    heard: Option<i64>,
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

impl Hearing {
    /// Starts the thread that asks.
    ///
    /// # Errors
    ///
    /// When the system has no thread to give.
    pub(super) fn start(config: &Config, now: Instant) -> std::io::Result<Hearing> {
        let mut properties = consumer_properties(config);
        properties.set("statistics.interval.ms", "0");
        let topic = config.input.topic.clone();
        let mut client = None;
        let call = move |partitions: Vec<i32>| {
            let ends = ask(&mut client, &properties, &topic, &partitions);
            if ends.is_err() {
                // What it remembers may be wrong.
                client = None;
            }
            Some(ends)
        };
        Ok(Hearing {
            caller: Caller::start("capvec-ends", call)?,
            read: Ends::new(),
            asked: Ends::new(),
            looks: HashMap::new(),
            asked_at: now,
            heard: Ends::new(),
            before: HashMap::new(),
            told: HashMap::new(),
            is_news: false,
        })
    }

    /// Takes what new statistics say of partitions: their ends, and the positions of those whose
    /// ends aren't known. It begins anew with those that have something to be handed over.
    pub(super) fn note(&mut self, ends: &HashMap<i32, PartitionEnd>, unheard: Ends) {
        if ends.is_empty() && unheard.is_empty() {
            return;
        }
        self.heard.extend(ends.iter().map(|(&partition, end)| (partition, end.end)));
        self.read = unheard;
        let read = ends.iter().filter(|(_, end)| end.is_read);
        self.read.extend(read.map(|(&partition, end)| (partition, end.end)));
        self.asked.retain(|partition, _| self.read.contains_key(partition));
        self.looks.retain(|partition, _| self.read.contains_key(partition));
    }

    /// Puts in what the other client was told, where the consumer has heard of nothing else since.
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
        self.read.remove(&partition);
        self.asked.remove(&partition);
        self.looks.remove(&partition);
    }

    /// Begins anew with all looks.
    pub(super) fn forget_all(&mut self) {
        self.read.clear();
        self.asked.clear();
        self.looks.clear();
    }

    /// Asks when it is time: for the partitions that seem to be read, or for all of the ledger's
    /// while they are paused.
    ///
    /// # Errors
    ///
    /// When the consumer has missed something for too long.
    pub(super) fn progress(
        &mut self,
        now: Instant,
        paused: Option<&OffsetLedger>,
    ) -> Result<(), Missed> {
        if let Some(told) = self.caller.answer() {
            match told {
                Ok(told) => {
                    self.note_told(&told);
                    return self.judge(&told);
                }
                Err(error) => {
                    tracing::debug!(%error, "the ends of partitions weren't told");
                    self.looks.clear();
                }
            }
        }
        let interval = if paused.is_some() { PAUSED_INTERVAL } else { INTERVAL };
        if now < self.asked_at + interval || self.caller.is_busy() {
            return Ok(());
        }
        let partitions = match paused {
            Some(ledger) => ledger.partitions(),
            None => self.read.keys().copied().collect(),
        };
        if !partitions.is_empty() {
            self.asked_at = now;
            self.asked = self.read.clone();
            self.before = partitions.iter().map(|p| (*p, self.heard.get(p).copied())).collect();
            self.caller.ask(partitions);
        }
        Ok(())
    }

    fn note_told(&mut self, told: &Watermarks) {
        for (partition, heard) in self.before.drain() {
            let Some(&(beginning, end)) = told.get(&partition) else { continue };
            self.told.insert(partition, Told { beginning, end, heard });
            self.is_news = true;
        }
    }

    /// Compares what the other client was told with what the consumer knew before.
    fn judge(&mut self, told: &Watermarks) -> Result<(), Missed> {
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

/// Asks for the ends of partitions, by a client of its own, which is made where there is none yet.
/// Those without a leader, which nobody can tell, are left out: the others don't wait for them.
fn ask(
    client: &mut Option<BaseConsumer<Asker>>,
    properties: &ClientConfig,
    topic: &str,
    partitions: &[i32],
) -> KafkaResult<Watermarks> {
    let client = match client {
        Some(client) => client,
        None => client.insert(properties.create_with_context(Asker::default())?),
    };
    // It serves a login that wants a new token.
    drop(client.poll(SERVE));
    let metadata = client.fetch_metadata(Some(topic), PATIENCE)?;
    let known = metadata.topics().iter().flat_map(|topic| topic.partitions());
    let led: HashSet<i32> = known.filter(|p| p.leader() >= 0).map(|p| p.id()).collect();
    let watermarks =
        |&partition| Ok((partition, client.fetch_watermarks(topic, partition, PATIENCE)?));
    partitions.iter().filter(|partition| led.contains(partition)).map(watermarks).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::embedded::EmbeddedBroker;
    use proptest::prelude::*;

    /// Returns at which look the consumer is found to be deaf, that knew the first numbers when the
    /// brokers told the second.
    fn found(looks: &[(i64, i64)]) -> Option<usize> {
        let mut hearing = Hearing::start(&Config::default(), Instant::now()).unwrap();
        looks.iter().position(|&(heard, told)| {
            hearing.asked = Ends::from([(0, heard)]);
            hearing.judge(&Watermarks::from([(0, (0, told))])).is_err()
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

    #[test]
    fn a_partition_without_a_leader_keeps_nobody_waiting() {
        let broker = EmbeddedBroker::start(&[("captions", 3)]).unwrap();
        broker.cluster().partition_leader("captions", 1, None).unwrap();
        let mut client = None;
        let told = ask(&mut client, &broker.client(), "captions", &[0, 1, 2]).unwrap();
        assert_eq!(told, Watermarks::from([(0, (0, 0)), (2, (0, 0))]));
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
    fn what_was_told_counts_until_the_consumer_hears_of_another_end() {
        let mut hearing = Hearing::start(&Config::default(), Instant::now()).unwrap();
        let heard = PartitionEnd { end: 7, withheld: 0, beginning: 0, is_read: true };
        let of = |end| HashMap::from([(0, end)]);
        hearing.note(&of(heard), Ends::new());
        hearing.before = HashMap::from([(0, Some(7)), (1, None)]);
        hearing.note_told(&Watermarks::from([(0, (3, 20)), (1, (4, 9)), (2, (0, 5))]));
        let told = PartitionEnd { end: 20, is_read: false, ..heard };
        let unheard = PartitionEnd { end: 9, withheld: 0, beginning: 4, is_read: false };
        let completed = |hearing: &mut Hearing, mut ends| {
            hearing.complete(&mut ends);
            ends
        };
        // At once, where there was no word of a partition before.
        assert_eq!(completed(&mut hearing, HashMap::new()), [(1, unheard)].into());
        assert_eq!(completed(&mut hearing, HashMap::new()), HashMap::new(), "it is told once");
        for _ in 0..2 {
            assert_eq!(completed(&mut hearing, of(heard)), [(0, told), (1, unheard)].into());
        }
        let later = PartitionEnd { end: 15, ..heard };
        assert_eq!(completed(&mut hearing, of(later)), [(0, later), (1, unheard)].into());
        assert_eq!(completed(&mut hearing, of(heard)), [(0, heard), (1, unheard)].into());
        hearing.forget(1);
        assert_eq!(completed(&mut hearing, of(heard)), of(heard));
    }

    #[test]
    fn what_the_consumer_still_fetches_is_not_asked_for() {
        let now = Instant::now();
        let mut hearing = Hearing::start(&Config::default(), now).unwrap();
        let end = |is_read| PartitionEnd { end: 7, withheld: 0, beginning: 0, is_read };
        let ends = HashMap::from([(0, end(true)), (1, end(false)), (2, end(true))]);
        hearing.note(&ends, Ends::from([(3, 4)]));
        hearing.looks.insert(0, Look { told: 9, wrong: LOOKS - 1 });
        hearing.forget(2);
        assert_eq!(hearing.read, Ends::from([(0, 7), (3, 4)]));
        hearing.note(&HashMap::new(), Ends::new());
        assert_eq!(hearing.read.len(), 2, "there are no new statistics");
        hearing.note(&HashMap::from([(0, end(false))]), Ends::new());
        assert!(hearing.read.is_empty() && hearing.looks.is_empty());
        assert_eq!(hearing.progress(now + INTERVAL, None), Ok(()));
        assert!(!hearing.caller.is_busy(), "there is nothing to ask for");
    }
}

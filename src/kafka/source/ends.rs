//! Asks for the beginnings and ends of partitions by a client of its own, for two who can't go by
//! what the consumer hears: who looks whether it hears at all, and who reckons the lag of
//! partitions that are paused.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaResult;

use super::deaf::{Deaf, Missed};
use super::unheard::Unheard;
use crate::config::Config;
use crate::kafka::asker::Asker;
use crate::kafka::caller::Caller;
use crate::kafka::consumer::PartitionEnd;
use crate::kafka::consumer_properties;
use crate::kafka::offsets::OffsetLedger;

/// Between two questions. A consumer hears of new messages within a second.
const INTERVAL: Duration = Duration::from_secs(20);

/// Between two questions for the ends of paused partitions, which nothing else tells.
const PAUSED_INTERVAL: Duration = Duration::from_secs(10);

/// How long the brokers may take to tell one partition's end.
const PATIENCE: Duration = Duration::from_secs(5);

/// How long a client that asks is polled before.
const SERVE: Duration = Duration::from_millis(100);

/// The beginnings and ends of partitions.
pub(super) type Watermarks = HashMap<i32, (i64, i64)>;

/// Who asks, and for whom.
pub(super) struct Ends {
    caller: Caller<Vec<i32>, KafkaResult<Watermarks>>,
    asked_at: Instant,
    deaf: Deaf,
    unheard: Unheard,
}

impl Ends {
    /// Starts the thread that asks.
    ///
    /// # Errors
    ///
    /// When the system has no thread to give.
    pub(super) fn start(config: &Config, now: Instant) -> std::io::Result<Ends> {
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
        Ok(Ends {
            caller: Caller::start("capvec-ends", call)?,
            asked_at: now,
            deaf: Deaf::default(),
            unheard: Unheard::default(),
        })
    }

    /// Takes what new statistics say of partitions: their ends, and the positions of those whose
    /// ends aren't known.
    pub(super) fn note(&mut self, ends: &HashMap<i32, PartitionEnd>, positions: HashMap<i32, i64>) {
        self.unheard.note(ends);
        self.deaf.note(ends, positions);
    }

    /// Puts in what was told, where the consumer has heard of nothing else since.
    pub(super) fn complete(&mut self, ends: &mut HashMap<i32, PartitionEnd>) {
        self.unheard.complete(ends);
    }

    /// Begins anew with a partition.
    pub(super) fn forget(&mut self, partition: i32) {
        self.deaf.forget(partition);
        self.unheard.forget(partition);
    }

    /// Notes that not everything is fetched: that the consumer hears nothing is right.
    pub(super) fn is_not_fetched(&mut self) {
        self.deaf.forget_all();
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
                    self.unheard.told(&told);
                    return self.deaf.judge(&told);
                }
                Err(error) => {
                    tracing::debug!(%error, "the ends of partitions weren't told");
                    self.deaf.not_told();
                }
            }
        }
        let interval = if paused.is_some() { PAUSED_INTERVAL } else { INTERVAL };
        if now < self.asked_at + interval || self.caller.is_busy() {
            return Ok(());
        }
        let partitions = match paused {
            Some(ledger) => ledger.partitions(),
            None => self.deaf.partitions(),
        };
        if !partitions.is_empty() {
            self.asked_at = now;
            self.deaf.asked();
            self.unheard.asked(&partitions);
            self.caller.ask(partitions);
        }
        Ok(())
    }
}

/// Asks for the ends of partitions, by a client that is made where there is none yet. Those without
/// a leader, which nobody can tell, are left out: the others don't wait for them.
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

    #[test]
    fn a_partition_without_a_leader_keeps_nobody_waiting() {
        let broker = EmbeddedBroker::start(&[("captions", 3)]).unwrap();
        broker.cluster().partition_leader("captions", 1, None).unwrap();
        let mut client = None;
        let told = ask(&mut client, &broker.client(), "captions", &[0, 1, 2]).unwrap();
        assert_eq!(told, Watermarks::from([(0, (0, 0)), (2, (0, 0))]));
    }

    #[test]
    fn where_everything_is_fetched_nobody_is_asked() {
        let now = Instant::now();
        let mut ends = Ends::start(&Config::default(), now).unwrap();
        let end = PartitionEnd { end: 7, withheld: 0, beginning: 0, is_read: false };
        ends.note(&HashMap::from([(0, end)]), HashMap::new());
        assert_eq!(ends.progress(now + INTERVAL, None), Ok(()));
        assert!(!ends.caller.is_busy());
    }
}

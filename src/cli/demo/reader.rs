//! The reader at the other end: takes vectors, tombstones and dead letters off their topics, ticks
//! off each message's number, and measures how long it was under way.

use std::collections::BTreeMap;

use anyhow::anyhow;
use rdkafka::consumer::BaseConsumer;
use rdkafka::message::{BorrowedMessage, Message};
use rdkafka::topic_partition_list::TopicPartitionList;
use serde::Deserialize;

use super::broker::{Broker, HEADER_LANG, HEADER_NUMBER, PARTITIONS, REJECTED, VECTORS};
use crate::cli::embedded::FETCH_WAIT;
use crate::cli::reading::{Numbers, Reading, header};
use crate::clock::since_epoch;
use crate::kafka::dead_letter::{HEADER_EXCEPTION, HEADER_MESSAGE};
use crate::wire::vector::HEADER_TOKENS;

/// Each bucket of [`Histogram`] ends this much above the one before: how exact a quantile is.
const GROWTH: f64 = 1.05;

/// Buckets of [`Histogram`]; the last one ends at about 40 minutes.
const BUCKETS: usize = 300;

/// What has come out, each message counted once.
#[derive(Debug, Default)]
pub struct Tally {
    /// Vectors.
    pub vectors: u64,
    /// Tombstones in the topic of vectors.
    pub tombstones: u64,
    /// Dead letters, by reason.
    pub rejected: BTreeMap<String, u64>,
    /// Records of messages that were counted already. Delivery is at least once, so there may be
    /// some after a rebalance.
    pub duplicates: u64,
    /// From producing a caption to reading its vector.
    pub latencies: Histogram,
    /// A vector to show. The view takes it, and the reader puts the next one here.
    pub vector: Option<PassingVector>,
    /// A dead letter to show, in the same way.
    pub dead_letter: Option<PassingDeadLetter>,
    seen: Numbers,
}

/// A vector for the view.
#[derive(Clone, Debug, PartialEq)]
pub struct PassingVector {
    /// The caption's language.
    pub lang: String,
    /// The caption.
    pub caption: String,
    /// Its tokens.
    pub tokens: String,
    /// The numbers.
    pub numbers: Vec<f32>,
}

/// A dead letter for the view.
#[derive(Clone, Debug, PartialEq)]
pub struct PassingDeadLetter {
    /// The reason's label.
    pub reason: String,
    /// The sentence about it.
    pub detail: String,
}

/// How many messages took how long, in buckets of 5 %.
#[derive(Clone, Debug)]
pub struct Histogram {
    counts: Vec<u64>,
}

/// The part of a JSON vector that is shown.
#[derive(Deserialize)]
struct JsonVector {
    caption: String,
    vector: Vec<f32>,
}

/// Starts reading vectors and dead letters from the beginnings of their topics.
///
/// # Errors
///
/// When the consumer or the thread can't be made.
pub fn start(broker: &Broker) -> anyhow::Result<Reading<Tally>> {
    let consumer: BaseConsumer =
        broker.client().set(FETCH_WAIT.0, FETCH_WAIT.1).set("group.id", "demo-reader").create()?;
    let mut partitions = TopicPartitionList::new();
    partitions.add_partition_range(VECTORS, 0, PARTITIONS - 1);
    partitions.add_partition(REJECTED, 0);
    Reading::start(consumer, partitions, |tally: &mut Tally, record, _| tally.enter(record))
}

// === impl Tally ===

impl Tally {
    /// Returns how many messages have come out, in whatever way.
    pub fn total(&self) -> u64 {
        self.vectors + self.tombstones + self.rejected()
    }

    /// Returns how many messages were rejected.
    pub fn rejected(&self) -> u64 {
        self.rejected.values().sum()
    }

    fn enter(&mut self, record: &BorrowedMessage<'_>) -> anyhow::Result<()> {
        let number = header(record, HEADER_NUMBER)
            .and_then(|number| number.parse().ok())
            .ok_or_else(|| anyhow!("a record in {} has lost its headers", record.topic()))?;
        if !self.seen.is_first(number) {
            self.duplicates += 1;
            return Ok(());
        }
        if record.topic() == REJECTED {
            let reason = header(record, HEADER_EXCEPTION).unwrap_or_default();
            *self.rejected.entry(reason.clone()).or_default() += 1;
            self.dead_letter.get_or_insert_with(|| {
                let detail = header(record, HEADER_MESSAGE).unwrap_or_default();
                PassingDeadLetter { reason, detail }
            });
            return Ok(());
        }
        let Some(value) = record.payload() else {
            self.tombstones += 1;
            return Ok(());
        };
        self.vectors += 1;
        // The worker gives the vector the timestamp of its caption.
        if let Some(timestamp_ms) = record.timestamp().to_millis() {
            let now = since_epoch();
            self.latencies.enter(now.as_secs_f64() * 1e3 - timestamp_ms as f64);
        }
        // Reading 640 numbers takes a while: only those that are shown.
        if self.vector.is_none() {
            let JsonVector { caption, vector } = serde_json::from_slice(value)?;
            self.vector = Some(PassingVector {
                lang: header(record, HEADER_LANG).unwrap_or_default(),
                caption,
                tokens: header(record, HEADER_TOKENS).unwrap_or_default(),
                numbers: vector,
            });
        }
        Ok(())
    }
}

// === impl Histogram ===

impl Default for Histogram {
    fn default() -> Self {
        Histogram { counts: vec![0; BUCKETS] }
    }
}

impl Histogram {
    /// Counts a message that took this long. Under a millisecond is one bucket, for timestamps are
    /// no finer.
    pub fn enter(&mut self, milliseconds: f64) {
        let bucket = milliseconds.max(1.0).log(GROWTH).ceil() as usize;
        self.counts[bucket.min(BUCKETS - 1)] += 1;
    }

    /// Returns the milliseconds within which this share of the messages was through, at most 5 %
    /// too high; `None` without messages.
    pub fn quantile(&self, share: f64) -> Option<f64> {
        let total: u64 = self.counts.iter().sum();
        let wanted = (total as f64 * share).ceil().max(1.0) as u64;
        let mut so_far = 0;
        let bucket = self.counts.iter().position(|count| {
            so_far += count;
            so_far >= wanted
        })?;
        Some(GROWTH.powi(bucket as i32))
    }

    /// Returns what came after `earlier`.
    pub fn since(&self, earlier: &Histogram) -> Histogram {
        let pairs = self.counts.iter().zip(&earlier.counts);
        Histogram { counts: pairs.map(|(now, then)| now - then).collect() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn assert_about(found: Option<f64>, wanted: f64) {
        let found = found.expect("there are messages");
        assert!((wanted..=wanted * GROWTH).contains(&found), "{found} where {wanted} is due");
    }

    #[test]
    fn quantiles_are_exact_to_a_bucket() {
        let mut latencies = Histogram::default();
        assert_eq!(latencies.quantile(0.5), None);
        for milliseconds in 1..=1000 {
            latencies.enter(f64::from(milliseconds));
        }
        assert_about(latencies.quantile(0.5), 500.0);
        assert_about(latencies.quantile(0.99), 990.0);
        assert_about(latencies.quantile(1.0), 1000.0);
    }

    #[test]
    fn extremes_stay_within_the_buckets() {
        let mut latencies = Histogram::default();
        latencies.enter(-3.0);
        assert_eq!(latencies.quantile(0.99), Some(1.0));
        latencies.enter(1e12);
        assert!(latencies.quantile(1.0).unwrap() > 30.0 * 60e3);
    }

    #[test]
    fn the_difference_of_two_moments_is_what_came_between() {
        let mut latencies = Histogram::default();
        latencies.enter(10.0);
        let before = latencies.clone();
        latencies.enter(700.0);
        assert_about(latencies.since(&before).quantile(0.5), 700.0);
    }
}

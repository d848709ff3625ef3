//! The reader at the other end: takes vectors, tombstones and dead letters off their topics, ticks
//! off each message's number, and measures how long it was under way.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, anyhow};
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::{BorrowedMessage, Headers, Message};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use serde::Deserialize;

use super::broker::{Broker, HEADER_LANG, HEADER_NUMBER, PARTITIONS, REJECTED, VECTORS};
use crate::cli::embedded::FETCH_WAIT;
use crate::clock::since_epoch;
use crate::kafka::dead_letter::{HEADER_EXCEPTION, HEADER_MESSAGE};
use crate::lock::lock;
use crate::wire::vector::HEADER_TOKENS;

/// The longest that the reader waits for a record: how late it may notice its stop.
const TICK: Duration = Duration::from_millis(50);

/// Each bucket of [`Latencies`] ends this much above the one before: how exact a quantile is.
const GROWTH: f64 = 1.05;

/// Buckets of [`Latencies`]; the last one ends at about 40 minutes.
const BUCKETS: usize = 300;

/// The reader's thread.
pub struct Reader {
    thread: JoinHandle<anyhow::Result<()>>,
    tally: Arc<Mutex<Tally>>,
    stop: Arc<AtomicBool>,
}

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
    pub latencies: Latencies,
    /// A vector to show. The view takes it, and the reader puts the next one here.
    pub vector: Option<PassingVector>,
    /// A dead letter to show, in the same way.
    pub dead_letter: Option<PassingDeadLetter>,
    seen: Vec<bool>,
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
pub struct Latencies {
    counts: Vec<u64>,
}

/// The part of a JSON vector that is shown.
#[derive(Deserialize)]
struct JsonVector {
    caption: String,
    vector: Vec<f32>,
}

// === impl Reader ===

impl Reader {
    /// Starts reading both topics from their beginnings.
    ///
    /// # Errors
    ///
    /// When the consumer or the thread can't be made.
    pub fn start(broker: &Broker) -> anyhow::Result<Reader> {
        let consumer: BaseConsumer = broker
            .client()
            .set(FETCH_WAIT.0, FETCH_WAIT.1)
            .set("group.id", "demo-reader")
            .create()?;
        let mut partitions = TopicPartitionList::new();
        partitions.add_partition_range(VECTORS, 0, PARTITIONS - 1);
        partitions.add_partition(REJECTED, 0);
        partitions.set_all_offsets(Offset::Beginning)?;
        consumer.assign(&partitions)?;

        let tally = Arc::new(Mutex::new(Tally::default()));
        let stop = Arc::new(AtomicBool::new(false));
        let thread = std::thread::Builder::new().name("demo-reader".into()).spawn({
            let (tally, stop) = (Arc::clone(&tally), Arc::clone(&stop));
            move || {
                while !stop.load(Ordering::Acquire) {
                    if let Some(message) = consumer.poll(TICK) {
                        lock(&tally).enter(&message?)?;
                    }
                }
                Ok(())
            }
        })?;
        Ok(Reader { thread, tally, stop })
    }

    /// Returns what has come so far; reading waits until it is given back.
    pub fn tally(&self) -> MutexGuard<'_, Tally> {
        lock(&self.tally)
    }

    /// Stops reading, and returns what has come.
    ///
    /// # Errors
    ///
    /// When reading failed.
    pub fn stop(self) -> anyhow::Result<Tally> {
        self.stop.store(true, Ordering::Release);
        self.thread.join().expect("the reader doesn't panic").context("the reader failed")?;
        Ok(std::mem::take(&mut lock(&self.tally)))
    }
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
        if !self.is_first(number) {
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

    /// Ticks a number off; returns whether it wasn't yet.
    fn is_first(&mut self, number: usize) -> bool {
        if number >= self.seen.len() {
            self.seen.resize(number + 1, false);
        }
        !std::mem::replace(&mut self.seen[number], true)
    }
}

/// Returns the text of a record's first header of this name.
pub fn header(record: &BorrowedMessage<'_>, key: &str) -> Option<String> {
    let header = record.headers()?.iter().find(|header| header.key == key)?;
    Some(String::from_utf8_lossy(header.value?).into_owned())
}

// === impl Latencies ===

impl Default for Latencies {
    fn default() -> Self {
        Latencies { counts: vec![0; BUCKETS] }
    }
}

impl Latencies {
    /// Counts a message that took this long. Under a millisecond is one bucket, for timestamps are
    /// no finer.
    pub fn enter(&mut self, milliseconds: f64) {
        let bucket = milliseconds.max(1.0).log(GROWTH).ceil() as usize;
        self.counts[bucket.min(BUCKETS - 1)] += 1;
    }

    /// Returns the milliseconds within which this share of the messages was through, at most 5 % too
    /// high; `None` without messages.
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
    pub fn since(&self, earlier: &Latencies) -> Latencies {
        let pairs = self.counts.iter().zip(&earlier.counts);
        Latencies { counts: pairs.map(|(now, then)| now - then).collect() }
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
        let mut latencies = Latencies::default();
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
        let mut latencies = Latencies::default();
        latencies.enter(-3.0);
        assert_eq!(latencies.quantile(0.99), Some(1.0));
        latencies.enter(1e12);
        assert!(latencies.quantile(1.0).unwrap() > 30.0 * 60e3);
    }

    #[test]
    fn the_difference_of_two_moments_is_what_came_between() {
        let mut latencies = Latencies::default();
        latencies.enter(10.0);
        let before = latencies.clone();
        latencies.enter(700.0);
        assert_about(latencies.since(&before).quantile(0.5), 700.0);
    }

    #[test]
    fn a_number_is_ticked_off_once() {
        let mut tally = Tally::default();
        assert!(tally.is_first(3) && tally.is_first(0));
        assert!(!tally.is_first(3));
    }
}

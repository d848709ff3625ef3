//! The reader at the other end: notes when each caption's vector was available.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow};
use rdkafka::Timestamp;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::{BorrowedMessage, Message};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

use crate::cli::bench::cluster::PARTITIONS;
use crate::cli::bench::feed::HEADER_NUMBER;
use crate::cli::demo::header;
use crate::config::Config;
use crate::kafka::admin_properties;
use crate::lock::lock;
use crate::wire::vector::HEADER_TOKENS;

/// The longest that the reader waits for a record: how late it may notice its stop.
const TICK: Duration = Duration::from_millis(50);

/// The reader's thread.
pub struct Reader {
    thread: Option<JoinHandle<anyhow::Result<()>>>,
    tally: Arc<Mutex<Tally>>,
    stop: Arc<AtomicBool>,
}

/// Vectors so far, each caption counted once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Vectors.
    pub captions: u64,
    /// Tokens of their captions.
    pub tokens: u64,
}

/// A vector that has come.
#[derive(Clone, Copy, Debug)]
pub struct Receipt {
    /// The caption's number.
    pub number: u64,
    /// When the reader had it.
    pub at: Instant,
    /// When the broker appended it, in milliseconds since 1970, where its topic says so.
    pub appended_ms: Option<i64>,
}

#[derive(Default)]
struct Tally {
    counts: Counts,
    receipts: Vec<Receipt>,
    /// Delivery is at least once; a caption counts when it comes first.
    seen: Vec<bool>,
}

impl Reader {
    /// Starts reading the topic of vectors from its beginning.
    ///
    /// # Errors
    ///
    /// When the consumer or the thread can't be made.
    pub fn start(config: &Config) -> anyhow::Result<Reader> {
        let consumer: BaseConsumer = admin_properties(config)
            .set("group.id", format!("{}.reader", config.kafka.group))
            .set("enable.auto.commit", "false")
            .create()?;
        let mut partitions = TopicPartitionList::new();
        partitions.add_partition_range(&config.output.topic, 0, PARTITIONS - 1);
        partitions.set_all_offsets(Offset::Beginning)?;
        consumer.assign(&partitions)?;
        let (tally, stop) = (Arc::<Mutex<Tally>>::default(), Arc::<AtomicBool>::default());
        let thread = std::thread::Builder::new().name("bench-reader".into()).spawn({
            let (tally, stop) = (Arc::clone(&tally), Arc::clone(&stop));
            move || {
                while !stop.load(Ordering::Acquire) {
                    if let Some(message) = consumer.poll(TICK) {
                        let message = message?;
                        let at = Instant::now();
                        lock(&tally).enter(&message, at)?;
                    }
                }
                Ok(())
            }
        })?;
        Ok(Reader { thread: Some(thread), tally, stop })
    }

    /// Returns how much has come so far.
    pub fn counts(&self) -> Counts {
        lock(&self.tally).counts
    }

    /// Takes what has come since the last call.
    pub fn take_receipts(&self) -> Vec<Receipt> {
        std::mem::take(&mut lock(&self.tally).receipts)
    }

    /// Finds out whether it still reads.
    ///
    /// # Errors
    ///
    /// With the reason, when it doesn't.
    pub fn check(&mut self) -> anyhow::Result<()> {
        if self.thread.as_ref().is_some_and(|thread| !thread.is_finished()) {
            return Ok(());
        }
        let thread = self.thread.take().ok_or_else(|| anyhow!("the reader has failed"))?;
        thread.join().expect("the reader doesn't panic").context("the reader failed")
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            // Its error would have been told by check().
            drop(thread.join());
        }
    }
}

impl Tally {
    fn enter(&mut self, record: &BorrowedMessage<'_>, at: Instant) -> anyhow::Result<()> {
        let number = |key| header(record, key).and_then(|text| text.parse::<u64>().ok());
        let (Some(caption), Some(tokens)) = (number(HEADER_NUMBER), number(HEADER_TOKENS)) else {
            return Err(anyhow!("a record in {} has lost its headers", record.topic()));
        };
        let index = caption as usize;
        if index >= self.seen.len() {
            self.seen.resize(index + 1, false);
        }
        if std::mem::replace(&mut self.seen[index], true) {
            return Ok(());
        }
        self.counts.captions += 1;
        self.counts.tokens += tokens;
        let appended_ms = match record.timestamp() {
            Timestamp::LogAppendTime(ms) => Some(ms),
            Timestamp::CreateTime(_) | Timestamp::NotAvailable => None,
        };
        self.receipts.push(Receipt { number: caption, at, appended_ms });
        Ok(())
    }
}

//! The reader at the other end: notes when each caption's vector was available.

use std::time::Instant;

use anyhow::anyhow;
use rdkafka::Timestamp;
use rdkafka::consumer::BaseConsumer;
use rdkafka::message::{BorrowedMessage, Message};
use rdkafka::topic_partition_list::TopicPartitionList;

use crate::cli::bench::cluster::PARTITIONS;
use crate::cli::bench::feed::HEADER_NUMBER;
use crate::cli::reading::{Numbers, Reading, header};
use crate::config::Config;
use crate::kafka::admin_properties;
use crate::wire::vector::HEADER_TOKENS;

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

/// What has come.
#[derive(Default)]
pub struct Tally {
    /// How much, since the beginning.
    pub counts: Counts,
    /// The vectors that nobody has taken from here.
    pub receipts: Vec<Receipt>,
    /// A caption counts when it comes first.
    seen: Numbers,
}

/// Starts reading the topic of vectors from its beginning.
///
/// # Errors
///
/// When the consumer or the thread can't be made.
pub fn start(config: &Config) -> anyhow::Result<Reading<Tally>> {
    let consumer: BaseConsumer = admin_properties(config)
        .set("group.id", format!("{}.reader", config.kafka.group))
        .set("enable.auto.commit", "false")
        .create()?;
    let mut partitions = TopicPartitionList::new();
    partitions.add_partition_range(&config.output.topic, 0, PARTITIONS - 1);
    Reading::start(consumer, partitions, Tally::enter)
}

impl Tally {
    fn enter(&mut self, record: &BorrowedMessage<'_>, at: Instant) -> anyhow::Result<()> {
        let number = |key| header(record, key).and_then(|text| text.parse::<u64>().ok());
        let (Some(caption), Some(tokens)) = (number(HEADER_NUMBER), number(HEADER_TOKENS)) else {
            return Err(anyhow!("a record in {} has lost its headers", record.topic()));
        };
        if !self.seen.is_first(caption as usize) {
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

//! The producer of captions.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use rdkafka::ClientContext;
use rdkafka::error::RDKafkaErrorCode;
use rdkafka::message::{DeliveryResult, Header, Message, OwnedHeaders, Timestamp};
use rdkafka::producer::{BaseRecord, Producer, ProducerContext, ThreadedProducer};

use crate::config::Config;
use crate::kafka::admin_properties;
use crate::lock::lock;

/// Header: the message's running number. The worker carries headers along.
pub const HEADER_NUMBER: &str = "bench.number";

/// How long the producer's queue may stay full, and its last records may take.
const SEND_TIMEOUT: Duration = Duration::from_secs(30);

/// A caption that the broker has.
#[derive(Clone, Copy, Debug)]
pub struct Appended {
    /// The caption's number.
    pub number: u64,
    /// When the broker appended it, in milliseconds since 1970.
    pub ms: i64,
}

/// Notes when the broker appended what was sent, where its topic says so.
#[derive(Default)]
struct Notes(Mutex<Vec<Appended>>);

impl Notes {
    fn take(&self) -> Vec<Appended> {
        std::mem::take(&mut lock(&self.0))
    }
}

impl ClientContext for Notes {}

impl ProducerContext for Notes {
    /// The caption's number.
    type DeliveryOpaque = usize;

    fn delivery(&self, result: &DeliveryResult<'_>, number: usize) {
        if let Ok(message) = result
            && let Timestamp::LogAppendTime(ms) = message.timestamp()
        {
            let mut notes = lock(&self.0);
            notes.push(Appended { number: number as u64, ms });
        }
    }
}

/// Sends captions into a topic.
pub struct Feed {
    producer: ThreadedProducer<Notes>,
    topic: String,
    sent: u64,
}

impl Feed {
    /// Makes the producer; `linger_ms` is how long a record waits for others to go with it.
    ///
    /// # Errors
    ///
    /// When librdkafka refuses the configuration.
    pub fn new(config: &Config, linger_ms: u32) -> anyhow::Result<Feed> {
        let producer = admin_properties(config)
            .set("linger.ms", linger_ms.to_string())
            .set("partitioner", "murmur2_random")
            .create_with_context(Notes::default())?;
        Ok(Feed { producer, topic: config.input.topic.clone(), sent: 0 })
    }

    /// Returns how many captions were sent; it is the number of the next one.
    pub fn sent(&self) -> u64 {
        self.sent
    }

    /// Takes the times at which captions have been appended since the last call.
    pub fn take_appended(&self) -> Vec<Appended> {
        self.producer.context().take()
    }

    /// Sends the next caption, in JSON, keyed by its number.
    ///
    /// # Errors
    ///
    /// When librdkafka refuses it.
    pub fn send(&mut self, text: &str) -> anyhow::Result<()> {
        let number = self.sent.to_string();
        let value = serde_json::json!({ "caption": text }).to_string();
        let headers =
            OwnedHeaders::new().insert(Header { key: HEADER_NUMBER, value: Some(&number) });
        let mut record = BaseRecord::with_opaque_to(&self.topic, self.sent as usize)
            .key(&number)
            .payload(&value)
            .headers(headers);
        let deadline = Instant::now() + SEND_TIMEOUT;
        while let Err((error, back)) = self.producer.send(record) {
            let is_full = error.rdkafka_error_code() == Some(RDKafkaErrorCode::QueueFull);
            if !is_full || Instant::now() > deadline {
                bail!("a caption can't be sent to {}: {error}", self.topic);
            }
            std::thread::sleep(Duration::from_millis(1));
            record = back;
        }
        self.sent += 1;
        Ok(())
    }

    /// Waits until the brokers have all.
    ///
    /// # Errors
    ///
    /// When they don't take them in time.
    pub fn flush(&self) -> anyhow::Result<()> {
        self.producer.flush(SEND_TIMEOUT).context("the brokers don't take the captions")
    }
}

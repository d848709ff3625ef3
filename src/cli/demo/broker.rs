//! The broker inside the process, and the producer that feeds captions into it.
//!
//! The broker keeps little and throws the oldest away, so the producer never runs far ahead of the
//! worker.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use rdkafka::ClientConfig;
use rdkafka::client::ClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::{DeliveryResult, Header, OwnedHeaders};
use rdkafka::producer::{BaseRecord, Producer, ProducerContext, ThreadedProducer};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use serde::Deserialize;

use crate::cli::embedded::EmbeddedBroker;
use crate::metrics::SourceMetrics;
use crate::tracked::Outcome;

/// The topic of captions.
pub const CAPTIONS: &str = "captions";
/// The topic of vectors.
pub const VECTORS: &str = "vectors";
/// The dead-letter topic.
pub const REJECTED: &str = "captions.rejected";
/// Partitions of captions, and of vectors.
pub const PARTITIONS: i32 = 6;
/// The worker's consumer group.
pub const GROUP: &str = "capvec-demo";

/// Header: the message's running number, by which the reader knows that none is lost. The worker
/// carries headers along.
pub const HEADER_NUMBER: &str = "demo.number";
/// Header: the caption's language.
pub const HEADER_LANG: &str = "lang";

/// The captions of the demo, a JSON object a line with `id`, `lang` and `caption`.
pub const CAPTION_LINES: &str = include_str!("captions.jsonl");

/// Messages that the producer may be ahead of the worker. What the broker keeps is enough for many
/// times as many, and a worker with a slow model still comes to an end soon.
const AHEAD_MAX: u64 = 1_000;

/// The longest that the producer sleeps: how late it may notice its stop.
const TICK: Duration = Duration::from_millis(20);

/// How long the broker may take for a request.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// A caption of the file beside this one.
#[derive(Debug, Deserialize)]
struct DemoCaption<'a> {
    id: &'a str,
    lang: &'a str,
    #[serde(skip)]
    line: &'a str,
}

/// What a message of the producer is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Caption,
    NotJson,
    CaptionMissing,
    CaptionNotText,
    Tombstone,
}

/// A Kafka cluster of one broker.
pub struct Broker(EmbeddedBroker);

/// The producer's thread.
pub struct Feed {
    thread: JoinHandle<anyhow::Result<()>>,
    shared: Arc<Shared>,
}

/// What the producer's thread and the demo tell each other.
#[derive(Default)]
struct Shared {
    stop: AtomicBool,
    acknowledged: AtomicU64,
    held_back: AtomicBool,
}

/// Receives the acknowledgements.
struct Acknowledgements(Arc<Shared>);

// === impl Broker ===

impl Broker {
    /// Starts the broker and makes the topics.
    ///
    /// # Errors
    ///
    /// When librdkafka can't.
    pub fn start() -> anyhow::Result<Broker> {
        let topics = [(CAPTIONS, PARTITIONS), (VECTORS, PARTITIONS), (REJECTED, 1)];
        Ok(Broker(EmbeddedBroker::start(&topics)?))
    }

    /// Returns the address, as `bootstrap.servers` takes it.
    pub fn bootstrap(&self) -> String {
        self.0.bootstrap()
    }

    /// Returns the properties of a client of this broker.
    pub fn client(&self) -> ClientConfig {
        self.0.client()
    }

    /// Returns how many captions the worker's group has committed.
    ///
    /// # Errors
    ///
    /// When the broker doesn't answer.
    pub fn committed(&self) -> anyhow::Result<u64> {
        let consumer: BaseConsumer = self.client().set("group.id", GROUP).create()?;
        let mut partitions = TopicPartitionList::new();
        partitions.add_partition_range(CAPTIONS, 0, PARTITIONS - 1);
        let committed = consumer.committed_offsets(partitions, REQUEST_TIMEOUT)?;
        let offsets = committed.elements().into_iter().map(|element| match element.offset() {
            // A partition begins at 0, so the next offset is the number of messages before it.
            Offset::Offset(next) => next as u64,
            _ => 0,
        });
        Ok(offsets.sum())
    }
}

// === impl Feed ===

impl Feed {
    /// Starts producing `rate` messages a second, the captions round and round. `worker` says how
    /// far the worker is.
    ///
    /// # Errors
    ///
    /// When the producer or the thread can't be made.
    pub fn start(broker: &Broker, rate: u64, worker: SourceMetrics) -> anyhow::Result<Feed> {
        let shared = Arc::new(Shared::default());
        let producer: ThreadedProducer<Acknowledgements> = broker
            .client()
            // Every caption leaves by itself: what the demo measures is the worker's latency.
            .set("linger.ms", "0")
            .set("partitioner", "murmur2_random")
            .create_with_context(Acknowledgements(Arc::clone(&shared)))?;
        let thread = std::thread::Builder::new().name("demo-feed".into()).spawn({
            let shared = Arc::clone(&shared);
            move || feed(&producer, rate, &worker, &shared)
        })?;
        Ok(Feed { thread, shared })
    }

    /// Returns how many messages the broker has acknowledged.
    pub fn produced(&self) -> u64 {
        self.shared.acknowledged.load(Ordering::Acquire)
    }

    /// Returns whether the producer waits because the worker is behind.
    pub fn held_back(&self) -> bool {
        self.shared.held_back.load(Ordering::Relaxed)
    }

    /// Returns whether the producer has ended: all is acknowledged, or, before its stop, it failed.
    pub fn has_ended(&self) -> bool {
        self.thread.is_finished()
    }

    /// Asks the producer to stop.
    pub fn stop(&self) {
        self.shared.stop.store(true, Ordering::Release);
    }

    /// Stops, waits for the last acknowledgement, and returns how many messages there were.
    ///
    /// # Errors
    ///
    /// When the broker hasn't taken one.
    pub fn finish(self) -> anyhow::Result<u64> {
        self.stop();
        self.thread.join().expect("the producer doesn't panic").context("the producer failed")?;
        Ok(self.shared.acknowledged.load(Ordering::Acquire))
    }
}

/// Produces until the stop. Times are counted from the first message, so that the pace doesn't
/// drift.
fn feed(
    producer: &ThreadedProducer<Acknowledgements>,
    rate: u64,
    worker: &SourceMetrics,
    shared: &Shared,
) -> anyhow::Result<()> {
    let captions = captions()?;
    let interval = Duration::from_secs_f64(1.0 / rate as f64);
    let mut due = Instant::now();
    let mut number = 0;
    while !shared.stop.load(Ordering::Acquire) {
        let is_ahead = number >= settled(worker) + AHEAD_MAX;
        shared.held_back.store(is_ahead, Ordering::Relaxed);
        let now = Instant::now();
        if is_ahead {
            std::thread::sleep(TICK);
            // What wasn't sent meanwhile is not made up for.
            due = Instant::now();
        } else if now < due {
            std::thread::sleep((due - now).min(TICK));
        } else {
            send(producer, number, &captions[number as usize % captions.len()])?;
            number += 1;
            due += interval;
        }
    }
    shared.held_back.store(false, Ordering::Relaxed);
    producer.flush(REQUEST_TIMEOUT)?;
    let acknowledged = shared.acknowledged.load(Ordering::Acquire);
    if acknowledged != number {
        bail!("the embedded broker took {acknowledged} of {number} messages");
    }
    Ok(())
}

fn send(
    producer: &ThreadedProducer<Acknowledgements>,
    number: u64,
    caption: &DemoCaption<'_>,
) -> anyhow::Result<()> {
    let value = match kind(number) {
        Kind::Caption => Some(caption.line.to_owned()),
        Kind::NotJson => Some(format!(r#"{{"id":"{}","caption":"#, caption.id)),
        Kind::CaptionMissing => Some(format!(r#"{{"id":"{}"}}"#, caption.id)),
        Kind::CaptionNotText => Some(format!(r#"{{"id":"{}","caption":[]}}"#, caption.id)),
        Kind::Tombstone => None,
    };
    let headers = OwnedHeaders::new()
        .insert(Header { key: HEADER_NUMBER, value: Some(&number.to_string()) })
        .insert(Header { key: HEADER_LANG, value: Some(caption.lang) });
    let mut record = BaseRecord::to(CAPTIONS).key(caption.id).headers(headers);
    record.payload = value.as_deref();
    producer.send(record).map_err(|(error, _)| error)?;
    Ok(())
}

/// Returns what the message of this number is: most are captions, and a few are what a worker meets
/// in the wild.
fn kind(number: u64) -> Kind {
    match number % 600 {
        110 => Kind::NotJson,
        310 => Kind::CaptionMissing,
        510 => Kind::CaptionNotText,
        60 | 460 => Kind::Tombstone,
        _ => Kind::Caption,
    }
}

/// Returns how many messages the worker has settled.
pub fn settled(worker: &SourceMetrics) -> u64 {
    let settled = |outcome: Outcome| worker.settled.with_label_values(&[outcome.as_label()]).get();
    Outcome::ALL.map(settled).iter().sum()
}

fn captions() -> anyhow::Result<Vec<DemoCaption<'static>>> {
    let parse = |line: &'static str| -> anyhow::Result<_> {
        let caption = serde_json::from_str(line).with_context(|| line)?;
        Ok(DemoCaption { line, ..caption })
    };
    CAPTION_LINES.lines().map(parse).collect()
}

impl ClientContext for Acknowledgements {}

impl ProducerContext for Acknowledgements {
    type DeliveryOpaque = ();

    fn delivery(&self, result: &DeliveryResult<'_>, (): ()) {
        // A message that wasn't taken is missed when all are counted, at the stop.
        if result.is_ok() {
            self.0.acknowledged.fetch_add(1, Ordering::AcqRel);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::config::Config;

    #[test]
    fn every_caption_of_the_file_can_be_decoded() {
        let mut config = Config::default();
        config.output.format = crate::wire::vector::VectorFormat::Json;
        config.output.id = "/id".into();
        let captions = captions().unwrap();
        for caption in &captions {
            let decoded = config.decoder().decode(caption.line.as_bytes()).unwrap();
            assert!(!decoded.text.trim().is_empty(), "{}", caption.line);
            assert_eq!(decoded.id, Some(crate::wire::caption::Id::Text(caption.id.into())));
        }
        let ids: BTreeSet<_> = captions.iter().map(|caption| caption.id).collect();
        assert_eq!(ids.len(), captions.len());
        let languages: BTreeSet<_> = captions.iter().map(|caption| caption.lang).collect();
        assert!(languages.len() > 60, "{languages:?}");
    }

    #[test]
    fn one_message_in_two_hundred_is_bad() {
        let kinds: Vec<Kind> = (0..6_000).map(kind).collect();
        let count = |wanted: &[Kind]| kinds.iter().filter(|kind| wanted.contains(kind)).count();
        assert_eq!(count(&[Kind::NotJson, Kind::CaptionMissing, Kind::CaptionNotText]), 30);
        assert_eq!(count(&[Kind::Tombstone]), 20);
        // The shortest demo shows one of each.
        assert!(kinds[..120].contains(&Kind::NotJson) && kinds[..120].contains(&Kind::Tombstone));
    }
}

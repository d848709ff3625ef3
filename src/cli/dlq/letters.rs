//! Reads a dead-letter topic: what was there at the start, or spans of it, without joining a group.
//!
//! Letters of open transactions aren't there yet, and those of aborted ones never are.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::message::{BorrowedMessage, Headers, Message, OwnedHeaders};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

use crate::cli;
use crate::config::Config;
use crate::kafka::asker::Asker;
use crate::kafka::consumer::is_final;
use crate::kafka::consumer_properties;
use crate::kafka::dead_letter::{
    HEADER_EXCEPTION, HEADER_MESSAGE, HEADER_OFFSET, HEADER_PARTITION, HEADER_TOPIC,
};
use crate::kafka::topics::look_up_polling;
use crate::shutdown::{Shutdown, Wanted};
use crate::tracked::RawMessage;

/// One look for the next letter: how late a stop may be noticed.
const TICK: Duration = Duration::from_millis(100);

/// A record of the dead-letter topic.
pub(super) struct Letter {
    pub(super) partition: i32,
    pub(super) offset: i64,
    pub(super) message: RawMessage,
    /// `None` where the headers don't say why it is here.
    pub(super) cause: Option<Cause>,
}

/// Why a letter is here.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Cause {
    /// The topic that it came from.
    pub(super) topic: String,
    pub(super) partition: Option<i32>,
    pub(super) offset: Option<i64>,
    pub(super) reason: String,
    /// A sentence about this letter.
    pub(super) detail: String,
}

/// Spans of offsets, by partition.
pub(super) type Spans = BTreeMap<i32, Range<i64>>;

/// The letters of a topic, in the order of each partition.
pub(super) struct Letters {
    consumer: BaseConsumer<Asker>,
    topic: String,
    patience: Duration,
    shutdown: Shutdown,
    /// What is read.
    spans: Spans,
    next: BTreeMap<i32, i64>,
    /// Partitions of which the end of the span hasn't been reached.
    open: BTreeSet<i32>,
}

impl Letters {
    /// Looks up where the topic begins and ends.
    pub(super) fn open(
        config: &Config,
        topic: &str,
        from: &[(i32, i64)],
        shutdown: &Shutdown,
    ) -> anyhow::Result<Letters> {
        let properties = properties(config);
        let consumer: BaseConsumer<Asker> = properties.create_with_context(Asker::default())?;
        let brokers = &config.kafka.brokers;
        let first = cli::patience(config);
        let partitions =
            look_up_polling(&consumer, brokers, topic, "reject.topic", first, shutdown)?;
        let patience = config.kafka.startup_timeout;
        let partitions = partitions as i32;
        if let Some((partition, _)) = from.iter().find(|(p, _)| *p >= partitions) {
            bail!("--from: there is no partition {partition} in {topic:?}, it has {partitions}");
        }
        let mut spans = Spans::new();
        for partition in 0..partitions {
            let (low, high) = consumer
                .fetch_watermarks(topic, partition, patience)
                .context("the ends of its partitions can't be read")?;
            let begin = match from.iter().find(|(p, _)| *p == partition) {
                Some((_, offset)) if *offset > high => {
                    bail!("--from: partition {partition} of {topic:?} ends at {high}")
                }
                Some((_, offset)) => low.max(*offset),
                None => low,
            };
            spans.insert(partition, begin..high);
        }
        let mut letters = Letters {
            consumer,
            topic: topic.to_owned(),
            patience,
            shutdown: shutdown.clone(),
            spans: Spans::new(),
            next: BTreeMap::new(),
            open: BTreeSet::new(),
        };
        letters.go_to(spans)?;
        Ok(letters)
    }

    /// Returns what is read: at first all that was there at the start.
    pub(super) fn spans(&self) -> &Spans {
        &self.spans
    }

    /// Reads `spans` from here on, and nothing else. What librdkafka has fetched for others it
    /// drops.
    pub(super) fn go_to(&mut self, spans: Spans) -> anyhow::Result<()> {
        let mut list = TopicPartitionList::new();
        self.open.clear();
        for (&partition, span) in spans.iter().filter(|(_, span)| !span.is_empty()) {
            self.open.insert(partition);
            list.add_partition_offset(&self.topic, partition, Offset::Offset(span.start))?;
        }
        self.next = spans.iter().map(|(&partition, span)| (partition, span.start)).collect();
        self.spans = spans;
        self.consumer.assign(&list)?;
        Ok(())
    }

    /// Returns the next letter; `None` when all of the spans have been read, or a stop is wanted.
    pub(super) fn next(&mut self) -> anyhow::Result<Option<Letter>> {
        let mut deadline = Instant::now() + self.patience;
        let mut trouble = None;
        while !self.open.is_empty() && self.shutdown.wanted() == Wanted::Run {
            let open = self.open.len();
            match self.consumer.poll(TICK) {
                Some(Ok(message)) => {
                    let (partition, offset) = (message.partition(), message.offset());
                    let end = self.spans[&partition].end;
                    if offset + 1 >= end {
                        self.open.remove(&partition);
                    }
                    if offset < end {
                        self.next.insert(partition, offset + 1);
                        return Ok(Some(Letter::of(&message)));
                    }
                }
                // What is left before the end is of transactions that are open or aborted.
                Some(Err(KafkaError::PartitionEOF(partition))) => {
                    self.open.remove(&partition);
                }
                Some(Err(error)) if is_final(&error) => return Err(error.into()),
                Some(Err(error)) => trouble = Some(error),
                None => {}
            }
            // What is written meanwhile says nothing of the partitions that are waited for.
            if self.open.len() < open {
                deadline = Instant::now() + self.patience;
            }
            if Instant::now() >= deadline {
                let reason = trouble.map_or("they say nothing".into(), |error| error.to_string());
                bail!("no answer from the brokers within {:?}: {reason}", self.patience);
            }
        }
        Ok(None)
    }

    /// Returns the offset after the last letter that was read, by partition.
    pub(super) fn positions(&self) -> &BTreeMap<i32, i64> {
        &self.next
    }

    /// Returns how many offsets have been passed, and how many there are.
    pub(super) fn progress(&self) -> (u64, u64) {
        let passed = self.next.iter().map(|(partition, next)| next - self.spans[partition].start);
        let all = self.spans.values().map(|span| span.end - span.start);
        let number = |offsets: i64| offsets.max(0) as u64;
        (passed.map(number).sum(), all.map(number).sum())
    }
}

fn properties(config: &Config) -> ClientConfig {
    let mut properties = consumer_properties(config);
    properties
        .set("enable.partition.eof", "true")
        // Where letters are deleted while they are read, it goes on with the first that is left. A
        // worker may be told to go on behind the last.
        .set("auto.offset.reset", "earliest")
        .set("statistics.interval.ms", "0");
    properties
}

impl Letter {
    fn of(message: &BorrowedMessage<'_>) -> Letter {
        let raw = RawMessage::copy(message);
        // rdkafka panics at a header whose name isn't UTF-8, which Kafka allows. Such a letter
        // can't be taken apart; it is counted, and stays where it is.
        let found = catch_unwind(AssertUnwindSafe(|| raw.headers.as_ref().and_then(Cause::find)));
        Letter {
            partition: message.partition(),
            offset: message.offset(),
            cause: found.ok().flatten(),
            message: raw,
        }
    }
}

impl Cause {
    /// Reads the last header of each name: earlier ones are the message's own.
    fn find(headers: &OwnedHeaders) -> Option<Cause> {
        let mut by_name: BTreeMap<&str, &str> = BTreeMap::new();
        for header in headers.iter() {
            if let Some(text) = header.value.and_then(|value| std::str::from_utf8(value).ok()) {
                by_name.insert(header.key, text);
            }
        }
        Some(Cause {
            topic: (*by_name.get(HEADER_TOPIC)?).to_owned(),
            partition: by_name.get(HEADER_PARTITION).and_then(|text| text.parse().ok()),
            offset: by_name.get(HEADER_OFFSET).and_then(|text| text.parse().ok()),
            reason: (*by_name.get(HEADER_EXCEPTION)?).to_owned(),
            detail: by_name.get(HEADER_MESSAGE).copied().unwrap_or_default().to_owned(),
        })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use rdkafka::message::Header;
    use rdkafka::producer::{BaseProducer, BaseRecord};

    use super::*;
    use crate::cli::embedded::EmbeddedBroker;

    #[test]
    fn letters_that_are_deleted_meanwhile_do_not_hide_those_behind_them() {
        let mut config = Config::default();
        config.kafka.librdkafka.0.insert("auto.offset.reset".into(), "latest".into());
        assert_eq!(properties(&config).get("auto.offset.reset"), Some("earliest"));
    }

    /// Partition 1 never answers, as one without a leader.
    #[test]
    fn what_is_written_meanwhile_does_not_prolong_the_wait_for_a_partition() {
        let broker = EmbeddedBroker::start(&[("dead", 1)]).unwrap();
        let mut config = Config::default();
        config.kafka.brokers = broker.bootstrap();
        config.kafka.group = "letters".into();
        let client = properties(&config);
        let consumer: BaseConsumer<Asker> = client.create_with_context(Asker::default()).unwrap();
        let mut list = TopicPartitionList::new();
        list.add_partition_offset("dead", 0, Offset::Offset(0)).unwrap();
        consumer.assign(&list).unwrap();
        let mut letters = Letters {
            consumer,
            topic: "dead".into(),
            patience: Duration::from_secs(5),
            shutdown: Shutdown::default(),
            spans: [(0, 0..1), (1, 0..1)].into(),
            next: [(0, 0), (1, 0)].into(),
            open: [0, 1].into(),
        };
        let producer: BaseProducer = broker.client().set("linger.ms", "0").create().unwrap();
        let (is_written, has_ended) = (AtomicBool::new(true), AtomicBool::new(false));
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let until = Instant::now() + Duration::from_secs(30);
                while Instant::now() < until && !has_ended.load(Ordering::Acquire) {
                    let record = BaseRecord::<str, str>::to("dead").payload("letter");
                    producer.send(record).map_err(|(error, _)| error).unwrap();
                    producer.poll(Duration::from_millis(20));
                }
                is_written.store(false, Ordering::Release);
            });
            let mut found = 0;
            let ended = loop {
                match letters.next() {
                    Ok(Some(_)) => found += 1,
                    Ok(None) => break None,
                    Err(error) => break Some(error.to_string()),
                }
            };
            let was_written = is_written.load(Ordering::Acquire);
            has_ended.store(true, Ordering::Release);
            let error = ended.unwrap();
            assert!(error.contains("no answer from the brokers within 5s"), "{error}");
            assert_eq!(found, 1, "the letter that was there");
            assert!(was_written, "it ended while the topic was still being written");
        });
    }

    #[test]
    fn the_cause_is_in_the_last_headers() {
        let header = |key, value| Header { key, value: Some(value) };
        let own = OwnedHeaders::new().insert(header("own", "kept"));
        assert_eq!(Cause::find(&own), None);
        let twice = own
            .insert(header(HEADER_TOPIC, "first"))
            .insert(header(HEADER_EXCEPTION, "not_json"))
            .insert(header(HEADER_TOPIC, "captions"))
            .insert(header(HEADER_PARTITION, "3"))
            .insert(header(HEADER_OFFSET, "soon"));
        let cause = Cause::find(&twice).unwrap();
        assert_eq!(cause.topic, "captions");
        assert_eq!(cause.reason, "not_json");
        assert_eq!((cause.partition, cause.offset), (Some(3), None));
    }
}

//! Sends letters, and knows which of them are acknowledged.

use std::collections::BTreeMap;
use std::error::Error;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use rdkafka::client::{ClientContext, OAuthToken};
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{DeliveryResult, Header, Headers, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer, ProducerContext};

use super::letters::Letter;
use crate::cli::Interrupted;
use crate::config::Config;
use crate::kafka::acknowledged::{acknowledged, is_refused_for_another, is_refused_for_itself};
use crate::kafka::dead_letter::HEADERS;
use crate::kafka::producer_properties;
use crate::kafka::writable::limit_batches;
use crate::lock::lock;
use crate::shutdown::{Shutdown, Wanted};

/// Most letters on their way.
const LETTERS_MAX: usize = 1000;

/// Most bytes of letters on their way.
const BYTES_MAX: usize = 64 << 20;

/// How long one look for acknowledgements waits.
const TICK: Duration = Duration::from_millis(50);

/// A letter's partition and offset in the dead-letter topic.
type Position = (i32, i64);

/// The producer, and what it has been given.
pub(super) struct Sender {
    producer: BaseProducer<Reports>,
    reports: Arc<Mutex<Vec<Report>>>,
    shutdown: Shutdown,
    /// Letters that aren't acknowledged, with their bytes. One that failed stays here.
    unacknowledged: BTreeMap<Position, usize>,
    bytes: usize,
    /// A letter that the brokers refused for what it is.
    refused: Option<Position>,
    /// How many were acknowledged.
    pub(super) replayed: u64,
}

impl Sender {
    /// Makes the producer; `batch_max` is the most bytes of a batch that the topic takes, if known.
    pub(super) fn new(
        config: &Config,
        batch_max: Option<usize>,
        shutdown: Shutdown,
    ) -> anyhow::Result<Sender> {
        let reports = Arc::default();
        let mut properties = producer_properties(config);
        // The brokers refuse a batch as a whole, with letters that are small enough in it.
        if let Some(bytes) = batch_max {
            limit_batches(&mut properties, bytes);
        }
        properties.set("statistics.interval.ms", "0");
        Ok(Sender {
            producer: properties.create_with_context(Reports(Arc::clone(&reports)))?,
            reports,
            shutdown,
            unacknowledged: BTreeMap::new(),
            bytes: 0,
            refused: None,
            replayed: 0,
        })
    }

    /// From here on the replay goes on no later than at this letter, until it is acknowledged.
    pub(super) fn enter(&mut self, letter: &Letter) {
        let bytes = letter.message.bytes();
        self.unacknowledged.insert((letter.partition, letter.offset), bytes);
        self.bytes += bytes;
    }

    /// Sends a letter that was entered as the message that it was, once there is room for it.
    pub(super) fn send(
        &mut self,
        topic: &str,
        partition: Option<i32>,
        letter: &Letter,
        stamp_now: bool,
    ) -> anyhow::Result<()> {
        let position = (letter.partition, letter.offset);
        let message = &letter.message;
        while self.unacknowledged.len() > LETTERS_MAX
            || (self.bytes > BYTES_MAX && self.unacknowledged.len() > 1)
        {
            self.wait(TICK)?;
        }
        let mut record = BaseRecord::<[u8], [u8], Box<Position>> {
            topic,
            partition,
            payload: message.value.as_deref(),
            key: message.key.as_deref(),
            timestamp: message.timestamp_ms.filter(|_| !stamp_now),
            headers: message.headers.as_ref().and_then(without_cause),
            delivery_opaque: Box::new(position),
        };
        while let Err((error, back)) = self.producer.send(record) {
            if error.rdkafka_error_code() != Some(RDKafkaErrorCode::QueueFull) {
                bail!("the letter {}:{} can't be sent: {error}", letter.partition, letter.offset);
            }
            self.wait(TICK)?;
            record = back;
        }
        self.wait(Duration::ZERO)
    }

    /// Waits until all letters are acknowledged.
    pub(super) fn finish(&mut self, patience: Duration) -> anyhow::Result<()> {
        // A record that isn't acknowledged within the timeout comes back as failed.
        let flushed = self.producer.flush(patience + Duration::from_secs(1));
        self.take_reports()?;
        flushed.context("not all letters were acknowledged")
    }

    fn wait(&mut self, patience: Duration) -> anyhow::Result<()> {
        self.producer.poll(patience);
        ensure!(self.shutdown.wanted() == Wanted::Run, Interrupted);
        self.take_reports()
    }

    fn take_reports(&mut self) -> anyhow::Result<()> {
        let mut failed = None;
        for Report { position, error } in std::mem::take(&mut *lock(&self.reports)) {
            match error {
                None => {
                    self.replayed += 1;
                    self.bytes -= self.unacknowledged.remove(&position).unwrap_or(0);
                }
                // Of the letters of a refused batch, one that it was refused for is to be named.
                Some(error) => match &failed {
                    Some((_, named)) if !is_refused_for_another(named) => {}
                    Some(_) if is_refused_for_another(&error) => {}
                    _ => failed = Some((position, error)),
                },
            }
        }
        match failed {
            Some((position @ (partition, offset), error)) => {
                if is_refused_for_itself(&error) {
                    self.refused.get_or_insert(position);
                }
                bail!("the letter {partition}:{offset} was not acknowledged: {error}")
            }
            None => Ok(()),
        }
    }

    /// Returns the first offset that isn't acknowledged, by partition, where `read` is what was
    /// read.
    pub(super) fn go_on_from(&self, read: &BTreeMap<i32, i64>) -> BTreeMap<i32, i64> {
        first_unacknowledged(&self.unacknowledged, read)
    }

    /// Returns the letter that no broker takes as it is, where the replay would go on at it: what lies
    /// before one in its partition would be left out with it.
    pub(super) fn never_taken(&self, next: &BTreeMap<i32, i64>) -> Option<Position> {
        self.refused.filter(|(partition, offset)| next.get(partition) == Some(offset))
    }
}

fn first_unacknowledged(
    unacknowledged: &BTreeMap<Position, usize>,
    read: &BTreeMap<i32, i64>,
) -> BTreeMap<i32, i64> {
    let first = |(&partition, &read): (&i32, &i64)| {
        let first = unacknowledged.range((partition, 0)..(partition, i64::MAX)).next();
        (partition, first.map_or(read, |((_, offset), _)| *offset))
    };
    read.iter().map(first).collect()
}

/// Returns the headers that the message had in its topic. The last of each name is the dead
/// letter's; one before it was the message's own, as where it was copied back by other means.
fn without_cause(headers: &OwnedHeaders) -> Option<OwnedHeaders> {
    let last = |index: usize, key: &str| {
        (index + 1..headers.count()).all(|later| headers.get(later).key != key)
    };
    let kept = headers
        .iter()
        .enumerate()
        .filter(|(index, header)| !(HEADERS.contains(&header.key) && last(*index, header.key)))
        .fold(OwnedHeaders::new(), |kept, (_, header)| {
            kept.insert(Header { key: header.key, value: header.value })
        });
    (kept.count() > 0).then_some(kept)
}

/// What became of a letter.
struct Report {
    position: Position,
    error: Option<KafkaError>,
}

/// Receives librdkafka's reports, from inside a poll of the producer.
struct Reports(Arc<Mutex<Vec<Report>>>);

impl ClientContext for Reports {
    const ENABLE_REFRESH_OAUTH_TOKEN: bool = true;

    fn generate_oauth_token(&self, file: Option<&str>) -> Result<OAuthToken, Box<dyn Error>> {
        crate::kafka::bearer::answer(file)
    }

    fn log(&self, _level: RDKafkaLogLevel, _facility: &str, _message: &str) {}
    fn error(&self, _error: KafkaError, _reason: &str) {}
}

impl ProducerContext for Reports {
    type DeliveryOpaque = Box<Position>;

    fn delivery(&self, result: &DeliveryResult<'_>, position: Box<Position>) {
        let error = acknowledged(result).err();
        lock(&self.0).push(Report { position: *position, error });
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use proptest::prelude::*;

    use super::*;
    use crate::kafka::dead_letter::{self, Author, HEADER_EXCEPTION, HEADER_TOPIC};
    use crate::tracked::{Assignment, Offset, Origin, RawMessage, RejectReason, Rejection};

    #[test]
    fn headers_of_the_rejection_are_taken_off_once() {
        let header = |key, value| Header { key, value };
        let headers = OwnedHeaders::new()
            .insert(header("own", Some("1")))
            .insert(header("own", None))
            .insert(header(HEADER_TOPIC, Some("earlier")))
            .insert(header(HEADER_TOPIC, Some("captions")))
            .insert(header(HEADER_EXCEPTION, Some("not_json")));
        let own = without_cause(&headers).unwrap();
        let kept: Vec<_> = own.iter().map(|h| (h.key, h.value)).collect();
        let expected: [(&str, Option<&[u8]>); 3] =
            [("own", Some(b"1")), ("own", None), (HEADER_TOPIC, Some(b"earlier"))];
        assert_eq!(kept, expected);
        let none = OwnedHeaders::new().insert(header(HEADER_TOPIC, Some("captions")));
        assert!(without_cause(&none).is_none());
    }

    proptest! {
        /// Whatever headers it had, those of an earlier rejection among them.
        #[test]
        fn a_message_gets_its_own_headers_back(
            own in prop::collection::vec(
                (
                    prop_oneof![
                        Just(""),
                        Just("own"),
                        prop::sample::select(dead_letter::HEADERS.to_vec()),
                    ],
                    prop::option::of(prop::collection::vec(any::<u8>(), 0..4)),
                ),
                0..12,
            ),
        ) {
            let headers = own.iter().fold(OwnedHeaders::new(), |headers, (key, value)| {
                headers.insert(Header { key, value: value.as_ref() })
            });
            let headers = Some(headers).filter(|headers| headers.count() > 0);
            let origin = Origin {
                assignment: Assignment::new(3, 1),
                offset: Offset(17),
                sequence: 0,
                received: Instant::now(),
                message: RawMessage { headers, ..RawMessage::default() },
            };
            let text = String::from;
            let author =
                Author { topic: text("captions"), group: text("group"), client_id: text("id") };
            let rejection = Rejection::new(RejectReason::NotJson, "it isn't");
            let letter = dead_letter::headers(&author, &origin, &rejection);
            prop_assert_eq!(letter.count(), own.len() + dead_letter::HEADERS.len());
            let back = without_cause(&letter);
            let back: Vec<_> = back
                .iter()
                .flat_map(OwnedHeaders::iter)
                .map(|header| (header.key, header.value.map(<[u8]>::to_vec)))
                .collect();
            prop_assert_eq!(back, own);
        }
    }

    #[test]
    fn a_replay_goes_on_at_the_first_letter_that_is_not_acknowledged() {
        let unacknowledged = [((0, 7), 1), ((0, 9), 1), ((2, 3), 1)].into();
        let read = [(0, 12), (1, 5), (2, 4)].into();
        let first = first_unacknowledged(&unacknowledged, &read);
        assert_eq!(first, [(0, 7), (1, 5), (2, 3)].into());
    }
}

//! Hands parcels to the producer, as records.

mod judge;
mod record;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::OwnedHeaders;
use rdkafka::producer::{BaseRecord, Producer, PurgeConfig, ThreadedProducer};

use judge::{check, too_old};

use super::SinkError;
use super::delivery::{Connector, SinkContext};
use super::parcel::{Ordered, Parcel};
use super::rejections::Rejections;
use crate::config::{Config, IdFrom, OnReject};
use crate::kafka::acknowledged::{is_refused_for_itself, is_unanswered};
use crate::kafka::breaker::{Breaker, Tripped};
use crate::kafka::dead_letter::{self, Author};
use crate::kafka::timestamps::TimestampBounds;
use crate::kafka::writable::Takes;
use crate::metrics::SinkMetrics;
use crate::seldom::Seldom;
use crate::shutdown::{Shutdown, Wanted};
use crate::tracked::{Origin, Rejection, Tracked};
use crate::wire::vector::{VectorFormat, native};

/// Between two tries while the producer's queue is full.
const QUEUE_FULL_PAUSE: std::time::Duration = std::time::Duration::from_millis(5);

/// Between two lines about records that the output topic deletes for their age.
const SOON_DELETED_INTERVAL: std::time::Duration = std::time::Duration::from_secs(60);

/// A record isn't on its way.
pub(super) enum WriteError {
    /// The worker has to end.
    Sink(Box<SinkError>),
    /// librdkafka doesn't take it.
    Refused(KafkaError),
}

impl From<SinkError> for WriteError {
    fn from(error: SinkError) -> WriteError {
        WriteError::Sink(Box::new(error))
    }
}

/// Owns the producer, and knows what records look like.
pub(super) struct Writer {
    connector: Connector,
    producer: ThreadedProducer<SinkContext>,
    outstanding: Arc<AtomicUsize>,
    /// Of a value in JSON, and of the headers' texts: kept for their room.
    buffer: Vec<u8>,
    text: String,
    shutdown: Shutdown,
    metrics: SinkMetrics,
    rejections: Rejections,
    breaker: Breaker,
    /// Why the worker is to stop, since the breaker has found a reason.
    tripped: Option<Tripped>,
    author: Author,
    output_topic: Arc<str>,
    /// Whether the output topic takes no record without a key. The brokers refuse the whole batch
    /// that one is in, and librdkafka doesn't tell which one it was.
    needs_key: bool,
    /// The timestamps that the output topic takes, for the same reason.
    output_timestamps: TimestampBounds,
    /// How people hear of records that the output topic deletes for their age.
    soon_deleted: Seldom<()>,
    dead_letter_topic: Option<Arc<str>>,
    dead_letter_timestamps: TimestampBounds,
    on_reject: OnReject,
    format: VectorFormat,
    id_from: IdFrom,
    key_is_id: bool,
    include_caption: bool,
    model_id: String,
    dim_text: String,
}

impl Writer {
    pub(super) fn new(
        config: &Config,
        model_id: &str,
        dim: usize,
        takes: &[Takes],
        connector: Connector,
        shutdown: Shutdown,
        metrics: SinkMetrics,
    ) -> Result<Writer, SinkError> {
        let (producer, outstanding) = connector.connect().map_err(SinkError::Client)?;
        // Of a topic of which the brokers say nothing all is taken to be taken.
        let output = takes.iter().find(|takes| takes.topic == config.output.topic);
        let dead_letters =
            takes.iter().find(|takes| Some(takes.topic.as_str()) == config.dead_letter_topic());
        if let Some(Takes { topic, needs_key: true, .. }) = dead_letters {
            tracing::warn!(
                topic,
                "reject.topic is compacted: it keeps the last letter of each key, and takes none without a key"
            );
        }
        Ok(Writer {
            connector,
            producer,
            outstanding,
            buffer: Vec::new(),
            text: String::new(),
            shutdown,
            metrics,
            rejections: Rejections::default(),
            breaker: Breaker::new(&config.reject),
            tripped: None,
            author: Author {
                topic: config.input.topic.clone(),
                group: config.kafka.group.clone(),
                client_id: config.kafka.client_id.clone(),
            },
            output_topic: config.output.topic.as_str().into(),
            needs_key: output.is_some_and(|takes| takes.needs_key),
            output_timestamps: output.map(|takes| takes.timestamps).unwrap_or_default(),
            soon_deleted: Seldom::new(SOON_DELETED_INTERVAL, 1),
            dead_letter_topic: config.dead_letter_topic().map(Arc::from),
            dead_letter_timestamps: dead_letters.map(|takes| takes.timestamps).unwrap_or_default(),
            on_reject: config.reject.on_reject,
            format: config.output.format,
            id_from: config.id_from(),
            key_is_id: config.key_is_id(),
            include_caption: config.output.include_caption,
            model_id: model_id.into(),
            dim_text: dim.to_string(),
        })
    }

    pub(super) fn producer(&self) -> &ThreadedProducer<SinkContext> {
        &self.producer
    }

    /// Returns the number of records that wait for their acknowledgement.
    pub(super) fn outstanding(&self) -> usize {
        self.outstanding.load(Ordering::Acquire)
    }

    /// Leaves the producer and makes another. The first ends here, or with its last call.
    pub(super) fn reconnect(&mut self) -> Result<(), SinkError> {
        let (producer, outstanding) = self.connector.connect().map_err(SinkError::Client)?;
        self.producer.client().context().leave();
        // Each record holds on to its partition's assignment, and a drain would wait for it.
        self.producer.purge(PurgeConfig::default().queue().inflight());
        self.producer = producer;
        self.outstanding = outstanding;
        Ok(())
    }

    /// Hands a parcel's record to the producer.
    pub(super) fn write(&mut self, parcel: &Arc<Parcel>) -> Result<(), WriteError> {
        if parcel.origin().assignment.is_revoked() {
            // The partition's next owner gets the message; a vector now would come out of order.
            return Ok(());
        }
        if parcel.rejection().is_none()
            && let Some(rejection) = self.write_as_it_is(parcel)?
        {
            self.refuse(parcel, rejection);
        }
        match parcel.rejection() {
            Some(rejection) => self.write_rejected(parcel, rejection),
            None => Ok(()),
        }
    }

    /// Writes a vector or a tombstone; returns why, where it can't become a record.
    fn write_as_it_is(&mut self, parcel: &Arc<Parcel>) -> Result<Option<Rejection>, WriteError> {
        let topic = Arc::clone(&self.output_topic);
        let timestamp_ms = parcel.origin().message.timestamp_ms;
        let sent = match &parcel.item {
            Ordered::Rejected(_) => unreachable!("looked at by write()"),
            Ordered::Tombstone(Tracked { origin, payload: () }) => {
                let headers = origin.message.headers.clone();
                self.send(parcel, &topic, timestamp_ms, None, headers)
            }
            Ordered::Vector { caption, vector, .. } => {
                let Tracked { origin, payload: caption } = caption;
                let headers = Some(self.vector_headers(origin, caption));
                match self.format {
                    VectorFormat::Native => {
                        let value = native(vector);
                        self.metrics.bytes.inc_by(value.len() as u64);
                        self.send(parcel, &topic, timestamp_ms, Some(&value), headers)
                    }
                    VectorFormat::Json => {
                        let mut value = std::mem::take(&mut self.buffer);
                        value.clear();
                        self.write_json(origin, caption, vector, &mut value);
                        self.metrics.bytes.inc_by(value.len() as u64);
                        let sent = self.send(parcel, &topic, timestamp_ms, Some(&value), headers);
                        self.buffer = value;
                        sent
                    }
                }
            }
        };
        match sent {
            Ok(()) => Ok(None),
            Err(error) => match self.rejection_for(parcel, &error) {
                Some(rejection) => Ok(Some(rejection)),
                None => Err(WriteError::Refused(error)),
            },
        }
    }

    fn write_rejected(
        &mut self,
        parcel: &Arc<Parcel>,
        rejection: &Rejection,
    ) -> Result<(), WriteError> {
        let origin = parcel.origin();
        if let Some(topic) = self.dead_letter_topic.clone() {
            let headers = dead_letter::headers(&self.author, origin, rejection);
            let value = origin.message.value.as_deref();
            // Nothing else keeps the message: where its time isn't taken, or the letter would be
            // deleted for it, the letter has that of now.
            let bounds = self.dead_letter_timestamps;
            let is_kept = |time_ms: &i64| {
                !parcel.is_untimely()
                    && check(bounds, Some(*time_ms)).is_ok()
                    && too_old(bounds, Some(*time_ms)).is_none()
            };
            let timestamp_ms = origin.message.timestamp_ms.filter(is_kept);
            return match self.send(parcel, &topic, timestamp_ms, value, Some(headers)) {
                Err(error) if is_refused_for_itself(&error) => {
                    Err(self.produce_error(parcel, error).into())
                }
                sent => sent.map_err(WriteError::Refused),
            };
        }
        match self.on_reject {
            OnReject::Skip => {
                if let Some(settler) = &self.connector.settler {
                    settler.settle(parcel);
                }
                Ok(())
            }
            OnReject::Stop => Err(self.stop_at(origin, rejection).into()),
        }
    }

    fn stop_at(&self, origin: &Origin, rejection: &Rejection) -> SinkError {
        SinkError::Rejected {
            reason: rejection.reason.as_label(),
            detail: rejection.detail.clone(),
            source_position: self.source(origin),
        }
    }

    fn send(
        &mut self,
        parcel: &Arc<Parcel>,
        topic: &str,
        timestamp_ms: Option<i64>,
        value: Option<&[u8]>,
        headers: Option<OwnedHeaders>,
    ) -> Result<(), KafkaError> {
        let mut record = BaseRecord::<[u8], [u8], Arc<Parcel>> {
            topic,
            partition: None,
            payload: value,
            key: parcel.origin().message.key.as_deref(),
            timestamp: timestamp_ms,
            headers,
            delivery_opaque: Arc::clone(parcel),
        };
        self.outstanding.fetch_add(1, Ordering::AcqRel);
        loop {
            let (error, back) = match self.producer.send(record) {
                Ok(()) => return Ok(()),
                Err(refused) => refused,
            };
            if error.rdkafka_error_code() == Some(RDKafkaErrorCode::QueueFull)
                && self.shutdown.wanted() != Wanted::Abort
            {
                self.metrics.queue_full.inc();
                std::thread::sleep(QUEUE_FULL_PAUSE);
                record = back;
                continue;
            }
            self.outstanding.fetch_sub(1, Ordering::AcqRel);
            return Err(error);
        }
    }

    /// Returns that a parcel's topic can't be written.
    pub(super) fn produce_error(&self, parcel: &Parcel, source: KafkaError) -> SinkError {
        let topic = match (parcel.rejection(), &self.dead_letter_topic) {
            (Some(_), Some(topic)) => topic,
            _ => &self.output_topic,
        };
        let topic = topic.to_string();
        match is_unanswered(&source) {
            true => SinkError::Unanswered { topic },
            false => SinkError::Produce { topic, source },
        }
    }
}

//! Turns parcels into records and hands them to the producer.

use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseRecord, Producer, PurgeConfig, ThreadedProducer};

use super::SinkError;
use super::delivery::{Connector, SinkContext};
use super::parcel::{Ordered, Parcel};
use super::rejections::Rejections;
use crate::clock::since_epoch;
use crate::config::{Config, IdFrom, OnReject};
use crate::kafka::breaker::{Breaker, Tripped};
use crate::kafka::dead_letter::{self, Author};
use crate::kafka::timestamps::{OutOfBounds, TimestampBounds};
use crate::kafka::writable::Takes;
use crate::metrics::SinkMetrics;
use crate::shutdown::{Shutdown, Wanted};
use crate::tokenize::task::PreparedCaption;
use crate::tracked::{Origin, RejectReason, Rejection, Tracked};
use crate::wire::caption::{Id, key_as_id};
use crate::wire::vector::{
    DTYPE, HEADER_DIM, HEADER_DTYPE, HEADER_MODEL, HEADER_SOURCE, HEADER_TOKENS, HEADER_TRUNCATED,
    JsonVector, VectorFormat, native, write_json,
};

/// Between two tries while the producer's queue is full.
const QUEUE_FULL_PAUSE: std::time::Duration = std::time::Duration::from_millis(5);

/// Why writing into a string doesn't fail.
const WRITES: &str = "a string takes all";

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
    /// Whether the output topic takes no record without a key. The brokers refuse the whole batch that
    /// one is in, and librdkafka doesn't tell which one it was.
    needs_key: bool,
    /// The timestamps that the output topic takes, for the same reason.
    output_timestamps: TimestampBounds,
    dead_letter_topic: Option<Arc<str>>,
    dead_letter_timestamps: TimestampBounds,
    on_reject: OnReject,
    format: VectorFormat,
    id_from: IdFrom,
    include_caption: bool,
    model_id: String,
    dim: usize,
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
            dead_letter_topic: config.dead_letter_topic().map(Arc::from),
            dead_letter_timestamps: dead_letters.map(|takes| takes.timestamps).unwrap_or_default(),
            on_reject: config.reject.on_reject,
            format: config.output.format,
            id_from: config.id_from(),
            include_caption: config.output.include_caption,
            model_id: model_id.into(),
            dim,
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

    /// Judges and counts a parcel that is about to be written for the first time.
    pub(super) fn count(&mut self, parcel: &Parcel) {
        if parcel.rejection().is_none()
            && let Some(rejection) = self.unwritable(parcel)
        {
            parcel.refuse(rejection);
        }
        match parcel.rejection() {
            Some(rejection) => {
                self.count_rejection(parcel.origin(), rejection);
                self.breaker.rejected();
            }
            None => self.breaker.accepted(),
        }
        self.look_at_breaker();
    }

    /// Returns why a parcel must not be written, once it is counted: the breaker has tripped, or it is rejected and may be
    /// neither kept nor skipped. What was written before is to be settled first.
    pub(super) fn check(&self, parcel: &Parcel) -> Result<(), SinkError> {
        self.check_breaker()?;
        match parcel.rejection() {
            Some(rejection)
                if self.dead_letter_topic.is_none()
                    && self.on_reject == OnReject::Stop
                    && !parcel.origin().assignment.is_revoked() =>
            {
                Err(self.stop_at(parcel.origin(), rejection))
            }
            _ => Ok(()),
        }
    }

    /// Returns why to stop, if the breaker has tripped.
    pub(super) fn check_breaker(&self) -> Result<(), SinkError> {
        let Some(tripped) = self.tripped else { return Ok(()) };
        Err(SinkError::Breaker { tripped, last: self.rejections.last().into() })
    }

    /// Returns why the output topic wouldn't take a parcel's record, as far as can be known before it is sent: the brokers
    /// refuse all that is in one batch with such a record.
    fn unwritable(&self, parcel: &Parcel) -> Option<Rejection> {
        let (topic, message) = (&self.output_topic, &parcel.origin().message);
        let refused = |detail| Some(Rejection::new(RejectReason::RecordRefused, detail));
        if self.needs_key && message.key.is_none() {
            return refused(format!("{topic} is compacted, and takes no record without a key"));
        }
        if let Err(bounds) = check(self.output_timestamps, message.timestamp_ms) {
            return refused(format!("{topic} doesn't take {bounds}"));
        }
        let is_vector = matches!(parcel.item, Ordered::Vector { .. });
        if is_vector && self.format == VectorFormat::Json && self.id_from == IdFrom::Key {
            return key_as_id(message.key.as_deref()).err();
        }
        None
    }

    fn count_rejection(&mut self, origin: &Origin, rejection: &Rejection) {
        self.metrics.rejected.with_label_values(&[rejection.reason.as_label()]).inc();
        let position = self.source(origin);
        self.rejections.add(&position, rejection, Instant::now());
    }

    fn look_at_breaker(&mut self) {
        self.metrics.rejected_run.set(self.breaker.run() as i64);
        self.metrics.rejected_share.set(self.breaker.share());
        if let Err(tripped) = self.breaker.check() {
            self.tripped.get_or_insert(tripped);
        }
    }

    /// Makes a dead letter of a parcel that was counted as a good one. It is written even where this trips the breaker.
    pub(super) fn refuse(&mut self, parcel: &Parcel, rejection: Rejection) {
        self.count_rejection(parcel.origin(), &rejection);
        parcel.refuse(rejection);
        self.breaker.rejected_after_all();
        self.look_at_breaker();
    }

    /// Judges a parcel that is to be written another time: what its topic takes may have changed with the time.
    pub(super) fn judge_again(&mut self, parcel: &Parcel) {
        if parcel.rejection().is_none()
            && let Some(rejection) = self.unwritable(parcel)
        {
            self.refuse(parcel, rejection);
        }
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
            Ordered::Vector { caption, vectors, row, .. } => {
                let vector = &vectors[row * self.dim..(row + 1) * self.dim];
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

    fn write_json(
        &self,
        origin: &Origin,
        caption: &PreparedCaption,
        vector: &[f32],
        out: &mut Vec<u8>,
    ) {
        let of_message;
        let id = match (&self.id_from, &caption.id) {
            (IdFrom::Pointer(_), Some(id)) => id,
            (IdFrom::Pointer(pointer), None) => {
                unreachable!("the decoder rejects a message without an id at {pointer}")
            }
            (IdFrom::Source, _) => {
                of_message = Id::Text(self.source(origin));
                &of_message
            }
            (IdFrom::Key, _) => {
                let Ok(key) = key_as_id(origin.message.key.as_deref()) else {
                    unreachable!("a message whose key is no id is rejected before it is written")
                };
                of_message = Id::Text(key.to_owned());
                &of_message
            }
        };
        let text = self.include_caption.then_some(caption.text.as_str());
        write_json(&JsonVector { id, caption: text, vector, model: &self.model_id }, out);
    }

    fn vector_headers(&mut self, origin: &Origin, caption: &PreparedCaption) -> OwnedHeaders {
        let mut text = std::mem::take(&mut self.text);
        text.clear();
        self.write_source(origin, &mut text);
        let source_bytes = text.len();
        write!(text, "{}", caption.tokens.ids.len()).expect(WRITES);
        let (source, tokens) = text.split_at(source_bytes);
        let truncated = if caption.tokens.truncated { "true" } else { "false" };
        let of_worker = [
            (HEADER_MODEL, self.model_id.as_str()),
            (HEADER_DIM, &self.dim_text),
            (HEADER_DTYPE, DTYPE),
            (HEADER_SOURCE, source),
            (HEADER_TOKENS, tokens),
            (HEADER_TRUNCATED, truncated),
        ];
        let of_message = origin.message.headers.clone();
        let headers = of_worker.into_iter().fold(
            of_message.unwrap_or_else(|| OwnedHeaders::new_with_capacity(of_worker.len())),
            |headers, (key, value)| headers.insert(Header { key, value: Some(value) }),
        );
        self.text = text;
        headers
    }

    fn write_source(&self, origin: &Origin, out: &mut String) {
        let (partition, offset) = (origin.assignment.partition, origin.offset.0);
        write!(out, "{}/{partition}/{offset}", self.author.topic).expect(WRITES);
    }

    fn source(&self, origin: &Origin) -> String {
        let mut source = String::new();
        self.write_source(origin, &mut source);
        source
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
            // Nothing else keeps the message: where its time isn't taken, the letter has that of now.
            let is_taken = |time_ms: &i64| {
                !parcel.is_untimely() && check(self.dead_letter_timestamps, Some(*time_ms)).is_ok()
            };
            let timestamp_ms = origin.message.timestamp_ms.filter(is_taken);
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

    /// Returns the rejection that a refused record asks for; `None` where it isn't the record's fault,
    /// or it is a dead letter already.
    pub(super) fn rejection_for(&self, parcel: &Parcel, error: &KafkaError) -> Option<Rejection> {
        if parcel.rejection().is_some() || !is_refused_for_itself(error) {
            return None;
        }
        let detail = format!("{} refuses the record: {error}", self.output_topic);
        Some(Rejection::new(RejectReason::RecordRefused, detail))
    }

    /// Returns whether a dead letter that was refused for its time is to be sent again with that of now.
    pub(super) fn drops_time(&self, parcel: &Parcel, error: &KafkaError) -> bool {
        let is_for_time = error.rdkafka_error_code() == Some(RDKafkaErrorCode::InvalidTimestamp);
        is_for_time && parcel.rejection().is_some() && parcel.drop_time()
    }

    /// Returns that a parcel's topic can't be written.
    pub(super) fn produce_error(&self, parcel: &Parcel, source: KafkaError) -> SinkError {
        let topic = match (parcel.rejection(), &self.dead_letter_topic) {
            (Some(_), Some(topic)) => topic,
            _ => &self.output_topic,
        };
        SinkError::Produce { topic: topic.to_string(), source }
    }
}

/// Tells whether a topic of these bounds takes a record of this time now. One without a time is given
/// that of now.
fn check(bounds: TimestampBounds, timestamp_ms: Option<i64>) -> Result<(), OutOfBounds> {
    let Some(timestamp_ms) = timestamp_ms else { return Ok(()) };
    bounds.check(timestamp_ms, since_epoch().as_millis() as i64)
}

/// Returns whether a record was refused for another one of its batch.
pub(super) fn is_refused_for_another(error: &KafkaError) -> bool {
    error.rdkafka_error_code() == Some(RDKafkaErrorCode::InvalidDifferentRecord)
}

/// Returns whether a record was refused for what it is.
pub(super) fn is_refused_for_itself(error: &KafkaError) -> bool {
    matches!(
        error.rdkafka_error_code(),
        Some(
            RDKafkaErrorCode::MessageSizeTooLarge
                | RDKafkaErrorCode::InvalidMessageSize
                | RDKafkaErrorCode::InvalidRecord
                | RDKafkaErrorCode::InvalidTimestamp
        )
    )
}

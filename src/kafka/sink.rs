//! The sink: a thread that owns the producer and publishes vectors, tombstones and dead letters.
//!
//! All three leave in the order of their partition. A message is settled by the broker's
//! acknowledgement, which comes back on librdkafka's own thread and goes from there straight to the
//! source.
//!
//! # Invariants
//!
//! - Every message that comes in ends in one settlement, or its partition is being given up, or the
//!   sink fails; in the last two cases it comes again, here or elsewhere.
//! - A record that the broker refuses for what it is becomes a dead letter; any other refusal fails
//!   the worker: the offset stays, and redelivery brings the message again.

mod delivery;

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, select};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseRecord, Producer, ThreadedProducer};
use thiserror::Error;

use delivery::{Outstanding, RecordKind, SinkContext, Undelivered, settlement};

use super::dead_letter::{self, Author};
use super::sequencer::Sequencer;
use super::topics::{TopicError, look_up};
use crate::config::{Config, IdFrom, OnReject};
use crate::embed::task::EmbeddedBatch;
use crate::metrics::{Metrics, SinkMetrics, Stage};
use crate::queue::QueueReceiver;
use crate::shutdown::{Shutdown, Wanted};
use crate::tokenize::task::PreparedCaption;
use crate::tracked::{Origin, Outcome, RejectReason, Rejection, Settlement, Tracked};
use crate::wire::caption::Id;
use crate::wire::vector::{
    DTYPE, HEADER_DIM, HEADER_DTYPE, HEADER_MODEL, HEADER_SOURCE, HEADER_TOKENS, HEADER_TRUNCATED,
    JsonVector, VectorFormat, write_json, write_native,
};

/// Between two tries while the producer's queue is full.
const QUEUE_FULL_PAUSE: Duration = Duration::from_millis(5);

/// How often the sink looks whether the worker is being aborted, or its records are acknowledged.
const TICK: Duration = Duration::from_millis(20);

/// What comes to the sink.
#[derive(Debug)]
pub enum Finished {
    /// Captions with their vectors.
    Embedded(EmbeddedBatch),
    /// A message that can't become a vector.
    Rejected(Tracked<Rejection>),
    /// A message without a value.
    Tombstone(Tracked<()>),
    /// A message whose partition is being given up before it was embedded.
    Abandoned(Tracked<()>),
}

/// Why the sink ended.
#[derive(Debug, Error)]
pub enum SinkError {
    /// A topic can't be used.
    #[error(transparent)]
    Topic(#[from] TopicError),
    /// librdkafka refuses the configuration.
    #[error("the producer can't be made")]
    Client(#[source] KafkaError),
    /// The broker refuses a record, and not for what it is.
    #[error("{topic} can't be written; offsets stay, redelivery brings the captions again")]
    Produce {
        /// The topic.
        topic: String,
        /// The broker's or librdkafka's words.
        source: KafkaError,
    },
    /// A message was rejected, there is no dead-letter topic, and skipping isn't allowed.
    #[error(
        "a message was rejected ({reason}): {detail} at {source_position}; set reject.topic to keep \
         such messages, or reject.on_reject = \"skip\" to skip them"
    )]
    Rejected {
        /// The reason's label.
        reason: &'static str,
        /// A sentence about the message.
        detail: String,
        /// `topic/partition/offset`.
        source_position: String,
    },
}

/// What leaves in the order of its partition.
enum Ordered {
    Vector {
        caption: Tracked<PreparedCaption>,
        vectors: Arc<Vec<f32>>,
        row: usize,
        embedded: Instant,
    },
    Tombstone(Tracked<()>),
    /// It holds nobody up, but waits like the others: one that overtook captions which are then
    /// abandoned would be written again by the partition's next owner.
    Rejected(Tracked<Rejection>),
}

/// The sink stage.
pub struct Sink {
    producer: ThreadedProducer<SinkContext>,
    input: QueueReceiver<Finished>,
    undelivered: Receiver<Undelivered>,
    settlements: Sender<Settlement>,
    outstanding: Arc<AtomicUsize>,
    sequencer: Sequencer<Ordered>,
    ready: Vec<Ordered>,
    buffer: Vec<u8>,
    shutdown: Shutdown,
    metrics: SinkMetrics,
    author: Author,
    output_topic: Arc<str>,
    dead_letter_topic: Option<Arc<str>>,
    on_reject: OnReject,
    format: VectorFormat,
    id_from: IdFrom,
    include_caption: bool,
    model_id: String,
    dim: usize,
    dim_text: String,
}

impl Sink {
    /// Makes the producer and looks up the topics that it writes.
    ///
    /// # Errors
    ///
    /// When librdkafka refuses the configuration, or a topic can't be used.
    pub fn new(
        config: &Config,
        model_id: &str,
        dim: usize,
        input: QueueReceiver<Finished>,
        settlements: Sender<Settlement>,
        shutdown: Shutdown,
        metrics: &Metrics,
    ) -> Result<Sink, SinkError> {
        // Not bounded by itself: an outstanding record comes back at most once, and the source bounds
        // how many there are. A callback must never wait.
        let (undelivered_sender, undelivered) = unbounded();
        let outstanding = Arc::new(AtomicUsize::new(0));
        let context = SinkContext {
            settlements: settlements.clone(),
            undelivered: undelivered_sender,
            outstanding: Arc::clone(&outstanding),
            deliver_seconds: metrics.stage(Stage::Deliver),
            end_to_end_seconds: metrics.source.end_to_end_seconds.clone(),
            metrics: metrics.sink.clone(),
            retries_seen: AtomicI64::new(0),
        };
        let producer: ThreadedProducer<SinkContext> = super::producer_properties(config)
            .create_with_context(context)
            .map_err(SinkError::Client)?;
        let topics = [
            Some((config.output.topic.as_str(), "output.topic")),
            config.dead_letter_topic().map(|topic| (topic, "reject.topic")),
        ];
        for (topic, option) in topics.into_iter().flatten() {
            let patience = config.kafka.startup_timeout;
            look_up(producer.client(), &config.kafka.brokers, topic, option, patience, &shutdown)?;
        }
        Ok(Sink {
            producer,
            input,
            undelivered,
            settlements,
            outstanding,
            sequencer: Sequencer::default(),
            ready: Vec::new(),
            buffer: Vec::new(),
            shutdown,
            metrics: metrics.sink.clone(),
            author: Author {
                topic: config.input.topic.clone(),
                group: config.kafka.group.clone(),
                client_id: config.kafka.client_id.clone(),
            },
            output_topic: config.output.topic.as_str().into(),
            dead_letter_topic: config.dead_letter_topic().map(Arc::from),
            on_reject: config.reject.on_reject,
            format: config.vector_format(),
            id_from: config.id_from(),
            include_caption: config.output.include_caption,
            model_id: model_id.into(),
            dim,
            dim_text: dim.to_string(),
        })
    }

    /// Runs until its queue is closed and every record is acknowledged.
    ///
    /// # Errors
    ///
    /// When a topic can't be written, or a message is rejected that may not be.
    pub fn run(mut self) -> Result<(), SinkError> {
        // A handle of its own, for select! borrows it while the sink is at work.
        let input = self.input.clone();
        let undelivered = self.undelivered.clone();
        loop {
            select! {
                recv(input.inner()) -> finished => match input.took(finished) {
                    Some(finished) => self.accept(finished)?,
                    None => break,
                },
                recv(undelivered) -> back => {
                    if let Ok(back) = back {
                        self.came_back(back)?;
                    }
                }
                default(TICK) => {}
            }
            self.report();
        }
        while self.outstanding.load(Ordering::Acquire) > 0 || !undelivered.is_empty() {
            if self.shutdown.wanted() == Wanted::Abort {
                break;
            }
            if let Ok(back) = undelivered.recv_timeout(TICK) {
                self.came_back(back)?;
            }
            self.report();
        }
        Ok(())
    }

    fn report(&self) {
        self.metrics.outstanding.set(self.outstanding.load(Ordering::Relaxed) as i64);
        self.metrics.held_back.set(self.sequencer.held_back() as i64);
    }

    fn accept(&mut self, finished: Finished) -> Result<(), SinkError> {
        match finished {
            Finished::Embedded(batch) => {
                let vectors = Arc::new(batch.vectors);
                for (row, caption) in batch.captions {
                    let vectors = Arc::clone(&vectors);
                    let embedded = batch.finished;
                    let origin = Passage::of(&caption.origin);
                    self.pass(&origin, Ordered::Vector { caption, vectors, row, embedded });
                }
            }
            Finished::Tombstone(tombstone) => {
                let origin = Passage::of(&tombstone.origin);
                self.pass(&origin, Ordered::Tombstone(tombstone));
            }
            Finished::Rejected(rejected) => {
                self.pass(&Passage::of(&rejected.origin), Ordered::Rejected(rejected));
            }
            Finished::Abandoned(message) => {
                self.metrics.abandoned.inc();
                self.sequencer.abandon(&message.origin.assignment, message.origin.sequence);
            }
        }
        let mut ready = std::mem::take(&mut self.ready);
        for item in ready.drain(..) {
            self.produce_ordered(item)?;
        }
        self.ready = ready;
        Ok(())
    }

    fn pass(&mut self, passage: &Passage, item: Ordered) {
        self.sequencer.push(&passage.assignment, passage.sequence, item, &mut self.ready);
    }

    fn produce_ordered(&mut self, item: Ordered) -> Result<(), SinkError> {
        match item {
            Ordered::Rejected(rejected) => self.reject(rejected.origin, &rejected.payload),
            Ordered::Tombstone(Tracked { origin, payload: () }) => {
                let headers = origin.message.headers.clone();
                self.produce(origin, RecordKind::Tombstone, None, headers, Instant::now())
            }
            Ordered::Vector { caption, vectors, row, embedded } => {
                let vector = &vectors[row * self.dim..(row + 1) * self.dim];
                let Tracked { origin, payload: caption } = caption;
                let mut value = std::mem::take(&mut self.buffer);
                value.clear();
                if let Err(rejection) = self.encode(&origin, &caption, vector, &mut value) {
                    self.buffer = value;
                    return self.reject(origin, &rejection);
                }
                let headers = Some(self.vector_headers(&origin, &caption));
                self.metrics.bytes.inc_by(value.len() as u64);
                let sent =
                    self.produce(origin, RecordKind::Vector, Some(&value), headers, embedded);
                self.buffer = value;
                sent
            }
        }
    }

    fn encode(
        &self,
        origin: &Origin,
        caption: &PreparedCaption,
        vector: &[f32],
        out: &mut Vec<u8>,
    ) -> Result<(), Rejection> {
        match self.format {
            VectorFormat::Native => write_native(vector, out),
            VectorFormat::Json => {
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
                        of_message = Id::Text(key_as_text(origin)?);
                        &of_message
                    }
                };
                let text = self.include_caption.then_some(caption.text.as_str());
                let model = &self.model_id;
                write_json(&JsonVector { id, caption: text, vector, model }, out);
            }
        }
        Ok(())
    }

    fn vector_headers(&self, origin: &Origin, caption: &PreparedCaption) -> OwnedHeaders {
        let source = self.source(origin);
        let tokens = caption.tokens.ids.len().to_string();
        let truncated = if caption.tokens.truncated { "true" } else { "false" };
        let own = origin.message.headers.clone().unwrap_or_default();
        [
            (HEADER_MODEL, self.model_id.as_str()),
            (HEADER_DIM, &self.dim_text),
            (HEADER_DTYPE, DTYPE),
            (HEADER_SOURCE, &source),
            (HEADER_TOKENS, &tokens),
            (HEADER_TRUNCATED, truncated),
        ]
        .into_iter()
        .fold(own, |headers, (key, value)| headers.insert(Header { key, value: Some(value) }))
    }

    fn source(&self, origin: &Origin) -> String {
        format!("{}/{}/{}", self.author.topic, origin.assignment.partition, origin.offset.0)
    }

    fn reject(&mut self, origin: Box<Origin>, rejection: &Rejection) -> Result<(), SinkError> {
        let reason = rejection.reason.as_label();
        self.metrics.rejected.with_label_values(&[reason]).inc();
        let (partition, offset) = (origin.assignment.partition, origin.offset.0);
        tracing::debug!(partition, offset, reason, detail = rejection.detail, "rejected");
        if self.dead_letter_topic.is_some() {
            let headers = dead_letter::headers(&self.author, &origin, rejection);
            let value = origin.message.value.clone();
            let kind = RecordKind::DeadLetter;
            return self.produce(origin, kind, value.as_deref(), Some(headers), Instant::now());
        }
        match self.on_reject {
            OnReject::Skip => {
                // The source has gone where this fails, and it has all settlements that it will get.
                drop(self.settlements.send(settlement(&origin, Outcome::Rejected)));
                Ok(())
            }
            OnReject::Stop => Err(SinkError::Rejected {
                reason,
                detail: rejection.detail.clone(),
                source_position: self.source(&origin),
            }),
        }
    }

    fn produce(
        &mut self,
        origin: Box<Origin>,
        kind: RecordKind,
        value: Option<&[u8]>,
        headers: Option<OwnedHeaders>,
        embedded: Instant,
    ) -> Result<(), SinkError> {
        if origin.assignment.is_revoked() {
            // The partition's next owner gets the message; a vector now would come out of order.
            return Ok(());
        }
        let topic = self.topic(kind);
        let key = origin.message.key.clone();
        let mut record = BaseRecord::<[u8], [u8], Box<Outstanding>> {
            topic: &topic,
            partition: None,
            payload: value,
            key: key.as_deref(),
            timestamp: origin.message.timestamp_ms,
            headers,
            delivery_opaque: Box::new(Outstanding { origin, kind, embedded }),
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
            return self.came_back(Undelivered { record: *back.delivery_opaque, error });
        }
    }

    /// Decides about a record that librdkafka or the broker refused.
    fn came_back(&mut self, back: Undelivered) -> Result<(), SinkError> {
        let Undelivered { record, error } = back;
        let refused_for_itself = matches!(
            error.rdkafka_error_code(),
            Some(
                RDKafkaErrorCode::MessageSizeTooLarge
                    | RDKafkaErrorCode::InvalidMessageSize
                    | RDKafkaErrorCode::InvalidRecord
                    | RDKafkaErrorCode::InvalidTimestamp
            )
        );
        if refused_for_itself && record.kind == RecordKind::Vector {
            let detail = format!("{} refuses the vector's record: {error}", self.output_topic);
            let rejection = Rejection::new(RejectReason::RecordRefused, detail);
            return self.reject(record.origin, &rejection);
        }
        Err(SinkError::Produce { topic: self.topic(record.kind).to_string(), source: error })
    }

    /// Returns the topic of a kind of record.
    fn topic(&self, kind: RecordKind) -> Arc<str> {
        let topic = match kind {
            RecordKind::Vector | RecordKind::Tombstone => &self.output_topic,
            RecordKind::DeadLetter => {
                self.dead_letter_topic.as_ref().expect("reject() has looked whether there is one")
            }
        };
        Arc::clone(topic)
    }
}

/// What the sequencer needs of an origin, for the item owns the origin itself.
struct Passage {
    assignment: Arc<crate::tracked::Assignment>,
    sequence: u64,
}

impl Passage {
    fn of(origin: &Origin) -> Passage {
        Passage { assignment: Arc::clone(&origin.assignment), sequence: origin.sequence }
    }
}

fn key_as_text(origin: &Origin) -> Result<String, Rejection> {
    let missing = |detail: &str| Rejection::new(RejectReason::IdMissing, detail);
    let key = origin.message.key.as_deref().ok_or_else(|| missing("the message has no key"))?;
    String::from_utf8(key.to_vec()).map_err(|_| missing("the message's key isn't UTF-8"))
}

#[expect(clippy::disallowed_methods, reason = "bounded by what is in flight, see Sink::new")]
fn unbounded<T>() -> (Sender<T>, Receiver<T>) {
    crossbeam_channel::unbounded()
}

//! The sink: a thread that owns the producer and publishes vectors, tombstones and dead letters.
//!
//! All three leave in the order of their partition. A message is settled by the broker's
//! acknowledgement, which comes back on librdkafka's own thread and goes from there straight to the
//! source; with exactly-once delivery, by the commit of its transaction.
//!
//! # Invariants
//!
//! - Every message that comes in ends in one settlement, or its partition is being given up, or the
//!   worker fails; in the last two cases it comes again, here or elsewhere.
//! - A record that the broker refuses for what it is becomes a dead letter; any other refusal fails
//!   the worker: the offset stays, and redelivery brings the message again.

mod delivery;
mod detached;
mod parcel;
mod rejections;
mod transactions;
mod writer;

use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, select};
use rdkafka::error::KafkaError;
use rdkafka::producer::Producer;
use thiserror::Error;

use delivery::{Connector, Settler, Undelivered};
use parcel::{Ordered, Parcel};
use transactions::Transactions;
use writer::{WriteError, Writer};

use super::breaker::Tripped;
use super::consumer::SourceConsumer;
use super::sequencer::Sequencer;
use super::topics::TopicError;
use super::writable::{Takes, limit_batches};
use crate::config::{Config, DeliveryMode, as_written};
use crate::handover::Finished;
use crate::metrics::{Metrics, SinkMetrics, Stage};
use crate::queue::{Closed, QueueReceiver};
use crate::shutdown::{Shutdown, Wanted};
use crate::tracked::{Assignment, Origin, Settlement};

/// How often the sink looks whether the worker is being aborted, or its records are acknowledged.
const TICK: Duration = Duration::from_millis(20);

/// How long the acknowledgements of what is written are waited for when rejections stop the worker.
const LAST_WORDS: Duration = Duration::from_secs(5);

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
    /// It isn't known whether a record was written, and later ones of its partition were: to write
    /// it now would be out of order.
    #[error(
        "{topic} has a later record, and it isn't known whether it has the one before it: the partition's \
         leader changed, or was a new one; offsets stay, redelivery brings the captions again"
    )]
    Unanswered {
        /// The topic.
        topic: String,
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
    /// Rejections aren't single bad messages any more.
    #[error(
        "{tripped}, the last at {last}; it and what came after keep their offsets: correct the cause, and \
         start again (`capvec dlq list` shows those before, where reject.topic is set)"
    )]
    Breaker {
        /// What there were too many of.
        tripped: Tripped,
        /// The last rejection, in words.
        last: Box<str>,
    },
    /// Another producer has this one's name.
    #[error(
        "another worker uses the transactional id {transactional_id:?}, and the brokers gave it \
         precedence; give each worker a delivery.transactional_id of its own"
    )]
    Fenced {
        /// The name.
        transactional_id: String,
    },
    /// The brokers allow no transaction that takes so long.
    #[error(
        "delivery.transaction_timeout is {}, more than the brokers' transaction.max.timeout.ms allows; \
         shorten the one, or lengthen the other",
        as_written(*timeout)
    )]
    TransactionTimeout {
        /// The option's value.
        timeout: std::time::Duration,
    },
    /// A transaction failed, and not for a moment.
    #[error(
        "{during} of the transactional id {transactional_id:?}, which writes {topics}, failed; offsets \
         stay, redelivery brings the captions again"
    )]
    Transaction {
        /// The call.
        during: &'static str,
        /// The producer's name.
        transactional_id: Box<str>,
        /// The topics that its records may be for: the brokers don't say which one they refuse.
        topics: Box<str>,
        /// The broker's or librdkafka's words.
        source: Box<KafkaError>,
    },
    /// The source ended first.
    #[error("stopped")]
    Closed(#[from] Closed),
}

/// The sink stage.
pub struct Sink {
    input: QueueReceiver<Finished>,
    undelivered: Receiver<Undelivered>,
    sequencer: Sequencer<Ordered>,
    ready: Vec<Ordered>,
    writer: Writer,
    /// `None` for at-least-once delivery.
    transactions: Option<Transactions>,
    shutdown: Shutdown,
    metrics: SinkMetrics,
}

/// The sink's neighbours: where finished captions come from, and where settlements go.
pub struct SinkNeighbours<'a> {
    /// The source's consumer, for the group's metadata.
    pub consumer: &'a Arc<SourceConsumer>,
    /// What is finished.
    pub input: QueueReceiver<Finished>,
    /// To the source.
    pub settlements: Sender<Settlement>,
}

impl Sink {
    /// Makes the producer of topics that take so much; for exactly-once delivery, ends what the
    /// worker before this one left open.
    ///
    /// # Errors
    ///
    /// When librdkafka refuses the configuration, or transactions can't be used.
    pub fn new(
        config: &Config,
        model_id: &str,
        dim: usize,
        takes: &[Takes],
        neighbours: SinkNeighbours<'_>,
        shutdown: Shutdown,
        metrics: &Metrics,
    ) -> Result<Sink, SinkError> {
        // Not bounded by itself: an outstanding record comes back at most once, and the source
        // bounds how many there are. A callback must never wait.
        let (undelivered_sender, undelivered) = unbounded();
        let settler = Settler {
            settlements: neighbours.settlements,
            deliver_seconds: metrics.stage(Stage::Deliver),
            end_to_end_seconds: metrics.source.end_to_end_seconds.clone(),
        };
        let is_exact = config.delivery.mode == DeliveryMode::ExactlyOnce;
        let mut properties = match is_exact {
            true => super::transactional_properties(config),
            false => super::producer_properties(config),
        };
        for topic in takes {
            limit_batches(&mut properties, topic.bytes_max);
        }
        let connector = Connector {
            properties,
            settler: (!is_exact).then(|| settler.clone()),
            undelivered: undelivered_sender,
            metrics: metrics.sink.clone(),
        };
        let sink_metrics = metrics.sink.clone();
        let writer = Writer::new(
            config,
            model_id,
            dim,
            takes,
            connector,
            shutdown.clone(),
            sink_metrics.clone(),
        )?;
        let transactions = match is_exact {
            true => Some(Transactions::start(
                config,
                &writer,
                Arc::downgrade(neighbours.consumer),
                settler,
                undelivered.clone(),
                shutdown.clone(),
                sink_metrics.clone(),
            )?),
            false => None,
        };
        Ok(Sink {
            input: neighbours.input,
            undelivered,
            sequencer: Sequencer::default(),
            ready: Vec::new(),
            writer,
            transactions,
            shutdown,
            metrics: sink_metrics,
        })
    }

    /// Runs until its queue is closed and every record is acknowledged, or committed; or, where
    /// another stage has failed, until it hears of that.
    ///
    /// # Errors
    ///
    /// When a topic can't be written, a message is rejected that may not be, or the breaker trips.
    pub fn run(mut self) -> Result<(), SinkError> {
        let result = self.run_until_closed();
        match &mut self.transactions {
            Some(transactions) => transactions.give_up(&self.writer),
            // The dead letters that tell what is wrong would go with the producer, and good
            // captions with them.
            None if matches!(
                result,
                Err(SinkError::Breaker { .. } | SinkError::Rejected { .. })
            ) =>
            {
                if let Err(error) = self.writer.producer().flush(LAST_WORDS) {
                    tracing::warn!(%error, "not all that was written is acknowledged");
                }
            }
            None => {}
        }
        result
    }

    fn run_until_closed(&mut self) -> Result<(), SinkError> {
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
            if self.shutdown.wanted() == Wanted::Abort {
                // The partitions may be another worker's by now.
                return Ok(());
            }
            if let Some(transactions) = &mut self.transactions {
                transactions.commit_if_due(&mut self.writer, !input.inner().is_empty())?;
            }
            // Records that came back count too.
            self.or_stop(self.writer.check_breaker())?;
            self.report();
        }
        if let Some(transactions) = &mut self.transactions {
            transactions.commit(&mut self.writer)?;
            return self.writer.check_breaker();
        }
        while self.writer.outstanding() > 0 || !undelivered.is_empty() {
            if self.shutdown.wanted() == Wanted::Abort {
                break;
            }
            if let Ok(back) = undelivered.recv_timeout(TICK) {
                self.came_back(back)?;
            }
            self.report();
        }
        self.writer.check_breaker()
    }

    fn report(&self) {
        self.metrics.outstanding.set(self.writer.outstanding() as i64);
        self.metrics.held_back.set(self.sequencer.held_back() as i64);
    }

    fn accept(&mut self, finished: Finished) -> Result<(), SinkError> {
        match finished {
            Finished::Embedded(batch) => {
                let embedded = batch.finished;
                for (caption, vector) in batch.into_captions() {
                    let origin = Passage::of(&caption.origin);
                    self.pass(&origin, Ordered::Vector { caption, vector, embedded });
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
            self.publish(Parcel::new(item))?;
        }
        self.ready = ready;
        Ok(())
    }

    fn pass(&mut self, passage: &Passage, item: Ordered) {
        self.sequencer.push(&passage.assignment, passage.sequence, item, &mut self.ready);
    }

    fn publish(&mut self, parcel: Arc<Parcel>) -> Result<(), SinkError> {
        if parcel.origin().assignment.is_revoked() {
            // It comes again, and is judged and counted where it is written.
            return Ok(());
        }
        self.writer.count(&parcel);
        self.or_stop(self.writer.check(&parcel))?;
        match &mut self.transactions {
            Some(transactions) => transactions.publish(&mut self.writer, parcel),
            None => self.write(&parcel),
        }
    }

    /// Before the worker stops for what is rejected: commits what has been written, which would
    /// else be aborted. Without transactions run() waits for it.
    fn or_stop(&mut self, checked: Result<(), SinkError>) -> Result<(), SinkError> {
        if checked.is_err()
            && let Some(transactions) = &mut self.transactions
        {
            transactions.commit(&mut self.writer)?;
        }
        checked
    }

    fn write(&mut self, parcel: &Arc<Parcel>) -> Result<(), SinkError> {
        match self.writer.write(parcel) {
            Ok(()) => Ok(()),
            Err(WriteError::Sink(error)) => Err(*error),
            Err(WriteError::Refused(error)) => Err(self.writer.produce_error(parcel, error)),
        }
    }

    /// Decides about a record that the broker refused, or librdkafka gave up.
    fn came_back(&mut self, back: Undelivered) -> Result<(), SinkError> {
        if let Some(transactions) = &mut self.transactions {
            return transactions.came_back(&mut self.writer, back);
        }
        let Undelivered { parcel, error } = back;
        match self.writer.amend(&parcel, &error) {
            true => self.write(&parcel),
            false => Err(self.writer.produce_error(&parcel, error)),
        }
    }
}

/// What the sequencer needs of an origin, for the item owns the origin itself.
struct Passage {
    assignment: Arc<Assignment>,
    sequence: u64,
}

impl Passage {
    fn of(origin: &Origin) -> Passage {
        Passage { assignment: Arc::clone(&origin.assignment), sequence: origin.sequence }
    }
}

#[expect(clippy::disallowed_methods, reason = "bounded by what is in flight, see Sink::new")]
fn unbounded<T>() -> (Sender<T>, Receiver<T>) {
    crossbeam_channel::unbounded()
}

//! Exactly-once delivery: the sink's records and the source's offsets in Kafka's transactions.
//!
//! The sink's thread begins a transaction with the first record, and commits it after an interval,
//! at a size, or as soon as a partition of it is on its way out. It may wait in librdkafka, since
//! nothing on it polls. A message is settled when its transaction is committed; until then its
//! parcel is kept here, and sent again where the transaction is aborted.
//!
//! # Invariants
//!
//! - The offsets of a transaction are those after its last records, and nobody else commits any.
//! - Nothing is committed for a partition that may be another's: see [`Transactions::try_commit`].
//! - What became of a commit is known before anything is sent again: where the answer is lost, a
//!   producer made anew under the same name ends the transaction, and the group's offsets tell how.

mod recovery;

use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use crossbeam_channel::Receiver;
use rdkafka::consumer::Consumer;
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use rdkafka::producer::{Producer, ThreadedProducer};
use rdkafka::topic_partition_list::{Offset as KafkaOffset, TopicPartitionList};

use super::SinkError;
use super::delivery::{Settler, SinkContext, Undelivered};
use super::detached::Detached;
use super::parcel::Parcel;
use super::writer::{WriteError, Writer};
use crate::clock::Moment;
use crate::config::Config;
use crate::kafka::acknowledged::is_refused_for_itself;
use crate::kafka::consumer::SourceConsumer;
use crate::kafka::topics::TopicError;
use crate::kafka::transaction::{Pending, Said, Verdict, is_refusal};
use crate::metrics::{SinkMetrics, TransactionEnd};
use crate::queue::Closed;
use crate::shutdown::{Shutdown, Wanted};

/// librdkafka waits for so long at a time; a stop is looked for in between. A call that is repeated
/// goes on where it was.
const STEP: Duration = Duration::from_secs(1);

/// The call that sends the offsets may take so long. librdkafka asks for a new coordinator of the
/// group when it has tried the one that it knew in vain, and begins anew with each call: calls that
/// are too short for this would be repeated for nothing.
const OFFSETS_STEP: Duration = Duration::from_secs(10);

/// After so long it is left behind, for it doesn't always keep its time: see [`Detached`].
const OFFSETS_PATIENCE: Duration = Duration::from_secs(12);

/// How often a commit looks whether its records have arrived.
const FLUSH_LOOK: Duration = Duration::from_millis(1);

/// Between two tries.
const PAUSE: Duration = Duration::from_millis(100);

/// How long the last word of a worker that fails may take: the abort of what it leaves open.
const FAREWELL: Duration = Duration::from_secs(5);

/// A transaction is committed at this part of what may be in flight, so that the source, which
/// counts what isn't settled, needn't pause for it.
const IN_FLIGHT_PARTS: usize = 4;

/// While a partition is on its way out, what comes for it is committed so often, or as soon as
/// nothing more waits: a transaction for each batch would take a commit's time for each.
const LEAVING_INTERVAL: Duration = Duration::from_millis(100);

/// The transactions of one worker.
pub(super) struct Transactions {
    id: String,
    topic: String,
    brokers: String,
    /// What is written, and the options that name it.
    written: Vec<(String, &'static str)>,
    /// The source's, which may be gone.
    consumer: Weak<SourceConsumer>,
    settler: Settler,
    undelivered: Receiver<Undelivered>,
    shutdown: Shutdown,
    metrics: SinkMetrics,
    pending: Pending<Arc<Parcel>>,
    detached: Detached,
    /// When the open transaction began, if one is open.
    opened: Option<Moment>,
    /// Since when nothing could be committed, and no record that the brokers refuse was amended.
    troubled_since: Option<Instant>,
    interval: Duration,
    timeout: Duration,
    patience: Duration,
    captions_max: usize,
    bytes_max: usize,
}

/// A call that failed.
struct Trouble {
    during: &'static str,
    verdict: Verdict,
    error: KafkaError,
}

/// Why there is no transaction yet.
enum Problem {
    /// The worker has to end.
    Sink(Box<SinkError>),
    /// The source has left: all that is pending is another's.
    Left,
    /// Something can be done about it.
    Trouble(Trouble),
}

impl From<SinkError> for Problem {
    fn from(error: SinkError) -> Problem {
        Problem::Sink(Box::new(error))
    }
}

impl From<Trouble> for Problem {
    fn from(trouble: Trouble) -> Problem {
        Problem::Trouble(trouble)
    }
}

impl Transactions {
    /// Ends what the worker before this one left open, and waits for it.
    pub(super) fn start(
        config: &Config,
        writer: &Writer,
        consumer: Weak<SourceConsumer>,
        settler: Settler,
        undelivered: Receiver<Undelivered>,
        shutdown: Shutdown,
        metrics: SinkMetrics,
    ) -> Result<Transactions, SinkError> {
        let delivery = &config.delivery;
        let transactions = Transactions {
            id: config.transactional_id().expect("validated: delivery.transactional_id"),
            topic: config.input.topic.clone(),
            brokers: config.kafka.brokers.clone(),
            written: config.written_topics().map(|(topic, o)| (topic.to_owned(), o)).collect(),
            consumer,
            settler,
            undelivered,
            shutdown,
            metrics,
            pending: Pending::default(),
            detached: Detached::default(),
            opened: None,
            troubled_since: None,
            interval: delivery.commit_interval,
            timeout: delivery.transaction_timeout,
            patience: config.kafka.delivery_timeout,
            captions_max: (delivery.in_flight_captions_max.get() / IN_FLIGHT_PARTS).max(1),
            bytes_max: (delivery.in_flight_bytes_max.get() / IN_FLIGHT_PARTS).max(1),
        };
        let until = Instant::now() + config.kafka.startup_timeout;
        let init = |producer: &ThreadedProducer<_>, step| producer.init_transactions(step);
        match transactions.persist(writer, "init_transactions", until, Wanted::Drain, init) {
            Ok(()) => {}
            Err(Problem::Sink(error)) if matches!(*error, SinkError::Closed(_)) => {
                let brokers = config.kafka.brokers.clone();
                return Err(TopicError::Stopped { brokers }.into());
            }
            Err(Problem::Sink(error)) => return Err(*error),
            Err(Problem::Left) => return Err(Closed.into()),
            Err(Problem::Trouble(trouble)) => return Err(transactions.failure(trouble)),
        }
        tracing::info!(transactional_id = transactions.id, "transactions can begin");
        Ok(transactions)
    }

    /// Writes a parcel in the open transaction.
    pub(super) fn publish(
        &mut self,
        writer: &mut Writer,
        parcel: Arc<Parcel>,
    ) -> Result<(), SinkError> {
        let origin = parcel.origin();
        if origin.assignment.is_revoked() {
            // The partition's next owner gets the message.
            return Ok(());
        }
        let bytes = origin.message.bytes();
        self.pending.push(&origin.assignment, origin.offset, bytes, Arc::clone(&parcel));
        let sent = self.open(writer).and_then(|()| self.write(writer, &parcel));
        match sent {
            Ok(()) => Ok(()),
            Err(problem) => self.solve(writer, problem),
        }
    }

    /// Decides about a record that came back.
    pub(super) fn came_back(
        &mut self,
        writer: &mut Writer,
        back: Undelivered,
    ) -> Result<(), SinkError> {
        // One that a purge gave back is sent again already.
        if self.opened.is_none() || is_purged(&back.error) {
            return Ok(());
        }
        let error = back.error.clone();
        self.note_refusal(writer, back)?;
        let trouble = self.trouble(writer, "produce", error);
        self.recover(writer, trouble)
    }

    /// Commits the open transaction if it is time, or if nothing more waits and a partition is to
    /// be given up.
    pub(super) fn commit_if_due(
        &mut self,
        writer: &mut Writer,
        more_waits: bool,
    ) -> Result<(), SinkError> {
        self.metrics.transaction_captions.set(self.pending.len() as i64);
        if self.pending.is_empty() {
            return Ok(());
        }
        let interval = match (self.pending.is_leaving(), more_waits) {
            (false, _) => self.interval,
            (true, true) => self.interval.min(LEAVING_INTERVAL),
            (true, false) => Duration::ZERO,
        };
        let is_due = self.troubled_since.is_some()
            || self.opened.is_none_or(|opened| opened.elapsed() >= interval)
            || self.pending.len() >= self.captions_max
            || self.pending.bytes() >= self.bytes_max;
        if is_due { self.commit(writer) } else { Ok(()) }
    }

    /// Commits what has been published, however often it takes.
    pub(super) fn commit(&mut self, writer: &mut Writer) -> Result<(), SinkError> {
        while !self.pending.is_empty() {
            match self.try_commit(writer) {
                Ok(()) => {
                    self.opened = None;
                    self.troubled_since = None;
                    for parcel in self.pending.take() {
                        self.settler.settle(&parcel);
                    }
                }
                Err(problem) => self.solve(writer, problem)?,
            }
        }
        Ok(())
    }

    fn solve(&mut self, writer: &mut Writer, problem: Problem) -> Result<(), SinkError> {
        match problem {
            Problem::Sink(error) => Err(*error),
            Problem::Left => {
                // What is open is aborted at the end.
                self.pending = Pending::default();
                self.troubled_since = None;
                Ok(())
            }
            Problem::Trouble(trouble) => self.recover(writer, trouble),
        }
    }

    /// Returns whether the source has left. A stop doesn't wait here then.
    fn has_left(&self) -> bool {
        self.consumer.strong_count() == 0
    }

    /// Aborts what is open, so that readers needn't wait for the timeout.
    pub(super) fn give_up(&mut self, writer: &Writer) {
        if self.opened.take().is_some()
            && let Err(error) = writer.producer().abort_transaction(FAREWELL)
        {
            tracing::info!(%error, "the open transaction wasn't aborted; the brokers will");
        }
    }

    fn try_commit(&mut self, writer: &Writer) -> Result<(), Problem> {
        let started = Instant::now();
        let consumer = self.consumer.upgrade().ok_or(Problem::Left)?;
        let asked_back = consumer.context().asked_back().filter(|_| self.pending.is_leaving());
        let metadata = asked_back.or_else(|| consumer.group_metadata().map(Arc::new));
        // In this order: a consumer that was put out of its group and has joined again has a
        // generation that the brokers accept, but it is then known that its partitions were lost,
        // to librdkafka at first and, before it joins again, to the assignments. One that is put
        // out after this has a generation that the brokers refuse.
        let is_lost = consumer.assignment_lost() || self.pending.has_ended();
        drop(consumer);
        let Some(metadata) = metadata.filter(|_| !is_lost) else {
            let error =
                KafkaError::ConsumerCommit(rdkafka::error::RDKafkaErrorCode::AssignmentLost);
            return Err(Trouble { during: "commit", verdict: Verdict::Abort, error }.into());
        };
        let mut offsets = TopicPartitionList::new();
        for (partition, next) in self.pending.offsets() {
            offsets
                .add_partition_offset(&self.topic, partition, KafkaOffset::Offset(next.0))
                .map_err(|error| self.trouble(writer, "offsets", error))?;
        }
        let offsets = Arc::new(offsets);
        self.call(writer, "send_offsets_to_transaction", |producer, _| {
            let (producer, offsets, metadata) =
                (producer.clone(), offsets.clone(), metadata.clone());
            let must_stop = || self.shutdown.wanted() == Wanted::Abort || self.has_left();
            self.detached.call(OFFSETS_PATIENCE, must_stop, move || {
                producer.send_offsets_to_transaction(&offsets, &metadata, OFFSETS_STEP)
            })
        })?;
        let undelivered = &self.undelivered;
        self.call(writer, "commit_transaction", |producer, step| {
            flush_and_commit(producer, undelivered, step)
        })?;
        self.metrics.transactions.with_label_values(&[TransactionEnd::Committed.as_label()]).inc();
        self.metrics.transaction_seconds.observe(started.elapsed().as_secs_f64());
        Ok(())
    }

    fn open(&mut self, writer: &Writer) -> Result<(), Problem> {
        if self.opened.is_none() {
            self.call(writer, "begin_transaction", |producer, _| producer.begin_transaction())?;
            self.opened = Some(Moment::now());
        }
        Ok(())
    }

    fn write(&self, writer: &mut Writer, parcel: &Arc<Parcel>) -> Result<(), Problem> {
        match writer.write(parcel) {
            Ok(()) => Ok(()),
            Err(WriteError::Sink(error)) => Err(Problem::Sink(error)),
            Err(WriteError::Refused(error)) => Err(self.trouble(writer, "produce", error).into()),
        }
    }

    /// Amends a record that came back: it is sent again with all that is pending.
    fn note_refusal(&mut self, writer: &mut Writer, back: Undelivered) -> Result<(), SinkError> {
        let Undelivered { parcel, error } = back;
        let before = parcel.form();
        if writer.amend(&parcel, &error) {
            // A transaction is aborted for each few of them, which may take long and gets on.
            if parcel.form() != before {
                self.troubled_since = self.troubled_since.map(|_| Instant::now());
            }
            return Ok(());
        }
        if is_refused_for_itself(&error) || error.rdkafka_error_code().is_some_and(is_refusal) {
            return Err(writer.produce_error(&parcel, error));
        }
        Ok(())
    }

    /// Makes a call, again and again while it may be repeated.
    fn call(
        &self,
        writer: &Writer,
        during: &'static str,
        call: impl FnMut(&ThreadedProducer<SinkContext>, Duration) -> KafkaResult<()>,
    ) -> Result<(), Problem> {
        self.persist(writer, during, Instant::now() + self.patience, Wanted::Abort, call)
    }

    fn persist(
        &self,
        writer: &Writer,
        during: &'static str,
        until: Instant,
        stop: Wanted,
        mut call: impl FnMut(&ThreadedProducer<SinkContext>, Duration) -> KafkaResult<()>,
    ) -> Result<(), Problem> {
        loop {
            let Err(error) = call(writer.producer(), STEP) else { return Ok(()) };
            let trouble = self.trouble(writer, during, error);
            if self.shutdown.wanted() >= stop {
                return Err(SinkError::Closed(Closed).into());
            }
            if self.has_left() {
                return Err(Problem::Left);
            }
            if trouble.verdict != Verdict::Repeat || Instant::now() >= until {
                return Err(trouble.into());
            }
            tracing::debug!(during, error = %trouble.error, "a call is repeated");
            std::thread::sleep(PAUSE);
        }
    }

    fn trouble(&self, writer: &Writer, during: &'static str, error: KafkaError) -> Trouble {
        let mut said = Said::from(&error);
        // Once the producer is at its end, every call fails for that.
        if let Some((code, _)) = writer.producer().client().fatal_error() {
            (said.is_fatal, said.code) = (true, code);
        }
        Trouble { during, verdict: said.verdict(), error }
    }

    fn failure(&self, trouble: Trouble) -> SinkError {
        let Trouble { during, error, .. } = trouble;
        if error.rdkafka_error_code() == Some(RDKafkaErrorCode::InvalidTransactionTimeout) {
            return SinkError::TransactionTimeout { timeout: self.timeout };
        }
        let topics: Vec<&str> = self.written.iter().map(|(topic, _)| topic.as_str()).collect();
        SinkError::Transaction {
            during,
            transactional_id: self.id.as_str().into(),
            topics: topics.join(" and ").into(),
            source: Box::new(error),
        }
    }
}

/// Waits until all records have arrived, and commits. Where one has come back there is nothing to
/// commit any more, and librdkafka may hold others until the transaction is aborted: they would be
/// waited for in vain.
fn flush_and_commit(
    producer: &ThreadedProducer<SinkContext>,
    undelivered: &Receiver<Undelivered>,
    step: Duration,
) -> KafkaResult<()> {
    let until = Instant::now() + step;
    // rdkafka's commit flushes by polling, as the producer's own thread does. Only one of the two
    // gets the last acknowledgement, and the other waits in vain for 100 ms: a commit took no less.
    loop {
        // In this order: a report comes before its record is counted out, and librdkafka may take
        // the record for delivered.
        let have_arrived = producer.in_flight_count() == 0;
        if !undelivered.is_empty() {
            return Err(KafkaError::MessageProduction(RDKafkaErrorCode::State));
        }
        if have_arrived {
            return producer.commit_transaction(step);
        }
        if Instant::now() >= until {
            return Err(KafkaError::Flush(RDKafkaErrorCode::OperationTimedOut));
        }
        std::thread::sleep(FLUSH_LOOK);
    }
}

/// Returns whether a record came back because its transaction was aborted, or its producer ended.
fn is_purged(error: &KafkaError) -> bool {
    use rdkafka::error::RDKafkaErrorCode as Code;
    matches!(error.rdkafka_error_code(), Some(Code::PurgeQueue | Code::PurgeInflight))
}

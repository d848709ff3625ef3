//! The source: a thread that polls the consumer, and owns the offset ledger and the commits.
//!
//! When a limit in flight is reached, the thread takes nothing until half of it is free. Mostly
//! that is a matter of milliseconds, in which it just doesn't poll. Beyond `HOLD_MAX` it pauses the
//! partitions and polls on, since a consumer that doesn't is put out of its group; a pause throws
//! away what librdkafka has fetched ahead, so it isn't done for every full batch, and `Turns` sees
//! to it that no partition stands still for it. When the group asks for partitions back, or the
//! worker stops, what isn't embedded yet is abandoned; the source goes on polling while what is
//! embedded settles, commits, and only then gives the partitions up. A drain that takes too long is
//! counted and given up. The partition's next owner gets all that is left.
//!
//! With exactly-once delivery the sink commits the offsets, in the transaction of the records, and
//! a message is settled by that: the source does the same, and has nothing to commit.
//!
//! # Invariants
//!
//! - Every message that is sent on has been opened in the ledger.
//! - A partition is given up only after its last commit, or after the drain's limit.

mod backpressure;
mod deaf;
mod deleted;
mod ends;
mod error;
mod lag;
mod membership;
mod placing;
mod refused;
mod report;
mod stall;
mod turns;
mod unheard;
mod waiting;

use std::hash::BuildHasher;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::Receiver;
use foldhash::fast::FixedState;
use prometheus::IntCounter;
use rdkafka::consumer::Consumer;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{BorrowedMessage, Message};
use rdkafka::topic_partition_list::TopicPartitionList;

use backpressure::Full;
use deleted::Deleted;
use ends::Ends;
pub use error::SourceError;
use lag::Lag;
use membership::Leaving;
use placing::{Placed, Placing};
use refused::Refused;
use stall::Stall;
use turns::Turns;
use waiting::Waiting;

use super::brokers_assign;
use super::committer::{Committed, Committer};
use super::consumer::{Connection, Held, SourceConsumer, is_forbidden};
use super::offsets::{Incoming, OffsetLedger, WentBack};
use super::renewed::Renewed;
use crate::config::{Config, DeliveryMode};
use crate::handover::Intake;
use crate::health::Health;
use crate::metrics::{CommitResult, SourceMetrics};
use crate::queue::{Closed, QueueSender};
use crate::seldom::repeats;
use crate::shutdown::{Shutdown, Wanted};
use crate::tracked::{Offset, Origin, Outcome, RawMessage, Settlement, Tracked};

/// The longest that the thread sleeps: how late it may notice a stop or a deadline.
const TICK: Duration = Duration::from_millis(20);

/// The same while settlements are waited for. They don't wake the thread, for there is one for each
/// message.
const SETTLING_TICK: Duration = Duration::from_millis(2);

/// Messages taken before settlements are looked at again.
const POLL_BURST: usize = 256;

/// Most messages that go to the next stage at once: waking a thread costs as much as several
/// messages do, and tokenizing so many takes a fraction of a millisecond.
const CHUNK_MAX: usize = 64;

/// The source stage.
pub struct Source {
    consumer: Held<SourceConsumer>,
    /// `None` where the sink's transactions commit.
    committer: Option<Committer>,
    placing: Placing,
    wake: Receiver<()>,
    ledger: OffsetLedger,
    out: Option<QueueSender<Vec<Tracked<()>>>>,
    settlements: Receiver<Settlement>,
    shutdown: Shutdown,
    health: Arc<Health>,
    metrics: SourceMetrics,
    lag: Lag,
    deleted: Deleted,
    ends: Ends,
    stall: Stall,
    /// By outcome, looked up once: every message has one.
    settled: [IntCounter; Outcome::ALL.len()],
    topic: String,
    messages_max: usize,
    bytes_max: usize,
    commit_interval: Duration,
    drain_timeout: Duration,
    assignments: u64,
    full: Option<Full>,
    intake: Intake,
    turns: Turns,
    last_commit: Instant,
    refused: Refused,
    renewed: Renewed,
    leaving: Option<Leaving>,
    /// Revocations that a stop has overtaken; they are answered when the group is left.
    unanswered: Vec<TopicPartitionList>,
    stopping: bool,
    /// Whether the worker has no partition, at the end.
    is_idle: bool,
    /// Whether the group needn't be told of the end of a worker that has none.
    is_heard: bool,
    /// While the group gives no partitions.
    waiting: Option<Waiting>,
}

impl Source {
    /// Joins the group.
    ///
    /// # Errors
    ///
    /// When librdkafka refuses the subscription, or the system has no thread to give.
    pub fn new(
        config: &Config,
        connection: Connection,
        out: QueueSender<Vec<Tracked<()>>>,
        settlements: Receiver<Settlement>,
        shutdown: Shutdown,
        health: Arc<Health>,
        metrics: SourceMetrics,
    ) -> anyhow::Result<Source> {
        let Connection { consumer, wake, partitions, renewed } = connection;
        let topic = &config.input.topic;
        consumer.subscribe(&[topic])?;
        let committer = match config.delivery.mode {
            DeliveryMode::AtLeastOnce => Some(Committer::start(Arc::clone(&consumer), topic)?),
            DeliveryMode::ExactlyOnce => None,
        };
        let placing = Placing::start(&consumer, config, partitions)?;

        let messages_max = config.delivery.in_flight_captions_max.get();
        let bytes_max = config.delivery.in_flight_bytes_max.get();
        metrics.in_flight_limit.set(messages_max as i64);
        metrics.in_flight_bytes_limit.set(bytes_max as i64);
        Ok(Source {
            consumer: Held::new(consumer),
            committer,
            placing,
            wake,
            ledger: OffsetLedger::default(),
            out: Some(out),
            settlements,
            shutdown,
            health,
            settled: Outcome::ALL.map(|o| metrics.settled.with_label_values(&[o.as_label()])),
            lag: Lag::new(metrics.lag.clone(), config.metrics.per_partition),
            deleted: Deleted::new(metrics.deleted.clone()),
            ends: Ends::start(config, Instant::now())?,
            stall: Stall::default(),
            metrics,
            topic: config.input.topic.clone(),
            messages_max,
            bytes_max,
            commit_interval: config.delivery.commit_interval,
            drain_timeout: config.delivery.drain_timeout,
            assignments: 0,
            full: None,
            intake: Intake::default(),
            turns: Turns::default(),
            last_commit: Instant::now(),
            refused: Refused::new(refused::PATIENCE),
            renewed,
            leaving: None,
            unanswered: Vec::new(),
            stopping: false,
            is_idle: false,
            // Where the brokers assign librdkafka tells it, and a static member's place is kept.
            is_heard: brokers_assign(config)
                || config.kafka.property("group.instance.id").is_some(),
            waiting: Some(Waiting::since(Instant::now())),
        })
    }

    /// Returns what tells whether it takes messages.
    pub fn intake(&self) -> Intake {
        self.intake.clone()
    }

    /// Runs until a drain has ended, or a stage has.
    ///
    /// # Errors
    ///
    /// When the consumer fails for good, or the next stage has ended.
    pub fn run(mut self) -> Result<(), SourceError> {
        let mut result = self.run_until_stopped();
        if result.is_err() {
            // To commit may take seconds, in which nothing more is taken.
            self.health.stopping();
            // For a topic that is no more nothing can be committed: it would be for a new one.
            if !matches!(&result, Err(error) if error.is_topic_gone()) {
                self.commit_before_leaving();
            }
            let is_committed = self.ledger.committable().is_empty() && !self.is_committing();
            if is_committed && matches!(result, Err(SourceError::CommitMissed)) {
                // It was late, and no more.
                result = Ok(());
            } else {
                // Before the next owner has the partitions: what the producer still holds comes
                // behind its.
                self.shutdown.abort();
            }
        }
        self.close();
        result
    }

    fn run_until_stopped(&mut self) -> Result<(), SourceError> {
        loop {
            self.health.polled();
            let settled = self.settle();
            let received = if self.is_holding() { false } else { self.poll()? };
            self.handle_events()?;
            self.place()?;
            self.note_commits()?;
            match self.shutdown.wanted() {
                Wanted::Run => {}
                Wanted::Drain => self.begin_stop(),
                Wanted::Abort => return Err(Closed.into()),
            }
            let left = self.progress_leaving()?;
            if left && self.stopping {
                return Ok(());
            }
            self.apply_backpressure()?;
            if self.last_commit.elapsed() >= self.commit_interval {
                self.commit()?;
            }
            self.report();
            self.listen()?;
            self.look_for_renewed()?;
            if !settled && !received {
                let is_settling =
                    self.full.is_some() || self.leaving.is_some() || self.placing.is_busy();
                let tick = if is_settling { SETTLING_TICK } else { TICK };
                // Woken or not, everything is looked at.
                let _ = self.wake.recv_timeout(tick);
            }
        }
    }

    /// Enters what has been settled; returns whether anything was.
    fn settle(&mut self) -> bool {
        let mut any = false;
        while let Ok(settlement) = self.settlements.try_recv() {
            self.settle_one(&settlement);
            any = true;
        }
        any
    }

    fn settle_one(&mut self, settlement: &Settlement) {
        if self.ledger.settle(&settlement.assignment, settlement.offset) {
            self.settled[settlement.outcome as usize].inc();
        }
    }

    /// Takes what librdkafka has, up to a burst; returns whether it had anything.
    fn poll(&mut self) -> Result<bool, SourceError> {
        let mut any = false;
        let mut chunk = Vec::new();
        // Of a chunk: nothing here waits, and a look at the clock isn't free.
        let mut now = Instant::now();
        for _ in 0..POLL_BURST {
            let served = self.consumer.context().served();
            let received = match self.consumer.poll(Duration::ZERO) {
                None if self.consumer.context().served() != served => {
                    // A line of the log, say; there may be messages behind it.
                    if self.consumer.context().is_made_anew() {
                        return Err(SourceError::MadeAnew { topic: self.topic.clone() });
                    }
                    any = true;
                    continue;
                }
                None => break,
                Some(Ok(message)) => Received::copy(&message),
                Some(Err(error)) => {
                    self.consumer_error(error)?;
                    continue;
                }
            };
            any = true;
            chunk.extend(self.open(received, now)?);
            if chunk.len() >= CHUNK_MAX {
                self.forward(std::mem::take(&mut chunk))?;
                now = Instant::now();
            }
        }
        self.forward(chunk)?;
        Ok(any)
    }

    fn forward(&self, chunk: Vec<Tracked<()>>) -> Result<(), Closed> {
        match &self.out {
            Some(out) if !chunk.is_empty() => out.send(chunk),
            // Nothing is opened once a stop has begun.
            _ => Ok(()),
        }
    }

    /// Enters a message in the ledger; `None` where it isn't this worker's to embed, or comes
    /// again.
    fn open(
        &mut self,
        received: Received,
        now: Instant,
    ) -> Result<Option<Tracked<()>>, SourceError> {
        let Received { partition, offset, digest, message } = received;
        let leaving = self.leaving.as_ref().is_some_and(|l| l.ids.contains(&partition));
        if leaving || self.out.is_none() {
            // On its way out: the partition's next owner gets the message.
            return Ok(None);
        }
        if self.placing.is_unplaced(partition) {
            // Of an assignment before.
            return Ok(None);
        }
        let (bytes, timestamp_ms) = (message.bytes(), message.timestamp_ms);
        let incoming = Incoming { offset, bytes, timestamp_ms, digest };
        let opened = match self.ledger.open(partition, incoming, now) {
            Ok(opened) => opened,
            Err(went_back) if self.committer.is_none() => {
                // A transaction may be under way that holds what would be fetched again, and
                // whether it ends in a commit is the sink's affair: both would be read.
                return Err(SourceError::WentBack { partition, source: went_back });
            }
            Err(went_back) => {
                let WentBack { last, found, skipped } = went_back;
                // The log was cut, or made anew: what was in flight may be of a log that is no
                // more.
                tracing::warn!(partition, last = last.0, found = found.0, "offsets went back");
                self.end_assignment(partition);
                self.begin_assignment(partition);
                // Whoever went on from the group's offset would pass over what has come in the
                // place of what was cut off.
                self.ledger.begin_anew_at(partition, went_back.begins());
                if let Some(skipped) = skipped {
                    // What is unsettled before the cut is still there, and has just been dropped.
                    self.go_back(partition, skipped)?;
                    return Ok(None);
                }
                self.ledger.open(partition, incoming, now).expect("nothing was received yet")
            }
        };
        let Some(sequence) = opened else {
            tracing::debug!(partition, offset = offset.0, "dropped: not assigned, or a repeat");
            return Ok(None);
        };
        let assignment = self.ledger.assignment(partition).expect("it has just been opened in");
        self.turns.served(partition);
        self.metrics.messages.inc();
        self.metrics.bytes.inc_by(bytes as u64);
        let assignment = Arc::clone(assignment);
        let origin = Origin { assignment, offset, sequence, received: now, message };
        Ok(Some(Tracked { origin: Box::new(origin), payload: () }))
    }

    /// Fetches from an offset on. What librdkafka has of the partition is thrown away with the
    /// call.
    fn go_back(&self, partition: i32, to: Offset) -> Result<(), SourceError> {
        tracing::warn!(partition, to = to.0, "what wasn't settled is fetched again");
        let position = rdkafka::Offset::Offset(to.0);
        self.consumer
            .seek(&self.topic, partition, position, Duration::ZERO)
            .map_err(SourceError::Consumer)
    }

    fn consumer_error(&mut self, error: KafkaError) -> Result<(), SourceError> {
        self.metrics.errors.inc();
        if self.consumer.context().is_final(&error) {
            return Err(self.input_error(error));
        }
        super::log_client_error("consumer", &error, "the consumer goes on after an error");
        Ok(())
    }

    fn input_error(&self, source: KafkaError) -> SourceError {
        SourceError::Input { topic: self.topic.clone(), source }
    }

    /// Sends off what may be committed, unless a commit is under way.
    fn commit(&mut self) -> Result<(), SourceError> {
        if self.is_committing() {
            return Ok(());
        }
        self.last_commit = Instant::now();
        let committable = self.ledger.committable();
        if committable.is_empty() {
            return Ok(());
        }
        for &(partition, next) in &committable {
            self.ledger.commit_sent(partition, next);
        }
        match &mut self.committer {
            Some(committer) => committer.commit(committable).map_err(SourceError::Consumer),
            // What is settled has been committed, or it wouldn't be settled.
            None => Ok(()),
        }
    }

    /// Takes partitions that the group has given, as far as it is known where they begin.
    fn place(&mut self) -> Result<(), SourceError> {
        if self.stopping {
            return Ok(());
        }
        let placed = self.placing.progress(&self.consumer, Instant::now());
        let placed = placed.map_err(|error| match error.rdkafka_error_code() {
            Some(RDKafkaErrorCode::TopicAuthorizationFailed) => self.input_error(error),
            _ => SourceError::Consumer(error),
        })?;
        if placed.is_empty() {
            return Ok(());
        }
        if self.full.as_ref().is_some_and(|full| full.is_paused) {
            let list = self.list(placed.iter().map(|placed| placed.partition));
            self.consumer.pause(&list).map_err(SourceError::Consumer)?;
        }
        tracing::debug!(?placed, "partitions taken");
        for Placed { partition, begins } in placed {
            if let Some(begins) = begins {
                self.ledger.begin_at(partition, begins);
            }
        }
        Ok(())
    }

    fn is_committing(&self) -> bool {
        self.committer.as_ref().is_some_and(Committer::is_busy)
    }

    fn note_commits(&mut self) -> Result<(), SourceError> {
        let ended = self.committer.as_mut().and_then(Committer::ended);
        let Some(Committed { result, offsets }) = ended else { return Ok(()) };
        let is_given_up = self.refused.committed(&result, Instant::now());
        let counted = if result.is_ok() { CommitResult::Ok } else { CommitResult::Failed };
        self.metrics.commits.with_label_values(&[counted.as_label()]).inc();
        if let Err(error) = result {
            if let Some(repeated) = repeats(&format!("commit {error}")) {
                tracing::warn!(%error, repeated, ?offsets, "a commit failed; it is made again");
            }
            for (partition, _) in offsets {
                self.ledger.commit_failed(partition);
            }
            if is_given_up {
                return Err(SourceError::Refused(error));
            }
            if is_forbidden(&error) {
                // librdkafka goes on fetching, and all of it would come again.
                return Err(self.input_error(error));
            }
        }
        Ok(())
    }

    fn owned(&self) -> TopicPartitionList {
        self.list(self.ledger.partitions())
    }

    fn list(&self, partitions: impl IntoIterator<Item = i32>) -> TopicPartitionList {
        let mut list = TopicPartitionList::new();
        for partition in partitions {
            list.add_partition(&self.topic, partition);
        }
        list
    }
}

/// A message copied out of librdkafka's memory, which would else be held for as long as the message
/// is in the worker.
struct Received {
    partition: i32,
    offset: Offset,
    /// Of key and value.
    digest: u64,
    message: RawMessage,
}

impl Received {
    fn copy(message: &BorrowedMessage<'_>) -> Received {
        Received {
            partition: message.partition(),
            offset: Offset(message.offset()),
            digest: FixedState::default().hash_one((message.key(), message.payload())),
            message: RawMessage::copy(message),
        }
    }
}

#[cfg(test)]
mod tests;

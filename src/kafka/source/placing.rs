//! Where the partitions begin that the group gives.
//!
//! librdkafka would ask for the group's offsets by itself, and goes wrong in two ways. An offset
//! that another's open transaction holds it takes for none where a rebalance ends meanwhile, and
//! begins at the beginning. And where the group's coordinator moves while it is asked, it never
//! asks again (confluentinc/librdkafka#5586). So a thread of its own asks until it has been told,
//! and the partitions are taken when it is known where each begins.
//!
//! Mostly that is a round trip, for which the group's assignment stays unanswered. librdkafka
//! fetches nothing meanwhile, so after `HOLD`, or where one partition's offset can't be told, the
//! others go on and that one is taken later. That is for need alone: a list that is taken at the
//! moment of another rebalance can be mistaken for its answer.
//!
//! (To take them at once and to seek them later is no way: a lookup of a logical offset that a seek
//! overtakes is made again by librdkafka half a second later, and moves the partition.)
//!
//! Where the group has no offset, the thread asks for the one that `auto.offset.reset` means, and
//! commits it before there is a message: from there on it is known what is missing, to others too,
//! and `latest` is asked for but once. Where a beginning can't be told, librdkafka looks for it by
//! itself; an end is asked for until it is told, since it would be another end for the next who asks,
//! and what came in between be passed over. A partition with which the group didn't begin is read from
//! its beginning: nothing in it is older than the group.
//!
//! # Invariants
//!
//! - A partition is fetched from an offset that the group had after it had given the partition to
//!   this worker: what was asked before is no answer, for another may have gone on meanwhile.
//! - Nothing is committed for a partition that has been asked back.

use std::collections::BTreeMap;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use rdkafka::consumer::{CommitMode, Consumer, RebalanceProtocol};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use rdkafka::topic_partition_list::{Offset as Position, TopicPartitionList};

use super::waiting::Waiting;
use crate::config::Config;
use crate::kafka::caller::Caller;
use crate::kafka::consumer::{SourceConsumer, is_final, take, take_none};
use crate::kafka::group_begins;
use crate::tracked::{Assignment, NextOffset};

/// How long an assignment stays unanswered.
const HOLD: Duration = Duration::from_secs(2);

/// How long the first question may take. Each that isn't answered in time makes the next one twice
/// as long, up to the second: what comes later is thrown away.
const QUESTION: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(4));

/// Before the next question.
const PAUSE: Duration = Duration::from_millis(200);

/// Why an end isn't told, where librdkafka gives no reason.
const NO_LEADER: KafkaError = KafkaError::MetadataFetch(RDKafkaErrorCode::LeaderNotAvailable);

/// Partitions with their assignments, which a drain must not wait for here.
type Assignments = BTreeMap<i32, Weak<Assignment>>;

/// What the thread is asked: where these partitions begin, and how long it may take.
type Question = (Assignments, Duration);

/// The partitions whose beginnings aren't known yet.
pub(super) struct Placing {
    topic: String,
    reset: Reset,
    caller: Caller<Question, KafkaResult<TopicPartitionList>>,
    unplaced: Assignments,
    /// Those that a question is under way for.
    asked: Option<Assignments>,
    ask_at: Instant,
    patience: Duration,
    /// Whether partitions are asked for one by one: librdkafka gives no answer at all while one of
    /// them can't be told.
    is_singly: bool,
    /// The last one that was.
    last: i32,
    /// Until when the group's assignment may stay unanswered, where it is.
    answer_by: Option<Instant>,
    waiting: Waiting,
    /// Why there was no answer, the last time.
    trouble: Option<KafkaError>,
}

/// Where a partition begins of which the group has no offset.
#[derive(Clone, Copy)]
struct Reset {
    /// `None` where that is an error.
    begins: Option<Position>,
    /// The partitions with which the group begins; none where it had begun when the worker was
    /// started.
    known: usize,
}

impl Reset {
    fn of(self, partition: i32) -> Option<Position> {
        let is_new = usize::try_from(partition).is_ok_and(|partition| partition >= self.known);
        match self.begins {
            Some(Position::End) if is_new => Some(Position::Beginning),
            begins => begins,
        }
    }
}

/// A partition that has its beginning.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Placed {
    pub(super) partition: i32,
    /// The group's offset; `None` where it has none, and where the partition begins isn't told.
    pub(super) begins: Option<NextOffset>,
}

impl Placing {
    /// Starts the thread that asks.
    ///
    /// # Errors
    ///
    /// When the system has no thread to give.
    pub(super) fn start(
        consumer: &Arc<SourceConsumer>,
        config: &Config,
        known: usize,
    ) -> std::io::Result<Placing> {
        // The last one to let go of the consumer leaves the group, and that isn't for this thread.
        let consumer: Weak<SourceConsumer> = Arc::downgrade(consumer);
        let topic = config.input.topic.clone();
        let reset = Reset { begins: group_begins(config), known };
        let caller = Caller::start("capvec-placing", move |question| {
            Some(ask(&*consumer.upgrade()?, &topic, question, reset))
        })?;
        Ok(Placing {
            topic: config.input.topic.clone(),
            reset,
            caller,
            unplaced: Assignments::new(),
            asked: None,
            ask_at: Instant::now(),
            patience: QUESTION.0,
            is_singly: false,
            last: -1,
            answer_by: None,
            waiting: Waiting::since(Instant::now()),
            trouble: None,
        })
    }

    /// The group has given a partition.
    pub(super) fn begin(&mut self, assignment: &Arc<Assignment>) {
        if self.unplaced.is_empty() {
            let now = Instant::now();
            (self.waiting, self.ask_at, self.trouble) = (Waiting::since(now), now, None);
            (self.patience, self.is_singly) = (QUESTION.0, false);
        }
        self.unplaced.insert(assignment.partition, Arc::downgrade(assignment));
    }

    /// The group waits for an answer to its assignment.
    pub(super) fn owe(&mut self, now: Instant) {
        self.answer_by = Some(now + HOLD);
    }

    /// Partitions are about to be given. Those that still wait must not keep them waiting.
    pub(super) fn leave_behind(&mut self) {
        self.is_singly |= self.is_busy();
    }

    /// Returns whether the group's assignment is unanswered; from here on that is the caller's
    /// affair.
    pub(super) fn take_debt(&mut self) -> bool {
        self.answer_by.take().is_some()
    }

    /// A partition is no more this worker's.
    pub(super) fn end(&mut self, partition: i32) {
        self.unplaced.remove(&partition);
    }

    /// Returns whether the partition isn't taken yet.
    pub(super) fn is_unplaced(&self, partition: i32) -> bool {
        self.unplaced.contains_key(&partition)
    }

    /// Returns whether there is any such partition.
    pub(super) fn is_busy(&self) -> bool {
        !self.unplaced.is_empty()
    }

    /// Asks, and takes the partitions that there is an answer for; returns these.
    ///
    /// # Errors
    ///
    /// When librdkafka refuses them, and where the group has no offset and `auto.offset.reset`
    /// makes that an error.
    pub(super) fn progress(
        &mut self,
        consumer: &SourceConsumer,
        now: Instant,
    ) -> KafkaResult<Vec<Placed>> {
        let mut placed = Vec::new();
        // Mostly there is nothing to do, and this is asked at every turn of the source.
        if self.unplaced.is_empty() && self.asked.is_none() && self.answer_by.is_none() {
            return Ok(placed);
        }
        if let Some(answer) = self.caller.answer() {
            // This asks librdkafka's own thread.
            let is_eager = matches!(consumer.rebalance_protocol(), RebalanceProtocol::Eager);
            match answer {
                Ok(offsets) => placed = self.take_known(consumer, offsets, is_eager, now)?,
                Err(error) if is_final(&error) && !is_unknown(&error) => return Err(error),
                Err(error) => {
                    self.patience = QUESTION.1.min(2 * self.patience);
                    self.trouble = Some(error);
                    // An eager group's are all needed anyway.
                    self.is_singly = !is_eager;
                }
            }
            self.asked = None;
            self.ask_at = if placed.is_empty() { now + PAUSE } else { now };
            placed.iter().for_each(|placed| self.end(placed.partition));
        }
        // An answer would say of partitions that are lost that they aren't.
        let is_due = self.answer_by.is_some_and(|by| now >= by || self.unplaced.is_empty());
        if is_due && !consumer.assignment_lost() {
            self.answer_by = None;
            take_none(consumer)?;
        }
        if self.unplaced.is_empty() {
            return Ok(placed);
        }
        if self.asked.is_none() && now >= self.ask_at {
            self.ask();
        }
        if let Some(waited) = self.waiting.line_due(now) {
            let partitions: Vec<i32> = self.unplaced.keys().copied().collect();
            tracing::info!(
                ?partitions,
                waited_s = waited.as_secs(),
                error = self.trouble.as_ref().map(tracing::field::display),
                "waiting for the group's offsets: no broker tells them while the group's coordinator is away, or \
                 while the open transaction of a worker that is gone holds them (delivery.transaction_timeout)"
            );
        }
        Ok(placed)
    }

    fn ask(&mut self) {
        let mut asked = self.unplaced.clone();
        if self.is_singly {
            // By turns: one that is held must not keep the others waiting.
            let next = self.unplaced.range(self.last + 1..).next();
            let next = next.or_else(|| self.unplaced.first_key_value());
            let next = next.map(|(partition, assignment)| (*partition, assignment.clone()));
            self.last = next.as_ref().map_or(-1, |(partition, _)| *partition);
            asked = next.into_iter().collect();
        }
        self.caller.ask((asked.clone(), self.patience));
        self.asked = Some(asked);
    }

    /// Takes the partitions whose offsets the answer has, of those that are still to be taken as
    /// when it was asked.
    fn take_known(
        &mut self,
        consumer: &SourceConsumer,
        mut answer: TopicPartitionList,
        is_eager: bool,
        now: Instant,
    ) -> KafkaResult<Vec<Placed>> {
        (self.patience, self.trouble) = (QUESTION.0, None);
        let asked = self.asked.as_ref().expect("an answer is to a question");
        let mut known = Vec::new();
        for element in answer.elements() {
            let partition = element.partition();
            let (now, then) = (self.unplaced.get(&partition), asked.get(&partition));
            let is_same = now.zip(then).is_some_and(|(now, then)| Weak::ptr_eq(now, then));
            match element.error() {
                Ok(()) if is_same => known.push((partition, element.offset())),
                Ok(()) => {}
                Err(error) if is_final(&error) => return Err(error),
                Err(error) => self.trouble = Some(error),
            }
        }
        // An eager group's partitions are taken all at once; of those that are lost nothing is
        // taken, which would be to say that they aren't.
        let is_all = known.len() == self.unplaced.len();
        let is_early = self.answer_by.is_some_and(|by| now < by);
        let is_due = is_all || self.is_singly || !(is_early || is_eager);
        if known.is_empty() || !is_due || consumer.assignment_lost() {
            return Ok(Vec::new());
        }
        if known.len() != answer.count() {
            // This loses the leader's epochs, by which the answer's own entries tell of a log that
            // was cut.
            answer = TopicPartitionList::with_capacity(known.len());
            for (partition, offset) in &known {
                answer.add_partition_offset(&self.topic, *partition, *offset)?;
            }
        }
        let mut placed = Vec::new();
        for (partition, offset) in known {
            let begins = match offset {
                Position::Offset(offset) => Some(NextOffset(offset)),
                _ => None,
            };
            if begins.is_none() {
                let none = KafkaError::MessageConsumption(RDKafkaErrorCode::AutoOffsetReset);
                answer.set_partition_offset(
                    &self.topic,
                    partition,
                    self.reset.of(partition).ok_or(none)?,
                )?;
            }
            placed.push(Placed { partition, begins });
        }
        take(consumer, &answer)?;
        self.answer_by = None;
        Ok(placed)
    }

    /// Ends the thread, and with it its hold on the consumer; `false` where the question that is
    /// under way has no answer in time.
    pub(super) fn stop(self) -> bool {
        self.caller.stop(QUESTION.1)
    }
}

/// Returns whether a broker doesn't know the partition: the group's coordinator, and a partition's
/// leader, may hear late of a new one. Of a topic that is gone librdkafka tells by itself.
fn is_unknown(error: &KafkaError) -> bool {
    error.rdkafka_error_code() == Some(RDKafkaErrorCode::UnknownTopicOrPartition)
}

/// Asks for the group's offsets, and where it has none for those that are meant then, which it
/// commits.
fn ask(
    consumer: &SourceConsumer,
    topic: &str,
    (assignments, patience): Question,
    reset: Reset,
) -> KafkaResult<TopicPartitionList> {
    let mut partitions = TopicPartitionList::with_capacity(assignments.len());
    for &partition in assignments.keys() {
        partitions.add_partition(topic, partition);
    }
    let mut committed = consumer.committed_offsets(partitions, patience)?;
    let mut without = TopicPartitionList::new();
    for element in committed.elements() {
        let partition = element.partition();
        if let (Ok(()), Position::Invalid, Some(begins)) =
            (element.error(), element.offset(), reset.of(partition))
        {
            without.add_partition_offset(topic, partition, begins)?;
        }
    }
    if without.count() == 0 {
        return Ok(committed);
    }
    let is_end = |partition: i32| reset.of(partition) == Some(Position::End);
    let has_end = without.elements().iter().any(|element| is_end(element.partition()));
    let meant = consumer.offsets_for_times(without, patience);
    let untold = match &meant {
        Ok(meant) => meant.elements().iter().find_map(|element| match element.offset() {
            Position::Offset(_) if element.error().is_ok() => None,
            _ if !is_end(element.partition()) => None,
            _ => Some(element.error().err().unwrap_or(NO_LEADER)),
        }),
        Err(error) => has_end.then(|| error.clone()),
    };
    if let Some(error) = untold {
        // Of what it doesn't fetch librdkafka remembers for minutes that there is no leader.
        drop(consumer.fetch_metadata(Some(topic), patience));
        return Err(error);
    }
    let meant = match meant {
        Ok(meant) => meant,
        Err(error) => {
            tracing::debug!(%error, "where the partitions begin wasn't told");
            return Ok(committed);
        }
    };
    // The group takes a member's commit of any partition: one that has been asked back since may
    // be another's, which has committed what it did.
    let is_held = |partition: i32| {
        let assignment = assignments.get(&partition).and_then(Weak::upgrade);
        assignment.is_some_and(|assignment| !assignment.is_leaving())
    };
    let mut beginnings = TopicPartitionList::new();
    for element in meant.elements() {
        if let (Ok(()), Position::Offset(_)) = (element.error(), element.offset())
            && is_held(element.partition())
        {
            let partition = element.partition();
            beginnings.add_partition_offset(topic, partition, element.offset())?;
            committed.set_partition_offset(topic, partition, element.offset())?;
        }
    }
    if beginnings.count() > 0 {
        consumer.commit(&beginnings, CommitMode::Sync)?;
    }
    Ok(committed)
}

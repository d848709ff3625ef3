//! How the source takes partitions and gives them up: assignments, revocations, the drain before
//! either a revocation or a stop, and the farewell to the group.

use std::sync::Arc;
use std::time::{Duration, Instant};

use rdkafka::consumer::{Consumer, ConsumerGroupMetadata, RebalanceProtocol};
use rdkafka::topic_partition_list::TopicPartitionList;

use super::waiting::Waiting;
use super::{Source, SourceError, TICK};
use crate::kafka::committer::Committer;
use crate::kafka::consumer::{Event, give_up, take, take_none};
use crate::metrics::Rebalance;
use crate::tracked::Assignment;

/// Between two tries of a commit that must succeed before a partition is given up.
const COMMIT_RETRY: Duration = Duration::from_millis(100);

/// How long the last commit may take after a drain, so that a broker that is away can't hold the
/// worker for ever.
const LAST_COMMIT_TIMEOUT: Duration = Duration::from_secs(5);

/// Partitions that the group has asked back, or all of them at a stop, on their way out.
pub(super) struct Leaving {
    partitions: TopicPartitionList,
    pub(super) ids: Vec<i32>,
    /// When to stop waiting for what is in flight.
    drain_until: Instant,
    /// Whether they are another's already.
    lost: bool,
    /// Whether the drain didn't end in time.
    is_missed: bool,
    /// `None` while what is in flight settles.
    committing: Option<LastCommit>,
}

/// The last commit before partitions are given up.
struct LastCommit {
    until: Instant,
    tried: Option<Instant>,
}

impl Source {
    pub(super) fn handle_events(&mut self) -> Result<(), SourceError> {
        for event in self.consumer.context().take_events() {
            self.refused.rebalanced();
            match event {
                Event::Assigned(partitions) => self.assigned(&partitions)?,
                Event::Revoked { partitions, lost, generation } => {
                    self.revoked(partitions, lost, generation)?;
                }
            }
        }
        Ok(())
    }

    fn assigned(&mut self, partitions: &TopicPartitionList) -> Result<(), SourceError> {
        let is_overtaken = self.end_overtaken()?;
        let ids = ids(partitions);
        self.waiting = None;
        tracing::info!(partitions = ?ids, "partitions assigned");
        self.count(Rebalance::Assigned, &ids);
        if matches!(self.consumer.rebalance_protocol(), RebalanceProtocol::Eager) {
            // It is all there is; one before may not have been asked back.
            let ended = self.ledger.partitions().into_iter().filter(|held| !ids.contains(held));
            ended.for_each(|partition| self.end_assignment(partition));
        } else {
            self.placing.leave_behind();
        }
        let is_empty = ids.is_empty();
        for partition in ids {
            let assignment = self.begin_assignment(partition);
            self.placing.begin(&assignment);
        }
        // librdkafka pauses a partition beyond the assignment: one that was given up while it was
        // paused would come back so, and stand still for ever. Before the assignment nothing is
        // fetched that a resumption could interfere with.
        self.consumer.resume(partitions).map_err(SourceError::Consumer)?;
        // If the one before is unanswered, the group has gone on without.
        self.placing.take_debt();
        match is_empty || self.stopping {
            true => take_none(&self.consumer).map_err(SourceError::Consumer)?,
            false => self.placing.owe(Instant::now()),
        }
        self.health.assigned();
        self.or_join_anew(is_overtaken)
    }

    /// The cooperative protocol has an event for every rebalance of the group, which mostly changes
    /// nothing here.
    fn count(&self, kind: Rebalance, partitions: &[i32]) {
        if !partitions.is_empty() {
            self.metrics.rebalances.with_label_values(&[kind.as_label()]).inc();
        }
    }

    fn revoked(
        &mut self,
        partitions: TopicPartitionList,
        lost: bool,
        generation: Option<ConsumerGroupMetadata>,
    ) -> Result<(), SourceError> {
        // If an assignment is unanswered, the group has gone on without.
        self.placing.take_debt();
        let ids = ids(&partitions);
        let kind = if lost { Rebalance::Lost } else { Rebalance::Revoked };
        tracing::info!(partitions = ?ids, event = kind.as_label(), "partitions asked back");
        self.count(kind, &ids);
        if lost && self.leaving.is_some() {
            // What is committed from here on must not have them in it, whatever is answered below.
            ids.iter().for_each(|&partition| self.end_assignment(partition));
        }
        if self.stopping {
            self.consumer.context().pin_generation(generation);
            self.unanswered.push(partitions);
            if let Some(leaving) = self.leaving.as_mut().filter(|_| lost) {
                (leaving.lost, leaving.drain_until) = (true, Instant::now());
            }
            return Ok(());
        }
        if self.end_overtaken()? {
            // The answer to the first was one to this too.
            ids.iter().for_each(|&partition| self.end_assignment(partition));
            self.unanswered.push(partitions);
            return self.or_join_anew(true);
        }
        ids.iter().for_each(|&partition| self.placing.end(partition));
        self.ledger.leave(&ids);
        self.consumer.context().pin_generation(generation);
        let now = Instant::now();
        if lost {
            self.waiting = Some(Waiting::since(now));
        }
        // Of partitions that are another's already nothing can be saved.
        let drain_until = if lost { now } else { now + self.drain_timeout };
        self.leaving = Some(Leaving {
            partitions,
            ids,
            drain_until,
            lost,
            is_missed: false,
            committing: None,
        });
        Ok(())
    }

    /// Ends a drain that the group hasn't waited for, if there is one: the partitions may be
    /// another's by now, or this worker's again. Returns whether there was.
    ///
    /// librdkafka joins anew without an answer to a revocation where the topic's partitions have
    /// changed, or, with `client.rack`, where its replicas' racks have.
    fn end_overtaken(&mut self) -> Result<bool, SourceError> {
        let Some(leaving) = self.leaving.take_if(|_| !self.stopping) else { return Ok(false) };
        if !leaving.is_missed && leaving.ids.iter().any(|&id| self.ledger.is_busy(id)) {
            self.metrics.drains_missed.inc();
        }
        tracing::warn!(partitions = ?leaving.ids, "the group has gone on before these were given up");
        self.leave(&leaving)?;
        Ok(true)
    }

    /// After a drain that was overtaken librdkafka takes itself for rebalancing, where partitions
    /// move one by one, and hears of no other rebalance any more; only another consumer helps.
    fn or_join_anew(&self, is_overtaken: bool) -> Result<(), SourceError> {
        let is_stuck = matches!(self.consumer.rebalance_protocol(), RebalanceProtocol::Cooperative);
        if is_overtaken && is_stuck { Err(SourceError::Overtaken) } else { Ok(()) }
    }

    /// Gives up partitions that are through with leaving.
    fn leave(&mut self, leaving: &Leaving) -> Result<(), SourceError> {
        for &partition in &leaving.ids {
            self.end_assignment(partition);
        }
        self.consumer.context().pin_generation(None);
        if self.stopping {
            return Ok(());
        }
        give_up(&self.consumer, &leaving.partitions).map_err(SourceError::Consumer)
    }

    /// Stops taking messages, closes the first queue, and lets all partitions go.
    pub(super) fn begin_stop(&mut self) {
        if self.stopping {
            return;
        }
        self.stopping = true;
        self.waiting = None;
        self.health.stopping();
        self.out = None;
        if self.placing.take_debt()
            && let Err(error) = take_none(&self.consumer)
        {
            tracing::warn!(%error, "failed to answer the group before the drain");
        }
        if let Some(leaving) = self.leaving.take() {
            if leaving.lost {
                // They are another's, and no drain can save what is in flight of them.
                leaving.ids.iter().for_each(|&partition| self.end_assignment(partition));
            }
            self.unanswered.push(leaving.partitions);
        }
        let partitions = self.owned();
        if let Err(error) = self.consumer.pause(&partitions) {
            tracing::warn!(%error, "failed to pause before the drain");
        }
        let drain_until = Instant::now() + self.drain_timeout;
        let ids = self.ledger.partitions();
        self.is_idle = ids.is_empty();
        self.ledger.leave(&ids);
        self.leaving = Some(Leaving {
            partitions,
            ids,
            drain_until,
            lost: false,
            is_missed: false,
            committing: None,
        });
    }

    /// Takes partitions that are on their way out a step further; returns whether they are out.
    pub(super) fn progress_leaving(&mut self) -> Result<bool, SourceError> {
        let is_committing = self.is_committing();
        let Some(leaving) = &mut self.leaving else { return Ok(false) };
        let now = Instant::now();
        let Some(commit) = &mut leaving.committing else {
            let is_busy = leaving.ids.iter().any(|&id| self.ledger.is_busy(id));
            if is_busy && now < leaving.drain_until {
                return Ok(false);
            }
            let unsettled: usize = leaving.ids.iter().map(|&id| self.ledger.unsettled(id)).sum();
            if is_busy {
                leaving.is_missed = true;
                self.metrics.drains_missed.inc();
                let what = match leaving.lost {
                    true => "lost with messages in the worker",
                    false => "the drain didn't end in time",
                };
                tracing::warn!(unsettled, "{what}; these come again");
            } else if unsettled > 0 {
                tracing::info!(unsettled, "not embedded yet, left to the partitions' next owners");
            }
            let until = if leaving.lost { now } else { now + LAST_COMMIT_TIMEOUT };
            leaving.committing = Some(LastCommit { until, tried: None });
            return Ok(false);
        };
        let is_leaving = |(id, _): &(i32, _)| leaving.ids.contains(id);
        let uncommitted = self.ledger.committable().iter().any(is_leaving);
        if (uncommitted || is_committing) && now < commit.until {
            let due = commit.tried.is_none_or(|tried| now - tried >= COMMIT_RETRY);
            if uncommitted && due {
                commit.tried = Some(now);
                self.commit()?;
            }
            return Ok(false);
        }
        let leaving = self.leaving.take().expect("it is there, as above");
        if uncommitted && !leaving.lost {
            tracing::warn!("the last commit didn't end in time; some captions come again");
        }
        if self.stopping && !leaving.lost && !leaving.is_missed && (uncommitted || is_committing) {
            return Err(SourceError::CommitMissed);
        }
        self.leave(&leaving)?;
        if self.stopping && leaving.is_missed {
            // A failure ends the sink too, with what it still waits for: a record that is delivered
            // after the next owner's would be out of order.
            return Err(SourceError::DrainMissed);
        }
        Ok(true)
    }

    pub(super) fn begin_assignment(&mut self, partition: i32) -> Arc<Assignment> {
        // The group may give what it hasn't been given back.
        self.end_assignment(partition);
        self.assignments += 1;
        let assignment = Assignment::new(partition, self.assignments);
        self.ledger.assign(Arc::clone(&assignment));
        self.metrics.partitions.set(self.ledger.partitions().len() as i64);
        assignment
    }

    pub(super) fn end_assignment(&mut self, partition: i32) {
        if let Some(assignment) = self.ledger.revoke(partition) {
            assignment.revoke();
        }
        self.placing.end(partition);
        self.metrics.partitions.set(self.ledger.partitions().len() as i64);
        self.lag.forget(partition);
        self.ends.forget(partition);
    }

    /// After a failure: commits what is settled, so that less comes again.
    pub(super) fn commit_before_leaving(&mut self) {
        let deadline = Instant::now() + LAST_COMMIT_TIMEOUT;
        let mut try_at = Instant::now();
        // The sink may have gone first, with settlements in the channel.
        self.settle();
        loop {
            let now = Instant::now();
            let mut tried = self.note_commits();
            if tried.is_ok() && now >= try_at {
                try_at = now + COMMIT_RETRY;
                tried = self.commit();
            }
            if let Err(error) = tried {
                tracing::warn!(%error, "failed to commit before leaving");
                return;
            }
            let is_done = !self.is_committing() && self.ledger.committable().is_empty();
            if is_done || now > deadline {
                return;
            }
            // Messages that come now are dropped, and come again.
            drop(self.consumer.poll(TICK));
        }
    }

    /// Leaves the group. Dropping the consumer does it, and polls meanwhile.
    pub(super) fn close(mut self) {
        if !self.stopping {
            self.is_idle = self.ledger.partitions().is_empty();
        }
        // The partitions are another's from here on. After a failure the sink may be at work still.
        self.ledger.partitions().into_iter().for_each(|partition| self.end_assignment(partition));
        if self.placing.take_debt()
            && let Err(error) = take_none(&self.consumer)
        {
            tracing::debug!(%error, "an assignment was not answered");
        }
        self.consumer.context().close();
        let mut unanswered = self.unanswered;
        for event in self.consumer.context().take_events() {
            self.is_idle = false;
            match event {
                Event::Revoked { partitions, .. } => unanswered.push(partitions),
                // librdkafka waits for this answer too, without an end.
                Event::Assigned(partitions) => {
                    if let Err(error) = take(&self.consumer, &partitions) {
                        tracing::debug!(%error, "a late assignment was not answered");
                    }
                }
            }
        }
        unanswered.extend(self.leaving.filter(|_| !self.stopping).map(|l| l.partitions));
        // A revocation that was noted and not answered would hold the group until its timeout.
        for partitions in &unanswered {
            if let Err(error) = give_up(&self.consumer, partitions) {
                tracing::debug!(%error, "a late revocation was not answered");
            }
        }
        self.is_idle &= unanswered.is_empty();
        // librdkafka waits for ever in its destructor for a list of partitions that is still alive
        // (confluentinc/librdkafka#3796).
        drop(unanswered);
        let is_cooperative =
            || matches!(self.consumer.rebalance_protocol(), RebalanceProtocol::Cooperative);
        if self.is_idle && !self.is_heard && is_cooperative() {
            // librdkafka ends a member that has no partition without a word, and the others would
            // wait at their next rebalance until its session is over. One without a topic leaves.
            self.consumer.unsubscribe();
        }
        let is_placing = !self.placing.stop();
        if is_placing || !self.committer.is_none_or(Committer::stop) {
            // A thread holds the consumer until librdkafka answers; the process ends before.
            tracing::warn!("left without a word to the group: the brokers owe an answer");
            return;
        }
        drop(self.consumer);
        tracing::info!("left the group");
    }
}

fn ids(partitions: &TopicPartitionList) -> Vec<i32> {
    partitions.elements().iter().map(|element| element.partition()).collect()
}

//! What becomes of a transaction that fails: it is aborted, or its producer made anew, and what it
//! held is sent again.

use std::collections::HashMap;
use std::time::Instant;

use rdkafka::consumer::Consumer;
use rdkafka::error::{KafkaResult, RDKafkaErrorCode};
use rdkafka::producer::Producer;
use rdkafka::topic_partition_list::{Offset as KafkaOffset, TopicPartitionList};

use super::{PAUSE, Problem, STEP, SinkError, Transactions, Trouble, Writer, is_purged};
use crate::kafka::topics::{TopicError, look_up};
use crate::kafka::transaction::Verdict;
use crate::metrics::TransactionEnd;
use crate::queue::Closed;
use crate::seldom::repeats;
use crate::shutdown::Wanted;
use crate::tracked::NextOffset;

impl Transactions {
    /// Returns when what has been published is in an open transaction again, after an error.
    pub(super) fn recover(
        &mut self,
        writer: &mut Writer,
        mut trouble: Trouble,
    ) -> Result<(), SinkError> {
        let is_repeated = self.troubled_since.is_some();
        self.troubled_since.get_or_insert_with(Instant::now);
        if is_repeated {
            std::thread::sleep(PAUSE);
        }
        loop {
            self.find_cause(writer, &mut trouble)?;
            let Trouble { during, verdict, error } = &trouble;
            let kind = format!("{during} {:?}", error.rdkafka_error_code());
            if let Some(repeated) = repeats(&kind) {
                tracing::warn!(during, ?verdict, %error, repeated, "a transaction failed");
            }
            if self.shutdown.wanted() == Wanted::Abort {
                return Err(Closed.into());
            }
            if self.troubled_since.is_some_and(|since| since.elapsed() >= self.patience) {
                return Err(self.failure(trouble));
            }
            let ended = match verdict {
                // A call may be repeated by its caller only for so long.
                Verdict::Fail | Verdict::Repeat => return Err(self.failure(trouble)),
                Verdict::Fenced if !self.is_timed_out() => {
                    return Err(SinkError::Fenced { transactional_id: self.id.clone() });
                }
                // One that a topic is gone for would be aborted for ever.
                Verdict::Abort if is_repeated => {
                    self.abort(writer).and_then(|()| Ok(self.look_for_topics(writer)?))
                }
                Verdict::Abort => self.abort(writer),
                Verdict::Remake | Verdict::Fenced => self.remake(writer),
            };
            match ended.and_then(|()| self.send_again(writer)) {
                Ok(()) => {
                    if self.pending.is_empty() {
                        self.troubled_since = None;
                    }
                    return Ok(());
                }
                Err(Problem::Trouble(another)) => trouble = another,
                Err(problem) => return self.solve(writer, problem),
            }
            std::thread::sleep(PAUSE);
        }
    }

    /// Finds out why a transaction failed of which librdkafka says no more than that: a record that
    /// came back has the reason.
    fn find_cause(&mut self, writer: &mut Writer, trouble: &mut Trouble) -> Result<(), SinkError> {
        let back = self.undelivered.try_iter().find(|back| !is_purged(&back.error));
        let Some(back) = back else { return Ok(()) };
        if trouble.error.rdkafka_error_code() == Some(RDKafkaErrorCode::State) {
            trouble.error = back.error.clone();
        }
        self.note_refusal(writer, back)
    }

    /// Returns whether the brokers may have given the open transaction up, which looks as if
    /// another producer had this one's name.
    fn is_timed_out(&self) -> bool {
        self.opened.is_some_and(|opened| opened.elapsed() >= self.timeout)
    }

    fn abort(&mut self, writer: &mut Writer) -> Result<(), Problem> {
        if self.opened.is_some() {
            self.call(writer, "abort_transaction", |producer, step| {
                producer.abort_transaction(step)
            })?;
            self.opened = None;
            let end = TransactionEnd::Aborted;
            self.metrics.transactions.with_label_values(&[end.as_label()]).inc();
        }
        self.note_refusals(writer)
    }

    /// Ends the producer and makes another, which ends the transaction of the first; then learns
    /// from the group's offsets whether it was committed.
    fn remake(&mut self, writer: &mut Writer) -> Result<(), Problem> {
        self.metrics.producers_remade.inc();
        writer.reconnect()?;
        self.note_refusals(writer)?;
        self.call(writer, "init_transactions", |producer, step| producer.init_transactions(step))?;
        let was_open = self.opened.take().is_some();
        let committed = self.committed(writer)?;
        // Of a transaction whose partitions are all another's it isn't known.
        let is_known = !self.pending.is_empty();
        let settled = self.pending.resolve(&committed);
        if was_open && is_known {
            let end = match settled.is_empty() {
                true => TransactionEnd::Aborted,
                false => TransactionEnd::Committed,
            };
            self.metrics.transactions.with_label_values(&[end.as_label()]).inc();
        }
        tracing::info!(
            settled = settled.len(),
            again = self.pending.len(),
            "the producer was made anew"
        );
        for parcel in settled {
            self.settler.settle(&parcel);
        }
        self.look_for_topics(writer)?;
        Ok(())
    }

    /// Finds out whether the topics are still there. Of one that was deleted librdkafka says so
    /// after half a minute, and a shorter transaction would be over each time before.
    fn look_for_topics(&self, writer: &Writer) -> Result<(), SinkError> {
        for (topic, option) in &self.written {
            let client = writer.producer().client();
            match look_up(client, &self.brokers, topic, option, STEP, &self.shutdown) {
                Err(error @ (TopicError::Unknown { .. } | TopicError::Refused { .. })) => {
                    return Err(error.into());
                }
                Ok(_)
                | Err(
                    TopicError::Stopped { .. }
                    | TopicError::NoAnswer { .. }
                    | TopicError::Login { .. }
                    | TopicError::Offsets { .. },
                ) => {}
            }
        }
        Ok(())
    }

    /// Returns the group's offsets of the partitions that are pending. Those that are another's are
    /// forgotten: an open transaction of a worker that is gone may hold their offsets for long.
    fn committed(&mut self, writer: &Writer) -> Result<HashMap<i32, NextOffset>, Problem> {
        let until = Instant::now() + self.patience;
        loop {
            self.pending.drop_ended();
            if self.pending.is_empty() {
                return Ok(HashMap::new());
            }
            let mut partitions = TopicPartitionList::new();
            for (partition, _) in self.pending.offsets() {
                partitions.add_partition(&self.topic, partition);
            }
            let consumer = self.consumer.upgrade().ok_or(Problem::Left)?;
            let found = consumer.committed_offsets(partitions, STEP).and_then(offsets_of);
            drop(consumer);
            match found {
                Ok(committed) => return Ok(committed),
                Err(_) if self.shutdown.wanted() == Wanted::Abort => {
                    return Err(SinkError::Closed(Closed).into());
                }
                Err(error) if Instant::now() >= until => {
                    return Err(self.trouble(writer, "committed_offsets", error).into());
                }
                Err(error) => tracing::debug!(%error, "the group's offsets are asked for again"),
            }
            std::thread::sleep(PAUSE);
        }
    }

    fn send_again(&mut self, writer: &mut Writer) -> Result<(), Problem> {
        self.pending.drop_ended();
        if self.pending.is_empty() {
            return Ok(());
        }
        self.open(writer)?;
        let parcels: Vec<_> = self.pending.items().cloned().collect();
        for parcel in &parcels {
            writer.judge_again(parcel);
            self.write(writer, parcel)?;
        }
        Ok(())
    }

    /// Looks through what came back from a transaction that is over.
    fn note_refusals(&mut self, writer: &mut Writer) -> Result<(), Problem> {
        while let Ok(back) = self.undelivered.try_recv() {
            if !is_purged(&back.error) {
                self.note_refusal(writer, back)?;
            }
        }
        Ok(())
    }
}

/// Returns the offsets that a group has; partitions for which it has none are left out.
fn offsets_of(list: TopicPartitionList) -> KafkaResult<HashMap<i32, NextOffset>> {
    let mut offsets = HashMap::new();
    for element in list.elements() {
        element.error()?;
        if let KafkaOffset::Offset(offset) = element.offset() {
            offsets.insert(element.partition(), NextOffset(offset));
        }
    }
    Ok(offsets)
}

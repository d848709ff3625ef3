//! Commits offsets on a thread of its own.
//!
//! A commit's outcome must be known, for one that fails during a rebalance has to be made again,
//! and librdkafka tells it only to a caller who waits. Waiting takes a round trip, or seconds while
//! the group has no coordinator, and the source must go on polling meanwhile.

use std::sync::Arc;

use rdkafka::consumer::{CommitMode, Consumer};
use rdkafka::error::{KafkaError, KafkaResult};
use rdkafka::topic_partition_list::{Offset as KafkaOffset, TopicPartitionList};

use super::caller::Caller;
use super::consumer::SourceConsumer;
use crate::tracked::NextOffset;

/// A commit that has ended.
pub struct Committed {
    /// How.
    pub result: KafkaResult<()>,
    /// What it was for.
    pub offsets: Vec<(i32, NextOffset)>,
}

/// Commits offsets of one topic, one commit at a time.
pub struct Committer {
    topic: String,
    caller: Caller<TopicPartitionList, KafkaResult<()>>,
    /// What the commit is for that is under way.
    offsets: Vec<(i32, NextOffset)>,
}

impl Committer {
    /// Starts the thread.
    ///
    /// # Errors
    ///
    /// When the system has no thread to give.
    pub fn start(consumer: Arc<SourceConsumer>, topic: &str) -> std::io::Result<Committer> {
        let commit = move |list| Some(consumer.commit(&list, CommitMode::Sync));
        let caller = Caller::start("capvec-commit", commit)?;
        Ok(Committer { topic: topic.into(), caller, offsets: Vec::new() })
    }

    /// Returns whether a commit is under way.
    pub fn is_busy(&self) -> bool {
        self.caller.is_busy()
    }

    /// Sends a commit off.
    ///
    /// # Errors
    ///
    /// When an offset isn't one.
    ///
    /// # Panics
    ///
    /// While another is under way.
    pub fn commit(&mut self, offsets: Vec<(i32, NextOffset)>) -> Result<(), KafkaError> {
        let mut list = TopicPartitionList::with_capacity(offsets.len());
        for &(partition, next) in &offsets {
            list.add_partition_offset(&self.topic, partition, KafkaOffset::Offset(next.0))?;
        }
        self.caller.ask(list);
        self.offsets = offsets;
        Ok(())
    }

    /// Returns the commit that has ended, if one has.
    ///
    /// # Panics
    ///
    /// Where the thread has: no commit would ever be made again.
    pub fn ended(&mut self) -> Option<Committed> {
        let result = self.caller.answer()?;
        Some(Committed { result, offsets: std::mem::take(&mut self.offsets) })
    }

    /// Ends the thread, and with it its hold on the consumer; `false` where a commit is still under
    /// way, so that it can't be waited for.
    pub fn stop(self) -> bool {
        let is_idle = !self.is_busy();
        if is_idle {
            self.caller.stop();
        }
        is_idle
    }
}

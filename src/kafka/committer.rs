//! Commits offsets on a thread of its own.
//!
//! A commit's outcome must be known, for one that fails during a rebalance has to be made again, and
//! librdkafka tells it only to a caller who waits. Waiting takes a round trip, or seconds while the
//! group has no coordinator, and the source must go on polling meanwhile.

use std::sync::Arc;
use std::thread::JoinHandle;

use crossbeam_channel::{Receiver, Sender, TryRecvError};
use rdkafka::consumer::{CommitMode, Consumer};
use rdkafka::error::{KafkaError, KafkaResult};
use rdkafka::topic_partition_list::{Offset as KafkaOffset, TopicPartitionList};

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
    requests: Sender<TopicPartitionList>,
    results: Receiver<KafkaResult<()>>,
    under_way: Option<Vec<(i32, NextOffset)>>,
    thread: JoinHandle<()>,
}

impl Committer {
    /// Starts the thread.
    ///
    /// # Errors
    ///
    /// When the system has no thread to give.
    pub fn start(consumer: Arc<SourceConsumer>, topic: &str) -> std::io::Result<Committer> {
        let (requests, requested) = crossbeam_channel::bounded::<TopicPartitionList>(1);
        let (answers, results) = crossbeam_channel::bounded(1);
        let thread = std::thread::Builder::new().name("capvec-commit".into()).spawn(move || {
            for offsets in requested {
                let result = consumer.commit(&offsets, CommitMode::Sync);
                // One request is under way at a time, so there is room for its answer.
                if answers.send(result).is_err() {
                    return;
                }
            }
        })?;
        Ok(Committer { topic: topic.into(), requests, results, under_way: None, thread })
    }

    /// Returns whether a commit is under way.
    pub fn is_busy(&self) -> bool {
        self.under_way.is_some()
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
        assert!(self.under_way.is_none(), "one commit at a time");
        let mut list = TopicPartitionList::with_capacity(offsets.len());
        for &(partition, next) in &offsets {
            list.add_partition_offset(&self.topic, partition, KafkaOffset::Offset(next.0))?;
        }
        self.requests.send(list).expect("the thread lives as long as this handle");
        self.under_way = Some(offsets);
        Ok(())
    }

    /// Returns the commit that has ended, if one has.
    pub fn ended(&mut self) -> Option<Committed> {
        match self.results.try_recv() {
            Ok(result) => self.under_way.take().map(|offsets| Committed { result, offsets }),
            Err(TryRecvError::Empty | TryRecvError::Disconnected) => None,
        }
    }

    /// Ends the thread, and with it its hold on the consumer; `false` where a commit is still under
    /// way, so that it can't be waited for.
    pub fn stop(self) -> bool {
        if self.is_busy() {
            return false;
        }
        drop(self.requests);
        self.thread.join().is_ok()
    }
}

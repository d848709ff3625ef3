//! Why a source ends.

use std::path::PathBuf;

use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use thiserror::Error;

use super::deaf::Missed;
use super::refused::PATIENCE;
use crate::kafka::offsets::WentBack;
use crate::queue::Closed;

/// Why the source ended.
#[derive(Debug, Error)]
pub enum SourceError {
    /// The brokers refuse this client, or librdkafka gave up.
    #[error("the consumer failed")]
    Consumer(#[source] KafkaError),
    /// The topic can't be consumed any more.
    #[error(
        "{topic}, the input.topic, can't be consumed; offsets stay, and the next start goes on from them"
    )]
    Input {
        /// The topic.
        topic: String,
        /// The broker's or librdkafka's words.
        source: KafkaError,
    },
    /// The topic isn't the one that the offsets are of.
    #[error(
        "{topic}, the input.topic, was deleted and made anew: this worker has taken nothing of the new one, with which \
         the next start begins"
    )]
    MadeAnew {
        /// The topic.
        topic: String,
    },
    /// At a stop, what was in flight didn't settle in time.
    #[error(
        "what was embedded was not acknowledged within delivery.drain_timeout; it is embedded again"
    )]
    DrainMissed,
    /// At a stop, the last commit wasn't answered in time.
    #[error("the last commit was not acknowledged; what it was for is embedded again")]
    CommitMissed,
    /// The group went on in the middle of a drain, and librdkafka is left in a state in which it
    /// hears of nothing more.
    #[error(
        "the group went on before partitions that it asked back were given up: their captions come again, here or \
         elsewhere, and this worker has to join anew"
    )]
    Overtaken,
    /// The group refuses every commit, and librdkafka hears of no rebalance.
    #[error(
        "the group has refused every commit for {}s and told of no rebalance: it doesn't know this \
         worker any more, whose captions come again; only a restart joins anew",
        PATIENCE.as_secs()
    )]
    Refused(#[source] KafkaError),
    /// No broker answers, and what this worker logs in with is no longer what it has read.
    #[error(
        "no broker answers, and {} has changed since it was read: only a restart reads it again",
        path.display()
    )]
    Renewed {
        /// The file.
        path: PathBuf,
    },
    /// With exactly-once delivery, offsets went back.
    #[error(
        "the end of partition {partition} of the input topic was cut off, or the topic was made anew: \
         to go on could give two vectors for one caption; the next start goes on from what is \
         committed"
    )]
    WentBack {
        /// The partition.
        partition: i32,
        /// How far.
        source: WentBack,
    },
    /// The consumer has seen nothing for a while of what others see.
    #[error(transparent)]
    Deaf(#[from] Missed),
    /// The next stage ended first.
    #[error("stopped")]
    Closed(#[from] Closed),
}

impl SourceError {
    /// Returns whether the topic is no more that was read.
    pub(super) fn is_topic_gone(&self) -> bool {
        match self {
            SourceError::MadeAnew { .. } => true,
            SourceError::Input { source, .. } => {
                source.rdkafka_error_code() == Some(RDKafkaErrorCode::UnknownTopicOrPartition)
            }
            _ => false,
        }
    }
}

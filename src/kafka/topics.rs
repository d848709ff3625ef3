//! Looks at the topics before the first message is taken.

use std::time::{Duration, Instant};

use rdkafka::client::{Client, ClientContext};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::types::RDKafkaRespErr;
use thiserror::Error;

use crate::shutdown::{Shutdown, Wanted};

/// Why a topic can't be used.
#[derive(Debug, Error)]
pub enum TopicError {
    /// The brokers know no such topic.
    #[error("the topic {topic:?} ({option}) doesn't exist; create it, or correct the option")]
    Unknown {
        /// The topic.
        topic: String,
        /// The option that names it.
        option: &'static str,
    },
    /// The brokers refuse.
    #[error("the brokers refuse the topic {topic:?} ({option}): {reason}")]
    Refused {
        /// The topic.
        topic: String,
        /// The option that names it.
        option: &'static str,
        /// Their words.
        reason: String,
    },
    /// The worker was told to stop while it waited for the brokers.
    #[error("stopped while waiting for the brokers at {brokers}")]
    Stopped {
        /// Their addresses.
        brokers: String,
    },
    /// The brokers didn't answer in time.
    #[error("no answer from the brokers at {brokers} within {waited:?}: {reason}")]
    NoAnswer {
        /// Their addresses.
        brokers: String,
        /// How long it was waited.
        waited: Duration,
        /// The last error.
        reason: KafkaError,
    },
}

/// One request waits this long; what is left of the whole is tried again.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(2);

/// Waits until the brokers answer for a topic, and returns its number of partitions.
///
/// # Errors
///
/// At once when they say that it doesn't exist or isn't for this client; after `patience` when they
/// don't answer, or are still electing leaders; soon when `shutdown` asks for it.
pub fn look_up<C: ClientContext>(
    client: &Client<C>,
    brokers: &str,
    topic: &str,
    option: &'static str,
    patience: Duration,
    shutdown: &Shutdown,
) -> Result<usize, TopicError> {
    let started = Instant::now();
    loop {
        let left = patience.saturating_sub(started.elapsed());
        let transient = match client.fetch_metadata(Some(topic), REQUEST_TIMEOUT.min(left)) {
            Ok(metadata) => {
                let found = metadata.topics().iter().find(|t| t.name() == topic);
                match found.and_then(|t| t.error()) {
                    None => return Ok(found.map_or(0, |t| t.partitions().len())),
                    Some(RDKafkaRespErr::RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART) => {
                        return Err(TopicError::Unknown { topic: topic.into(), option });
                    }
                    Some(RDKafkaRespErr::RD_KAFKA_RESP_ERR_LEADER_NOT_AVAILABLE) => {
                        KafkaError::MetadataFetch(RDKafkaErrorCode::LeaderNotAvailable)
                    }
                    Some(code) => {
                        let reason = RDKafkaErrorCode::from(code).to_string();
                        return Err(TopicError::Refused { topic: topic.into(), option, reason });
                    }
                }
            }
            Err(e) => e,
        };
        if shutdown.wanted() != Wanted::Run {
            return Err(TopicError::Stopped { brokers: brokers.into() });
        }
        if started.elapsed() >= patience {
            return Err(TopicError::NoAnswer {
                brokers: brokers.into(),
                waited: patience,
                reason: transient,
            });
        }
        tracing::info!(topic, error = %transient, "waiting for the brokers");
        // A refused connection is answered at once; don't ask again as fast.
        std::thread::sleep(Duration::from_millis(200).min(left));
    }
}

//! Looks at the topics before the first message is taken.

use std::time::{Duration, Instant};

use rdkafka::client::Client;
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::metadata::Metadata;
use rdkafka::types::RDKafkaRespErr;
use thiserror::Error;

use super::login::{LoginTrouble, WithLogin};
use crate::config::as_written;
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
    /// The brokers can't be talked to.
    #[error("no login at the brokers at {brokers}: {words}")]
    Login {
        /// Their addresses.
        brokers: String,
        /// What is wrong, and which options to look at.
        words: String,
    },
    /// The brokers didn't answer in time.
    #[error(
        "no answer from the brokers at {brokers} (kafka.brokers) within {}: {reason}",
        as_written(*waited)
    )]
    NoAnswer {
        /// Their addresses.
        brokers: String,
        /// How long it was waited.
        waited: Duration,
        /// Why the last connection failed, or else the last error.
        reason: String,
    },
    /// Which partitions of the input topic the group knows can't be asked.
    #[error("the offsets of the group {group:?} (kafka.group) weren't told")]
    Offsets {
        /// The group.
        group: String,
        /// The broker's or librdkafka's words.
        source: KafkaError,
    },
}

/// One request waits this long; what is left of the whole is tried again.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(2);

/// How long the callbacks of a client that nothing else polls are served before each request.
const SERVE: Duration = Duration::from_millis(10);

/// A client, and how long the brokers may take to answer it.
pub struct Inquiry<'a, C: WithLogin> {
    /// The client.
    pub client: &'a Client<C>,
    /// Serves its callbacks, for so long: in a poll librdkafka asks for a bearer token, and tells
    /// of a login that is refused. Nothing is to be done where a thread polls it anyway.
    pub serve: &'a dyn Fn(Duration),
    /// The brokers' addresses.
    pub brokers: &'a str,
    /// How long they may take.
    pub patience: Duration,
    /// Ends the wait early.
    pub shutdown: &'a Shutdown,
}

impl<C: WithLogin> Inquiry<'_, C> {
    /// Waits until the brokers answer for a topic, and returns its number of partitions.
    ///
    /// # Errors
    ///
    /// At once when they say that it doesn't exist or isn't for this client, or when they refuse
    /// the login; when the patience is over where they don't answer, or are still electing leaders;
    /// soon when a stop is wanted.
    pub fn partitions_of(&self, topic: &str, option: &'static str) -> Result<usize, TopicError> {
        self.ask(Some(topic), |metadata| {
            let found = metadata.topics().iter().find(|t| t.name() == topic);
            match found.and_then(|t| t.error()) {
                None => Ok(Ok(found.map_or(0, |t| t.partitions().len()))),
                Some(RDKafkaRespErr::RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART) => {
                    Err(TopicError::Unknown { topic: topic.into(), option })
                }
                Some(RDKafkaRespErr::RD_KAFKA_RESP_ERR_LEADER_NOT_AVAILABLE) => {
                    Ok(Err(KafkaError::MetadataFetch(RDKafkaErrorCode::LeaderNotAvailable)))
                }
                Some(code) => {
                    let reason = RDKafkaErrorCode::from(code).to_string();
                    Err(TopicError::Refused { topic: topic.into(), option, reason })
                }
            }
        })
    }

    /// Waits until the brokers answer, and returns their ids.
    ///
    /// # Errors
    ///
    /// As [`Inquiry::partitions_of`].
    pub fn ids_of_brokers(&self) -> Result<Vec<i32>, TopicError> {
        self.ask(None, |metadata| Ok(Ok(metadata.brokers().iter().map(|b| b.id()).collect())))
    }

    /// Asks until `read` finds an answer, or an error that lasts.
    fn ask<T>(
        &self,
        topic: Option<&str>,
        read: impl Fn(&Metadata) -> Result<Result<T, KafkaError>, TopicError>,
    ) -> Result<T, TopicError> {
        let started = Instant::now();
        (self.serve)(SERVE);
        loop {
            let left = self.patience.saturating_sub(started.elapsed());
            let transient = match self.client.fetch_metadata(topic, REQUEST_TIMEOUT.min(left)) {
                Ok(metadata) => match read(&metadata)? {
                    Ok(answer) => return Ok(answer),
                    Err(error) => error,
                },
                Err(error) => error,
            };
            let brokers = || self.brokers.to_owned();
            if self.shutdown.wanted() != Wanted::Run {
                return Err(TopicError::Stopped { brokers: brokers() });
            }
            (self.serve)(SERVE);
            let is_over = started.elapsed() >= self.patience;
            let reason = || {
                let connection = self.client.context().login().connection();
                let of_connection = connection.filter(|_| is_silence(&transient));
                of_connection.unwrap_or_else(|| transient.to_string())
            };
            match self.client.context().login().trouble() {
                // A password doesn't get better; a certificate may be on its way to a broker.
                Some(trouble) if is_over || matches!(trouble, LoginTrouble::Refused(_)) => {
                    let words = trouble.in_words();
                    return Err(TopicError::Login { brokers: brokers(), words });
                }
                _ if is_over => {
                    let (brokers, waited) = (brokers(), self.patience);
                    return Err(TopicError::NoAnswer { brokers, waited, reason: reason() });
                }
                _ => {}
            }
            let seconds_left = left.as_secs();
            tracing::info!(topic, seconds_left, error = reason(), "waiting for the brokers");
            // A refused connection is answered at once; don't ask again as fast.
            std::thread::sleep(Duration::from_millis(200).min(left));
        }
    }
}

/// Returns whether an error says no more than that nobody answered.
fn is_silence(error: &KafkaError) -> bool {
    matches!(
        error.rdkafka_error_code(),
        Some(
            RDKafkaErrorCode::BrokerTransportFailure
                | RDKafkaErrorCode::OperationTimedOut
                | RDKafkaErrorCode::AllBrokersDown
                | RDKafkaErrorCode::Resolve
        )
    )
}

/// Asks by a client that is polled anyway: waits until the brokers answer for a topic, and returns
/// its number of partitions.
///
/// # Errors
///
/// As [`Inquiry::partitions_of`].
pub fn look_up<C: WithLogin>(
    client: &Client<C>,
    brokers: &str,
    topic: &str,
    option: &'static str,
    patience: Duration,
    shutdown: &Shutdown,
) -> Result<usize, TopicError> {
    let serve = &|_| ();
    Inquiry { client, serve, brokers, patience, shutdown }.partitions_of(topic, option)
}

/// The same by a consumer that nothing else polls.
///
/// # Errors
///
/// As [`Inquiry::partitions_of`].
pub fn look_up_polling<C: ConsumerContext + WithLogin>(
    consumer: &BaseConsumer<C>,
    brokers: &str,
    topic: &str,
    option: &'static str,
    patience: Duration,
    shutdown: &Shutdown,
) -> Result<usize, TopicError> {
    let (client, serve) = (consumer.client(), &|patience| drop(consumer.poll(patience)));
    Inquiry { client, serve, brokers, patience, shutdown }.partitions_of(topic, option)
}

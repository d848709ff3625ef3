//! The producer and its callbacks: what becomes of a record, from the broker's answer on.
//!
//! librdkafka calls back on the producer's own thread. An acknowledgement goes from there straight
//! to the source, unless a transaction has to be committed first; a record that came back goes to
//! the sink, which decides about it.

use std::error::Error;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicUsize, Ordering};

use crossbeam_channel::Sender;
use prometheus::Histogram;
use rdkafka::ClientConfig;
use rdkafka::client::{ClientContext, OAuthToken};
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::{KafkaError, KafkaResult};
use rdkafka::message::DeliveryResult;
use rdkafka::producer::{ProducerContext, ThreadedProducer};
use rdkafka::statistics::Statistics;

use super::parcel::{Ordered, Parcel};
use crate::clock::since_epoch;
use crate::kafka::acknowledged::acknowledged;
use crate::kafka::login::{Login, WithLogin};
use crate::kafka::reach::brokers_up;
use crate::metrics::SinkMetrics;
use crate::tracked::{Outcome, Settlement};

/// A record that came back.
pub(super) struct Undelivered {
    pub(super) parcel: Arc<Parcel>,
    pub(super) error: KafkaError,
}

/// Tells the source that a message has come to its end.
#[derive(Clone)]
pub(super) struct Settler {
    pub(super) settlements: Sender<Settlement>,
    pub(super) deliver_seconds: Histogram,
    pub(super) end_to_end_seconds: Histogram,
}

impl Settler {
    /// Settles a message whose record is acknowledged, or committed.
    pub(super) fn settle(&self, parcel: &Parcel) {
        let (origin, outcome) = (parcel.origin(), parcel.outcome());
        if let (Outcome::Embedded, Ordered::Vector { embedded, .. }) = (outcome, &parcel.item) {
            self.deliver_seconds.observe(embedded.elapsed().as_secs_f64());
            if let Some(timestamp_ms) = origin.message.timestamp_ms {
                let since = since_epoch().as_secs_f64() - timestamp_ms as f64 / 1000.0;
                // Another machine's clock may be ahead.
                self.end_to_end_seconds.observe(since.max(0.0));
            }
        }
        let assignment = Arc::clone(&origin.assignment);
        let settlement = Settlement { assignment, offset: origin.offset, outcome };
        if self.settlements.send(settlement).is_err() {
            // The source has gone, and it has all settlements that it will get.
            tracing::debug!("a message was settled after the source had ended");
        }
    }
}

/// Makes producers; after a fatal error another one.
pub(super) struct Connector {
    pub(super) properties: ClientConfig,
    /// `None` where a transaction settles.
    pub(super) settler: Option<Settler>,
    pub(super) undelivered: Sender<Undelivered>,
    pub(super) metrics: SinkMetrics,
}

impl Connector {
    /// Returns a producer, and the number of its records that wait for their acknowledgement.
    pub(super) fn connect(&self) -> KafkaResult<(ThreadedProducer<SinkContext>, Arc<AtomicUsize>)> {
        let outstanding = Arc::new(AtomicUsize::new(0));
        let context = SinkContext {
            settler: self.settler.clone(),
            undelivered: self.undelivered.clone(),
            outstanding: Arc::clone(&outstanding),
            is_left: AtomicBool::new(false),
            metrics: self.metrics.clone(),
            retries_seen: AtomicI64::new(0),
            login: Login::default(),
        };
        Ok((self.properties.create_with_context(context)?, outstanding))
    }
}

/// Receives librdkafka's callbacks, on the producer's own thread.
pub struct SinkContext {
    settler: Option<Settler>,
    undelivered: Sender<Undelivered>,
    outstanding: Arc<AtomicUsize>,
    is_left: AtomicBool,
    metrics: SinkMetrics,
    retries_seen: AtomicI64,
    login: Login,
}

impl SinkContext {
    /// Makes the sink deaf to what comes back from here on: another producer has sent it again.
    pub(super) fn leave(&self) {
        self.is_left.store(true, Ordering::Release);
    }
}

impl WithLogin for SinkContext {
    fn login(&self) -> &Login {
        &self.login
    }
}

impl ClientContext for SinkContext {
    const ENABLE_REFRESH_OAUTH_TOKEN: bool = true;

    fn generate_oauth_token(&self, file: Option<&str>) -> Result<OAuthToken, Box<dyn Error>> {
        crate::kafka::bearer::answer(file)
    }

    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        crate::kafka::log(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        self.login.note(&error, reason);
        crate::kafka::log_client_error("producer", &error, reason);
    }

    fn stats(&self, statistics: Statistics) {
        // Of two producers the one that sends tells.
        if !self.is_left.load(Ordering::Acquire) {
            self.metrics.brokers_up.set(brokers_up(&statistics) as i64);
        }
        let retries: i64 = statistics.brokers.values().map(|broker| broker.txretries as i64).sum();
        let before = self.retries_seen.swap(retries, Ordering::Relaxed);
        self.metrics.retries.inc_by((retries - before).max(0) as u64);
    }
}

impl ProducerContext for SinkContext {
    type DeliveryOpaque = Arc<Parcel>;

    fn delivery(&self, result: &DeliveryResult<'_>, parcel: Arc<Parcel>) {
        match (acknowledged(result), &self.settler) {
            (Ok(()), Some(settler)) => settler.settle(&parcel),
            (Ok(()), None) => {}
            (Err(_), _) if self.is_left.load(Ordering::Acquire) => {}
            (Err(error), _) => {
                let undelivered = Undelivered { parcel, error };
                if self.undelivered.send(undelivered).is_err() {
                    tracing::debug!("a delivery report came after the worker had ended");
                }
            }
        }
        // Last: the sink ends when nothing is outstanding and nothing came back.
        self.outstanding.fetch_sub(1, Ordering::AcqRel);
    }
}

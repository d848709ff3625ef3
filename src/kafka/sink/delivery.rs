//! The producer's callbacks: what becomes of a record, from the broker's answer to the settlement.
//!
//! librdkafka calls back on the producer's own thread. An acknowledgement goes from there straight to
//! the source; a record that came back goes to the sink, which decides about it.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicUsize, Ordering};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use crossbeam_channel::Sender;
use prometheus::Histogram;
use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::KafkaError;
use rdkafka::message::DeliveryResult;
use rdkafka::producer::ProducerContext;
use rdkafka::statistics::Statistics;

use crate::metrics::SinkMetrics;
use crate::tracked::{Origin, Outcome, Settlement};

/// What a record is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RecordKind {
    Vector,
    Tombstone,
    DeadLetter,
}

/// A record that waits for its acknowledgement. It keeps the message, for it may still become a dead
/// letter.
pub struct Outstanding {
    pub(super) origin: Box<Origin>,
    pub(super) kind: RecordKind,
    /// When the forward pass ended.
    pub(super) embedded: Instant,
}

/// A record that came back.
pub(super) struct Undelivered {
    pub(super) record: Outstanding,
    pub(super) error: KafkaError,
}

/// Receives librdkafka's callbacks, on the producer's own thread.
pub struct SinkContext {
    pub(super) settlements: Sender<Settlement>,
    pub(super) undelivered: Sender<Undelivered>,
    pub(super) outstanding: Arc<AtomicUsize>,
    pub(super) deliver_seconds: Histogram,
    pub(super) end_to_end_seconds: Histogram,
    pub(super) metrics: SinkMetrics,
    pub(super) retries_seen: AtomicI64,
}

impl ClientContext for SinkContext {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        crate::kafka::log(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        crate::kafka::log_client_error("producer", &error, reason);
    }

    fn stats(&self, statistics: Statistics) {
        let retries: i64 = statistics.brokers.values().map(|broker| broker.txretries as i64).sum();
        let before = self.retries_seen.swap(retries, Ordering::Relaxed);
        self.metrics.retries.inc_by((retries - before).max(0) as u64);
    }
}

impl ProducerContext for SinkContext {
    type DeliveryOpaque = Box<Outstanding>;

    fn delivery(&self, result: &DeliveryResult<'_>, record: Box<Outstanding>) {
        let sent = match result {
            Ok(_) => {
                self.acknowledged(&record);
                let outcome = match record.kind {
                    RecordKind::Vector => Outcome::Embedded,
                    RecordKind::Tombstone => Outcome::Tombstone,
                    RecordKind::DeadLetter => Outcome::Rejected,
                };
                self.settlements.send(settlement(&record.origin, outcome)).is_ok()
            }
            Err((error, _)) => {
                let undelivered = Undelivered { record: *record, error: error.clone() };
                self.undelivered.send(undelivered).is_ok()
            }
        };
        if !sent {
            tracing::debug!("a delivery report came after the worker had ended");
        }
        // Last: the sink ends when nothing is outstanding and nothing came back.
        self.outstanding.fetch_sub(1, Ordering::AcqRel);
    }
}

impl SinkContext {
    fn acknowledged(&self, record: &Outstanding) {
        if record.kind != RecordKind::Vector {
            return;
        }
        self.deliver_seconds.observe(record.embedded.elapsed().as_secs_f64());
        if let Some(timestamp_ms) = record.origin.message.timestamp_ms {
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            let since = now.as_secs_f64() - timestamp_ms as f64 / 1000.0;
            // Another machine's clock may be ahead.
            self.end_to_end_seconds.observe(since.max(0.0));
        }
    }
}

pub(super) fn settlement(origin: &Origin, outcome: Outcome) -> Settlement {
    Settlement { assignment: Arc::clone(&origin.assignment), offset: origin.offset, outcome }
}

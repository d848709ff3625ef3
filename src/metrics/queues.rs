//! Metrics of the queues between stages; whoever makes a queue gives it its series.

use prometheus::{CounterVec, IntGaugeVec, Registry};

use super::make::{counter_vec, int_gauge_vec};

/// Of each queue between stages, by `queue`.
#[derive(Clone, Debug)]
pub struct QueueMetrics {
    /// Entries in it.
    pub length: IntGaugeVec,
    /// Entries that it can hold.
    pub limit: IntGaugeVec,
    /// Time that senders waited for room.
    pub blocked_seconds: CounterVec,
}

impl QueueMetrics {
    pub(super) fn register(r: &Registry) -> QueueMetrics {
        QueueMetrics {
            length: int_gauge_vec(r, "queue_length", "Entries in a queue", "queue"),
            limit: int_gauge_vec(r, "queue_limit", "Entries that a queue can hold", "queue"),
            blocked_seconds: counter_vec(
                r,
                "queue_blocked_seconds_total",
                "Seconds that senders waited for room in a queue",
                "queue",
            ),
        }
    }
}

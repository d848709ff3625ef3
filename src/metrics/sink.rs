//! Metrics of the sink: rejections, what waits for the brokers, transactions.

use prometheus::{Gauge, Histogram, IntCounter, IntCounterVec, IntGauge, Registry};

use super::TransactionEnd;
use super::make::{buckets, counter, counters, float_gauge, gauge, histogram};
use crate::tracked::RejectReason;

/// Of the sink.
#[derive(Clone, Debug)]
pub struct SinkMetrics {
    /// Messages rejected, by `reason`.
    pub rejected: IntCounterVec,
    /// Messages abandoned before they were embedded, because their partition was given up.
    pub abandoned: IntCounter,
    /// Records that wait for their acknowledgement.
    pub outstanding: IntGauge,
    /// Vectors that wait for earlier ones of their partition.
    pub held_back: IntGauge,
    /// Times that the producer's queue was full.
    pub queue_full: IntCounter,
    /// Requests that the producer sent again after a connection failed. librdkafka tells of no
    /// others: a batch that a broker refuses for the moment goes back into its queue uncounted.
    pub retries: IntCounter,
    /// Bytes of the vectors' values.
    pub bytes: IntCounter,
    /// Rejections since the last good message.
    pub rejected_run: IntGauge,
    /// The part of the last messages that was rejected.
    pub rejected_share: Gauge,
    /// Transactions, by `result`.
    pub transactions: IntCounterVec,
    /// Time that commits of transactions took.
    pub transaction_seconds: Histogram,
    /// Captions that the open transaction holds.
    pub transaction_captions: IntGauge,
    /// Producers that came to their end and were made anew.
    pub producers_remade: IntCounter,
    /// Brokers that the producer is connected to.
    pub brokers_up: IntGauge,
}

impl SinkMetrics {
    pub(super) fn register(r: &Registry, brokers_up: IntGauge) -> SinkMetrics {
        SinkMetrics {
            rejected: counters(
                r,
                "captions_rejected_total",
                "Messages that can't become vectors",
                "reason",
                RejectReason::ALL.map(RejectReason::as_label),
            ),
            abandoned: counter(
                r,
                "captions_abandoned_total",
                "Messages left to their partition's next owner, at a stop or in a rebalance",
            ),
            outstanding: gauge(
                r,
                "outstanding_records",
                "Records that wait for their acknowledgement",
            ),
            held_back: gauge(
                r,
                "held_back_vectors",
                "Vectors that wait for earlier ones of their partition",
            ),
            queue_full: counter(
                r,
                "producer_queue_full_total",
                "Times that the producer's queue was full",
            ),
            retries: counter(
                r,
                "producer_retries_total",
                "Requests that the producer sent again after a connection failed",
            ),
            bytes: counter(r, "produced_bytes_total", "Bytes of the values produced"),
            rejected_run: gauge(
                r,
                "rejected_run_messages",
                "Messages rejected in a row, which reject.breaker_run bounds",
            ),
            rejected_share: float_gauge(
                r,
                "rejected_share_ratio",
                "Part of the last reject.breaker_window messages that was rejected",
            ),
            transactions: counters(
                r,
                "transactions_total",
                "Transactions of exactly-once delivery",
                "result",
                TransactionEnd::ALL.map(TransactionEnd::as_label),
            ),
            transaction_seconds: histogram(
                r,
                "transaction_commit_seconds",
                "Seconds that committing a transaction took, the wait for its records included",
                // From a round trip to the outage that delivery_timeout allows.
                buckets(1e-3, 600.0),
            ),
            transaction_captions: gauge(
                r,
                "transaction_messages",
                "Messages in the open transaction, settled when it is committed",
            ),
            producers_remade: counter(
                r,
                "producers_remade_total",
                "Producers made anew after an error that ended them",
            ),
            brokers_up,
        }
    }
}

//! Metrics of the source: what comes in, what is in the worker, how far it is behind.

use prometheus::{
    Counter, Gauge, GaugeVec, Histogram, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Registry,
};

use super::make::{
    buckets, counter, counters, float_gauge, float_gauge_vec, gauge, histogram, int_gauge_vec,
    seconds,
};
use super::{CommitResult, Rebalance};
use crate::tracked::Outcome;

/// Of the source.
#[derive(Clone, Debug)]
pub struct SourceMetrics {
    /// Messages received.
    pub messages: IntCounter,
    /// Bytes of their keys and values, and 128 for each header, which isn't looked at.
    pub bytes: IntCounter,
    /// Messages settled, by `outcome`.
    pub settled: IntCounterVec,
    /// Messages in the worker.
    pub in_flight: IntGauge,
    /// Messages at which fetching pauses.
    pub in_flight_limit: IntGauge,
    /// Bytes in the worker.
    pub in_flight_bytes: IntGauge,
    /// Bytes at which fetching pauses.
    pub in_flight_bytes_limit: IntGauge,
    /// Time for which fetching was paused because a limit was reached.
    pub paused_seconds: Counter,
    /// 1 while fetching is paused.
    pub paused: IntGauge,
    /// Age of the oldest unsettled message.
    pub oldest_unsettled_seconds: Gauge,
    /// How long it has been the oldest.
    pub stalled_seconds: Gauge,
    /// How far the worker is behind.
    pub lag: LagMetrics,
    /// Partitions that this worker owns.
    pub partitions: IntGauge,
    /// Commits, by `result`.
    pub commits: IntCounterVec,
    /// Rebalances, by `event`.
    pub rebalances: IntCounterVec,
    /// Revocations whose drain didn't end in time.
    pub drains_missed: IntCounter,
    /// Messages that were deleted before they were received.
    pub deleted: IntCounter,
    /// Errors that the consumer reported and retries by itself.
    pub errors: IntCounter,
    /// Brokers that the consumer is connected to.
    pub brokers_up: IntGauge,
    /// From the broker's timestamp to the acknowledgement.
    pub end_to_end_seconds: Histogram,
}

impl SourceMetrics {
    pub(super) fn register(r: &Registry, brokers_up: IntGauge) -> SourceMetrics {
        SourceMetrics {
            messages: counter(r, "messages_consumed_total", "Messages received"),
            bytes: counter(
                r,
                "consumed_bytes_total",
                "Bytes of keys and values received, and 128 for each header",
            ),
            settled: counters(
                r,
                "messages_settled_total",
                "Messages settled",
                "outcome",
                Outcome::ALL.map(Outcome::as_label),
            ),
            in_flight: gauge(r, "in_flight_messages", "Messages in the worker"),
            in_flight_limit: gauge(
                r,
                "in_flight_messages_limit",
                "Messages in the worker at which fetching pauses",
            ),
            in_flight_bytes: gauge(r, "in_flight_bytes", "Bytes of messages in the worker"),
            in_flight_bytes_limit: gauge(
                r,
                "in_flight_bytes_limit",
                "Bytes of messages in the worker at which fetching pauses",
            ),
            paused_seconds: seconds(
                r,
                "source_paused_seconds_total",
                "Seconds for which fetching was paused because an in-flight limit was reached",
            ),
            paused: gauge(r, "source_paused", "1 while fetching is paused"),
            oldest_unsettled_seconds: float_gauge(
                r,
                "oldest_unsettled_seconds",
                "Age of the oldest message in the worker, in seconds",
            ),
            stalled_seconds: float_gauge(
                r,
                "stalled_seconds",
                "Seconds for which the same message has been the oldest in the worker",
            ),
            lag: LagMetrics::register(r),
            partitions: gauge(r, "assigned_partitions", "Partitions that this worker owns"),
            commits: counters(
                r,
                "commits_total",
                "Offset commits",
                "result",
                CommitResult::ALL.map(CommitResult::as_label),
            ),
            rebalances: counters(
                r,
                "rebalances_total",
                "Rebalances of the group that changed this worker's partitions",
                "event",
                Rebalance::ALL.map(Rebalance::as_label),
            ),
            drains_missed: counter(
                r,
                "drains_missed_total",
                "Revocations whose drain didn't end in time; what was left is delivered again",
            ),
            deleted: counter(
                r,
                "messages_deleted_unread_total",
                "Messages that the input topic deleted before they were received, at most",
            ),
            errors: counter(
                r,
                "consumer_errors_total",
                "Errors that the consumer reported and retries by itself",
            ),
            brokers_up,
            end_to_end_seconds: histogram(
                r,
                "end_to_end_seconds",
                "Seconds from a caption's broker timestamp to its vector's acknowledgement",
                // From a forward pass at no load to a backlog of the week that Kafka keeps by
                // default.
                buckets(1e-3, 1e6),
            ),
        }
    }
}

/// Of what waits in the partitions that the worker owns, and in the worker.
#[derive(Clone, Debug)]
pub struct LagMetrics {
    /// Messages in all partitions.
    pub messages: IntGauge,
    /// Age of the oldest.
    pub seconds: Gauge,
    /// Messages, by `partition`.
    pub partition_messages: IntGaugeVec,
    /// Age of the oldest, by `partition`.
    pub partition_seconds: GaugeVec,
}

impl LagMetrics {
    fn register(r: &Registry) -> LagMetrics {
        LagMetrics {
            messages: gauge(
                r,
                "lag_messages",
                "Messages that aren't settled, in this worker and in its partitions",
            ),
            seconds: float_gauge(
                r,
                "lag_seconds",
                "Age of the oldest message that isn't settled, by its timestamp",
            ),
            partition_messages: int_gauge_vec(
                r,
                "consumer_lag_messages",
                "Messages between the last settled one and the end of the partition",
                "partition",
            ),
            partition_seconds: float_gauge_vec(
                r,
                "consumer_lag_seconds",
                "Age of the partition's oldest message that isn't settled",
                "partition",
            ),
        }
    }
}

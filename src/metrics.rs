//! Every metric, in one view: names, units, labels, buckets.
//!
//! One struct of handles a stage. Names are `capvec_<what>_<unit>`, with `_total` for counters, in
//! base units. Label values come from closed sets and all start at 0, partitions excepted, whose
//! series go when the partition goes. `docs/metrics.md` lists them for people; a test compares.

mod make;

use prometheus::core::Collector;
use prometheus::{
    Counter, CounterVec, Gauge, GaugeVec, Histogram, HistogramVec, IntCounter, IntCounterVec,
    IntGauge, IntGaugeVec, Registry, TextEncoder,
};

use crate::batch::policy::CutReason;
use crate::clock::since_epoch;
use crate::embed::SplitReason;
use crate::tracked::{Outcome, RejectReason};
use make::{
    buckets, counter, counter_vec, counters, float_gauge, float_gauge_vec, gauge, histogram,
    histogram_vec, info, int_gauge_vec, powers, seconds,
};

/// Stages whose time is measured, in the order of a caption's way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Decoding and tokenizing.
    Tokenize,
    /// Waiting for a free embedder.
    Wait,
    /// The forward pass.
    Embed,
    /// From the end of the forward pass to the broker's acknowledgement, the wait for earlier
    /// captions of the partition included.
    Deliver,
}

impl Stage {
    /// All stages.
    pub const ALL: [Stage; 4] = [Stage::Tokenize, Stage::Wait, Stage::Embed, Stage::Deliver];

    /// Returns the stage as a label.
    pub fn as_label(self) -> &'static str {
        match self {
            Stage::Tokenize => "tokenize",
            Stage::Wait => "wait",
            Stage::Embed => "embed",
            Stage::Deliver => "deliver",
        }
    }
}

/// What a rebalance did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rebalance {
    /// Partitions came.
    Assigned,
    /// Partitions were asked back.
    Revoked,
    /// Partitions were another's before this worker heard of it.
    Lost,
}

impl Rebalance {
    /// All kinds.
    pub const ALL: [Rebalance; 3] = [Rebalance::Assigned, Rebalance::Revoked, Rebalance::Lost];

    /// Returns the kind as a label.
    pub fn as_label(self) -> &'static str {
        match self {
            Rebalance::Assigned => "assigned",
            Rebalance::Revoked => "revoked",
            Rebalance::Lost => "lost",
        }
    }
}

/// The handles of all metrics. Cloning is cheap; clones count together.
#[derive(Clone, Debug)]
pub struct Metrics {
    registry: Registry,
    /// The queues between stages.
    pub queues: QueueMetrics,
    /// The source.
    pub source: SourceMetrics,
    /// Decoding and tokenizing.
    pub tokenize: TokenizeMetrics,
    /// The batcher.
    pub batch: BatchMetrics,
    /// The embedder.
    pub embed: EmbedMetrics,
    /// The sink.
    pub sink: SinkMetrics,
    stage_seconds: HistogramVec,
    model: IntGaugeVec,
    execution_provider: IntGaugeVec,
    device: IntGaugeVec,
}

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

/// Of the source.
#[derive(Clone, Debug)]
pub struct SourceMetrics {
    /// Messages received.
    pub messages: IntCounter,
    /// Bytes of their keys, values and headers.
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
    /// How far the worker is behind.
    pub lag: LagMetrics,
    /// Partitions that this worker owns.
    pub partitions: IntGauge,
    /// Commits, by `result`: ok or failed.
    pub commits: IntCounterVec,
    /// Rebalances, by `event`.
    pub rebalances: IntCounterVec,
    /// Revocations whose drain didn't end in time.
    pub drains_missed: IntCounter,
    /// Errors that the consumer reported and retries by itself.
    pub errors: IntCounter,
    /// Brokers that the consumer is connected to.
    pub brokers_up: IntGauge,
    /// From the broker's timestamp to the acknowledgement.
    pub end_to_end_seconds: Histogram,
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

/// Of decoding and tokenizing.
#[derive(Clone, Debug)]
pub struct TokenizeMetrics {
    /// Captions tokenized.
    pub captions: IntCounter,
    /// Tokens of them, after cutting.
    pub tokens: IntCounter,
    /// Captions that were cut.
    pub truncated: IntCounter,
}

/// Of the batcher.
#[derive(Clone, Debug)]
pub struct BatchMetrics {
    /// Captions that wait for a batch.
    pub pending: IntGauge,
    /// Captions of a batch.
    pub captions: Histogram,
    /// Tokens of a batch.
    pub tokens: Histogram,
    /// Most tokens of a batch.
    pub tokens_limit: IntGauge,
    /// Predicted seconds of a pass without tokens.
    pub fixed_seconds: Gauge,
    /// Predicted seconds of each token of a pass.
    pub token_seconds: Gauge,
    /// Mean error of the predictions, as a part of the time.
    pub prediction_error: Gauge,
    /// Batches, by `reason` of the cut.
    pub cut: IntCounterVec,
}

/// Of the embedder.
#[derive(Clone, Debug)]
pub struct EmbedMetrics {
    /// Captions embedded.
    pub captions: IntCounter,
    /// Their tokens.
    pub tokens: IntCounter,
    /// Time spent in forward passes.
    pub busy_seconds: Counter,
    /// Batches that failed and were split, by `reason`.
    pub splits: IntCounterVec,
    /// Captions whose pass was done later than the latency objective says.
    pub objective_missed: IntCounter,
    device_busy_seconds: CounterVec,
    /// Nodes of the graph that run on the CPU though the network is on a GPU.
    pub nodes_on_cpu: IntGauge,
    /// Embedders: passes that may be under way at a time.
    pub embedders: IntGauge,
    /// Time that loading the model took.
    pub load_seconds: Gauge,
}

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
    /// Transactions, by `result`: committed or aborted.
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

impl EmbedMetrics {
    /// Returns the seconds for which a device had a pass under way.
    pub fn device_busy_seconds(&self, device: &str) -> Counter {
        self.device_busy_seconds.with_label_values(&[device])
    }

    /// Returns the same of all devices, on average.
    pub fn mean_busy_seconds(&self) -> f64 {
        let families = self.device_busy_seconds.collect();
        let devices = families.iter().flat_map(|family| family.get_metric());
        let seconds: Vec<f64> = devices.map(|device| device.get_counter().get_value()).collect();
        seconds.iter().sum::<f64>() / seconds.len().max(1) as f64
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Metrics::new()
    }
}

impl Metrics {
    /// Registers all metrics in a registry of their own.
    ///
    /// # Panics
    ///
    /// When two have one name, which a test finds.
    pub fn new() -> Metrics {
        let r = Registry::new();
        let stage_seconds = histogram_vec(
            &r,
            "stage_seconds",
            "Seconds of a caption in a stage",
            "stage",
            Stage::ALL.map(Stage::as_label),
            // From the tokenizer's microseconds to a batch of a slow CPU or a wait for a broker.
            buckets(10e-6, 60.0),
        );
        info(&r, "build_info", "Always 1; the build is in the labels", &["version"])
            .with_label_values(&[env!("CARGO_PKG_VERSION")])
            .set(1);
        float_gauge(&r, "start_time_seconds", "When the worker started, in seconds since 1970")
            .set(since_epoch().as_secs_f64());
        let model = info(
            &r,
            "model_info",
            "Always 1; the model is in the labels",
            &["model", "dim", "precision"],
        );
        let execution_provider = info(
            &r,
            "execution_provider_info",
            "Always 1; what the configuration asks to run the network, and what runs it",
            &["wanted", "running"],
        );
        let device = info(
            &r,
            "embed_device_info",
            "Always 1; a device that the network runs on, and what runs it there",
            &["device", "provider"],
        );
        // 0 until a broker has answered: an alert that waits for minutes begins to wait at the start.
        let brokers_up =
            int_gauge_vec(&r, "brokers_up", "Brokers that a client is connected to", "client");
        Metrics {
            queues: QueueMetrics {
                length: int_gauge_vec(&r, "queue_length", "Entries in a queue", "queue"),
                limit: int_gauge_vec(&r, "queue_limit", "Entries that a queue can hold", "queue"),
                blocked_seconds: counter_vec(
                    &r,
                    "queue_blocked_seconds_total",
                    "Seconds that senders waited for room in a queue",
                    "queue",
                ),
            },
            source: SourceMetrics {
                messages: counter(&r, "messages_consumed_total", "Messages received"),
                bytes: counter(
                    &r,
                    "consumed_bytes_total",
                    "Bytes of keys, values and headers received",
                ),
                settled: counters(
                    &r,
                    "messages_settled_total",
                    "Messages settled",
                    "outcome",
                    Outcome::ALL.map(Outcome::as_label),
                ),
                in_flight: gauge(&r, "in_flight_messages", "Messages in the worker"),
                in_flight_limit: gauge(
                    &r,
                    "in_flight_messages_limit",
                    "Messages in the worker at which fetching pauses",
                ),
                in_flight_bytes: gauge(&r, "in_flight_bytes", "Bytes of messages in the worker"),
                in_flight_bytes_limit: gauge(
                    &r,
                    "in_flight_bytes_limit",
                    "Bytes of messages in the worker at which fetching pauses",
                ),
                paused_seconds: seconds(
                    &r,
                    "source_paused_seconds_total",
                    "Seconds for which fetching was paused because an in-flight limit was reached",
                ),
                paused: gauge(&r, "source_paused", "1 while fetching is paused"),
                oldest_unsettled_seconds: float_gauge(
                    &r,
                    "oldest_unsettled_seconds",
                    "Age of the oldest message in the worker, in seconds",
                ),
                lag: LagMetrics {
                    messages: gauge(
                        &r,
                        "lag_messages",
                        "Messages that aren't settled, in this worker and in its partitions",
                    ),
                    seconds: float_gauge(
                        &r,
                        "lag_seconds",
                        "Age of the oldest message that isn't settled, by its timestamp",
                    ),
                    partition_messages: int_gauge_vec(
                        &r,
                        "consumer_lag_messages",
                        "Messages between the last settled one and the end of the partition",
                        "partition",
                    ),
                    partition_seconds: float_gauge_vec(
                        &r,
                        "consumer_lag_seconds",
                        "Age of the partition's oldest message that isn't settled",
                        "partition",
                    ),
                },
                partitions: gauge(&r, "assigned_partitions", "Partitions that this worker owns"),
                commits: counters(
                    &r,
                    "commits_total",
                    "Offset commits",
                    "result",
                    ["ok", "failed"],
                ),
                rebalances: counters(
                    &r,
                    "rebalances_total",
                    "Rebalances of the group that changed this worker's partitions",
                    "event",
                    Rebalance::ALL.map(Rebalance::as_label),
                ),
                drains_missed: counter(
                    &r,
                    "drains_missed_total",
                    "Revocations whose drain didn't end in time; what was left is delivered again",
                ),
                errors: counter(
                    &r,
                    "consumer_errors_total",
                    "Errors that the consumer reported and retries by itself",
                ),
                brokers_up: brokers_up.with_label_values(&["consumer"]),
                end_to_end_seconds: histogram(
                    &r,
                    "end_to_end_seconds",
                    "Seconds from a caption's broker timestamp to its vector's acknowledgement",
                    // From a forward pass at no load to the hours of a backlog.
                    buckets(1e-3, 36_000.0),
                ),
            },
            tokenize: TokenizeMetrics {
                captions: counter(&r, "captions_tokenized_total", "Captions tokenized"),
                tokens: counter(&r, "tokens_total", "Tokens of the captions, after cutting"),
                truncated: counter(
                    &r,
                    "captions_truncated_total",
                    "Captions cut to the model's longest",
                ),
            },
            batch: BatchMetrics {
                pending: gauge(&r, "batch_pending_captions", "Captions that wait for a batch"),
                captions: histogram(&r, "batch_captions", "Captions of a batch", powers(13)),
                tokens: histogram(&r, "batch_tokens", "Tokens of a batch", powers(17)),
                tokens_limit: gauge(&r, "batch_tokens_limit", "Most tokens of a batch"),
                fixed_seconds: float_gauge(
                    &r,
                    "forward_fixed_seconds",
                    "Predicted seconds of a forward pass that don't depend on its tokens",
                ),
                token_seconds: float_gauge(
                    &r,
                    "forward_token_seconds",
                    "Predicted seconds of each token of a forward pass",
                ),
                prediction_error: float_gauge(
                    &r,
                    "forward_prediction_error_ratio",
                    "Mean error of the predicted time of a forward pass, as a part of the time",
                ),
                cut: counters(
                    &r,
                    "batches_total",
                    "Batches, by why they were cut",
                    "reason",
                    CutReason::ALL.map(CutReason::as_label),
                ),
            },
            embed: EmbedMetrics {
                captions: counter(&r, "captions_embedded_total", "Captions embedded"),
                tokens: counter(&r, "tokens_embedded_total", "Tokens of the captions embedded"),
                busy_seconds: seconds(
                    &r,
                    "embed_busy_seconds_total",
                    "Seconds spent in forward passes, of all embedders together",
                ),
                device_busy_seconds: counter_vec(
                    &r,
                    "embed_device_busy_seconds_total",
                    "Seconds for which a device had a forward pass under way; its rate is the duty cycle",
                    "device",
                ),
                nodes_on_cpu: gauge(
                    &r,
                    "embed_nodes_on_cpu",
                    "Nodes of the graph that run on the CPU though the network is on a GPU",
                ),
                splits: counters(
                    &r,
                    "batch_splits_total",
                    "Batches that failed and were split",
                    "reason",
                    SplitReason::ALL.map(SplitReason::as_label),
                ),
                objective_missed: counter(
                    &r,
                    "latency_objective_missed_total",
                    "Captions embedded later after they were received than batch.latency_objective",
                ),
                embedders: gauge(&r, "embedders", "Forward passes that may run at a time"),
                load_seconds: float_gauge(&r, "model_load_seconds", "Seconds that loading took"),
            },
            sink: SinkMetrics {
                rejected: counters(
                    &r,
                    "captions_rejected_total",
                    "Messages that can't become vectors",
                    "reason",
                    RejectReason::ALL.map(RejectReason::as_label),
                ),
                abandoned: counter(
                    &r,
                    "captions_abandoned_total",
                    "Messages left to their partition's next owner, at a stop or in a rebalance",
                ),
                outstanding: gauge(
                    &r,
                    "outstanding_records",
                    "Records that wait for their acknowledgement",
                ),
                held_back: gauge(
                    &r,
                    "held_back_vectors",
                    "Vectors that wait for earlier ones of their partition",
                ),
                queue_full: counter(
                    &r,
                    "producer_queue_full_total",
                    "Times that the producer's queue was full",
                ),
                retries: counter(
                    &r,
                    "producer_retries_total",
                    "Requests that the producer sent again after a connection failed",
                ),
                bytes: counter(&r, "produced_bytes_total", "Bytes of the values produced"),
                rejected_run: gauge(
                    &r,
                    "rejected_run_messages",
                    "Messages rejected in a row, which reject.breaker_run bounds",
                ),
                rejected_share: float_gauge(
                    &r,
                    "rejected_share_ratio",
                    "Part of the last reject.breaker_window messages that was rejected",
                ),
                transactions: counters(
                    &r,
                    "transactions_total",
                    "Transactions of exactly-once delivery",
                    "result",
                    ["committed", "aborted"],
                ),
                transaction_seconds: histogram(
                    &r,
                    "transaction_commit_seconds",
                    "Seconds that committing a transaction took, the wait for its records included",
                    // From a round trip to the outage that delivery_timeout allows.
                    buckets(1e-3, 600.0),
                ),
                transaction_captions: gauge(
                    &r,
                    "transaction_messages",
                    "Messages in the open transaction, settled when it is committed",
                ),
                producers_remade: counter(
                    &r,
                    "producers_remade_total",
                    "Producers made anew after an error that ended them",
                ),
                brokers_up: brokers_up.with_label_values(&["producer"]),
            },
            stage_seconds,
            model,
            execution_provider,
            device,
            registry: r,
        }
    }

    /// Returns the histogram of a stage's seconds.
    pub fn stage(&self, stage: Stage) -> Histogram {
        self.stage_seconds.with_label_values(&[stage.as_label()])
    }

    /// Says which model runs.
    pub fn set_model(&self, model_id: &str, dim: usize, precision: &str) {
        self.model.with_label_values(&[model_id, &dim.to_string(), precision]).set(1);
    }

    /// Says which execution provider of ONNX Runtime is to run the network, and which one does.
    pub fn set_execution_provider(&self, wanted: &str, running: &str) {
        self.execution_provider.with_label_values(&[wanted, running]).set(1);
    }

    /// Says on which device the network runs, and what runs it there; several devices are told one by
    /// one.
    pub fn set_device(&self, device: &str, provider: &str) {
        self.device.with_label_values(&[device, provider]).set(1);
    }

    /// Returns all metrics in Prometheus's text format.
    pub fn render(&self) -> String {
        TextEncoder::new()
            .encode_to_string(&self.registry.gather())
            .expect("names and labels are valid, which registering has checked")
    }

    /// Returns the name and the help text of every metric that has a series.
    pub fn names(&self) -> Vec<(String, String)> {
        let families = self.registry.gather();
        families.iter().map(|f| (f.name().to_owned(), f.help().to_owned())).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_label_starts_at_zero() {
        let text = Metrics::new().render();
        for line in [
            "capvec_captions_rejected_total{reason=\"not_json\"} 0",
            "capvec_batches_total{reason=\"full\"} 0",
            "capvec_commits_total{result=\"failed\"} 0",
            "capvec_rebalances_total{event=\"lost\"} 0",
            "capvec_messages_settled_total{outcome=\"rejected\"} 0",
            "capvec_stage_seconds_count{stage=\"embed\"} 0",
            "capvec_batch_splits_total{reason=\"out_of_memory\"} 0",
            "capvec_brokers_up{client=\"consumer\"} 0",
            "capvec_brokers_up{client=\"producer\"} 0",
        ] {
            assert!(text.lines().any(|l| l == line), "{line}\n{text}");
        }
    }
}

//! Every metric: names, units, labels, buckets.
//!
//! One struct of handles a stage, each in a file under `src/metrics/` in which a metric's name and
//! help text stand beside what it is. Names are `capvec_<what>_<unit>`, with `_total` for counters,
//! in base units. Label values come from closed sets and all start at 0, with two exceptions:
//! series of partitions come and go with them, and those of the model, its devices and the queues,
//! whose labels say what there is, come when the worker has loaded the model. `docs/metrics.md`
//! lists the metrics for people; a test compares.

mod batch;
mod embed;
mod make;
mod queues;
mod sink;
mod source;
mod tokenize;

use prometheus::{Histogram, HistogramVec, IntGaugeVec, Registry, TextEncoder};

use crate::clock::since_epoch;
use crate::label::labels;
use make::{buckets, float_gauge, histogram_vec, info, int_gauge_vec};

pub use batch::BatchMetrics;
pub use embed::EmbedMetrics;
pub use queues::QueueMetrics;
pub use sink::SinkMetrics;
pub use source::{LagMetrics, SourceMetrics};
pub use tokenize::TokenizeMetrics;

/// Stages whose time is measured, in the order of a caption's way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// From when it was received: waiting for a tokenizer, decoding, tokenizing.
    Tokenize,
    /// Waiting for a free embedder.
    Wait,
    /// The forward pass.
    Embed,
    /// From the end of the forward pass to the broker's acknowledgement, the wait for earlier
    /// captions of the partition included.
    Deliver,
}

labels!(Stage {
    Tokenize => "tokenize",
    Wait => "wait",
    Embed => "embed",
    Deliver => "deliver",
});

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

labels!(Rebalance {
    Assigned => "assigned",
    Revoked => "revoked",
    Lost => "lost",
});

/// What became of a commit of offsets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CommitResult {
    /// The brokers have the offsets.
    Ok,
    /// They may not have them; the commit is made again.
    Failed,
}

labels!(CommitResult {
    Ok => "ok",
    Failed => "failed",
});

/// How a transaction ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TransactionEnd {
    /// Its records count, and its offsets.
    Committed,
    /// Nothing of it counts; what it held is sent again.
    Aborted,
}

labels!(TransactionEnd {
    Committed => "committed",
    Aborted => "aborted",
});

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
            // From the tokenizer's microseconds to brokers that are away for minutes.
            buckets(10e-6, 1_000.0),
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
        // 0 until a broker has answered: an alert that waits for minutes begins to wait at the
        // start.
        let brokers_up =
            int_gauge_vec(&r, "brokers_up", "Brokers that a client is connected to", "client");
        Metrics {
            queues: QueueMetrics::register(&r),
            source: SourceMetrics::register(&r, brokers_up.with_label_values(&["consumer"])),
            tokenize: TokenizeMetrics::register(&r),
            batch: BatchMetrics::register(&r),
            embed: EmbedMetrics::register(&r),
            sink: SinkMetrics::register(&r, brokers_up.with_label_values(&["producer"])),
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

    /// Says on which device the network runs, and what runs it there; several devices are told one
    /// by one.
    pub fn set_device(&self, device: &str, provider: &str) {
        self.device.with_label_values(&[device, provider]).set(1);
    }

    /// Returns all metrics in Prometheus's text format.
    pub fn render(&self) -> String {
        self.embed.count_passes();
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
            "capvec_transactions_total{result=\"aborted\"} 0",
            "capvec_messages_settled_total{outcome=\"rejected\"} 0",
            "capvec_stage_seconds_count{stage=\"embed\"} 0",
            "capvec_stage_seconds_bucket{stage=\"deliver\",le=\"1000\"} 0",
            "capvec_batch_splits_total{reason=\"out_of_memory\"} 0",
            "capvec_brokers_up{client=\"consumer\"} 0",
            "capvec_brokers_up{client=\"producer\"} 0",
        ] {
            assert!(text.lines().any(|l| l == line), "{line}\n{text}");
        }
    }
}

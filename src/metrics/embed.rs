//! Metrics of the embedders and their devices.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use prometheus::core::Collector;
use prometheus::{Counter, CounterVec, Gauge, IntCounter, IntCounterVec, IntGauge, Registry};

use super::make::{counter, counter_vec, counters, float_gauge, gauge, seconds};
use crate::embed::SplitReason;
use crate::embed::duty::DutyClock;
use crate::lock::lock;

/// Of the embedder.
#[derive(Clone, Debug)]
pub struct EmbedMetrics {
    /// Captions embedded.
    pub captions: IntCounter,
    /// Their tokens.
    pub tokens: IntCounter,
    /// Batches that failed and were split, by `reason`.
    pub splits: IntCounterVec,
    /// Captions whose pass was done later than the latency objective says.
    pub objective_missed: IntCounter,
    busy_seconds: Counter,
    device_busy_seconds: CounterVec,
    /// They count both, each of one device.
    clocks: Arc<Mutex<BTreeMap<String, DutyClock>>>,
    /// Nodes of the graph that run on the CPU though the network is on a GPU.
    pub nodes_on_cpu: IntGauge,
    /// Embedders: passes that may be under way at a time.
    pub embedders: IntGauge,
    /// Time that loading the model took.
    pub load_seconds: Gauge,
}

impl EmbedMetrics {
    pub(super) fn register(r: &Registry) -> EmbedMetrics {
        EmbedMetrics {
            captions: counter(r, "captions_embedded_total", "Captions embedded"),
            tokens: counter(r, "tokens_embedded_total", "Tokens of the captions embedded"),
            busy_seconds: seconds(
                r,
                "embed_busy_seconds_total",
                "Seconds spent in forward passes, of all embedders together",
            ),
            device_busy_seconds: counter_vec(
                r,
                "embed_device_busy_seconds_total",
                "Seconds for which a device had a forward pass under way; its rate is the duty cycle",
                "device",
            ),
            clocks: Arc::default(),
            nodes_on_cpu: gauge(
                r,
                "embed_nodes_on_cpu",
                "Nodes of the graph that run on the CPU though the network is on a GPU",
            ),
            splits: counters(
                r,
                "batch_splits_total",
                "Batches that failed and were split",
                "reason",
                SplitReason::ALL.map(SplitReason::as_label),
            ),
            objective_missed: counter(
                r,
                "latency_objective_missed_total",
                "Captions embedded later after they were received than batch.latency_objective",
            ),
            embedders: gauge(r, "embedders", "Forward passes that may run at a time"),
            load_seconds: float_gauge(r, "model_load_seconds", "Seconds that loading took"),
        }
    }

    /// Returns the clock of a device, which all of its embedders share.
    pub fn clock_of(&self, device: &str) -> DutyClock {
        let of_device = || self.device_busy_seconds.with_label_values(&[device]);
        let mut clocks = lock(&self.clocks);
        let clock = clocks
            .entry(device.to_owned())
            .or_insert_with(|| DutyClock::new(of_device(), self.busy_seconds.clone()));
        clock.clone()
    }

    /// Counts what has gone by of passes that are under way: who looks wants to know of them too.
    pub fn count_passes(&self) {
        lock(&self.clocks).values().for_each(DutyClock::count);
    }

    /// Returns the seconds spent in forward passes, of all embedders together.
    pub fn busy_seconds(&self) -> f64 {
        self.count_passes();
        self.busy_seconds.get()
    }

    /// Returns the seconds for which a device had a pass under way, on average of all devices.
    pub fn mean_busy_seconds(&self) -> f64 {
        self.count_passes();
        let families = self.device_busy_seconds.collect();
        let devices = families.iter().flat_map(|family| family.get_metric());
        let seconds: Vec<f64> = devices.map(|device| device.get_counter().get_value()).collect();
        seconds.iter().sum::<f64>() / seconds.len().max(1) as f64
    }
}

//! How metrics are made: each function registers one kind, under the prefix `capvec_`.
//!
//! A name or a label that Prometheus wouldn't take, or a name that is there twice, panics. Nothing
//! of that depends on how the worker runs, so a test that makes all metrics finds it.

use prometheus::core::Collector;
use prometheus::{
    Counter, CounterVec, Gauge, GaugeVec, Histogram, HistogramOpts, HistogramVec, IntCounter,
    IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
};

/// A gauge that is 1 for the label values that hold; the values say something, the number doesn't.
pub(super) fn info(r: &Registry, name: &str, help: &str, labels: &[&str]) -> IntGaugeVec {
    register(r, IntGaugeVec::new(opts(name, help), labels))
}

fn opts(name: &str, help: &str) -> Opts {
    Opts::new(name, help).namespace("capvec")
}

fn register<C: Collector + Clone + 'static>(
    registry: &Registry,
    metric: Result<C, prometheus::Error>,
) -> C {
    let metric = metric.expect("the name and the labels are valid");
    registry.register(Box::new(metric.clone())).expect("no other metric has the name");
    metric
}

pub(super) fn counter(r: &Registry, name: &str, help: &str) -> IntCounter {
    register(r, IntCounter::with_opts(opts(name, help)))
}

pub(super) fn seconds(r: &Registry, name: &str, help: &str) -> Counter {
    register(r, Counter::with_opts(opts(name, help)))
}

pub(super) fn gauge(r: &Registry, name: &str, help: &str) -> IntGauge {
    register(r, IntGauge::with_opts(opts(name, help)))
}

pub(super) fn float_gauge(r: &Registry, name: &str, help: &str) -> Gauge {
    register(r, Gauge::with_opts(opts(name, help)))
}

pub(super) fn int_gauge_vec(r: &Registry, name: &str, help: &str, label: &str) -> IntGaugeVec {
    register(r, IntGaugeVec::new(opts(name, help), &[label]))
}

pub(super) fn float_gauge_vec(r: &Registry, name: &str, help: &str, label: &str) -> GaugeVec {
    register(r, GaugeVec::new(opts(name, help), &[label]))
}

pub(super) fn counter_vec(r: &Registry, name: &str, help: &str, label: &str) -> CounterVec {
    register(r, CounterVec::new(opts(name, help), &[label]))
}

/// Counters of which every label value is there from the beginning, at 0.
pub(super) fn counters<const N: usize>(
    r: &Registry,
    name: &str,
    help: &str,
    label: &str,
    values: [&str; N],
) -> IntCounterVec {
    let vec = register(r, IntCounterVec::new(opts(name, help), &[label]));
    for value in values {
        vec.with_label_values(&[value]);
    }
    vec
}

pub(super) fn histogram(r: &Registry, name: &str, help: &str, buckets: Vec<f64>) -> Histogram {
    let opts = HistogramOpts::new(name, help).namespace("capvec").buckets(buckets);
    register(r, Histogram::with_opts(opts))
}

pub(super) fn histogram_vec<const N: usize>(
    r: &Registry,
    name: &str,
    help: &str,
    label: &str,
    values: [&str; N],
    buckets: Vec<f64>,
) -> HistogramVec {
    let opts = HistogramOpts::new(name, help).namespace("capvec").buckets(buckets);
    let vec = register(r, HistogramVec::new(opts, &[label]));
    for value in values {
        vec.with_label_values(&[value]);
    }
    vec
}

/// Steps of 1, 2, 5 from `first` to `last`: a quantile is known within a factor of 2.5 at every
/// scale, at three series a decade.
pub(super) fn buckets(first: f64, last: f64) -> Vec<f64> {
    let mut bounds = Vec::new();
    let mut decade = first;
    while decade <= last {
        bounds.extend([1.0, 2.0, 5.0].map(|step| decade * step).into_iter().filter(|b| *b <= last));
        decade *= 10.0;
    }
    bounds
}

/// 1, 2, 4, and so on.
pub(super) fn powers(number: u32) -> Vec<f64> {
    (0..number).map(|power| f64::from(1u32 << power)).collect()
}

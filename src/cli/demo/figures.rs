//! The demo in numbers: what has been counted at a moment, and what happened between two.

use std::time::Instant;

use super::broker::{Feed, settled};
use super::reader::{Histogram, Tally};
use crate::batch::policy::CutReason;
use crate::cli::reading::Reading;
use crate::metrics::Metrics;

/// Smaller shares are not listed.
const SHARE_MIN: f64 = 0.005;

/// Everything that has been counted until a moment.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// The moment.
    pub at: Instant,
    /// Messages produced.
    pub produced: u64,
    /// Of them, those that the worker has settled.
    pub settled: u64,
    /// Of them, those that are in the worker.
    pub in_flight: u64,
    /// Vectors that the reader has.
    pub vectors: u64,
    /// Tombstones that the reader has.
    pub tombstones: u64,
    /// Dead letters that the reader has, by reason.
    pub rejected: Vec<(String, u64)>,
    /// From producing to reading.
    pub latencies: Histogram,
    /// Most tokens of a batch; 0 before it is known.
    pub batch_tokens_limit: u64,
    /// Whether the producer waits for the worker.
    pub held_back: bool,
    batches: u64,
    batch_captions: f64,
    batch_tokens: f64,
    cut: [u64; CutReason::ALL.len()],
    embedders: i64,
    busy_seconds: f64,
}

/// What happened between two moments.
#[derive(Clone, Debug)]
pub struct DemoFigures {
    /// The time between them.
    pub seconds: f64,
    /// Vectors read a second.
    pub vectors_per_second: f64,
    /// Within this time every second caption was through, in milliseconds.
    pub p50_ms: Option<f64>,
    /// Within this time all but one of a hundred were.
    pub p99_ms: Option<f64>,
    /// Batches cut.
    pub batches: u64,
    /// Captions of a batch, on average.
    pub batch_captions: f64,
    /// Tokens of a batch, on average.
    pub batch_tokens: f64,
    /// Why batches were cut, as shares of 1, in the order of the policy; not those below half a
    /// percent.
    pub cut: Vec<(&'static str, f64)>,
    /// The share of the time that the embedders were at work.
    pub busy: f64,
}

impl Snapshot {
    /// Counts everything now.
    pub fn take(feed: &Feed, reader: &Reading<Tally>, metrics: &Metrics) -> Snapshot {
        let tally = reader.tally();
        let batch = &metrics.batch;
        Snapshot {
            at: Instant::now(),
            settled: settled(&metrics.source),
            produced: feed.produced(),
            in_flight: metrics.source.in_flight.get().max(0) as u64,
            vectors: tally.vectors,
            tombstones: tally.tombstones,
            rejected: tally.rejected.iter().map(|(reason, n)| (reason.clone(), *n)).collect(),
            latencies: tally.latencies.clone(),
            batch_tokens_limit: batch.tokens_limit.get().max(0) as u64,
            held_back: feed.held_back(),
            batches: batch.captions.get_sample_count(),
            batch_captions: batch.captions.get_sample_sum(),
            batch_tokens: batch.tokens.get_sample_sum(),
            cut: CutReason::ALL.map(|why| batch.cut.with_label_values(&[why.as_label()]).get()),
            embedders: metrics.embed.embedders.get(),
            busy_seconds: metrics.embed.busy_seconds(),
        }
    }

    /// Returns what happened since `earlier`.
    pub fn since(&self, earlier: &Snapshot) -> DemoFigures {
        let seconds = (self.at - earlier.at).as_secs_f64();
        let latencies = self.latencies.since(&earlier.latencies);
        let batches = self.batches - earlier.batches;
        let embedder_seconds = seconds * self.embedders as f64;
        let cut = CutReason::ALL.iter().zip(self.cut.iter().zip(earlier.cut));
        DemoFigures {
            seconds,
            vectors_per_second: ratio((self.vectors - earlier.vectors) as f64, seconds),
            p50_ms: latencies.quantile(0.5),
            p99_ms: latencies.quantile(0.99),
            batches,
            batch_captions: ratio(self.batch_captions - earlier.batch_captions, batches as f64),
            batch_tokens: ratio(self.batch_tokens - earlier.batch_tokens, batches as f64),
            cut: cut
                .map(|(why, (now, then))| {
                    (why.as_label(), ratio((now - then) as f64, batches as f64))
                })
                .filter(|(_, share)| *share >= SHARE_MIN)
                .collect(),
            // Passes go on while a snapshot is taken.
            busy: ratio(self.busy_seconds - earlier.busy_seconds, embedder_seconds).min(1.0),
        }
    }
}

fn ratio(part: f64, whole: f64) -> f64 {
    if whole > 0.0 { part / whole } else { 0.0 }
}

/// Returns a time as people read it.
pub fn show_ms(milliseconds: Option<f64>) -> String {
    match milliseconds {
        None => "–".into(),
        Some(ms) if ms < 1_000.0 => format!("{ms:.0} ms"),
        Some(ms) if ms < 10_000.0 => format!("{:.1} s", ms / 1e3),
        Some(ms) => format!("{:.0} s", ms / 1e3),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn embedders_that_are_busy_for_half_the_time_are_half_busy_however_many() {
        let then = Snapshot {
            at: Instant::now(),
            produced: 0,
            settled: 0,
            in_flight: 0,
            vectors: 0,
            tombstones: 0,
            rejected: Vec::new(),
            latencies: Histogram::default(),
            batch_tokens_limit: 0,
            held_back: false,
            batches: 0,
            batch_captions: 0.0,
            batch_tokens: 0.0,
            cut: Default::default(),
            embedders: 2,
            busy_seconds: 3.0,
        };
        let at = then.at + Duration::from_secs(1);
        let now = Snapshot { at, busy_seconds: 4.0, ..then.clone() };
        assert_eq!(now.since(&then).busy, 0.5);
    }

    #[test]
    fn times_have_the_unit_that_fits() {
        assert_eq!(show_ms(None), "–");
        assert_eq!(show_ms(Some(8.4)), "8 ms");
        assert_eq!(show_ms(Some(1_230.0)), "1.2 s");
        assert_eq!(show_ms(Some(12_300.0)), "12 s");
    }
}

//! When captions are due under an open load: Poisson arrivals, fixed before the first is sent.
//!
//! The schedule doesn't know how the worker does. A slow answer delays no later caption, so it
//! counts in the latency of every caption that had to wait for it.

use std::time::Duration;

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, Exp};

/// A span of time with one rate of arrivals.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Span {
    /// How long it is.
    pub length: Duration,
    /// Arrivals a second, on average; 0 for silence.
    pub rate: f64,
}

/// A burst and the silence after it.
const BURST_PERIOD: Duration = Duration::from_secs(3);

/// A burst is this part of its period, and has so many times the mean rate.
const BURST_FACTOR: u32 = 3;

/// Returns a load of one rate.
pub fn steady(rate: f64, length: Duration) -> Vec<Span> {
    vec![Span { length, rate }]
}

/// Returns a load of `mean` arrivals a second that come in bursts: three times as many for a
/// second, then silence for two.
pub fn bursts(mean: f64, length: Duration) -> Vec<Span> {
    let mut spans = Vec::new();
    let mut left = length;
    while !left.is_zero() {
        // The last period may be shorter; its mean is the same.
        let period = left.min(BURST_PERIOD);
        let on = period / BURST_FACTOR;
        spans.push(Span { length: on, rate: f64::from(BURST_FACTOR) * mean });
        spans.push(Span { length: period - on, rate: 0.0 });
        left -= period;
    }
    spans
}

/// Returns a load that changes its rate half-way.
pub fn step(before: f64, after: f64, length: Duration) -> Vec<Span> {
    vec![Span { length: length / 2, rate: before }, Span { length: length / 2, rate: after }]
}

/// Returns when captions are due, from the beginning of the first span; with the same seed always
/// the same.
pub fn schedule(spans: &[Span], seed: u64) -> Vec<Duration> {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let mut due = Vec::new();
    let mut begin = Duration::ZERO;
    for span in spans {
        let end = begin + span.length;
        // Arrivals know nothing of those before, so each span may begin anew.
        if let Ok(gap) = Exp::new(span.rate)
            && span.rate > 0.0
        {
            let mut at = begin.as_secs_f64() + gap.sample(&mut random);
            while at < end.as_secs_f64() {
                due.push(Duration::from_secs_f64(at));
                at += gap.sample(&mut random);
            }
        }
        begin = end;
    }
    due
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn gaps_have_the_mean_and_the_spread_of_a_poisson_process() {
        let due = schedule(&steady(200.0, 500 * SECOND), 1);
        assert!((due.len() as f64 - 100_000.0).abs() < 1_500.0, "{}", due.len());
        assert!(due.is_sorted());
        let gaps: Vec<f64> = due.windows(2).map(|w| (w[1] - w[0]).as_secs_f64()).collect();
        let mean = gaps.iter().sum::<f64>() / gaps.len() as f64;
        let variance = gaps.iter().map(|gap| (gap - mean).powi(2)).sum::<f64>() / gaps.len() as f64;
        // The standard deviation of an exponential distribution is its mean.
        assert!((variance.sqrt() / mean - 1.0).abs() < 0.02, "{mean} {variance}");
    }

    #[test]
    fn a_seed_is_a_schedule() {
        let spans = steady(50.0, 10 * SECOND);
        assert_eq!(schedule(&spans, 7), schedule(&spans, 7));
        assert_ne!(schedule(&spans, 7), schedule(&spans, 8));
    }

    #[test]
    fn bursts_keep_the_mean_rate_and_are_silent_between() {
        let due = schedule(&bursts(100.0, 300 * SECOND), 3);
        assert!((due.len() as f64 - 30_000.0).abs() < 900.0, "{}", due.len());
        assert!(due.iter().all(|at| at.as_secs_f64() % 3.0 < 1.0));
        let short = schedule(&bursts(1_000.0, 2 * SECOND), 3);
        assert!((short.len() as f64 - 2_000.0).abs() < 250.0, "{}", short.len());
    }

    #[test]
    fn a_step_changes_the_rate_half_way() {
        let due = schedule(&step(30.0, 90.0, 200 * SECOND), 5);
        let before = due.iter().filter(|at| **at < 100 * SECOND).count() as f64;
        let after = due.len() as f64 - before;
        assert!((before / 3_000.0 - 1.0).abs() < 0.1 && (after / 9_000.0 - 1.0).abs() < 0.1);
    }

    #[test]
    fn no_load_is_no_caption() {
        assert_eq!(schedule(&steady(0.0, SECOND), 1), []);
    }
}

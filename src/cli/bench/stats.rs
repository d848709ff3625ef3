//! What is shown of latencies.

use serde::Serialize;

use crate::stats::Sorted;

/// How long captions took, in milliseconds; nothing where there were none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Latencies {
    /// Number of captions.
    pub captions: usize,
    /// Every second caption took no longer.
    pub p50_ms: Option<f64>,
    /// Nine of ten took no longer.
    pub p90_ms: Option<f64>,
    /// All but one of a hundred took no longer.
    pub p99_ms: Option<f64>,
    /// The longest.
    pub max_ms: Option<f64>,
}

impl Latencies {
    /// Returns the quantiles of some latencies in milliseconds.
    pub fn of(milliseconds: impl IntoIterator<Item = f64>) -> Latencies {
        let sorted = Sorted::of(milliseconds);
        Latencies {
            captions: sorted.count(),
            p50_ms: sorted.quantile(0.5),
            p90_ms: sorted.quantile(0.9),
            p99_ms: sorted.quantile(0.99),
            max_ms: sorted.quantile(1.0),
        }
    }

    /// Returns the median of each quantile over runs, and the longest of all.
    pub fn median_of(runs: &[Latencies]) -> Latencies {
        let median =
            |of: fn(&Latencies) -> Option<f64>| Sorted::of(runs.iter().filter_map(of)).median();
        Latencies {
            captions: runs.iter().map(|run| run.captions).sum(),
            p50_ms: median(|run| run.p50_ms),
            p90_ms: median(|run| run.p90_ms),
            p99_ms: median(|run| run.p99_ms),
            max_ms: runs.iter().filter_map(|run| run.max_ms).reduce(f64::max),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_values_that_were_measured() {
        let latencies = Latencies::of((1..=1000).rev().map(f64::from));
        assert_eq!(latencies.captions, 1000);
        assert_eq!(latencies.p50_ms, Some(500.0));
        assert_eq!(latencies.p90_ms, Some(900.0));
        assert_eq!(latencies.p99_ms, Some(990.0));
        assert_eq!(latencies.max_ms, Some(1000.0));
        assert_eq!(Latencies::of([7.0]).p99_ms, Some(7.0));
        assert_eq!(Latencies::of([]), Latencies::default());
    }

    #[test]
    fn runs_are_summed_up_by_their_medians_and_their_maximum() {
        let runs = [Latencies::of([1.0]), Latencies::of([9.0]), Latencies::of([2.0])];
        let all = Latencies::median_of(&runs);
        assert_eq!((all.captions, all.p50_ms, all.max_ms), (3, Some(2.0), Some(9.0)));
        assert_eq!(Latencies::median_of(&[]), Latencies::default());
    }
}

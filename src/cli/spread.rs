//! What is shown of a quantity that was measured several times.

use serde::Serialize;

use crate::stats::Sorted;

/// One quantity, measured several times.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Spread {
    /// The median.
    pub median: f64,
    /// The least.
    pub min: f64,
    /// The largest.
    pub max: f64,
}

impl Spread {
    /// Returns the spread of some measurements.
    ///
    /// # Panics
    ///
    /// When there are none: every caller measures at least once.
    pub fn of(values: impl IntoIterator<Item = f64>) -> Spread {
        let sorted = Sorted::of(values);
        let measured = "something was measured";
        Spread {
            median: sorted.median().expect(measured),
            min: sorted.quantile(0.0).expect(measured),
            max: sorted.quantile(1.0).expect(measured),
        }
    }
}

/// Returns of what the median of so many runs is one, in words; `runs` is what several are called.
pub fn medians_of(repeats: usize, run: &str, runs: &str) -> String {
    match repeats {
        1 => format!("one {run}"),
        _ => format!("medians of {repeats} {runs}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_run_has_no_medians() {
        assert_eq!(medians_of(1, "pass", "passes"), "one pass");
        assert_eq!(medians_of(5, "pass", "passes"), "medians of 5 passes");
    }

    #[test]
    fn the_median_is_in_the_middle() {
        let spread = Spread::of([5.0, 1.0, 2.0]);
        assert_eq!(spread, Spread { median: 2.0, min: 1.0, max: 5.0 });
        assert_eq!(Spread::of([4.0, 1.0, 2.0, 3.0]).median, 2.5);
    }
}

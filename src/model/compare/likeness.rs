//! How near two sets of vectors are, caption by caption.

use serde::Serialize;

use super::{Vectors, product};
use crate::stats::Sorted;

/// How near the vectors of two packages are, caption by caption.
#[derive(Clone, Debug, PartialEq)]
pub struct Likeness {
    /// The cosine of the two vectors of a caption.
    pub cosine: Cosine,
    /// The row with the lowest cosine, the first of equals.
    pub worst: usize,
    /// `|a - b| / |a|` of a caption.
    pub relative_error: RelativeError,
}

/// Cosines over all captions, 1 where the direction is the same.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Cosine {
    /// The mean.
    pub mean: f64,
    /// The first percentile: of a hundred captions, one is as low.
    pub p1: f64,
    /// The lowest.
    pub min: f64,
}

/// Relative errors over all captions, 0 where the vectors are equal.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct RelativeError {
    /// The median.
    pub median: f64,
    /// The largest.
    pub max: f64,
}

impl Likeness {
    /// Compares row by row.
    ///
    /// # Panics
    ///
    /// When the two aren't of the same shape, or have no rows.
    pub fn of(a: &Vectors, b: &Vectors) -> Likeness {
        assert_eq!((a.rows(), a.dim), (b.rows(), b.dim), "a vector of each for every caption");
        assert!(a.rows() > 0, "there are captions");
        let mut cosines = Vec::with_capacity(a.rows());
        let mut errors = Vec::with_capacity(a.rows());
        for row in 0..a.rows() {
            let (x, y) = (a.row(row), b.row(row));
            let cosine = product(x, y) / (a.lengths[row] * b.lengths[row]);
            // Rounding may carry it past the ends.
            cosines.push(cosine.clamp(-1.0, 1.0));
            let apart: f64 =
                x.iter().zip(y).map(|(x, y)| (f64::from(*x) - f64::from(*y)).powi(2)).sum();
            errors.push(apart.sqrt() / a.lengths[row]);
        }
        let mean = cosines.iter().sum::<f64>() / cosines.len() as f64;
        let lowest = cosines.iter().enumerate().min_by(|(_, x), (_, y)| x.total_cmp(y));
        let (worst, &min) = lowest.expect("there are captions");
        let p1 = Sorted::of(cosines).quantile(0.01).expect("there are captions");
        let max = errors.iter().copied().fold(0.0, f64::max);
        let median = Sorted::of(errors).median().expect("there are captions");
        Likeness {
            cosine: Cosine { mean, p1, min },
            worst,
            relative_error: RelativeError { median, max },
        }
    }
}

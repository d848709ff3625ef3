//! Nearest neighbours, by brute force, and how many of them two packages have in common.

use serde::Serialize;

use super::Vectors;

/// Rows that all queries pass over before the next ones: few enough to stay in a core's cache.
const BLOCK: usize = 128;

/// Running sums of a dot product, so that the compiler may add them at once.
const LANES: usize = 16;

impl Vectors {
    /// Returns the rows of the `k` nearest others of each row in `queries`, by cosine, the nearest
    /// first, equals in their order; fewer where there are no `k` others. `progress` is told how
    /// many rows have been looked at.
    ///
    /// # Panics
    ///
    /// When a query is no row.
    pub fn nearest(
        &self,
        queries: &[usize],
        k: usize,
        mut progress: impl FnMut(usize),
    ) -> Vec<Vec<usize>> {
        // The query's own length changes nothing of the order.
        let mut nearest: Vec<Vec<(f64, usize)>> = vec![Vec::with_capacity(k + 1); queries.len()];
        for start in (0..self.rows()).step_by(BLOCK) {
            let block = start..self.rows().min(start + BLOCK);
            for (&query, nearest) in queries.iter().zip(&mut nearest) {
                for row in block.clone().filter(|&row| row != query) {
                    let near = f64::from(dot(self.row(query), self.row(row))) / self.lengths[row];
                    if nearest.len() < k || nearest.last().is_some_and(|(last, _)| near > *last) {
                        let place = nearest.partition_point(|(other, _)| *other >= near);
                        nearest.insert(place, (near, row));
                        nearest.truncate(k);
                    }
                }
            }
            progress(block.end);
        }
        let rows = |nearest: Vec<(f64, usize)>| nearest.into_iter().map(|(_, row)| row).collect();
        nearest.into_iter().map(rows).collect()
    }
}

/// How many of the nearest neighbours are the same.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Neighbours {
    /// How many captions were asked for their neighbours.
    pub queries: usize,
    /// How many neighbours of each were looked at.
    pub k: usize,
    /// The share of a caption's `k` neighbours that it has in both, as a mean: 1 where all are.
    pub overlap: f64,
    /// The share of captions whose nearest neighbour is the same in both.
    pub first: f64,
}

impl Neighbours {
    /// Compares what [`Vectors::nearest`] found for the same queries in two sets of vectors.
    ///
    /// # Panics
    ///
    /// When the two aren't of the same queries and the same number of neighbours, at least one.
    pub fn of(a: &[Vec<usize>], b: &[Vec<usize>]) -> Neighbours {
        let (queries, k) = (a.len(), a.first().map_or(0, Vec::len));
        assert!(k > 0 && b.len() == queries, "there are captions, each with a neighbour");
        let (mut shared, mut first) = (0, 0);
        for (a, b) in a.iter().zip(b) {
            assert_eq!((a.len(), b.len()), (k, k), "every caption has as many");
            shared += a.iter().filter(|row| b.contains(row)).count();
            first += usize::from(a[0] == b[0]);
        }
        let share = |count: usize, of: usize| count as f64 / of as f64;
        Neighbours { queries, k, overlap: share(shared, queries * k), first: share(first, queries) }
    }
}

/// The dot product in float32, for what is only ordered: millions of them are due.
fn dot(x: &[f32], y: &[f32]) -> f32 {
    let (x_chunks, x_rest) = x.as_chunks::<LANES>();
    let (y_chunks, y_rest) = y.as_chunks::<LANES>();
    let mut sums = [0.0; LANES];
    for (x, y) in x_chunks.iter().zip(y_chunks) {
        for lane in 0..LANES {
            sums[lane] += x[lane] * y[lane];
        }
    }
    let rest: f32 = x_rest.iter().zip(y_rest).map(|(x, y)| x * y).sum();
    sums.iter().sum::<f32>() + rest
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::tests::{random, set};
    use super::super::{product, sample};
    use super::*;

    proptest! {
        #[test]
        fn the_nearest_are_the_nearest(set in set(), k in 1usize..12) {
            let cosine = |x: usize, y: usize| {
                product(set.row(x), set.row(y)) / (set.lengths[x] * set.lengths[y])
            };
            let queries = sample(set.rows(), 5);
            for (&query, nearest) in queries.iter().zip(set.nearest(&queries, k, |_| ())) {
                prop_assert_eq!(nearest.len(), k.min(set.rows() - 1));
                prop_assert!(!nearest.contains(&query), "a caption is no neighbour of itself");
                let mut left: Vec<usize> = (0..set.rows()).filter(|&row| row != query).collect();
                for row in nearest {
                    let found = cosine(query, row);
                    prop_assert!(left.iter().all(|&other| cosine(query, other) < found + 1e-5));
                    let before = left.len();
                    left.retain(|&other| other != row);
                    prop_assert_eq!(left.len(), before - 1, "each once");
                }
            }
        }

        #[test]
        fn both_dot_products_are_one(seed in any::<u64>(), dim in 1usize..100) {
            let numbers = random(2, dim, seed);
            let (x, y) = numbers.split_at(dim);
            let scale = (product(x, x) * product(y, y)).sqrt();
            prop_assert!((f64::from(dot(x, y)) - product(x, y)).abs() <= 1e-5 * scale);
        }
    }
}

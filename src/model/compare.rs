//! How much two packages agree on the same captions: plain arithmetic over two sets of vectors.
//!
//! Cosine and relative error say how far a vector has moved. What its readers notice is another
//! thing: whether a search still finds the same captions. So the nearest neighbours are compared
//! too, exactly, by brute force.
//!
//! # Invariants
//!
//! - Every row of [`Vectors`] has a length, so no quotient in here is undefined.
//! - Beside the vectors, memory is taken for the figures of each caption and the neighbours that
//!   are kept, and for no matrix of similarities.

mod likeness;
mod neighbours;

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use thiserror::Error;

use super::manifest::Manifest;
use super::package::TOKENIZER;

pub use likeness::{Cosine, Likeness, RelativeError};
pub use neighbours::Neighbours;

/// The seed of [`sample`].
const SEED: u64 = 0;

/// Why the vectors of two packages can't be compared caption by caption.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum Incomparable {
    /// Vectors of different spaces.
    #[error("vectors of {a} have {a_dim} numbers, those of {b} have {b_dim}")]
    Dim {
        /// The one model id.
        a: String,
        /// Its numbers in a vector.
        a_dim: usize,
        /// The other model id.
        b: String,
        /// Its numbers in a vector.
        b_dim: usize,
    },
    /// The networks don't see the same tokens.
    #[error(
        "{a} and {b} have different tokenizers ({TOKENIZER} {a_sha256} and {b_sha256}), so that \
         their networks don't see the same tokens of a caption"
    )]
    Tokenizer {
        /// The one model id.
        a: String,
        /// SHA-256 of its tokenizer.
        a_sha256: String,
        /// The other model id.
        b: String,
        /// SHA-256 of its tokenizer.
        b_sha256: String,
    },
    /// Long captions are cut at different places.
    #[error("{a} cuts captions at {a_max} tokens, {b} at {b_max}")]
    MaxTokens {
        /// The one model id.
        a: String,
        /// Its longest caption in tokens.
        a_max: usize,
        /// The other model id.
        b: String,
        /// Its longest caption in tokens.
        b_max: usize,
    },
}

/// Finds out whether two packages see the same tokens and make vectors of the same size.
///
/// # Errors
///
/// When they don't, with both model ids.
pub fn comparable(a: &Manifest, b: &Manifest) -> Result<(), Incomparable> {
    let ids = || (a.model_id.clone(), b.model_id.clone());
    if a.network.dim != b.network.dim {
        let (a_dim, b_dim) = (a.network.dim, b.network.dim);
        let (a, b) = ids();
        return Err(Incomparable::Dim { a, a_dim, b, b_dim });
    }
    let tokenizer = |manifest: &Manifest| {
        let file = manifest.files.iter().find(|file| file.name == TOKENIZER);
        file.map_or_else(|| "not in the manifest".to_owned(), |file| file.sha256.clone())
    };
    let (a_sha256, b_sha256) = (tokenizer(a), tokenizer(b));
    if a_sha256 != b_sha256 {
        let (a, b) = ids();
        return Err(Incomparable::Tokenizer { a, a_sha256, b, b_sha256 });
    }
    if a.max_tokens != b.max_tokens {
        let (a_max, b_max) = (a.max_tokens, b.max_tokens);
        let (a, b) = ids();
        return Err(Incomparable::MaxTokens { a, a_max, b, b_max });
    }
    Ok(())
}

/// A vector without a length: a number in it isn't finite, or all are zero, or their squares are
/// outside the range of float32.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[error("vector {row} is zero, or not of finite numbers")]
pub struct NoLength {
    /// The row, from 0.
    pub row: usize,
}

/// The vectors of a set of captions, row-major `[captions, dim]`.
#[derive(Clone, Debug)]
pub struct Vectors {
    numbers: Vec<f32>,
    dim: usize,
    lengths: Vec<f64>,
}

impl Vectors {
    /// Takes vectors of `dim` numbers each.
    ///
    /// # Errors
    ///
    /// When one has no length.
    ///
    /// # Panics
    ///
    /// When the numbers aren't whole rows of at least one number.
    pub fn new(numbers: Vec<f32>, dim: usize) -> Result<Vectors, NoLength> {
        assert!(dim > 0 && numbers.len().is_multiple_of(dim), "the numbers are whole rows");
        let mut lengths = Vec::with_capacity(numbers.len() / dim);
        for (row, vector) in numbers.chunks_exact(dim).enumerate() {
            let squares = product(vector, vector);
            // Two vectors of such lengths have a dot product that float32 can hold.
            if !(squares as f32).is_normal() {
                return Err(NoLength { row });
            }
            lengths.push(squares.sqrt());
        }
        Ok(Vectors { numbers, dim, lengths })
    }

    /// Returns the number of vectors.
    pub fn rows(&self) -> usize {
        self.lengths.len()
    }

    /// Returns the vector of a row.
    ///
    /// # Panics
    ///
    /// When there is no such row.
    pub fn row(&self, row: usize) -> &[f32] {
        &self.numbers[row * self.dim..(row + 1) * self.dim]
    }
}

/// Returns at most `amount` of the rows `0..rows`, in order: all of them, or a sample that is the
/// same every time.
pub fn sample(rows: usize, amount: usize) -> Vec<usize> {
    if rows <= amount {
        return (0..rows).collect();
    }
    let mut random = ChaCha8Rng::seed_from_u64(SEED);
    let mut sampled = rand::seq::index::sample(&mut random, rows, amount).into_vec();
    sampled.sort_unstable();
    sampled
}

/// The dot product in float64, for what is reported.
fn product(x: &[f32], y: &[f32]) -> f64 {
    x.iter().zip(y).map(|(x, y)| f64::from(*x) * f64::from(*y)).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::synth::{Synthesis, synthesize};
    use proptest::prelude::*;
    use rand_distr::{Distribution, StandardNormal};

    fn vectors(rows: &[&[f32]]) -> Vectors {
        Vectors::new(rows.concat(), rows[0].len()).unwrap()
    }

    pub(super) fn random(rows: usize, dim: usize, seed: u64) -> Vec<f32> {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        StandardNormal.sample_iter(&mut random).take(rows * dim).collect()
    }

    fn all_nearest(vectors: &Vectors, k: usize) -> Vec<Vec<usize>> {
        vectors.nearest(&sample(vectors.rows(), usize::MAX), k, |_| ())
    }

    fn manifest() -> Manifest {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tiny");
        synthesize(&Synthesis::tiny(1, &path), &mut |_| ()).unwrap()
    }

    #[test]
    fn packages_of_other_vectors_or_tokens_are_not_comparable() {
        let a = manifest();
        assert_eq!(comparable(&a, &a.clone()), Ok(()));

        let mut b = Manifest { model_id: "other@1".into(), ..a.clone() };
        assert_eq!(comparable(&a, &b), Ok(()), "the weights may differ");
        b.max_tokens = 64;
        let said = comparable(&a, &b).unwrap_err().to_string();
        assert!(said.contains("at 128 tokens") && said.contains("other@1 at 64"), "{said}");
        b.files.iter_mut().find(|file| file.name == TOKENIZER).unwrap().sha256 = "0f".into();
        let said = comparable(&a, &b).unwrap_err().to_string();
        assert!(said.contains("different tokenizers") && said.contains("other@1"), "{said}");
        b.network.dim = 512;
        let said = comparable(&a, &b).unwrap_err().to_string();
        assert!(said.contains("have 640 numbers") && said.contains("other@1 have 512"), "{said}");
    }

    #[test]
    fn the_figures_are_those_of_a_small_example() {
        let a = vectors(&[&[1.0, 0.0], &[0.0, 2.0], &[3.0, 4.0]]);
        let b = vectors(&[&[1.0, 0.0], &[2.0, 0.0], &[4.0, 3.0]]);
        let likeness = Likeness::of(&a, &b);
        assert_eq!(likeness.worst, 1);
        assert_eq!(likeness.cosine.min, 0.0);
        assert_eq!(likeness.cosine.p1, 0.0);
        assert!((likeness.cosine.mean - (1.0 + 0.0 + 24.0 / 25.0) / 3.0).abs() < 1e-12);
        assert!((likeness.relative_error.median - 2f64.sqrt() / 5.0).abs() < 1e-12);
        assert!((likeness.relative_error.max - 2f64.sqrt()).abs() < 1e-12);

        assert_eq!(all_nearest(&a, 1), [[2], [2], [1]]);
        assert_eq!(all_nearest(&b, 9), [[1, 2], [0, 2], [0, 1]], "there are no 9 others");
        let found = Neighbours::of(&all_nearest(&a, 1), &all_nearest(&b, 1));
        assert_eq!(found, Neighbours { queries: 3, k: 1, overlap: 0.0, first: 0.0 });
        let found = Neighbours::of(&[vec![1, 2], vec![2, 0]], &[vec![2, 1], vec![2, 3]]);
        assert_eq!(found, Neighbours { queries: 2, k: 2, overlap: 0.75, first: 0.5 });
    }

    #[test]
    fn a_vector_without_a_length_is_told() {
        for bad in [0.0, f32::NAN, f32::INFINITY, 1e30, 1e-30] {
            let found = Vectors::new(vec![1.0, 0.0, bad, 0.0], 2);
            assert_eq!(found.unwrap_err(), NoLength { row: 1 }, "{bad}");
        }
    }

    #[test]
    fn a_sample_is_the_same_every_time() {
        assert_eq!(sample(3, 5), [0, 1, 2]);
        let sampled = sample(1000, 100);
        assert_eq!(sampled, sample(1000, 100));
        assert_eq!(sampled.len(), 100);
        assert!(sampled.is_sorted_by(|a, b| a < b) && sampled[99] < 1000);
        assert_ne!(sampled, sample(100, 100), "not simply the first");
    }

    /// Turning all vectors alike changes every number and no angle.
    #[test]
    fn a_rotation_changes_no_neighbour() {
        let (rows, dim) = (300, 32);
        let numbers = random(rows, dim, 1);
        let mut turned = numbers.clone();
        for row in turned.chunks_exact_mut(dim) {
            for i in 0..dim - 1 {
                let (sin, cos) = (0.3 + i as f32).sin_cos();
                (row[i], row[i + 1]) =
                    (cos * row[i] - sin * row[i + 1], sin * row[i] + cos * row[i + 1]);
            }
        }
        let (a, b) = (Vectors::new(numbers, dim).unwrap(), Vectors::new(turned, dim).unwrap());
        assert!(Likeness::of(&a, &b).cosine.mean < 0.9, "the vectors did move");
        let found = Neighbours::of(&all_nearest(&a, 10), &all_nearest(&b, 10));
        assert_eq!((found.overlap, found.first), (1.0, 1.0));
    }

    #[test]
    fn unrelated_vectors_share_as_many_neighbours_as_chance_gives() {
        let a = Vectors::new(random(400, 32, 1), 32).unwrap();
        let b = Vectors::new(random(400, 32, 2), 32).unwrap();
        let found = Neighbours::of(&all_nearest(&a, 10), &all_nearest(&b, 10));
        assert!((0.01..0.05).contains(&found.overlap), "about 10 of 399: {found:?}");
        assert!(Likeness::of(&a, &b).cosine.mean.abs() < 0.05);
    }

    pub(super) fn set() -> impl Strategy<Value = Vectors> {
        (2usize..300, 1usize..40, any::<u64>())
            .prop_map(|(rows, dim, seed)| Vectors::new(random(rows, dim, seed), dim).unwrap())
    }

    proptest! {
        #[test]
        fn a_set_agrees_with_itself(set in set(), k in 1usize..12) {
            let likeness = Likeness::of(&set, &set);
            for cosine in [likeness.cosine.mean, likeness.cosine.p1, likeness.cosine.min] {
                prop_assert!((cosine - 1.0).abs() < 1e-12);
            }
            prop_assert_eq!(likeness.relative_error, RelativeError { median: 0.0, max: 0.0 });
            let nearest = all_nearest(&set, k);
            let found = Neighbours::of(&nearest, &nearest);
            prop_assert_eq!((found.overlap, found.first), (1.0, 1.0));
            prop_assert_eq!((found.queries, found.k), (set.rows(), k.min(set.rows() - 1)));
        }

        /// In another order of the captions, and with vectors scaled, the figures are the same.
        #[test]
        fn the_order_of_captions_changes_nothing(
            (rows, seeds) in (2usize..100, any::<(u64, u64)>()),
            scale in prop_oneof![Just(0.25f32), Just(1.0), Just(8.0)],
        ) {
            let dim = 8;
            let (a, b) = (random(rows, dim, seeds.0), random(rows, dim, seeds.1));
            let reversed = |numbers: &[f32]| -> Vec<f32> {
                numbers.chunks_exact(dim).rev().flatten().map(|n| n * scale).collect()
            };
            let set = |numbers| Vectors::new(numbers, dim).unwrap();
            let (a, b, a_reversed, b_reversed) =
                (set(a.clone()), set(b.clone()), set(reversed(&a)), set(reversed(&b)));
            let (one, other) = (Likeness::of(&a, &b), Likeness::of(&a_reversed, &b_reversed));
            prop_assert!((one.cosine.mean - other.cosine.mean).abs() < 1e-12);
            prop_assert_eq!(one.cosine.p1, other.cosine.p1);
            prop_assert_eq!(one.cosine.min, other.cosine.min);
            prop_assert_eq!(one.relative_error, other.relative_error);
            prop_assert_eq!(one.worst, rows - 1 - other.worst);

            // Neighbours mean the same vectors; the scale is a power of two, so ties stay ties.
            let found = |a: &Vectors, b: &Vectors| {
                Neighbours::of(&all_nearest(a, 3), &all_nearest(b, 3))
            };
            let (one, other) = (found(&a, &b), found(&a_reversed, &b_reversed));
            prop_assert!((one.overlap - other.overlap).abs() < 1e-12);
            prop_assert!((one.first - other.first).abs() < 1e-12);
        }
    }
}

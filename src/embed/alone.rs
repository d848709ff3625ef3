//! Vectors that are all finite: what one caption spoils of its batch is embedded again, alone.
//!
//! It is for what embeds without a worker, and ends at the first caption that has no vector. The
//! worker goes on after such a caption: [`task`](super::task) splits the batch, which takes fewer
//! passes where many are spoilt, and rejects the one.

use thiserror::Error;

use super::{EmbedError, Embedder, is_finite};
use crate::batch::packing::TokenBatch;

/// Why captions have no vectors.
#[derive(Debug, Error)]
pub enum FiniteError {
    /// The network fails.
    #[error(transparent)]
    Embed(#[from] EmbedError),
    /// A caption's vector isn't finite, alone either.
    #[error(
        "the vector of {caption} has a number that isn't finite: the package's weights are damaged, or its \
         numbers too large for its precision"
    )]
    NotFinite {
        /// What the caller calls it.
        caption: String,
    },
}

/// Returns the vectors of a batch's captions, which are given as their token ids: row-major
/// `[captions, dim]`, in their order. `named` says what the caption of a row is called.
///
/// # Errors
///
/// When the network fails, or a vector isn't finite, alone either.
///
/// # Panics
///
/// As [`TokenBatch::pack`].
pub fn embed_finite(
    embedder: &mut dyn Embedder,
    captions: &[&[u32]],
    named: impl Fn(usize) -> String,
) -> Result<Vec<f32>, FiniteError> {
    let mut vectors = embedder.embed(&TokenBatch::pack(captions.iter().copied()))?;
    let dim = embedder.dim();
    for (row, vector) in vectors.chunks_exact_mut(dim).enumerate() {
        if is_finite(vector) {
            continue;
        }
        let alone = embedder.embed(&TokenBatch::pack([captions[row]]))?;
        if !is_finite(&alone) {
            return Err(FiniteError::NotFinite { caption: named(row) });
        }
        vector.copy_from_slice(&alone);
    }
    Ok(vectors)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::embed::hash::HashEmbedder;

    /// The token 9 spoils a batch with others, the token 8 every batch.
    struct Spoils(HashEmbedder);

    impl Embedder for Spoils {
        fn dim(&self) -> usize {
            self.0.dim()
        }

        fn embed(&mut self, batch: &TokenBatch) -> Result<Vec<f32>, EmbedError> {
            let mut vectors = self.0.embed(batch)?;
            let has = |id| batch.token_ids.contains(&id);
            if has(8) || (has(9) && batch.captions() > 1) {
                vectors.fill(f32::NAN);
            }
            Ok(vectors)
        }
    }

    fn embed(captions: &[&[u32]]) -> Result<Vec<f32>, FiniteError> {
        embed_finite(&mut Spoils(HashEmbedder::new(4)), captions, |row| format!("number {row}"))
    }

    #[test]
    fn what_a_caption_spoils_has_the_vectors_that_it_has_alone() {
        let captions: [&[u32]; 4] = [&[2, 5, 3], &[2, 6, 7, 3], &[2, 9, 3], &[2, 4, 3]];
        let alone = captions.map(|ids| HashEmbedder::new(4).vector(ids.iter().copied()));
        assert_eq!(embed(&captions).unwrap(), alone.concat());
    }

    #[test]
    fn the_caption_that_spoils_the_others_is_named_wherever_it_is() {
        let error = embed(&[&[2, 5, 3], &[2, 6, 3], &[2, 8, 3], &[2, 9, 3]]).unwrap_err();
        assert!(error.to_string().starts_with("the vector of number 2 has"), "{error}");
    }
}

//! An embedder without a network: a vector is a hash of its caption's token ids.
//!
//! It costs next to nothing and proves which text a vector belongs to, so that tests and dry runs
//! can check delivery without ONNX Runtime. The vectors have no meaning.

use super::{EmbedError, Embedder};
use crate::batch::packing::TokenBatch;

/// Makes vectors of `dim` numbers in [-1, 1).
#[derive(Clone, Copy, Debug)]
pub struct HashEmbedder {
    dim: usize,
}

impl HashEmbedder {
    /// Returns an embedder of `dim` numbers a vector.
    pub fn new(dim: usize) -> Self {
        HashEmbedder { dim }
    }

    /// Returns the vector of a caption with these token ids.
    pub fn vector(&self, ids: impl IntoIterator<Item = u32>) -> Vec<f32> {
        let mut vector = Vec::with_capacity(self.dim);
        self.append(ids, &mut vector);
        vector
    }

    fn append(&self, ids: impl IntoIterator<Item = u32>, out: &mut Vec<f32>) {
        // FNV-1a over the ids; half of it begins the numbers, which a round of Marsaglia's xorshift
        // mixes, and half goes into each of them after. Shifts and sums alone, of which any
        // processor does several at a time: this is to cost next to nothing.
        let hash = ids.into_iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, id| {
            (hash ^ u64::from(id)).wrapping_mul(0x0000_0100_0000_01b3)
        });
        let (low, high) = (hash as u32, (hash >> 32) as u32);
        out.extend((0..self.dim as u32).map(|number| {
            let mut mixed = low.wrapping_add(number.wrapping_mul(0x9e37_79b9));
            mixed ^= mixed << 13;
            mixed ^= mixed >> 17;
            mixed ^= (mixed << 5) ^ high;
            // 24 bits fit a float exactly.
            ((mixed >> 8) as i32) as f32 / (1 << 23) as f32 - 1.0
        }));
    }
}

impl Embedder for HashEmbedder {
    fn dim(&self) -> usize {
        self.dim
    }

    fn embed(&mut self, batch: &TokenBatch) -> Result<Vec<f32>, EmbedError> {
        let mut vectors = Vec::with_capacity(batch.captions() * self.dim);
        let mut ids = batch.token_ids.iter();
        for &length in &batch.caption_lengths {
            let of_caption = ids.by_ref().take(length as usize);
            self.append(of_caption.map(|&id| id as u32), &mut vectors);
        }
        Ok(vectors)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vector_follows_its_caption_alone() {
        let mut embedder = HashEmbedder::new(4);
        let (a, b) = ([101u32, 5, 102], [101u32, 6, 7, 102]);
        let together = embedder.embed(&TokenBatch::pack([&a[..], &b[..]])).unwrap();
        let alone = embedder.embed(&TokenBatch::pack([&b[..]])).unwrap();
        assert_eq!(together[4..], alone[..]);
        assert_ne!(together[..4], together[4..]);
        assert!(together.iter().all(|n| (-1.0..1.0).contains(n)));
    }
}

//! The neural network: a [`TokenBatch`] becomes one vector a caption.
//!
//! Two implementations ship: [`onnx`], which runs a package in ONNX Runtime, and [`hash`], which
//! makes a vector out of the token ids by arithmetic, for tests and dry runs. [`load`] makes as
//! many of them on each [`device`] as [`calibration`] finds best, and [`task`] is the worker's
//! thread around each. [`library`] finds ONNX Runtime, [`cuda`] what it needs for a GPU,
//! [`placement`] the nodes that it left on the CPU, and [`duty`] counts how long a device works.
//! [`alone`] is for what embeds without a worker.

pub mod alone;
pub mod calibration;
pub mod cuda;
pub mod device;
pub mod duty;
pub mod hash;
pub mod library;
pub mod load;
pub mod onnx;
pub mod placement;
pub mod task;

use thiserror::Error;

use crate::batch::packing::TokenBatch;
use crate::label::labels;

/// What can go wrong in a forward pass.
#[derive(Debug, Error)]
pub enum EmbedError {
    /// The runtime refused or failed.
    #[error("the forward pass of {captions} captions, {tokens} tokens failed: {reason}")]
    Run {
        /// Captions of the batch.
        captions: usize,
        /// Tokens of the batch.
        tokens: usize,
        /// What the runtime said.
        reason: String,
    },
    /// The output has another shape than `[captions, dim]`.
    #[error("the network gave {found:?} where [{captions}, {dim}] was due")]
    Shape {
        /// The shape that came.
        found: Vec<i64>,
        /// Captions of the batch.
        captions: usize,
        /// Numbers in a vector.
        dim: usize,
    },
    /// Vectors have numbers that aren't finite.
    #[error("{vectors} of {captions} vectors have a number that isn't finite")]
    NotFinite {
        /// How many.
        vectors: usize,
        /// Captions of the batch.
        captions: usize,
    },
}

/// Returns whether all numbers are finite.
pub fn is_finite(numbers: &[f32]) -> bool {
    // Without an early exit, so that it is done several numbers at a time.
    numbers.iter().fold(true, |finite, number| finite & number.is_finite())
}

/// Returns the vector of the known caption, which tells whether the network works.
///
/// # Errors
///
/// When it doesn't, or the vector isn't finite.
pub fn embed_known(embedder: &mut dyn Embedder) -> Result<Vec<f32>, EmbedError> {
    let vector = embedder.embed(&TokenBatch::pack([&KNOWN_CAPTION[..]]))?;
    match is_finite(&vector) {
        true => Ok(vector),
        false => Err(EmbedError::NotFinite { vectors: 1, captions: 1 }),
    }
}

/// Token ids that every network has: what is embedded to see whether it works.
const KNOWN_CAPTION: [u32; 3] = [0, 0, 0];

/// Why a batch was split.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SplitReason {
    /// The device or the machine had too little memory for it; a smaller one may fit.
    OutOfMemory,
    /// Numbers came out that aren't finite. Those of one caption may spoil the others' vectors: a
    /// mask keeps captions apart by a product with 0, and 0 times infinity is no number.
    NotFinite,
    /// Anything else.
    Failed,
}

labels!(SplitReason {
    OutOfMemory => "out_of_memory",
    NotFinite => "not_finite",
    Failed => "failed",
});

impl EmbedError {
    /// Returns why a batch that failed so is split.
    ///
    /// ONNX Runtime has no error code for a lack of memory, only these words: of its arena, of the
    /// arena's limit, of C++'s allocator on the CPU, of CUDA, and of cuBLAS, whose status it gives
    /// as a sentence or by its name.
    pub fn split_reason(&self) -> SplitReason {
        let words = [
            "Failed to allocate memory",
            "is smaller than requested bytes",
            "bad_alloc",
            "out of memory",
            "the resource allocation failed",
            "CUBLAS_STATUS_ALLOC_FAILED",
        ];
        match self {
            EmbedError::Run { reason, .. } if words.iter().any(|w| reason.contains(w)) => {
                SplitReason::OutOfMemory
            }
            EmbedError::NotFinite { .. } => SplitReason::NotFinite,
            EmbedError::Run { .. } | EmbedError::Shape { .. } => SplitReason::Failed,
        }
    }
}

/// Turns token batches into vectors. One thread owns an embedder.
pub trait Embedder: Send {
    /// Returns the number of numbers in a vector.
    fn dim(&self) -> usize;

    /// Returns the vectors of the batch's captions, row-major `[captions, dim]`, in their order.
    ///
    /// # Errors
    ///
    /// When the network fails on this batch. Another batch may still succeed.
    fn embed(&mut self, batch: &TokenBatch) -> Result<Vec<f32>, EmbedError>;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lack_of_memory_is_told_from_other_failures() {
        let failed = |reason: &str| {
            EmbedError::Run { captions: 2, tokens: 20, reason: reason.into() }.split_reason()
        };
        let arena = "BFCArena::AllocateRawInternal Failed to allocate memory for requested buffer";
        assert_eq!(failed(arena), SplitReason::OutOfMemory);
        assert_eq!(failed("CUDA failure 2: out of memory ; GPU=0"), SplitReason::OutOfMemory);
        assert_eq!(failed("std::bad_alloc"), SplitReason::OutOfMemory);
        let cublas = "CUBLAS failure 3: the resource allocation failed ; GPU=0 ; hostname=a";
        assert_eq!(failed(cublas), SplitReason::OutOfMemory);
        assert_eq!(failed("cublasLtMatmul: CUBLAS_STATUS_ALLOC_FAILED"), SplitReason::OutOfMemory);
        let limit = "Available memory of 20 is smaller than requested bytes of 300";
        assert_eq!(failed(limit), SplitReason::OutOfMemory);
        assert_eq!(failed("Gather node: index out of bounds"), SplitReason::Failed);
        let shape = EmbedError::Shape { found: vec![1], captions: 1, dim: 640 };
        assert_eq!(shape.split_reason(), SplitReason::Failed);
        let not_finite = EmbedError::NotFinite { vectors: 1, captions: 2 };
        assert_eq!(not_finite.split_reason(), SplitReason::NotFinite);
    }
}

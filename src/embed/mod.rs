//! The neural network: a [`TokenBatch`] becomes one vector a caption.
//!
//! Two implementations ship: [`onnx`], which runs a package in ONNX Runtime, and [`hash`], which
//! makes a vector out of the token ids by arithmetic, for tests and dry runs. [`load`] makes as many of
//! them on each [`device`] as [`calibration`] finds best, and [`task`] is the worker's thread around
//! each. [`library`] finds ONNX Runtime, [`cuda`] what it needs for a GPU, [`placement`] the nodes that
//! it left on the CPU, and [`duty`] counts how long a device works.

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
}

/// Why a batch was split.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SplitReason {
    /// The device or the machine had too little memory for it; a smaller one may fit.
    OutOfMemory,
    /// Anything else.
    Failed,
}

impl SplitReason {
    /// All reasons.
    pub const ALL: [SplitReason; 2] = [SplitReason::OutOfMemory, SplitReason::Failed];

    /// Returns the reason as a metric label.
    pub fn as_label(self) -> &'static str {
        match self {
            SplitReason::OutOfMemory => "out_of_memory",
            SplitReason::Failed => "failed",
        }
    }
}

impl EmbedError {
    /// Returns why a batch that failed so is split.
    ///
    /// ONNX Runtime has no error code for a lack of memory, only these words: of its arena, of the
    /// arena's limit, of C++'s allocator on the CPU, of CUDA and of cuBLAS.
    pub fn split_reason(&self) -> SplitReason {
        let words = [
            "Failed to allocate memory",
            "is smaller than requested bytes",
            "bad_alloc",
            "out of memory",
            "CUBLAS_STATUS_ALLOC_FAILED",
        ];
        match self {
            EmbedError::Run { reason, .. } if words.iter().any(|w| reason.contains(w)) => {
                SplitReason::OutOfMemory
            }
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
        let limit = "Available memory of 20 is smaller than requested bytes of 300";
        assert_eq!(failed(limit), SplitReason::OutOfMemory);
        assert_eq!(failed("Gather node: index out of bounds"), SplitReason::Failed);
        let shape = EmbedError::Shape { found: vec![1], captions: 1, dim: 640 };
        assert_eq!(shape.split_reason(), SplitReason::Failed);
    }
}

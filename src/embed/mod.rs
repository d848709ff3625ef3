//! The neural network: a [`TokenBatch`] becomes one vector a caption.
//!
//! Two implementations ship: [`onnx`], which runs a package in ONNX Runtime, and [`hash`], which
//! makes a vector out of the token ids by arithmetic, for tests and dry runs. [`load`] makes as many of
//! them as [`calibration`] finds best, and [`task`] is the worker's thread around each.

pub mod calibration;
pub mod hash;
pub mod library;
pub mod load;
pub mod onnx;
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

//! The embedder that runs a package in ONNX Runtime.

use std::path::Path;
use std::time::{Duration, Instant};

use ort::session::builder::GraphOptimizationLevel;
use ort::session::{Session, SessionInputValue};
use ort::value::TensorRef;
use thiserror::Error;

use super::library::{self, LibraryError};
use super::task::KNOWN_CAPTION;
use super::{EmbedError, Embedder};
use crate::batch::packing::TokenBatch;
use crate::model::graph::{INPUTS, OUTPUT};
use crate::model::package::{MODEL, Package};

/// Why a package can't be run.
#[derive(Debug, Error)]
pub enum LoadError {
    /// There is no ONNX Runtime.
    #[error(transparent)]
    Library(#[from] LibraryError),
    /// ONNX Runtime refuses the package's graph.
    #[error("{path}: ONNX Runtime can't load the graph: {reason}")]
    Session {
        /// The graph.
        path: std::path::PathBuf,
        /// What the runtime said.
        reason: String,
    },
    /// The graph takes other inputs than the manifest says.
    #[error("{path}: the graph's inputs are {found:?}; the package is damaged, import it again")]
    Inputs {
        /// The graph.
        path: std::path::PathBuf,
        /// The names of its inputs.
        found: Vec<String>,
    },
    /// The first forward pass failed.
    #[error("the package loads, but its first forward pass fails")]
    WarmUp(#[source] EmbedError),
}

/// A package in ONNX Runtime, warmed up.
pub struct OnnxEmbedder {
    session: Session,
    dim: usize,
    load_time: Duration,
}

impl OnnxEmbedder {
    /// Loads the package and runs it once. `threads` compute threads work on one batch.
    ///
    /// # Errors
    ///
    /// When there is no ONNX Runtime, it refuses the graph, or the first pass fails.
    pub fn load(
        package: &Package,
        onnxruntime: Option<&Path>,
        threads: usize,
    ) -> Result<OnnxEmbedder, LoadError> {
        let started = Instant::now();
        let environment = library::environment(onnxruntime)?;
        let path = package.path.join(MODEL);
        let session = build_session(&environment, &path, threads)
            .map_err(|e| LoadError::Session { path: path.clone(), reason: e.to_string() })?;
        let found: Vec<String> = session.inputs().iter().map(|i| i.name().into()).collect();
        if found != INPUTS.map(|i| i.name.to_owned()) {
            return Err(LoadError::Inputs { path, found });
        }
        let dim = package.manifest.network.dim;
        let mut embedder = OnnxEmbedder { session, dim, load_time: Duration::ZERO };
        embedder.embed(&TokenBatch::pack([&KNOWN_CAPTION[..]])).map_err(LoadError::WarmUp)?;
        embedder.load_time = started.elapsed();
        Ok(embedder)
    }

    /// Returns how long loading took, the first pass included.
    pub fn load_time(&self) -> Duration {
        self.load_time
    }
}

/// Returns a session of the graph at `path`, with the settings that the worker's has. `threads`
/// compute threads work on one run.
///
/// # Errors
///
/// When ONNX Runtime refuses the graph.
pub fn build_session(
    environment: &ort::environment::Environment,
    path: &Path,
    threads: usize,
) -> ort::Result<Session> {
    let session = Session::builder(environment)?
        .with_optimization_level(GraphOptimizationLevel::All)?
        .with_intra_threads(threads)?
        .with_inter_threads(1)?
        // Memory patterns are kept by shape, and every batch has a shape of its own.
        .with_memory_pattern(false)?
        // Its CPU kernel is slower than the Add and LayerNormalization that it replaces.
        .with_disabled_optimizers("SkipLayerNormFusion")?
        // Threads spin while a batch runs and stop when it ends: the latency of spinning without
        // a busy CPU between batches.
        .with_config_entry("session.force_spinning_stop", "1")?
        .commit_from_file(path)?;
    Ok(session)
}

impl Embedder for OnnxEmbedder {
    fn dim(&self) -> usize {
        self.dim
    }

    fn embed(&mut self, batch: &TokenBatch) -> Result<Vec<f32>, EmbedError> {
        let (captions, tokens) = (batch.captions(), batch.tokens());
        let failed = |e: ort::Error| EmbedError::Run { captions, tokens, reason: e.to_string() };
        let outputs = self.session.run(inputs(batch).map_err(failed)?).map_err(failed)?;
        let (shape, numbers) = outputs[OUTPUT].try_extract_tensor::<f32>().map_err(failed)?;
        if shape[..] != [captions as i64, self.dim as i64] {
            return Err(EmbedError::Shape { found: shape.to_vec(), captions, dim: self.dim });
        }
        Ok(numbers.to_vec())
    }
}

/// Returns the inputs in the order of [`INPUTS`], which the graph's own is, as loading has checked.
fn inputs(batch: &TokenBatch) -> ort::Result<[SessionInputValue<'_>; INPUTS.len()]> {
    let tokens = [batch.tokens()];
    let slots = [batch.rows(), batch.width];
    let captions = [batch.captions()];
    Ok(ort::inputs![
        TensorRef::from_array_view((tokens, &batch.token_ids[..]))?,
        TensorRef::from_array_view((tokens, &batch.token_positions[..]))?,
        TensorRef::from_array_view((tokens, &batch.token_captions[..]))?,
        TensorRef::from_array_view((tokens, &batch.token_slots[..]))?,
        TensorRef::from_array_view((slots, &batch.slot_tokens[..]))?,
        TensorRef::from_array_view((slots, &batch.slot_captions[..]))?,
        TensorRef::from_array_view((captions, &batch.caption_lengths[..]))?,
    ])
}

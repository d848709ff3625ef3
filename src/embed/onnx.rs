//! The embedder that runs a package in ONNX Runtime, on the CPU or on a GPU.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use std::{fs, io};

use ort::environment::Environment;
use ort::ep::{ArenaExtendStrategy, CUDA, ExecutionProviderDispatch, TensorRT};
use ort::session::builder::{GraphOptimizationLevel, SessionBuilder};
use ort::session::{Session, SessionInputValue};
use ort::value::TensorRef;
use thiserror::Error;

use super::cuda::{self, CudaError};
use super::device::{Device, Provider};
use super::library::{self, LibraryError};
use super::{EmbedError, Embedder, embed_known, placement};
use crate::batch::packing::TokenBatch;
use crate::model::graph::{INPUTS, OUTPUT};
use crate::model::manifest::Precision;
use crate::model::package::{MODEL, Package};

/// Why a package can't be run.
#[derive(Debug, Error)]
pub enum LoadError {
    /// There is no ONNX Runtime.
    #[error(transparent)]
    Library(#[from] LibraryError),
    /// The libraries of a GPU aren't there.
    #[error("{device} can't be had")]
    Cuda {
        /// The device.
        device: Device,
        /// What is missing.
        source: CudaError,
    },
    /// ONNX Runtime can't use the device.
    #[error("{device} can't be had: {reason}")]
    Device {
        /// The device.
        device: Device,
        /// What the runtime said.
        reason: String,
    },
    /// ONNX Runtime refuses the package's graph.
    #[error("{path}: ONNX Runtime can't load the graph on {device}: {reason}")]
    Session {
        /// The graph.
        path: PathBuf,
        /// The device.
        device: Device,
        /// What the runtime said.
        reason: String,
    },
    /// The package is of a precision that the device has no kernels for.
    #[error(
        "{path} is an int8 package, which runs on CPUs alone; for {device} make one with \
         --precision fp16"
    )]
    Precision {
        /// The package.
        path: PathBuf,
        /// The device.
        device: Device,
    },
    /// The graph takes other inputs than the manifest says.
    #[error(
        "{path}: the graph's inputs are {found:?}; the package is damaged, import it or make it again"
    )]
    Inputs {
        /// The graph.
        path: PathBuf,
        /// The names of its inputs.
        found: Vec<String>,
    },
    /// The first forward pass failed.
    #[error("the package loads on {device}, but its first forward pass fails")]
    WarmUp {
        /// The device.
        device: Device,
        /// What the pass said.
        source: EmbedError,
    },
}

/// Where a session runs, and how much of it it may take.
#[derive(Clone, Copy, Debug)]
pub struct Settings<'a> {
    /// ONNX Runtime's library.
    pub library: &'a Path,
    /// The device.
    pub device: Device,
    /// The CPU's threads that work on one pass.
    pub threads: usize,
    /// Bytes that the session may take of a GPU's memory; 0 for as many as there are.
    pub device_bytes_max: usize,
}

/// A package in ONNX Runtime, warmed up.
pub struct OnnxEmbedder {
    session: Session,
    device: Device,
    dim: usize,
    load_time: Duration,
    nodes_on_cpu: Vec<String>,
}

impl OnnxEmbedder {
    /// Loads the package and runs it once.
    ///
    /// # Errors
    ///
    /// When the device can't be had, ONNX Runtime refuses the graph, or the first pass fails.
    pub fn load(package: &Package, settings: &Settings<'_>) -> Result<OnnxEmbedder, LoadError> {
        let started = Instant::now();
        let device = settings.device;
        if device.is_gpu() && package.manifest.precision == Precision::Int8 {
            return Err(LoadError::Precision { path: package.path.clone(), device });
        }
        cuda::preload(settings.library, device.provider)
            .map_err(|source| LoadError::Cuda { device, source })?;
        let environment = library::environment(settings.library)?;
        let path = package.path.join(MODEL);
        // Nothing of a graph on the CPU can be elsewhere.
        let profiles = device.is_gpu().then(|| profile_folder(device)).flatten();
        let prefix = profiles.as_ref().map(|folder| folder.path().join("first-pass"));
        let session = build_session(&environment, &path, settings, prefix.as_deref())?;
        let found: Vec<String> = session.inputs().iter().map(|i| i.name().into()).collect();
        if found != INPUTS.map(|i| i.name.to_owned()) {
            return Err(LoadError::Inputs { path, found });
        }
        let dim = package.manifest.network.dim;
        let (load_time, nodes_on_cpu) = (Duration::ZERO, Vec::new());
        let mut embedder = OnnxEmbedder { session, device, dim, load_time, nodes_on_cpu };
        embed_known(&mut embedder).map_err(|source| LoadError::WarmUp { device, source })?;
        if profiles.is_some() {
            embedder.look_for_nodes_on_cpu();
        }
        embedder.load_time = started.elapsed();
        Ok(embedder)
    }

    /// Returns how long loading took, the first pass included.
    pub fn load_time(&self) -> Duration {
        self.load_time
    }

    /// Returns the device that it runs on.
    pub fn device(&self) -> Device {
        self.device
    }

    /// Returns the nodes that ONNX Runtime runs on the CPU though the device is a GPU.
    pub fn nodes_on_cpu(&self) -> &[String] {
        &self.nodes_on_cpu
    }

    /// Ends the profile of the first pass and reads it.
    fn look_for_nodes_on_cpu(&mut self) {
        let device = self.device;
        let read = self
            .session
            .end_profiling()
            .map_err(|e| e.to_string())
            .and_then(|path| fs::read_to_string(path).map_err(|e| e.to_string()))
            .and_then(|text| placement::on_cpu(&text).map_err(|e| e.to_string()));
        match read {
            Ok(nodes) if nodes.is_empty() => {
                tracing::debug!(%device, "every node runs on the device");
            }
            Ok(nodes) => {
                let (number, first) = (nodes.len(), &nodes[..nodes.len().min(5)]);
                tracing::warn!(
                    %device,
                    number,
                    ?first,
                    "ONNX Runtime runs nodes of the graph on the CPU: correct, and slow"
                );
                self.nodes_on_cpu = nodes;
            }
            Err(reason) => not_looked_at(device, &reason),
        }
    }
}

/// Returns a folder for the profile of a first pass.
fn profile_folder(device: Device) -> Option<tempfile::TempDir> {
    let folder: io::Result<_> = tempfile::Builder::new().prefix("capvec-profile-").tempdir();
    folder.map_err(|error| not_looked_at(device, &error.to_string())).ok()
}

fn not_looked_at(device: Device, reason: &str) {
    tracing::warn!(%device, reason, "it isn't known whether every node runs on the device");
}

/// Returns a session of the graph at `path`, with the settings that the worker's has. Where a
/// prefix is given, it profiles its runs into files that begin so.
///
/// # Errors
///
/// When ONNX Runtime can't use the device, or refuses the graph.
pub fn build_session(
    environment: &Environment,
    path: &Path,
    settings: &Settings<'_>,
    profile: Option<&Path>,
) -> Result<Session, LoadError> {
    let device = settings.device;
    let refused =
        |e: &ort::Error| LoadError::Session { path: path.into(), device, reason: e.to_string() };
    let builder = options(environment, settings, profile).map_err(|e| refused(&e))?;
    let mut builder = builder
        .with_execution_providers(providers(settings))
        .map_err(|e| LoadError::Device { device, reason: e.to_string() })?;
    builder.commit_from_file(path).map_err(|e| refused(&e))
}

fn options(
    environment: &Environment,
    settings: &Settings<'_>,
    profile: Option<&Path>,
) -> ort::Result<SessionBuilder> {
    let mut builder = Session::builder(environment)?
        .with_optimization_level(GraphOptimizationLevel::All)?
        .with_intra_threads(settings.threads)?
        .with_inter_threads(1)?
        // Memory patterns are kept by shape, and every batch has a shape of its own.
        .with_memory_pattern(false)?
        // Threads spin while a batch runs and stop when it ends: the latency of spinning without
        // a busy CPU between batches.
        .with_config_entry("session.force_spinning_stop", "1")?
        // Of other captions' tokens a softmax leaves 1e-39, a denormal number, and with those
        // Intel's CPUs are slow: attention took twice as long. The runtime sets this for its own
        // threads and for the one that makes the first session; those that are started by that one
        // have it too, and among them are all that run passes.
        .with_config_entry("session.set_denormal_as_zero", "1")?;
    if !settings.device.is_gpu() {
        // Their CPU kernels are slower than the nodes that they replace.
        builder = builder.with_disabled_optimizers("SkipLayerNormFusion;BiasGeluFusion")?;
    }
    if let Some(prefix) = profile {
        builder = builder.with_profiling(prefix)?;
    }
    Ok(builder)
}

/// Returns the execution providers of a device, the first choice first. ONNX Runtime adds the CPU's
/// by itself, and no other.
fn providers(settings: &Settings<'_>) -> Vec<ExecutionProviderDispatch> {
    let id = i32::from(settings.device.ordinal);
    // Without `error_on_failure` one that can't be had is left out, and the CPU runs everything.
    match settings.device.provider {
        Provider::Cpu => Vec::new(),
        Provider::Cuda => vec![cuda_provider(id, settings).build().error_on_failure()],
        Provider::TensorRt => vec![
            TensorRT::default().with_device_id(id).build().error_on_failure(),
            cuda_provider(id, settings).build().error_on_failure(),
        ],
    }
}

fn cuda_provider(id: i32, settings: &Settings<'_>) -> CUDA {
    let provider = CUDA::default()
        .with_device_id(id)
        // Where ONNX Runtime fuses a sum and a layer norm, the sum is kept in 32 bits.
        .with_skip_layer_norm_strict_mode(true)
        // It is on by default, and rounds the factors of 32-bit products to 16-bit floats'
        // precision.
        .with_tf32(false);
    match settings.device_bytes_max {
        0 => provider,
        // Growing by powers of two would leave much of what is bounded unused.
        bytes => provider
            .with_memory_limit(bytes)
            .with_arena_extend_strategy(ArenaExtendStrategy::SameAsRequested),
    }
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
    let places = [batch.rows(), batch.places];
    let captions = [batch.captions()];
    Ok(ort::inputs![
        TensorRef::from_array_view((tokens, &batch.token_ids[..]))?,
        TensorRef::from_array_view((tokens, &batch.token_positions[..]))?,
        TensorRef::from_array_view((tokens, &batch.token_slots[..]))?,
        TensorRef::from_array_view((slots, &batch.slot_tokens[..]))?,
        TensorRef::from_array_view((slots, &batch.slot_captions[..]))?,
        TensorRef::from_array_view((places, &batch.row_captions[..]))?,
        TensorRef::from_array_view((captions, &batch.caption_places[..]))?,
        TensorRef::from_array_view((captions, &batch.caption_lengths[..]))?,
    ])
}

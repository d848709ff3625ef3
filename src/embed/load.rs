//! Loads the embedders that the configuration asks for, and finds out how they run best.

use std::num::NonZeroUsize;
use std::path::Path;

use super::EmbedError;
use super::Embedder;
use super::calibration::{
    Cache, Calibration, Key, NoMemory, TOKENS_UNMEASURED, Wanted, calibrate, cpu_name,
    memory_available,
};
use super::hash::HashEmbedder;
use super::library;
use super::onnx::{LoadError, OnnxEmbedder};
use crate::batch::budget::TokenBudget;
use crate::batch::cost::CostModel;
use crate::config::{Config, EmbedderKind};
use crate::model::package::{Package, WEIGHTS};

/// What runs a network on the CPU, by ONNX Runtime's name for it.
const CPU: &str = "CPUExecutionProvider";

/// What runs where there is no network.
const NONE: &str = "none";

/// The embedders of a worker, each for a thread of its own.
pub struct Embedders {
    /// The execution provider that the configuration asks for.
    pub provider_wanted: &'static str,
    /// The execution provider that runs the network.
    pub provider_running: &'static str,
    /// They run at the same time.
    pub embedders: Vec<Box<dyn Embedder>>,
    /// How many tokens a batch should have.
    pub budget: TokenBudget,
    /// What passes take.
    pub cost: CostModel,
}

/// Why there are no embedders.
#[derive(Debug, thiserror::Error)]
pub enum EmbeddersError {
    /// The package can't be run.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// It fails where it is measured.
    #[error("the package fails on a small batch")]
    Calibration(#[from] EmbedError),
    /// More sessions are asked for than there is memory.
    #[error(transparent)]
    NoMemory(#[from] NoMemory),
}

impl From<library::LibraryError> for EmbeddersError {
    fn from(error: library::LibraryError) -> Self {
        EmbeddersError::Load(error.into())
    }
}

/// Loads the embedders. What the configuration leaves open is measured, or was once.
///
/// # Errors
///
/// When ONNX Runtime or the package can't be used.
pub fn load(config: &Config, package: &Package) -> Result<Embedders, EmbeddersError> {
    let wanted = wanted(config);
    if config.embed.embedder == EmbedderKind::Hash {
        let budget = TokenBudget::fixed(wanted.tokens.unwrap_or(TOKENS_UNMEASURED));
        let embedder = HashEmbedder::new(package.manifest.network.dim);
        let embedders: Vec<Box<dyn Embedder>> = vec![Box::new(embedder)];
        return Ok(Embedders {
            provider_wanted: NONE,
            provider_running: NONE,
            embedders,
            budget,
            cost: CostModel::default(),
        });
    }
    let library = config.embed.onnxruntime();
    let (calibration, embedders) = match known(package, library, &wanted)? {
        Some(calibration) => {
            let Calibration { sessions, threads, .. } = calibration;
            (calibration, sessions_of(package, library, sessions, threads)?)
        }
        None => measure(package, library, &wanted)?,
    };
    let budget = calibration.budget(&wanted);
    tracing::info!(
        sessions = calibration.sessions,
        threads = calibration.threads,
        batch_tokens = budget.tokens(),
        "the embedder runs with"
    );
    Ok(Embedders {
        // `build_session` registers no other, and ONNX Runtime adds none by itself.
        provider_wanted: CPU,
        provider_running: CPU,
        embedders: embedders.into_iter().map(|e| Box::new(e) as Box<dyn Embedder>).collect(),
        budget,
        cost: calibration.cost(),
    })
}

/// Returns the calibration of a package if nothing is left open, or it has been measured before.
///
/// # Errors
///
/// When there is no ONNX Runtime.
pub fn known(
    package: &Package,
    library: Option<&Path>,
    wanted: &Wanted,
) -> Result<Option<Calibration>, library::LibraryError> {
    if let Some(settled) = wanted.settled() {
        return Ok(Some(settled));
    }
    Ok(Cache::beside(&package.path).get(&key(package, library, wanted)?))
}

fn key(
    package: &Package,
    library: Option<&Path>,
    wanted: &Wanted,
) -> Result<Key, library::LibraryError> {
    Ok(Key {
        model_id: package.manifest.model_id.clone(),
        device: cpu_name(),
        cpus: cpus(),
        onnxruntime: library::find(library)?,
        capvec: env!("CARGO_PKG_VERSION").into(),
        wanted: *wanted,
    })
}

fn measure(
    package: &Package,
    library: Option<&Path>,
    wanted: &Wanted,
) -> Result<(Calibration, Vec<OnnxEmbedder>), EmbeddersError> {
    tracing::info!("measuring how the package runs best here; it takes some seconds");
    let vocabulary = package.manifest.network.vocabulary;
    // A session's own memory is its matrices, laid out for the CPU, and what a pass needs.
    let weights = package.manifest.files.iter().find(|file| file.name == WEIGHTS);
    let session_bytes = weights.map_or(0, |file| file.bytes);
    let (calibration, embedders) = calibrate(wanted, cpus(), vocabulary, |sessions, threads| {
        let bytes = session_bytes * sessions as u64;
        let is_a_try = sessions > 1 && wanted.sessions.is_none();
        if is_a_try && memory_available().is_none_or(|available| bytes > available / 2) {
            tracing::info!(sessions, "not tried: there is too little memory");
            return Ok::<_, EmbeddersError>(None);
        }
        sessions_of(package, library, sessions, threads).map(Some)
    })?;
    let cache = Cache::beside(&package.path);
    if let Err(error) = cache.put(key(package, library, wanted)?, calibration.clone()) {
        let path = cache.path().display();
        tracing::info!(%path, %error, "what was measured can't be kept; the next start measures again");
    }
    Ok((calibration, embedders))
}

fn sessions_of(
    package: &Package,
    library: Option<&Path>,
    sessions: usize,
    threads: usize,
) -> Result<Vec<OnnxEmbedder>, EmbeddersError> {
    let one = |_| OnnxEmbedder::load(package, library, threads);
    Ok((0..sessions).map(one).collect::<Result<_, _>>()?)
}

fn wanted(config: &Config) -> Wanted {
    let given = |number: usize| Some(number).filter(|number| *number > 0);
    Wanted {
        tokens: given(config.batch.tokens_max),
        sessions: given(config.embed.sessions),
        threads: given(config.embed.threads),
    }
}

/// Returns the compute threads of a session that has all CPUs; `asked` where it isn't 0.
pub fn threads_of_one(asked: usize) -> usize {
    if asked == 0 { cpus() } else { asked }
}

/// Returns the CPUs that this process may use: the cgroup's quota and the affinity mask, not what
/// the machine has.
pub fn cpus() -> usize {
    std::thread::available_parallelism().map_or(1, NonZeroUsize::get)
}

//! Loads the embedders that the configuration asks for, on each of its devices. How they run best
//! on the first one is decided in `site`.

mod site;

use std::num::NonZeroUsize;
use std::path::Path;

use super::EmbedError;
use super::Embedder;
use super::calibration::{NoMemory, TOKENS_UNMEASURED, Wanted};
use super::device::{self, Device, DeviceChoice, Taken};
use super::hash::HashEmbedder;
use super::library;
use super::onnx::{LoadError, OnnxEmbedder, Settings};
use crate::batch::budget::TokenBudget;
use crate::batch::cost::CostModel;
use crate::config::{Config, EmbedderKind};
use crate::model::package::Package;
use site::{Running, Site};

/// The embedders of a worker, each for a thread of its own.
pub struct Embedders {
    /// The execution provider that the configuration asks for.
    pub provider_wanted: &'static str,
    /// The execution provider that runs the network.
    pub provider_running: &'static str,
    /// They run at the same time.
    pub embedders: Vec<OnDevice>,
    /// How many of them run on each device.
    pub sessions: usize,
    /// Compute threads of each.
    pub threads: usize,
    /// Nodes of the graph that ONNX Runtime runs on the CPU though the network is on a GPU.
    pub nodes_on_cpu: usize,
    /// How many tokens a batch should have.
    pub budget: TokenBudget,
    /// What passes take.
    pub cost: CostModel,
}

/// An embedder, and where it runs.
pub struct OnDevice {
    /// The device's name.
    pub device: String,
    /// The embedder.
    pub embedder: Box<dyn Embedder>,
}

impl From<OnnxEmbedder> for OnDevice {
    fn from(embedder: OnnxEmbedder) -> Self {
        OnDevice { device: embedder.device().to_string(), embedder: Box::new(embedder) }
    }
}

impl Embedders {
    /// Returns a single embedder that isn't of ONNX Runtime.
    pub fn without_runtime(embedder: Box<dyn Embedder>, tokens: usize) -> Embedders {
        Embedders {
            provider_wanted: device::NONE,
            provider_running: device::NONE,
            embedders: vec![OnDevice { device: device::NONE.into(), embedder }],
            sessions: 1,
            threads: 1,
            nodes_on_cpu: 0,
            budget: TokenBudget::fixed(tokens),
            cost: CostModel::default(),
        }
    }
}

/// Why there are no embedders.
#[derive(Debug, thiserror::Error)]
pub enum EmbeddersError {
    /// The package can't be run.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// It fails where it is measured.
    #[error(
        "the package fails where its speed is measured; smaller batches (batch.tokens_max) need less memory"
    )]
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
/// When ONNX Runtime, a device or the package can't be used.
pub fn load(config: &Config, package: &Package) -> Result<Embedders, EmbeddersError> {
    let wanted = wanted(config);
    if config.embed.embedder == EmbedderKind::Hash {
        let embedder = HashEmbedder::new(package.manifest.network.dim);
        let tokens = wanted.tokens.unwrap_or(TOKENS_UNMEASURED);
        return Ok(Embedders::without_runtime(Box::new(embedder), tokens));
    }
    let choice = &config.embed.device;
    let library = library::find(config.embed.onnxruntime(), choice)?;
    let bytes_max = config.embed.device_bytes_max;
    let (running, taken) = device::take(choice, &library, |devices| {
        let first = Site { package, library: &library, device: devices[0], bytes_max };
        load_on(&first, &devices[1..], &wanted)
    })?;
    let Running { calibration, embedders } = running;
    let budget = calibration.budget(&wanted);
    let names: Vec<String> = taken.devices.iter().map(Device::to_string).collect();
    tracing::info!(
        devices = names.join(","),
        sessions = calibration.sessions,
        threads = calibration.threads,
        batch_tokens = budget.tokens(),
        "the embedder runs with"
    );
    Ok(Embedders {
        provider_wanted: taken.wanted.as_label(),
        provider_running: taken.running().as_label(),
        nodes_on_cpu: embedders.iter().map(|e| e.nodes_on_cpu().len()).max().unwrap_or(0),
        embedders: embedders.into_iter().map(OnDevice::from).collect(),
        sessions: calibration.sessions,
        threads: calibration.threads,
        budget,
        cost: calibration.cost(),
    })
}

/// Loads on all devices what runs best on the first one, for they are of one kind.
fn load_on(
    first: &Site<'_>,
    others: &[Device],
    wanted: &Wanted,
) -> Result<Running, EmbeddersError> {
    let mut running = first.load_best(wanted)?;
    let (sessions, threads) = (running.calibration.sessions, running.calibration.threads);
    for &device in others {
        let other = Site { device, ..*first };
        running.embedders.extend(other.load_sessions(sessions, threads)?);
    }
    Ok(running)
}

/// Loads one embedder on the first device that is asked for, for what runs a package without a
/// worker. It may take all of a GPU's memory.
///
/// # Errors
///
/// When ONNX Runtime, the device or the package can't be used.
pub fn load_one(
    package: &Package,
    onnxruntime: Option<&Path>,
    choice: &DeviceChoice,
    threads: usize,
) -> Result<(OnnxEmbedder, Taken), LoadError> {
    let library = library::find(onnxruntime, choice)?;
    device::take(choice, &library, |devices| {
        let (library, device) = (&*library, devices[0]);
        let settings = Settings { library, device, threads, device_bytes_max: 0 };
        OnnxEmbedder::load(package, &settings)
    })
}

/// Returns what the configuration names; 0 there leaves it open.
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

//! Loads the embedders that the configuration asks for, on each of its devices, and finds out how they
//! run best.

use std::num::NonZeroUsize;
use std::path::Path;

use super::EmbedError;
use super::Embedder;
use super::calibration::{
    Cache, Calibration, Key, NoMemory, TOKENS_UNMEASURED, Wanted, calibrate, cpu_name,
    memory_available,
};
use super::device::{self, Device, DeviceChoice, Taken, gpu_names};
use super::hash::HashEmbedder;
use super::library;
use super::onnx::{LoadError, OnnxEmbedder, Settings};
use crate::batch::budget::TokenBudget;
use crate::batch::cost::CostModel;
use crate::config::{Config, EmbedderKind};
use crate::model::manifest::{Manifest, Precision};
use crate::model::package::{Package, WEIGHTS};

/// Passes that are under way on a GPU where nobody says otherwise: while one computes, the other's
/// numbers are copied and its kernels are queued.
const GPU_SESSIONS: usize = 2;

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
    let ((calibration, embedders, wanted), taken) = device::take(choice, &library, |devices| {
        let site = Site { package, library: &library, device: devices[0], bytes_max };
        load_on(&site, devices, &site.wanted(&wanted))
    })?;
    let budget = calibration.budget(&wanted);
    let names: Vec<String> = taken.devices.iter().map(Device::to_string).collect();
    tracing::info!(
        devices = names.join(","),
        sessions = calibration.sessions,
        threads = calibration.threads,
        batch_tokens = budget.tokens(),
        "the embedder runs with"
    );
    let nodes_on_cpu = embedders.iter().map(|e| e.nodes_on_cpu().len()).max().unwrap_or(0);
    let on_device = |embedder: OnnxEmbedder| OnDevice {
        device: embedder.device().to_string(),
        embedder: Box::new(embedder),
    };
    Ok(Embedders {
        provider_wanted: taken.wanted.as_label(),
        provider_running: taken.running().as_label(),
        embedders: embedders.into_iter().map(on_device).collect(),
        sessions: calibration.sessions,
        threads: calibration.threads,
        nodes_on_cpu,
        budget,
        cost: calibration.cost(),
    })
}

/// Loads one embedder on the first device that is asked for, for what runs a package without a worker.
/// It may take all of a GPU's memory.
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

/// A package and a device to run it on.
struct Site<'a> {
    package: &'a Package,
    library: &'a Path,
    device: Device,
    /// Bytes of the device's memory that all of its sessions may take; 0 for all.
    bytes_max: usize,
}

type Loaded = (Calibration, Vec<OnnxEmbedder>, Wanted);

/// Loads on all devices what the first one is measured to run best with, for they are of one kind.
fn load_on(site: &Site<'_>, devices: &[Device], wanted: &Wanted) -> Result<Loaded, EmbeddersError> {
    let (calibration, mut embedders) = match site.known(wanted)? {
        Some(calibration) => {
            let embedders = site.sessions(calibration.sessions, calibration.threads)?;
            (calibration, embedders)
        }
        None => site.measure(wanted)?,
    };
    for &device in &devices[1..] {
        let other = Site { device, ..*site };
        embedders.extend(other.sessions(calibration.sessions, calibration.threads)?);
    }
    Ok((calibration, embedders, *wanted))
}

impl Site<'_> {
    /// Returns what is left open on this device: on a GPU, the size of a batch alone.
    fn wanted(&self, wanted: &Wanted) -> Wanted {
        match self.device.is_gpu() {
            false => *wanted,
            true => Wanted {
                sessions: wanted.sessions.or(Some(GPU_SESSIONS)),
                threads: wanted.threads.or(Some(1)),
                ..*wanted
            },
        }
    }

    /// Returns the calibration if nothing is left open, or it has been measured before.
    fn known(&self, wanted: &Wanted) -> Result<Option<Calibration>, library::LibraryError> {
        if let Some(settled) = wanted.settled() {
            return Ok(Some(settled));
        }
        let known = Cache::beside(&self.package.path).get(&self.key(wanted));
        // The memory may be less than where it was measured.
        let fits = |known: &Calibration| wanted.sessions.is_some() || self.has_room(known.sessions);
        Ok(known.filter(fits))
    }

    /// Returns whether so many sessions leave as much memory as they take.
    fn has_room(&self, sessions: usize) -> bool {
        let bytes = sessions as u64 * own_bytes(&self.package.manifest);
        sessions == 1 || memory_available().is_some_and(|available| bytes <= available / 2)
    }

    fn key(&self, wanted: &Wanted) -> Key {
        Key {
            model_id: self.package.manifest.model_id.clone(),
            device: self.device_name(),
            cpus: cpus(),
            onnxruntime: self.library.into(),
            capvec: env!("CARGO_PKG_VERSION").into(),
            wanted: *wanted,
        }
    }

    /// Returns the kind of the device, with the bound on its memory.
    fn device_name(&self) -> String {
        if !self.device.is_gpu() {
            return cpu_name();
        }
        let visible = ["NVIDIA_VISIBLE_DEVICES", "CUDA_VISIBLE_DEVICES"]
            .map(|name| std::env::var(name).unwrap_or_default());
        gpu_name(self.device, &gpu_names(), &visible, self.bytes_max)
    }

    fn measure(&self, wanted: &Wanted) -> Result<(Calibration, Vec<OnnxEmbedder>), EmbeddersError> {
        tracing::info!("measuring how the package runs best here; it takes some seconds");
        let manifest = &self.package.manifest;
        let load = |sessions, threads| {
            if wanted.sessions.is_none() && !self.has_room(sessions) {
                tracing::info!(sessions, "not tried: there is too little memory");
                return Ok::<_, EmbeddersError>(None);
            }
            self.sessions(sessions, threads).map(Some)
        };
        let found = calibrate(wanted, cpus(), manifest.network.vocabulary, load)?;
        Cache::beside(&self.package.path).keep(self.key(wanted), &found);
        Ok((found.calibration, found.sessions))
    }

    fn sessions(
        &self,
        sessions: usize,
        threads: usize,
    ) -> Result<Vec<OnnxEmbedder>, EmbeddersError> {
        let settings = Settings {
            library: self.library,
            device: self.device,
            threads,
            // Each session has an arena of its own.
            device_bytes_max: share(self.bytes_max, sessions),
        };
        let one = |_| OnnxEmbedder::load(self.package, &settings);
        Ok((0..sessions).map(one).collect::<Result<_, _>>()?)
    }
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

/// Returns the memory that a session has for itself: its matrices, laid out for the CPU. Tables, which a
/// pass reads a few rows of, stay in the file that all sessions map.
fn own_bytes(manifest: &Manifest) -> u64 {
    let weights = manifest.files.iter().find(|file| file.name == WEIGHTS);
    let weights = weights.map_or(0, |file| file.bytes);
    let network = &manifest.network;
    let tables = 4 * (network.vocabulary + network.positions) as u64 * network.hidden as u64;
    match manifest.precision {
        Precision::Fp32 | Precision::Int8 => weights.saturating_sub(tables),
        // A CPU makes numbers of 32 bits of all of them.
        Precision::Fp16 => 2 * weights,
    }
}

/// Returns what tells one GPU from others, of which a package's folder may have calibrations too.
/// `visible` says which of the machine's there are for the worker.
fn gpu_name(device: Device, names: &[String], visible: &[String; 2], bytes_max: usize) -> String {
    let mut name = format!("{device} {}", names.join(", "));
    // The driver shows all GPUs of the machine, and a slice of one by the name of the whole. Where they
    // are alike it is the number of one among its like, and would be another wherever the worker runs next.
    if names.len() > 1 || visible.iter().any(|visible| visible.contains("MIG-")) {
        name.push_str(&format!(", {}", visible.join(", ")));
    }
    if bytes_max > 0 {
        name.push_str(&format!(", {bytes_max} bytes"));
    }
    name
}

/// Returns a session's share of a bound, in which 0 is none.
fn share(bytes_max: usize, sessions: usize) -> usize {
    if bytes_max == 0 { 0 } else { (bytes_max / sessions).max(1) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gpus_that_differ_have_calibrations_of_their_own() {
        let name = |device: &str, names: &[&str], visible: [&str; 2], bytes| {
            let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
            gpu_name(device.parse().unwrap(), &names, &visible.map(str::to_owned), bytes)
        };
        let alike = &["NVIDIA H100"][..];
        let whole = name("cuda:0", alike, ["GPU-1", ""], 0);
        assert_eq!(whole, "cuda:0 NVIDIA H100");
        assert_eq!(whole, name("cuda:0", alike, ["GPU-2", "0"], 0), "one of its like");
        assert_ne!(whole, name("cuda:1", alike, ["GPU-1", ""], 0));
        assert_ne!(whole, name("cuda:0", alike, ["MIG-1", ""], 0));
        assert_ne!(whole, name("cuda:0", alike, ["", "MIG-1"], 0));
        assert_ne!(whole, name("cuda:0", alike, ["GPU-1", ""], 1 << 30));
        let mixed = &["NVIDIA H100", "NVIDIA L4"][..];
        let first = name("cuda:0", mixed, ["all", "0"], 0);
        assert_ne!(first, name("cuda:0", mixed, ["all", "1"], 0));
        assert_ne!(first, name("cuda:0", mixed, ["GPU-1", "0"], 0));
    }

    #[test]
    fn a_share_of_a_bound_is_a_bound() {
        assert_eq!([share(0, 2), share(1, 2), share(100, 2)], [0, 1, 50]);
    }
}

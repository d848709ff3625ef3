//! A package on a device, and how it is to run there: as the configuration says, as it was measured
//! before, or as it is measured now.

use std::fs;
use std::path::Path;

use super::{EmbeddersError, cpus};
use crate::embed::calibration::{
    Cache, Calibration, Key, Wanted, calibrate, cpu_name, memory_available,
};
use crate::embed::device::{Device, gpu_names};
use crate::embed::onnx::{LoadError, OnnxEmbedder, Settings};
use crate::model::manifest::{Manifest, Precision};
use crate::model::package::{Package, WEIGHTS};

/// Passes that are under way on a GPU where nobody says otherwise: while one computes, the other's
/// numbers are copied and its kernels are queued.
const GPU_SESSIONS: usize = 2;

/// A package and a device to run it on.
pub(super) struct Site<'a> {
    pub package: &'a Package,
    /// ONNX Runtime.
    pub library: &'a Path,
    pub device: Device,
    /// Bytes of the device's memory that all of its sessions may take; 0 for all.
    pub bytes_max: usize,
}

/// The embedders of a site or of several, and how each site runs.
pub(super) struct Running {
    pub calibration: Calibration,
    pub embedders: Vec<OnnxEmbedder>,
}

impl Site<'_> {
    /// Loads as many sessions as run best here, with as many threads.
    pub fn load_best(&self, wanted: &Wanted) -> Result<Running, EmbeddersError> {
        let wanted = self.left_open(wanted);
        if let Some(settled) = wanted.settled() {
            return Ok(self.load_as(settled)?);
        }
        let cache = Cache::beside(&self.package.path);
        let key = self.key(&wanted);
        if let Some(known) = cache.get(&key)
            // The memory may be less than where it was measured.
            && (wanted.sessions.is_some() || self.has_room(known.sessions))
        {
            return Ok(self.load_as(known)?);
        }
        tracing::info!("measuring how the package runs best here; it takes some seconds");
        let manifest = &self.package.manifest;
        let (vocabulary, tokens_max) = (manifest.network.vocabulary, manifest.max_tokens);
        let found = calibrate(&wanted, cpus(), vocabulary, tokens_max, |sessions, threads| {
            if wanted.sessions.is_none() && !self.has_room(sessions) {
                tracing::info!(sessions, "not tried: there is too little memory");
                return Ok(None);
            }
            Ok::<_, EmbeddersError>(Some(self.load_sessions(sessions, threads)?))
        })?;
        cache.keep(key, &found);
        Ok(Running { calibration: found.calibration, embedders: found.sessions })
    }

    fn load_as(&self, calibration: Calibration) -> Result<Running, LoadError> {
        let embedders = self.load_sessions(calibration.sessions, calibration.threads)?;
        Ok(Running { calibration, embedders })
    }

    /// Loads so many sessions with so many threads each.
    pub fn load_sessions(
        &self,
        sessions: usize,
        threads: usize,
    ) -> Result<Vec<OnnxEmbedder>, LoadError> {
        let settings = Settings {
            library: self.library,
            device: self.device,
            threads,
            // Each session has an arena of its own.
            device_bytes_max: share(self.bytes_max, sessions),
        };
        (0..sessions).map(|_| OnnxEmbedder::load(self.package, &settings)).collect()
    }

    /// Returns what is left open on this device: on a GPU, the size of a batch alone.
    fn left_open(&self, wanted: &Wanted) -> Wanted {
        if !self.device.is_gpu() {
            return *wanted;
        }
        Wanted {
            sessions: wanted.sessions.or(Some(GPU_SESSIONS)),
            threads: wanted.threads.or(Some(1)),
            ..*wanted
        }
    }

    /// Returns whether so many sessions leave as much memory as they take.
    fn has_room(&self, sessions: usize) -> bool {
        let bytes = sessions as u64 * own_bytes(&self.package.manifest);
        sessions == 1 || memory_available().is_some_and(|available| bytes <= available / 2)
    }

    /// Returns what a calibration of this site holds for.
    fn key(&self, wanted: &Wanted) -> Key {
        Key {
            model_id: self.package.manifest.model_id.clone(),
            device: self.device_name(),
            cpus: cpus(),
            onnxruntime: self.library.into(),
            onnxruntime_bytes: fs::metadata(self.library).map_or(0, |file| file.len()),
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
}

/// Returns the memory that a session has for itself: its matrices, laid out for the CPU. Tables,
/// which a pass reads a few rows of, stay in the file that all sessions map.
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
    // The driver shows all GPUs of the machine, and a slice of one by the name of the whole. Where
    // they are alike it is the number of one among its like, and would be another wherever the
    // worker runs next.
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
    use crate::model::synth::{Synthesis, synthesize};

    #[test]
    fn a_library_that_is_replaced_has_another_calibration() {
        let folder = tempfile::tempdir().unwrap();
        let (path, library) = (folder.path().join("tiny"), folder.path().join("library"));
        synthesize(&Synthesis::tiny(1, &path), &mut |_| ()).unwrap();
        let package = Package::open(&path).unwrap();
        let site = Site { package: &package, library: &library, device: Device::CPU, bytes_max: 0 };
        let key_with = |contents: &str| {
            fs::write(&library, contents).unwrap();
            site.key(&Wanted::default())
        };
        let first = key_with("version 1");
        assert_ne!(first, key_with("version 1.1"));
        assert_eq!(first, key_with("version 1"));
    }

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

//! Which device the network runs on, on a machine without a GPU: what is named and can't be had is
//! an error that says what is missing, `auto` falls back and says so, and too little memory makes
//! smaller batches.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use capvec::batch::packing::TokenBatch;
use capvec::embed::device::DeviceChoice;
use capvec::embed::hash::HashEmbedder;
use capvec::embed::{EmbedError, Embedder, library};

use crate::support::{
    CAPVEC, Outgoing, Running, Worker, captions, capvec_fails, eventually, mock, text, tiny_package,
};

const PROVIDER: &str = "libonnxruntime_providers_cuda.so";

/// The CPU's library.
fn cpu_library() -> PathBuf {
    library::find(None, &DeviceChoice::Auto).unwrap()
}

/// A folder in which the CPU's library lies beside a CUDA provider that no loader takes: as a GPU's
/// library on a machine whose driver is missing, or broken.
fn broken_gpu_library(folder: &Path) -> PathBuf {
    let library = folder.join("libonnxruntime.so");
    std::os::unix::fs::symlink(cpu_library(), &library).unwrap();
    std::fs::write(folder.join(PROVIDER), "no library").unwrap();
    library
}

#[test]
fn a_gpu_that_cannot_be_had_is_an_error_that_says_what_is_missing() {
    let folder = tempfile::tempdir().unwrap();
    let (cpu, broken) = (cpu_library(), broken_gpu_library(folder.path()));
    let captions = folder.path().join("captions");
    std::fs::write(&captions, "a dog\n").unwrap();
    let fails = |library: &Path, device: &str| {
        let args = ["embed", "--model", text(tiny_package()), text(&captions), "--out", "-"];
        let more = ["--onnxruntime", text(library), "--device", device];
        capvec_fails(&[&args[..], &more].concat())
    };
    for device in ["cuda:0", "tensorrt:0"] {
        let (code, error) = fails(&cpu, device);
        assert_eq!(code, 1, "{error}");
        for part in [device, text(&cpu), PROVIDER, "scripts/onnxruntime gpu"] {
            assert!(error.contains(part), "{part}: {error}");
        }
    }
    // The first of CUDA's libraries that isn't there, which depends on the machine, or the
    // provider.
    let (code, error) = fails(&broken, "cuda:0");
    assert!(code == 1 && error.contains("cuda:0 can't be had"), "{error}");
    assert!(error.contains(".so"), "a library is named: {error}");

    for (device, reason) in [("gpu", "is no device"), ("cuda:0,cuda:1", "several devices")] {
        let (code, error) = fails(&cpu, device);
        assert!(code == 2 && error.contains(reason), "{device}: {code}, {error}");
    }
}

#[test]
fn the_library_for_gpus_is_looked_for_where_a_gpu_is_named() {
    let cache = tempfile::tempdir().unwrap();
    for (device, folder) in [("cuda:0", "-gpu"), ("cpu", "-cpu"), ("auto", "-cpu")] {
        let output = Command::new(CAPVEC)
            .args(["embed", "--model", text(tiny_package()), "--out", "-", "--device", device])
            .env("CAPVEC_CACHE", cache.path())
            .env_remove("ORT_DYLIB_PATH")
            .stdin(Stdio::null())
            .output()
            .unwrap();
        let error = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{error}");
        assert!(error.contains(&format!("{folder}/libonnxruntime.so")), "{device}: {error}");
        assert!(error.contains("scripts/onnxruntime gpu"), "{error}");
    }
}

#[test]
fn a_worker_with_a_gpu_that_cannot_be_had_does_not_start() {
    let (_mock, cluster) = mock(1);
    let library = format!("embed.onnxruntime={}", cpu_library().display());
    let options = ["embed.embedder=onnx", "embed.device=cuda:0,cuda:1", library.as_str()];
    let mut worker = Worker::start(&cluster, "in", &options);
    assert_eq!(worker.wait().code(), Some(1), "{}", worker.log());
    assert!(worker.log().contains(PROVIDER), "{}", worker.log());
}

#[test]
fn auto_falls_back_to_the_cpu_and_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let running = |library: PathBuf| {
        let (mock, cluster) = mock(1);
        let library = format!("embed.onnxruntime={}", library.display());
        let options = ["embed.embedder=onnx", "batch.tokens_max=64", library.as_str()];
        let worker = Worker::start(&cluster, "in", &options).ready();
        cluster.send("in", &[Outgoing::caption("k", "a dog")]);
        cluster.await_records("in.out", 1);
        (worker, mock)
    };
    let provider = |wanted: &str| {
        format!(
            "capvec_execution_provider_info{{running=\"CPUExecutionProvider\",wanted=\"{wanted}\"}}"
        )
    };
    let device = "capvec_embed_device_info{device=\"cpu\",provider=\"CPUExecutionProvider\"}";
    let busy = "capvec_embed_device_busy_seconds_total{device=\"cpu\"}";

    let (worker, _mock) = running(broken_gpu_library(folder.path()));
    assert_eq!(worker.metric(&provider("CUDAExecutionProvider")), Some(1.0));
    assert_eq!(worker.metric(device), Some(1.0));
    assert!(worker.metric(busy).is_some_and(|seconds| seconds > 0.0));
    let log = worker.stop();
    let warning = log.lines().find(|line| line.contains("the network runs on the CPU"));
    let warning = warning.unwrap_or_else(|| panic!("no warning: {log}"));
    assert!(warning.contains("WARN") && warning.contains("cuda:0"), "{warning}");
    assert!(warning.contains(".so"), "the reason is in it: {warning}");

    // Nobody asks for a GPU with the CPU's library.
    let (worker, _mock) = running(cpu_library());
    assert_eq!(worker.metric(&provider("CPUExecutionProvider")), Some(1.0));
    assert_eq!(worker.metric(device), Some(1.0));
    let log = worker.stop();
    assert!(!log.contains("the network runs on the CPU"), "{log}");
}

/// Has memory for so many tokens.
struct Small {
    inner: HashEmbedder,
    tokens_max: usize,
}

impl Embedder for Small {
    fn dim(&self) -> usize {
        self.inner.dim()
    }

    fn embed(&mut self, batch: &TokenBatch) -> Result<Vec<f32>, EmbedError> {
        if batch.tokens() > self.tokens_max {
            return Err(EmbedError::Run {
                captions: batch.captions(),
                tokens: batch.tokens(),
                reason: "BFCArena: Available memory of 7 is smaller than requested bytes of 9"
                    .into(),
            });
        }
        self.inner.embed(batch)
    }
}

#[test]
fn too_little_memory_makes_smaller_batches_and_loses_nothing() {
    let (_mock, cluster) = mock(1);
    let captions = captions(400);
    cluster.send("in", &captions);
    let small = |inner| Small { inner, tokens_max: 60 };
    let worker = Running::start_with(&cluster.config("in"), small, 1000);
    cluster.await_records("in.out", 400);
    let splits = || worker.metric("capvec_batch_splits_total{reason=\"out_of_memory\"}");
    assert!(splits() > 0.0);
    eventually("the budget is halved until it fits", || {
        (worker.metric("capvec_batch_tokens_limit") <= 60.0).then_some(())
    });
    // Batches that are made by then fit: no more of them are split.
    let settled = splits();
    cluster.send("in", &captions);
    cluster.await_records("in.out", 800);
    assert_eq!(splits(), settled);
    worker.stop();
    assert_eq!(cluster.count("in.dead"), 0, "nothing is rejected");
}

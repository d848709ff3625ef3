//! The GPU's half without a GPU: ONNX Runtime's library for GPUs over a CUDA that does nothing
//! (tests/cuda/fake.c). What it decides is real: which device it takes, which node has a kernel for
//! which type, and how much of the memory it takes. The vectors mean nothing.
//!
//! The library is 740 MB to download, so it isn't fetched here: where `scripts/onnxruntime gpu` has
//! been called, these run.

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use capvec::embed::library;
use capvec::model::manifest::Precision;

use crate::support::{
    CAPVEC, Cluster, Worker, captions, eventually, package_of, sets, skipped, tiny_package,
};

/// CUDA's libraries, in the order of their numbers in the source.
const CUDA: [&str; 5] =
    ["libcudart.so.13", "libcublas.so.13", "libcublasLt.so.13", "libcurand.so.10", "libcuda.so.1"];

/// Returns ONNX Runtime's library for GPUs in a folder with the CUDA that does nothing, or why
/// there is none.
fn gpu_library() -> Result<&'static Path, String> {
    static LIBRARY: OnceLock<Result<(tempfile::TempDir, PathBuf), String>> = OnceLock::new();
    match LIBRARY.get_or_init(make) {
        Ok((_, library)) => Ok(library),
        Err(reason) => Err(format!("no fake GPU: {reason}")),
    }
}

fn make() -> Result<(tempfile::TempDir, PathBuf), String> {
    let cache = library::cache_folder().ok_or("no folder for downloads")?;
    let from = cache.join("onnxruntime").join(format!("{}-gpu", library::VERSION));
    if !from.join("libonnxruntime.so").is_file() {
        return Err(format!("{} is not there; scripts/onnxruntime gpu fetches it", from.display()));
    }
    let folder = tempfile::tempdir().unwrap();
    for file in [
        "libonnxruntime.so",
        "libonnxruntime_providers_cuda.so",
        "libonnxruntime_providers_shared.so",
    ] {
        symlink(from.join(file), folder.path().join(file)).unwrap();
    }
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cuda/fake.c");
    for (number, name) in CUDA.iter().enumerate() {
        // The provider asks for symbols by the library's name as their version; the driver has
        // none.
        let versions = folder.path().join("versions");
        std::fs::write(&versions, format!("{name} {{ global: *; }};")).unwrap();
        let mut compiler = Command::new("cc");
        compiler.args(["-O1", "-fPIC", "-shared", &format!("-DLIBRARY={}", number + 1)]);
        compiler.arg(format!("-Wl,-soname,{name}"));
        if *name != "libcuda.so.1" {
            compiler.arg(format!("-Wl,--version-script={}", versions.display()));
        }
        compiler.arg("-o").arg(folder.path().join(name)).arg(&source);
        let output = compiler.output().map_err(|error| format!("cc: {error}"))?;
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
    let library = folder.path().join("libonnxruntime.so");
    Ok((folder, library))
}

/// What `capvec check` says of the embedder; there are no brokers.
fn check(library: &Path, package: &Path, device: &str, devices: usize) -> String {
    let options = [
        "kafka.brokers=127.0.0.1:1",
        "kafka.group=g",
        "kafka.startup_timeout=1s",
        "input.topic=in",
        "output.topic=out",
        &format!("model.package={}", package.display()),
        &format!("embed.device={device}"),
        &format!("embed.onnxruntime={}", library.display()),
    ];
    let mut command = Command::new(CAPVEC);
    command.arg("check").args(sets(&options)).env("FAKE_CUDA_DEVICES", devices.to_string());
    let output = command.stdin(Stdio::null()).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    let line = text.lines().find(|line| line.contains(" embedder: "));
    line.unwrap_or_else(|| panic!("{text}\n{}", String::from_utf8_lossy(&output.stderr))).to_owned()
}

/// The CUDA that does nothing refuses products in TensorFloat-32, which a pass would fail of.
#[test]
fn every_node_has_a_kernel_for_the_gpu_and_32_bits_stay_32() {
    let Ok(library) = gpu_library().map_err(skipped) else { return };
    let folder = tempfile::tempdir().unwrap();
    for precision in [Precision::Fp32, Precision::Fp16] {
        let said = check(library, &package_of(folder.path(), precision), "cuda:0", 1);
        assert!(said.starts_with("ok") && said.contains("cuda:0 in "), "{said}");
        assert!(!said.contains("on the CPU"), "{precision:?}: {said}");
    }
    // Its kernels are the CPU's.
    let said = check(library, &package_of(folder.path(), Precision::Int8), "cuda:0", 1);
    assert!(said.starts_with("FAILED") && said.contains("--precision fp16"), "{said}");
}

#[test]
fn packages_that_run_on_different_devices_are_not_compared() {
    let Ok(library) = gpu_library().map_err(skipped) else { return };
    let folder = tempfile::tempdir().unwrap();
    let captions = folder.path().join("captions");
    std::fs::write(&captions, "a fox\na moose\n").unwrap();
    let output = Command::new(CAPVEC)
        .args(["model", "compare"])
        .args([tiny_package(), &package_of(folder.path(), Precision::Int8)])
        .args([Path::new("--captions"), &captions, Path::new("--onnxruntime"), library])
        .env("FAKE_CUDA_DEVICES", "1")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success(), "{said}");
    assert!(said.contains("A runs on cuda:0 and B on cpu"), "{said}");
}

#[test]
fn a_device_that_there_is_not_is_an_error_and_auto_does_without() {
    let Ok(library) = gpu_library().map_err(skipped) else { return };
    let said = check(library, tiny_package(), "cuda:0,cuda:2", 2);
    assert!(said.starts_with("FAILED") && said.contains("cuda:2 can't be had"), "{said}");
    assert!(said.contains("Invalid device ID: 2"), "{said}");
    let said = check(library, tiny_package(), "cuda:0", 0);
    assert!(said.starts_with("FAILED") && said.contains("no CUDA-capable device"), "{said}");
    let said = check(library, tiny_package(), "auto", 0);
    assert!(said.starts_with("ok") && said.contains("cpu in "), "{said}");
    assert!(said.contains("for want of a GPU"), "{said}");
    let said = check(library, tiny_package(), "auto", 1);
    assert!(said.starts_with("ok") && said.contains("cuda:0 in "), "{said}");
}

#[test]
fn a_worker_runs_on_all_of_its_devices() {
    let Ok(library) = gpu_library().map_err(skipped) else { return };
    let cluster = Cluster::shared();
    cluster.create_topics("two-gpus", 1);
    let mut command = Command::new(CAPVEC);
    command.arg("run").env("FAKE_CUDA_DEVICES", "2");
    let options = [
        "embed.embedder=onnx",
        "embed.threads=0",
        "embed.device=cuda:0,cuda:1",
        "batch.tokens_max=64",
        &format!("embed.onnxruntime={}", library.display()),
    ];
    let worker = Worker::launch(command, &cluster, "two-gpus", &options).ready();
    for device in ["cuda:0", "cuda:1"] {
        let info = format!(
            "capvec_embed_device_info{{device=\"{device}\",provider=\"CUDAExecutionProvider\"}}"
        );
        assert_eq!(worker.metric(&info), Some(1.0), "{device}");
    }
    assert_eq!(worker.metric("capvec_embedders"), Some(4.0), "two passes on each");
    assert_eq!(worker.metric("capvec_embed_nodes_on_cpu"), Some(0.0));
    let info = "capvec_execution_provider_info{running=\"CUDAExecutionProvider\",wanted=\"CUDAExecutionProvider\"}";
    assert_eq!(worker.metric(info), Some(1.0));
    worker.stop();
}

#[test]
fn a_bound_on_the_memory_is_kept_and_told_from_other_failures() {
    let Ok(library) = gpu_library().map_err(skipped) else { return };
    let cluster = Cluster::shared();
    cluster.create_topics("small-gpu", 1);
    cluster.send("small-gpu", &captions(300));
    let mut command = Command::new(CAPVEC);
    command.arg("run");
    let options = [
        "embed.embedder=onnx",
        "embed.device=cuda:0",
        "embed.sessions=1",
        // The weights have 13 MB, and a batch of all captions wants more than is left.
        "embed.device_bytes_max=16000000",
        "batch.tokens_max=4000",
        &format!("embed.onnxruntime={}", library.display()),
    ];
    let worker = Worker::launch(command, &cluster, "small-gpu", &options).ready();
    eventually("batches are split for want of memory", || {
        worker
            .metric("capvec_batch_splits_total{reason=\"out_of_memory\"}")
            .filter(|splits| *splits > 0.0)
    });
    // Vectors or, of numbers that nobody computed, rejections: each caption is accounted for.
    eventually("every caption is settled", || {
        let settled = cluster.count("small-gpu.out") + cluster.count("small-gpu.dead");
        (settled == 300).then_some(())
    });
    assert_eq!(worker.metric("capvec_batch_splits_total{reason=\"failed\"}"), Some(0.0));
    assert!(worker.metric("capvec_batch_tokens_limit").is_some_and(|tokens| tokens < 4000.0));
    worker.stop();
}

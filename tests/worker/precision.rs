//! Packages of other precisions: near the one of 32-bit floats, and the same vector in every
//! company.

use std::path::Path;

use capvec::model::import::ImportError;
use capvec::model::manifest::Precision;
use capvec::model::package::{Draft, Existing, Package, write};
use capvec::model::synth::Preset;

use crate::support::{
    Record, Worker, captions, capvec_ok, cosine, mock, package_of, relative_error, text,
};

/// Vectors of the demo's captions, in batches of at most so many captions.
fn embed(package: &Path, batch_captions: &str) -> Vec<Vec<f32>> {
    let captions = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/cli/demo/captions.jsonl");
    let (package, captions) = (text(package), text(&captions));
    let args = ["embed", "--model", package, "--pointer", "/caption", captions];
    let out = capvec_ok(&[&args[..], &["--out", "-", "--batch-captions", batch_captions]].concat());
    out.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn int8_is_near_fp32_and_the_same_in_every_company() {
    let folder = tempfile::tempdir().unwrap();
    let make = |precision| package_of(folder.path(), precision);
    let (fp32, int8) = (make(Precision::Fp32), make(Precision::Int8));
    let manifest = |path: &Path| Package::open(path).unwrap().manifest;
    assert_eq!(manifest(&int8).precision, Precision::Int8);
    assert_ne!(manifest(&int8).model_id, manifest(&fp32).model_id, "other vectors, another id");
    capvec_ok(&["model", "verify", text(&int8)]);

    let (exact, together, alone) = (embed(&fp32, "1024"), embed(&int8, "1024"), embed(&int8, "1"));
    assert!(exact.len() > 50 && exact.len() == together.len() && exact.len() == alone.len());
    for (number, exact) in exact.iter().enumerate() {
        let near = cosine(exact, &together[number]);
        assert!(near > 0.99, "caption {number}: cosine {near}");
        assert!(exact != &together[number], "caption {number}: these are no 8-bit integers");
        let same = cosine(&alone[number], &together[number]);
        assert!(same > 1.0 - 1e-6, "caption {number}, alone and together: cosine {same}");
    }
}

#[test]
fn fp16_is_nearly_fp32_and_half_as_large() {
    let folder = tempfile::tempdir().unwrap();
    let make = |precision| package_of(folder.path(), precision);
    let (fp32, fp16) = (make(Precision::Fp32), make(Precision::Fp16));
    let manifest = |path: &Path| Package::open(path).unwrap().manifest;
    assert_ne!(manifest(&fp16).model_id, manifest(&fp32).model_id, "other vectors, another id");
    let bytes = |path: &Path| manifest(path).files[1].bytes as f64;
    let ratio = bytes(&fp16) / bytes(&fp32);
    assert!((0.5..0.53).contains(&ratio), "{ratio}: only the head keeps 32 bits");
    capvec_ok(&["model", "verify", text(&fp16)]);

    let (exact, together, alone) = (embed(&fp32, "1024"), embed(&fp16, "1024"), embed(&fp16, "1"));
    assert!(exact.len() > 50 && exact.len() == together.len() && exact.len() == alone.len());
    for (number, exact) in exact.iter().enumerate() {
        let error = relative_error(&together[number], exact);
        assert!(error > 1e-5, "caption {number}: {error:e}, these are no 16-bit floats");
        assert!(error <= 2e-3, "caption {number}: {error:e}");
        let apart = relative_error(&alone[number], &together[number]);
        assert!(apart <= 1e-3, "caption {number}, alone and together: {apart:e}");
    }
}

/// ONNX Runtime sets it for the thread that makes the first session and for its own; the embedders'
/// have it of the former. Of Arm's CPUs it sets nothing.
#[cfg(target_arch = "x86_64")]
#[test]
fn denormal_numbers_are_zero_in_every_embedder() {
    let folder = tempfile::tempdir().unwrap();
    let path = package_of(folder.path(), Precision::Fp32);
    let network = Package::open(&path).unwrap().manifest.network;
    // The file ends with the head, matrix and bias. A vector is the bias then.
    let (matrix, bias) = (4 * network.hidden * network.dim, 4 * network.dim);
    assert_eq!(matrix % 4096, 0, "the bias is on the page behind the matrix");
    let weights = path.join("model.onnx.data");
    let mut bytes = std::fs::read(&weights).unwrap();
    let head = bytes.len() - matrix - bias;
    bytes[head..][..matrix].fill(0);
    bytes.truncate(head + matrix);
    bytes.extend(std::iter::repeat_n(1e-40f32.to_le_bytes(), network.dim).flatten());
    std::fs::write(&weights, bytes).unwrap();

    let (_mock, cluster) = mock(1);
    cluster.send("in", &captions(100));
    let package = format!("model.package={}", text(&path));
    // Sessions of one thread each run on the embedders' threads, and the other on its own too.
    for (due, sessions, threads) in [(100, 1, 2), (200, 3, 1)] {
        let numbers = [format!("embed.sessions={sessions}"), format!("embed.threads={threads}")];
        let group = format!("kafka.group=of-{sessions}");
        let options = ["embed.embedder=onnx", "batch.captions_max=2", &package, &group];
        let options = [&options[..], &numbers.each_ref().map(String::as_str)].concat();
        let worker = Worker::start(&cluster, "in", &options).ready();
        let records = cluster.await_records("in.out", due);
        worker.stop();
        let is_zero = |record: &Record| record.vector().iter().all(|number| *number == 0.0);
        assert!(records.iter().all(is_zero), "{sessions} sessions of {threads} threads");
    }
}

#[test]
fn a_weight_that_no_16_bit_float_holds_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let network = Preset::Tiny.network();
    let draft = Draft {
        name: "large".into(),
        network,
        max_tokens: 128,
        precision: Precision::Fp16,
        tokenizer_json: "{}".into(),
        sources: Vec::new(),
    };
    let path = folder.path().join("large");
    let error = write::<ImportError>(&path, Existing::Keep, draft, |weight, sink| {
        let io = |source| ImportError::Io { path: "checkpoint".into(), source };
        sink(&vec![7e4; weight.elements()]).map_err(io)
    });
    let error = format!("{:#}", anyhow::Error::from(error.unwrap_err()));
    assert!(error.contains("embeddings.words has 70000"), "{error}");
    assert!(error.contains("--precision fp32") && !path.exists(), "{error}");
}

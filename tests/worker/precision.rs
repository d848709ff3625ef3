//! Packages of 8-bit integers: near the one of floats, and the same vector in every company.

use std::path::Path;

use capvec::model::manifest::Precision;
use capvec::model::package::Package;
use capvec::model::synth::{Synthesis, synthesize};

use crate::support::capvec_ok;

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Vectors of the demo's captions, in batches of at most so many captions.
fn embed(package: &Path, batch_captions: &str) -> Vec<Vec<f32>> {
    let captions = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/cli/demo/captions.jsonl");
    let (package, captions) = (text(package), text(&captions));
    let args = ["embed", "--model", package, "--pointer", "/caption", captions];
    let out = capvec_ok(&[&args[..], &["--out", "-", "--batch-captions", batch_captions]].concat());
    out.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn cosine(a: &[f32], b: &[f32]) -> f64 {
    let dot = |a: &[f32], b: &[f32]| -> f64 {
        a.iter().zip(b).map(|(x, y)| f64::from(*x) * f64::from(*y)).sum()
    };
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}

#[test]
fn int8_is_near_fp32_and_the_same_in_every_company() {
    let folder = tempfile::tempdir().unwrap();
    let make = |precision: Precision| {
        let path = folder.path().join(precision.as_str());
        synthesize(&Synthesis { precision, ..Synthesis::tiny(1, &path) }, &mut |_| ()).unwrap();
        path
    };
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

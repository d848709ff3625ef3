//! The vectors are PyTorch's: the reference checkpoints against the golden outputs that were computed
//! from them in float64.

use std::path::Path;

use crate::support::{beside, capvec_ok, relative_error, text, unpacked};

/// The reader of the one form of .npy that the goldens have: version 1.0, `<f4`, two dimensions.
fn read_npy(path: &Path) -> (Vec<f32>, usize) {
    let bytes = std::fs::read(path).unwrap();
    let length = usize::from(u16::from_le_bytes([bytes[8], bytes[9]]));
    let header = std::str::from_utf8(&bytes[10..10 + length]).unwrap();
    assert!(header.contains("'descr': '<f4'") && header.contains("'fortran_order': False"));
    let shape = header.split_once("'shape': (").unwrap().1.split_once(')').unwrap().0;
    let columns = shape.split_once(',').unwrap().1.trim().parse().unwrap();
    let numbers = bytes[10 + length..].chunks_exact(4);
    (numbers.map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect(), columns)
}

fn check(model: &str) {
    let Some(reference) = beside("CAPVEC_REFERENCE", "reference") else { return };
    let checkpoint = reference.join(model);
    let captions = reference.join("captions.jsonl");
    let folder = tempfile::tempdir().unwrap();
    let (package, head) = (folder.path().join("package"), checkpoint.join("Linear Weights.pkl"));
    let (package, head, captions) = (text(&package), text(&head), text(&captions));
    capvec_ok(&["model", "import", text(&checkpoint), "--head", head, "--out", package]);
    capvec_ok(&["model", "verify", package]);

    let printed = capvec_ok(&["tokenize", "--model", package, "--pointer", "/caption", captions]);
    let golden = std::fs::read_to_string(checkpoint.join("golden_tokens.jsonl")).unwrap();
    assert_eq!(golden.lines().count(), 104);
    for (number, (found, golden)) in printed.lines().zip(golden.lines()).enumerate() {
        let found: serde_json::Value = serde_json::from_str(found).unwrap();
        let golden: serde_json::Value = serde_json::from_str(golden).unwrap();
        assert_eq!(found, golden["input_ids"], "caption {number}: {}", golden["caption"]);
    }
    assert_eq!(printed.lines().count(), 104);

    let (golden, dim) = read_npy(&checkpoint.join("golden_embeddings.npy"));
    assert_eq!((golden.len(), dim), (104 * 640, 640));
    let mut alone = Vec::new();
    for batch in ["1", "2", "7", "1024"] {
        let out = folder.path().join(format!("{batch}.npy"));
        capvec_ok(&[
            "embed",
            "--model",
            package,
            "--pointer",
            "/caption",
            captions,
            "--format",
            "npy",
            "--out",
            text(&out),
            "--batch-captions",
            batch,
            "--batch-tokens",
            "100000",
        ]);
        let (found, _) = read_npy(&out);
        assert_eq!(found.len(), golden.len());
        if batch == "1" {
            alone.clone_from(&found);
        }
        for row in 0..104 {
            let range = row * dim..(row + 1) * dim;
            let error = relative_error(&found[range.clone()], &golden[range.clone()]);
            assert!(error <= 1e-5, "caption {row} in batches of {batch}: {error:e}");
            let apart = relative_error(&found[range.clone()], &alone[range]);
            assert!(apart <= 1e-6, "caption {row}, batches of {batch} and alone: {apart:e}");
        }
    }
}

/// Returns the relative errors of an fp16 package on the CPU, which stores the same numbers in 16 bits
/// as a GPU, and sums in 32. In order of their size.
fn errors_of_fp16(model: &str) -> Option<Vec<f64>> {
    let checkpoint = beside("CAPVEC_REFERENCE", "reference")?.join(model);
    let folder = tempfile::tempdir().unwrap();
    let (package, out) = (folder.path().join("package"), folder.path().join("npy"));
    let (package, head) = (text(&package), checkpoint.join("Linear Weights.pkl"));
    let import = ["model", "import", text(&checkpoint), "--head", text(&head), "--out", package];
    capvec_ok(&[&import[..], &["--precision", "fp16"]].concat());
    let captions = checkpoint.join("../captions.jsonl");
    let embed = ["embed", "--model", package, "--pointer", "/caption", text(&captions)];
    capvec_ok(&[&embed[..], &["--format", "npy", "--out", text(&out)]].concat());
    let (golden, dim) = read_npy(&checkpoint.join("golden_embeddings.npy"));
    let (found, _) = read_npy(&out);
    assert_eq!(found.len(), golden.len());
    let rows = found.chunks(dim).zip(golden.chunks(dim));
    let mut errors: Vec<f64> = rows.map(|(found, golden)| relative_error(found, golden)).collect();
    errors.sort_by(f64::total_cmp);
    Some(errors)
}

#[test]
fn m_bert_mini_is_pytorch() {
    check("m-bert-mini");
}

#[test]
fn m_distil_mini_is_pytorch() {
    check("m-distil-mini");
}

#[test]
fn m_bert_mini_in_fp16_is_nearly_pytorch() {
    let Some(errors) = errors_of_fp16("m-bert-mini") else { return };
    assert!(errors[103] <= 2e-3, "{:e}", errors[103]);
}

#[test]
fn m_distil_mini_in_fp16_is_nearly_pytorch() {
    let Some(errors) = errors_of_fp16("m-distil-mini") else { return };
    assert!(errors[51] <= 2e-3, "the median: {:e}", errors[51]);
    // Its random weights make much of little differences: with weights rounded to 16 bits, and
    // everything else in float64, the largest error is 3.2e-3.
    assert!(errors[103] <= 4e-3, "the largest: {:e}", errors[103]);
}

#[test]
fn the_token_ids_of_20_000_captions_are_hugging_faces() {
    let (Some(reference), Some(captions)) =
        (beside("CAPVEC_REFERENCE", "reference"), beside("CAPVEC_CAPTIONS", "captions"))
    else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let (package, vocab) = (folder.path().join("package"), reference.join("vocab.txt"));
    let (package, vocab) = (text(&package), text(&vocab));
    capvec_ok(&["model", "synth", "--preset", "tiny", "--vocab", vocab, "--out", package]);
    let input = folder.path().join("multi30k.jsonl");
    std::fs::write(&input, unpacked(&captions.join("multi30k.jsonl.gz"))).unwrap();
    let tokenize = ["tokenize", "--model", package, "--pointer", "/caption", text(&input)];
    let printed = capvec_ok(&tokenize);
    let golden = unpacked(&captions.join("multi30k.tokens.txt.gz"));
    assert_eq!(golden.lines().count(), 20_000);
    assert_eq!(printed.lines().count(), 20_000);
    for (number, (found, golden)) in printed.lines().zip(golden.lines()).enumerate() {
        let ids: Vec<u32> = serde_json::from_str(found).unwrap();
        let golden: Vec<u32> = golden.split(' ').map(|id| id.parse().unwrap()).collect();
        assert_eq!(ids, golden, "caption {number}");
    }
}

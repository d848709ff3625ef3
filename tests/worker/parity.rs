//! The vectors are PyTorch's: small checkpoints against the golden outputs that were computed from
//! them in float64.

use std::path::{Path, PathBuf};

use crate::support::{beside, capvec_ok, cosine, relative_error, skipped, text, unpacked};

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

/// A checkpoint with the vectors that PyTorch computes from it.
struct Golden {
    checkpoint: PathBuf,
    captions: PathBuf,
    vectors: Vec<f32>,
    dim: usize,
}

impl Golden {
    /// Reads one that `scripts/golden` has made.
    fn committed(family: &str) -> Golden {
        Golden::read(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden"), family)
    }

    /// Reads one of the larger ones beside the checkout, whose vocabulary is the published one.
    fn reference(model: &str) -> Option<Golden> {
        let folder = beside("CAPVEC_REFERENCE", "reference").map_err(skipped).ok()?;
        Some(Golden::read(&folder, model))
    }

    fn read(folder: &Path, model: &str) -> Golden {
        let (checkpoint, captions) = (folder.join(model), folder.join("captions.jsonl"));
        let (vectors, dim) = read_npy(&checkpoint.join("golden_embeddings.npy"));
        let lines = std::fs::read_to_string(&captions).unwrap().lines().count();
        assert!(lines > 50 && vectors.len() == lines * dim, "{lines} captions");
        Golden { checkpoint, captions, vectors, dim }
    }

    /// Imports the checkpoint.
    fn import(&self, folder: &Path, precision: &str) -> PathBuf {
        let (package, head) = (folder.join(precision), self.checkpoint.join("Linear Weights.pkl"));
        let import = ["model", "import", text(&self.checkpoint), "--head", text(&head)];
        let more = ["--precision", precision, "--out", text(&package)];
        capvec_ok(&[&import[..], &more].concat());
        package
    }

    /// Embeds the captions and returns their vectors, one behind the other.
    fn embed(&self, package: &Path, options: &[&str]) -> Vec<f32> {
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().join("npy");
        let embed = ["embed", "--model", text(package), "--pointer", "/caption"];
        let files = [text(&self.captions), "--format", "npy", "--out", text(&out)];
        capvec_ok(&[&embed[..], &files, options].concat());
        let (found, dim) = read_npy(&out);
        assert_eq!((found.len(), dim), (self.vectors.len(), self.dim));
        found
    }

    /// Returns what a precision's vectors give when they are measured against PyTorch's, ordered.
    fn measure(&self, precision: &str, how: fn(&[f32], &[f32]) -> f64) -> Vec<f64> {
        let folder = tempfile::tempdir().unwrap();
        let found = self.embed(&self.import(folder.path(), precision), &[]);
        let pairs = found.chunks(self.dim).zip(self.vectors.chunks(self.dim));
        let mut measured: Vec<f64> = pairs.map(|(found, golden)| how(found, golden)).collect();
        measured.sort_by(f64::total_cmp);
        measured
    }
}

/// The token ids are Hugging Face's, and the vectors PyTorch's in every company. The bounds are
/// shares of a vector's length.
fn check(golden: &Golden) {
    let folder = tempfile::tempdir().unwrap();
    let package = golden.import(folder.path(), "fp32");
    capvec_ok(&["model", "verify", text(&package)]);

    let tokenize = ["tokenize", "--model", text(&package), "--pointer", "/caption"];
    let printed = capvec_ok(&[&tokenize[..], &[text(&golden.captions)]].concat());
    let rows = golden.vectors.len() / golden.dim;
    let tokens = std::fs::read_to_string(golden.checkpoint.join("golden_tokens.jsonl")).unwrap();
    assert_eq!((printed.lines().count(), tokens.lines().count()), (rows, rows));
    for (number, (found, golden)) in printed.lines().zip(tokens.lines()).enumerate() {
        let found: serde_json::Value = serde_json::from_str(found).unwrap();
        let golden: serde_json::Value = serde_json::from_str(golden).unwrap();
        assert_eq!(found, golden["input_ids"], "caption {number}: {}", golden["caption"]);
    }

    let mut alone = Vec::new();
    for batch in ["1", "2", "7", "1024"] {
        let options = ["--batch-captions", batch, "--batch-tokens", "100000"];
        let found = golden.embed(&package, &options);
        if batch == "1" {
            alone.clone_from(&found);
        }
        for row in 0..rows {
            let range = row * golden.dim..(row + 1) * golden.dim;
            let error = relative_error(&found[range.clone()], &golden.vectors[range.clone()]);
            assert!(error <= 1e-5, "caption {row} in batches of {batch}: {error:e}");
            let apart = relative_error(&found[range.clone()], &alone[range]);
            assert!(apart <= 1e-6, "caption {row}, batches of {batch} and alone: {apart:e}");
        }
    }
}

/// On the CPU, which stores the same numbers in 16 bits as a GPU, and sums in 32.
fn check_fp16(golden: &Golden, median_max: f64, most: f64) {
    let errors = golden.measure("fp16", relative_error);
    let (median, largest) = (errors[errors.len() / 2], errors[errors.len() - 1]);
    assert!(median <= median_max, "the median: {median:e}");
    assert!(largest <= most, "the largest: {largest:e}");
}

/// Directions are what 8-bit integers keep.
fn check_int8(golden: &Golden) {
    let lowest = golden.measure("int8", cosine)[0];
    assert!(lowest > 0.99, "the lowest cosine: {lowest}");
}

#[test]
fn bert_is_pytorch() {
    check(&Golden::committed("bert"));
}

#[test]
fn distilbert_is_pytorch() {
    check(&Golden::committed("distilbert"));
}

#[test]
fn fp16_is_nearly_pytorch() {
    for family in ["bert", "distilbert"] {
        check_fp16(&Golden::committed(family), 2e-3, 2e-3);
    }
}

#[test]
fn int8_is_near_pytorch() {
    for family in ["bert", "distilbert"] {
        check_int8(&Golden::committed(family));
    }
}

#[test]
fn m_bert_mini_is_pytorch() {
    let Some(golden) = Golden::reference("m-bert-mini") else { return };
    check(&golden);
}

#[test]
fn m_distil_mini_is_pytorch() {
    let Some(golden) = Golden::reference("m-distil-mini") else { return };
    check(&golden);
}

#[test]
fn m_bert_mini_in_fp16_is_nearly_pytorch() {
    let Some(golden) = Golden::reference("m-bert-mini") else { return };
    check_fp16(&golden, 2e-3, 2e-3);
}

#[test]
fn m_distil_mini_in_fp16_is_nearly_pytorch() {
    let Some(golden) = Golden::reference("m-distil-mini") else { return };
    // Its random weights make much of little differences: with weights rounded to 16 bits, and
    // everything else in float64, the largest error is 3.2e-3.
    check_fp16(&golden, 2e-3, 4e-3);
}

#[test]
fn m_bert_mini_in_int8_is_near_pytorch() {
    let Some(golden) = Golden::reference("m-bert-mini") else { return };
    check_int8(&golden);
}

#[test]
fn m_distil_mini_in_int8_is_near_pytorch() {
    let Some(golden) = Golden::reference("m-distil-mini") else { return };
    check_int8(&golden);
}

#[test]
fn the_token_ids_of_20_000_captions_are_hugging_faces() {
    let reference = beside("CAPVEC_REFERENCE", "reference");
    let both = reference.and_then(|found| Ok((found, beside("CAPVEC_CAPTIONS", "captions")?)));
    let Ok((reference, captions)) = both.map_err(skipped) else { return };
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

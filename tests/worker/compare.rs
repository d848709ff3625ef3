//! `capvec model compare`: of a package with itself, of packages that have nothing in common, and
//! what is refused.

use std::path::{Path, PathBuf};

use capvec::model::package::MANIFEST;
use capvec::model::synth::{Synthesis, synthesize};

use crate::support::{capvec_fails, capvec_ok, text, tiny_package};

/// Captions in many languages, and JSON lines: the demo's.
fn captions() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src/cli/demo/captions.jsonl")
}

fn tiny(folder: &Path, seed: u64, vocab: Option<&Path>) -> PathBuf {
    let path = folder.join(format!("tiny-{seed}"));
    synthesize(&Synthesis { vocab, ..Synthesis::tiny(seed, &path) }, &mut |_| ()).unwrap();
    path
}

fn compare(a: &Path, b: &Path, captions: &Path, more: &[&str]) -> serde_json::Value {
    let mut args = vec!["model", "compare", text(a), text(b), "--captions", text(captions)];
    args.extend(["--json"]);
    args.extend(more);
    serde_json::from_str(&capvec_ok(&args)).unwrap()
}

#[test]
fn a_package_agrees_with_itself() {
    let package = tiny_package();
    let report = compare(
        package,
        package,
        &captions(),
        &["--pointer", "/caption", "--limit", "80", "--queries", "30", "--repeats", "2"],
    );
    assert_eq!(report["a"], report["b"]);
    assert_eq!(report["captions"]["read"], 80);
    assert!(report["cosine"]["min"].as_f64().unwrap() > 1.0 - 1e-9, "{report}");
    assert!(report["relative_error"]["max"].as_f64().unwrap() < 1e-5, "{report}");
    assert_eq!(report["neighbours"]["queries"], 30);
    assert_eq!(report["neighbours"]["k"], 10);
    assert_eq!(report["neighbours"]["overlap"], 1.0);
    assert_eq!(report["neighbours"]["first"], 1.0);

    let speed = &report["speed"];
    assert_eq!((speed["repeats"].as_u64(), speed["captions"].as_u64()), (Some(2), Some(80)));
    let number = |side: &str, what: &str| speed[side][what].as_f64().unwrap();
    for side in ["a", "b"] {
        assert!(0.0 < number(side, "min") && number(side, "min") <= number(side, "median"));
        assert!(number(side, "median") <= number(side, "max"));
    }
    // Numbers of JSON are read to within their last binary digit.
    let ratio = number("b", "median") / number("a", "median");
    assert!((speed["ratio"].as_f64().unwrap() / ratio - 1.0).abs() < 1e-14, "{report}");
}

#[test]
fn packages_of_different_weights_have_little_in_common() {
    let folder = tempfile::tempdir().unwrap();
    let other = tiny(folder.path(), 8, None);
    let more = ["--pointer", "/caption", "--repeats", "0"];
    let report = compare(tiny_package(), &other, &captions(), &more);
    assert!(report["cosine"]["mean"].as_f64().unwrap() < 0.5, "{report}");
    assert!(report["relative_error"]["median"].as_f64().unwrap() > 0.5, "{report}");
    assert!(report["neighbours"]["overlap"].as_f64().unwrap() < 0.9, "{report}");
    assert!(report.get("speed").is_none(), "{report}");
    let line = report["worst"]["line"].as_u64().unwrap() as usize;
    let lines = std::fs::read_to_string(captions()).unwrap();
    let line: serde_json::Value =
        serde_json::from_str(lines.lines().nth(line - 1).unwrap()).unwrap();
    assert_eq!(report["worst"]["caption"], line["caption"], "the line is that of the caption");
}

#[test]
fn the_same_caption_counts_once_and_one_without_text_not_at_all() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("captions");
    std::fs::write(&file, "a dog\na cat\r\n\na  dog\n \na horse\na cow\n").unwrap();
    let package = tiny_package();
    let report = compare(package, package, &file, &["--repeats", "0", "--limit", "6"]);
    assert_eq!(report["captions"]["read"], 6);
    assert_eq!(report["captions"]["distinct"], 3, "a dog, a cat, a horse");
    assert_eq!(report["neighbours"]["k"], 2, "the others");

    let args = ["model", "compare", text(package), text(package), "--captions", text(&file)];
    let people = capvec_ok(&[&args[..], &["--repeats", "1"]].concat());
    for part in ["synthetic-tiny@", "4 different ones", "cosine", "line ", "nearest", "tokens/s"] {
        assert!(people.contains(part), "{part}: {people}");
    }
}

#[test]
fn what_cannot_be_compared_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let refused = |b: &Path, captions: &Path, more: &[&str]| {
        let args = ["model", "compare", text(tiny_package()), text(b), "--captions"];
        let (code, error) = capvec_fails(&[&args[..], &[text(captions)], more].concat());
        assert_eq!(code, 1, "{error}");
        error
    };
    let file = folder.path().join("captions");
    std::fs::write(&file, "a dog\na dog\n\n").unwrap();
    let error = refused(tiny_package(), &file, &[]);
    assert!(error.contains("1 different captions") && error.contains("3 lines"), "{error}");
    let error = refused(tiny_package(), &file, &["--pointer", "/caption"]);
    assert!(error.contains("captions, line 1") && error.contains("isn't JSON"), "{error}");
    refused(tiny_package(), &folder.path().join("nowhere"), &[]);

    let vocab = folder.path().join("vocab.txt");
    std::fs::write(&vocab, "[PAD]\n[UNK]\n[CLS]\n[SEP]\na\ndog\n").unwrap();
    let other = tiny(folder.path(), 8, Some(&vocab));
    let error = refused(&other, &file, &[]);
    assert!(error.contains("different tokenizers"), "{error}");
    assert_eq!(error.matches("synthetic-tiny@").count(), 2, "both are named: {error}");

    let narrow = tiny(folder.path(), 9, None);
    let manifest = narrow.join(MANIFEST);
    let changed = |from: &str, to: &str| {
        let before = std::fs::read_to_string(&manifest).unwrap();
        assert!(before.contains(from));
        std::fs::write(&manifest, before.replace(from, to)).unwrap();
        let error = refused(&narrow, &file, &[]);
        std::fs::write(&manifest, before).unwrap();
        error
    };
    let error = changed("\"dim\": 640", "\"dim\": 512");
    assert!(error.contains("640 numbers") && error.contains("512"), "{error}");
    let error = changed("\"max_tokens\": 128", "\"max_tokens\": 64");
    assert!(error.contains("128 tokens") && error.contains("64"), "{error}");
}

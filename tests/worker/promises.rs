//! Promises that files make to each other: the tests that read the repository.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use capvec::metrics::Metrics;

/// The repository.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Returns a file of the repository.
pub fn read(path: &str) -> String {
    std::fs::read_to_string(root().join(path)).unwrap_or_else(|e| panic!("{path}: {e}"))
}

/// The files that git would take; all of them where there is no git.
fn tracked_files() -> Vec<PathBuf> {
    let listed = Command::new("git")
        .args(["ls-files", "--cached", "--others", "--exclude-standard"])
        .current_dir(root())
        .output();
    match listed {
        Ok(output) if output.status.success() => {
            let text = String::from_utf8(output.stdout).unwrap();
            text.lines().map(|line| root().join(line)).filter(|path| path.is_file()).collect()
        }
        _ => Vec::new(),
    }
}

/// Returns the names of the metrics that docs/metrics.md lists.
pub fn documented_metrics() -> BTreeSet<String> {
    read("docs/metrics.md")
        .lines()
        .filter_map(|line| line.strip_prefix("| `capvec_")?.split_once('`'))
        .map(|(name, _)| format!("capvec_{name}"))
        .collect()
}

#[test]
fn every_metric_is_documented_and_every_documented_one_exists() {
    let metrics = Metrics::new();
    // Series that come with use: a label value brings the family to light.
    metrics.source.lag.partition_messages.with_label_values(&["0"]).set(0);
    metrics.source.lag.partition_seconds.with_label_values(&["0"]).set(0.0);
    metrics.set_model("model", 640, "fp32");
    metrics.set_device("cpu", "CPUExecutionProvider");
    metrics.embed.device_busy_seconds("cpu").inc_by(0.0);
    metrics.set_execution_provider("CPUExecutionProvider", "CPUExecutionProvider");
    for queue in ["received", "tokenized", "finished"] {
        drop(capvec::queue::bounded::<()>(queue, 1, &metrics.queues));
    }
    let known: BTreeSet<String> = metrics.names().into_iter().map(|(name, _)| name).collect();
    let documented = documented_metrics();
    let missing: Vec<_> = known.difference(&documented).collect();
    let unknown: Vec<_> = documented.difference(&known).collect();
    assert!(missing.is_empty(), "not in docs/metrics.md: {missing:?}");
    assert!(unknown.is_empty(), "in docs/metrics.md, and no metric: {unknown:?}");
}

#[test]
fn the_readme_names_targets_and_commands_that_exist() {
    let readme = read("README.md");
    let makefile = read("Makefile");
    let mut targets = 0;
    for (index, _) in readme.match_indices("`make ") {
        let rest = &readme[index + "`make ".len()..];
        let target: String = rest.chars().take_while(|c| c.is_ascii_lowercase()).collect();
        assert!(makefile.contains(&format!("\n{target}:")), "make {target} is no target");
        targets += 1;
    }
    assert!(targets >= 2, "the README names the two commands");
    for command in [
        "run",
        "check",
        "embed",
        "tokenize",
        "top",
        "demo",
        "bench",
        "model import",
        "model synth",
        "dlq list",
        "dlq replay",
    ] {
        assert!(readme.contains(&format!("capvec {command}")), "capvec {command} is not in it");
    }
}

#[test]
fn links_between_documents_hold() {
    for file in tracked_files().into_iter().filter(|f| f.extension().is_some_and(|e| e == "md")) {
        let text = std::fs::read_to_string(&file).unwrap();
        for (index, _) in text.match_indices("](") {
            let target = text[index + 2..].split(')').next().unwrap();
            let path = target.split('#').next().unwrap();
            if path.is_empty() || path.contains("://") || path.starts_with("mailto:") {
                continue;
            }
            let there = file.parent().unwrap().join(path);
            assert!(there.exists(), "{} links to {target}", file.display());
        }
    }
}

#[test]
fn no_file_is_long_enough_to_hold_two_ideas() {
    for file in tracked_files() {
        if file.extension().is_some_and(|e| e == "rs") {
            let lines = std::fs::read_to_string(&file).unwrap().lines().count();
            assert!(lines <= 700, "{} has {lines} lines", file.display());
        }
    }
}

//! Promises that files make to each other: the tests that read the repository.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use capvec::cli::Cli;
use capvec::metrics::Metrics;
use clap::CommandFactory;

/// Folders of which nothing is in the repository: what is built, and what the README's steps make.
const NOT_OURS: [&str; 5] = [".git", "target", "checkpoints", "models", "gpu"];

/// Commands that the README leaves to a page that it links to.
const ELSEWHERE: [(&str, &str); 6] = [
    ("model inspect", "docs/models.md"),
    ("model verify", "docs/models.md"),
    ("model compare", "docs/models.md"),
    ("bench encoder", "docs/benchmarks.md"),
    ("bench host", "docs/benchmarks.md"),
    ("bench worker", "docs/benchmarks.md"),
];

/// The repository.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Returns a file of the repository.
pub fn read(path: &str) -> String {
    std::fs::read_to_string(root().join(path)).unwrap_or_else(|e| panic!("{path}: {e}"))
}

/// The files that git would take; where git isn't there, or doesn't answer, those of all folders
/// that may be in the repository.
fn tracked_files() -> Vec<PathBuf> {
    let listed = Command::new("git")
        .args(["ls-files", "--cached", "--others", "--exclude-standard"])
        .current_dir(root())
        .output();
    let files: Vec<PathBuf> = match listed {
        Ok(output) if output.status.success() => {
            let text = String::from_utf8(output.stdout).unwrap();
            text.lines().map(|line| root().join(line)).filter(|path| path.is_file()).collect()
        }
        _ => files_in(root()),
    };
    assert!(files.contains(&root().join("README.md")), "the files weren't found");
    files
}

/// The files of a folder, and of those in it.
fn files_in(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap().map(Result::unwrap) {
        let kind = entry.file_type().unwrap();
        if kind.is_file() {
            files.push(entry.path());
        } else if kind.is_dir() && !NOT_OURS.iter().any(|name| entry.file_name() == *name) {
            files.extend(files_in(&entry.path()));
        }
    }
    files
}

/// Returns the commands that do something, as `model import`, without those that are kept from
/// people.
fn commands(of: &clap::Command, name: &str) -> Vec<String> {
    let shown = of.get_subcommands().filter(|command| !command.is_hide_set());
    let named = shown.map(|command| (command, format!("{name} {}", command.get_name())));
    named
        .flat_map(|(command, name)| match command.has_subcommands() {
            true => commands(command, &name),
            false => vec![name.trim_start().to_owned()],
        })
        .collect()
}

/// Returns whether there is the command that these words begin with.
fn is_command(cli: &clap::Command, words: &str) -> bool {
    let mut command = cli;
    for word in words.split_whitespace() {
        if !command.has_subcommands() {
            break;
        }
        match command.find_subcommand(word) {
            Some(found) => command = found,
            None => return false,
        }
    }
    true
}

/// Returns the calls of the program in a document's blocks of code and between its backticks,
/// without its name.
fn calls(document: &str) -> Vec<&str> {
    let blocks = document.split("```").skip(1).step_by(2);
    let parts = blocks.flat_map(str::lines).flat_map(|line| line.split('|'));
    let in_blocks = parts.filter_map(|part| part.trim_start().strip_prefix("capvec "));
    let behind = document.split("`capvec ").skip(1);
    in_blocks.chain(behind.filter_map(|rest| rest.split('`').next())).collect()
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
    metrics.embed.clock_of("cpu");
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
    let cli = Cli::command();
    for call in calls(&readme) {
        assert!(is_command(&cli, call), "there is no capvec {call}");
    }
    for command in cli.get_subcommands() {
        let name = command.get_name();
        assert!(readme.contains(&format!("capvec {name}")), "capvec {name} is not in it");
    }
    let all: BTreeSet<String> = commands(&cli, "").into_iter().collect();
    for command in &all {
        let elsewhere = ELSEWHERE.iter().find(|(name, _)| name == command);
        let page = elsewhere.map_or("README.md", |(_, page)| *page);
        let is_linked = page == "README.md" || readme.contains(&format!("({page})"));
        assert!(is_linked, "the README doesn't link to {page}");
        assert!(read(page).contains(&format!("capvec {command}")), "{page}: no capvec {command}");
    }
    for (name, page) in ELSEWHERE {
        assert!(all.contains(name), "{page}: there is no capvec {name}");
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
fn the_summary_of_the_tests_counts_those_that_had_nothing_to_run() {
    let log = tempfile::NamedTempFile::new().unwrap();
    let summary = |text: &str| {
        std::fs::write(log.path(), text).unwrap();
        let script = root().join("scripts/test-summary");
        let output = Command::new(script).arg(log.path()).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    let ran = "test a::b ... ok\ntest result: ok. 7 passed; 1 failed; 2 ignored; 0 measured\n";
    assert_eq!(summary(ran), "\n7 passed, 1 failed, 2 skipped\n");
    // One says it twice, and another where the harness had begun a line. The chart's count theirs.
    let skipped = "skipped: page::one: no Chromium\nskipped: page::one: no Chromium\n\
                   test page::two ... skipped: page::two: no Chromium\nok\n\
                   skipped  helm lint: no helm\ntest result: ok. 3 passed; 0 failed; 1 ignored\n";
    assert_eq!(
        summary(&format!("{ran}{skipped}")),
        "\n10 passed, 1 failed, 3 skipped; of those that passed, 2 had nothing to run \
         (see \"skipped:\")\n"
    );
    assert_eq!(summary("error: could not compile\n"), "");
}

#[test]
fn no_rust_file_has_more_than_700_lines() {
    for file in tracked_files() {
        if file.extension().is_some_and(|e| e == "rs") {
            let lines = std::fs::read_to_string(&file).unwrap().lines().count();
            assert!(lines <= 700, "{} has {lines} lines", file.display());
        }
    }
}

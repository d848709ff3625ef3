//! The fault matrix: what capvec promises about delivery, tried on three real Kafka nodes while
//! workers, brokers, the network and the embedder fail.
//!
//! `make faults` runs all rows at full length. `cargo test --test faults` runs the short ones, in
//! which no toxiproxy is needed, as `make test` does; `cargo test` alone runs none. A row states
//! its bound before it runs, prints what it injected and what it found, and at the end there is a
//! table. `--document FILE` writes the table into a Markdown file, between two markers.
//!
//! The modules, in the order of what they build on: [`cluster`] and [`toxiproxy`], [`feed`] the
//! producer that knows the truth, [`check`] the checker, [`scene`] what every row has,
//! [`misbehave`] workers that do wrong on purpose, [`rows`], [`table`].

// Its report is what it prints.
#![allow(clippy::disallowed_macros)]

#[path = "../worker/support/mod.rs"]
mod support;

mod check;
mod cluster;
mod feed;
mod misbehave;
mod prover;
mod rows;
mod scene;
mod table;
mod toxiproxy;
mod watch;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use cluster::{Cluster, NODES, Network};
use rows::ROWS;

/// What delivery is promised.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Mode {
    AtLeastOnce,
    ExactlyOnce,
}

impl Mode {
    const ALL: [Mode; 2] = [Mode::AtLeastOnce, Mode::ExactlyOnce];

    /// Returns the mode's name, as the option has it.
    pub fn name(self) -> &'static str {
        match self {
            Mode::AtLeastOnce => "at-least-once",
            Mode::ExactlyOnce => "exactly-once",
        }
    }

    /// Returns one of two values.
    pub fn choose<T>(self, at_least_once: T, exactly_once: T) -> T {
        match self {
            Mode::AtLeastOnce => at_least_once,
            Mode::ExactlyOnce => exactly_once,
        }
    }
}

/// How long a row takes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Size {
    /// A few faults: without `--full`.
    Quick,
    /// All of them.
    Full,
}

impl Size {
    /// Returns one of two values.
    pub fn choose<T>(self, quick: T, full: T) -> T {
        match self {
            Size::Quick => quick,
            Size::Full => full,
        }
    }
}

/// What a row runs in.
pub struct Setting<'a> {
    pub cluster: &'a Cluster,
    pub mode: Mode,
    pub size: Size,
    /// The input topic, which no other row has.
    pub name: String,
}

/// A row of the matrix.
pub struct Row {
    /// Its number in the matrix, with a letter where a row has several parts.
    pub id: &'static str,
    pub fault: &'static str,
    /// Whether it runs without `--full` too.
    pub is_quick: bool,
    /// The modes that it is about.
    pub modes: &'static [Mode],
    /// What must hold, stated before the row runs.
    pub bound: fn(Mode) -> String,
    pub run: fn(&Setting<'_>) -> Found,
}

/// What a row did and found.
#[derive(Clone, Debug, Default)]
pub struct Found {
    pub injected: String,
    pub found: String,
    /// What breaks the bound; nothing where it holds.
    pub broken: Vec<String>,
}

/// The arguments.
struct Wanted {
    size: Size,
    modes: Vec<Mode>,
    rows: Vec<String>,
    document: Option<PathBuf>,
}

const USAGE: &str = "usage: faults [ROW...] [--full] [--mode at-least-once|exactly-once] [--document FILE] [--list]
  ROW              a row's number, with or without the letter of its part, or `controls`; all rows without one
  --full           all rows at full length; without it the short ones, shortened
  --mode MODE      both without it
  --document FILE  write the results into the table of a Markdown file, over those of earlier runs
  --list           list the rows and their bounds, and run none";

fn main() -> ExitCode {
    let mut args = std::env::args().skip(1).peekable();
    // The workers that do wrong on purpose are this program too.
    if let Some(worker) = args.peek().and_then(|name| misbehave::named(name)) {
        return worker(args.skip(1).collect());
    }
    let wanted = match Wanted::parse(args) {
        Ok(Some(wanted)) => wanted,
        Ok(None) => return ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("{message}\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    check::finds_each_fault();
    let results = run(&wanted);
    table::print(&results);
    if let Some(path) = &wanted.document {
        table::write(path, &results);
    }
    let failed = results.iter().filter(|result| !result.found.broken.is_empty()).count();
    // As Rust's own tests end, for whoever counts them.
    let (word, passed) = (if failed == 0 { "ok" } else { "FAILED" }, results.len() - failed);
    println!("\ntest result: {word}. {passed} passed; {failed} failed; 0 ignored");
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

impl Wanted {
    /// Reads the arguments; `None` where nothing is to run.
    fn parse(mut args: impl Iterator<Item = String>) -> Result<Option<Wanted>, String> {
        let mut wanted = Wanted {
            size: Size::Quick,
            modes: Mode::ALL.to_vec(),
            rows: Vec::new(),
            document: None,
        };
        let mut is_list = false;
        while let Some(arg) = args.next() {
            match arg.as_str() {
                "--full" => wanted.size = Size::Full,
                "--list" => is_list = true,
                // `cargo test -- --nocapture` gives it to every test binary, and nothing is
                // captured here.
                "--nocapture" => {}
                "--document" => {
                    let file = args.next().ok_or("--document needs a file")?;
                    wanted.document = Some(file.into());
                }
                "--mode" => {
                    let name = args.next().ok_or("--mode needs a mode")?;
                    wanted.modes.retain(|mode| mode.name() == name);
                    if wanted.modes.is_empty() {
                        return Err(format!("no such mode: {name}"));
                    }
                }
                option if option.starts_with('-') => {
                    return Err(format!("no such option: {option}"));
                }
                row => wanted.rows.push(row.to_owned()),
            }
        }
        if is_list {
            for row in ROWS.iter().filter(|row| wanted.has(row)) {
                let quick = if row.is_quick { " (without --full too)" } else { "" };
                println!("{:4} {}{quick}", row.id, row.fault);
                for mode in row.modes {
                    println!("     {}: {}", mode.name(), (row.bound)(*mode));
                }
            }
            return Ok(None);
        }
        Ok(Some(wanted))
    }

    fn has(&self, row: &Row) -> bool {
        let number = row.id.trim_end_matches(|c: char| c.is_ascii_lowercase());
        let is_named = |name: &String| {
            name == row.id || name == number || (name == "controls" && row.id.starts_with('C'))
        };
        (self.size == Size::Full || row.is_quick)
            && (self.rows.is_empty() || self.rows.iter().any(is_named))
    }
}

/// What a row found in a mode.
pub struct RowResult {
    pub row: &'static Row,
    pub mode: Mode,
    pub found: Found,
}

fn run(wanted: &Wanted) -> Vec<RowResult> {
    let rows: Vec<&Row> = ROWS.iter().filter(|row| wanted.has(row)).collect();
    if rows.is_empty() {
        // A name that is another test's, which `cargo test NAME` gives to every test binary.
        return Vec::new();
    }
    let network = wanted.size.choose(Network::Plain, Network::Proxied);
    let mut cluster = Cluster::start(network, [None; NODES]);
    let mut results = Vec::new();
    for mode in &wanted.modes {
        for &row in rows.iter().filter(|row| row.modes.contains(mode)) {
            println!(
                "\n{} {} ({})\n  bound     {}",
                row.id,
                row.fault,
                mode.name(),
                (row.bound)(*mode)
            );
            let name = format!("row-{}-{}", row.id, mode.name());
            let setting = Setting { cluster: &cluster, mode: *mode, size: wanted.size, name };
            let started = Instant::now();
            let ran = catch_unwind(AssertUnwindSafe(|| (row.run)(&setting)));
            let is_whole = ran.is_ok();
            let found = ran.unwrap_or_else(|panic| Found {
                found: "it could not be run to its end".into(),
                broken: vec![panic_message(panic.as_ref())],
                ..Found::default()
            });
            println!("  injected  {}\n  found     {}", found.injected, found.found);
            for broken in &found.broken {
                println!("  BROKEN    {broken}");
            }
            println!("  took      {:.0?}", started.elapsed());
            results.push(RowResult { row, mode: *mode, found });
            if !is_whole {
                // Who knows how it left the brokers and the network.
                drop(cluster);
                cluster = Cluster::start(network, [None; NODES]);
            }
        }
    }
    results
}

fn panic_message(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    let text = text.or_else(|| panic.downcast_ref::<String>().cloned());
    text.unwrap_or_else(|| "it panicked without a message".into())
}

//! What the tests share: clusters, worker processes, the program, packages, and waiting on
//! conditions.

// Each test module uses its part of this.
#![allow(dead_code, unused_imports)]
// The harness shows what a failed test prints.
#![allow(clippy::disallowed_macros)]

pub mod kafka;
pub mod load;
pub mod numbered;
pub mod prometheus;
pub mod stuck;

mod cluster;
mod mocking;
mod package;
mod program;
mod running;
mod worker;

use std::fmt::Display;
use std::io::Write;
use std::time::{Duration, Instant};

pub use cluster::{Cluster, Observer, Outgoing, Record, captions};
pub use mocking::mock;
pub use package::{
    beside, cosine, package_of, relative_error, tiny_package, tokenizer_of, unpacked,
};
pub use program::{CAPVEC, capvec, capvec_fails, capvec_ok, sets, text};
pub use running::{Running, value_of, why_not};
pub use worker::{Worker, http_get, metric};

/// How long a test waits for what must come: long, for a slow machine; a test that passes never
/// waits for it.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// Waits until the condition gives a value.
#[track_caller]
pub fn eventually<T>(what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    eventually_ok(what, || condition().ok_or("it isn't so yet"))
}

/// Waits until the condition gives a value; a failure shows what it last said instead.
#[track_caller]
pub fn eventually_ok<T, E: Display>(what: &str, mut condition: impl FnMut() -> Result<T, E>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match condition() {
            Ok(value) => return value,
            Err(e) => assert!(Instant::now() < deadline, "not within {PATIENCE:?}: {what}: {e}"),
        }
        std::thread::park_timeout(Duration::from_millis(20));
    }
}

/// Says that the test that calls this lacks what it needs, and why; it then ends, and counts as
/// passed. `scripts/test-summary` counts these lines, each test once.
pub fn skipped(reason: String) {
    let thread = std::thread::current();
    let test = thread.name().expect("the harness calls a test's thread by its name");
    // Not by eprintln!, which is shown of tests that fail alone.
    let line = format!("skipped: {test}: {reason}\n");
    std::io::stderr().write_all(line.as_bytes()).unwrap();
}

/// Returns an address that nobody listens at.
pub fn free_address() -> String {
    let [port] = kafka::free_ports();
    format!("127.0.0.1:{port}")
}

//! The rows of the matrix, a file a kind of fault, and what several of them need.

mod brokers;
mod controls;
mod disk;
mod embedder;
mod network;
mod topics;
mod workers;

use std::time::{Duration, Instant};

use crate::Mode;
use crate::Row;
use crate::feed::{Mix, Sent};

/// All rows, in the matrix's order.
pub static ROWS: [Row; 28] = [
    workers::KILLED,
    workers::ROLLED,
    brokers::RESTARTED,
    brokers::LEADERS_MOVED,
    brokers::COORDINATORS_KILLED,
    network::CUT_SHORT,
    network::CUT_LONG,
    network::CUT_VERY_LONG,
    network::SLOW,
    network::RESET,
    network::ZOMBIE,
    workers::COMING_AND_GOING,
    embedder::SLOW,
    embedder::HANGING,
    workers::STOPPED_AND_CONTINUED,
    topics::SOME_POISON,
    topics::ALL_POISON,
    topics::TOO_LARGE,
    topics::SMALL_LIMIT,
    topics::MISSING_AT_START,
    topics::FORBIDDEN_AT_START,
    topics::DELETED,
    topics::FORBIDDEN,
    disk::FULL,
    topics::NO_DEAD_LETTERS,
    embedder::FAILING,
    controls::CARELESS,
    controls::COPIER,
];

const BOTH: &[Mode] = &Mode::ALL;

/// Captions without any poison.
fn captions() -> Mix {
    Box::new(Sent::numbered)
}

/// Returns a time in seconds, for people.
fn seconds(time: Duration) -> String {
    format!("{:.1} s", time.as_secs_f64())
}

/// Returns the middle one and the longest of some times.
fn middle_and_longest(times: &mut [Duration]) -> (String, String) {
    times.sort_unstable();
    let last = times.len() - 1;
    (seconds(times[times.len() / 2]), seconds(times[last]))
}

/// The memory of a process while a row runs.
struct Memory {
    id: u32,
    stop: std::sync::Arc<std::sync::atomic::AtomicBool>,
    thread: std::thread::JoinHandle<Vec<u64>>,
}

impl Memory {
    /// Begins to look, twice a second.
    fn watch(id: u32) -> Memory {
        let stop = std::sync::Arc::<std::sync::atomic::AtomicBool>::default();
        let stopped = std::sync::Arc::clone(&stop);
        let thread = std::thread::Builder::new().name("memory".into()).spawn(move || {
            let mut found = Vec::new();
            while !stopped.load(std::sync::atomic::Ordering::Acquire) {
                found.extend(resident_kib(id));
                std::thread::park_timeout(Duration::from_millis(500));
            }
            found
        });
        Memory { id, stop, thread: thread.unwrap() }
    }

    /// Returns the mebibytes at the beginning and the most there were.
    fn stop(self) -> (u64, u64) {
        self.stop.store(true, std::sync::atomic::Ordering::Release);
        let found = self.thread.join().unwrap();
        let first = found.first().unwrap_or_else(|| panic!("process {} has gone", self.id));
        (first / 1024, found.iter().max().unwrap_or(first) / 1024)
    }
}

fn resident_kib(id: u32) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{id}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.trim().trim_end_matches(" kB").parse().ok()
}

/// Does something every so often, for a time.
fn every(interval: Duration, time: Duration, mut what: impl FnMut(usize)) {
    let (started, mut round) = (Instant::now(), 0);
    while started.elapsed() < time {
        what(round);
        round += 1;
        let next = started + interval * round as u32;
        while let Some(left) = next.checked_duration_since(Instant::now()) {
            std::thread::park_timeout(left);
        }
    }
}

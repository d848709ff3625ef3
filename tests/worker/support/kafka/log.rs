//! A node's log: its last lines, and what they say about it.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, PipeReader};
use std::sync::{Condvar, Mutex, MutexGuard};
use std::time::Duration;

/// How many lines of a node's log are kept for [`Log::tail`].
const LOG_LINES_MAX: usize = 200;

/// The line with which Kafka says that it serves clients.
const STARTED: &str = "Kafka Server started";

/// The last lines of a node's log, and what they say about it.
#[derive(Default)]
pub struct Log {
    state: Mutex<LogState>,
    changed: Condvar,
}

#[derive(Default)]
struct LogState {
    lines: VecDeque<String>,
    phase: Phase,
}

#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum Phase {
    /// It isn't known to serve clients yet.
    #[default]
    Starting,
    /// It serves clients.
    Started,
    /// The JVM has ended.
    Ended,
}

impl Log {
    /// Keeps what the JVM writes, until it ends.
    pub fn read(&self, output: PipeReader) {
        // A read error cannot be told from the end, and means the same: nothing more will come.
        for line in BufReader::new(output).split(b'\n').map_while(Result::ok) {
            let line = String::from_utf8_lossy(&line).into_owned();
            let mut state = self.state();
            if line.contains(STARTED) {
                state.phase = Phase::Started;
                self.changed.notify_all();
            }
            if state.lines.len() == LOG_LINES_MAX {
                state.lines.pop_front();
            }
            state.lines.push_back(line);
        }
        self.enter(Phase::Ended);
    }

    /// Notes in which phase the node is.
    pub fn enter(&self, phase: Phase) {
        self.state().phase = phase;
        self.changed.notify_all();
    }

    /// Waits until the phase is one that is wanted, at most `wait_max`, and returns the phase then.
    pub fn wait_until(&self, wait_max: Duration, wanted: impl Fn(Phase) -> bool) -> Phase {
        let waited =
            self.changed.wait_timeout_while(self.state(), wait_max, |state| !wanted(state.phase));
        waited.expect("nothing panics while it holds the log").0.phase
    }

    /// Returns the last lines.
    pub fn tail(&self) -> String {
        self.state().lines.iter().map(|line| format!("{line}\n")).collect()
    }

    fn state(&self) -> MutexGuard<'_, LogState> {
        self.state.lock().expect("nothing panics while it holds the log")
    }
}

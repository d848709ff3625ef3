//! Child processes, and the CPU time that they take.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, bail};

/// `USER_HZ`, the unit of times in `/proc/PID/stat`: fixed in Linux's interface to programs,
/// whatever the kernel's own clock is.
const TICKS_PER_SECOND: f64 = 100.0;

/// Lines of a log that are shown when a process has ended before its time.
const LAST_LINES: usize = 10;

/// This program, with another subcommand, in a process of its own; killed when dropped.
pub struct Process {
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts `capvec` with these arguments. What it logs goes to a file in `folder`.
    ///
    /// # Errors
    ///
    /// When the system doesn't start it.
    pub fn start(arguments: &[String], folder: &Path) -> anyhow::Result<Process> {
        let log = folder.join("log");
        let program = std::env::current_exe().context("where this program lies is not known")?;
        let child = Command::new(program)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(&log)?)
            .spawn()
            .context("this program can't be started again")?;
        Ok(Process { child, log })
    }

    /// Finds out whether it still runs.
    ///
    /// # Errors
    ///
    /// When it doesn't, with the last lines that it logged.
    pub fn check(&mut self) -> anyhow::Result<()> {
        if let Some(status) = self.child.try_wait()? {
            bail!("it ended before its time, with {status}:\n{}", self.last_lines());
        }
        Ok(())
    }

    /// Returns the CPU time that it has taken so far, of the user and of the system, in seconds.
    ///
    /// # Errors
    ///
    /// Where the system has no `/proc`.
    pub fn cpu_seconds(&self) -> anyhow::Result<f64> {
        let path = format!("/proc/{}/stat", self.child.id());
        let stat = std::fs::read_to_string(&path)
            .with_context(|| format!("{path}: CPU time is measured on Linux only"))?;
        cpu_seconds(&stat).with_context(|| path)
    }

    /// Returns the last lines that it logged.
    pub fn last_lines(&self) -> String {
        let log = std::fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(LAST_LINES)..].join("\n")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended already.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// Returns the CPU time that this process has taken; `None` where the system doesn't tell.
pub fn own_cpu_seconds() -> Option<f64> {
    cpu_seconds(&std::fs::read_to_string("/proc/self/stat").ok()?)
}

/// Reads `utime` and `stime`, the 14th and 15th field of proc(5). The second, the program's name,
/// is in brackets and may hold anything.
fn cpu_seconds(stat: &str) -> Option<f64> {
    let (_, after_name) = stat.rsplit_once(") ")?;
    let mut fields = after_name.split(' ').skip(11);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    Some((user + system) as f64 / TICKS_PER_SECOND)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_found_behind_any_name() {
        let stat = "17 (a) b (c) S 1 17 17 0 -1 4194304 1 0 0 0 250 50 0 0 20 0 9 0 5 1 1";
        assert_eq!(cpu_seconds(stat), Some(3.0));
        assert_eq!(cpu_seconds("17 (x) S 1"), None);
        assert_eq!(cpu_seconds(""), None);
    }
}

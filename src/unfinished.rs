//! Results that are half written: where they lie, and what becomes of them when the process is told
//! to end.
//!
//! A result is written beside its place and moved there when it is whole. An error removes the
//! half; a signal would leave it, 711 MB of a package of the full size.

use std::collections::BTreeSet;
use std::fs;
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{LazyLock, Mutex};

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use signal_hook::low_level::emulate_default_handler;

use crate::lock::lock;

/// How names of this process's begin. Not its number: in containers they all have the same.
static PREFIX: LazyLock<String> =
    LazyLock::new(|| format!(".capvec-unfinished-{:x}-", RandomState::new().hash_one(())));

/// Folders in which something has been begun.
static FOLDERS: Mutex<BTreeSet<PathBuf>> = Mutex::new(BTreeSet::new());

/// Returns what the name of something unfinished in `folder` must begin with.
pub fn prefix_in(folder: &Path) -> &'static str {
    lock(&FOLDERS).insert(folder.to_owned());
    &PREFIX
}

/// Runs what moves results to their places in more than one step: a signal waits for its end.
pub fn undisturbed<T>(steps: impl FnOnce() -> T) -> T {
    let _folders = lock(&FOLDERS);
    steps()
}

/// From here on SIGINT, SIGTERM and SIGHUP first remove what this process has half written, and
/// then end it as they would have. A SIGHUP that is ignored, as `nohup` has it, stays so.
///
/// # Errors
///
/// When the system refuses the handlers.
pub fn remove_on_signals() -> io::Result<()> {
    let mut signals = Signals::new([SIGINT, SIGTERM])?;
    if !is_ignored(SIGHUP) {
        signals.add_signal(SIGHUP)?;
    }
    std::thread::Builder::new().name("capvec-signals".into()).spawn(move || {
        for signal in signals.forever() {
            // To the end: nothing that is half removed may be moved to its place.
            let folders = lock(&FOLDERS);
            folders.iter().for_each(|folder| remove_from(folder));
            if std::process::id() == 1 {
                // A container's first process is spared what a signal does by default.
                std::process::exit(128 + signal);
            }
            drop(emulate_default_handler(signal));
        }
    })?;
    Ok(())
}

/// Returns whether the process ignores this signal, and says so where the system doesn't tell: a
/// handler would undo it.
fn is_ignored(signal: i32) -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    ignores(&status, signal).unwrap_or(true)
}

/// Reads `SigIgn` of proc_pid_status(5): a bit a signal in hexadecimal, the lowest for the first.
fn ignores(status: &str, signal: i32) -> Option<bool> {
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"))?;
    let mask = u64::from_str_radix(mask.trim(), 16).ok()?;
    Some(mask >> (signal - 1) & 1 == 1)
}

/// What can't be removed stays: there is nobody to tell.
fn remove_from(folder: &Path) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.file_name().as_encoded_bytes().starts_with(PREFIX.as_bytes()) {
            let path = entry.path();
            drop(if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_others_have_begun_stays() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let prefix = prefix_in(folder.path());
        fs::write(at(&format!("{prefix}file")), "half").unwrap();
        fs::create_dir(at(&format!("{prefix}folder"))).unwrap();
        fs::write(at(&format!("{prefix}folder/weights")), "half").unwrap();
        let kept = ["vectors.npy", ".capvec-unfinished-of-another", ".capvec-replaced-package"];
        for name in kept {
            fs::write(at(name), "whole").unwrap();
        }
        remove_from(folder.path());
        let names = fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name());
        let names: BTreeSet<_> = names.collect();
        assert_eq!(names, kept.map(Into::into).into());
    }

    #[test]
    fn ignored_signals_are_read_by_their_bits() {
        let status = "Name:\tcapvec\nSigBlk:\t0000000000000002\nSigIgn:\t0000000000001001\n";
        for (signal, is_ignored) in [(1, true), (2, false), (13, true), (64, false)] {
            assert_eq!(ignores(status, signal), Some(is_ignored), "{signal}");
        }
        assert_eq!(ignores("Name:\tcapvec\n", 1), None);
    }
}

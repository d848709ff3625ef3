//! The file beside a package that keeps what was measured of it, by model and device.
//!
//! It is a convenience: a folder that can't be written, or a file that can't be read, costs the
//! seconds of measuring again and nothing else.

use std::fs::{Metadata, Permissions};
use std::io::Write;
use std::ops::RangeInclusive;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::{fs, io};

use serde::{Deserialize, Serialize};

use super::measure::LARGEST;
use super::{Calibration, Found, Wanted};

/// The layout of the file, and how what is in it was measured. What has another number is measured
/// again.
const FORMAT: u32 = 4;

/// Most calibrations in a file; the oldest goes first.
const ENTRIES_MAX: usize = 16;

/// Tokens a second of no device are beyond these. Times that are reckoned from them are finite.
const RATES: RangeInclusive<f64> = 1e-3..=1e12;

/// A larger file isn't one of ours.
const BYTES_MAX: u64 = 1 << 20;

/// What a calibration holds for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Key {
    /// The model's id.
    pub model_id: String,
    /// The kind of CPU or GPU.
    pub device: String,
    /// CPUs that the process may use.
    pub cpus: usize,
    /// ONNX Runtime's library.
    pub onnxruntime: PathBuf,
    /// Its size: another version may lie at the same path.
    pub onnxruntime_bytes: u64,
    /// The version of this program: another one may make another graph.
    pub capvec: String,
    /// What the configuration left open.
    pub wanted: Wanted,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Contents {
    format: u32,
    entries: Vec<Entry>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    key: Key,
    calibration: Calibration,
}

/// The file of a package.
#[derive(Clone, Debug)]
pub struct Cache {
    path: PathBuf,
}

impl Cache {
    /// Returns the file beside the package at this path: `models/m-bert` has
    /// `models/m-bert.calibration.json`.
    pub fn beside(package: &Path) -> Cache {
        let package = fs::canonicalize(package).unwrap_or_else(|_| package.into());
        let mut name = package.file_name().unwrap_or_default().to_owned();
        name.push(".calibration.json");
        Cache { path: package.with_file_name(name) }
    }

    /// Returns what is kept for the key.
    pub fn get(&self, key: &Key) -> Option<Calibration> {
        let entry = self.read().into_iter().find(|entry| entry.key == *key)?;
        // More are never tried.
        let sessions_max = key.wanted.sessions.unwrap_or(key.cpus);
        let threads_max = key.wanted.threads.unwrap_or(key.cpus);
        let tokens_max = key.wanted.tokens.unwrap_or(LARGEST);
        let usable = (1..=sessions_max).contains(&entry.calibration.sessions)
            && (1..=threads_max).contains(&entry.calibration.threads)
            && !entry.calibration.steps.is_empty()
            && entry.calibration.steps.is_sorted_by_key(|step| step.tokens)
            && entry.calibration.steps.iter().all(|step| {
                (1..=tokens_max).contains(&step.tokens) && RATES.contains(&step.tokens_per_second)
            });
        usable.then_some(entry.calibration)
    }

    /// Keeps what was found, unless it was cut short, or there is an entry. That is a whole one, of
    /// more memory than there was now, and perhaps is again at the next start.
    pub fn keep<S>(&self, key: Key, found: &Found<S>) {
        let path = self.path.display();
        if found.is_cut_short {
            tracing::info!(
                %path,
                "something wasn't measured for want of memory, or since it failed: what was found is \
                 used and not kept, and the next start measures again"
            );
        } else if self.get(&key).is_none()
            && let Err(error) = self.put(key, found.calibration.clone())
        {
            tracing::info!(%path, %error, "what was measured can't be kept; the next start measures again");
        }
    }

    /// Writes a calibration in place of the key's.
    ///
    /// # Errors
    ///
    /// When the file can't be written.
    fn put(&self, key: Key, calibration: Calibration) -> io::Result<()> {
        let mut entries = self.read();
        entries.retain(|entry| entry.key != key);
        entries.push(Entry { key, calibration });
        let over = entries.len().saturating_sub(ENTRIES_MAX);
        let contents = Contents { format: FORMAT, entries: entries.split_off(over) };
        let folder = self.path.parent().unwrap_or(Path::new("."));
        // Other workers may read it meanwhile: it is written beside its place and moved there.
        // A worker of another user may come next.
        let readable = Permissions::from_mode(0o644);
        let mut file = tempfile::Builder::new().permissions(readable).tempfile_in(folder)?;
        serde_json::to_writer_pretty(&mut file, &contents)?;
        file.write_all(b"\n")?;
        file.persist(&self.path)?;
        Ok(())
    }

    fn read(&self) -> Vec<Entry> {
        // Of a pipe or a device the length is 0, and there may be no end.
        let is_ours = |file: Metadata| file.is_file() && file.len() <= BYTES_MAX;
        if !fs::metadata(&self.path).is_ok_and(is_ours) {
            return Vec::new();
        }
        let text = fs::read_to_string(&self.path).unwrap_or_default();
        match serde_json::from_str::<Contents>(&text) {
            Ok(contents) if contents.format == FORMAT => contents.entries,
            _ => Vec::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::batch::budget::Step;

    fn key(model: &str, cpus: usize) -> Key {
        Key {
            model_id: model.into(),
            device: "a CPU".into(),
            cpus,
            onnxruntime: "lib.so".into(),
            onnxruntime_bytes: 9,
            capvec: "1".into(),
            wanted: Wanted::default(),
        }
    }

    fn calibration(threads: usize) -> Calibration {
        let steps = vec![Step { tokens: 64, tokens_per_second: 1000.0 }];
        Calibration { sessions: 1, threads, steps }
    }

    #[test]
    fn keeps_one_calibration_for_each_model_and_device() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::beside(&folder.path().join("m"));
        assert_eq!(cache.get(&key("a", 8)), None);
        for threads in [1, 2] {
            cache.put(key("a", 8), calibration(threads)).unwrap();
        }
        cache.put(key("a", 9), calibration(3)).unwrap();
        assert_eq!(cache.get(&key("a", 8)), Some(calibration(2)));
        assert_eq!(cache.get(&key("a", 9)), Some(calibration(3)));
        assert_eq!(cache.get(&key("b", 8)), None);
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o644;
        let usual = folder.path().join("usual");
        fs::write(&usual, "").unwrap();
        assert_eq!(mode(&cache.path), mode(&usual), "a worker of another user may come next");
        for cpus in 10..40 {
            cache.put(key("a", cpus), calibration(1)).unwrap();
        }
        assert_eq!(cache.get(&key("a", 8)), None, "the oldest went");
        assert_eq!(cache.read().len(), ENTRIES_MAX);
    }

    #[test]
    fn what_was_cut_short_is_not_kept_and_replaces_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::beside(&folder.path().join("m"));
        let found = |threads, is_cut_short| Found {
            calibration: calibration(threads),
            sessions: (),
            is_cut_short,
        };
        cache.keep(key("a", 8), &found(1, true));
        assert_eq!(cache.get(&key("a", 8)), None);
        cache.keep(key("a", 8), &found(2, false));
        assert_eq!(cache.get(&key("a", 8)), Some(calibration(2)));
        for is_cut_short in [true, false] {
            cache.keep(key("a", 8), &found(3, is_cut_short));
            assert_eq!(cache.get(&key("a", 8)), Some(calibration(2)), "it stays as it is");
        }
    }

    #[test]
    fn a_pipe_in_the_files_place_is_not_read() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::beside(&folder.path().join("m"));
        let made = std::process::Command::new("mkfifo").arg(&cache.path).status().unwrap();
        assert!(made.success());
        assert_eq!(cache.get(&key("a", 8)), None);
    }

    #[test]
    fn a_file_that_is_damaged_is_measured_again() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::beside(&folder.path().join("m"));
        cache.put(key("a", 8), calibration(1)).unwrap();
        let text = fs::read_to_string(&cache.path).unwrap();
        for damaged in [
            &text[..text.len() / 2],
            &text.replace("1000.0", "-1.0"),
            &text.replace("1000.0", "1e-304"),
            &text.replace("1000.0", "1e304"),
            &text.replace("\"sessions\": 1", "\"sessions\": 0"),
            &text.replace("\"sessions\": 1", "\"sessions\": 11111111"),
            &text.replace("\"threads\": 1", "\"threads\": 11111111"),
            &text.replace("\"tokens\": 64", "\"tokens\": 18446744073709551615"),
            &text.replace("\"format\": 4", "\"format\": 3"),
        ] {
            fs::write(&cache.path, damaged).unwrap();
            assert_eq!(cache.get(&key("a", 8)), None, "{damaged}");
        }
        cache.put(key("a", 8), calibration(1)).unwrap();
        assert!(cache.get(&key("a", 8)).is_some());
        let step = |tokens| Step { tokens, tokens_per_second: 1000.0 };
        for steps in [vec![], vec![step(64), step(32)]] {
            cache.put(key("a", 8), Calibration { steps, ..calibration(1) }).unwrap();
            assert_eq!(cache.get(&key("a", 8)), None);
        }
    }
}

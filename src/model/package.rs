//! A model package on disk: a folder with `model.onnx`, its weights in `model.onnx.data`,
//! `tokenizer.json` and `manifest.json`.
//!
//! Here it is opened and looked at; [`write()`] makes one.

mod kept;
mod weights_file;
mod write;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use thiserror::Error;

use super::graph;
use super::manifest::{FORMAT, FileDigest, GraphForm, Manifest};
use crate::tokenize::{TOKENS_MIN, Tokenizer, TokenizerError};

pub use kept::KeptWeights;
pub use write::{Draft, Existing, write};

/// Name of the graph's file.
pub const MODEL: &str = "model.onnx";
/// Name of the file with the weights.
pub const WEIGHTS: &str = "model.onnx.data";
/// Name of the tokenizer's file.
pub const TOKENIZER: &str = "tokenizer.json";
/// Name of the manifest's file.
pub const MANIFEST: &str = "manifest.json";

/// The files that a manifest names, by name.
const FILES: [&str; 3] = [MODEL, WEIGHTS, TOKENIZER];

/// A manifest larger than this isn't one.
const MANIFEST_BYTES_MAX: u64 = 1 << 20;

/// What can be wrong with a package.
#[derive(Debug, Error)]
pub enum PackageError {
    /// A file of the package could not be read or written.
    #[error("{path}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// There is no such folder.
    #[error(
        "there is no folder {path}; a relative path goes by the one in which capvec was started, here \
         {started_in}"
    )]
    NoFolder {
        /// The package's folder.
        path: PathBuf,
        /// The process's own folder.
        started_in: PathBuf,
    },
    /// The folder has no manifest.
    #[error(
        "{0} is not a model package: it has no {MANIFEST}; make one with `capvec model import` or \
         `capvec model synth`"
    )]
    NotAPackage(PathBuf),
    /// The manifest isn't one, or is of another kind of package.
    #[error("{path}: {reason}")]
    Manifest {
        /// The manifest.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A package already lies at the place.
    #[error("{0} exists already; remove it, or pass --force to replace it")]
    Exists(PathBuf),
    /// What lies at the place isn't a package alone, and isn't replaced by one.
    #[error(
        "{0} exists and is no model package, or has other files in it, which --force doesn't replace; name \
         another place"
    )]
    NotReplaced(PathBuf),
    /// The weights that a worker runs on have changed under it.
    #[error(
        "{} was written over while this worker ran: since then its vectors may be of other weights than \
         their model id says; put another package into a folder of its own",
        .0.display()
    )]
    WrittenOver(PathBuf),
    /// A file of the package isn't what the manifest says.
    #[error("{path}: {reason}; the package is damaged, import it or make it again")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// In what it differs.
        reason: String,
    },
}

fn io_error(path: &Path) -> impl FnOnce(io::Error) -> PackageError {
    let path = path.to_owned();
    move |source| PackageError::Io { path, source }
}

/// What manifests of all formats say.
#[derive(Deserialize)]
struct Layout {
    /// See [`Manifest::format`].
    format: u32,
}

/// A package that has been opened: its place and its manifest.
#[derive(Clone, Debug)]
pub struct Package {
    /// The folder.
    pub path: PathBuf,
    /// What it says of itself.
    pub manifest: Manifest,
}

impl Package {
    /// Reads the manifest of the package at `path`, and checks that this program can run it and
    /// that its files are there with their sizes. Their contents are checked by
    /// [`Package::verify`].
    ///
    /// # Errors
    ///
    /// When the folder is no package, is of another format or form, or misses a file.
    pub fn open(path: &Path) -> Result<Package, PackageError> {
        let manifest_path = path.join(MANIFEST);
        let length = match fs::metadata(&manifest_path) {
            Ok(metadata) if metadata.is_file() => metadata.len(),
            Ok(_) => return Err(PackageError::NotAPackage(path.into())),
            Err(e) if e.kind() == io::ErrorKind::NotFound && !path.exists() => {
                let started_in = std::env::current_dir().unwrap_or_default();
                return Err(PackageError::NoFolder { path: path.into(), started_in });
            }
            Err(e)
                if [io::ErrorKind::NotFound, io::ErrorKind::NotADirectory].contains(&e.kind()) =>
            {
                return Err(PackageError::NotAPackage(path.into()));
            }
            Err(e) => return Err(io_error(&manifest_path)(e)),
        };
        let wrong = |reason: String| PackageError::Manifest { path: manifest_path.clone(), reason };
        if length > MANIFEST_BYTES_MAX {
            return Err(wrong(format!("{length} bytes are too many for a manifest")));
        }
        let text = fs::read_to_string(&manifest_path).map_err(io_error(&manifest_path))?;
        let no_manifest = |e: serde_json::Error| wrong(format!("not a manifest: {e}"));
        // Another format may have other fields, which would be told as mistakes.
        let Layout { format } = serde_json::from_str(&text).map_err(no_manifest)?;
        if format != FORMAT {
            return Err(wrong(format!(
                "package format {format} where this program knows {FORMAT}"
            )));
        }
        let manifest: Manifest = serde_json::from_str(&text).map_err(no_manifest)?;
        if manifest.graph != form() {
            return Err(wrong(format!(
                "graph form {:?} where this program knows {:?}; import the model again",
                manifest.graph.form,
                graph::FORM
            )));
        }
        if let Some(reason) = impossible(&manifest) {
            return Err(wrong(format!("{reason}; import the model again")));
        }
        let package = Package { path: path.into(), manifest };
        for file in &package.manifest.files {
            let path = package.path.join(&file.name);
            let bytes = fs::metadata(&path).map_err(io_error(&path))?.len();
            if bytes != file.bytes {
                let reason = format!("{bytes} bytes where the manifest says {}", file.bytes);
                return Err(PackageError::Damaged { path, reason });
            }
        }
        Ok(package)
    }

    /// Reads the package's tokenizer, which cuts a text off at the manifest's `max_tokens`.
    ///
    /// # Errors
    ///
    /// When the file can't be read, or isn't a tokenizer that this program can run.
    pub fn tokenizer(&self) -> Result<Tokenizer, TokenizerError> {
        Tokenizer::from_file(&self.path.join(TOKENIZER), self.manifest.max_tokens)
    }

    /// Compares each file's SHA-256 with the manifest's, telling `checked` of each that is right.
    ///
    /// # Errors
    ///
    /// At the first file that differs or can't be read.
    pub fn verify(&self, mut checked: impl FnMut(&FileDigest)) -> Result<(), PackageError> {
        for file in &self.manifest.files {
            let path = self.path.join(&file.name);
            let found = FileDigest::of_file(&path, &file.name).map_err(io_error(&path))?;
            if found.sha256 != file.sha256 {
                let reason = format!(
                    "its sha256 is {} where the manifest says {}",
                    found.sha256, file.sha256
                );
                return Err(PackageError::Damaged { path, reason });
            }
            checked(file);
        }
        Ok(())
    }
}

/// Returns what no manifest that was written here says. A manifest is data: its files are those of
/// a package, and none elsewhere.
fn impossible(manifest: &Manifest) -> Option<String> {
    let (max_tokens, positions) = (manifest.max_tokens, manifest.network.positions);
    if max_tokens < TOKENS_MIN || max_tokens > positions {
        return Some(format!("max_tokens is {max_tokens}, and not {TOKENS_MIN} to {positions}"));
    }
    if let Err(reason) = manifest.network.check(|name| name) {
        return Some(reason);
    }
    let mut names: Vec<&str> = manifest.files.iter().map(|file| file.name.as_str()).collect();
    names.sort_unstable();
    if names != FILES {
        return Some(format!("files are {names:?}, and not {FILES:?}"));
    }
    let digests = manifest.files.iter().chain(&manifest.sources);
    let is_digest = |text: &str| text.len() == 64 && text.bytes().all(|b| b.is_ascii_hexdigit());
    let wrong = digests.into_iter().find(|file| !is_digest(&file.sha256))?;
    Some(format!("{:?} has the sha256 {:?}, which is none", wrong.name, wrong.sha256))
}

fn form() -> GraphForm {
    GraphForm {
        form: graph::FORM.into(),
        inputs: graph::INPUTS.iter().map(|i| i.name.into()).collect(),
        output: graph::OUTPUT.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::synth::{Synthesis, synthesize};

    pub(super) fn tiny(folder: &Path) -> PathBuf {
        let path = folder.join("tiny");
        synthesize(&Synthesis::tiny(1, &path), &mut |_| ()).unwrap();
        path
    }

    #[test]
    fn a_written_package_opens_and_verifies() {
        let folder = tempfile::tempdir().unwrap();
        let package = Package::open(&tiny(folder.path())).unwrap();
        let mut names = Vec::new();
        package.verify(|f| names.push(f.name.clone())).unwrap();
        assert_eq!(names, [MODEL, WEIGHTS, TOKENIZER]);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "nothing is left beside it");
    }

    /// Opens the package with that change of its manifest, and returns why it is refused.
    fn refused(path: &Path, change: impl FnOnce(&mut serde_json::Value)) -> String {
        let manifest = path.join(MANIFEST);
        let text = fs::read_to_string(&manifest).unwrap();
        let mut value: serde_json::Value = serde_json::from_str(&text).unwrap();
        change(&mut value);
        fs::write(&manifest, value.to_string()).unwrap();
        let error = Package::open(path).unwrap_err().to_string();
        fs::write(&manifest, text).unwrap();
        error
    }

    #[test]
    fn a_manifest_that_cannot_be_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = tiny(folder.path());
        let positions = Package::open(&path).unwrap().manifest.network.positions;
        type Change = fn(&mut serde_json::Value);
        let changes: [(&str, Change); 8] = [
            ("max_tokens", |m| m["max_tokens"] = 2.into()),
            ("max_tokens", |m| m["max_tokens"] = 1_000_000.into()),
            ("dim", |m| m["network"]["dim"] = 0.into()),
            ("layers", |m| m["network"]["layers"] = 1_000_000_000_000u64.into()),
            ("hidden", |m| m["network"]["hidden"] = u64::MAX.into()),
            ("hidden 64 is no multiple of heads 3", |m| m["network"]["heads"] = 3.into()),
            ("files", |m| drop(m["files"].as_array_mut().unwrap().pop())),
            ("sha256", |m| m["files"][0]["sha256"] = "abc".into()),
        ];
        for (named, change) in changes {
            let error = refused(&path, change);
            assert!(error.contains(named), "{named} of {positions} positions: {error}");
        }
    }

    #[test]
    fn a_package_of_another_format_is_told_by_its_number() {
        let folder = tempfile::tempdir().unwrap();
        let path = tiny(folder.path());
        let error = refused(&path, |manifest| {
            manifest["format"] = 2.into();
            manifest["of_format_2"] = "new".into();
        });
        assert!(error.contains("package format 2 where this program knows 1"), "{error}");
    }

    #[test]
    fn a_damaged_package_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = tiny(folder.path());
        let weights = path.join(WEIGHTS);
        let mut bytes = fs::read(&weights).unwrap();
        bytes[5000] ^= 1;
        fs::write(&weights, &bytes).unwrap();
        let error = Package::open(&path).unwrap().verify(|_| ()).unwrap_err().to_string();
        assert!(error.contains(WEIGHTS) && error.contains("sha256"), "{error}");

        bytes.pop();
        fs::write(&weights, &bytes).unwrap();
        let error = Package::open(&path).unwrap_err().to_string();
        assert!(error.contains("bytes where the manifest says"), "{error}");
    }

    #[test]
    fn a_manifest_cannot_point_outside_its_package() {
        let folder = tempfile::tempdir().unwrap();
        let path = tiny(folder.path());
        let manifest = path.join(MANIFEST);
        let text = fs::read_to_string(&manifest).unwrap();
        fs::write(&manifest, text.replace("\"model.onnx\"", "\"../../etc/passwd\"")).unwrap();
        let error = Package::open(&path).unwrap_err().to_string();
        assert!(error.contains("files are") && error.contains("passwd"), "{error}");
    }
}

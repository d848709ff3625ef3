//! The files of a checkpoint's folder, which a stranger may have made.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use super::ImportError;
use crate::model::manifest::FileDigest;

/// No `config.json` and no vocabulary of BERT's kind is larger: one of half a million tokens has
/// 10 MB. A tokenizer takes up to thirty times as much memory as its file has bytes.
const TEXT_BYTES_MAX: u64 = 32 << 20;

/// Returns the first of the files that is there.
pub fn find(folder: &Path, names: &[&'static str]) -> Result<PathBuf, ImportError> {
    if !folder.is_dir() {
        let source = io::Error::new(io::ErrorKind::NotFound, "no such folder");
        return Err(ImportError::Io { path: folder.into(), source });
    }
    names
        .iter()
        .map(|name| folder.join(name))
        .find(|path| path.exists())
        .ok_or_else(|| ImportError::Missing { folder: folder.into(), wanted: names.to_vec() })
}

/// Reads a text that a stranger may have made: a link to a device would have no end, and a pipe no
/// beginning.
pub fn read_to_string(path: &Path) -> Result<String, ImportError> {
    let failed = |source| ImportError::Io { path: path.into(), source };
    let refused = |reason: String| failed(io::Error::new(io::ErrorKind::InvalidInput, reason));
    if !fs::metadata(path).map_err(failed)?.is_file() {
        return Err(refused("it is no regular file".into()));
    }
    let mut text = String::new();
    let mut file = File::open(path).map_err(failed)?.take(TEXT_BYTES_MAX + 1);
    file.read_to_string(&mut text).map_err(failed)?;
    if text.len() as u64 > TEXT_BYTES_MAX {
        return Err(refused(format!("it has more than {TEXT_BYTES_MAX} bytes")));
    }
    Ok(text)
}

/// Digests a source under its own name: a cache of checkpoints has links to files that are named by
/// their contents.
pub fn digest(path: &Path) -> Result<FileDigest, ImportError> {
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned());
    FileDigest::of_file(path, &name.unwrap_or_else(|| folder_name(path)))
        .map_err(|source| ImportError::Io { path: path.into(), source })
}

/// Returns the last part of a path, also of one that ends in `.` or `..`.
pub fn folder_name(path: &Path) -> String {
    let whole = fs::canonicalize(path).unwrap_or_else(|_| path.into());
    whole.file_name().map_or_else(|| "model".into(), |name| name.to_string_lossy().into_owned())
}

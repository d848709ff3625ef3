//! Whether the weights that a worker runs on are still those that it loaded.
//!
//! They are mapped from their file and not copied. Who writes over that file changes the vectors
//! of a worker that runs, under a model id that stays the same; nothing else would tell.

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};
use std::{fs, io};

use super::{Package, PackageError, WEIGHTS, io_error};
use crate::shutdown::{Shutdown, Wanted};

/// Between two looks at the file.
const INTERVAL: Duration = Duration::from_secs(5);

/// How late a stop may be noticed.
const TICK: Duration = Duration::from_millis(100);

/// The file of a package's weights as it was.
#[derive(Debug)]
pub struct KeptWeights {
    path: PathBuf,
    stamp: Stamp,
}

/// What changes where a file is written to. Whole seconds: not every file system keeps more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    file: (u64, u64),
    bytes: u64,
    modified_s: i64,
}

impl Stamp {
    fn of(metadata: &Metadata) -> Stamp {
        Stamp {
            file: (metadata.dev(), metadata.ino()),
            bytes: metadata.len(),
            modified_s: metadata.mtime(),
        }
    }
}

impl KeptWeights {
    /// Notes how the file is, before it is loaded.
    ///
    /// # Errors
    ///
    /// When it can't be looked at.
    pub fn of(package: &Package) -> Result<KeptWeights, PackageError> {
        let path = package.path.join(WEIGHTS);
        let metadata = fs::metadata(&path).map_err(io_error(&path))?;
        Ok(KeptWeights { stamp: Stamp::of(&metadata), path })
    }

    /// Looks at the file now and then, until a stop is wanted.
    ///
    /// # Errors
    ///
    /// When it was written to.
    pub fn watch(&self, shutdown: &Shutdown) -> Result<(), PackageError> {
        let mut next = Instant::now() + INTERVAL;
        while shutdown.wanted() == Wanted::Run {
            if Instant::now() >= next {
                self.check(fs::metadata(&self.path))?;
                next = Instant::now() + INTERVAL;
            }
            std::thread::sleep(TICK);
        }
        Ok(())
    }

    /// Another file in its place does no harm, nor does none: the one that is mapped stays.
    fn check(&self, now: io::Result<Metadata>) -> Result<(), PackageError> {
        match now.map(|metadata| Stamp::of(&metadata)) {
            Ok(stamp) if stamp.file == self.stamp.file && stamp != self.stamp => {
                Err(PackageError::WrittenOver(self.path.clone()))
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_is_written_over_is_told_from_one_that_is_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(WEIGHTS);
        fs::write(&path, "weights").unwrap();
        let stamp = Stamp::of(&fs::metadata(&path).unwrap());
        let kept = KeptWeights { path: path.clone(), stamp };
        let check = || kept.check(fs::metadata(&path));
        check().unwrap();
        fs::write(&path, "others").unwrap();
        assert!(check().unwrap_err().to_string().contains("was written over"));
        fs::write(folder.path().join("new"), "others").unwrap();
        fs::rename(folder.path().join("new"), &path).unwrap();
        check().unwrap();
        fs::remove_file(&path).unwrap();
        check().unwrap();
    }
}

//! Where a command writes its result: a file, whole or not at all where that can be had, or
//! standard output.
//!
//! A regular file, or none yet, gets its result in one step: it is written beside its place and
//! moved there when it is whole. A move would replace a device, a pipe or a symbolic link by a
//! file, so into those it is written straight, and of a link the target is the place.
//!
//! Errors of writing name what can't be written. One of them is none to `main`, and keeps its kind
//! for it: that nobody reads standard output any more. The reader has seen enough, as in `capvec
//! tokenize ... | head`; of a pipe that was asked for by its name nobody can say so.

use std::fmt::Display;
use std::fs::{self, File};
use std::io::{self, ErrorKind, Seek, SeekFrom, StdoutLock, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use tempfile::NamedTempFile;

use crate::unfinished;

/// Links that are followed one after the other, as many as Linux follows.
const LINKS_MAX: usize = 40;

/// A file that is being written.
pub struct OutFile {
    /// As it was given.
    path: PathBuf,
    to: Destination,
}

enum Destination {
    /// Beside its place.
    Beside { file: NamedTempFile, place: PathBuf },
    /// What can't be replaced: a device, a pipe.
    Straight(File),
}

/// Standard output.
pub struct Stdout(StdoutLock<'static>);

/// Returns standard output, for results.
pub fn stdout() -> Stdout {
    Stdout(io::stdout().lock())
}

impl OutFile {
    /// Begins to write the file at `path`. Of a pipe it waits for a reader.
    ///
    /// # Errors
    ///
    /// When there is a folder, or the path can only be one's, or nothing can be written there.
    pub fn create(path: &Path) -> anyhow::Result<OutFile> {
        let shown = || path.display().to_string();
        let mut mode = readable();
        match fs::metadata(path) {
            Ok(there) if there.is_dir() => bail!("{} is a folder; a file is due", shown()),
            Ok(there) if !there.is_file() => {
                let file = File::options().write(true).open(path).with_context(shown)?;
                return Ok(OutFile { path: path.into(), to: Destination::Straight(file) });
            }
            // What was for few stays for few.
            Ok(there) => mode = there.permissions(),
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(error).with_context(shown),
        }
        let place = resolved(path).with_context(shown)?;
        if !is_file_name(&place) {
            bail!("{} is the name of a folder; a file is due", place.display());
        }
        let folder = place.parent().filter(|p| *p != Path::new("")).unwrap_or(Path::new("."));
        if !folder.is_dir() {
            bail!("{}: {} is no folder", shown(), folder.display());
        }
        let file = tempfile::Builder::new()
            .prefix(unfinished::prefix_in(folder))
            .permissions(mode)
            .tempfile_in(folder)
            .with_context(|| folder.display().to_string())?;
        Ok(OutFile { path: path.into(), to: Destination::Beside { file, place } })
    }

    /// Returns whether it can be gone back in, which a pipe can't.
    pub fn is_seekable(&mut self) -> bool {
        self.stream_position().is_ok()
    }

    /// Moves the file to its place.
    ///
    /// # Errors
    ///
    /// When it can't be moved. Then it stays beside its place, and the error names it.
    pub fn finish(self) -> anyhow::Result<()> {
        match self.to {
            Destination::Beside { file, place } => {
                // Else a machine that stops now may have an empty file at the place.
                file.as_file().sync_all().with_context(|| place.display().to_string())?;
                // It is whole, and may have taken hours.
                let Err(refused) = file.persist(&place) else { return Ok(()) };
                let (_, beside) = refused.file.keep()?;
                Err(refused.error).with_context(|| {
                    format!("{}: what was written is in {}", place.display(), beside.display())
                })
            }
            // Whatever there was to write is written: a file has no buffer here.
            Destination::Straight(_) => Ok(()),
        }
    }

    fn file(&mut self) -> &mut File {
        match &mut self.to {
            Destination::Beside { file, .. } => file.as_file_mut(),
            Destination::Straight(file) => file,
        }
    }

    fn named<T>(&self, result: io::Result<T>) -> io::Result<T> {
        result.map_err(|error| named(self.path.display(), error))
    }
}

/// Puts a name before an error, unless it asks for another try.
fn named(name: impl Display, error: io::Error) -> io::Error {
    match error.kind() {
        ErrorKind::Interrupted => error,
        _ => io::Error::other(format!("{name}: {error}")),
    }
}

impl Write for OutFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.file().write(bytes);
        self.named(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        let flushed = self.file().flush();
        self.named(flushed)
    }
}

impl Seek for OutFile {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let place = self.file().seek(to);
        self.named(place)
    }
}

impl Stdout {
    fn named<T>(result: io::Result<T>) -> io::Result<T> {
        result.map_err(|error| match error.kind() {
            ErrorKind::BrokenPipe => error,
            _ => named("standard output", error),
        })
    }
}

impl Write for Stdout {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Stdout::named(self.0.write(bytes))
    }

    fn flush(&mut self) -> io::Result<()> {
        Stdout::named(self.0.flush())
    }
}

/// Returns where a chain of links leads, be something there or not.
fn resolved(path: &Path) -> io::Result<PathBuf> {
    let mut place = path.to_owned();
    for _ in 0..LINKS_MAX {
        let Ok(target) = fs::read_link(&place) else { return Ok(place) };
        place = place.parent().unwrap_or(Path::new("")).join(target);
    }
    Err(io::Error::other(format!("over {LINKS_MAX} symbolic links, one to the other")))
}

/// Returns whether a file can be of this name. To `Path`, `results/` and `results/.` are `results`.
fn is_file_name(path: &Path) -> bool {
    let bytes = path.as_os_str().as_encoded_bytes();
    !bytes.ends_with(b"/") && !bytes.ends_with(b"/.") && path.file_name().is_some()
}

fn readable() -> fs::Permissions {
    fs::Permissions::from_mode(0o644)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{FileTypeExt, symlink};

    fn write(path: &Path, text: &str) -> anyhow::Result<()> {
        let mut file = OutFile::create(path)?;
        file.write_all(text.as_bytes())?;
        file.finish()
    }

    fn names(folder: &Path) -> usize {
        fs::read_dir(folder).unwrap().count()
    }

    #[test]
    fn a_file_is_replaced_when_the_other_is_whole() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("out");
        fs::write(&path, "before").unwrap();
        let mut file = OutFile::create(&path).unwrap();
        file.write_all(b"half").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "before");
        drop(file);
        assert_eq!(fs::read_to_string(&path).unwrap(), "before", "given up: nothing has changed");
        write(&path, "after").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "after");
        assert_eq!(names(folder.path()), 1, "nothing is left beside it");
    }

    #[test]
    fn of_a_link_the_target_is_written() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        fs::create_dir(at("deep")).unwrap();
        symlink("deep/link", at("first")).unwrap();
        symlink("target", at("deep/link")).unwrap();
        for text in ["made", "replaced"] {
            write(&at("first"), text).unwrap();
            assert_eq!(fs::read_to_string(at("deep/target")).unwrap(), text);
            assert_eq!(fs::read_link(at("first")).unwrap(), Path::new("deep/link"));
            assert_eq!(fs::read_link(at("deep/link")).unwrap(), Path::new("target"));
        }
        symlink("round", at("round")).unwrap();
        assert!(write(&at("round"), "x").is_err());
    }

    #[test]
    fn a_pipe_stays_one_and_is_written() {
        let folder = tempfile::tempdir().unwrap();
        let (pipe, link) = (folder.path().join("pipe"), folder.path().join("link"));
        let made = std::process::Command::new("mkfifo").arg(&pipe).status().unwrap();
        assert!(made.success());
        symlink("pipe", &link).unwrap();
        for path in [&pipe, &link] {
            let reader = std::thread::spawn({
                let pipe = pipe.clone();
                move || fs::read_to_string(pipe).unwrap()
            });
            let mut file = OutFile::create(path).unwrap();
            assert!(!file.is_seekable());
            file.write_all(b"vectors").unwrap();
            file.finish().unwrap();
            assert_eq!(reader.join().unwrap(), "vectors");
        }
        assert!(fs::symlink_metadata(&pipe).unwrap().file_type().is_fifo());
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
    }

    #[test]
    fn a_folder_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let error = write(folder.path(), "x").unwrap_err().to_string();
        assert!(error.contains("is a folder"), "{error}");
    }

    #[test]
    fn the_name_of_a_folder_that_is_not_there_is_refused_before_anything_is_written() {
        let folder = tempfile::tempdir().unwrap();
        symlink("results/", folder.path().join("link")).unwrap();
        for name in ["results/", "results/.", "results//", "..", "link"] {
            let path = folder.path().join(name);
            let error = OutFile::create(&path).err().unwrap().to_string();
            assert!(error.contains("folder; a file is due"), "{name}: {error}");
        }
        assert_eq!(names(folder.path()), 1, "the link");
        assert!(OutFile::create(Path::new("")).is_err());
    }

    #[test]
    fn a_result_that_cannot_be_moved_is_kept_and_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("out");
        let mut file = OutFile::create(&path).unwrap();
        file.write_all(b"vectors").unwrap();
        fs::create_dir(&path).unwrap();
        let error = format!("{:#}", file.finish().unwrap_err());
        let beside = fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().path());
        let beside = beside.filter(|beside| *beside != path).collect::<Vec<_>>();
        assert_eq!(beside.len(), 1, "{error}");
        assert!(error.contains(beside[0].to_str().unwrap()), "{error}");
        assert_eq!(fs::read_to_string(&beside[0]).unwrap(), "vectors");
    }
}

//! The file being read, as ranges of bytes, and the errors that name it.
//!
//! All reads go through [`Input::read_at`] with an offset of their own, so that one open file
//! serves any number of readers and nothing depends on where the last one stopped.

use std::fmt::{self, Display, Write};
use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::ReadError;

/// So many bytes tell any of the formats: the mark of a tar file ends here.
const START_BYTES: usize = 262;

/// How much of a name from a file is repeated in an error.
const QUOTED_CHARS_MAX: usize = 120;

/// Begins a pickle of protocol 2 with the long number that older versions of torch write first.
const LEGACY_TORCH: &[u8] = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19";

/// A file, or bytes in memory that stand for one.
#[derive(Debug)]
pub(super) struct Input {
    path: PathBuf,
    len_bytes: u64,
    backing: Backing,
}

#[derive(Debug)]
enum Backing {
    File(File),
    Memory(Vec<u8>),
}

/// A position in an input, for code that wants to read and to seek.
#[derive(Clone, Debug)]
pub(super) struct Cursor {
    input: Arc<Input>,
    position: u64,
}

/// A name from a file, escaped and cut so that it does no harm in a message.
pub(in crate::model) struct Quoted<'a>(pub &'a str);

// === impl Input ===

impl Input {
    /// Opens a regular file.
    pub fn open(path: &Path) -> Result<Input, ReadError> {
        let failed =
            |source| ReadError::Io { path: path.into(), place: "opening it".into(), source };
        // Asked before opening: to open a pipe would wait for its writer.
        let found = fs::metadata(path).map_err(failed)?;
        if !found.is_file() {
            let reason = "it is no regular file".into();
            return Err(ReadError::Refused {
                path: path.into(),
                place: "opening it".into(),
                reason,
            });
        }
        let file = File::open(path).map_err(failed)?;
        let len_bytes = file.metadata().map_err(failed)?.len();
        Ok(Input { path: path.into(), len_bytes, backing: Backing::File(file) })
    }

    /// Takes bytes for a file.
    pub fn of_bytes(bytes: Vec<u8>, path: &Path) -> Input {
        let len_bytes = bytes.len() as u64;
        Input { path: path.into(), len_bytes, backing: Backing::Memory(bytes) }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the length when the file was opened.
    pub fn len_bytes(&self) -> u64 {
        self.len_bytes
    }

    /// Reads some bytes from an offset on; none when it is at or past the end.
    pub fn read_at(&self, offset: u64, out: &mut [u8]) -> io::Result<usize> {
        match &self.backing {
            Backing::File(file) => file.read_at(out, offset),
            Backing::Memory(bytes) => {
                let rest = usize::try_from(offset).ok().and_then(|start| bytes.get(start..));
                rest.unwrap_or_default().read(out)
            }
        }
    }

    /// Reads a range that must lie within the file: nothing is allocated before that is known.
    pub fn read_range(
        &self,
        place: &str,
        start: u64,
        len_bytes: u64,
    ) -> Result<Vec<u8>, ReadError> {
        let inside = start.checked_add(len_bytes).is_some_and(|end| end <= self.len_bytes);
        let Some(len) = usize::try_from(len_bytes).ok().filter(|_| inside) else {
            let reason = format!(
                "{len_bytes} bytes from byte {start} on reach past the end of the file at {}; is it \
                 truncated?",
                self.len_bytes
            );
            return Err(self.damaged(place, reason));
        };
        let mut bytes = vec![0; len];
        let mut done = 0;
        while let Some(rest) = bytes.get_mut(done..).filter(|rest| !rest.is_empty()) {
            match self.read_at(start + done as u64, rest) {
                Ok(0) => {
                    return Err(self.damaged(place, "the file became shorter while it was read"));
                }
                Ok(n) => done += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(self.io(place, e)),
            }
        }
        Ok(bytes)
    }

    /// Reads as much of the start as telling the format needs.
    pub fn start(&self) -> Result<Vec<u8>, ReadError> {
        self.read_range("byte 0", 0, self.len_bytes.min(START_BYTES as u64))
    }

    pub fn damaged(&self, place: impl Into<String>, reason: impl Into<String>) -> ReadError {
        ReadError::Damaged { path: self.path.clone(), place: place.into(), reason: reason.into() }
    }

    pub fn refused(&self, place: impl Into<String>, reason: impl Into<String>) -> ReadError {
        ReadError::Refused { path: self.path.clone(), place: place.into(), reason: reason.into() }
    }

    /// Returns the error for a failed read; an early end is the file's fault, not the system's.
    pub fn io(&self, place: impl Into<String>, source: io::Error) -> ReadError {
        if source.kind() == io::ErrorKind::UnexpectedEof {
            return self.damaged(place, "the file ends here too early; is it truncated?");
        }
        ReadError::Io { path: self.path.clone(), place: place.into(), source }
    }

    /// Tells whether a file with this start was saved by torch before version 1.6.
    pub fn is_legacy_torch(start: &[u8]) -> bool {
        start.starts_with(LEGACY_TORCH)
    }

    /// Returns the error for a file of no known format: what it is instead, where that shows.
    pub fn unknown(&self, start: &[u8], wanted: &str) -> ReadError {
        let reason = if start.is_empty() {
            "the file is empty".to_owned()
        } else if Self::is_legacy_torch(start) {
            "it was saved in torch's format from before version 1.6; save it again with a current \
             torch: torch.save(torch.load(OLD, map_location=\"cpu\", weights_only=True), NEW)"
                .to_owned()
        } else if start.get(257..262) == Some(b"ustar") {
            "it is a tar file, as torch before version 0.1.10 wrote; if it is from someone you \
             trust, save it again with a current torch: \
             torch.save(torch.load(OLD, map_location=\"cpu\", weights_only=False), NEW)"
                .to_owned()
        } else if start.starts_with(b"version https://git-lfs") {
            "it is a git-lfs pointer and not the file itself; fetch that with git lfs pull"
                .to_owned()
        } else if start.starts_with(b"\x1f\x8b") {
            format!("it is compressed with gzip; unpack it to {wanted}")
        } else if start.trim_ascii_start().starts_with(b"<") {
            format!("it is a web page and not {wanted}; download it again")
        } else if start.starts_with(b"\x80") {
            format!("it is a pickle and not {wanted}")
        } else {
            format!("it is not {wanted}; is it damaged?")
        };
        self.refused("byte 0", reason)
    }
}

// === impl Cursor ===

impl Cursor {
    pub fn new(input: &Arc<Input>, position: u64) -> Cursor {
        Cursor { input: Arc::clone(input), position }
    }
}

impl Read for Cursor {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let n = self.input.read_at(self.position, out)?;
        self.position = self.position.saturating_add(n as u64);
        Ok(n)
    }
}

impl Seek for Cursor {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let position = match to {
            SeekFrom::Start(offset) => Some(offset),
            SeekFrom::End(offset) => self.input.len_bytes.checked_add_signed(offset),
            SeekFrom::Current(offset) => self.position.checked_add_signed(offset),
        };
        self.position = position.ok_or(io::ErrorKind::InvalidInput)?;
        Ok(self.position)
    }
}

// === impl Quoted ===

impl Display for Quoted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_char('`')?;
        let mut chars = self.0.chars();
        for c in chars.by_ref().take(QUOTED_CHARS_MAX) {
            // Escapes control characters, and with them whatever a terminal would obey.
            if c == '\'' || c == '"' {
                f.write_char(c)?
            } else {
                write!(f, "{}", c.escape_debug())?
            }
        }
        if chars.next().is_some() {
            f.write_str("...")?;
        }
        f.write_char('`')
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_past_the_end_is_refused_before_anything_is_allocated() {
        let input = Input::of_bytes(vec![1, 2, 3], Path::new("x"));
        assert_eq!(input.read_range("here", 1, 2).unwrap(), [2, 3]);
        for (start, len) in [(0, 4), (3, 1), (u64::MAX, 1), (1, u64::MAX), (4, u64::MAX - 2)] {
            let error = input.read_range("here", start, len).unwrap_err();
            assert!(matches!(error, ReadError::Damaged { .. }), "{error}");
        }
    }

    #[test]
    fn a_folder_is_refused() {
        let error = Input::open(&std::env::temp_dir()).unwrap_err();
        assert!(error.to_string().ends_with("it is no regular file"), "{error}");
    }

    #[test]
    fn names_from_a_file_are_escaped_and_cut_in_messages() {
        assert_eq!(Quoted("a.b'\u{1b}[31m").to_string(), "`a.b'\\u{1b}[31m`");
        assert_eq!(Quoted(&"x".repeat(1000)).to_string().len(), QUOTED_CHARS_MAX + 5);
    }

    #[test]
    fn a_seek_below_the_start_fails() {
        let mut cursor = Cursor::new(&Arc::new(Input::of_bytes(vec![0; 9], Path::new("x"))), 0);
        assert!(cursor.seek(SeekFrom::End(-10)).is_err());
        assert_eq!(cursor.seek(SeekFrom::End(-9)).unwrap(), 0);
        assert!(cursor.seek(SeekFrom::Current(-1)).is_err());
    }
}

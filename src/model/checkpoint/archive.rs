//! Zip directories, checked before use.
//!
//! The directory comes from the `zip` crate; this module adds what a hostile archive calls for. An
//! entry's sizes are only used once it is known that no two entries share a byte and that all of
//! them lie before the directory, so the sum of what stored entries claim is at most the file's
//! length. Format: <https://pkware.cachefly.net/webdocs/casestudies/APPNOTE.TXT>.

use std::error::Error;
use std::io::{self, Read};
use std::sync::{Arc, OnceLock};

use zip::read::{ArchiveOffset, Config};
use zip::result::ZipError;
use zip::{CompressionMethod, ZipArchive};

use super::ReadError;
use super::input::{Cursor, Input, Quoted};

/// How a zip file with at least one entry begins.
pub(super) const MAGIC: &[u8] = b"PK\x03\x04";

/// The most entries. A checkpoint has one for each tensor, a few hundred.
const ENTRIES_MAX: usize = 1 << 16;

/// No deflate stream grows by more than this factor (258 bytes from 2 bits).
const DEFLATE_RATIO_MAX: u64 = 1032;

/// Reads one entry, unpacked.
pub(super) type EntryReader<'a> = zip::read::ZipFile<'a, Cursor>;

const DIRECTORY: &str = "zip directory";

/// An opened zip file whose directory has been checked.
#[derive(Debug)]
pub(super) struct Archive {
    input: Arc<Input>,
    zip: ZipArchive<Cursor>,
    entries: Vec<Entry>,
}

/// One file of an archive.
#[derive(Debug)]
pub(super) struct Entry {
    pub name: String,
    /// The size when unpacked. Of a stored entry it is proven, of a packed one merely claimed.
    pub len_bytes: u64,
    pub stored: bool,
    /// Where a stored entry's bytes begin in the file, once its checksum was found to be right.
    whole_at: OnceLock<u64>,
}

// === impl Archive ===

impl Archive {
    /// Reads and checks the directory.
    pub fn open(input: &Arc<Input>) -> Result<Archive, ReadError> {
        // Nothing stands before the archive; to look for a start elsewhere would read it all.
        let config = Config { archive_offset: ArchiveOffset::Known(0) };
        let failed = |e| match e {
            ZipError::Io(source) => input.io(DIRECTORY, source),
            e => input.damaged(DIRECTORY, format!("{}; is the file truncated?", lowercase(&e))),
        };
        let mut zip = ZipArchive::with_config(config, Cursor::new(input, 0)).map_err(failed)?;
        if zip.len() > ENTRIES_MAX {
            let reason = format!("{} entries are more than any checkpoint has", zip.len());
            return Err(input.refused(DIRECTORY, reason));
        }
        if zip.has_duplicate_names() {
            return Err(input.damaged(DIRECTORY, "two entries have the same name"));
        }
        if zip.has_overlapping_entries().map_err(failed)? {
            let reason = "two entries overlap, or one reaches past the directory";
            return Err(input.damaged(DIRECTORY, reason));
        }
        let mut entries = Vec::with_capacity(zip.len());
        for index in 0..zip.len() {
            entries.push(checked_entry(input, &zip, index)?);
        }
        Ok(Archive { input: Arc::clone(input), zip, entries })
    }

    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    pub fn find(&self, name: &str) -> Option<(usize, &Entry)> {
        self.entries.iter().enumerate().find(|(_, entry)| entry.name == name)
    }

    /// Hands a reader of an unpacked entry to `work`. Reading it to its end verifies the checksum.
    pub fn with_entry<T>(
        &self,
        index: usize,
        work: impl FnOnce(&mut EntryReader<'_>) -> Result<T, ReadError>,
    ) -> Result<T, ReadError> {
        // The clone shares the directory and has a position of its own.
        let mut zip = self.zip.clone();
        let mut reader = zip.by_index(index).map_err(|e| match e {
            ZipError::Io(source) => self.input.io(self.place(index), source),
            e => self.input.damaged(self.place(index), lowercase(&e)),
        })?;
        work(&mut reader)
    }

    /// Returns where in the file a stored entry begins that was read to its end before.
    pub fn start_of_whole(&self, index: usize) -> Option<u64> {
        self.entries.get(index)?.whole_at.get().copied()
    }

    /// Notes that an entry was read to its end, where its checksum is compared.
    pub fn note_whole(&self, index: usize, start: Option<u64>) {
        if let (Some(entry), Some(start)) = (self.entries.get(index), start)
            && entry.stored
        {
            // Whoever was first noted the same.
            let _ = entry.whole_at.set(start);
        }
    }

    /// Reads a whole entry of at most so many bytes.
    pub fn read(&self, index: usize, len_bytes_max: u64) -> Result<Vec<u8>, ReadError> {
        self.with_entry(index, |reader| {
            // Grows with what is really there, whatever the directory claims.
            let mut bytes = Vec::new();
            reader
                .by_ref()
                .take(len_bytes_max.saturating_add(1))
                .read_to_end(&mut bytes)
                .map_err(|e| self.read_error(index, e))?;
            if bytes.len() as u64 > len_bytes_max {
                let reason = format!("it is larger than the {len_bytes_max} bytes it may have");
                return Err(self.input.refused(self.place(index), reason));
            }
            Ok(bytes)
        })
    }

    /// Returns the error for a failed read within an entry.
    pub fn read_error(&self, index: usize, source: io::Error) -> ReadError {
        match source.kind() {
            // How the zip crate reports damage to what was packed, and a wrong checksum.
            io::ErrorKind::InvalidData | io::ErrorKind::InvalidInput | io::ErrorKind::Other => {
                let reason = format!(
                    "{}; the file is damaged, or was saved without checksums: download or save \
                     it again",
                    lowercase(&source)
                );
                self.input.damaged(self.place(index), reason)
            }
            _ => self.input.io(self.place(index), source),
        }
    }

    fn place(&self, index: usize) -> String {
        let name = self.entries.get(index).map_or("", |entry| entry.name.as_str());
        format!("entry {}", Quoted(name))
    }
}

fn checked_entry(
    input: &Input,
    zip: &ZipArchive<Cursor>,
    index: usize,
) -> Result<Entry, ReadError> {
    let data = zip.by_index_data(index).map_err(|e| input.damaged(DIRECTORY, lowercase(&e)))?;
    let Ok(name) = String::from_utf8(data.name_raw().to_vec()) else {
        return Err(input.damaged(DIRECTORY, format!("the name of entry {index} isn't UTF-8")));
    };
    let place = || format!("entry {}", Quoted(&name));
    if data.encrypted() {
        return Err(input.refused(place(), "it is encrypted"));
    }
    let (packed, len_bytes) = (data.compressed_size(), data.size());
    let stored = match data.compression() {
        CompressionMethod::Stored => true,
        CompressionMethod::Deflated => false,
        other => return Err(input.refused(place(), format!("it is packed with {other}"))),
    };
    let possible =
        if stored { packed == len_bytes } else { len_bytes / DEFLATE_RATIO_MAX <= packed };
    if !possible {
        let reason = format!("{packed} bytes in the file can't be {len_bytes} bytes unpacked");
        return Err(input.damaged(place(), reason));
    }
    Ok(Entry { name, len_bytes, stored, whole_at: OnceLock::new() })
}

/// Returns the zip crate's sentence in our style.
fn lowercase(error: &dyn Error) -> String {
    let text = error.to_string();
    let mut chars = text.chars();
    match chars.next() {
        // Leaves abbreviations such as EOCD alone.
        Some(first) if !chars.as_str().starts_with(char::is_uppercase) => {
            first.to_lowercase().chain(chars).collect()
        }
        _ => text,
    }
}

#[cfg(test)]
mod tests;

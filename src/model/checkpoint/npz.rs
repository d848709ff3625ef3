//! The arrays of an `.npz` file: a zip file of `.npy` files, stored or deflated.
//!
//! An `.npy` file is a mark, a version, a header that is a Python dict of three keys, and the
//! numbers. Format: <https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html>.
//!
//! # Invariants
//!
//! - An array's entry must be exactly as long as its header says, and within the caller's limit;
//!   memory grows with what has been inflated, never with what is claimed.

use std::io::Read;

use super::ReadError;
use super::archive::{Archive, EntryReader};
use super::input::{Input, Quoted};
use super::number::{ByteOrder, Dtype};
use super::numpy::{ArrayInfo, NUMPY_RANK_MAX, parse_dtype};

/// How an `.npy` file begins.
pub(super) const NPY_MAGIC: &[u8] = b"\x93NUMPY";

/// Longest header. Numpy itself refuses more than 10,000 unless told to trust the file.
const HEADER_BYTES_MAX: usize = 10_000;

/// How much is inflated at a time.
const CHUNK_BYTES: u64 = 64 * 1024;

/// An array in an `.npz` file.
#[derive(Debug)]
pub(super) struct NpzArray {
    /// Without the `.npy`.
    pub name: String,
    /// Nothing where the numbers are no floats.
    pub info: Option<ArrayInfo>,
    index: usize,
}

/// What the header of an `.npy` file says.
#[derive(Debug, PartialEq)]
struct Header {
    shape: Vec<usize>,
    column_major: bool,
    dtype: Dtype,
    byte_order: ByteOrder,
}

/// Lists the arrays. Other entries are passed over.
pub(super) fn read_index(input: &Input, archive: &Archive) -> Result<Vec<NpzArray>, ReadError> {
    let mut arrays = Vec::new();
    for (index, entry) in archive.entries().iter().enumerate() {
        let Some(name) = entry.name.strip_suffix(".npy") else {
            continue;
        };
        let (header, start_bytes) =
            archive.with_entry(index, |reader| read_header(input, archive, index, reader))?;
        let info = match header.dtype {
            Dtype::Other(_) => None,
            Dtype::Float(float) => Some(ArrayInfo {
                shape: header.shape,
                float,
                byte_order: header.byte_order,
                column_major: header.column_major,
            }),
        };
        if let Some(info) = &info {
            let expected = info
                .len_bytes()
                .and_then(|len_bytes| len_bytes.checked_add(start_bytes))
                .map(|len_bytes| len_bytes as u64);
            if expected != Some(entry.len_bytes) {
                let reason = format!(
                    "an array of shape {:?} can't have {} bytes",
                    info.shape, entry.len_bytes
                );
                return Err(input.damaged(place(&entry.name), reason));
            }
        }
        arrays.push(NpzArray { name: name.to_owned(), info, index });
    }
    Ok(arrays)
}

/// Reads an array's numbers, row-major, when they take at most so many bytes.
pub(super) fn read(
    input: &Input,
    archive: &Archive,
    array: &NpzArray,
    len_bytes_max: usize,
) -> Result<Vec<f32>, ReadError> {
    let name = || place(&format!("{}.npy", array.name));
    let Some(info) = &array.info else {
        return Err(input.refused(name(), "its numbers are no floats"));
    };
    let len_bytes = info.len_bytes().filter(|&len_bytes| len_bytes <= len_bytes_max);
    let Some(len_bytes) = len_bytes else {
        let reason = format!("an array of shape {:?} is too large", info.shape);
        return Err(input.refused(name(), reason));
    };
    archive.with_entry(array.index, |reader| {
        read_header(input, archive, array.index, reader)?;
        let mut numbers = Vec::new();
        let mut raw = Vec::new();
        let mut left = len_bytes as u64;
        while left > 0 {
            // Whole numbers only: their sizes divide that of a chunk.
            raw.clear();
            reader
                .by_ref()
                .take(CHUNK_BYTES.min(left))
                .read_to_end(&mut raw)
                .map_err(|e| archive.read_error(array.index, e))?;
            if raw.len() as u64 != CHUNK_BYTES.min(left) {
                return Err(input.damaged(name(), "its numbers end too early"));
            }
            info.float.decode(info.byte_order, &raw, &mut numbers);
            left -= raw.len() as u64;
        }
        // The checksum is compared where the entry ends, and it must end here.
        raw.clear();
        reader
            .by_ref()
            .take(1)
            .read_to_end(&mut raw)
            .map_err(|e| archive.read_error(array.index, e))?;
        if !raw.is_empty() {
            return Err(input.damaged(name(), "bytes follow its numbers"));
        }
        Ok(info.to_rows(numbers))
    })
}

fn place(name: &str) -> String {
    format!("entry {}", Quoted(name))
}

/// Reads up to the first number, and returns how many bytes that were.
fn read_header(
    input: &Input,
    archive: &Archive,
    index: usize,
    reader: &mut EntryReader<'_>,
) -> Result<(Header, usize), ReadError> {
    let name = || place(archive.entries().get(index).map_or("", |entry| &entry.name));
    let mut fill =
        |bytes: &mut [u8]| reader.read_exact(bytes).map_err(|e| archive.read_error(index, e));
    let mut start = [0; 8];
    fill(&mut start)?;
    let version = match start.strip_prefix(NPY_MAGIC) {
        Some(&[version @ 1..=3, 0]) => version,
        Some(_) => return Err(input.refused(name(), "an .npy file of unknown version")),
        None => return Err(input.damaged(name(), "it is no .npy file")),
    };
    let mut len = [0; 4];
    let len_width = if version == 1 { 2 } else { 4 };
    fill(len.get_mut(..len_width).unwrap_or_default())?;
    let header_bytes = u32::from_le_bytes(len) as usize;
    if header_bytes > HEADER_BYTES_MAX {
        let reason =
            format!("a header of {header_bytes} bytes, where {HEADER_BYTES_MAX} are allowed");
        return Err(input.refused(name(), reason));
    }
    let mut text = vec![0; header_bytes];
    fill(&mut text)?;
    let header = std::str::from_utf8(&text).ok().and_then(parse_header).ok_or_else(|| {
        let reason =
            format!("its header isn't understood: {}", Quoted(&String::from_utf8_lossy(&text)));
        input.refused(name(), reason)
    })?;
    Ok((header, start.len() + len_width + header_bytes))
}

/// Understands a header, which is a Python literal such as
/// `{'descr': '<f4', 'fortran_order': False, 'shape': (3, 2), }`.
fn parse_header(text: &str) -> Option<Header> {
    let mut rest = text.trim().strip_prefix('{')?.strip_suffix('}')?.trim();
    let (mut dtype, mut column_major, mut shape) = (None, None, None);
    while !rest.is_empty() {
        let (key, after) = quoted(rest)?;
        let value = after.trim_start().strip_prefix(':')?.trim_start();
        let after = match key {
            "descr" if dtype.is_none() => {
                let (name, after) = quoted(value)?;
                dtype = Some(parse_dtype(name)?);
                after
            }
            "fortran_order" if column_major.is_none() => {
                let (word, after) = value.split_once(',').unwrap_or((value, ""));
                column_major = Some(match word.trim() {
                    "True" => true,
                    "False" => false,
                    _ => return None,
                });
                // The comma was taken with the word.
                rest = after.trim();
                continue;
            }
            "shape" if shape.is_none() => {
                let (sizes, after) = value.strip_prefix('(')?.split_once(')')?;
                shape = Some(parse_sizes(sizes)?);
                after
            }
            _ => return None,
        };
        let after = after.trim_start();
        rest = match after.strip_prefix(',') {
            Some(after) => after.trim(),
            None if after.is_empty() => after,
            None => return None,
        };
    }
    let (dtype, order) = dtype?;
    let byte_order = order.unwrap_or(ByteOrder::Little);
    Some(Header { shape: shape?, column_major: column_major?, dtype, byte_order })
}

/// Splits a quoted word without escapes off.
fn quoted(text: &str) -> Option<(&str, &str)> {
    match text.chars().next()? {
        quote @ ('\'' | '"') => {
            let (word, after) = text.get(1..)?.split_once(quote)?;
            (!word.contains('\\')).then_some((word, after))
        }
        _ => None,
    }
}

/// Understands the inside of a tuple of sizes; one alone has a comma behind it.
fn parse_sizes(text: &str) -> Option<Vec<usize>> {
    let text = text.trim();
    if text.is_empty() {
        return Some(Vec::new());
    }
    let text = text.strip_suffix(',').unwrap_or(text);
    if text.split(',').count() > NUMPY_RANK_MAX {
        return None;
    }
    text.split(',')
        // Digits only: `parse` alone would take a plus sign. Python 2 wrote an L behind them.
        .map(|size| size.trim().trim_end_matches('L'))
        .map(|size| size.bytes().all(|b| b.is_ascii_digit()).then(|| size.parse().ok())?)
        .collect()
}

#[cfg(test)]
mod tests;

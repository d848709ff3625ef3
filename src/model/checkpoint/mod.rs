//! Safe readers of weights files that others wrote.
//!
//! A [`Checkpoint`] is an encoder's file, safetensors or torch's zip format; it is opened by
//! reading its index only, and its tensors are then streamed one by one. A [`Head`] is the small
//! linear layer behind it, in any of the formats in which heads are published. Both come from
//! strangers, and two of the formats are pickles, programs that a Python interpreter would run.
//! Here they are data.
//!
//! - `input`: the file as ranges of bytes, and errors that name it.
//! - `number`: number formats, and their way to `f32`.
//! - `archive`: zip directories, checked before use.
//! - `pickle`: pickles to an inert graph.
//! - `torch`, `safetensors`: the two formats of checkpoints.
//! - `numpy`, `npz`: arrays in pickles and in `.npy` files.
//! - `head`: which two arrays of a file are the head, and which way round.
//!
//! # Invariants
//!
//! - Nothing from a file is ever executed, and no name in it becomes a path.
//! - No length from a file is believed: memory is only taken for bytes that are there, within the
//!   stated limits, or that have been inflated already.
//! - No file makes a reader panic, recurse without bound or loop without reading on.
//! - Numbers are passed on as they are: whether they are finite is the network's business.

mod archive;
mod head;
mod input;
mod npz;
mod number;
mod numpy;
mod pickle;
mod safetensors;
mod torch;

#[cfg(test)]
mod fixtures;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use thiserror::Error;

use archive::Archive;
pub(super) use input::Quoted;
use input::{Cursor, Input};
use number::{ByteOrder, StreamFault};

pub use head::{Head, parse_head, read_head};
pub use number::{Dtype, Float};

/// The most dimensions that a tensor may have. Encoders have two; a limit keeps a hostile file from
/// giving one long shape to each of many tensors.
const RANK_MAX: usize = 16;

/// Why a file could not be read.
#[derive(Debug, Error)]
pub enum ReadError {
    /// The system failed to read.
    #[error("{path}: {place}: failed to read")]
    Io {
        /// The file.
        path: PathBuf,
        /// Where in it.
        place: String,
        /// What the system said.
        source: io::Error,
    },
    /// The file contradicts its own format: it is truncated, damaged or forged.
    #[error("{path}: {place}: {reason}")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Where in it.
        place: String,
        /// What is wrong there.
        reason: String,
    },
    /// The file is, or asks for, something that isn't read here.
    #[error("{path}: {place}: {reason}")]
    Refused {
        /// The file.
        path: PathBuf,
        /// Where in it.
        place: String,
        /// What it is, and what can be done.
        reason: String,
    },
    /// There is no tensor of this name.
    #[error("{path}: no tensor {}", Quoted(.name))]
    Missing {
        /// The file.
        path: PathBuf,
        /// The name asked for.
        name: String,
    },
    /// The receiver of the numbers failed, not the file.
    #[error("{path}: tensor {}: its numbers could not be passed on", Quoted(.name))]
    Sink {
        /// The file that was read.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// What the receiver said.
        source: io::Error,
    },
}

/// Shape and number format of a tensor.
#[derive(Clone, Debug)]
pub struct TensorInfo {
    /// The sizes, the slowest dimension first; empty for a single number.
    pub shape: Vec<usize>,
    /// The number format in the file.
    pub dtype: Dtype,
    data: Data,
}

/// Where a tensor's bytes are.
#[derive(Clone, Debug)]
enum Data {
    /// In the file from here on.
    Range { start: u64 },
    /// In a zip entry, behind so many of its bytes.
    Entry { index: usize, skip: u64 },
    /// Somewhere that isn't read, for this reason.
    Refused(&'static str),
}

/// An opened weights file: the names, shapes and places of its tensors. No numbers are held.
#[derive(Debug)]
pub struct Checkpoint {
    input: Arc<Input>,
    archive: Option<Archive>,
    byte_order: ByteOrder,
    tensors: BTreeMap<String, TensorInfo>,
}

// === impl Checkpoint ===

impl Checkpoint {
    /// Opens a weights file and reads its index. The format is told by the content.
    ///
    /// # Errors
    ///
    /// When the file can't be read, is of neither format, is damaged, or asks for anything that a
    /// weights file has no need for. A tensor that is of no use here, such as one of integers,
    /// doesn't hinder the others.
    pub fn open(path: &Path) -> Result<Checkpoint, ReadError> {
        Self::of_input(Arc::new(Input::open(path)?))
    }

    /// Opens a weights file that lies in memory; `path` only names it in errors. Tests and fuzzers
    /// use it.
    ///
    /// # Errors
    ///
    /// As [`Checkpoint::open`].
    pub fn parse(bytes: Vec<u8>, path: &Path) -> Result<Checkpoint, ReadError> {
        Self::of_input(Arc::new(Input::of_bytes(bytes, path)))
    }

    fn of_input(input: Arc<Input>) -> Result<Checkpoint, ReadError> {
        let start = input.start()?;
        if start.starts_with(archive::MAGIC) {
            let archive = Archive::open(&input)?;
            let index = torch::read_index(&input, &archive)?;
            let (byte_order, tensors) = (index.byte_order, index.tensors);
            return Ok(Checkpoint { input, archive: Some(archive), byte_order, tensors });
        }
        if safetensors::looks_like(&start, input.len_bytes()) {
            let tensors = safetensors::read_index(&input)?;
            let byte_order = ByteOrder::Little;
            return Ok(Checkpoint { input, archive: None, byte_order, tensors });
        }
        Err(input.unknown(&start, "safetensors or torch's zip format"))
    }

    /// Returns the tensors' names in alphabetical order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// Returns the shape and number format of a tensor.
    pub fn get(&self, name: &str) -> Option<&TensorInfo> {
        self.tensors.get(name)
    }

    /// Passes a tensor's numbers on in row-major order, at most 64 Ki of them at a time.
    ///
    /// Of a zip file the checksum is verified at the end, after all numbers have been passed on: on
    /// an error the receiver must forget what it has. A storage that several tensors share is
    /// verified with the first of them, and of the others their own numbers alone are read.
    ///
    /// # Errors
    ///
    /// When there is no such tensor, it isn't of floats or not contiguous, the file can't be read
    /// or is damaged, or `sink` fails, which ends the reading.
    pub fn stream(
        &self,
        name: &str,
        sink: &mut dyn FnMut(&[f32]) -> io::Result<()>,
    ) -> Result<(), ReadError> {
        let tensor = self.tensors.get(name).ok_or_else(|| self.missing(name))?;
        let place = || format!("tensor {}", Quoted(name));
        let float = match (tensor.dtype, &tensor.data) {
            (Dtype::Other(dtype), _) => {
                let reason = format!("its numbers are {dtype}, and only floats can be read");
                return Err(self.input.refused(place(), reason));
            }
            (_, Data::Refused(reason)) => return Err(self.input.refused(place(), *reason)),
            (Dtype::Float(float), _) => float,
        };
        // The index was checked: the product doesn't overflow, and the bytes lie in the file.
        let count = elements(&tensor.shape)
            .ok_or_else(|| self.input.damaged(place(), "its shape is larger than any memory"))?;
        let fault = |fault| match fault {
            StreamFault::Sink(source) => {
                ReadError::Sink { path: self.input.path().into(), name: name.into(), source }
            }
            StreamFault::Read(source) => self.input.io(place(), source),
        };
        match (&tensor.data, &self.archive) {
            (Data::Entry { index, skip }, Some(archive)) => {
                if let Some(start) = archive.start_of_whole(*index) {
                    let mut reader = Cursor::new(&self.input, start + skip);
                    let order = self.byte_order;
                    return number::stream(&mut reader, float, order, count, sink).map_err(fault);
                }
                let start = archive.with_entry(*index, |reader| {
                    let read_error = |source| archive.read_error(*index, source);
                    // Read and not sought: the checksum is that of the whole entry.
                    let skipped = io::copy(&mut reader.by_ref().take(*skip), &mut io::sink());
                    skipped.map_err(read_error)?;
                    number::stream(reader, float, self.byte_order, count, sink).map_err(
                        |e| match e {
                            StreamFault::Read(source) => read_error(source),
                            sink @ StreamFault::Sink(_) => fault(sink),
                        },
                    )?;
                    // The checksum is compared where the entry ends.
                    io::copy(reader, &mut io::sink()).map_err(read_error)?;
                    Ok(reader.data_start())
                })?;
                archive.note_whole(*index, start);
                Ok(())
            }
            (Data::Range { start }, _) => {
                let mut reader = Cursor::new(&self.input, *start);
                number::stream(&mut reader, float, self.byte_order, count, sink).map_err(fault)
            }
            _ => Err(self.input.damaged(place(), "it lies in no part of the file")),
        }
    }

    /// Reads a whole tensor, row-major.
    ///
    /// # Errors
    ///
    /// As [`Checkpoint::stream`].
    pub fn read(&self, name: &str) -> Result<Vec<f32>, ReadError> {
        let tensor = self.tensors.get(name).ok_or_else(|| self.missing(name))?;
        // What is refused by `stream` has no checked size, and nothing may be reserved for it.
        let readable =
            matches!(tensor.dtype, Dtype::Float(_)) && !matches!(tensor.data, Data::Refused(_));
        let count = if readable { elements(&tensor.shape).unwrap_or(0) } else { 0 };
        let mut numbers = Vec::with_capacity(count);
        self.stream(name, &mut |chunk| {
            numbers.extend_from_slice(chunk);
            Ok(())
        })?;
        Ok(numbers)
    }

    fn missing(&self, name: &str) -> ReadError {
        ReadError::Missing { path: self.input.path().into(), name: name.into() }
    }
}

/// Returns how many numbers a tensor of this shape has, or nothing when that overflows.
fn elements(shape: &[usize]) -> Option<usize> {
    if shape.contains(&0) {
        return Some(0);
    }
    shape.iter().try_fold(1_usize, |product, &size| product.checked_mul(size))
}

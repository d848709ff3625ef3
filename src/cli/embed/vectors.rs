//! Vectors in a file, in each of the formats.

use std::io::{self, Write};

use clap::ValueEnum;

use crate::wire::vector::native;

/// Formats of vectors in files.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// A JSON array a line.
    Jsonl,
    /// NumPy's array file, float32 `[captions, dim]`.
    Npy,
    /// Raw little-endian float32, row after row.
    F32,
}

/// Writes vectors.
pub struct VectorWriter<W> {
    /// Where they go.
    pub out: W,
    format: Format,
    bytes: Vec<u8>,
}

impl<W: Write> VectorWriter<W> {
    /// Returns a writer that hasn't written anything, not even a header.
    pub fn new(out: W, format: Format) -> Self {
        VectorWriter { out, format, bytes: Vec::new() }
    }

    /// Writes vectors of `dim` numbers each.
    pub fn write(&mut self, vectors: &[f32], dim: usize) -> io::Result<()> {
        self.bytes.clear();
        match self.format {
            Format::Npy | Format::F32 => {
                self.bytes.extend_from_slice(&native(vectors));
            }
            Format::Jsonl => {
                for vector in vectors.chunks_exact(dim) {
                    serde_json::to_writer(&mut self.bytes, vector)?;
                    self.bytes.push(b'\n');
                }
            }
        }
        self.out.write_all(&self.bytes)
    }
}

/// The header of NumPy's format 1.0 for float32 `[rows, dim]`: always 128 bytes, so that it can be
/// written again when the number of rows is known. Source: NumPy's `numpy.lib.format`.
pub fn npy_header(rows: u64, dim: usize) -> [u8; 128] {
    let shape = format!("{{'descr': '<f4', 'fortran_order': False, 'shape': ({rows}, {dim}), }}");
    let mut header = [b' '; 128];
    header[..8].copy_from_slice(b"\x93NUMPY\x01\x00");
    header[8..10].copy_from_slice(&118u16.to_le_bytes());
    header[10..10 + shape.len()].copy_from_slice(shape.as_bytes());
    header[127] = b'\n';
    header
}

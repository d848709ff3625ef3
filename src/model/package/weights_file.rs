//! The file of a package's weights while it is written.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;

use half::f16;

use super::WEIGHTS;
use crate::model::graph::{self, External};
use crate::model::manifest::{FileDigest, Hashing};
use crate::model::network::Weight;
use crate::model::onnx::DataType;
use crate::model::quantize::quantize;

/// Weights begin at multiples of this many bytes, the size of a page, so that each can be mapped.
const ALIGNMENT: u64 = 4096;

/// The file, with what lies where in it.
pub(super) struct WeightsFile {
    file: Hashing<BufWriter<File>>,
    placed: Vec<External>,
    bytes: Vec<u8>,
}

impl WeightsFile {
    pub(super) fn create(path: &Path) -> io::Result<WeightsFile> {
        let file = BufWriter::with_capacity(1 << 20, File::create(path)?);
        Ok(WeightsFile { file: Hashing::new(file), placed: Vec::new(), bytes: Vec::new() })
    }

    /// Begins a tensor at the next page.
    pub(super) fn begin(
        &mut self,
        name: String,
        shape: Vec<usize>,
        dtype: DataType,
    ) -> io::Result<()> {
        let padding = self.file.bytes().next_multiple_of(ALIGNMENT) - self.file.bytes();
        self.file.write_all(&vec![0; padding as usize])?;
        self.placed.push(External { name, shape, dtype, offset: self.file.bytes(), length: 0 });
        Ok(())
    }

    /// Appends numbers to the tensor that has begun, in its type.
    pub(super) fn append(&mut self, numbers: &[f32]) -> io::Result<()> {
        let tensor = self.placed.last().expect("a tensor has begun");
        if let Some(number) = numbers.iter().find(|number| !number.is_finite()) {
            // Where the next step makes integers of what comes of it, nobody would ever know.
            let reason =
                format!("{} has {number}, which is no number: is it damaged?", tensor.name);
            return Err(io::Error::new(io::ErrorKind::InvalidData, reason));
        }
        self.bytes.clear();
        if tensor.dtype == DataType::Float16 {
            for &number in numbers {
                let half = f16::from_f32(number);
                if half.is_infinite() {
                    let reason = format!(
                        "{} has {number}, which no 16-bit float can hold; take --precision fp32",
                        tensor.name
                    );
                    return Err(io::Error::new(io::ErrorKind::InvalidData, reason));
                }
                self.bytes.extend(half.to_le_bytes());
            }
        } else {
            self.bytes.extend(numbers.iter().flat_map(|n| n.to_le_bytes()));
        }
        self.file.write_all(&self.bytes)
    }

    /// Ends the tensor.
    pub(super) fn end(&mut self) {
        let tensor = self.placed.last_mut().expect("a tensor has begun");
        tensor.length = self.file.bytes() - tensor.offset;
        let due = tensor.shape.iter().product::<usize>() * tensor.dtype.width();
        assert_eq!(tensor.length, due as u64, "{} is filled exactly", tensor.name);
    }

    /// Writes a matrix `[out, in]` as 8-bit integers `[in, out]`, and its scales `[out]`.
    pub(super) fn write_quantized(&mut self, weight: &Weight, matrix: &[f32]) -> io::Result<()> {
        let (outputs, inputs) = (weight.shape[0], weight.shape[1]);
        if let Some(number) = matrix.iter().find(|number| !number.is_finite()) {
            // It would become a number like any other, and nobody would ever know.
            let name = &weight.name;
            let reason =
                format!("{name} has {number}, of which no integer can be made: is it damaged?");
            return Err(io::Error::new(io::ErrorKind::InvalidData, reason));
        }
        let quantized = quantize(matrix, inputs);
        if quantized.scales.iter().any(|scale| !scale.is_finite()) {
            // Each product with it would be no number, whatever the caption.
            let name = &weight.name;
            let reason = format!("{name} has numbers too large for a scale: is it damaged?");
            return Err(io::Error::new(io::ErrorKind::InvalidData, reason));
        }
        self.begin(weight.name.clone(), vec![inputs, outputs], DataType::Int8)?;
        self.bytes.clear();
        self.bytes.extend(quantized.numbers.iter().map(|n| n.to_le_bytes()[0]));
        self.file.write_all(&self.bytes)?;
        self.end();
        self.begin(graph::scales_of(&weight.name), vec![outputs], DataType::Float)?;
        self.append(&quantized.scales)?;
        self.end();
        Ok(())
    }

    /// Returns once the disk has the file.
    pub(super) fn finish(self) -> io::Result<(Vec<External>, FileDigest)> {
        let (writer, digest) = self.file.finish(WEIGHTS);
        writer.into_inner().map_err(io::IntoInnerError::into_error)?.sync_all()?;
        Ok((self.placed, digest))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::synth::Preset;

    #[test]
    fn a_weight_that_is_no_number_is_refused_in_every_type() {
        let folder = tempfile::tempdir().unwrap();
        let mut data = WeightsFile::create(&folder.path().join(WEIGHTS)).unwrap();
        for dtype in [DataType::Float, DataType::Float16] {
            data.begin("layers.0.qkv.bias".into(), vec![3], dtype).unwrap();
            for number in [f32::NAN, f32::INFINITY] {
                let error = data.append(&[0.5, number, 0.5]).unwrap_err().to_string();
                assert!(error.contains("layers.0.qkv.bias has"), "{error}");
            }
        }
    }

    #[test]
    fn a_weight_that_is_no_number_is_not_quantized() {
        let folder = tempfile::tempdir().unwrap();
        let mut data = WeightsFile::create(&folder.path().join(WEIGHTS)).unwrap();
        let weights = Preset::Tiny.network().weights();
        let weight = weights.iter().find(|weight| weight.is_layer_matrix()).unwrap();
        // The sum of two of the last is infinite.
        for number in [f32::NAN, f32::INFINITY, f32::MAX] {
            let mut matrix = vec![0.5; weight.elements()];
            matrix[2..4].fill(number);
            let error = data.write_quantized(weight, &matrix).unwrap_err().to_string();
            assert!(error.contains(&weight.name), "{error}");
        }
    }
}

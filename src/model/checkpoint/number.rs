//! The number formats of weights files, and their way to `f32`.
//!
//! `f16` and `bf16` become `f32` without loss; `f64` is rounded to the nearest.

use std::io::{self, Read};

use half::{bf16, f16};

/// How many numbers are passed on at a time.
const CHUNK_NUMBERS: usize = 64 * 1024;

/// The number format of a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dtype {
    /// A float, which can be read.
    Float(Float),
    /// Anything else, by its name; it can't be read.
    Other(&'static str),
}

/// A floating-point format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Float {
    /// IEEE half precision.
    F16,
    /// The upper half of an `f32`.
    Bf16,
    /// IEEE single precision.
    F32,
    /// IEEE double precision.
    F64,
}

/// Which byte of a number comes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ByteOrder {
    Little,
    Big,
}

/// Which side of a stream failed.
#[derive(Debug)]
pub(super) enum StreamFault {
    Read(io::Error),
    Sink(io::Error),
}

// === impl Float ===

impl Float {
    /// Returns the size of one number in bytes.
    pub fn size_bytes(self) -> usize {
        match self {
            Float::F16 | Float::Bf16 => 2,
            Float::F32 => 4,
            Float::F64 => 8,
        }
    }

    /// Appends the numbers in `raw` to `out`. Bytes that make no whole number are left out.
    pub(super) fn decode(self, order: ByteOrder, raw: &[u8], out: &mut Vec<f32>) {
        match self {
            Float::F16 => decode(order, raw, out, |b| f16::from_le_bytes(b).to_f32()),
            Float::Bf16 => decode(order, raw, out, |b| bf16::from_le_bytes(b).to_f32()),
            Float::F32 => decode(order, raw, out, f32::from_le_bytes),
            Float::F64 => decode(order, raw, out, |b| f64::from_le_bytes(b) as f32),
        }
    }
}

fn decode<const N: usize>(
    order: ByteOrder,
    raw: &[u8],
    out: &mut Vec<f32>,
    number: impl Fn([u8; N]) -> f32,
) {
    let (numbers, _) = raw.as_chunks::<N>();
    match order {
        ByteOrder::Little => out.extend(numbers.iter().map(|&bytes| number(bytes))),
        ByteOrder::Big => out.extend(numbers.iter().map(|&bytes| {
            let mut bytes = bytes;
            bytes.reverse();
            number(bytes)
        })),
    }
}

/// Reads `count` numbers and passes them on chunk by chunk. Takes memory for one chunk only.
pub(super) fn stream(
    reader: &mut dyn Read,
    float: Float,
    order: ByteOrder,
    count: usize,
    sink: &mut dyn FnMut(&[f32]) -> io::Result<()>,
) -> Result<(), StreamFault> {
    let most = CHUNK_NUMBERS.min(count);
    let mut raw = vec![0; most * float.size_bytes()];
    let mut numbers = Vec::with_capacity(most);
    let mut left = count;
    while left > 0 {
        let now = most.min(left);
        raw.truncate(now * float.size_bytes());
        reader.read_exact(&mut raw).map_err(StreamFault::Read)?;
        numbers.clear();
        float.decode(order, &raw, &mut numbers);
        sink(&numbers).map_err(StreamFault::Sink)?;
        left -= now;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn one(float: Float, order: ByteOrder, raw: &[u8]) -> f32 {
        let mut out = Vec::new();
        float.decode(order, raw, &mut out);
        assert_eq!(out.len(), 1);
        out[0]
    }

    /// Decodes from both byte orders and expects the same.
    fn both(float: Float, mut little: Vec<u8>) -> f32 {
        let of_little = one(float, ByteOrder::Little, &little);
        little.reverse();
        let of_big = one(float, ByteOrder::Big, &little);
        assert_eq!(of_little.to_bits(), of_big.to_bits());
        of_little
    }

    proptest! {
        #[test]
        fn every_f32_is_passed_on_bit_for_bit(bits: u32) {
            let number = f32::from_bits(bits);
            let read = both(Float::F32, number.to_le_bytes().into());
            prop_assert_eq!(read.to_bits(), bits);
        }

        #[test]
        fn every_f64_is_rounded_to_the_nearest(number: f64) {
            prop_assert_eq!(both(Float::F64, number.to_le_bytes().into()), number as f32);
        }

        #[test]
        fn a_stream_keeps_order_and_bounds_its_chunks(count in 0_usize..200_000) {
            let raw: Vec<u8> = (0..count).flat_map(|n| (n as f32).to_le_bytes()).collect();
            let mut read = Vec::new();
            stream(&mut raw.as_slice(), Float::F32, ByteOrder::Little, count, &mut |chunk| {
                assert!(chunk.len() <= CHUNK_NUMBERS);
                read.extend_from_slice(chunk);
                Ok(())
            })
            .unwrap();
            prop_assert_eq!(read, (0..count).map(|n| n as f32).collect::<Vec<_>>());
        }
    }

    #[test]
    fn every_f16_and_bf16_survives_the_round_trip() {
        for bits in 0..=u16::MAX {
            let half = f16::from_bits(bits);
            let read = both(Float::F16, half.to_le_bytes().into());
            assert!(half.is_nan() && read.is_nan() || f16::from_f32(read) == half);
            let brain = bf16::from_bits(bits);
            let read = both(Float::Bf16, brain.to_le_bytes().into());
            assert!(brain.is_nan() && read.is_nan() || bf16::from_f32(read) == brain);
        }
    }

    #[test]
    fn a_stream_tells_who_failed() {
        let mut nothing = |_: &[f32]| Ok(());
        let short = stream(&mut [0; 7].as_slice(), Float::F32, ByteOrder::Little, 2, &mut nothing);
        assert!(matches!(short, Err(StreamFault::Read(_))));
        let mut full = |_: &[f32]| Err(io::ErrorKind::StorageFull.into());
        let full = stream(&mut [0; 8].as_slice(), Float::F32, ByteOrder::Little, 2, &mut full);
        assert!(matches!(full, Err(StreamFault::Sink(_))));
    }
}

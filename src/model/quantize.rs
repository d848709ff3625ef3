//! Matrices of 8-bit integers.
//!
//! The weights of each output have a scale of their own, symmetric about 0. The other side of the
//! product is scaled a token at a time while the graph runs, so that a caption's vector doesn't
//! depend on the captions beside it; see [`super::graph`].
//!
//! # Invariants
//!
//! - Two neighbours on one side of 0 make `PAIR_MAX` at most. On x86 without VNNI the kernels of
//!   ONNX Runtime multiply by `vpmaddubsw`, which adds the products of the inputs 2j and 2j + 1 in
//!   16 bits that saturate. Without saturation an integer product is exact, and the same on every
//!   CPU. That costs less than one bit of the weights, for the largest of an output seldom lie side
//!   by side.

/// Which way matrices are quantized, for the model's id: another one makes other vectors.
pub const SCHEME: u32 = 1;

/// The largest number that a weight becomes. With -128 the range wouldn't be symmetric.
const LARGEST: f32 = 127.0;

/// The most that two neighbouring weights of one sign make together.
const PAIR_MAX: f32 = 128.0;

/// The largest number of the other side.
const TOKEN_MAX: i32 = u8::MAX as i32;

const _: () = assert!(TOKEN_MAX * PAIR_MAX as i32 <= i16::MAX as i32, "no sum of two saturates");

/// A matrix of 8-bit integers, with a scale for each output.
#[derive(Clone, Debug, PartialEq)]
pub struct QuantizedMatrix {
    /// `[in, out]`, the layout that the integer product reads.
    pub numbers: Vec<i8>,
    /// `[out]`; number times scale is about the weight.
    pub scales: Vec<f32>,
}

/// Quantizes `matrix`, `[out, in]` with `inputs` numbers a row. An output without any weight that
/// isn't 0 has the scale 0.
///
/// # Panics
///
/// When the rows don't fill the matrix.
pub fn quantize(matrix: &[f32], inputs: usize) -> QuantizedMatrix {
    assert!(matrix.len().is_multiple_of(inputs), "whole rows");
    let outputs = matrix.len() / inputs;
    let mut numbers = vec![0; matrix.len()];
    let mut scales = Vec::with_capacity(outputs);
    for (output, row) in matrix.chunks_exact(inputs).enumerate() {
        let scale = scale(row);
        scales.push(scale);
        if scale == 0.0 {
            continue;
        }
        for (input, weight) in row.iter().enumerate() {
            // The cast saturates, and rounding may go over the largest by the last bit at most.
            let number = (weight / scale).round_ties_even().clamp(-LARGEST, LARGEST);
            numbers[input * outputs + output] = number as i8;
        }
    }
    QuantizedMatrix { numbers, scales }
}

/// Returns the weight that becomes 1: the least with which both limits hold.
fn scale(row: &[f32]) -> f32 {
    let (mut largest, mut pair) = (0.0f32, 0.0f32);
    for weights in row.chunks(2) {
        let above: f32 = weights.iter().map(|weight| weight.max(0.0)).sum();
        let below: f32 = weights.iter().map(|weight| -weight.min(0.0)).sum();
        pair = pair.max(above).max(below);
        largest = weights.iter().fold(largest, |most, weight| most.max(weight.abs()));
    }
    // Rounding adds a half to either of a pair at most, and whole numbers have no half over the
    // limit.
    (largest / LARGEST).max(pair / (PAIR_MAX - 0.5))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn each_weight_is_within_half_a_step(
            inputs in 1usize..9,
            weights in prop::collection::vec(-3.0f32..3.0, 0..80),
        ) {
            let matrix = &weights[..weights.len() / inputs * inputs];
            let quantized = quantize(matrix, inputs);
            let outputs = matrix.len() / inputs;
            prop_assert_eq!(quantized.scales.len(), outputs);
            for (output, row) in matrix.chunks_exact(inputs).enumerate() {
                let scale = quantized.scales[output];
                for (input, weight) in row.iter().enumerate() {
                    let back = f32::from(quantized.numbers[input * outputs + output]) * scale;
                    prop_assert!((back - weight).abs() <= scale * 0.5001, "{back} for {weight}");
                }
                let numbers: Vec<i32> = (0..inputs)
                    .map(|input| i32::from(quantized.numbers[input * outputs + output]))
                    .collect();
                for pair in numbers.chunks(2) {
                    let above: i32 = pair.iter().map(|number| number.max(&0)).sum();
                    let below: i32 = pair.iter().map(|number| number.min(&0)).sum();
                    prop_assert!(TOKEN_MAX * above <= i16::MAX.into(), "{pair:?}");
                    prop_assert!(TOKEN_MAX * below >= i16::MIN.into(), "{pair:?}");
                }
            }
        }
    }

    #[test]
    fn an_output_of_zeros_stays_zero() {
        let quantized = quantize(&[0.0, 0.0, 1.0, -2.0], 2);
        assert_eq!(quantized.scales, [0.0, 2.0 / 127.0]);
        assert_eq!(quantized.numbers, [0, 64, 0, -127]);
    }

    #[test]
    fn neighbours_that_would_saturate_together_are_smaller() {
        assert_eq!(quantize(&[2.0, 2.0], 2).numbers, [64, 64]);
        assert_eq!(quantize(&[2.0, -2.0], 2).numbers, [127, -127]);
        assert_eq!(quantize(&[-2.0, -1.0, 2.0, 0.0], 4).numbers, [-85, -42, 85, 0]);
    }
}

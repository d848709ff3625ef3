//! Matrices of 8-bit integers.
//!
//! The weights of each output have a scale of their own, symmetric about 0: the largest becomes 127.
//! The other side of the product is scaled a token at a time while the graph runs, so that a
//! caption's vector doesn't depend on the captions beside it; see [`super::graph`].

/// The largest number that a weight becomes. With -128 the range wouldn't be symmetric.
const LARGEST: f32 = 127.0;

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
        let largest = row.iter().fold(0.0f32, |most, weight| most.max(weight.abs()));
        let scale = largest / LARGEST;
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
            }
        }
    }

    #[test]
    fn an_output_of_zeros_stays_zero() {
        let quantized = quantize(&[0.0, 0.0, 1.0, -2.0], 2);
        assert_eq!(quantized.scales, [0.0, 2.0 / 127.0]);
        assert_eq!(quantized.numbers, [0, 64, 0, -127]);
    }
}

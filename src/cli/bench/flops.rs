//! How many floating-point operations a caption takes: a product and a sum count as two.

use crate::model::network::{Network, WeightKind};

/// What a network's forward pass costs.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Flops {
    token: f64,
    token_pair: f64,
    caption: f64,
}

impl Flops {
    /// Counts the linear steps and attention's two products. What else there is, such as layer
    /// norms, is left out, and so is all work on free slots and on pairs of two captions' tokens.
    pub fn of(network: &Network) -> Flops {
        let weights = network.weights();
        let matrices = weights.iter().filter(|w| matches!(w.kind, WeightKind::Matrix { .. }));
        let parameters: usize = matrices.map(|w| w.elements()).sum();
        let head = network.hidden * network.dim;
        Flops {
            token: 2.0 * (parameters - head) as f64,
            token_pair: 4.0 * (network.layers * network.hidden) as f64,
            // The head sees the mean of a caption's tokens.
            caption: 2.0 * head as f64,
        }
    }

    /// Returns the operations of a caption of so many tokens.
    pub fn of_caption(&self, tokens: usize) -> f64 {
        let tokens = tokens as f64;
        self.token * tokens + self.token_pair * tokens * tokens + self.caption
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::synth::Preset;

    #[test]
    fn the_sum_is_that_of_the_layers() {
        let flops = Flops::of(&Preset::MBertBase69.network());
        let layer = 768.0 * (3.0 * 768.0 + 768.0 + 2.0 * 3072.0);
        assert_eq!(flops.token, 2.0 * 12.0 * layer);
        let attention = 12.0 * 2.0 * (2.0 * 20.0 * 20.0 * 768.0);
        let head = 2.0 * 768.0 * 640.0;
        assert_eq!(flops.of_caption(20), 20.0 * flops.token + attention + head);
    }
}

//! Metrics of decoding and tokenizing.

use prometheus::{IntCounter, Registry};

use super::make::counter;

/// Of decoding and tokenizing.
#[derive(Clone, Debug)]
pub struct TokenizeMetrics {
    /// Captions tokenized.
    pub captions: IntCounter,
    /// Tokens of them, after cutting.
    pub tokens: IntCounter,
    /// Captions that were cut.
    pub truncated: IntCounter,
}

impl TokenizeMetrics {
    pub(super) fn register(r: &Registry) -> TokenizeMetrics {
        TokenizeMetrics {
            captions: counter(r, "captions_tokenized_total", "Captions tokenized"),
            tokens: counter(r, "tokens_total", "Tokens of the captions, after cutting"),
            truncated: counter(
                r,
                "captions_truncated_total",
                "Captions cut to the model's longest",
            ),
        }
    }
}

//! Metrics of the batcher: what waits, how batches are cut, and what it predicts of their passes.

use prometheus::{Gauge, Histogram, IntCounterVec, IntGauge, Registry};

use super::make::{counters, float_gauge, gauge, histogram, powers};
use crate::batch::policy::CutReason;

/// Of the batcher.
#[derive(Clone, Debug)]
pub struct BatchMetrics {
    /// Captions that wait for a batch.
    pub pending: IntGauge,
    /// Captions of a batch.
    pub captions: Histogram,
    /// Tokens of a batch.
    pub tokens: Histogram,
    /// Most tokens of a batch.
    pub tokens_limit: IntGauge,
    /// Predicted seconds of a pass without tokens.
    pub fixed_seconds: Gauge,
    /// Predicted seconds of each token of a pass.
    pub token_seconds: Gauge,
    /// Mean error of the predictions, as a part of the time.
    pub prediction_error: Gauge,
    /// Batches, by `reason` of the cut.
    pub cut: IntCounterVec,
}

impl BatchMetrics {
    pub(super) fn register(r: &Registry) -> BatchMetrics {
        BatchMetrics {
            pending: gauge(r, "batch_pending_captions", "Captions that wait for a batch"),
            captions: histogram(r, "batch_captions", "Captions of a batch", powers(13)),
            tokens: histogram(r, "batch_tokens", "Tokens of a batch", powers(17)),
            tokens_limit: gauge(r, "batch_tokens_limit", "Most tokens of a batch"),
            fixed_seconds: float_gauge(
                r,
                "forward_fixed_seconds",
                "Predicted seconds of a forward pass that don't depend on its tokens",
            ),
            token_seconds: float_gauge(
                r,
                "forward_token_seconds",
                "Predicted seconds of each token of a forward pass",
            ),
            prediction_error: float_gauge(
                r,
                "forward_prediction_error_ratio",
                "Mean error of the predicted time of a forward pass, as a part of the time",
            ),
            cut: counters(
                r,
                "batches_total",
                "Batches, by why they were cut",
                "reason",
                CutReason::ALL.map(CutReason::as_label),
            ),
        }
    }
}

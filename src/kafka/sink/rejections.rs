//! How people hear of rejections: in the log the first of each reason, and at most one a minute
//! from then on; and where the worker stops, the last one.

use std::time::{Duration, Instant};

use crate::seldom::Seldom;
use crate::tracked::{RejectReason, Rejection};

/// Between two lines about one reason.
const LINE_INTERVAL: Duration = Duration::from_secs(60);

/// What was said, and what is to be said.
#[derive(Debug)]
pub(super) struct Rejections {
    by_reason: Seldom<&'static str>,
    last: Option<String>,
}

impl Default for Rejections {
    fn default() -> Self {
        Rejections { by_reason: Seldom::new(LINE_INTERVAL, RejectReason::ALL.len()), last: None }
    }
}

impl Rejections {
    /// Says that the message at `topic/partition/offset` was rejected, or keeps it for the next
    /// line.
    pub(super) fn add(&mut self, position: &str, rejection: &Rejection, now: Instant) {
        let (reason, detail) = (rejection.reason.as_label(), &rejection.detail);
        self.last = Some(format!("{position} as {reason}: {detail}"));
        if let Some(before) = self.by_reason.due(reason, now) {
            tracing::warn!(position, reason, detail, before, "a message was rejected");
        }
    }

    /// Returns the last one in words.
    pub(super) fn last(&self) -> &str {
        self.last.as_deref().unwrap_or("none")
    }
}

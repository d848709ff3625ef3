//! How people hear of rejections: in the log the first of each reason, and at most one a minute from
//! then on; and where the worker stops, the last one.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::tracked::Rejection;

/// Between two lines about one reason.
const LINE_INTERVAL: Duration = Duration::from_secs(60);

/// What was said, and what is to be said.
#[derive(Debug, Default)]
pub(super) struct Rejections {
    by_reason: BTreeMap<&'static str, Told>,
    last: Option<String>,
}

#[derive(Debug)]
struct Told {
    at: Instant,
    /// Rejections since then.
    since: u64,
}

impl Rejections {
    /// Says that the message at `topic/partition/offset` was rejected, or keeps it for the next line.
    pub(super) fn add(&mut self, position: &str, rejection: &Rejection, now: Instant) {
        let (reason, detail) = (rejection.reason.as_label(), &rejection.detail);
        self.last = Some(format!("{position} as {reason}: {detail}"));
        if let Some(before) = self.due(reason, now) {
            tracing::warn!(position, reason, detail, before, "a message was rejected");
        }
    }

    /// Returns the last one in words.
    pub(super) fn last(&self) -> &str {
        self.last.as_deref().unwrap_or("none")
    }

    /// Returns whether a line about the reason is due, and how many rejections came since the last one.
    fn due(&mut self, reason: &'static str, now: Instant) -> Option<u64> {
        match self.by_reason.get_mut(reason) {
            Some(told) if now.duration_since(told.at) < LINE_INTERVAL => {
                told.since += 1;
                None
            }
            Some(told) => {
                let since = told.since;
                *told = Told { at: now, since: 0 };
                Some(since)
            }
            None => {
                self.by_reason.insert(reason, Told { at: now, since: 0 });
                Some(0)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_reason_has_a_line_at_once_and_one_a_minute() {
        let mut rejections = Rejections::default();
        let start = Instant::now();
        let mut due =
            |reason, seconds| rejections.due(reason, start + Duration::from_secs(seconds));
        assert_eq!(due("not_json", 0), Some(0));
        assert_eq!(due("not_utf8", 0), Some(0));
        assert_eq!(due("not_json", 1), None);
        assert_eq!(due("not_json", 59), None);
        assert_eq!(due("not_json", 61), Some(2));
        assert_eq!(due("not_json", 62), None);
        assert_eq!(due("not_utf8", 600), Some(0));
    }
}

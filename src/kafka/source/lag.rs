//! How far the worker is behind: in messages, and in seconds.
//!
//! The ends of the partitions come with librdkafka's statistics, every two seconds, and that is
//! when the lag is reckoned. A message counts until it is settled, wherever it waits: in the topic
//! or in the worker; so does one that can't be read yet, as it lies in or behind a transaction that
//! its producer has left open: nothing else would tell of captions that such a one holds up. The
//! seconds are the age of the oldest such message, by its timestamp; where
//! none has been received yet, at most the time since nothing was left.

use std::collections::HashMap;

use crate::clock::since_epoch;
use crate::kafka::consumer::PartitionEnd;
use crate::kafka::offsets::{OffsetLedger, Progress};
use crate::metrics::LagMetrics;

/// The lag of the partitions that the worker owns.
pub(super) struct Lag {
    metrics: LagMetrics,
    /// Whether each partition has series of its own.
    per_partition: bool,
    partitions: HashMap<i32, Behind>,
}

/// How far a partition is behind.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Behind {
    messages: i64,
    seconds: f64,
    /// When nothing was left, the last time; milliseconds since 1970.
    caught_up_ms: Option<i64>,
}

impl Lag {
    /// Returns the lag of a worker that owns nothing yet.
    pub(super) fn new(metrics: LagMetrics, per_partition: bool) -> Lag {
        Lag { metrics, per_partition, partitions: HashMap::new() }
    }

    /// Reckons the lag of the partitions whose ends have been told.
    pub(super) fn report(&mut self, ends: HashMap<i32, PartitionEnd>, ledger: &OffsetLedger) {
        if ends.is_empty() {
            return;
        }
        let now = since_epoch();
        for (partition, end) in ends {
            let Some(progress) = ledger.progress(partition) else { continue };
            let caught_up_ms = self.partitions.get(&partition).and_then(|b| b.caught_up_ms);
            let behind = Behind::of(&end, &progress, caught_up_ms, now.as_millis() as i64);
            self.partitions.insert(partition, behind);
            if self.per_partition {
                let label = [&partition.to_string()];
                self.metrics.partition_messages.with_label_values(&label).set(behind.messages);
                self.metrics.partition_seconds.with_label_values(&label).set(behind.seconds);
            }
        }
        self.sum_up();
    }

    /// Forgets a partition that the worker owns no more.
    pub(super) fn forget(&mut self, partition: i32) {
        if self.partitions.remove(&partition).is_none() {
            return;
        }
        if self.per_partition {
            let label = [&partition.to_string()];
            // They were set when the partition came into the map.
            drop(self.metrics.partition_messages.remove_label_values(&label));
            drop(self.metrics.partition_seconds.remove_label_values(&label));
        }
        self.sum_up();
    }

    fn sum_up(&self) {
        let all = self.partitions.values();
        self.metrics.messages.set(all.clone().map(|behind| behind.messages).sum());
        self.metrics.seconds.set(all.map(|behind| behind.seconds).fold(0.0, f64::max));
    }
}

impl Behind {
    fn of(
        end: &PartitionEnd,
        progress: &Progress,
        caught_up_ms: Option<i64>,
        now_ms: i64,
    ) -> Behind {
        // A group without an offset begins at the beginning, and what has been deleted is no work
        // any more.
        let from = progress.position.map_or(0, |next| next.0).max(end.beginning);
        let messages = (end.end + end.withheld - from).max(0);
        if messages == 0 || (end.is_read && end.withheld == 0 && !progress.is_open) {
            return Behind { messages: 0, seconds: 0.0, caught_up_ms: Some(now_ms) };
        }
        // Of messages that are still in the topic nothing is known. The last one that was settled
        // is older, by a whole night maybe, and they have come since nothing was left; before
        // either there is no age to tell.
        let since_ms = match progress.is_open {
            true => progress.timestamp_ms,
            false => progress.timestamp_ms.max(caught_up_ms),
        };
        let age_ms = since_ms.map_or(0, |then| (now_ms - then).max(0));
        Behind { messages, seconds: age_ms as f64 / 1e3, caught_up_ms }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kafka::offsets::Incoming;
    use crate::metrics::Metrics;
    use crate::tracked::{Assignment, NextOffset, Offset};
    use std::time::Instant;

    const END: PartitionEnd = PartitionEnd { end: 100, withheld: 0, beginning: 10, is_read: false };

    fn nothing_left(caught_up_ms: i64) -> Behind {
        Behind { messages: 0, seconds: 0.0, caught_up_ms: Some(caught_up_ms) }
    }

    #[test]
    fn the_age_is_that_of_the_oldest_message_that_is_not_settled() {
        let at = |progress| Behind::of(&END, &progress, None, 5_000);
        let of = |messages, seconds| Behind { messages, seconds, caught_up_ms: None };
        let open =
            Progress { position: Some(NextOffset(60)), is_open: true, timestamp_ms: Some(2_000) };
        assert_eq!(at(open), of(40, 3.0));
        assert_eq!(at(Progress { is_open: false, ..open }), of(40, 3.0));
        let nothing_received =
            Progress { position: Some(NextOffset(40)), is_open: false, timestamp_ms: None };
        assert_eq!(at(nothing_received), of(60, 0.0));
        assert_eq!(at(Progress::default()).messages, 90, "the group has no offset");
        let deleted = PartitionEnd { beginning: 95, ..END };
        assert_eq!(Behind::of(&deleted, &nothing_received, None, 0).messages, 5);
        let in_the_future = Progress { timestamp_ms: Some(9_000), ..open };
        assert_eq!(at(in_the_future).seconds, 0.0);
    }

    #[test]
    fn a_night_without_messages_is_no_lag_of_the_first_in_the_morning() {
        let settled =
            Progress { position: Some(NextOffset(60)), is_open: false, timestamp_ms: Some(1_000) };
        let idle = PartitionEnd { end: 60, is_read: true, ..END };
        let night = Behind::of(&idle, &settled, None, 30_000_000);
        assert_eq!(night, nothing_left(30_000_000));
        // They lie in the topic, and haven't been received.
        let morning = Behind::of(&END, &settled, night.caught_up_ms, 30_002_000);
        assert_eq!(morning.seconds, 2.0);
        let still = Behind::of(&END, &settled, morning.caught_up_ms, 30_004_000);
        assert_eq!(still.seconds, 4.0);
        // One that was received is as old as it is.
        let open = Progress { is_open: true, timestamp_ms: Some(29_000_000), ..settled };
        assert_eq!(Behind::of(&END, &open, still.caught_up_ms, 30_004_000).seconds, 1_004.0);
        // The backlog after it was settled.
        let on = Progress { is_open: false, timestamp_ms: Some(30_003_000), ..settled };
        assert_eq!(Behind::of(&END, &on, still.caught_up_ms, 30_004_000).seconds, 1.0);
    }

    #[test]
    fn offsets_of_transaction_markers_are_no_lag() {
        let read = PartitionEnd { is_read: true, ..END };
        let settled =
            Progress { position: Some(NextOffset(99)), is_open: false, timestamp_ms: Some(0) };
        assert_eq!(Behind::of(&read, &settled, None, 5_000), nothing_left(5_000));
        let open = Progress { is_open: true, ..settled };
        assert_eq!(Behind::of(&read, &open, None, 5_000).messages, 1);
        let done = Progress { position: Some(NextOffset(100)), ..settled };
        assert_eq!(Behind::of(&END, &done, None, 5_000), nothing_left(5_000));
    }

    #[test]
    fn what_a_transaction_holds_up_is_lag() {
        let held_up = PartitionEnd { is_read: true, withheld: 7, ..END };
        let settled =
            Progress { position: Some(NextOffset(100)), is_open: false, timestamp_ms: Some(0) };
        let behind = Behind::of(&held_up, &settled, Some(2_000), 5_000);
        assert_eq!(behind, Behind { messages: 7, seconds: 3.0, caught_up_ms: Some(2_000) });
    }

    #[test]
    fn partitions_sum_up_and_have_series_only_if_they_may() {
        for per_partition in [true, false] {
            let metrics = Metrics::new();
            let mut lag = Lag::new(metrics.source.lag.clone(), per_partition);
            let mut ledger = OffsetLedger::default();
            for (partition, timestamp_ms) in [(3, 1_000), (4, 2_000)] {
                ledger.assign(Assignment::new(partition, 1));
                ledger.begin_at(partition, NextOffset(40));
                let timestamp_ms = Some(timestamp_ms);
                let message = Incoming { offset: Offset(50), bytes: 1, timestamp_ms, digest: 0 };
                ledger.open(partition, message, Instant::now()).unwrap();
            }
            // Partition 5 isn't assigned.
            lag.report([3, 4, 5].map(|partition| (partition, END)).into(), &ledger);
            assert_eq!(metrics.source.lag.messages.get(), 120);
            assert!(metrics.source.lag.seconds.get() > 1e9, "since 1970");
            let shown = metrics.render().matches("capvec_consumer_lag_seconds{").count();
            assert_eq!(shown, if per_partition { 2 } else { 0 });
            lag.forget(3);
            lag.forget(5);
            assert_eq!(metrics.source.lag.messages.get(), 60);
            lag.forget(4);
            assert_eq!(metrics.source.lag.seconds.get(), 0.0);
            assert!(!metrics.render().contains("capvec_consumer_lag_seconds{"));
        }
    }
}

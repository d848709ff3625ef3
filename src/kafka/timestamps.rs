//! Which timestamps a topic takes, so that a record that the brokers would refuse isn't offered to
//! them: they refuse the whole batch that it is in, and librdkafka doesn't always tell which one it
//! was. And which it keeps: a record that is older than the topic's retention is taken, acknowledged
//! and deleted with the next look at the log, five minutes later at most by default.
//!
//! Source: Kafka's `message.timestamp.type`, `message.timestamp.before.max.ms`,
//! `message.timestamp.after.max.ms` (KIP-937), `retention.ms` and `cleanup.policy`.

use std::collections::HashMap;
use std::fmt;

const TYPE: &str = "message.timestamp.type";
const BEFORE: &str = "message.timestamp.before.max.ms";
const AFTER: &str = "message.timestamp.after.max.ms";
const RETENTION: &str = "retention.ms";
const POLICY: &str = "cleanup.policy";

/// The brokers go by their own clocks. What is refused by so little here is theirs to decide.
const CLOCKS_APART_MS: i64 = 60_000;

/// How far a record's timestamp may lie from the broker's clock; without bounds where they aren't
/// known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TimestampBounds {
    before_max_ms: Option<i64>,
    after_max_ms: Option<i64>,
    /// After how long records are deleted, by their timestamps; `None` for never.
    retention_ms: Option<i64>,
}

/// A timestamp that a topic doesn't take.
#[derive(Debug, PartialEq, Eq)]
pub struct OutOfBounds {
    timestamp_ms: i64,
    option: &'static str,
    bound_ms: i64,
}

impl fmt::Display for OutOfBounds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let OutOfBounds { timestamp_ms, option, bound_ms } = self;
        write!(f, "the timestamp {timestamp_ms} ms, by its {option} of {bound_ms}")
    }
}

impl TimestampBounds {
    /// Returns the bounds of a topic with these options.
    pub fn of(options: &HashMap<String, String>) -> TimestampBounds {
        // Where the brokers set the time, they don't look at the record's.
        if options.get(TYPE).is_some_and(|kind| kind == "LogAppendTime") {
            return TimestampBounds::default();
        }
        let bound = |name: &str| options.get(name)?.parse().ok();
        let deletes = options.get(POLICY).is_some_and(|policy| policy.contains("delete"));
        TimestampBounds {
            before_max_ms: bound(BEFORE),
            after_max_ms: bound(AFTER),
            // -1 is for ever.
            retention_ms: bound(RETENTION).filter(|&bound: &i64| deletes && bound >= 0),
        }
    }

    /// Returns the topic's `retention.ms` where it deletes a record of this time, at `now_ms`, as
    /// soon as it looks.
    pub fn too_old(&self, timestamp_ms: i64, now_ms: i64) -> Option<i64> {
        self.retention_ms.filter(|&bound_ms| now_ms.saturating_sub(timestamp_ms) >= bound_ms)
    }

    /// Tells whether a record of this time is taken at `now_ms`; both in milliseconds since 1970.
    ///
    /// # Errors
    ///
    /// When it lies beyond a bound, and further than clocks differ.
    pub fn check(&self, timestamp_ms: i64, now_ms: i64) -> Result<(), OutOfBounds> {
        let past_ms = now_ms.saturating_sub(timestamp_ms);
        let sides = [
            (past_ms, self.before_max_ms, BEFORE),
            (past_ms.saturating_neg(), self.after_max_ms, AFTER),
        ];
        for (distance_ms, bound_ms, option) in sides {
            if let Some(bound_ms) = bound_ms
                && distance_ms > bound_ms.saturating_add(CLOCKS_APART_MS)
            {
                return Err(OutOfBounds { timestamp_ms, option, bound_ms });
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: i64 = 3_600_000;
    const NOW: i64 = 1_800_000_000_000;

    fn bounds(options: &[(&str, &str)]) -> TimestampBounds {
        let own = |(name, value): &(&str, &str)| (String::from(*name), String::from(*value));
        TimestampBounds::of(&options.iter().map(own).collect())
    }

    #[test]
    fn both_sides_are_bounded_and_clocks_may_differ() {
        // As Kafka 4 has them: any past, an hour ahead.
        let usual =
            bounds(&[(TYPE, "CreateTime"), (BEFORE, "9223372036854775807"), (AFTER, "3600000")]);
        assert_eq!(usual.check(NOW, NOW), Ok(()));
        assert_eq!(usual.check(1, NOW), Ok(()));
        assert_eq!(usual.check(NOW + HOUR + CLOCKS_APART_MS, NOW), Ok(()));
        let refused = usual.check(NOW + HOUR + CLOCKS_APART_MS + 1, NOW).unwrap_err();
        assert_eq!(
            refused.to_string(),
            "the timestamp 1800003660001 ms, by its message.timestamp.after.max.ms of 3600000"
        );
        // Microseconds where milliseconds are due.
        assert!(usual.check(NOW * 1000, NOW).is_err());
        assert!(usual.check(i64::MAX, NOW).is_err());
        assert_eq!(usual.check(i64::MIN, NOW), Ok(()));

        let narrow = bounds(&[(BEFORE, "3600000"), (AFTER, "9223372036854775807")]);
        assert_eq!(narrow.check(NOW - HOUR, NOW), Ok(()));
        assert!(narrow.check(NOW - 2 * HOUR, NOW).is_err());
        assert_eq!(narrow.check(i64::MAX, NOW), Ok(()));
    }

    #[test]
    fn the_time_of_the_brokers_is_always_taken_and_so_is_what_is_not_known() {
        let delete = (POLICY, "delete");
        let theirs = bounds(&[
            (TYPE, "LogAppendTime"),
            (BEFORE, "1"),
            (AFTER, "1"),
            (RETENTION, "1"),
            delete,
        ]);
        for bounds in [theirs, bounds(&[]), bounds(&[(AFTER, "soon"), (RETENTION, "soon"), delete])]
        {
            assert_eq!(bounds.check(i64::MAX, NOW), Ok(()));
            assert_eq!(bounds.check(0, NOW), Ok(()));
            assert_eq!(bounds.too_old(0, NOW), None);
        }
    }

    #[test]
    fn a_record_is_too_old_where_the_topic_deletes_by_age() {
        let day = (RETENTION, "86400000");
        for policy in ["delete", "compact,delete"] {
            let bounds = bounds(&[day, (POLICY, policy)]);
            assert_eq!(bounds.too_old(NOW - 24 * HOUR, NOW), Some(24 * HOUR), "{policy}");
            assert_eq!(bounds.too_old(i64::MIN, NOW), Some(24 * HOUR));
            for then in [NOW - 23 * HOUR, NOW + HOUR, i64::MAX] {
                assert_eq!(bounds.too_old(then, NOW), None);
            }
        }
        let for_ever = bounds(&[(RETENTION, "-1"), (POLICY, "delete")]);
        let compacted = bounds(&[day, (POLICY, "compact")]);
        assert_eq!((for_ever.too_old(0, NOW), compacted.too_old(0, NOW)), (None, None));
    }
}

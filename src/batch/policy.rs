//! When to cut a batch, and how much of what waits goes into it: a pure decision.
//!
//! The embedder is asked first: a batch is cut only when an embedder is free to take it, so a batch
//! grows for as long as all of them are busy, and none is idle while a caption waits. What limits a
//! batch is its number of tokens, since the cost of a forward pass follows that number. The oldest
//! caption is always in the next batch.
//!
//! No clock, no channel and no metric is in here: [`super::Batcher`] has those.
//!
//! # Invariants
//!
//! - A cut takes a prefix of what waits, in the order of arrival, and at least one caption.
//! - A cut of more than one caption is within both limits.

use std::time::Duration;

/// The limits of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Most tokens of a batch, unless its only caption has more.
    pub tokens_max: usize,
    /// Most captions of a batch.
    pub captions_max: usize,
    /// How long the oldest caption may be kept back for a fuller batch while an embedder is free.
    pub wait_max: Duration,
}

/// Why a batch was cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CutReason {
    /// The next caption would not fit.
    Full,
    /// An embedder was free and nothing else waited.
    Idle,
    /// The oldest caption had waited as long as it may.
    Deadline,
}

impl CutReason {
    /// All reasons.
    pub const ALL: [CutReason; 3] = [CutReason::Full, CutReason::Idle, CutReason::Deadline];

    /// Returns the reason as a metric label.
    pub fn as_label(self) -> &'static str {
        match self {
            CutReason::Full => "full",
            CutReason::Idle => "idle",
            CutReason::Deadline => "deadline",
        }
    }
}

/// What to do with the free embedder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Give it the first `captions` of what waits.
    Cut {
        /// At least 1.
        captions: usize,
        /// Why.
        reason: CutReason,
    },
    /// Keep it waiting for at most this long, or until another caption comes.
    Wait(Duration),
    /// Nothing waits.
    Nothing,
}

impl Limits {
    /// Decides for a free embedder. `lengths` are the tokens of the captions that wait, the oldest
    /// first; `waited` is how long the oldest has.
    pub fn decide(&self, lengths: impl IntoIterator<Item = usize>, waited: Duration) -> Decision {
        let mut captions = 0;
        let mut tokens = 0;
        let mut full = false;
        for length in lengths {
            let fits = captions < self.captions_max && tokens + length <= self.tokens_max;
            if captions > 0 && !fits {
                full = true;
                break;
            }
            captions += 1;
            tokens += length;
        }
        if captions == 0 {
            return Decision::Nothing;
        }
        full |= tokens >= self.tokens_max || captions >= self.captions_max;
        let reason = if full {
            CutReason::Full
        } else if self.wait_max.is_zero() {
            CutReason::Idle
        } else if waited >= self.wait_max {
            CutReason::Deadline
        } else {
            return Decision::Wait(self.wait_max - waited);
        };
        Decision::Cut { captions, reason }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MS: Duration = Duration::from_millis(1);

    fn limits(tokens_max: usize, captions_max: usize, wait_max: Duration) -> Limits {
        Limits { tokens_max, captions_max, wait_max }
    }

    fn decide(limits: Limits, lengths: &[usize], waited: Duration) -> Decision {
        limits.decide(lengths.iter().copied(), waited)
    }

    fn cut(captions: usize, reason: CutReason) -> Decision {
        Decision::Cut { captions, reason }
    }

    #[test]
    fn a_free_embedder_gets_what_waits_at_once() {
        let now = limits(100, 10, Duration::ZERO);
        assert_eq!(decide(now, &[], Duration::ZERO), Decision::Nothing);
        assert_eq!(decide(now, &[10, 10], Duration::ZERO), cut(2, CutReason::Idle));
    }

    #[test]
    fn tokens_and_captions_limit_a_batch() {
        let now = limits(100, 3, Duration::ZERO);
        assert_eq!(decide(now, &[60, 40, 1], Duration::ZERO), cut(2, CutReason::Full));
        assert_eq!(decide(now, &[60, 50, 1], Duration::ZERO), cut(1, CutReason::Full));
        assert_eq!(decide(now, &[1, 1, 1, 1], Duration::ZERO), cut(3, CutReason::Full));
        assert_eq!(decide(now, &[500, 1], Duration::ZERO), cut(1, CutReason::Full));
    }

    #[test]
    fn a_longest_wait_keeps_the_embedder_for_a_fuller_batch() {
        let patient = limits(100, 10, 5 * MS);
        assert_eq!(decide(patient, &[10], 2 * MS), Decision::Wait(3 * MS));
        assert_eq!(decide(patient, &[10], 5 * MS), cut(1, CutReason::Deadline));
        assert_eq!(decide(patient, &[99, 2], Duration::ZERO), cut(1, CutReason::Full));
    }

    proptest! {
        #[test]
        fn a_cut_is_the_longest_prefix_within_the_limits(
            lengths in prop::collection::vec(1usize..200, 0..60),
            tokens_max in 1usize..600,
            captions_max in 1usize..40,
        ) {
            match decide(limits(tokens_max, captions_max, Duration::ZERO), &lengths, MS) {
                Decision::Nothing => prop_assert!(lengths.is_empty()),
                Decision::Wait(_) => prop_assert!(false, "nothing to wait for"),
                Decision::Cut { captions, .. } => {
                    prop_assert!((1..=lengths.len()).contains(&captions));
                    let tokens = |n: usize| lengths[..n].iter().sum::<usize>();
                    if captions > 1 {
                        prop_assert!(tokens(captions) <= tokens_max);
                        prop_assert!(captions <= captions_max);
                    }
                    if captions < lengths.len() {
                        prop_assert!(
                            tokens(captions + 1) > tokens_max || captions == captions_max
                        );
                    }
                }
            }
        }
    }
}

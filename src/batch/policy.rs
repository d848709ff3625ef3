//! When to cut a batch, and how much of what waits goes into it: a pure decision.
//!
//! The embedder is asked first: a batch is cut only when an embedder is free to take it, so a batch
//! grows for as long as all of them are busy, and none is idle while a caption waits. What limits a
//! batch is its number of tokens, since the cost of a forward pass follows that number. The oldest
//! caption is always in the next batch.
//!
//! Under a latency objective a batch is no larger than what is predicted to be done in time for its
//! oldest caption. Where even that caption alone would be late, the objective is missed already,
//! and the batch is as large as without one, for small batches would only make more captions late;
//! but it isn't kept back for more.
//!
//! What waits and would fit into one batch is shared among the embedders that are free, where each
//! of its parts is predicted to be done much sooner than the whole.
//!
//! No clock, no channel and no metric is in here: [`super::Batcher`] has those.
//!
//! # Invariants
//!
//! - A cut takes a prefix of what waits, in the order of arrival, and at least one caption.
//! - A cut of more than one caption is within both limits.

use std::time::Duration;

use super::cost::CostModel;
use crate::label::labels;

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
    /// With the next caption, or with a longer wait for more, the oldest would have missed the
    /// latency objective.
    Objective,
    /// Another embedder was free for the rest.
    Shared,
}

labels!(CutReason {
    Full => "full",
    Idle => "idle",
    Deadline => "deadline",
    Objective => "objective",
    Shared => "shared",
});

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

/// How much later than it was asked to a thread wakes, on a machine that isn't overloaded.
const WAKE_MAX: Duration = Duration::from_millis(1);

/// What is left for the oldest caption to make the latency objective.
#[derive(Clone, Copy, Debug)]
pub struct Objective<'a> {
    /// Time from now to when its pass should be done.
    pub left: Duration,
    /// Predicts passes.
    pub cost: &'a CostModel,
}

impl Objective<'_> {
    /// Returns whether a batch of so many tokens would be done in time. What can't be predicted yet
    /// is taken to be.
    fn is_met_by(&self, tokens: usize) -> bool {
        self.cost.predict(tokens).is_none_or(|duration| duration <= self.left)
    }
}

impl Limits {
    /// Decides for a free embedder. `lengths` are the tokens of the captions that wait, the oldest
    /// first; `waited` is how long the oldest has; `objective` is there where there is one.
    pub fn decide(
        &self,
        lengths: impl IntoIterator<Item = usize>,
        waited: Duration,
        objective: Option<Objective<'_>>,
    ) -> Decision {
        let mut lengths = lengths.into_iter();
        let Some(mut tokens) = lengths.next() else { return Decision::Nothing };
        let is_late = objective.is_some_and(|objective| !objective.is_met_by(tokens));
        let objective = objective.filter(|_| !is_late);
        let mut captions = 1;
        let mut limit = None;
        for length in lengths {
            if captions >= self.captions_max || tokens + length > self.tokens_max {
                limit = Some(CutReason::Full);
                break;
            }
            if objective.is_some_and(|objective| !objective.is_met_by(tokens + length)) {
                limit = Some(CutReason::Objective);
                break;
            }
            captions += 1;
            tokens += length;
        }
        if tokens >= self.tokens_max || captions >= self.captions_max {
            limit = Some(CutReason::Full);
        }
        if let Some(reason) = limit {
            return Decision::Cut { captions, reason };
        }
        if self.wait_max.is_zero() {
            return Decision::Cut { captions, reason: CutReason::Idle };
        }
        if waited >= self.wait_max {
            return Decision::Cut { captions, reason: CutReason::Deadline };
        }
        if is_late {
            // To keep it back for a fuller batch would make it later still.
            return Decision::Cut { captions, reason: CutReason::Objective };
        }
        let mut wait = self.wait_max - waited;
        if let Some(Objective { left, cost }) = objective {
            let pass = cost.predict(tokens).unwrap_or_default();
            let slack = left.saturating_sub(pass).saturating_sub(WAKE_MAX);
            if slack.is_zero() {
                return Decision::Cut { captions, reason: CutReason::Objective };
            }
            wait = wait.min(slack);
        }
        Decision::Wait(wait)
    }
}

/// A pass of a part must be predicted to take no more of a pass of the whole than this for the
/// parts to be worth it: two small passes cost more than one large. On a GPU, where the first
/// tokens cost as much as many, they mostly aren't.
const WORTH_SHARING: f64 = 0.75;

/// Returns how many of the captions, of these tokens, one of `free` embedders should take for the
/// others to take the rest; `None` where one should take all. About as many tokens for each, and at
/// least one caption.
pub fn share(
    lengths: impl Iterator<Item = usize> + Clone,
    free: usize,
    cost: &CostModel,
) -> Option<usize> {
    let whole: usize = lengths.clone().sum();
    let part = whole.div_ceil(free.max(1));
    if cost.predict(part)? > cost.predict(whole)?.mul_f64(WORTH_SHARING) {
        return None;
    }
    let (mut captions, mut tokens, mut is_less) = (0, 0, false);
    for length in lengths {
        // Nearer to its part without the next than with it.
        if captions > 0 && tokens + length / 2 >= part {
            is_less = true;
            break;
        }
        captions += 1;
        tokens += length;
    }
    is_less.then_some(captions)
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
        limits.decide(lengths.iter().copied(), waited, None)
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
        assert_eq!(decide(patient, &[60, 40], Duration::ZERO), cut(2, CutReason::Full));
        assert_eq!(decide(patient, &[1; 10], Duration::ZERO), cut(10, CutReason::Full));
        assert_eq!(decide(patient, &[1; 9], Duration::ZERO), Decision::Wait(5 * MS));
    }

    /// A millisecond a token.
    fn cost() -> CostModel {
        let mut cost = CostModel::default();
        for tokens in [10, 100, 50, 200].into_iter().cycle().take(100) {
            cost.observe(tokens, tokens as f64 * 1e-3);
        }
        cost
    }

    fn decide_within(limits: Limits, lengths: &[usize], left: Duration) -> Decision {
        let objective = Objective { left, cost: &cost() };
        limits.decide(lengths.iter().copied(), Duration::ZERO, Some(objective))
    }

    #[test]
    fn a_batch_is_no_larger_than_its_oldest_caption_has_time_for() {
        let now = limits(100, 10, Duration::ZERO);
        assert_eq!(decide_within(now, &[20, 20, 20], 45 * MS), cut(2, CutReason::Objective));
        assert_eq!(decide_within(now, &[20, 20, 20], 95 * MS), cut(3, CutReason::Idle));
        assert_eq!(decide_within(now, &[60, 50], 200 * MS), cut(1, CutReason::Full));
    }

    #[test]
    fn a_caption_that_is_late_anyway_makes_no_small_batch() {
        let now = limits(100, 10, Duration::ZERO);
        assert_eq!(decide_within(now, &[20, 20, 20], 5 * MS), cut(3, CutReason::Idle));
        assert_eq!(decide_within(now, &[20; 9], Duration::ZERO), cut(5, CutReason::Full));
    }

    #[test]
    fn nothing_is_kept_back_past_the_objective() {
        let patient = limits(100, 10, 500 * MS);
        match decide_within(patient, &[20], 50 * MS) {
            Decision::Wait(wait) => assert!((28 * MS..30 * MS).contains(&wait), "{wait:?}"),
            other => panic!("{other:?}"),
        }
        let unknown = Objective { left: 50 * MS, cost: &CostModel::default() };
        let decided = patient.decide([20], Duration::ZERO, Some(unknown));
        assert_eq!(decided, Decision::Wait(50 * MS - WAKE_MAX), "a pass may take no time");
        let less_patient = limits(100, 10, 5 * MS);
        assert_eq!(decide_within(less_patient, &[20], 50 * MS), Decision::Wait(5 * MS));
        // When that wait is over: in time, and a moment too late for it.
        for left in [20 * MS + MS / 2, 19 * MS, Duration::ZERO] {
            let decided = decide_within(patient, &[20], left);
            assert_eq!(decided, cut(1, CutReason::Objective), "{left:?}");
        }
    }

    fn shared(lengths: &[usize], free: usize, cost: &CostModel) -> Option<usize> {
        share(lengths.iter().copied(), free, cost)
    }

    #[test]
    fn what_waits_is_shared_among_the_free() {
        let cost = cost();
        assert_eq!(shared(&[20, 20], 2, &cost), Some(1));
        assert_eq!(shared(&[20, 20, 20], 2, &cost), Some(1));
        assert_eq!(shared(&[10, 10, 10, 30], 2, &cost), Some(3));
        assert_eq!(shared(&[5, 100], 2, &cost), Some(1));
        assert_eq!(shared(&[100, 5], 2, &cost), Some(1));
        assert_eq!(shared(&[20; 9], 3, &cost), Some(3));
        assert_eq!(shared(&[20], 2, &cost), None);
        assert_eq!(shared(&[20, 20], 1, &cost), None);
    }

    #[test]
    fn what_is_not_known_to_be_worth_it_is_not_shared() {
        let mut cost = CostModel::default();
        assert_eq!(shared(&[20, 20], 2, &cost), None);
        // Half the tokens take nine tenths of the time.
        for tokens in [20, 40].into_iter().cycle().take(100) {
            cost.observe(tokens, 8e-3 + tokens as f64 * 5e-5);
        }
        assert_eq!(shared(&[20, 20], 2, &cost), None);
    }

    proptest! {
        #[test]
        fn a_share_leaves_something_for_the_others(
            lengths in prop::collection::vec(1usize..200, 0..60),
            free in 0usize..8,
        ) {
            match shared(&lengths, free, &cost()) {
                Some(captions) => {
                    prop_assert!(free > 1);
                    prop_assert!((1..lengths.len()).contains(&captions));
                    // No more than its part by half of the last caption.
                    let part = lengths.iter().sum::<usize>().div_ceil(free);
                    let tokens: usize = lengths[..captions].iter().sum();
                    let last = lengths[captions - 1];
                    prop_assert!(captions == 1 || tokens <= part + last - last / 2);
                }
                None => prop_assert!(free < 2 || lengths.len() < 2),
            }
        }

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

//! What a forward pass takes, learnt from those that have been: `fixed + each * tokens` seconds.
//!
//! Recursive least squares with exponential forgetting (Ljung, System Identification, 2nd edition,
//! section 11.2), so that the model follows a device that slows down or speeds up. The time of a
//! pass follows its tokens within a few percent, and its number of captions hardly.
//!
//! # Invariants
//!
//! - Predictions are finite and not negative, whatever was observed.

use std::time::Duration;

/// How much of what was known is left after another observation: the last hundred count.
const FORGETTING: f64 = 0.99;

/// The part that a new error has in the mean error.
const ERROR_GAIN: f64 = 0.05;

/// What the model doubts at first, and the most that it ever may: where all batches are equally
/// large, forgetting alone would let the doubt about others grow without end.
const DOUBT_MAX: f64 = 1e3;

/// Tokens are counted in these, so that both unknowns are about as large.
const UNIT: f64 = 1000.0;

/// Observations before there is a prediction.
const OBSERVATIONS_MIN: u64 = 4;

/// A model of seconds by tokens.
#[derive(Clone, Debug)]
pub struct CostModel {
    /// Seconds of a pass without tokens, and for each [`UNIT`].
    unknowns: [f64; 2],
    /// Their covariance, but for a factor: symmetric, the diagonal and what is beside it.
    doubt: [f64; 3],
    observations: u64,
    /// Whether the last pass took more than twice as long as was predicted.
    was_slow: bool,
    error: f64,
}

impl Default for CostModel {
    fn default() -> Self {
        CostModel {
            unknowns: [0.0; 2],
            doubt: [DOUBT_MAX, DOUBT_MAX, 0.0],
            observations: 0,
            was_slow: false,
            error: 0.0,
        }
    }
}

impl CostModel {
    /// Learns that a pass of `tokens` has taken `seconds`.
    pub fn observe(&mut self, tokens: usize, seconds: f64) {
        if !(seconds.is_finite() && seconds > 0.0) {
            return;
        }
        let units = tokens as f64 / UNIT;
        let predicted = self.unknowns[0] + self.unknowns[1] * units;
        let mut surprise = seconds - predicted;
        if self.observations >= OBSERVATIONS_MIN {
            let error = surprise.abs() / seconds;
            let first = self.observations == OBSERVATIONS_MIN;
            self.error += if first { 1.0 } else { ERROR_GAIN } * (error - self.error);
            // A machine that was stopped for a second says nothing of the passes to come; two such
            // in a row do. Where the line is at 0 or below, it is the line that says nothing.
            let is_slow = predicted > 0.0 && surprise > predicted;
            if is_slow && !self.was_slow {
                surprise = predicted;
            }
            self.was_slow = is_slow;
        }
        self.observations += 1;

        let [first, second, beside] = self.doubt;
        let (u, v) = (first + beside * units, beside + second * units);
        let scale = FORGETTING + u + v * units;
        self.unknowns[0] += u / scale * surprise;
        self.unknowns[1] += v / scale * surprise;
        let left = [first - u * u / scale, second - v * v / scale, beside - u * v / scale];
        self.doubt = bounded(left.map(|part| part / FORGETTING));
    }

    /// Returns how long a pass of `tokens` will take; `None` before a few have been observed.
    pub fn predict(&self, tokens: usize) -> Option<Duration> {
        let [fixed, each] = self.unknowns;
        let seconds = fixed + each * tokens as f64 / UNIT;
        (self.observations >= OBSERVATIONS_MIN)
            .then(|| Duration::try_from_secs_f64(seconds.max(0.0)).unwrap_or(Duration::MAX))
    }

    /// Returns the seconds of a pass that don't depend on its tokens. The line through passes that
    /// lie on none may begin below 0, where no time is: then it is 0.
    pub fn fixed_seconds(&self) -> f64 {
        self.unknowns[0].max(0.0)
    }

    /// Returns the seconds of each token; 0 where the line falls.
    pub fn token_seconds(&self) -> f64 {
        self.unknowns[1].max(0.0) / UNIT
    }

    /// Returns by what part of the time the last predictions were wrong, in the mean.
    pub fn error(&self) -> f64 {
        self.error
    }
}

/// Returns a covariance with no direction in which it is over [`DOUBT_MAX`]: its larger eigenvalue
/// is cut there, and the other, in which the passes lie, stays as it is.
fn bounded([first, second, beside]: [f64; 3]) -> [f64; 3] {
    let (middle, radius) = ((first + second) / 2.0, ((first - second) / 2.0).hypot(beside));
    let (larger, smaller) = (middle + radius, middle - radius);
    if larger <= DOUBT_MAX {
        return [first, second, beside];
    }
    if radius == 0.0 {
        return [DOUBT_MAX, DOUBT_MAX, 0.0];
    }
    let over = (larger - DOUBT_MAX) / (larger - smaller);
    [first - over * (first - smaller), second - over * (second - smaller), beside - over * beside]
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Passes of the sizes in turn, on a device of this cost.
    fn run(model: &mut CostModel, sizes: &[usize], passes: usize, cost: impl Fn(f64) -> f64) {
        for tokens in sizes.iter().cycle().take(passes) {
            model.observe(*tokens, cost(*tokens as f64));
        }
    }

    #[track_caller]
    fn assert_predicts(model: &CostModel, tokens: usize, seconds: f64) {
        let predicted = model.predict(tokens).unwrap().as_secs_f64();
        assert!((predicted / seconds - 1.0).abs() < 0.02, "{predicted} for {seconds}");
    }

    #[test]
    fn finds_both_parts_of_the_cost() {
        let mut model = CostModel::default();
        assert_eq!(model.predict(10), None);
        run(&mut model, &[20, 512, 100, 300], 200, |tokens| 0.004 + tokens * 0.0005);
        assert_predicts(&model, 64, 0.004 + 64.0 * 0.0005);
        assert!((model.fixed_seconds() - 0.004).abs() < 1e-4, "{model:?}");
        assert!((model.token_seconds() - 0.0005).abs() < 1e-6, "{model:?}");
        assert!(model.error() < 0.01);
    }

    #[test]
    fn parts_that_no_time_can_be_are_0() {
        let mut model = CostModel::default();
        // Large passes cost more than in proportion.
        run(&mut model, &[10, 100, 1000], 300, |tokens| tokens * tokens * 1e-6);
        assert_eq!(model.fixed_seconds(), 0.0, "{model:?}");
        assert!(model.token_seconds() > 0.0, "{model:?}");
        run(&mut model, &[10, 100, 1000], 3000, |tokens| 1.0 / tokens);
        assert_eq!(model.token_seconds(), 0.0, "{model:?}");
    }

    #[test]
    fn learns_of_small_passes_though_large_ones_were_slow_at_first() {
        let mut model = CostModel::default();
        run(&mut model, &[500, 200], 4, |tokens| if tokens > 300.0 { 1.0 } else { 0.01 });
        assert_eq!(model.predict(50), Some(Duration::ZERO), "{model:?}");
        run(&mut model, &[50], 600, |_| 0.01);
        assert_predicts(&model, 50, 0.01);
    }

    #[test]
    fn learns_of_large_passes_though_small_ones_were_slow_at_first() {
        for slow in [0.03, 0.1, 0.5, 5.0] {
            let mut model = CostModel::default();
            run(&mut model, &[10, 200], 4, |tokens| if tokens < 100.0 { slow } else { 0.02 });
            // Never two large ones in a row.
            run(&mut model, &[10, 1000], 1000, |tokens| 0.001 + tokens * 1e-4);
            assert_predicts(&model, 1000, 0.101);
        }
    }

    #[test]
    fn follows_a_device_that_slows_down() {
        let mut model = CostModel::default();
        run(&mut model, &[50, 500, 200], 300, |tokens| 0.01 + tokens * 0.001);
        run(&mut model, &[50, 500, 200], 600, |tokens| 0.02 + tokens * 0.003);
        assert_predicts(&model, 400, 0.02 + 400.0 * 0.003);
    }

    #[test]
    fn follows_a_device_whose_passes_are_all_alike() {
        let mut model = CostModel::default();
        run(&mut model, &[128], 20_000, |tokens| 0.01 + tokens * 0.001);
        run(&mut model, &[128], 600, |tokens| 3.0 * (0.01 + tokens * 0.001));
        assert_predicts(&model, 128, 3.0 * (0.01 + 0.128));
    }

    #[test]
    fn the_error_is_a_part_of_what_the_passes_took() {
        let mut model = CostModel::default();
        run(&mut model, &[50, 500, 200], 300, |tokens| 0.01 + tokens * 0.001);
        assert!(model.error() < 1e-3);
        // It was predicted to take as long again.
        model.observe(90, 0.05);
        let error = model.error();
        assert!((error - ERROR_GAIN).abs() < 2e-3, "{error}");
        // The first prediction tells all that is known of the error.
        let mut model = CostModel::default();
        run(&mut model, &[100], 4, |_| 1.0);
        model.observe(100, 0.5);
        assert!((model.error() - 1.0).abs() < 0.02, "{model:?}");
    }

    #[test]
    fn a_time_that_is_none_changes_nothing() {
        let mut model = CostModel::default();
        run(&mut model, &[50, 500, 200], 300, |tokens| 0.01 + tokens * 0.001);
        for seconds in [0.0, -1.0, f64::NAN, f64::INFINITY] {
            model.observe(50, seconds);
        }
        assert_predicts(&model, 200, 0.21);
        assert!(model.error() < 1e-3, "{model:?}");
    }

    #[test]
    fn a_stop_of_the_machine_is_no_new_cost() {
        let mut model = CostModel::default();
        run(&mut model, &[50, 500, 200], 300, |tokens| tokens * 0.001);
        model.observe(200, 30.0);
        let predicted = model.predict(200).unwrap().as_secs_f64();
        assert!(predicted < 0.25, "{predicted}");
    }

    proptest! {
        #[test]
        fn stays_finite_whatever_comes(
            passes in prop::collection::vec((1usize..5000, 0.0f64..100.0), 1..50),
            repeats in 1usize..200,
        ) {
            let mut model = CostModel::default();
            for _ in 0..repeats {
                for &(tokens, seconds) in &passes {
                    model.observe(tokens, seconds);
                }
            }
            prop_assert!(model.error().is_finite());
            prop_assert!(model.doubt.iter().all(|part| part.abs() <= 2.1 * DOUBT_MAX), "{model:?}");
            if let Some(predicted) = model.predict(1000) {
                prop_assert!(predicted < Duration::from_secs(100_000), "{predicted:?}");
            }
        }
    }
}

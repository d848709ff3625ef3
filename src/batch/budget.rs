//! How many tokens a batch should have: the fewest with which the device is nearly as fast as it
//! can be. More would make captions wait without embedding more of them.
//!
//! The budget begins with the rates that [`crate::embed::calibration`] has measured, and follows
//! what full batches then show: now and then one is made of another size, of each in turn, and what
//! it took moves that size's rate against the present one's. A device that slows down as a whole
//! changes nothing. Batches that aren't full say nothing: where there is little to do, a pass has
//! the machine for itself, and small ones look faster than they would be beside others.
//!
//! Where a device has too little memory for a batch, the budget is halved, whatever it was measured
//! or set to be. Another program may have had the memory for a moment, so after many full batches
//! that fit, larger ones are tried again.

use super::line::Line;

/// The part of the best rate that the budget must reach.
pub const ENOUGH: f64 = 0.95;

/// Tokens of a usual caption. A batch is half of that from its limit, on average.
pub const CAPTION_TOKENS: usize = 20;

/// Of so many full batches, one tries another size.
const PROBE_EVERY: u32 = 64;

/// How far a try moves the rate of its step, as a power of the ratio.
const PROBE_GAIN: f64 = 0.3;

/// How far a batch of the present size moves the speed of the device.
const SPEED_GAIN: f64 = 0.3;

/// A try says nothing of its size if its batch has fewer tokens by this factor, or more.
const NEAR: f64 = 1.5;

/// Full batches that must have fitted before twice the tokens are tried.
const LIFT_EVERY: u32 = 1024;

/// A batch size that was measured.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Step {
    /// Tokens of a batch.
    pub tokens: usize,
    /// Tokens a second with such batches.
    pub tokens_per_second: f64,
}

/// The tokens that a batch may have.
#[derive(Clone, Debug)]
pub struct TokenBudget {
    /// By tokens.
    steps: Vec<Step>,
    present: usize,
    /// How fast the device is against what was measured.
    speed: f64,
    /// Batches that were full, or over the budget.
    full: u32,
    memory: Option<MemoryBound>,
}

/// What the device's memory allows.
#[derive(Clone, Copy, Debug)]
struct MemoryBound {
    tokens: usize,
    /// Full batches since it was set.
    fitted: u32,
}

impl TokenBudget {
    /// Returns a budget that never changes.
    pub fn fixed(tokens: usize) -> Self {
        TokenBudget::new(vec![Step { tokens, tokens_per_second: 1.0 }])
    }

    /// Returns the budget of a device on which these rates were measured, by tokens.
    ///
    /// # Panics
    ///
    /// When there is none.
    pub fn new(steps: Vec<Step>) -> Self {
        assert!(!steps.is_empty(), "a device was measured");
        debug_assert!(steps.is_sorted_by_key(|step| step.tokens));
        let present = enough(&steps);
        TokenBudget { steps, present, speed: 1.0, full: 0, memory: None }
    }

    /// Returns the present budget.
    pub fn tokens(&self) -> usize {
        self.within_memory(self.steps[self.present].tokens)
    }

    /// Returns the limit of the next batch: the budget, or another size when it is one's turn.
    pub fn next_limit(&self) -> usize {
        self.within_memory(self.steps[self.next_step()].tokens)
    }

    fn next_step(&self) -> usize {
        let (round, batch) = (self.full / PROBE_EVERY, self.full % PROBE_EVERY);
        let is_try = batch == 0 && round > 0;
        if is_try { round as usize % self.steps.len() } else { self.present }
    }

    fn within_memory(&self, tokens: usize) -> usize {
        self.memory.map_or(tokens, |bound| bound.tokens.min(tokens))
    }

    /// Notes that a batch of `tokens` was cut, filled up to its limit or not. Returns the size
    /// whose rate its pass will show, for [`TokenBudget::observe`].
    pub fn cut(&mut self, tokens: usize, is_full: bool) -> Option<usize> {
        let size = self.steps[self.next_step()].tokens;
        let shows = is_full && self.within_memory(size) == size;
        self.count(tokens, is_full);
        shows.then_some(size)
    }

    fn count(&mut self, tokens: usize, is_full: bool) {
        // A try ends with the first batch over the budget: at a low load none may ever fill it.
        if is_full || tokens > self.tokens() {
            self.full = self.full.wrapping_add(1);
        }
        let Some(bound) = self.memory.as_mut().filter(|_| is_full) else { return };
        bound.fitted += 1;
        if bound.fitted >= LIFT_EVERY {
            *bound = MemoryBound { tokens: 2 * bound.tokens, fitted: 0 };
            let largest = self.steps.last().map_or(0, |step| step.tokens);
            self.memory = self.memory.filter(|bound| bound.tokens < largest);
        }
    }

    /// Learns that the device had too little memory for a batch of `tokens`.
    pub fn out_of_memory(&mut self, tokens: usize) {
        let half = (tokens / 2).max(1);
        self.memory = Some(MemoryBound { tokens: self.within_memory(half), fitted: 0 });
    }

    /// Learns that a batch of `tokens`, which was filled up to this size, has taken `seconds`.
    pub fn observe(&mut self, size: usize, tokens: usize, seconds: f64) {
        let Some(step) = self.steps.iter().position(|step| step.tokens == size) else { return };
        // By the step's own rate and no other's: what pulls a rate that has gone astray back is
        // that its next try is measured by it.
        let of_size = size as f64 / self.steps[step].tokens_per_second;
        let expected = match Line::through(&self.steps) {
            Some(line) => of_size * line.seconds(tokens as f64) / line.seconds(size as f64),
            None => of_size * tokens as f64 / size as f64,
        };
        let ratio = expected / (self.speed * seconds);
        if !ratio.is_finite() || ratio <= 0.0 {
            return;
        }
        // A machine that was stopped for a second says little.
        let ratio = ratio.clamp(0.5, 2.0);
        let away = (tokens as f64 / size as f64).ln().abs();
        if step == self.present {
            self.speed *= ratio.powf(SPEED_GAIN);
        } else if away <= NEAR.ln() {
            self.steps[step].tokens_per_second *= ratio.powf(PROBE_GAIN);
            self.present = enough(&self.steps);
        }
    }
}

/// Returns the first step that is fast enough.
///
/// Of noisy rates the first that is high enough is one that is too high by chance, and then the
/// device works for long with batches that are too small. So the rates are those of the line of a
/// pass's time by its tokens, where the steps lie near one, which takes the chance of all of them
/// together.
fn enough(steps: &[Step]) -> usize {
    let line = Line::through(steps);
    let rate = |step: &Step| match line {
        // A batch ends before the caption that doesn't fit.
        Some(line) => {
            let tokens = step.tokens as f64 - CAPTION_TOKENS as f64 / 2.0;
            line.tokens_per_second(tokens.max(1.0))
        }
        None => step.tokens_per_second,
    };
    let best = steps.iter().map(rate).fold(0.0, f64::max);
    steps.iter().position(|step| rate(step) >= ENOUGH * best).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use rand::{RngExt, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    use super::*;

    const SIZES: [usize; 9] = [16, 32, 64, 96, 128, 192, 256, 384, 512];

    fn measured(cost: impl Fn(f64) -> f64) -> TokenBudget {
        let step = |tokens: usize| {
            let seconds = cost(tokens as f64);
            Step { tokens, tokens_per_second: tokens as f64 / seconds }
        };
        TokenBudget::new(SIZES.map(step).to_vec())
    }

    fn run(budget: &mut TokenBudget, batches: usize, cost: impl Fn(f64) -> f64) {
        for _ in 0..batches {
            // The next caption doesn't fit.
            let tokens = budget.next_limit() - CAPTION_TOKENS / 2;
            let size = budget.cut(tokens, true).expect("it is full");
            budget.observe(size, tokens, cost(tokens as f64));
        }
    }

    #[test]
    fn is_the_fewest_tokens_that_are_nearly_as_fast_as_any() {
        // 95 % of the best at 19 times the ratio of the fixed part and each token's.
        let budget = measured(|tokens| 0.005 + tokens * 0.001);
        assert_eq!(budget.tokens(), 96);
        assert_eq!(TokenBudget::fixed(300).tokens(), 300);
        assert_eq!(measured(|tokens| tokens * 0.001).tokens(), 16);
    }

    #[test]
    fn a_step_that_is_fast_by_chance_is_not_taken() {
        // Measured of M-BERT Base 69 on a busy machine: passes take 16 ms, and 5 ms for each token.
        let rates = [142.6, 162.3, 125.1, 120.7, 152.5, 175.3, 140.0, 181.0, 178.0];
        let sizes = [16, 24, 32, 48, 64, 96, 128, 192, 256];
        let step = |(tokens, tokens_per_second)| Step { tokens, tokens_per_second };
        let busy: Vec<Step> = sizes.into_iter().zip(rates).map(step).collect();
        assert!((48..=128).contains(&TokenBudget::new(busy).tokens()));
        // Five percent up or down, each in every way: only where all small ones are fast by chance,
        // and all others slow, is one of them taken.
        let of = |pattern: u32| {
            let noise = |index: usize| if pattern >> index & 1 == 1 { 1.05 } else { 0.95 };
            let steps = sizes.iter().enumerate().map(|(index, &tokens)| {
                let seconds = 0.016 + 0.005 * tokens as f64;
                Step { tokens, tokens_per_second: noise(index) * tokens as f64 / seconds }
            });
            TokenBudget::new(steps.collect()).tokens()
        };
        let right = (0..512).filter(|pattern| (32..=128).contains(&of(*pattern))).count();
        assert!(right >= 500, "{right} of 512");
    }

    #[test]
    fn a_device_without_a_line_is_taken_at_its_steps() {
        // As fast as it gets from 64 tokens on, and twice as slow below.
        let seconds = |tokens: f64| if tokens < 64.0 { tokens / 500.0 } else { tokens / 1000.0 };
        assert_eq!(measured(seconds).tokens(), 64);
    }

    #[test]
    fn a_device_that_is_slower_or_faster_keeps_its_budget() {
        for factor in [3.0, 1.2, 0.8, 0.4] {
            let mut budget = measured(|tokens| 0.005 + tokens * 0.001);
            run(&mut budget, 20_000, |tokens| factor * (0.005 + tokens * 0.001));
            assert_eq!(budget.tokens(), 96, "{factor}");
        }
    }

    #[test]
    fn noise_does_not_add_up() {
        // Captions of 8 to 40 tokens on a device for which 24 tokens would be the worst of batches.
        let sizes = [16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 3072];
        let cost = |tokens: f64| 0.002 + tokens * 2e-5;
        let step =
            |tokens: usize| Step { tokens, tokens_per_second: tokens as f64 / cost(tokens as f64) };
        let mut budget = TokenBudget::new(sizes.map(step).to_vec());
        let before = budget.tokens();
        let mut random = ChaCha8Rng::seed_from_u64(1);
        let mut next = 20;
        for _ in 0..200_000 {
            let (limit, mut tokens) = (budget.next_limit(), 0);
            while tokens == 0 || tokens + next <= limit {
                tokens += next;
                next = random.random_range(8..=40);
            }
            let noise = random.random_range(0.9..1.1);
            let size = budget.cut(tokens, true).expect("it is full");
            budget.observe(size, tokens, noise * cost(tokens as f64));
        }
        let after = budget.tokens();
        assert!((before / 2..=before * 2).contains(&after), "{before} to {after}");
    }

    #[test]
    fn a_device_whose_speed_comes_and_goes_keeps_its_budget() {
        let mut budget = measured(|tokens| 0.016 + tokens * 0.005);
        assert_eq!(budget.tokens(), 64);
        for round in 0..500 {
            // Something else takes half of the machine, for a while.
            let factor = if round % 2 == 0 { 1.0 } else { 2.0 };
            run(&mut budget, 150, |tokens| factor * (0.016 + tokens * 0.005));
            assert!((48..=192).contains(&budget.tokens()), "{round}: {}", budget.tokens());
        }
    }

    #[test]
    fn follows_a_device_that_wants_larger_batches_and_back() {
        let mut budget = measured(|tokens| 0.001 + tokens * 0.001);
        let before = budget.tokens();
        run(&mut budget, 60_000, |tokens| 0.02 + tokens * 0.001);
        assert!(budget.tokens() >= 192, "{before} to {}", budget.tokens());
        run(&mut budget, 60_000, |tokens| 0.001 + tokens * 0.001);
        assert!(budget.tokens() <= 96, "{}", budget.tokens());
    }

    #[test]
    fn a_lack_of_memory_halves_the_budget_until_batches_have_long_fitted() {
        let mut budget = TokenBudget::fixed(1000);
        budget.out_of_memory(1000);
        assert_eq!((budget.tokens(), budget.next_limit()), (500, 500));
        budget.out_of_memory(500);
        assert_eq!(budget.tokens(), 250);
        // The other half of a batch that was made before.
        budget.out_of_memory(1000);
        assert_eq!(budget.tokens(), 250);
        for expected in [500, 1000] {
            let before = budget.tokens();
            for _ in 0..LIFT_EVERY {
                assert_eq!(budget.tokens(), before);
                budget.cut(before, true);
            }
            assert_eq!(budget.tokens(), expected);
        }
        budget.out_of_memory(1);
        assert_eq!(budget.tokens(), 1, "a batch has one caption at least");
    }

    #[test]
    fn batches_that_are_not_full_do_not_show_that_more_would_fit() {
        let mut budget = TokenBudget::fixed(1000);
        budget.out_of_memory(1000);
        for _ in 0..2 * LIFT_EVERY {
            budget.cut(20, false);
        }
        assert_eq!(budget.tokens(), 500);
    }

    #[test]
    fn a_pass_that_was_quick_beyond_belief_is_not_believed() {
        let mut budget = measured(|tokens| 0.005 + tokens * 0.001);
        budget.observe(16, 16, 1e-9);
        assert!(budget.tokens() >= 48, "{}", budget.tokens());
    }

    #[test]
    fn no_try_is_larger_than_the_memory() {
        let mut budget = measured(|tokens| 0.005 + tokens * 0.001);
        budget.out_of_memory(96);
        for _ in 0..LIFT_EVERY - 1 {
            assert!(budget.next_limit() <= 48);
            budget.cut(budget.next_limit(), true);
        }
    }

    #[test]
    fn a_try_ends_though_no_batch_fills_it() {
        let mut budget = measured(|tokens| 0.005 + tokens * 0.001);
        let mut over = 0;
        for _ in 0..100_000 {
            // A burst that is cut because the device is free, where the limit is above it.
            let tokens = budget.next_limit().min(200);
            let is_full = tokens < 200;
            over += usize::from(tokens > budget.tokens());
            let size = budget.cut(tokens, is_full);
            assert_eq!(size.is_some(), is_full);
        }
        assert!(over < 2000, "{over} of 100000 were over the budget");
    }

    #[test]
    fn passes_that_say_nothing_change_nothing() {
        let mut budget = measured(|tokens| 0.005 + tokens * 0.001);
        for _ in 0..1000 {
            assert_eq!(budget.cut(32, false), None, "it isn't full");
            // A try whose captions were so long that the next one didn't fit by far; of no size
            // that was measured; of nothing.
            budget.observe(128, 70, 1e-3);
            budget.observe(97, 97, 1e-3);
            budget.observe(96, 0, 0.0);
        }
        assert_eq!(budget.tokens(), 96);
        budget.out_of_memory(96);
        assert_eq!(budget.cut(45, true), None, "it is full by what the memory has room for");
    }
}

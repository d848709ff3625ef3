//! Finds out how a package runs best on this machine: how many passes at a time, with how many threads
//! each, and how fast it is by the tokens of a batch.
//!
//! It takes seconds, when a worker starts, and is kept in a file beside the package, by model and
//! device, so that the next start is quick. More passes at a time are chosen only where they are
//! worth it, for each takes memory of its own and makes a caption wait longer.

mod cache;
mod machine;

use std::fmt::Display;
use std::time::{Duration, Instant};

use super::{EmbedError, Embedder};
use crate::batch::budget::{CAPTION_TOKENS, Step, TokenBudget};
use crate::batch::cost::CostModel;
use crate::batch::packing::TokenBatch;
use crate::model::compare::quantile;

pub use cache::{Cache, Key};
pub use machine::{cpu_name, memory_available};

/// Tokens of a batch where nothing was measured. CPUs are full with fewer.
pub const TOKENS_UNMEASURED: usize = 512;

/// Sizes of batches that are measured, in tokens. The largest is for the largest of devices.
const SIZES: [usize; 25] = [
    16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 3072, 4096, 6144, 8192,
    12_288, 16_384, 24_576, 32_768, 49_152, 65_536,
];

/// The largest of them.
const LARGEST: usize = SIZES[SIZES.len() - 1];

/// Sizes that bring nothing, in a row, after which larger ones aren't measured: four times the tokens.
const FLAT: usize = 4;

/// What a larger batch must bring to be better.
const BETTER: f64 = 1.02;

/// What more passes at a time must bring on an idle machine. On a busy one they bring more: what holds
/// up one thread holds up one pass, and not all threads of it.
const WORTH_MORE_SESSIONS: f64 = 1.02;

/// Comparisons of more passes at a time with fewer, at least, and the time that they take at least,
/// unless they take too long: this choice is followed for as long as the worker runs.
const COMPARISONS: usize = 5;
const COMPARED: Duration = Duration::from_secs(1);

/// Passes in a row of each session in a comparison: they don't wait for each other in a worker, and so
/// they shouldn't after each pass here.
const IN_A_ROW: usize = 3;

/// The longest that the sizes are measured for, or sessions are compared: what is under way then is the
/// last.
const TIME_MAX: Duration = Duration::from_secs(10);

/// Passes of each size, of which the fastest counts: what else the machine does only makes slower.
const ROUNDS: usize = 3;

/// How a package runs on a device.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Calibration {
    /// Passes that run at a time.
    pub sessions: usize,
    /// Compute threads of each.
    pub threads: usize,
    /// Tokens a second of all together, by the tokens of each one's batch.
    pub steps: Vec<Step>,
}

/// What the configuration leaves open; `None` is to be found out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Wanted {
    /// Tokens of a batch.
    pub tokens: Option<usize>,
    /// Passes that run at a time.
    pub sessions: Option<usize>,
    /// Compute threads of each.
    pub threads: Option<usize>,
}

impl Wanted {
    /// Returns the calibration where nothing is left open.
    pub fn settled(&self) -> Option<Calibration> {
        let Wanted { tokens: Some(tokens), sessions: Some(sessions), threads: Some(threads) } =
            *self
        else {
            return None;
        };
        let steps = vec![Step { tokens, tokens_per_second: 1.0 }];
        Some(Calibration { sessions, threads, steps })
    }

    /// Returns the numbers of sessions and threads to try on so many CPUs, fewest sessions first.
    /// There are never more threads than CPUs, unless the configuration says so.
    fn candidates(&self, cpus: usize) -> Vec<(usize, usize)> {
        let threads = |sessions: usize| self.threads.unwrap_or((cpus / sessions).max(1));
        if let Some(sessions) = self.sessions {
            return vec![(sessions, threads(sessions))];
        }
        let most = (cpus / self.threads.unwrap_or(1)).max(1);
        let doubled = std::iter::successors(Some(1), |sessions: &usize| Some(sessions * 2));
        let mut sessions: Vec<usize> = doubled.take_while(|sessions| *sessions < most).collect();
        sessions.push(most);
        sessions.into_iter().map(|sessions| (sessions, threads(sessions))).collect()
    }
}

impl Calibration {
    /// Returns the budget of a batch; a fixed one where the configuration names it.
    pub fn budget(&self, wanted: &Wanted) -> TokenBudget {
        match wanted.tokens {
            Some(tokens) => TokenBudget::fixed(tokens),
            None => {
                let of_one = |step: &Step| Step {
                    tokens_per_second: step.tokens_per_second / self.sessions as f64,
                    ..*step
                };
                TokenBudget::new(self.steps.iter().map(of_one).collect())
            }
        }
    }

    /// Returns what is known of the time that passes take.
    pub fn cost(&self) -> CostModel {
        let mut cost = CostModel::default();
        // One size alone is a size that was given and not measured.
        for step in self.steps.iter().filter(|_| self.steps.len() > 1) {
            let together = (step.tokens * self.sessions) as f64;
            cost.observe(step.tokens, together / step.tokens_per_second);
        }
        cost
    }
}

/// Measures, and returns what was found with the embedders that it was found with. `load` makes the
/// embedders of so many sessions with so many threads each, or none where there isn't the memory.
///
/// # Errors
///
/// When the first embedder can't be made, or fails on the smallest batch. That more of them can't run
/// is none.
pub fn calibrate<E: Embedder, L>(
    wanted: &Wanted,
    cpus: usize,
    vocabulary: usize,
    mut load: impl FnMut(usize, usize) -> Result<Option<Vec<E>>, L>,
) -> Result<(Calibration, Vec<E>), L>
where
    L: From<EmbedError> + From<NoMemory> + Display,
{
    let mut candidates = wanted.candidates(cpus).into_iter();
    let (mut sessions, mut threads) = candidates.next().expect("there is one candidate at least");
    let mut embedders = load(sessions, threads)?.ok_or(NoMemory { sessions })?;
    let mut steps = measure(&mut embedders, wanted, vocabulary)?;
    let mut is_measured = true;
    for (more, threads_of_each) in candidates {
        let tokens = wanted.tokens.unwrap_or_else(|| TokenBudget::new(steps.clone()).tokens());
        let batch = batch_of(tokens, vocabulary);
        // It runs without them: that they fail is no reason not to start.
        let tried = load(more, threads_of_each).and_then(|others| {
            let Some(mut others) = others else { return Ok(None) };
            let gain = gain(&mut embedders, &mut others, &batch)?;
            Ok(Some((others, gain)))
        });
        let (others, gain) = match tried {
            Ok(Some(tried)) => tried,
            Ok(None) => break,
            Err(error) => {
                tracing::warn!(sessions = more, %error, "more sessions fail; they aren't used");
                break;
            }
        };
        tracing::debug!(sessions, more, tokens, gain, "compared more passes at a time");
        if gain < WORTH_MORE_SESSIONS {
            break;
        }
        (sessions, threads, embedders) = (more, threads_of_each, others);
        is_measured = false;
    }
    if !is_measured {
        steps = measure(&mut embedders, wanted, vocabulary)?;
    }
    Ok((Calibration { sessions, threads, steps }, embedders))
}

/// There isn't the memory for what is asked for.
#[derive(Debug, thiserror::Error)]
#[error("there isn't the memory for {sessions} sessions (embed.sessions)")]
pub struct NoMemory {
    /// Sessions asked for.
    pub sessions: usize,
}

/// Measures the sizes, the smallest first, until larger ones bring nothing.
fn measure<E: Embedder>(
    embedders: &mut [E],
    wanted: &Wanted,
    vocabulary: usize,
) -> Result<Vec<Step>, EmbedError> {
    let started = Instant::now();
    let sizes = wanted.tokens.map_or_else(|| SIZES.to_vec(), |tokens| vec![tokens]);
    let mut steps: Vec<Step> = Vec::new();
    let (mut best, mut flat) = (0.0, 0);
    for tokens in sizes {
        let batch = batch_of(tokens, vocabulary);
        let measured = (0..ROUNDS).try_fold(0.0f64, |most, _| {
            let is_late = most > 0.0 && started.elapsed() > TIME_MAX;
            Ok(if is_late { most } else { most.max(rate(embedders, &batch, 1)?) })
        });
        let tokens_per_second = match measured {
            Ok(rate) => rate,
            // A device has its memory: what is too large is no size for a batch.
            Err(error) if !steps.is_empty() => {
                tracing::info!(tokens, %error, "batches of this size fail; smaller ones it is");
                break;
            }
            Err(error) => return Err(error),
        };
        steps.push(Step { tokens, tokens_per_second });
        // Against the last that was better: many small gains are one that counts.
        (best, flat) = match tokens_per_second > BETTER * best {
            true => (tokens_per_second, 0),
            false => (best, flat + 1),
        };
        if flat >= FLAT || started.elapsed() > TIME_MAX {
            break;
        }
    }
    Ok(steps)
}

/// Returns how many times as fast the others are: the median of comparisons side by side, for what
/// else the machine does is not the same from pass to pass.
fn gain<E: Embedder>(
    embedders: &mut [E],
    others: &mut [E],
    batch: &TokenBatch,
) -> Result<f64, EmbedError> {
    let started = Instant::now();
    let mut gains = Vec::new();
    loop {
        let present = rate(embedders, batch, IN_A_ROW)?;
        gains.push(rate(others, batch, IN_A_ROW)? / present);
        let elapsed = started.elapsed();
        if (gains.len() >= COMPARISONS && elapsed >= COMPARED) || elapsed > TIME_MAX {
            return Ok(quantile(gains, 0.5));
        }
    }
}

/// Returns the tokens a second of all embedders, each with so many passes of the batch.
fn rate<E: Embedder>(
    embedders: &mut [E],
    batch: &TokenBatch,
    passes: usize,
) -> Result<f64, EmbedError> {
    let started = Instant::now();
    let tokens = (embedders.len() * passes * batch.tokens()) as f64;
    let run = |embedder: &mut E| (0..passes).try_for_each(|_| embedder.embed(batch).map(drop));
    if let [alone] = embedders {
        run(alone)?;
    } else {
        std::thread::scope(|scope| {
            let threads: Vec<_> = embedders.iter_mut().map(|e| scope.spawn(|| run(e))).collect();
            threads
                .into_iter()
                .try_for_each(|thread| thread.join().expect("embedding doesn't panic"))
        })?;
    }
    Ok(tokens / started.elapsed().as_secs_f64())
}

/// Returns a batch of so many tokens, of captions of the usual length; of no more than the largest size,
/// for over that it is other limits that decide.
fn batch_of(tokens: usize, vocabulary: usize) -> TokenBatch {
    // Far apart in the vocabulary, as real ones are.
    let ids: Vec<u32> =
        (0..tokens.min(LARGEST)).map(|token| (token * 7919 % vocabulary.max(1)) as u32).collect();
    TokenBatch::pack(ids.chunks(CAPTION_TOKENS))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    enum Fault {
        #[error(transparent)]
        Embed(#[from] EmbedError),
        #[error(transparent)]
        NoMemory(#[from] NoMemory),
    }

    /// Is as quick as it can be in one pass of four; else something holds it up.
    struct Disturbed {
        passes: usize,
        quick: Duration,
        slow: Duration,
    }

    impl Embedder for Disturbed {
        fn dim(&self) -> usize {
            1
        }

        fn embed(&mut self, batch: &TokenBatch) -> Result<Vec<f32>, EmbedError> {
            self.passes += 1;
            std::thread::sleep(if self.passes % 4 == 1 { self.quick } else { self.slow });
            Ok(vec![0.0; batch.captions()])
        }
    }

    #[test]
    fn a_pass_that_was_quick_by_chance_decides_nothing() {
        // One session is mostly as slow as two are for twice the tokens; one of its passes in four isn't.
        let ms = Duration::from_millis;
        let wanted = Wanted { tokens: Some(32), ..Wanted::default() };
        let load = |sessions, _| {
            let quick = if sessions == 1 { ms(1) } else { ms(4) };
            let one = || Disturbed { passes: 0, quick, slow: ms(4) };
            Ok::<_, Fault>(Some((0..sessions).map(|_| one()).collect()))
        };
        let (found, _) = calibrate(&wanted, 2, 100, load).unwrap();
        assert_eq!(found.sessions, 2);
    }

    /// Takes a time for each pass and for each token, and fails above a size.
    struct Slow {
        fixed: Duration,
        each: Duration,
        tokens_max: usize,
    }

    impl Embedder for Slow {
        fn dim(&self) -> usize {
            1
        }

        fn embed(&mut self, batch: &TokenBatch) -> Result<Vec<f32>, EmbedError> {
            let (captions, tokens) = (batch.captions(), batch.tokens());
            if tokens > self.tokens_max {
                return Err(EmbedError::Run { captions, tokens, reason: "no memory".into() });
            }
            std::thread::sleep(self.fixed + self.each * tokens as u32);
            Ok(vec![0.0; captions])
        }
    }

    fn slow(fixed_us: u64, each_us: u64, tokens_max: usize) -> Slow {
        let (fixed, each) = (Duration::from_micros(fixed_us), Duration::from_micros(each_us));
        Slow { fixed, each, tokens_max }
    }

    #[test]
    fn tries_sessions_up_to_the_cpus() {
        let open = Wanted::default();
        assert_eq!(open.candidates(1), [(1, 1)]);
        assert_eq!(open.candidates(2), [(1, 2), (2, 1)]);
        assert_eq!(open.candidates(6), [(1, 6), (2, 3), (4, 1), (6, 1)]);
        assert_eq!(Wanted { threads: Some(2), ..open }.candidates(8), [(1, 2), (2, 2), (4, 2)]);
        assert_eq!(Wanted { sessions: Some(3), ..open }.candidates(8), [(3, 2)]);
        assert_eq!(Wanted { threads: Some(9), ..open }.candidates(8), [(1, 9)]);
    }

    #[test]
    fn more_sessions_are_taken_where_they_are_worth_it() {
        // Each pass takes the same time, however many run: twice the sessions are twice as fast.
        let (found, embedders) = calibrate(&Wanted::default(), 4, 100, |sessions, _| {
            Ok::<_, Fault>(
                (sessions <= 2).then(|| (0..sessions).map(|_| slow(500, 5, 4096)).collect()),
            )
        })
        .unwrap();
        assert_eq!((found.sessions, found.threads, embedders.len()), (2, 2, 2));
        assert!(found.steps.len() > 1);
        assert!(found.cost().predict(100).is_some());
    }

    #[test]
    fn more_sessions_that_fail_are_not_taken() {
        // Twice the sessions would be twice as fast.
        for tokens_max in [Some(1), None] {
            let load = |sessions, _| match (sessions, tokens_max) {
                (1, _) => Ok::<_, Fault>(Some(vec![slow(500, 5, 4096)])),
                (_, Some(tokens)) => Ok(Some((0..sessions).map(|_| slow(0, 0, tokens)).collect())),
                (_, None) => Err(NoMemory { sessions }.into()),
            };
            let (found, embedders) = calibrate(&Wanted::default(), 4, 100, load).unwrap();
            assert_eq!((found.sessions, embedders.len()), (1, 1));
        }
    }

    #[test]
    fn many_small_gains_are_not_the_end() {
        // From 48 tokens on each step brings less than 2 %, and all together 6 %.
        let wanted = Wanted { sessions: Some(1), ..Wanted::default() };
        let load = |_, _| Ok::<_, Fault>(Some(vec![slow(300, 100, 4096)]));
        let (found, _) = calibrate(&wanted, 1, 100, load).unwrap();
        assert!(found.steps.last().unwrap().tokens >= 192, "{found:?}");
    }

    #[test]
    fn sizes_that_fail_are_not_taken() {
        let wanted = Wanted { sessions: Some(1), ..Wanted::default() };
        let load = |_, _| Ok::<_, Fault>(Some(vec![slow(2000, 1, 64)]));
        let (found, _) = calibrate(&wanted, 1, 100, load).unwrap();
        assert_eq!(found.steps.last().unwrap().tokens, 64);
        let load = |_, _| Ok::<_, Fault>(Some(vec![slow(0, 0, 8)]));
        assert!(matches!(calibrate(&wanted, 1, 100, load), Err(Fault::Embed(_))));
    }

    #[test]
    fn more_tokens_than_any_device_needs_are_kept_and_not_measured() {
        let wanted = Wanted { tokens: Some(10_000_000), sessions: Some(1), threads: None };
        let load = |_, _| Ok::<_, Fault>(Some(vec![slow(10, 0, 65_536)]));
        let (found, _) = calibrate(&wanted, 1, 100, load).unwrap();
        assert_eq!(found.budget(&wanted).tokens(), 10_000_000);
    }

    #[test]
    fn what_the_configuration_names_is_kept() {
        let wanted = Wanted { tokens: Some(300), sessions: Some(1), threads: None };
        let load = |_, _| Ok::<_, Fault>(Some(vec![slow(10, 1, 4096)]));
        let (found, _) = calibrate(&wanted, 4, 100, load).unwrap();
        assert_eq!((found.threads, found.steps.len()), (4, 1));
        assert_eq!(found.budget(&wanted).tokens(), 300);
        assert_eq!(wanted.settled(), None);
        let settled = Wanted { threads: Some(2), ..wanted }.settled().unwrap();
        assert_eq!((settled.sessions, settled.threads), (1, 2));
    }
}

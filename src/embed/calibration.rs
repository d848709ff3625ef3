//! Finds out how a package runs best on this machine: how many passes at a time, with how many
//! threads each, and how fast it is by the tokens of a batch.
//!
//! It takes seconds, when a worker starts, and is kept in a file beside the package, by model and
//! device, so that the next start is quick. More passes at a time are chosen only where they are
//! worth it, for each takes memory of its own and makes a caption wait longer.

mod cache;
mod machine;
mod measure;

use std::fmt::Display;
use std::time::Instant;

use super::{EmbedError, Embedder};
use crate::batch::budget::{CAPTION_TOKENS, Step, TokenBudget};
use crate::batch::cost::CostModel;
use crate::batch::packing::TokenBatch;
use measure::{Measured, Passes, choose};

pub use cache::{Cache, Key};
pub use machine::{cpu_name, memory_available};
pub use measure::Found;

/// Tokens of a batch where nothing was measured. CPUs are full with fewer.
pub const TOKENS_UNMEASURED: usize = 512;

/// The part of the CPUs that sessions and threads to be tried may leave idle, as one in so many.
const IDLE_ONE_IN: usize = 16;

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
    /// There are never more threads than CPUs, unless the configuration says so. From one to the
    /// next the sessions are doubled at least, for many CPUs would else take minutes.
    fn candidates(&self, cpus: usize) -> Vec<(usize, usize)> {
        match (self.sessions, self.threads) {
            (Some(sessions), threads) => {
                vec![(sessions, threads.unwrap_or((cpus / sessions).max(1)))]
            }
            (None, Some(threads)) => {
                let most = (cpus / threads).max(1);
                let doubled = std::iter::successors(Some(1), |sessions| Some(sessions * 2));
                let fewer = doubled.take_while(|sessions| *sessions < most);
                fewer.chain([most]).map(|sessions| (sessions, threads)).collect()
            }
            (None, None) => {
                let mut candidates = vec![(1, cpus)];
                let mut least = 2;
                // With one thread each no CPU is idle: a session for each CPU is always the last.
                for threads in (1..cpus).rev() {
                    let (sessions, idle) = (cpus / threads, cpus % threads);
                    if sessions >= least && idle <= cpus / IDLE_ONE_IN {
                        candidates.push((sessions, threads));
                        least = 2 * sessions;
                    }
                }
                candidates
            }
        }
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

/// There isn't the memory for what is asked for.
#[derive(Debug, thiserror::Error)]
#[error("there isn't the memory for {sessions} sessions (embed.sessions)")]
pub struct NoMemory {
    /// Sessions asked for.
    pub sessions: usize,
}

/// Measures a network of this vocabulary, which takes captions of so many tokens at most; returns
/// what was found with the embedders that it was found with. `load` makes the embedders of so many
/// sessions with so many threads each, or none where there isn't the memory.
///
/// # Errors
///
/// When the first embedder can't be made, or fails on the smallest batch. That more of them can't
/// run is none.
pub fn calibrate<E: Embedder, L>(
    wanted: &Wanted,
    cpus: usize,
    vocabulary: usize,
    caption_tokens_max: usize,
    load: impl FnMut(usize, usize) -> Result<Option<Vec<E>>, L>,
) -> Result<Found<Vec<E>>, L>
where
    L: From<EmbedError> + From<NoMemory> + Display,
{
    choose(wanted, cpus, load, |embedders: &mut Vec<E>, passes| {
        run(embedders, passes, &batch_of(passes.tokens, vocabulary, caption_tokens_max))
    })
}

/// Runs the passes of all embedders at the same time.
fn run<E: Embedder>(
    embedders: &mut [E],
    passes: Passes,
    batch: &TokenBatch,
) -> Result<Measured, EmbedError> {
    let tokens = embedders.len() * passes.number * batch.tokens();
    let one =
        |embedder: &mut E| (0..passes.number).try_for_each(|_| embedder.embed(batch).map(drop));
    let started = Instant::now();
    if let [alone] = embedders {
        one(alone)?;
    } else {
        std::thread::scope(|scope| {
            let threads: Vec<_> = embedders.iter_mut().map(|e| scope.spawn(|| one(e))).collect();
            threads
                .into_iter()
                .try_for_each(|thread| thread.join().expect("embedding doesn't panic"))
        })?;
    }
    Ok(Measured { tokens, took: started.elapsed() })
}

/// Returns a batch of so many tokens, of captions of the usual length, or of the longest where that
/// is less: the network may have no positions beyond.
fn batch_of(tokens: usize, vocabulary: usize, caption_tokens_max: usize) -> TokenBatch {
    // Far apart in the vocabulary, as real ones are.
    let ids: Vec<u32> =
        (0..tokens).map(|token| (token * 7919 % vocabulary.max(1)) as u32).collect();
    TokenBatch::pack(ids.chunks(CAPTION_TOKENS.min(caption_tokens_max)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::embed::hash::HashEmbedder;
    use crate::embed::load::EmbeddersError;

    #[test]
    fn tries_sessions_up_to_the_cpus() {
        let open = Wanted::default();
        assert_eq!(open.candidates(1), [(1, 1)]);
        assert_eq!(open.candidates(2), [(1, 2), (2, 1)]);
        assert_eq!(open.candidates(5), [(1, 5), (5, 1)]);
        assert_eq!(open.candidates(6), [(1, 6), (2, 3), (6, 1)]);
        assert_eq!(open.candidates(7), [(1, 7), (7, 1)]);
        assert_eq!(open.candidates(12), [(1, 12), (2, 6), (4, 3), (12, 1)]);
        assert_eq!(open.candidates(17), [(1, 17), (2, 8), (4, 4), (8, 2), (17, 1)]);
        let of_96 = [(1, 96), (2, 48), (4, 24), (8, 12), (16, 6), (32, 3), (96, 1)];
        assert_eq!(open.candidates(96), of_96);
        assert_eq!(Wanted { threads: Some(2), ..open }.candidates(8), [(1, 2), (2, 2), (4, 2)]);
        assert_eq!(Wanted { threads: Some(2), ..open }.candidates(7), [(1, 2), (2, 2), (3, 2)]);
        assert_eq!(Wanted { sessions: Some(3), ..open }.candidates(8), [(3, 2)]);
        assert_eq!(Wanted { threads: Some(9), ..open }.candidates(8), [(1, 9)]);
    }

    /// A network of so many positions.
    struct Positions(HashEmbedder, i64);

    impl Embedder for Positions {
        fn dim(&self) -> usize {
            self.0.dim()
        }

        fn embed(&mut self, batch: &TokenBatch) -> Result<Vec<f32>, EmbedError> {
            let (captions, tokens) = (batch.captions(), batch.tokens());
            match batch.token_positions.iter().all(|position| *position < self.1) {
                true => self.0.embed(batch),
                false => {
                    let reason = "indices element out of data bounds".into();
                    Err(EmbedError::Run { captions, tokens, reason })
                }
            }
        }
    }

    #[test]
    fn a_network_of_few_positions_is_measured_with_captions_that_it_takes() {
        let load = |sessions: usize, _| {
            let one = |_| Positions(HashEmbedder::new(4), 8);
            Ok::<_, EmbeddersError>(Some((0..sessions).map(one).collect()))
        };
        let found = calibrate(&Wanted::default(), 2, 100, 8, load).unwrap();
        assert!(!found.is_cut_short);
    }

    #[test]
    fn passes_at_the_same_time_are_predicted_to_take_what_they_took() {
        let seconds = |tokens: usize| 0.005 + tokens as f64 * 1e-3;
        let step = |tokens| {
            let together = 2.0 * tokens as f64;
            Step { tokens, tokens_per_second: together / seconds(tokens) }
        };
        let steps = [16, 32, 64, 128, 256, 512].map(step).to_vec();
        let calibration = Calibration { sessions: 2, threads: 1, steps };
        let predicted = calibration.cost().predict(100).unwrap().as_secs_f64();
        assert!((predicted / seconds(100) - 1.0).abs() < 0.1, "{predicted}");
    }

    #[test]
    fn what_the_configuration_names_is_kept() {
        let wanted = Wanted { tokens: Some(300), sessions: Some(2), threads: None };
        let load = |sessions: usize, _| {
            Ok::<_, EmbeddersError>(Some(vec![HashEmbedder::new(4); sessions]))
        };
        let found = calibrate(&wanted, 4, 100, 128, load).unwrap();
        let (found, embedders) = (found.calibration, found.sessions);
        assert_eq!((found.sessions, found.threads, embedders.len()), (2, 2, 2));
        assert_eq!(found.steps.len(), 1);
        assert!(found.steps[0].tokens_per_second > 0.0);
        assert_eq!(found.budget(&wanted).tokens(), 300);
        assert_eq!(wanted.settled(), None);
        let settled = Wanted { threads: Some(2), ..wanted }.settled().unwrap();
        assert_eq!((settled.sessions, settled.threads), (2, 2));
    }
}

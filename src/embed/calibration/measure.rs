//! What is chosen by what passes take: how many of them run at a time, and up to which size batches
//! are measured.
//!
//! No clock and no embedder is in here: who calls runs the passes, and says how long they took.

use std::fmt::Display;
use std::time::Duration;

use super::{Calibration, NoMemory, Wanted};
use crate::batch::budget::{Step, TokenBudget};
use crate::embed::EmbedError;
use crate::stats::Sorted;

/// Sizes of batches that are measured, in tokens. The largest is for the largest of devices.
const SIZES: [usize; 25] = [
    16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 3072, 4096, 6144, 8192,
    12_288, 16_384, 24_576, 32_768, 49_152, 65_536,
];

/// The largest of them.
pub const LARGEST: usize = SIZES[SIZES.len() - 1];

/// Sizes that bring nothing, in a row, after which larger ones aren't measured: four times the
/// tokens.
const FLAT: usize = 4;

/// What a larger batch must bring to be better.
const BETTER: f64 = 1.02;

/// What more passes at a time must bring on an idle machine. On a busy one they bring more: what
/// holds up one thread holds up one pass, and not all threads of it.
const WORTH_MORE_SESSIONS: f64 = 1.02;

/// Comparisons of more passes at a time with fewer, at least, and the time that they take at least,
/// unless they take too long: this choice is followed for as long as the worker runs.
const COMPARISONS: usize = 5;
const COMPARED: Duration = Duration::from_secs(1);

/// Passes in a row of each session in a comparison: they don't wait for each other in a worker, and
/// so they shouldn't after each pass here.
const IN_A_ROW: usize = 3;

/// The longest that the sizes are measured for, or sessions are compared: what is under way then is
/// the last.
const TIME_MAX: Duration = Duration::from_secs(10);

/// Passes of each size, of which the fastest counts: what else the machine does only makes slower.
const ROUNDS: usize = 3;

/// Passes that are to be measured.
#[derive(Clone, Copy, Debug)]
pub struct Passes {
    /// Tokens of each.
    pub tokens: usize,
    /// How many of them each session makes, one after the other.
    pub number: usize,
}

impl Passes {
    /// Passes of no more tokens than the largest size has, for over that it is other limits that
    /// decide.
    fn of(tokens: usize, number: usize) -> Passes {
        Passes { tokens: tokens.min(LARGEST), number }
    }
}

/// Passes that were measured.
#[derive(Clone, Copy, Debug)]
pub struct Measured {
    /// Tokens of all passes of all sessions.
    pub tokens: usize,
    /// How long it took until all were done.
    pub took: Duration,
}

impl Measured {
    fn tokens_per_second(&self) -> f64 {
        self.tokens as f64 / self.took.as_secs_f64()
    }
}

/// What was found to be best.
pub struct Found<S> {
    /// How the package runs.
    pub calibration: Calibration,
    /// The sessions that it was found with.
    pub sessions: S,
    /// Whether something wasn't measured to its end for want of memory, or since it failed. That
    /// may pass, and what is found then may be better.
    pub is_cut_short: bool,
}

/// Returns what is best, with the sessions that it was found with. `load` makes so many sessions
/// with so many threads each, or none where there isn't the memory; `run` runs passes of all of
/// them at the same time.
///
/// # Errors
///
/// When the first session can't be made, or fails on the smallest batch. That more of them can't
/// run is none.
pub fn choose<S, L>(
    wanted: &Wanted,
    cpus: usize,
    mut load: impl FnMut(usize, usize) -> Result<Option<S>, L>,
    mut run: impl FnMut(&mut S, Passes) -> Result<Measured, EmbedError>,
) -> Result<Found<S>, L>
where
    L: From<EmbedError> + From<NoMemory> + Display,
{
    let mut candidates = wanted.candidates(cpus).into_iter();
    let (mut sessions, mut threads) = candidates.next().expect("there is one candidate at least");
    let mut present = load(sessions, threads)?.ok_or(NoMemory { sessions })?;
    let (mut steps, mut is_cut_short) = measure(wanted, |passes| run(&mut present, passes))?;
    let (mut is_measured, mut is_more_given_up) = (true, false);
    for (more, threads_of_each) in candidates {
        let tokens = wanted.tokens.unwrap_or_else(|| TokenBudget::new(steps.clone()).tokens());
        // It runs without them: that they fail is no reason not to start.
        let tried = load(more, threads_of_each).and_then(|others| {
            let Some(mut others) = others else { return Ok(None) };
            let gain = gain(&mut present, &mut others, tokens, &mut run)?;
            Ok(Some((others, gain)))
        });
        let (others, gain) = match tried {
            Ok(Some(tried)) => tried,
            Ok(None) => {
                is_more_given_up = true;
                break;
            }
            Err(error) => {
                tracing::warn!(sessions = more, %error, "more sessions fail; they aren't used");
                is_more_given_up = true;
                break;
            }
        };
        tracing::debug!(sessions, more, tokens, gain, "compared more passes at a time");
        if gain >= WORTH_MORE_SESSIONS {
            (sessions, threads, present) = (more, threads_of_each, others);
            is_measured = false;
            continue;
        }
        // Where they lose by idle CPUs alone, still more sessions may win: they leave none idle.
        let cpus_before = (sessions * threads) as f64;
        let cpus_after = (more * threads_of_each) as f64;
        if gain * cpus_before / cpus_after < WORTH_MORE_SESSIONS {
            break;
        }
    }
    if !is_measured {
        (steps, is_cut_short) = measure(wanted, |passes| run(&mut present, passes))?;
    }
    Ok(Found {
        calibration: Calibration { sessions, threads, steps },
        sessions: present,
        is_cut_short: is_cut_short || is_more_given_up,
    })
}

/// Measures the sizes, the smallest first, until larger ones bring nothing. Returns beside the
/// steps whether it was a failure that ended them.
fn measure(
    wanted: &Wanted,
    mut run: impl FnMut(Passes) -> Result<Measured, EmbedError>,
) -> Result<(Vec<Step>, bool), EmbedError> {
    let sizes = wanted.tokens.map_or_else(|| SIZES.to_vec(), |tokens| vec![tokens]);
    let mut steps: Vec<Step> = Vec::new();
    let (mut best, mut flat, mut spent) = (0.0, 0, Duration::ZERO);
    for tokens in sizes {
        let passes = Passes::of(tokens, 1);
        let measured: Result<f64, EmbedError> = (0..ROUNDS).try_fold(0.0f64, |most, _| {
            if most > 0.0 && spent > TIME_MAX {
                return Ok(most);
            }
            let measured = run(passes)?;
            spent += measured.took;
            Ok(most.max(measured.tokens_per_second()))
        });
        let tokens_per_second = match measured {
            Ok(rate) => rate,
            // A device has its memory: what is too large is no size for a batch.
            Err(error) if !steps.is_empty() => {
                tracing::info!(tokens, %error, "batches of this size fail; smaller ones it is");
                return Ok((steps, true));
            }
            Err(error) => return Err(error),
        };
        steps.push(Step { tokens, tokens_per_second });
        // Against the last that was better: many small gains are one that counts.
        (best, flat) = match tokens_per_second > BETTER * best {
            true => (tokens_per_second, 0),
            false => (best, flat + 1),
        };
        if flat >= FLAT || spent > TIME_MAX {
            break;
        }
    }
    Ok((steps, false))
}

/// Returns how many times as fast the others are: the median of comparisons side by side, for what
/// else the machine does is not the same from pass to pass.
fn gain<S>(
    present: &mut S,
    others: &mut S,
    tokens: usize,
    run: &mut impl FnMut(&mut S, Passes) -> Result<Measured, EmbedError>,
) -> Result<f64, EmbedError> {
    let passes = Passes::of(tokens, IN_A_ROW);
    let (mut gains, mut spent) = (Vec::new(), Duration::ZERO);
    loop {
        let (before, after) = (run(present, passes)?, run(others, passes)?);
        gains.push(after.tokens_per_second() / before.tokens_per_second());
        spent += before.took + after.took;
        if (gains.len() >= COMPARISONS && spent >= COMPARED) || spent > TIME_MAX {
            return Ok(Sorted::of(gains).median().expect("they were compared"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::embed::load::EmbeddersError;

    /// Sessions of which each takes a time for a pass and for each of its tokens, however many run,
    /// and fails above a size.
    struct Sessions {
        number: usize,
        fixed_us: u64,
        each_us: u64,
        tokens_max: usize,
    }

    impl Sessions {
        fn run(&mut self, passes: Passes) -> Result<Measured, EmbedError> {
            let Passes { tokens, number } = passes;
            if tokens > self.tokens_max {
                return Err(EmbedError::Run { captions: 1, tokens, reason: "no memory".into() });
            }
            let pass = Duration::from_micros(self.fixed_us + self.each_us * tokens as u64);
            Ok(Measured { tokens: self.number * number * tokens, took: pass * number as u32 })
        }
    }

    type Loaded<S> = Result<Option<S>, EmbeddersError>;

    fn sessions(number: usize, fixed_us: u64, each_us: u64, tokens_max: usize) -> Loaded<Sessions> {
        Ok(Some(Sessions { number, fixed_us, each_us, tokens_max }))
    }

    const ONE_SESSION: Wanted = Wanted { tokens: None, sessions: Some(1), threads: None };

    #[test]
    fn a_pass_that_was_quick_by_chance_decides_nothing() {
        // One session is mostly as slow as two are for twice the tokens; one of its passes in four
        // isn't.
        let wanted = Wanted { tokens: Some(32), ..Wanted::default() };
        let load = |number: usize, _| -> Loaded<(usize, usize)> { Ok(Some((number, 0))) };
        let run = |(sessions, done): &mut (usize, usize), passes: Passes| {
            let pass = |_| {
                *done += 1;
                let is_quick = *sessions == 1 && *done % 4 == 1;
                Duration::from_millis(if is_quick { 1 } else { 4 })
            };
            let took: Duration = (0..passes.number).map(pass).sum();
            Ok(Measured { tokens: *sessions * passes.number * passes.tokens, took })
        };
        let found = choose(&wanted, 2, load, run).unwrap().calibration;
        assert_eq!(found.sessions, 2);
    }

    #[test]
    fn more_sessions_are_taken_where_they_are_worth_it() {
        // Twice the sessions are twice as fast.
        let load = |number: usize, _| match number {
            1 | 2 => sessions(number, 500, 5, LARGEST),
            _ => Ok(None),
        };
        let found = choose(&Wanted::default(), 4, load, Sessions::run).unwrap();
        assert!(found.is_cut_short, "there wasn't the memory for four");
        let (found, taken) = (found.calibration, found.sessions);
        assert_eq!((found.sessions, found.threads, taken.number), (2, 2, 2));
        assert!(found.steps.len() > 1);
        assert!(found.cost().predict(100).is_some());
        let fastest = found.steps.last().unwrap();
        assert!(fastest.tokens_per_second > 1.9 / 5e-6, "it is measured with both: {fastest:?}");
    }

    #[test]
    fn a_session_for_each_cpu_is_found_on_any_number_of_cpus() {
        // A session's threads get in each other's way: twice of them are not twice as fast.
        let load = |number: usize, threads: usize| -> Loaded<(usize, usize)> {
            Ok(Some((number, threads)))
        };
        let run = |&mut (number, threads): &mut (usize, usize), passes: Passes| {
            let tokens = passes.tokens * passes.number;
            let took = Duration::from_secs_f64(tokens as f64 / (threads as f64).powf(0.9) / 1e3);
            Ok(Measured { tokens: number * tokens, took })
        };
        for cpus in [2, 3, 5, 6, 7, 10, 12, 14, 17, 24, 47, 48, 96, 97] {
            let found = choose(&Wanted::default(), cpus, load, run).unwrap().calibration;
            assert_eq!((found.sessions, found.threads), (cpus, 1));
        }
    }

    #[test]
    fn more_sessions_that_bring_nothing_are_not_taken() {
        let load =
            |number: usize, _| sessions(number, 500 * number as u64, 5 * number as u64, LARGEST);
        let found = choose(&Wanted::default(), 4, load, Sessions::run).unwrap();
        assert!(!found.is_cut_short, "nothing was given up");
        let (found, taken) = (found.calibration, found.sessions);
        assert_eq!((found.sessions, found.threads, taken.number), (1, 4, 1));
    }

    #[test]
    fn more_sessions_that_fail_are_not_taken() {
        // Twice the sessions would be twice as fast.
        for tokens_max in [Some(1), None] {
            let load = |number: usize, _| match (number, tokens_max) {
                (1, _) => sessions(1, 500, 5, LARGEST),
                (_, Some(tokens)) => sessions(number, 0, 1, tokens),
                (_, None) => Err(NoMemory { sessions: number }.into()),
            };
            let found = choose(&Wanted::default(), 4, load, Sessions::run).unwrap();
            assert_eq!((found.calibration.sessions, found.sessions.number), (1, 1));
            assert!(found.is_cut_short, "they may not fail at the next start");
        }
    }

    #[test]
    fn many_small_gains_are_not_the_end() {
        // From 48 tokens on each step brings less than 2 %, and all together 6 %.
        let load = |number, _| sessions(number, 300, 100, 4096);
        let found = choose(&ONE_SESSION, 1, load, Sessions::run).unwrap();
        assert!(!found.is_cut_short);
        let found = found.calibration;
        assert_eq!(found.steps.last().unwrap().tokens, 1536, "four behind the last that counts");
    }

    #[test]
    fn sizes_that_fail_are_not_taken() {
        let load = |number, _| sessions(number, 2000, 1, 64);
        let found = choose(&ONE_SESSION, 1, load, Sessions::run).unwrap();
        assert_eq!(found.calibration.steps.last().unwrap().tokens, 64);
        assert!(found.is_cut_short, "another program may have had the memory");
        let load = |number, _| sessions(number, 2000, 1, 8);
        let failed = choose(&ONE_SESSION, 1, load, Sessions::run);
        assert!(matches!(failed, Err(EmbeddersError::Calibration(_))));
    }

    #[test]
    fn more_tokens_than_any_device_needs_are_kept_and_not_measured() {
        let wanted = Wanted { tokens: Some(10_000_000), ..ONE_SESSION };
        let load = |number, _| sessions(number, 10, 1, LARGEST);
        let found = choose(&wanted, 1, load, Sessions::run).unwrap().calibration;
        assert_eq!(found.budget(&wanted).tokens(), 10_000_000);
    }

    #[test]
    fn what_takes_long_is_measured_no_more_than_it_must() {
        for (pass_us, rounds) in [(4_000_000, ROUNDS), (6_000_000, 2), (11_000_000, 1)] {
            let mut runs = 0;
            let run = |sessions: &mut Sessions, passes: Passes| {
                runs += 1;
                sessions.run(passes)
            };
            let load = |number, _| sessions(number, pass_us, 0, 4096);
            let found = choose(&Wanted::default(), 2, load, run).unwrap().calibration;
            assert_eq!((found.sessions, found.steps.len()), (2, 1));
            assert_eq!(runs, rounds + 2 + rounds, "one size, one comparison, the size again");
        }
    }
}

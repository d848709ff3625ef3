//! What a forward pass of one caption takes, by its tokens: what its latency is compared with.

use std::time::{Duration, Instant};

use super::report::Alone;
use crate::batch::packing::TokenBatch;
use crate::cli::spread::Spread;
use crate::embed::{EmbedError, Embedder};

/// Forward passes of one caption that are measured.
const RUNS: usize = 15;

/// How often the same is timed of threads that have slept, which take their time to wake.
const RESTED_RUNS: usize = 5;

/// How long they sleep.
const REST: Duration = Duration::from_millis(100);

/// Captions of these lengths are measured, as shares of all captions by length; times between are
/// interpolated. The middle one is shown.
const QUANTILES: [f64; 5] = [0.0, 0.25, 0.5, 0.9, 1.0];
const MIDDLE: f64 = 0.5;

/// The passes of the lengths that were measured, the shortest first.
#[derive(Default)]
pub struct Passes(Vec<PassTimes>);

/// Of one length.
struct PassTimes {
    tokens: usize,
    is_middle: bool,
    /// One right after another.
    hot_ms: Spread,
    /// After a rest.
    rested_ms: Spread,
}

impl Passes {
    /// Measures captions of the usual lengths, each alone.
    ///
    /// # Errors
    ///
    /// When the network fails.
    ///
    /// # Panics
    ///
    /// When there is no caption.
    pub fn measure(
        embedder: &mut dyn Embedder,
        captions: &[Vec<u32>],
    ) -> Result<Passes, EmbedError> {
        let mut by_length: Vec<&Vec<u32>> = captions.iter().collect();
        by_length.sort_by_key(|ids| ids.len());
        let mut passes: Vec<PassTimes> = Vec::new();
        for quantile in QUANTILES {
            let ids = by_length[((by_length.len() - 1) as f64 * quantile) as usize];
            let is_middle = quantile == MIDDLE;
            if let Some(last) = passes.last_mut().filter(|last| last.tokens == ids.len()) {
                last.is_middle |= is_middle;
                continue;
            }
            let batch = TokenBatch::pack([ids.as_slice()]);
            let mut pass_ms = |rest: Duration| {
                std::thread::sleep(rest);
                let started = Instant::now();
                embedder.embed(&batch)?;
                Ok(started.elapsed().as_secs_f64() * 1e3)
            };
            // The first makes room for its size.
            pass_ms(Duration::ZERO)?;
            let mut times = |runs: usize, rest| {
                let times: Result<Vec<f64>, EmbedError> =
                    (0..runs).map(|_| pass_ms(rest)).collect();
                times.map(Spread::of)
            };
            let hot_ms = times(RUNS, Duration::ZERO)?;
            let rested_ms = times(RESTED_RUNS, REST)?;
            passes.push(PassTimes { tokens: ids.len(), is_middle, hot_ms, rested_ms });
        }
        Ok(Passes(passes))
    }

    /// Returns what a pass of the middle length takes.
    ///
    /// # Panics
    ///
    /// When nothing was measured.
    pub fn alone(&self) -> Alone {
        let pass = self.0.iter().find(|pass| pass.is_middle).expect("the middle was measured");
        Alone {
            tokens: pass.tokens,
            milliseconds: pass.hot_ms,
            rested_milliseconds: pass.rested_ms,
        }
    }

    /// Returns what a pass of a caption of so many tokens takes after a rest, in milliseconds:
    /// between the lengths that were measured, on the line from one to the next.
    pub fn rested_ms(&self, tokens: usize) -> f64 {
        let after = self.0.partition_point(|pass| pass.tokens < tokens);
        let at = |index: usize| (self.0[index].tokens as f64, self.0[index].rested_ms.median);
        if after == 0 || after == self.0.len() {
            return at(after.min(self.0.len() - 1)).1;
        }
        let ((from, from_ms), (to, to_ms)) = (at(after - 1), at(after));
        from_ms + (to_ms - from_ms) * (tokens as f64 - from) / (to - from)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::embed::hash::HashEmbedder;

    fn passes(of: &[(usize, f64)]) -> Passes {
        let spread = |median| Spread { median, min: median, max: median };
        let pass = |&(tokens, ms): &(usize, f64)| PassTimes {
            tokens,
            is_middle: false,
            hot_ms: spread(ms),
            rested_ms: spread(ms),
        };
        Passes(of.iter().map(pass).collect())
    }

    #[test]
    fn times_between_are_on_the_line() {
        let passes = passes(&[(10, 5.0), (20, 9.0), (40, 10.0)]);
        let of = [5, 10, 15, 20, 30, 40, 90].map(|tokens| passes.rested_ms(tokens));
        assert_eq!(of, [5.0, 5.0, 7.0, 9.0, 9.5, 10.0, 10.0]);
    }

    #[test]
    fn each_length_is_measured_once() {
        let captions: Vec<Vec<u32>> = [3, 3, 3, 9].map(|tokens| vec![7; tokens]).into();
        let passes = Passes::measure(&mut HashEmbedder::new(4), &captions).unwrap();
        let lengths: Vec<usize> = passes.0.iter().map(|pass| pass.tokens).collect();
        assert_eq!((lengths, passes.alone().tokens), (vec![3, 9], 3));
    }
}

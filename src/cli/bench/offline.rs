//! The network over captions that are tokenized already, without Kafka: the worker's way to make
//! batches, and the usual one beside it.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use crate::batch::packing::TokenBatch;
use crate::batch::policy::{Decision, Limits};
use crate::embed::{EmbedError, Embedder};
use crate::lock::lock;

/// Captions of a padded batch.
pub const PADDED_CAPTIONS: usize = 32;

/// The id of the tokens that fill captions up. A network multiplies with them as with any other.
const PAD: u32 = 0;

/// How batches are made, of captions in their order of arrival.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Policy {
    /// As the worker does: as many captions as are within the limits, nothing filled up.
    Packed(Limits),
    /// 32 captions, each filled up to the longest of them.
    Padded,
}

/// What was done, in which time.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Work {
    /// Captions embedded.
    pub captions: usize,
    /// Their tokens, those that fill up not counted.
    pub tokens: usize,
    /// Tokens that fill up.
    pub padding: usize,
    /// The time that it took.
    pub time: Duration,
}

impl Policy {
    /// Returns a batch of the first captions, and their number. There must be a caption.
    fn batch(self, captions: &[Vec<u32>]) -> (TokenBatch, usize) {
        match self {
            Policy::Packed(limits) => {
                let lengths = captions.iter().map(Vec::len);
                // Nothing else will come: what is there is due.
                let Decision::Cut { captions: number, .. } =
                    limits.decide(lengths, Duration::MAX, None)
                else {
                    unreachable!("there is a caption, and it has waited long enough")
                };
                (TokenBatch::pack(captions[..number].iter().map(Vec::as_slice)), number)
            }
            Policy::Padded => {
                let number = captions.len().min(PADDED_CAPTIONS);
                let longest = captions[..number].iter().map(Vec::len).max().unwrap_or(0);
                let filled: Vec<Vec<u32>> = captions[..number]
                    .iter()
                    .map(|ids| {
                        let mut ids = ids.clone();
                        ids.resize(longest, PAD);
                        ids
                    })
                    .collect();
                (TokenBatch::pack(filled.iter().map(Vec::as_slice)), number)
            }
        }
    }
}

impl Work {
    /// Returns the captions a second.
    pub fn captions_per_second(&self) -> f64 {
        self.captions as f64 / self.time.as_secs_f64()
    }

    /// Returns the tokens a second.
    pub fn tokens_per_second(&self) -> f64 {
        self.tokens as f64 / self.time.as_secs_f64()
    }

    /// Returns the share of tokens that fill up.
    pub fn padding_share(&self) -> f64 {
        self.padding as f64 / (self.tokens + self.padding).max(1) as f64
    }
}

/// Embeds the captions, round and round, until `is_enough` at the end of a batch. No batch goes
/// over the end of the list. Each of the embedders takes the next batch when it is free.
///
/// # Errors
///
/// When the network fails.
///
/// # Panics
///
/// When there is no caption, or no embedder.
pub fn embed(
    embedders: &mut [&mut dyn Embedder],
    captions: &[Vec<u32>],
    policy: Policy,
    is_enough: impl Fn(&Work) -> bool + Sync,
) -> Result<Work, EmbedError> {
    assert!(!captions.is_empty() && !embedders.is_empty(), "there are captions and embedders");
    let started = Instant::now();
    let shared = Mutex::new(Shared::default());
    let run = |embedder: &mut dyn Embedder| -> Result<(), EmbedError> {
        loop {
            let (batch, number, tokens) = {
                let mut shared = lock(&shared);
                if shared.is_over {
                    return Ok(());
                }
                let first = shared.next;
                let (batch, number) = policy.batch(&captions[first..]);
                shared.next = (first + number) % captions.len();
                let tokens: usize = captions[first..first + number].iter().map(Vec::len).sum();
                (batch, number, tokens)
            };
            let embedded = embedder.embed(&batch);
            let mut shared = lock(&shared);
            if let Err(error) = embedded {
                shared.is_over = true;
                return Err(error);
            }
            // What ends after the end is counted as long as it took.
            let work = &mut shared.work;
            work.captions += number;
            work.tokens += tokens;
            work.padding += batch.tokens() - tokens;
            work.time = started.elapsed();
            shared.is_over |= is_enough(&shared.work);
        }
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = embedders.iter_mut().map(|one| scope.spawn(|| run(*one))).collect();
        threads.into_iter().try_for_each(|thread| thread.join().expect("embedding doesn't panic"))
    })?;
    Ok(lock(&shared).work)
}

/// What the embedders share.
#[derive(Default)]
struct Shared {
    /// The first caption of the next batch.
    next: usize,
    work: Work,
    is_over: bool,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::embed::hash::HashEmbedder;

    fn work(policy: Policy, lengths: &[usize]) -> Work {
        let captions: Vec<Vec<u32>> = lengths.iter().map(|&n| vec![7; n]).collect();
        let (mut one, mut other) = (HashEmbedder::new(4), HashEmbedder::new(4));
        let mut alone: [&mut dyn Embedder; 1] = [&mut one];
        let mut both: [&mut dyn Embedder; 2] = [&mut other, &mut HashEmbedder::new(4)];
        let is_enough = |work: &Work| work.captions >= lengths.len();
        let by_two = embed(&mut both, &captions, policy, is_enough).unwrap();
        assert!(by_two.captions >= lengths.len());
        embed(&mut alone, &captions, policy, is_enough).unwrap()
    }

    #[test]
    fn padding_fills_up_to_the_longest_of_a_batch() {
        let mut lengths = vec![10; PADDED_CAPTIONS];
        lengths[3] = 20;
        lengths.push(50);
        let padded = work(Policy::Padded, &lengths);
        assert_eq!((padded.captions, padded.tokens), (33, 31 * 10 + 20 + 50));
        assert_eq!(padded.padding, 31 * 10);
        assert!((padded.padding_share() - 310.0 / 690.0).abs() < 1e-9);
    }

    #[test]
    fn packing_fills_nothing_up() {
        let limits = Limits { tokens_max: 25, captions_max: 9, wait_max: Duration::from_secs(1) };
        let packed = work(Policy::Packed(limits), &[10, 10, 10, 30, 1]);
        assert_eq!((packed.captions, packed.tokens, packed.padding), (5, 61, 0));
    }
}

//! The captions that are measured with: a file's, the demo's, or lengths alone.

use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use clap::Args;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, LogNormal, Uniform};
use serde::Deserialize;

use crate::cli::captions::Captions;
use crate::cli::demo::CAPTION_LINES;
use crate::tokenize::Tokenizer;
use crate::wire::pointer::Pointer;

/// Captions read of a file, and captions made: enough that batches differ, and no more than fits
/// into memory easily.
const CAPTIONS_MAX: usize = 50_000;

/// Captions of a made-up mix.
const CAPTIONS_MADE: usize = 4096;

/// How errors call the captions that come without a file.
const BUILT_IN: &str = "the built-in captions";

/// A mix with long captions has one in so many.
const LONG_EVERY: usize = 20;

/// The tokens of a long caption, where the package takes as many.
const LONG_TOKENS: (usize, usize) = (100, 128);

/// Where captions come from.
#[derive(Debug, Args)]
pub struct CaptionArgs {
    /// JSON lines with captions; without a file, captions that are built in, and for `bench
    /// encoder` made-up tokens.
    #[arg(long, value_name = "FILE")]
    captions: Option<PathBuf>,
    /// Where in a line of the file the caption is.
    #[arg(long, value_name = "POINTER", default_value = "/caption")]
    pointer: Pointer,
}

/// A caption with its token ids.
#[derive(Clone, Debug)]
pub struct BenchCaption {
    /// The text.
    pub text: String,
    /// What the network reads.
    pub ids: Vec<u32>,
}

impl CaptionArgs {
    /// Returns whether a file is named.
    pub fn is_given(&self) -> bool {
        self.captions.is_some()
    }

    /// Returns the captions of the file, or the demo's, those without text left out.
    ///
    /// # Errors
    ///
    /// When the file can't be read or has no caption.
    pub fn read(&self, tokenizer: &Tokenizer) -> anyhow::Result<Vec<BenchCaption>> {
        let texts: Vec<String> = match &self.captions {
            Some(file) => Captions::open(file, Some(self.pointer.clone()))?
                .take(CAPTIONS_MAX)
                .collect::<anyhow::Result<_>>()?,
            None => built_in()?,
        };
        let mut captions = Vec::with_capacity(texts.len());
        for text in texts {
            let tokens = tokenizer.tokenize(&text)?;
            if !tokens.is_empty() {
                captions.push(BenchCaption { text, ids: tokens.ids });
            }
        }
        let file = self.captions.as_deref().unwrap_or(Path::new(BUILT_IN));
        ensure!(!captions.is_empty(), "{}: no caption has text", file.display());
        Ok(captions)
    }
}

/// The demo's captions.
fn built_in() -> anyhow::Result<Vec<String>> {
    #[derive(Deserialize)]
    struct Line {
        caption: String,
    }
    let lines = CAPTION_LINES.lines().map(serde_json::from_str::<Line>);
    lines.map(|line| Ok(line.context(BUILT_IN)?.caption)).collect()
}

/// Returns the mix with one caption in twenty made long, by putting captions one behind the other.
///
/// # Errors
///
/// When the tokenizer fails.
pub fn with_long_texts(
    captions: &[BenchCaption],
    tokenizer: &Tokenizer,
    max_tokens: usize,
) -> anyhow::Result<Vec<BenchCaption>> {
    let mut random = ChaCha8Rng::seed_from_u64(1);
    let length = long_length(max_tokens)?;
    let mut long = captions.to_vec();
    for index in (0..long.len()).step_by(LONG_EVERY) {
        let wanted = length.sample(&mut random);
        let (mut text, mut ids) = (String::new(), Vec::new());
        for next in captions.iter().cycle().skip(index) {
            text.push_str(&next.text);
            ids = tokenizer.tokenize(&text)?.ids;
            if ids.len() >= wanted {
                break;
            }
            text.push(' ');
        }
        long[index] = BenchCaption { text, ids };
    }
    Ok(long)
}

/// Returns captions of random ids whose lengths are those of captions in the wild: 19.5 tokens on
/// average, 60 at most.
pub fn made_up(max_tokens: usize, vocabulary: usize) -> anyhow::Result<Vec<Vec<u32>>> {
    // The logarithms' mean and deviation that give this mean: 19.5 = exp(2.88 + 0.42² / 2).
    let length = LogNormal::new(2.88_f64, 0.42)?;
    of_lengths(vocabulary, 1, |random| {
        (length.sample(random).round() as usize).clamp(4, 60).min(max_tokens)
    })
}

/// Returns captions of random ids and of any length that the package takes.
pub fn any_length(max_tokens: usize, vocabulary: usize) -> anyhow::Result<Vec<Vec<u32>>> {
    let length = Uniform::new_inclusive(3, max_tokens)?;
    of_lengths(vocabulary, 3, |random| length.sample(random))
}

/// Returns the mix with one caption in twenty replaced by a long one of random ids.
pub fn with_long(
    captions: &[Vec<u32>],
    max_tokens: usize,
    vocabulary: usize,
) -> anyhow::Result<Vec<Vec<u32>>> {
    let length = long_length(max_tokens)?;
    let replacements = of_lengths(vocabulary, 2, |random| length.sample(random))?;
    let mut mixed = captions.to_vec();
    for (index, long) in (0..mixed.len()).step_by(LONG_EVERY).zip(replacements.iter().cycle()) {
        mixed[index].clone_from(long);
    }
    Ok(mixed)
}

fn long_length(max_tokens: usize) -> anyhow::Result<Uniform<usize>> {
    let (least, most) = LONG_TOKENS;
    Ok(Uniform::new_inclusive(least.min(max_tokens), most.min(max_tokens))?)
}

/// Returns captions of random ids. Each mix has a seed of its own, so that every run measures the
/// same captions.
fn of_lengths(
    vocabulary: usize,
    seed: u64,
    mut length: impl FnMut(&mut ChaCha8Rng) -> usize,
) -> anyhow::Result<Vec<Vec<u32>>> {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let id = Uniform::new(0, u32::try_from(vocabulary)?)?;
    let mut captions = Vec::with_capacity(CAPTIONS_MADE);
    for _ in 0..CAPTIONS_MADE {
        let length = length(&mut random);
        captions.push((0..length).map(|_| id.sample(&mut random)).collect());
    }
    Ok(captions)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mean(captions: &[Vec<u32>]) -> f64 {
        captions.iter().map(Vec::len).sum::<usize>() as f64 / captions.len() as f64
    }

    #[test]
    fn made_up_lengths_are_those_of_captions() {
        let captions = made_up(128, 1000).unwrap();
        assert!((mean(&captions) - 19.5).abs() < 0.7, "{}", mean(&captions));
        assert!(captions.iter().all(|ids| (4..=60).contains(&ids.len())));
        assert!(captions.iter().flatten().all(|id| *id < 1000));
        assert_eq!(captions, made_up(128, 1000).unwrap());
    }

    #[test]
    fn one_in_twenty_is_long() {
        let captions = with_long(&made_up(128, 1000).unwrap(), 128, 1000).unwrap();
        let long = captions.iter().filter(|ids| (100..=128).contains(&ids.len())).count();
        assert_eq!(long, CAPTIONS_MADE.div_ceil(LONG_EVERY));
        let short = with_long(&made_up(50, 1000).unwrap(), 50, 1000).unwrap();
        assert!(short.iter().all(|ids| ids.len() <= 50), "the package's limit holds");
    }

    #[test]
    fn any_length_is_any_length() {
        let captions = any_length(128, 1000).unwrap();
        assert!((mean(&captions) - 65.5).abs() < 2.0, "{}", mean(&captions));
    }
}

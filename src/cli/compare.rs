//! `capvec model compare`: what two packages make of the same captions, and how fast. It is for the
//! choice between two precisions of one model.
//!
//! Captions are tokenized once, since both packages must have the same tokenizer, and embedded with
//! each package in the same batches. [`crate::model::compare`] has the arithmetic.

use std::collections::HashSet;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use clap::Args;
use clap::builder::RangedU64ValueParser;
use serde::Serialize;

use super::captions::Captions;
use super::network::NetworkArgs;
use super::progress::{LongWork, Unit};
use super::spread::{Spread, medians_of};
use super::{REPEATS_MAX, above_zero, say};
use crate::batch::policy::{Decision, Limits};
use crate::embed::Embedder;
use crate::embed::alone::{FiniteError, embed_finite};
use crate::embed::onnx::OnnxEmbedder;
use crate::model::compare::{
    Cosine, Likeness, Neighbours, RelativeError, Vectors, comparable, sample,
};
use crate::model::package::Package;
use crate::tokenize::Tokenizer;
use crate::wire::pointer::Pointer;

/// How many nearest neighbours of a caption are looked at.
const NEIGHBOURS: usize = 10;

/// Arguments of `capvec model compare`.
#[derive(Debug, Args)]
pub struct CompareArgs {
    /// The package that is compared with.
    #[arg(value_name = "A")]
    a: PathBuf,
    /// The package in question.
    #[arg(value_name = "B")]
    b: PathBuf,
    /// The captions, one a line; take real ones, well mixed.
    #[arg(long, value_name = "FILE")]
    captions: PathBuf,
    /// Lines are JSON with the caption at this JSON Pointer, such as /caption.
    #[arg(long, value_name = "POINTER")]
    pointer: Option<Pointer>,
    /// Takes the first N lines of the file.
    #[arg(long, value_name = "N", default_value_t = NonZeroUsize::new(2000).expect("not 0"), value_parser = above_zero::<NonZeroUsize>)]
    limit: NonZeroUsize,
    /// Looks for the nearest neighbours of at most N captions, among all.
    #[arg(long, value_name = "N", default_value_t = NonZeroUsize::new(1000).expect("not 0"), value_parser = above_zero::<NonZeroUsize>)]
    queries: NonZeroUsize,
    /// Passes of each package by which the speed is measured, in turn; 0 measures none.
    #[arg(
        long,
        value_name = "N",
        default_value_t = 5,
        value_parser = RangedU64ValueParser::<usize>::new().range(..=REPEATS_MAX)
    )]
    repeats: usize,
    /// Measures the speed on at most N of the captions.
    #[arg(long, value_name = "N", default_value_t = NonZeroUsize::new(200).expect("not 0"), value_parser = above_zero::<NonZeroUsize>)]
    speed_captions: NonZeroUsize,
    #[command(flatten)]
    network: NetworkArgs,
    /// Prints the report as JSON.
    #[arg(long)]
    json: bool,
}

/// What is printed.
#[derive(Serialize)]
struct Report {
    a: ComparedPackage,
    b: ComparedPackage,
    captions: Counts,
    cosine: Cosine,
    worst: Worst,
    relative_error: RelativeError,
    neighbours: Neighbours,
    #[serde(skip_serializing_if = "Option::is_none")]
    speed: Option<Speed>,
}

/// A package.
#[derive(Serialize)]
struct ComparedPackage {
    package: PathBuf,
    model_id: String,
    precision: &'static str,
    /// What ran it.
    device: String,
}

/// The captions.
#[derive(Serialize)]
struct Counts {
    read: usize,
    /// Those that are compared: with text, and each sequence of tokens once.
    distinct: usize,
    tokens: usize,
}

/// The caption with the lowest cosine.
#[derive(Serialize)]
struct Worst {
    line: usize,
    caption: String,
}

/// How fast the packages are, on the same captions.
#[derive(Serialize)]
struct Speed {
    captions: usize,
    tokens: usize,
    repeats: usize,
    /// Tokens a second over the passes.
    a: Spread,
    b: Spread,
    /// Of the medians, B's to A's.
    ratio: f64,
}

/// A caption that is compared.
struct ComparedCaption {
    line: usize,
    text: String,
    ids: Vec<u32>,
}

/// Compares the packages and prints the report.
///
/// # Errors
///
/// When a package or the captions can't be read, when the packages can't be compared, when there
/// are fewer than two captions, or when a package fails on one.
pub fn run(args: &CompareArgs) -> anyhow::Result<()> {
    let (a, b) = (Package::open(&args.a)?, Package::open(&args.b)?);
    comparable(&a.manifest, &b.manifest).context("the packages can't be compared")?;
    let tokenizer = a.tokenizer()?;
    let (captions, read) = read_captions(args, &tokenizer)?;
    let (mut network_a, mut network_b) = (args.network.load(&a)?, args.network.load(&b)?);
    if args.repeats > 0 && network_a.device() != network_b.device() {
        bail!(
            "A runs on {} and B on {}, and their speeds can't be compared; --device names one for both, and \
             --repeats 0 compares their vectors alone",
            network_a.device(),
            network_b.device()
        );
    }
    let limits = args.network.limits();

    let (name_a, name_b) = (&a.manifest.model_id, &b.manifest.model_id);
    let vectors_a = vectors(name_a, &mut network_a, "embedding with A", &captions, limits)?;
    let vectors_b = vectors(name_b, &mut network_b, "embedding with B", &captions, limits)?;
    let likeness = Likeness::of(&vectors_a, &vectors_b);
    let worst = &captions[likeness.worst];
    let neighbours = neighbours(&vectors_a, &vectors_b, args.queries.get());
    let speed = match args.repeats {
        0 => None,
        repeats => {
            let measured = sample(captions.len(), args.speed_captions.get());
            let measured: Vec<&ComparedCaption> =
                measured.iter().map(|&row| &captions[row]).collect();
            Some(speed([&mut network_a, &mut network_b], &measured, repeats, limits)?)
        }
    };
    let report = Report {
        a: package(&a, &network_a),
        b: package(&b, &network_b),
        captions: Counts { read, distinct: captions.len(), tokens: tokens(&captions) },
        cosine: likeness.cosine,
        worst: Worst { line: worst.line, caption: worst.text.clone() },
        relative_error: likeness.relative_error,
        neighbours,
        speed,
    };
    match args.json {
        true => say(serde_json::to_string_pretty(&report)?)?,
        false => say(describe(&report))?,
    }
    Ok(())
}

/// Returns the captions that are compared, and how many lines were read. The same tokens make the
/// same vector, and would be each other's nearest neighbour in every package. Captions without text
/// get no vector from the worker.
fn read_captions(
    args: &CompareArgs,
    tokenizer: &Tokenizer,
) -> anyhow::Result<(Vec<ComparedCaption>, usize)> {
    let mut captions = Vec::new();
    let mut seen = HashSet::new();
    let mut read = 0;
    let lines = Captions::open(&args.captions, args.pointer.clone())?;
    for text in lines.take(args.limit.get()) {
        let text = text?;
        read += 1;
        let tokens = tokenizer.tokenize(&text)?;
        if !tokens.is_empty() && seen.insert(tokens.ids.clone()) {
            captions.push(ComparedCaption { line: read, text, ids: tokens.ids });
        }
    }
    if captions.len() < 2 {
        bail!(
            "{}: {} different captions with text in {read} lines; at least 2 are needed, and \
             hundreds for figures that mean something",
            args.captions.display(),
            captions.len()
        );
    }
    Ok((captions, read))
}

fn tokens<'a>(captions: impl IntoIterator<Item = &'a ComparedCaption>) -> usize {
    captions.into_iter().map(|caption| caption.ids.len()).sum()
}

fn vectors(
    name: &str,
    network: &mut dyn Embedder,
    what: &'static str,
    captions: &[ComparedCaption],
    limits: Limits,
) -> anyhow::Result<Vectors> {
    let total = captions.len() as u64;
    let mut progress = LongWork::start(what, Unit::Captions, Some(total));
    let captions: Vec<&ComparedCaption> = captions.iter().collect();
    let numbers = embed(network, &captions, limits, |done| {
        progress.update(done as u64, total, name);
    });
    let numbers = numbers.with_context(|| name.to_owned())?;
    progress.finish();
    Vectors::new(numbers, network.dim()).map_err(|fault| {
        let line = captions[fault.row].line;
        anyhow::anyhow!(
            "{name}: the vector of line {line} is zero, or its numbers are too small or too large to \
             be compared"
        )
    })
}

/// Returns the vectors of the captions, in batches as the worker cuts them; `done` is told how many
/// there are.
fn embed(
    network: &mut dyn Embedder,
    captions: &[&ComparedCaption],
    limits: Limits,
    mut done: impl FnMut(usize),
) -> Result<Vec<f32>, FiniteError> {
    let mut vectors = Vec::with_capacity(captions.len() * network.dim());
    let mut rest = captions;
    loop {
        let lengths = rest.iter().map(|caption| caption.ids.len());
        let Decision::Cut { captions: cut, .. } = limits.decide(lengths, Duration::ZERO, None)
        else {
            return Ok(vectors);
        };
        let (batch, later) = rest.split_at(cut);
        let ids: Vec<_> = batch.iter().map(|caption| caption.ids.as_slice()).collect();
        let named = |row: usize| format!("line {}", batch[row].line);
        vectors.extend(embed_finite(network, &ids, named)?);
        rest = later;
        done(captions.len() - rest.len());
    }
}

fn neighbours(a: &Vectors, b: &Vectors, queries: usize) -> Neighbours {
    let queries = sample(a.rows(), queries);
    let rows = a.rows() as u64;
    let mut progress = LongWork::start("neighbours", Unit::Captions, Some(2 * rows));
    let mut nearest = |vectors: &Vectors, before: u64| {
        vectors.nearest(&queries, NEIGHBOURS, |done| {
            progress.update(before + done as u64, 2 * rows, "");
        })
    };
    let (a, b) = (nearest(a, 0), nearest(b, rows));
    progress.finish();
    Neighbours::of(&a, &b)
}

/// Measures both in turn, so that what else the machine does falls on both alike.
fn speed(
    mut networks: [&mut OnnxEmbedder; 2],
    captions: &[&ComparedCaption],
    repeats: usize,
    limits: Limits,
) -> anyhow::Result<Speed> {
    let tokens = tokens(captions.iter().copied());
    let total = (2 * repeats * captions.len()) as u64;
    let mut progress = LongWork::start("speed", Unit::Captions, Some(total));
    let mut done = 0;
    let mut rates = [Vec::new(), Vec::new()];
    for _ in 0..repeats {
        for (network, rates) in networks.iter_mut().zip(&mut rates) {
            let started = Instant::now();
            embed(&mut **network, captions, limits, |of_pass| {
                progress.update(done + of_pass as u64, total, "");
            })?;
            rates.push(tokens as f64 / started.elapsed().as_secs_f64());
            done += captions.len() as u64;
        }
    }
    progress.finish();
    let [a, b] = rates.map(Spread::of);
    let ratio = b.median / a.median;
    Ok(Speed { captions: captions.len(), tokens, repeats, a, b, ratio })
}

fn package(package: &Package, network: &OnnxEmbedder) -> ComparedPackage {
    ComparedPackage {
        package: package.path.clone(),
        model_id: package.manifest.model_id.clone(),
        precision: package.manifest.precision.as_str(),
        device: network.device().to_string(),
    }
}

fn describe(report: &Report) -> String {
    let Report { captions, cosine, relative_error, neighbours, worst, .. } = report;
    let package = |compared: &ComparedPackage| {
        let ComparedPackage { package, model_id, precision, device } = compared;
        format!("{model_id}, {precision}, on {device}, {}", package.display())
    };
    let percent = |share: f64| format!("{:.1} %", 100.0 * share);
    let mut lines = vec![
        format!("A               {}", package(&report.a)),
        format!("B               {}", package(&report.b)),
        format!(
            "captions        {} read, {} different ones compared, {} tokens",
            captions.read, captions.distinct, captions.tokens
        ),
        format!(
            "cosine          mean {:.6}, first percentile {:.6}, lowest {:.6}",
            cosine.mean, cosine.p1, cosine.min
        ),
        format!("  lowest in     line {}: {:?}", worst.line, worst.caption),
        format!(
            "relative error  median {:.2e}, largest {:.2e}",
            relative_error.median, relative_error.max
        ),
        format!(
            "neighbours      {} of the {} nearest are the same, {} of the first; {} captions asked",
            percent(neighbours.overlap),
            neighbours.k,
            percent(neighbours.first),
            neighbours.queries
        ),
    ];
    if let Some(speed) = &report.speed {
        let rate = |rate: &Spread| {
            format!("{:.0} tokens/s ({:.0} to {:.0})", rate.median, rate.min, rate.max)
        };
        lines.push(format!("speed           A {}", rate(&speed.a)));
        lines.push(format!("                B {}", rate(&speed.b)));
        lines.push(format!(
            "                B is {:.2} times A; {} of {} captions, {} tokens",
            speed.ratio,
            medians_of(speed.repeats, "pass", "passes"),
            speed.captions,
            speed.tokens
        ));
    }
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::batch::packing::TokenBatch;
    use crate::embed::EmbedError;

    /// The token 9 spoils a batch with others, the token 8 every batch, and 0 has a vector of
    /// zeros.
    struct Spoils;

    impl Embedder for Spoils {
        fn dim(&self) -> usize {
            2
        }

        fn embed(&mut self, batch: &TokenBatch) -> Result<Vec<f32>, EmbedError> {
            let has = |id| batch.token_ids.contains(&id);
            let number = match has(8) || (has(9) && batch.captions() > 1) {
                true => f32::NAN,
                false if has(0) => 0.0,
                false => 1.0,
            };
            Ok(vec![number; 2 * batch.captions()])
        }
    }

    /// Vectors of captions of three tokens each, on every second line.
    fn vectors_of(ids: &[u32]) -> anyhow::Result<Vectors> {
        let captions = ids.iter().enumerate().map(|(number, &id)| ComparedCaption {
            line: 2 * number + 1,
            text: String::new(),
            ids: vec![id; 3],
        });
        let captions: Vec<_> = captions.collect();
        let limits = Limits { tokens_max: 12, captions_max: 9, wait_max: Duration::ZERO };
        vectors("model@1", &mut Spoils, "embedding", &captions, limits)
    }

    #[test]
    fn a_caption_that_spoils_its_batch_is_the_one_that_is_named() {
        let error = vectors_of(&[7, 7, 7, 7, 7, 7, 8, 7]).unwrap_err();
        let said = format!("{error:#}");
        assert!(said.starts_with("model@1: the vector of line 13 has"), "{said}");
        let said = vectors_of(&[7, 7, 7, 7, 0]).unwrap_err().to_string();
        assert!(said.starts_with("model@1: the vector of line 9 is zero"), "{said}");
    }

    #[test]
    fn captions_that_are_spoilt_by_their_company_have_the_vectors_that_they_have_alone() {
        let vectors = vectors_of(&[7, 7, 7, 7, 7, 9, 7]).unwrap();
        assert_eq!(vectors.rows(), 7);
        assert!((0..7).all(|row| vectors.row(row) == [1.0, 1.0]));
    }
}

//! `capvec bench encoder`: the network alone.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use clap::Args;
use clap::builder::RangedU64ValueParser;
use serde::Serialize;

use super::captions::{self, CaptionArgs};
use super::chart::{Chart, Scale, Series};
use super::flops::Flops;
use super::matmul::MatrixProducts;
use super::offline::{self, Policy};
use super::report::{ReportArgs, Table, percent};
use crate::batch::packing::TokenBatch;
use crate::batch::policy::{Decision, Limits};
use crate::cli::network::{RuntimeArgs, threads};
use crate::cli::progress::{LongWork, Unit};
use crate::cli::spread::{Spread, medians_of};
use crate::config;
use crate::embed::calibration::TOKENS_UNMEASURED;
use crate::embed::load::threads_of_one;
use crate::embed::onnx::{OnnxEmbedder, Settings};
use crate::embed::{Embedder, library};
use crate::model::package::Package;

/// A place of the grid is measured for at least this long each time, and for one batch.
const MEASURE: Duration = Duration::from_millis(500);

/// Tokens of the largest batch: more than fit into a device's memory.
const TOKENS_MAX: u64 = 1 << 20;

/// Batches made for a place of the grid; they are measured round and round.
const BATCHES: usize = 64;

/// How long packed batches run each time beside padded ones, about.
const POLICY_SECONDS: f64 = 1.0;

/// Captions that the two are compared over: a few batches on the slowest machine, and no more than
/// fit into memory on the fastest.
const POLICY_CAPTIONS: (usize, usize) = (128, 1 << 16);

/// Arguments of `capvec bench encoder`.
#[derive(Debug, Args)]
pub struct EncoderArgs {
    /// The model package.
    #[arg(long, value_name = "PACKAGE")]
    model: PathBuf,
    #[command(flatten)]
    captions: CaptionArgs,
    /// Most tokens of a batch, one after the other.
    #[arg(
        long,
        value_name = "N,N,...",
        value_delimiter = ',',
        default_value = "16,64,128,320,512,1024,2048",
        value_parser = RangedU64ValueParser::<usize>::new().range(1..=TOKENS_MAX)
    )]
    tokens: Vec<usize>,
    /// Compute threads; 0 takes as many as the process may use CPUs.
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = threads())]
    threads: usize,
    #[command(flatten)]
    runtime: RuntimeArgs,
    #[command(flatten)]
    report: ReportArgs,
}

/// What is printed as JSON.
#[derive(Debug, Serialize)]
struct EncoderReport {
    bench: &'static str,
    model: String,
    device: String,
    /// Of a GPU: nodes of the graph that ran on the CPU.
    nodes_on_cpu: Vec<String>,
    threads: usize,
    repeats: u32,
    matrix_product_gflops: Spread,
    grid: Vec<Place>,
    policies: Policies,
}

/// A place of the grid.
#[derive(Debug, Serialize)]
struct Place {
    tokens_max: usize,
    mix: &'static str,
    /// Tokens of a batch, on average.
    batch_tokens: f64,
    /// The share of attention's slots that have a token.
    fill: f64,
    tokens_per_second: Spread,
    captions_per_second: Spread,
    gflops: Spread,
    /// Of the machine's rate of matrix products, each time measured just before and after.
    share: Spread,
}

/// Packed batches beside padded ones.
#[derive(Debug, Serialize)]
struct Policies {
    captions: usize,
    tokens_max: usize,
    packed_captions_per_second: Spread,
    padded_captions_per_second: Spread,
    padding_share: f64,
    packed_over_padded: Spread,
}

/// Captions of which a batch is made of each budget.
struct Mix {
    name: &'static str,
    captions: Vec<Vec<u32>>,
}

/// A place of the grid while it is measured.
struct Cell {
    tokens_max: usize,
    mix: &'static str,
    batches: Vec<(TokenBatch, f64)>,
    /// The batch with which the next measurement begins.
    next: usize,
    /// Each with the machine's rate of matrix products around it.
    runs: Vec<(Run, f64)>,
}

/// One measurement of a place.
#[derive(Clone, Copy)]
struct Run {
    tokens_per_second: f64,
    captions_per_second: f64,
    flops: f64,
}

/// Measures.
///
/// # Errors
///
/// When the package, the captions or ONNX Runtime can't be used.
pub fn run(args: &EncoderArgs) -> anyhow::Result<()> {
    args.report.check()?;
    let package = Package::open(&args.model)?;
    let network = &package.manifest.network;
    let mixes = mixes(args, &package)?;
    let threads = threads_of_one(args.threads);
    let mut embedder = args.runtime.load(&package, threads)?;
    let library = library::find(args.runtime.onnxruntime.as_deref(), &args.runtime.device)?;
    let device = embedder.device();
    let settings = Settings { library: &library, device, threads, device_bytes_max: 0 };
    let mut machine = MatrixProducts::load(&settings, package.manifest.precision)?;

    let flops = Flops::of(network);
    let mut cells: Vec<Cell> = mixes
        .iter()
        .flat_map(|mix| args.tokens.iter().map(|&tokens| Cell::new(mix, tokens, &flops)))
        .collect();
    let mut comparison = Comparison::new(&mut embedder, &mixes[0].captions)?;
    let repeats = args.report.repeats();
    let mut machine_flops = Vec::new();
    let mut progress = LongWork::start("bench encoder", Unit::Measurements, None);
    let total = u64::from(repeats) * (cells.len() as u64 + 1);
    let mut done = 0;
    for _ in 0..repeats {
        for cell in &mut cells {
            progress.update(done, total, &format!("{}, {} tokens", cell.mix, cell.tokens_max));
            // A machine's rate changes within seconds, with its clock and its neighbours.
            let before = machine.measure()?;
            let run = cell.measure(&mut embedder)?;
            let flops = (before + machine.measure()?) / 2.0;
            machine_flops.push(flops);
            cell.runs.push((run, flops));
            done += 1;
        }
        progress.update(done, total, "packed and padded");
        comparison.measure(&mut embedder)?;
        done += 1;
    }
    progress.update(total, total, "");
    progress.finish();

    let report = EncoderReport {
        bench: "encoder",
        model: package.manifest.model_id.clone(),
        device: device.to_string(),
        nodes_on_cpu: embedder.nodes_on_cpu().to_vec(),
        threads,
        repeats,
        matrix_product_gflops: Spread::of(machine_flops.iter().map(|flops| flops / 1e9)),
        grid: cells.iter().map(Cell::place).collect(),
        policies: comparison.policies(),
    };
    args.report.publish(&report, &report.text(), || report.chart())
}

/// Returns the mixes of lengths; the first is the one of captions.
fn mixes(args: &EncoderArgs, package: &Package) -> anyhow::Result<Vec<Mix>> {
    let manifest = &package.manifest;
    let (max_tokens, vocabulary) = (manifest.max_tokens, manifest.network.vocabulary);
    let plain = if args.captions.is_given() {
        args.captions.read(&package.tokenizer()?)?.into_iter().map(|caption| caption.ids).collect()
    } else {
        captions::made_up(max_tokens, vocabulary)?
    };
    let long = captions::with_long(&plain, max_tokens, vocabulary)?;
    let random = captions::any_length(max_tokens, vocabulary)?;
    let mixes = [("captions", plain), ("long", long), ("random", random)];
    Ok(mixes.map(|(name, captions)| Mix { name, captions }).into())
}

impl Cell {
    /// Cuts batches from the captions in their order, round and round: a large batch takes more
    /// than there may be.
    fn new(mix: &Mix, tokens_max: usize, flops: &Flops) -> Cell {
        let limits = Limits { tokens_max, captions_max: usize::MAX, wait_max: Duration::ZERO };
        let mut batches = Vec::new();
        let mut next = 0;
        while batches.len() < BATCHES && next < mix.captions.len() {
            // More of them than a batch can have, so that it is full.
            let ahead = mix.captions.iter().cycle().skip(next).take(tokens_max + 1);
            let Decision::Cut { captions, .. } =
                limits.decide(ahead.map(Vec::len), Duration::ZERO, None)
            else {
                break;
            };
            let batch: Vec<&[u32]> =
                mix.captions.iter().cycle().skip(next).take(captions).map(Vec::as_slice).collect();
            let operations = batch.iter().map(|ids| flops.of_caption(ids.len())).sum();
            batches.push((TokenBatch::pack(batch), operations));
            next += captions;
        }
        Cell { tokens_max, mix: mix.name, batches, next: 0, runs: Vec::new() }
    }

    fn measure(&mut self, embedder: &mut OnnxEmbedder) -> anyhow::Result<Run> {
        if self.runs.is_empty() {
            // The first of a size makes room in ONNX Runtime's memory.
            embedder.embed(&self.batches[0].0)?;
        }
        let (mut tokens, mut captions, mut operations) = (0, 0, 0.0);
        let started = Instant::now();
        // Where the last time ended: a time may be over before all are through.
        for (batch, flops) in self.batches.iter().cycle().skip(self.next) {
            embedder.embed(batch)?;
            self.next = (self.next + 1) % self.batches.len();
            tokens += batch.tokens();
            captions += batch.captions();
            operations += flops;
            if started.elapsed() >= MEASURE {
                break;
            }
        }
        let seconds = started.elapsed().as_secs_f64();
        Ok(Run {
            tokens_per_second: tokens as f64 / seconds,
            captions_per_second: captions as f64 / seconds,
            flops: operations / seconds,
        })
    }

    fn place(&self) -> Place {
        let tokens: usize = self.batches.iter().map(|(batch, _)| batch.tokens()).sum();
        let slots: usize = self.batches.iter().map(|(batch, _)| batch.slot_tokens.len()).sum();
        let spread = |of: fn(&Run) -> f64| Spread::of(self.runs.iter().map(|(run, _)| of(run)));
        Place {
            tokens_max: self.tokens_max,
            mix: self.mix,
            batch_tokens: tokens as f64 / self.batches.len() as f64,
            fill: tokens as f64 / slots as f64,
            tokens_per_second: spread(|run| run.tokens_per_second),
            captions_per_second: spread(|run| run.captions_per_second),
            gflops: spread(|run| run.flops / 1e9),
            share: Spread::of(self.runs.iter().map(|(run, machine)| run.flops / machine)),
        }
    }
}

/// The two policies over the same captions.
struct Comparison {
    captions: Vec<Vec<u32>>,
    limits: Limits,
    packed: Vec<f64>,
    padded: Vec<f64>,
    padding_share: f64,
}

impl Comparison {
    /// Takes as many captions as the network embeds in that time, in whole padded batches.
    fn new(embedder: &mut OnnxEmbedder, captions: &[Vec<u32>]) -> anyhow::Result<Comparison> {
        let limits = Limits {
            tokens_max: TOKENS_UNMEASURED,
            captions_max: config::BatchOptions::default().captions_max.get(),
            wait_max: Duration::ZERO,
        };
        let policy = Policy::Packed(limits);
        let trial = offline::embed(&mut [embedder], captions, policy, |work| work.time >= MEASURE)?;
        let wanted = (trial.captions_per_second() * POLICY_SECONDS) as usize;
        let (least, most) = POLICY_CAPTIONS;
        let whole = wanted.div_ceil(offline::PADDED_CAPTIONS) * offline::PADDED_CAPTIONS;
        let captions = captions.iter().cycle().take(whole.clamp(least, most)).cloned().collect();
        let (packed, padded) = (Vec::new(), Vec::new());
        Ok(Comparison { captions, limits, packed, padded, padding_share: 0.0 })
    }

    fn measure(&mut self, embedder: &mut OnnxEmbedder) -> anyhow::Result<()> {
        let all = self.captions.len();
        let mut embed = |policy| {
            offline::embed(&mut [embedder], &self.captions, policy, |work| work.captions >= all)
        };
        self.packed.push(embed(Policy::Packed(self.limits))?.captions_per_second());
        let padded = embed(Policy::Padded)?;
        self.padded.push(padded.captions_per_second());
        self.padding_share = padded.padding_share();
        Ok(())
    }

    fn policies(&self) -> Policies {
        let ratios = self.packed.iter().zip(&self.padded).map(|(packed, padded)| packed / padded);
        Policies {
            captions: self.captions.len(),
            tokens_max: self.limits.tokens_max,
            packed_captions_per_second: Spread::of(self.packed.iter().copied()),
            padded_captions_per_second: Spread::of(self.padded.iter().copied()),
            padding_share: self.padding_share,
            packed_over_padded: Spread::of(ratios),
        }
    }
}

impl EncoderReport {
    fn text(&self) -> String {
        let mut table = Table::new(&[
            "mix",
            "budget",
            "batch",
            "tokens/s",
            "captions/s",
            "GFLOP/s",
            "share",
            "fill",
        ]);
        for place in &self.grid {
            table.row([
                place.mix.into(),
                place.tokens_max.to_string(),
                format!("{:.0}", place.batch_tokens),
                format!("{:.0}", place.tokens_per_second.median),
                format!("{:.1}", place.captions_per_second.median),
                format!("{:.1}", place.gflops.median),
                percent(place.share.median),
                percent(place.fill),
            ]);
        }
        let policies = &self.policies;
        format!(
            "{model}, {device}, {threads} threads, {medians}\n\n{table}\n\
             matrix products: {gflops:.1} GFLOP/s, of which `share` is a share\n\
             packed, {tokens_max} tokens: {packed:.1} captions/s; padded, 32 captions: {padded:.1} \
             captions/s, {padding} of its tokens fill up\n\
             packed / padded: {ratio:.2} ({min:.2} to {max:.2})",
            model = self.model,
            device = self.device,
            threads = self.threads,
            medians = medians_of(self.repeats as usize, "run", "runs"),
            gflops = self.matrix_product_gflops.median,
            tokens_max = policies.tokens_max,
            packed = policies.packed_captions_per_second.median,
            padded = policies.padded_captions_per_second.median,
            padding = percent(policies.padding_share),
            ratio = policies.packed_over_padded.median,
            min = policies.packed_over_padded.min,
            max = policies.packed_over_padded.max,
        )
    }

    fn chart(&self) -> Chart {
        let mut series: Vec<Series> = Vec::new();
        for place in &self.grid {
            let point = (place.tokens_max as f64, place.tokens_per_second.median);
            match series.iter_mut().find(|line| line.name == place.mix) {
                Some(line) => line.points.push(point),
                None => series.push(Series { name: place.mix.into(), points: vec![point] }),
            }
        }
        Chart {
            title: format!("Forward passes of {}", self.model),
            x_label: "most tokens of a batch".into(),
            y_label: "tokens a second".into(),
            x_scale: Scale::Doubling,
            series,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::synth::Preset;

    #[test]
    fn batches_are_full_however_few_captions_there_are() {
        let flops = Flops::of(&Preset::Tiny.network());
        let mix = Mix { name: "captions", captions: vec![vec![1; 20]; 10] };
        let tokens = |tokens_max| -> Vec<usize> {
            let cell = Cell::new(&mix, tokens_max, &flops);
            cell.batches.iter().map(|(batch, _)| batch.tokens()).collect()
        };
        assert_eq!(tokens(1000), [1000]);
        assert_eq!(tokens(70), [60; 4]);
        assert_eq!(tokens(5), [20; 10]);
    }
}

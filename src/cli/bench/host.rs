//! `capvec bench host`: all but the network. The worker with the hash embedder, beside a bare
//! client that moves the same bytes; each in a process of its own, so that its CPU time is only its
//! own.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use clap::Args;
use serde::Serialize;

use super::captions::{BenchCaption, CaptionArgs};
use super::chart::{Chart, Scale, Series};
use super::cluster::{Cluster, ClusterArgs, OutputEnds};
use super::feed::Feed;
use super::process::Process;
use super::relay::values;
use super::report::{ReportArgs, Table};
use crate::cli::Interrupted;
use crate::cli::progress::{LongWork, Unit};
use crate::cli::spread::{Spread, medians_of};
use crate::model::package::Package;
use crate::model::synth::{Synthesis, synthesize};
use crate::shutdown::{Shutdown, Wanted};
use crate::wire::vector::VectorFormat;

/// Captions that the embedded broker gets ahead of its reader, and their bytes: what it keeps.
const AHEAD_MAX: u64 = 20_000;
const AHEAD_BYTES_MAX: u64 = 8 << 20;

/// Captions sent between two looks at how far the reader is.
const SEND_BURST: u64 = 2_000;

/// Between two looks.
const TICK: Duration = Duration::from_millis(20);

/// How long nothing may come out.
const STALL: Duration = Duration::from_secs(60);

/// How often one run is tried, where a busy broker says too late how far it is.
const TRIES: usize = 3;

/// CPU time is counted in hundredths of a second; fewer captions would be a matter of luck.
const MESSAGES_MIN: u64 = 100;

/// More than anybody waits for.
const MESSAGES_MAX: u64 = 1_000_000_000;

/// Arguments of `capvec bench host`.
#[derive(Debug, Args)]
pub struct HostArgs {
    #[command(flatten)]
    cluster: ClusterArgs,
    #[command(flatten)]
    captions: CaptionArgs,
    /// A model package, for its tokenizer; without one, a tiny one that knows single characters.
    #[arg(long, value_name = "PACKAGE")]
    model: Option<PathBuf>,
    /// Captions that go through either, each time.
    #[arg(
        long,
        value_name = "N",
        default_value_t = 100_000,
        value_parser = clap::value_parser!(u64).range(MESSAGES_MIN..=MESSAGES_MAX)
    )]
    messages: u64,
    /// The format of the vectors.
    #[arg(long, value_enum, default_value_t = VectorFormat::Native)]
    format: VectorFormat,
    #[command(flatten)]
    report: ReportArgs,
}

/// What is printed as JSON.
#[derive(Debug, Serialize)]
struct HostReport {
    bench: &'static str,
    brokers: String,
    format: VectorFormat,
    messages: u64,
    repeats: u32,
    mean_tokens: f64,
    value_bytes: usize,
    worker: Side,
    bare_client: Side,
    cpu_ratio: Spread,
}

/// What one of the two took.
#[derive(Debug, Serialize)]
struct Side {
    cpu_us_per_caption: Spread,
    captions_per_second: Spread,
    runs: Vec<Sample>,
}

/// One run.
#[derive(Clone, Copy, Debug, Serialize)]
struct Sample {
    cpu_us_per_caption: f64,
    captions_per_second: f64,
}

/// What every run needs.
struct Bench<'a> {
    args: &'a HostArgs,
    package: Package,
    captions: Vec<BenchCaption>,
    shutdown: Shutdown,
}

/// Measures.
///
/// # Errors
///
/// When brokers, captions or the package can't be used, or a run fails.
pub fn run(args: &HostArgs) -> anyhow::Result<()> {
    args.report.check()?;
    let folder = tempfile::tempdir()?;
    let package = match &args.model {
        Some(package) => package.clone(),
        None => {
            let package = folder.path().join("model");
            synthesize(&Synthesis::tiny(0, &package), &mut |_| ())?;
            package
        }
    };
    let package = Package::open(&package)?;
    let tokenizer = package.tokenizer()?;
    let captions = args.captions.read(&tokenizer)?;
    let shutdown = Shutdown::default();
    shutdown.on_signals()?;
    let bench = Bench { args, package, captions, shutdown };

    let repeats = args.report.repeats();
    let total = 2 * u64::from(repeats);
    let mut progress = LongWork::start("bench host", Unit::Measurements, Some(total));
    let (mut worker, mut bare) = (Vec::new(), Vec::new());
    for repeat in 0..u64::from(repeats) {
        progress.update(2 * repeat, total, "the worker");
        worker.push(bench.sample(true).context("the worker")?);
        progress.update(2 * repeat + 1, total, "the bare client");
        bare.push(bench.sample(false).context("the bare client")?);
    }
    progress.update(total, total, "");
    progress.finish();

    let ratios = worker.iter().zip(&bare).map(|(w, b)| w.cpu_us_per_caption / b.cpu_us_per_caption);
    let tokens: usize = bench.captions.iter().map(|caption| caption.ids.len()).sum();
    let manifest = &bench.package.manifest;
    let values = values(args.format, manifest.network.dim, &manifest.model_id);
    let report = HostReport {
        bench: "host",
        brokers: args.cluster.brokers.clone().unwrap_or_else(|| "embedded".into()),
        format: args.format,
        messages: args.messages,
        repeats,
        mean_tokens: tokens as f64 / bench.captions.len() as f64,
        value_bytes: values.iter().map(Vec::len).sum::<usize>() / values.len(),
        cpu_ratio: Spread::of(ratios),
        worker: Side::of(worker),
        bare_client: Side::of(bare),
    };
    args.report.publish(&report, &report.text(), || report.chart())
}

impl Bench<'_> {
    /// Measures the worker or the bare client.
    fn sample(&self, is_worker: bool) -> anyhow::Result<Sample> {
        for _ in 0..TRIES {
            if let Some(sample) = self.measure(is_worker)? {
                return Ok(sample);
            }
        }
        bail!(
            "{TRIES} times most of {} messages were through before a tenth of them was seen to be, or \
             within a hundredth of a second of CPU time: raise --messages",
            self.args.messages
        )
    }

    /// Runs the worker or the bare client over all captions, on topics of their own; `None` where
    /// nothing was seen of it between its start and its end.
    fn measure(&self, is_worker: bool) -> anyhow::Result<Option<Sample>> {
        let args = self.args;
        let folder = tempfile::tempdir()?;
        let mut cluster = Cluster::new(&args.cluster)?;
        let options = [
            ("model.package", self.package.path.display().to_string()),
            ("embed.embedder", "hash".into()),
            ("output.format", args.format.as_str().into()),
        ];
        let config = cluster.config(&options, &args.cluster)?;
        cluster.create_topics(&config, &self.shutdown)?;
        let mut feed = Feed::new(&config, 5)?;
        let ahead = match cluster.is_embedded() {
            true => AHEAD_MAX.min(AHEAD_BYTES_MAX / self.mean_bytes()).max(1),
            false => args.messages,
        };
        self.feed(&mut feed, ahead.min(args.messages))?;
        feed.flush()?;

        let mut arguments: Vec<String> = match is_worker {
            true => vec!["run".into()],
            false => vec![
                "bench".into(),
                "relay".into(),
                format!("--model-id={}", self.package.manifest.model_id),
                format!("--dim={}", self.package.manifest.network.dim),
            ],
        };
        for (path, value) in cluster.options(&options, &args.cluster) {
            arguments.push("--set".into());
            arguments.push(format!("{path}={value}"));
        }
        let ends = OutputEnds::new(&config)?;
        let mut process = Process::start(&arguments, folder.path())?;

        // Neither the start nor the tail: the last transaction of exactly-once delivery waits for
        // its interval.
        let margin = args.messages / 10;
        let mut first = None;
        let (mut seen, mut moved) = (0, Instant::now());
        loop {
            // First: a Ctrl-C on the terminal ends the process too.
            ensure!(self.shutdown.wanted() == Wanted::Run, Interrupted);
            process.check()?;
            let through = ends.records()?;
            let now = (Instant::now(), process.cpu_seconds()?, through);
            if through != seen {
                (seen, moved) = (through, now.0);
            } else if moved.elapsed() > STALL {
                let log = process.last_lines();
                bail!("{through} of {} captions, and no more for {STALL:?}:\n{log}", args.messages);
            }
            match first {
                None if through >= margin.max(1) => first = Some(now),
                Some((began, cpu, already)) if through >= args.messages - margin => {
                    let (captions, cpu_seconds) = ((through - already) as f64, now.1 - cpu);
                    let is_seen = captions > 0.0 && cpu_seconds > 0.0;
                    return Ok(is_seen.then(|| Sample {
                        cpu_us_per_caption: cpu_seconds * 1e6 / captions,
                        captions_per_second: captions / (now.0 - began).as_secs_f64(),
                    }));
                }
                _ => {}
            }
            if feed.sent() < args.messages {
                let until = args.messages.min(through + ahead);
                let burst = feed.sent() + SEND_BURST;
                self.feed(&mut feed, until.min(burst))?;
            }
            std::thread::sleep(TICK);
        }
    }

    /// Sends captions until so many are sent.
    fn feed(&self, feed: &mut Feed, until: u64) -> anyhow::Result<()> {
        while feed.sent() < until {
            let caption = &self.captions[feed.sent() as usize % self.captions.len()];
            feed.send(&caption.text)?;
        }
        Ok(())
    }

    fn mean_bytes(&self) -> u64 {
        let bytes: usize = self.captions.iter().map(|caption| caption.text.len()).sum();
        // What a record has beside the caption.
        (bytes / self.captions.len()) as u64 + 100
    }
}

impl Side {
    fn of(runs: Vec<Sample>) -> Side {
        Side {
            cpu_us_per_caption: Spread::of(runs.iter().map(|run| run.cpu_us_per_caption)),
            captions_per_second: Spread::of(runs.iter().map(|run| run.captions_per_second)),
            runs,
        }
    }
}

impl HostReport {
    fn text(&self) -> String {
        let mut table = Table::new(&["", "CPU µs/caption", "min", "max", "captions/s"]);
        for (name, side) in [("worker", &self.worker), ("bare client", &self.bare_client)] {
            table.row([
                name.into(),
                format!("{:.1}", side.cpu_us_per_caption.median),
                format!("{:.1}", side.cpu_us_per_caption.min),
                format!("{:.1}", side.cpu_us_per_caption.max),
                format!("{:.0}", side.captions_per_second.median),
            ]);
        }
        format!(
            "{} captions of {:.1} tokens on {} brokers, {} values of {} bytes, {}\n\n\
             {table}\nworker / bare client: {:.2} of the CPU time ({:.2} to {:.2})",
            self.messages,
            self.mean_tokens,
            self.brokers,
            self.format.as_str(),
            self.value_bytes,
            medians_of(self.repeats as usize, "run", "runs"),
            self.cpu_ratio.median,
            self.cpu_ratio.min,
            self.cpu_ratio.max,
        )
    }

    fn chart(&self) -> Chart {
        let line = |name: &str, side: &Side| {
            let values = side.runs.iter().map(|run| run.cpu_us_per_caption);
            let points = values.enumerate().map(|(index, us)| (index as f64 + 1.0, us)).collect();
            Series { name: name.into(), points }
        };
        Chart {
            title: "CPU time without the network".into(),
            x_label: "run".into(),
            y_label: "µs a caption".into(),
            x_scale: Scale::Linear,
            series: vec![line("worker", &self.worker), line("bare client", &self.bare_client)],
        }
    }
}

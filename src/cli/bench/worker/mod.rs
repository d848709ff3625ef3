//! `capvec bench worker`: the whole worker, in this process.
//!
//! Closed loop first: captions always wait, and what comes out is the worker's rate, beside the
//! same network over the same captions without Kafka. Then open loads at shares of that rate:
//! captions are due by a schedule that is fixed beforehand, and a caption's latency counts from
//! when it was due.

mod measurements;
mod passes;
mod reader;
mod report;
mod rig;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::ensure;
use clap::{Args, ValueEnum};

use super::arrivals::{self, Span, schedule};
use super::captions::{BenchCaption, CaptionArgs, with_long_texts};
use super::cluster::{Cluster, ClusterArgs};
use super::offline::{self, Policy, Work};
use super::report::ReportArgs;
use crate::batch::policy::Limits;
use crate::cli::Interrupted;
use crate::cli::progress::{LongWork, Unit};
use crate::config::{Config, EmbedderKind};
use crate::embed::Embedder;
use crate::embed::load::{OnDevice, load};
use crate::model::package::Package;
use crate::shutdown::{Shutdown, Wanted};
use measurements::{LoadRuns, Measurements};
use passes::Passes;
use report::WorkerReport;
use rig::{Embedding, Rig};

/// The open loads of the scenario `open`, as shares of the closed loop's rate.
const LOADS: [f64; 4] = [0.1, 0.5, 0.8, 0.95];

/// The mean load of bursts.
const BURSTS_LOAD: f64 = 0.5;

/// The loads before and after a step.
const STEP_LOADS: (f64, f64) = (0.3, 0.9);

/// Captions are repeated up to here, for batches not to end with the list.
const CAPTIONS_MIN: usize = 4096;

/// Arguments of `capvec bench worker`.
#[derive(Debug, Args)]
pub struct WorkerArgs {
    /// The model package.
    #[arg(long, value_name = "PACKAGE")]
    model: PathBuf,
    #[command(flatten)]
    cluster: ClusterArgs,
    #[command(flatten)]
    captions: CaptionArgs,
    /// The length of a phase.
    #[arg(long, value_name = "N", default_value_t = 10.0, value_parser = seconds)]
    seconds: f64,
    /// What is measured; may be repeated. All of it by default.
    #[arg(long, value_enum, value_delimiter = ',')]
    scenario: Vec<Scenario>,
    #[command(flatten)]
    report: ReportArgs,
}

/// What can be measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Scenario {
    /// Throughput, beside the network without Kafka.
    Closed,
    /// Latency at 10, 50, 80 and 95 % of the throughput.
    Open,
    /// Latency at 50 % on average, in bursts of a second at 150 %.
    Bursts,
    /// Latency at 30 %, then at 90 %.
    Step,
    /// Throughput with 5 % long captions.
    Long,
}

fn seconds(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(seconds) if (0.1..=3600.0).contains(&seconds) => Ok(seconds),
        _ => Err("0.1 to 3600 seconds are due".into()),
    }
}

/// Measures.
///
/// # Errors
///
/// When brokers, captions or the package can't be used, or the worker fails.
pub fn run(args: &WorkerArgs) -> anyhow::Result<()> {
    args.report.check()?;
    let package = Package::open(&args.model)?;
    let max_tokens = package.manifest.max_tokens;
    let tokenizer = package.tokenizer()?;
    let captions = args.captions.read(&tokenizer)?;
    let count = captions.len().max(CAPTIONS_MIN);
    let captions: Vec<BenchCaption> = captions.into_iter().cycle().take(count).collect();
    let long = match args.wants(&[Scenario::Long]) {
        true => with_long_texts(&captions, &tokenizer, max_tokens)?,
        false => Vec::new(),
    };

    let shutdown = Shutdown::default();
    shutdown.on_signals()?;
    let mut cluster = Cluster::new(&args.cluster)?;
    let options = [("model.package", args.model.display().to_string())];
    let config = cluster.config(&options, &args.cluster)?;
    ensure!(
        config.embed.embedder == EmbedderKind::Onnx,
        "embed.embedder is another than onnx: `capvec bench host` measures without a network"
    );
    cluster.create_topics(&config, &shutdown)?;
    let rig = Rig::start(cluster, &config, shutdown.clone()).map_err(|error| {
        // A worker that is told to stop before it runs says so as an error of its own.
        if shutdown.wanted() == Wanted::Drain { anyhow::Error::new(Interrupted) } else { error }
    })?;
    let mut bench = Bench::new(args, config, rig, &package, captions, long)?;
    let measured = bench.measure();
    // What the worker has to say comes first: the rest is a consequence.
    bench.rig.stop()?;
    let report = bench.report(measured?, &package);
    args.report.publish(&report, &report.text(), || report.chart())
}

impl WorkerArgs {
    /// Returns whether one of these is to be measured.
    fn wants(&self, any_of: &[Scenario]) -> bool {
        self.scenario.is_empty() || any_of.iter().any(|one| self.scenario.contains(one))
    }

    fn window(&self) -> Duration {
        Duration::from_secs_f64(self.seconds)
    }

    /// Returns the open loads that are wanted: the name, the mean load, and the rates by time, for
    /// a worker of this rate.
    fn loads(&self, rate: f64) -> Vec<(String, f64, Vec<Span>)> {
        let mut loads = Vec::new();
        if self.wants(&[Scenario::Open]) {
            loads.extend(LOADS.map(|load| {
                let name = format!("steady {:.0} %", 100.0 * load);
                (name, load, arrivals::steady(load * rate, self.window()))
            }));
        }
        if self.wants(&[Scenario::Bursts]) {
            let spans = arrivals::bursts(BURSTS_LOAD * rate, self.window());
            loads.push((format!("bursts {:.0} %", 100.0 * BURSTS_LOAD), BURSTS_LOAD, spans));
        }
        if self.wants(&[Scenario::Step]) {
            let (before, after) = STEP_LOADS;
            let spans = arrivals::step(before * rate, after * rate, self.window());
            loads.push((STEP.into(), (before + after) / 2.0, spans));
        }
        loads
    }
}

/// The name of the load that is shown in its two halves.
const STEP: &str = "step";

/// Everything at work.
struct Bench<'a> {
    args: &'a WorkerArgs,
    rig: Rig,
    embedders: Vec<OnDevice>,
    limits: Limits,
    captions: Vec<BenchCaption>,
    long: Vec<BenchCaption>,
    ids: Vec<Vec<u32>>,
}

impl<'a> Bench<'a> {
    fn new(
        args: &'a WorkerArgs,
        mut config: Config,
        rig: Rig,
        package: &Package,
        captions: Vec<BenchCaption>,
        long: Vec<BenchCaption>,
    ) -> anyhow::Result<Bench<'a>> {
        // As the worker has it, which may have been measured at its start.
        let Embedding { sessions, threads, tokens_max } = rig.embedding();
        (config.embed.sessions, config.embed.threads) = (sessions, threads);
        config.batch.tokens_max = tokens_max;
        let embedders = load(&config, package)?.embedders;
        let captions_max = config.batch.captions_max.get();
        let limits = Limits { tokens_max, captions_max, wait_max: Duration::ZERO };
        let ids = captions.iter().map(|caption| caption.ids.clone()).collect();
        let mut bench = Bench { args, rig, embedders, limits, captions, long, ids };
        let trial = bench.offline(Policy::Packed(limits), Duration::from_millis(500))?;
        bench.rig.expect(trial.captions_per_second());
        Ok(bench)
    }

    fn measure(&mut self) -> anyhow::Result<Measurements> {
        let args = self.args;
        let repeats = args.report.repeats();
        let needs_rate = [Scenario::Closed, Scenario::Open, Scenario::Bursts, Scenario::Step];
        let (closed, long) = (args.wants(&[Scenario::Closed]), args.wants(&[Scenario::Long]));
        let of_repeat = usize::from(args.wants(&needs_rate))
            + 2 * usize::from(closed)
            + args.loads(0.0).len()
            + 2 * usize::from(long);
        let mut steps = Steps::new(of_repeat as u64 * u64::from(repeats));
        let mut measured = Measurements::default();
        let first = self.embedders[0].embedder.as_mut();
        measured.passes = Passes::measure(first, &self.ids)?;

        for _ in 0..repeats {
            if args.wants(&needs_rate) {
                steps.next("closed loop, the worker");
                measured.worker.push(self.rig.closed(&self.captions, args.window())?);
            }
            if closed {
                steps.next("closed loop, offline packed");
                measured.packed.push(self.offline(Policy::Packed(self.limits), args.window())?);
                steps.next("closed loop, offline padded");
                measured.padded.push(self.offline(Policy::Padded, args.window())?);
            }
        }
        let rate = measured.rate();
        for seed in 0..repeats {
            for (index, (name, load, spans)) in args.loads(rate).into_iter().enumerate() {
                steps.next(&format!("open loop, {name}"));
                let due = schedule(&spans, u64::from(seed));
                let latencies = self.rig.open(&self.captions, &due)?;
                if measured.loads.len() == index {
                    let is_step = name == STEP;
                    measured.loads.push(LoadRuns { name, load, is_step, runs: Vec::new() });
                }
                measured.loads[index].runs.push(latencies);
            }
        }
        for _ in 0..if long { repeats } else { 0 } {
            steps.next("closed loop, plain captions");
            measured.plain.push(self.rig.closed(&self.captions, args.window())?);
            steps.next("closed loop, 5 % long captions");
            measured.long.push(self.rig.closed(&self.long, args.window())?);
        }
        steps.finish();
        Ok(measured)
    }

    fn report(&self, measured: Measurements, package: &Package) -> WorkerReport {
        let (args, embedding) = (self.args, self.rig.embedding());
        WorkerReport {
            bench: "worker",
            model: package.manifest.model_id.clone(),
            brokers: args.cluster.brokers.clone().unwrap_or_else(|| "embedded".into()),
            sessions: embedding.sessions,
            threads: embedding.threads,
            tokens_max: embedding.tokens_max,
            repeats: args.report.repeats(),
            seconds: args.seconds,
            alone: measured.passes.alone(),
            closed: measured.closed(),
            loads: measured.loads(args.window()),
            long: measured.long(&self.captions, &self.long),
        }
    }

    fn offline(&mut self, policy: Policy, window: Duration) -> anyhow::Result<Work> {
        let mut embedders: Vec<&mut dyn Embedder> =
            self.embedders.iter_mut().map(|one| &mut *one.embedder as &mut dyn Embedder).collect();
        Ok(offline::embed(&mut embedders, &self.ids, policy, |work| work.time >= window)?)
    }
}

/// Shows which measurement is under way.
struct Steps {
    progress: LongWork,
    done: u64,
    total: u64,
}

impl Steps {
    fn new(total: u64) -> Steps {
        let progress = LongWork::start("bench worker", Unit::Measurements, Some(total));
        Steps { progress, done: 0, total }
    }

    fn next(&mut self, what: &str) {
        self.progress.update(self.done, self.total, what);
        self.done += 1;
    }

    fn finish(mut self) {
        self.progress.update(self.done, self.total, "");
        self.progress.finish();
    }
}

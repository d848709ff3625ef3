//! `capvec demo`: the whole worker at work, with nothing installed.
//!
//! A Kafka broker inside the process, a producer of captions in 63 languages, the worker as
//! `capvec run` runs it, and a reader of what comes out. At the end every message must be accounted
//! for, or the demo fails.

mod broker;
mod figures;
mod reader;
mod view;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use clap::{Args, value_parser};
use indicatif::HumanCount;

use crate::config::{Config, OutputFormat};
use crate::metrics::Metrics;
use crate::model::package::Existing;
use crate::model::synth::{Preset, synthesize};
use crate::pipeline::{self, Worker};
use crate::shutdown::{Shutdown, Wanted};
use broker::{Broker, Feed};
use figures::{Snapshot, show_ms};
use reader::{Reader, Tally};
use view::{Facts, Phase, View, counts};

/// Between two drawings of the view.
const TICK: Duration = Duration::from_millis(250);

/// How long the group may take to give the worker its partitions.
const ASSIGNMENT_TIMEOUT: Duration = Duration::from_secs(30);

/// How long nothing may be settled, or read, before the demo gives up waiting for the rest.
const STALL: Duration = Duration::from_secs(30);

/// Arguments of `capvec demo`.
#[derive(Debug, Args)]
pub struct DemoArgs {
    /// How long captions are produced.
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = value_parser!(u64).range(1..=3600))]
    seconds: u64,
    /// Captions produced a second. Where the worker is slower, the producer waits for it.
    #[arg(
        long,
        value_name = "CAPTIONS_PER_SECOND",
        default_value_t = 200,
        value_parser = value_parser!(u64).range(1..=100_000)
    )]
    rate: u64,
    /// A model package; without one, a tiny network with random weights.
    #[arg(long, value_name = "PACKAGE")]
    model: Option<PathBuf>,
    /// ONNX Runtime's library, where it isn't found by itself.
    #[arg(long, value_name = "FILE")]
    onnxruntime: Option<PathBuf>,
    /// Where /metrics, /livez and /readyz are served; port 0 takes a free one.
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:0")]
    admin: SocketAddr,
}

/// How the demo ended, for the summary and for the check.
struct Ending {
    /// Messages that the broker took.
    produced: u64,
    /// Of them, those before the group's committed offsets.
    committed: u64,
    /// Whether it was stopped before its time.
    interrupted: bool,
}

/// Runs the demo.
///
/// # Errors
///
/// When a part of it fails, or a message isn't accounted for.
pub fn run(args: &DemoArgs) -> anyhow::Result<()> {
    let mut view = View::start();
    let shutdown = Shutdown::default();
    shutdown.on_signals()?;
    // First, for clients outlive no broker: what is declared last is dropped first.
    let broker = Broker::start()?;
    let folder = tempfile::tempdir()?;
    let package = match &args.model {
        Some(package) => package.clone(),
        None => {
            let package = folder.path().join("model");
            synthesize(Preset::Tiny, 0, None, &package, Existing::Keep, &mut |_| ())?;
            view.say("no --model: making a tiny one with random weights, whose vectors mean nothing");
            package
        }
    };
    let config = config(args, &broker, &package);
    let worker = pipeline::start(&config, &shutdown)?;
    let facts = Facts {
        model_id: worker.model_id().into(),
        is_synthetic: args.model.is_none() || worker.model_id().starts_with("synthetic-"),
        admin: worker.admin(),
        batch_tokens_max: config.batch.tokens_max.get(),
        in_flight_max: config.delivery.in_flight_captions_max.get(),
    };
    view.say("joining the consumer group; the embedded broker waits 3 s for other members");
    let metrics = worker.metrics().clone();
    await_assignment(&metrics, &shutdown)?;

    let reader = Reader::start(&broker)?;
    let feed = Feed::start(&broker, args.rate, metrics.source.clone())?;
    let first = Snapshot::take(&feed, &reader, &metrics);
    let mut show = |feed: &Feed, phase| {
        let now = Snapshot::take(feed, &reader, &metrics);
        view.show(&facts, &now, &reader, phase);
        now
    };

    let until = Instant::now() + Duration::from_secs(args.seconds);
    while shutdown.wanted() == Wanted::Run && !feed.has_ended() && Instant::now() < until {
        show(&feed, Phase::Producing(until.saturating_duration_since(Instant::now())));
        sleep(TICK.min(until.saturating_duration_since(Instant::now())));
    }
    let interrupted = shutdown.wanted() != Wanted::Run;
    feed.stop();
    await_progress(|| {
        let now = show(&feed, Phase::Settling);
        let is_over = now.settled >= now.produced && feed.has_ended();
        (shutdown.wanted() != Wanted::Run || is_over, now.settled)
    });
    let last = Snapshot::take(&feed, &reader, &metrics);
    shutdown.drain();
    let ended = end(worker, || drop(show(&feed, Phase::Draining)));
    view.finish();
    ended?;

    let ending = Ending { produced: feed.finish()?, committed: broker.committed()?, interrupted };
    await_progress(|| {
        let total = reader.tally().total();
        (total >= ending.committed, total)
    });
    summarize(&facts, &ending, &last, &first, &reader.tally());
    let checked = ending.check(&reader.tally());
    reader.stop()?;
    checked
}

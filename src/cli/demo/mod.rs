//! `capvec demo`: the whole worker at work, with nothing installed.
//!
//! A Kafka broker inside the process, a producer of captions in 63 languages, the worker as
//! `capvec run` runs it, and a reader of what comes out. At the end every message must be accounted
//! for, or the demo fails.

mod broker;
mod figures;
mod reader;
mod view;

use std::io::Write;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use clap::{Args, value_parser};
use indicatif::HumanCount;

use crate::cli::embedded::FETCH_WAIT;
use crate::cli::output;
use crate::config::Config;
use crate::metrics::Metrics;
use crate::model::package::Package;
use crate::model::synth::{Synthesis, synthesize};
use crate::pipeline::{self, Worker};
use crate::shutdown::{Shutdown, Wanted};
use crate::wire::vector::VectorFormat;
use broker::{Broker, Feed};
use figures::{Snapshot, show_ms};
use reader::Tally;
use view::{Facts, Phase, View, counts};

pub(super) use broker::CAPTION_LINES;

/// Between two looks at how far things are.
const TICK: Duration = Duration::from_millis(50);

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
        default_value_t = 1000,
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
    // First, so that it is dropped last: no client outlives it.
    let broker = Broker::start()?;
    let folder = tempfile::tempdir()?;
    let package = match &args.model {
        Some(package) => {
            Package::open(package).context("--model")?;
            package.clone()
        }
        None => {
            let package = folder.path().join("model");
            synthesize(&Synthesis::tiny(0, &package), &mut |_| ())?;
            view.say(
                "no --model: making a tiny one with random weights, whose vectors mean nothing",
            );
            package
        }
    };
    let config = config(args, &broker, &package);
    let worker = match pipeline::start(&config, &shutdown) {
        Err(_) if shutdown.wanted() == Wanted::Drain => {
            view.say("stopped before the start");
            return Ok(());
        }
        started => started?,
    };
    let facts = Facts {
        model_id: worker.model_id().into(),
        is_synthetic: args.model.is_none() || worker.model_id().starts_with("synthetic-"),
        admin: worker.admin(),
        in_flight_max: config.delivery.in_flight_captions_max.get(),
    };
    view.say("joining the consumer group; the embedded broker waits 3 s for other members");
    let metrics = worker.metrics().clone();
    // Before the first caption: what is measured is the worker, not how long clients take to
    // connect.
    let reader = reader::start(&broker)?;
    await_assignment(&metrics, &shutdown)?;

    let feed = Feed::start(&broker, args.rate, metrics.source.clone())?;
    let first = Snapshot::take(&feed, &reader, &metrics);
    let mut show = |phase| {
        let now = Snapshot::take(&feed, &reader, &metrics);
        view.show(&facts, &now, &reader, phase);
        now
    };

    let until = Instant::now() + Duration::from_secs(args.seconds);
    while shutdown.wanted() == Wanted::Run && !feed.has_ended() && Instant::now() < until {
        let left = until.saturating_duration_since(Instant::now());
        show(Phase::Producing(left));
        sleep(TICK.min(left));
    }
    feed.stop();
    await_progress(|| {
        let now = show(Phase::Settling);
        let is_settled = feed.has_ended() && now.settled >= now.produced;
        (is_settled || shutdown.wanted() != Wanted::Run, now.settled)
    });
    let last = Snapshot::take(&feed, &reader, &metrics);
    let interrupted = shutdown.wanted() != Wanted::Run;
    shutdown.drain();
    let ended = await_end(worker, || drop(show(Phase::Draining)));
    view.finish();
    ended?;

    let ending = Ending { produced: feed.finish()?, committed: broker.committed()?, interrupted };
    await_progress(|| {
        let read = reader.tally().total();
        (read >= ending.committed, read)
    });
    let tally = reader.stop()?;
    let summary = summary(&facts, &ending, &last, &first, &tally);
    // That nobody reads the summary may be no error; what is lost is one.
    let said = output::stdout().write_all(summary.as_bytes());
    ending.check(&tally)?;
    Ok(said?)
}

fn config(args: &DemoArgs, broker: &Broker, package: &Path) -> Config {
    let mut config = Config::default();
    config.kafka.brokers = broker.bootstrap();
    config.kafka.group = broker::GROUP.into();
    let (property, value) = FETCH_WAIT;
    config.kafka.librdkafka.0.insert(property.into(), value.into());
    config.input.topic = broker::CAPTIONS.into();
    config.model.package = package.into();
    config.embed.onnxruntime = args.onnxruntime.clone().unwrap_or_default();
    config.output.topic = broker::VECTORS.into();
    config.output.format = VectorFormat::Json;
    config.output.id = "/id".into();
    config.output.include_caption = true;
    config.reject.topic = broker::REJECTED.into();
    config.delivery.commit_interval = Duration::from_millis(200);
    config.admin.listen = args.admin;
    config
}

/// Waits until the worker has all partitions, so that the first captions don't wait for the group.
fn await_assignment(metrics: &Metrics, shutdown: &Shutdown) -> anyhow::Result<()> {
    let deadline = Instant::now() + ASSIGNMENT_TIMEOUT;
    while metrics.source.partitions.get() < i64::from(broker::PARTITIONS) {
        // A stage that has failed, or Ctrl-C: both have their place further on.
        if shutdown.wanted() != Wanted::Run {
            return Ok(());
        }
        ensure!(Instant::now() < deadline, "no partitions after {ASSIGNMENT_TIMEOUT:?}");
        sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// Waits until `look` says that it is done, or the number beside it hasn't moved for a long time.
fn await_progress(mut look: impl FnMut() -> (bool, u64)) {
    let (mut last, mut moved) = (0, Instant::now());
    loop {
        let (is_done, progress) = look();
        if progress != last {
            (last, moved) = (progress, Instant::now());
        }
        if is_done || moved.elapsed() > STALL {
            return;
        }
        sleep(TICK);
    }
}

/// Waits for the worker, and calls `meanwhile` now and then.
fn await_end(worker: Worker, mut meanwhile: impl FnMut()) -> anyhow::Result<()> {
    let waiting = std::thread::Builder::new().name("demo-end".into()).spawn(|| worker.wait())?;
    while !waiting.is_finished() {
        meanwhile();
        sleep(TICK);
    }
    waiting.join().expect("waiting doesn't panic").context("the worker failed")
}

impl Ending {
    /// Compares what went in with what came out.
    fn check(&self, tally: &Tally) -> anyhow::Result<()> {
        let Ending { produced, committed, interrupted } = *self;
        let read = tally.total();
        if read < committed {
            bail!(
                "lost: {} of the {committed} messages that the worker has committed never came out",
                committed - read
            );
        }
        if committed < produced && !interrupted {
            bail!(
                "the worker has settled {committed} of {produced} messages, and nothing more for \
                 {STALL:?}"
            );
        }
        Ok(())
    }
}

/// Returns the last words of the demo.
fn summary(
    facts: &Facts,
    ending: &Ending,
    last: &Snapshot,
    first: &Snapshot,
    tally: &Tally,
) -> String {
    if ending.produced == 0 {
        return "Stopped before the first caption.\n".into();
    }
    let figures = last.since(first);
    let rejected: Vec<_> = tally.rejected.iter().map(|(reason, n)| (reason.clone(), *n)).collect();
    let left = ending.produced.saturating_sub(ending.committed);
    let line = |number: u64, what: String| format!("{:>9}  {what}", HumanCount(number).to_string());
    let mut lines = vec![
        line(ending.produced, format!("messages in, in {:.1} s", figures.seconds)),
        line(tally.vectors, format!("vectors out, {:.0} a second", figures.vectors_per_second)),
        line(tally.rejected(), format!("rejected ({})", counts(&rejected))),
        line(tally.tombstones, "tombstones".into()),
        format!(
            "{:>9}  median latency, {} for 99 %; produced to read back",
            show_ms(figures.p50_ms),
            show_ms(figures.p99_ms),
        ),
        line(
            figures.batches,
            format!(
                "batches of {:.1} captions, {:.0} tokens; the embedder was {:.0} % busy",
                figures.batch_captions,
                figures.batch_tokens,
                figures.busy * 100.0,
            ),
        ),
    ];
    if left > 0 {
        lines.push(line(left, "left in the topic, for the next worker of the group".into()));
    }
    if tally.duplicates > 0 {
        lines.push(line(tally.duplicates, "came out again, as at-least-once delivery may".into()));
    }
    lines.push(String::new());
    if ending.check(tally).is_ok() {
        let all = HumanCount(tally.total());
        let once = if tally.duplicates == 0 { ", each once" } else { "" };
        lines.push(format!("All {all} messages that the worker has settled came out{once}."));
    }
    if facts.is_synthetic {
        lines.push(format!("The weights of {} are random: its vectors", facts.model_id));
        lines.push("have the shape of real ones, and no meaning. For real ones:".into());
        lines.push("  capvec model import DIR --head FILE --out PACKAGE".into());
        lines.push("  capvec demo --model PACKAGE".into());
        lines.push("README.md has the rest.".into());
    } else {
        lines.push("With a cluster of your own, see README.md: capvec run --config FILE".into());
    }
    lines.join("\n") + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn checked(produced: u64, committed: u64, interrupted: bool, read: u64) -> Option<String> {
        let mut tally = Tally::default();
        tally.vectors = read.saturating_sub(2);
        tally.tombstones = read.min(1);
        tally.rejected.insert("not_json".into(), read.saturating_sub(1).min(1));
        assert_eq!(tally.total(), read);
        let ending = Ending { produced, committed, interrupted };
        ending.check(&tally).err().map(|error| error.to_string())
    }

    #[test]
    fn all_that_is_settled_must_have_come_out() {
        assert_eq!(checked(10, 10, false, 10), None);
        assert!(checked(10, 10, false, 9).unwrap().starts_with("lost: 1 of the 10 messages"));
        assert!(checked(10, 10, true, 9).unwrap().starts_with("lost: 1 of the 10 messages"));
    }

    #[test]
    fn only_ctrl_c_may_leave_messages_behind() {
        assert_eq!(checked(10, 6, true, 6), None);
        assert!(checked(10, 6, false, 6).unwrap().contains("settled 6 of 10"));
        // What came out and isn't committed comes again, which at least once allows.
        assert_eq!(checked(10, 6, true, 7), None);
    }
}

//! The whole worker: the only file that knows every stage.
//!
//! It makes the queues, spawns the stages in the order of the flow, and waits for them to end in
//! that order. A stage ends when the queue before it is closed and empty; a stage that fails asks
//! the source to abort, and the closing of queues brings the others down.

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;
use std::time::Instant;

use anyhow::{Context, anyhow, bail, ensure};
use rdkafka::consumer::BaseConsumer;
use rdkafka::producer::Producer;

use crate::admin;
use crate::batch::Batcher;
use crate::causes::with_causes;
use crate::config::Config;
use crate::embed::load::{Embedders, OnDevice, load};
use crate::embed::task::EmbedTask;
use crate::handover::Finished;
use crate::health::Health;
use crate::kafka::asker::Asker;
use crate::kafka::consumer::Connection;
use crate::kafka::consumer_properties;
use crate::kafka::known::known_to_group;
use crate::kafka::renewed::Renewed;
use crate::kafka::sink::{Sink, SinkNeighbours};
use crate::kafka::source::Source;
use crate::kafka::topics::{TopicError, look_up, look_up_polling};
use crate::kafka::writable::{Takes, asking, try_topics};
use crate::metrics::{Metrics, Stage};
use crate::model::package::{KeptWeights, Package};
use crate::queue;
use crate::shutdown::{Shutdown, Wanted};
use crate::tokenize::Words;
use crate::tokenize::task::TokenizeTask;
use crate::wire::vector::VectorFormat;

/// Embedded batches and rejected messages that may wait for the sink. A commit of exactly-once
/// delivery holds it up for some round trips, in which a fast network goes on.
const FINISHED_MAX: usize = 64;

/// A worker whose stages run.
pub struct Worker {
    stages: Vec<(String, JoinHandle<anyhow::Result<()>>)>,
    failed_first: FailedFirst,
    admin: SocketAddr,
    metrics: Metrics,
    model_id: String,
}

/// Looks up the topics, loads the model and starts all stages; returns when they run.
///
/// # Errors
///
/// When the model, the address of the admin endpoints or a topic can't be used, and where a stop is
/// asked for before.
pub fn start(config: &Config, shutdown: &Shutdown) -> anyhow::Result<Worker> {
    start_with(config, shutdown, |config, package| Ok(load(config, package)?))
}

/// As [`start`], with embedders of the caller's: `make_embedders` loads them instead.
///
/// # Errors
///
/// When they, the model's package, the address of the admin endpoints or a topic can't be used, and
/// where a stop is asked for before.
pub fn start_with(
    config: &Config,
    shutdown: &Shutdown,
    make_embedders: impl FnOnce(&Config, &Package) -> anyhow::Result<Embedders>,
) -> anyhow::Result<Worker> {
    let metrics = Metrics::new();
    let health = Health::new(config.admin.stall_timeout);
    let admin = admin::serve(config.admin.listen, metrics.clone(), Arc::clone(&health))
        .map_err(|error| cannot_listen(config.admin.listen, error))?;
    tracing::info!(address = %admin, "serving /metrics, /livez, /readyz and a page at /");

    // Before any of its files is read by a client.
    let renewed = Renewed::new(&config.kafka);
    let package = Package::open(&config.model.package).context("model.package")?;
    let weights = KeptWeights::of(&package).context("model.package")?;
    // Before the model, which may take a minute: a wrong name is said at once.
    let (partitions, takes) = look_at_topics(config, shutdown)?;
    metrics.source.brokers_up.set(1);
    metrics.sink.brokers_up.set(1);
    health.brokers_answered();
    if config.model.verify {
        package.verify(|_| ()).context("model.package")?;
    }
    let manifest = &package.manifest;
    let dim = manifest.network.dim;
    let tokenizer = package.tokenizer()?;
    let Embedders { embedders, budget, cost, .. } =
        timed(&metrics, &package, || make_embedders(config, &package))?;
    // Its files have been opened one after the other, by their names.
    if Package::open(&config.model.package).context("model.package")?.manifest != *manifest {
        bail!("model.package was replaced while it was loaded; start again");
    }
    metrics.set_model(&manifest.model_id, dim, manifest.precision.as_str());
    health.model_loaded();
    // Before a producer is made: it would end the transactions of a worker that has taken the
    // place.
    go_on(shutdown)?;

    let in_flight = config.delivery.in_flight_captions_max.get();
    // No stage may ever wait for the source while the source waits for it.
    let bound = config.in_flight_bound();
    let (settlements, settled) = crossbeam_channel::bounded(bound);
    let (to_tokenize, received) = queue::bounded("received", bound, &metrics.queues);
    let (to_batch, tokenized) = queue::bounded("tokenized", in_flight, &metrics.queues);
    let (to_sink, finished) = queue::bounded::<Finished>("finished", FINISHED_MAX, &metrics.queues);
    let (requests, free_embedders) = crossbeam_channel::bounded(embedders.len());
    let (jobs, batches): (Vec<_>, Vec<_>) =
        embedders.iter().map(|_| crossbeam_channel::bounded(1)).unzip();

    let connection = Connection::new(config, partitions, renewed, &metrics.source)
        .context("the consumer can't be made")?;
    let sink = Sink::new(
        config,
        &manifest.model_id,
        dim,
        &takes,
        SinkNeighbours { consumer: &connection.consumer, input: finished, settlements },
        shutdown.clone(),
        &metrics,
    )?;
    go_on(shutdown)?;
    let source = Source::new(
        config,
        connection,
        to_tokenize,
        settled,
        shutdown.clone(),
        Arc::clone(&health),
        metrics.source.clone(),
    )
    .context("the source can't start")?;
    let intake = source.intake();

    let mut stages = Stages {
        shutdown: shutdown.clone(),
        health: Arc::clone(&health),
        failed_first: FailedFirst::default(),
        handles: Vec::new(),
    };
    stages.spawn("source", move || Ok(source.run()?))?;
    for number in 0..config.tokenize.threads.get() {
        let task = TokenizeTask {
            input: received.clone(),
            out: to_batch.clone(),
            around: to_sink.clone(),
            decoder: config.decoder(),
            tokenizer: tokenizer.clone(),
            words: Words::default(),
            on_empty: config.input.on_empty,
            keep_text: config.output.format == VectorFormat::Json && config.output.include_caption,
            metrics: metrics.tokenize.clone(),
            seconds: metrics.stage(Stage::Tokenize),
        };
        stages.spawn(&format!("tokenize-{number}"), move || Ok(task.run()?))?;
    }
    let batcher = Batcher {
        input: tokenized,
        intake,
        requests: free_embedders,
        jobs,
        around: to_sink.clone(),
        captions_max: config.batch.captions_max.get(),
        wait_max: config.batch.wait_max,
        latency_objective: config.latency_objective(),
        budget,
        cost,
        pending_max: in_flight,
        metrics: metrics.batch.clone(),
        wait_seconds: metrics.stage(Stage::Wait),
    };
    stages.spawn("batch", move || Ok(batcher.run()?))?;
    for (number, (embedder, jobs)) in embedders.into_iter().zip(batches).enumerate() {
        let OnDevice { device, embedder } = embedder;
        let task = EmbedTask {
            embedder,
            duty: metrics.embed.clock_of(&device),
            watch: health.watch_passes(),
            number,
            requests: requests.clone(),
            jobs,
            out: to_sink.clone(),
            metrics: metrics.embed.clone(),
            seconds: metrics.stage(Stage::Embed),
            latency_objective: config.latency_objective(),
        };
        stages.spawn(&format!("embed-{number}"), move || Ok(task.run()?))?;
    }
    stages.spawn("sink", move || Ok(sink.run()?))?;
    let watched = shutdown.clone();
    stages.spawn("package", move || weights.watch(&watched).context("model.package"))?;

    // The stages have the queues' ends now; these would keep them open.
    drop((received, to_batch, requests, to_sink));
    let model_id = manifest.model_id.clone();
    tracing::info!(
        input = config.input.topic,
        output = config.output.topic,
        group = config.kafka.group,
        model = model_id,
        "running"
    );
    let Stages { failed_first, handles, .. } = stages;
    Ok(Worker { stages: handles, failed_first, admin, metrics, model_id })
}

/// Ends the start of a worker that has been told to stop: to join its group and to leave it at once
/// would cost all of them two rebalances.
fn go_on(shutdown: &Shutdown) -> anyhow::Result<()> {
    ensure!(shutdown.wanted() == Wanted::Run, "told to stop before the group was joined");
    Ok(())
}

fn cannot_listen(listen: SocketAddr, error: io::Error) -> anyhow::Error {
    let advice = match error.kind() {
        io::ErrorKind::AddrInUse => ", which another process has, maybe a worker; set another port",
        _ => "",
    };
    anyhow::Error::from(error)
        .context(format!("failed to listen at {listen} (admin.listen){advice}"))
}

/// Waits until the brokers answer for all topics; returns with how many partitions of the one that
/// is read the group begins, and what those take that are written.
fn look_at_topics(config: &Config, shutdown: &Shutdown) -> anyhow::Result<(usize, Vec<Takes>)> {
    let consumer: BaseConsumer<Asker> = consumer_properties(config)
        // Whether the group has an offset is asked, and it may be in an open transaction.
        .set("isolation.level", "read_uncommitted")
        .create_with_context(Asker::heard_as("consumer"))
        .context("the consumer can't be made")?;
    let client =
        asking(config, Asker::heard_as("producer")).context("the producer can't be made")?;
    let (brokers, patience) = (&config.kafka.brokers, config.kafka.startup_timeout);
    let input = || {
        let (topic, option) = (&config.input.topic, "input.topic");
        look_up_polling(&consumer, brokers, topic, option, patience, shutdown)
    };
    let looked =
        input().and_then(|partitions| Ok((partitions, try_topics(config, &client, shutdown)?)));
    if let Err(TopicError::Unknown { .. }) = looked {
        // Whoever forgot one topic forgot others: all are told at once.
        let written = config.written_topics().map(|(topic, option)| {
            look_up(client.client(), brokers, topic, option, patience, shutdown)
        });
        let missing: Vec<String> = std::iter::once(input())
            .chain(written)
            .filter_map(|looked_up| Some(looked_up.err()?.to_string()))
            .collect();
        ensure!(missing.is_empty(), missing.join("; "));
    }
    let (partitions, takes) = looked?;
    Ok((known_to_group(config, &consumer, partitions, shutdown)?, takes))
}

fn timed(
    metrics: &Metrics,
    package: &Package,
    load: impl FnOnce() -> anyhow::Result<Embedders>,
) -> anyhow::Result<Embedders> {
    let started = Instant::now();
    let loaded = load()?;
    let seconds = started.elapsed().as_secs_f64();
    metrics.embed.load_seconds.set(seconds);
    metrics.embed.embedders.set(loaded.embedders.len() as i64);
    metrics.set_execution_provider(loaded.provider_wanted, loaded.provider_running);
    for on_device in &loaded.embedders {
        metrics.set_device(&on_device.device, loaded.provider_running);
    }
    metrics.embed.nodes_on_cpu.set(loaded.nodes_on_cpu as i64);
    tracing::info!(model = package.manifest.model_id, seconds, "the model is loaded");
    Ok(loaded)
}

/// The stage whose failure brought the others down.
type FailedFirst = Arc<OnceLock<String>>;

struct Stages {
    shutdown: Shutdown,
    health: Arc<Health>,
    failed_first: FailedFirst,
    handles: Vec<(String, JoinHandle<anyhow::Result<()>>)>,
}

impl Stages {
    fn spawn(
        &mut self,
        name: &str,
        run: impl FnOnce() -> anyhow::Result<()> + Send + 'static,
    ) -> anyhow::Result<()> {
        let (shutdown, failed_first) = (self.shutdown.clone(), Arc::clone(&self.failed_first));
        let health = Arc::clone(&self.health);
        let stage = name.to_owned();
        let handle =
            std::thread::Builder::new().name(format!("capvec-{name}")).spawn(move || {
                // Also on a panic: the others must not wait for a stage that is no more.
                let mut guard = Failing { stage, failed_first, shutdown, health, is_cause: true };
                let result = run();
                match &result {
                    Ok(()) => std::mem::forget(guard),
                    Err(error) if is_consequence(error) => guard.is_cause = false,
                    // Said again when all have ended, which a pass that hangs may put off.
                    Err(error) => {
                        let stage = &guard.stage;
                        let said = with_causes(&**error);
                        tracing::error!(stage, "it failed, and the worker ends: {said}")
                    }
                }
                result
            })?;
        self.handles.push((name.into(), handle));
        Ok(())
    }
}

/// Where it is dropped, its stage has failed.
struct Failing {
    stage: String,
    failed_first: FailedFirst,
    shutdown: Shutdown,
    health: Arc<Health>,
    /// Whether it didn't just end because its neighbour has.
    is_cause: bool,
}

impl Drop for Failing {
    fn drop(&mut self) {
        if self.is_cause {
            // Of those that fail later it's no news.
            drop(self.failed_first.set(std::mem::take(&mut self.stage)));
        }
        self.health.stopping();
        self.shutdown.abort();
    }
}

impl Worker {
    /// Returns where the admin endpoints are.
    pub fn admin(&self) -> SocketAddr {
        self.admin
    }

    /// Returns the metrics.
    pub fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// Returns the id of the model that runs.
    pub fn model_id(&self) -> &str {
        &self.model_id
    }

    /// Waits until all stages have ended.
    ///
    /// # Errors
    ///
    /// With what the stage that failed first said; that its neighbours ended of it is no news.
    pub fn wait(self) -> anyhow::Result<()> {
        let (mut first, mut other) = (None, None);
        for (name, handle) in self.stages {
            let error = match handle.join() {
                Ok(Ok(())) => continue,
                Ok(Err(error)) => error,
                Err(panic) => anyhow!("{}", panic_message(panic.as_ref())),
            };
            let slot = if self.failed_first.get() == Some(&name) { &mut first } else { &mut other };
            slot.get_or_insert(error.context(format!("the {name} stage failed")));
        }
        match first.or(other) {
            None => Ok(()),
            Some(error) => Err(error),
        }
    }
}

/// Returns whether a stage failed because its neighbour had ended.
fn is_consequence(error: &anyhow::Error) -> bool {
    error.chain().any(|error| error.is::<queue::Closed>())
}

fn panic_message(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic
        .downcast_ref::<&str>()
        .map(|text| (*text).to_owned())
        .or_else(|| panic.downcast_ref::<String>().cloned());
    format!("it panicked: {}", text.unwrap_or_else(|| "without a message".into()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    /// Runs stages to their ends and returns what the worker says of them. It isn't ready then.
    fn ends(stages: impl FnOnce(&mut Stages)) -> String {
        let shutdown = Shutdown::default();
        let health = Health::new(Duration::from_secs(1));
        let failed_first = FailedFirst::default();
        let mut all =
            Stages { shutdown, health: Arc::clone(&health), failed_first, handles: Vec::new() };
        stages(&mut all);
        let worker = Worker {
            stages: all.handles,
            failed_first: all.failed_first,
            admin: SocketAddr::from(([127, 0, 0, 1], 0)),
            metrics: Metrics::new(),
            model_id: "none".into(),
        };
        let error = format!("{:#}", worker.wait().unwrap_err());
        assert_eq!(health.not_ready(), Some("stopping"));
        error
    }

    #[test]
    fn the_failure_that_came_first_is_told_whichever_stage_it_is_of() {
        for is_error in [false, true] {
            let said = ends(|stages| {
                let shutdown = stages.shutdown.clone();
                let (goes, is_gone) = crossbeam_channel::bounded::<()>(0);
                stages
                    .spawn("early", move || {
                        while shutdown.wanted() != Wanted::Abort {
                            std::thread::yield_now();
                        }
                        drop(goes);
                        Err(anyhow!("it was left alone"))
                    })
                    .unwrap();
                stages
                    .spawn("late", move || {
                        ensure!(!is_error, "it broke");
                        panic!("it broke")
                    })
                    .unwrap();
                assert!(is_gone.recv().is_err());
                stages.spawn("neighbour", || Err(queue::Closed.into())).unwrap();
            });
            assert!(
                said.starts_with("the late stage failed: ") && said.ends_with("it broke"),
                "{said}"
            );
        }
    }
}

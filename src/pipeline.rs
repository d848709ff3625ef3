//! The whole worker: the only file that knows every stage.
//!
//! It makes the queues, spawns the stages in the order of the flow, and waits for them to end in that
//! order. A stage ends when the queue before it is closed and empty; a stage that fails asks the
//! source to abort, and the closing of queues brings the others down.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Instant;

use anyhow::{Context, anyhow};

use crate::admin::{self, Health};
use crate::batch::Batcher;
use crate::config::{Config, OutputFormat};
use crate::embed::duty::DutyClock;
use crate::embed::load::{Embedders, OnDevice, load};
use crate::embed::task::EmbedTask;
use crate::kafka::consumer::Connection;
use crate::kafka::sink::{Ends, Finished, Sink};
use crate::kafka::source::Source;
use crate::metrics::{Metrics, Stage};
use crate::model::package::{Package, TOKENIZER};
use crate::queue;
use crate::shutdown::Shutdown;
use crate::tokenize::task::TokenizeTask;
use crate::tokenize::{Tokenizer, Words};

/// Embedded batches that may wait for the sink: one being published while the next is finished.
const FINISHED_MAX: usize = 64;

/// A worker whose stages run.
pub struct Worker {
    stages: Vec<(String, JoinHandle<anyhow::Result<()>>)>,
    admin: SocketAddr,
    metrics: Metrics,
    model_id: String,
}

/// Loads the model and starts all stages; returns when they run.
///
/// # Errors
///
/// When the model, the address of the admin endpoints or a topic can't be used.
pub fn start(config: &Config, shutdown: &Shutdown) -> anyhow::Result<Worker> {
    start_with(config, shutdown, |config, package| Ok(load(config, package)?))
}

/// As [`start`], with embedders of the caller's: `make_embedders` loads them instead.
///
/// # Errors
///
/// When they, the model's package, the address of the admin endpoints or a topic can't be used.
pub fn start_with(
    config: &Config,
    shutdown: &Shutdown,
    make_embedders: impl FnOnce(&Config, &Package) -> anyhow::Result<Embedders>,
) -> anyhow::Result<Worker> {
    let metrics = Metrics::new();
    let health = Health::new(config.admin.stall_timeout);
    let admin = admin::serve(config.admin.listen, metrics.clone(), Arc::clone(&health))
        .with_context(|| format!("failed to listen at {} (admin.listen)", config.admin.listen))?;
    tracing::info!(address = %admin, "serving /metrics, /livez, /readyz and a page at /");

    let package = Package::open(&config.model.package).context("model.package")?;
    if config.model.verify {
        package.verify(|_| ()).context("model.package")?;
    }
    let manifest = &package.manifest;
    let dim = manifest.network.dim;
    let tokenizer = Tokenizer::from_file(&package.path.join(TOKENIZER), manifest.max_tokens)?;
    let Embedders { embedders, budget, cost, .. } =
        timed(&metrics, &package, || make_embedders(config, &package))?;
    metrics.set_model(&manifest.model_id, dim, manifest.precision.as_str());
    health.model_loaded();

    let in_flight = config.delivery.in_flight_captions_max.get();
    // Twice the limit: what a rebalance brings while the source pauses goes over it, and no stage
    // may ever wait for the source while the source waits for it.
    let (settlements, settled) = crossbeam_channel::bounded(2 * in_flight + 1000);
    let (to_tokenize, received) = queue::bounded("received", 2 * in_flight + 1000, &metrics.queues);
    let (to_batch, tokenized) = queue::bounded("tokenized", in_flight, &metrics.queues);
    let (to_sink, finished) = queue::bounded::<Finished>("finished", FINISHED_MAX, &metrics.queues);
    let (requests, free_embedders) = crossbeam_channel::bounded(embedders.len());
    let (jobs, batches): (Vec<_>, Vec<_>) =
        embedders.iter().map(|_| crossbeam_channel::bounded(1)).unzip();

    let connection =
        Connection::new(config, &metrics.source).context("the consumer can't be made")?;
    let sink = Sink::new(
        config,
        &manifest.model_id,
        dim,
        Ends { consumer: &connection.consumer, input: finished, settlements },
        shutdown.clone(),
        &metrics,
    )?;
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

    let mut stages = Stages { shutdown: shutdown.clone(), handles: Vec::new() };
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
            keep_text: config.output.format == OutputFormat::Json && config.output.include_caption,
            metrics: metrics.tokenize.clone(),
            seconds: metrics.stage(Stage::Tokenize),
        };
        stages.spawn(&format!("tokenize-{number}"), move || Ok(task.run()?))?;
    }
    let batcher = Batcher {
        input: tokenized,
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
    let mut clocks: BTreeMap<String, DutyClock> = BTreeMap::new();
    for (number, (embedder, jobs)) in embedders.into_iter().zip(batches).enumerate() {
        let OnDevice { device, embedder } = embedder;
        let clock = || DutyClock::new(metrics.embed.device_busy_seconds(&device));
        let duty = clocks.entry(device.clone()).or_insert_with(clock).clone();
        let task = EmbedTask {
            embedder,
            duty,
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
    Ok(Worker { stages: stages.handles, admin, metrics, model_id })
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

struct Stages {
    shutdown: Shutdown,
    handles: Vec<(String, JoinHandle<anyhow::Result<()>>)>,
}

impl Stages {
    fn spawn(
        &mut self,
        name: &str,
        run: impl FnOnce() -> anyhow::Result<()> + Send + 'static,
    ) -> anyhow::Result<()> {
        let shutdown = self.shutdown.clone();
        let stage = name.to_owned();
        let handle =
            std::thread::Builder::new().name(format!("capvec-{name}")).spawn(move || {
                // Also on a panic: the others must not wait for a stage that is no more.
                let guard = AbortOnDrop(shutdown);
                let result = run();
                match &result {
                    Ok(()) => std::mem::forget(guard),
                    Err(error) if is_consequence(error) => {}
                    // Said again when all have ended, which a pass that hangs may put off.
                    Err(error) => {
                        tracing::error!(stage, "it failed, and the worker ends: {error:#}")
                    }
                }
                result
            })?;
        self.handles.push((name.into(), handle));
        Ok(())
    }
}

struct AbortOnDrop(Shutdown);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
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
        let (mut cause, mut consequence) = (None, None);
        for (name, handle) in self.stages {
            let error = match handle.join() {
                Ok(Ok(())) => continue,
                Ok(Err(error)) => error,
                Err(panic) => anyhow!("{}", panic_message(panic.as_ref())),
            };
            let slot = if is_consequence(&error) { &mut consequence } else { &mut cause };
            let error = error.context(format!("the {name} stage failed"));
            slot.get_or_insert(error);
        }
        match cause.or(consequence) {
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

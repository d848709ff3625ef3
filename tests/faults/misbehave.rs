//! Workers that do wrong on purpose. They are this program, started again under a name of theirs,
//! and take the options of `capvec run`; the shipped program knows nothing of them.
//!
//! - `misbehaving-embedder`: the library's whole worker around an embedder that fails, hangs or is
//!   slow on captions that say so, and gives the hash embedder's vectors otherwise.
//! - `careless-worker`: built of the library's parts, it commits offsets before it produces. The
//!   checker must catch it.

use std::env;
use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use capvec::batch::packing::TokenBatch;
use capvec::config::{self, Config};
use capvec::embed::hash::HashEmbedder;
use capvec::embed::load::Embedders;
use capvec::embed::{EmbedError, Embedder};
use capvec::kafka::{consumer_properties, producer_properties};
use capvec::model::package::Package;
use capvec::pipeline;
use capvec::shutdown::Shutdown;
use capvec::wire::vector::HEADER_SOURCE;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};
use rdkafka::message::{Header, Message, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

const MISBEHAVING_EMBEDDER: &str = "misbehaving-embedder";
const CARELESS_WORKER: &str = "careless-worker";

/// How long a forward pass takes, in milliseconds.
const PASS_MS: &str = "CAPVEC_FAULTS_PASS_MS";

/// Begins a caption on which the embedder fails, whatever the batch.
pub const FAILS: &str = "fails";
/// Begins a caption on which the embedder fails unless it is alone.
pub const STUMBLES: &str = "stumbles";
/// Begins a caption whose vector has a NaN.
pub const NAN: &str = "nan";
/// Begins a caption on which the embedder hangs.
pub const HANGS: &str = "hangs";

/// Returns the worker of this name.
pub fn named(name: &str) -> Option<fn(Vec<String>) -> ExitCode> {
    match name {
        MISBEHAVING_EMBEDDER => Some(|args| exit(misbehaving_embedder(&args))),
        CARELESS_WORKER => Some(|args| exit(careless_worker(&args))),
        _ => None,
    }
}

/// Returns a command for a worker whose embedder misbehaves, with forward passes that take so long.
pub fn with_misbehaving_embedder(pass: Duration) -> Command {
    let mut command = Command::new(env::current_exe().expect("the system knows this program"));
    command.arg(MISBEHAVING_EMBEDDER).env(PASS_MS, pass.as_millis().to_string());
    command
}

/// Returns a command for a worker that commits before it produces.
pub fn careless() -> Command {
    let mut command = Command::new(env::current_exe().expect("the system knows this program"));
    command.arg(CARELESS_WORKER);
    command
}

fn exit(result: anyhow::Result<()>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn load(args: &[String]) -> anyhow::Result<Config> {
    let (mut file, mut overrides) = (None, Vec::new());
    let mut args = args.iter();
    while let Some(arg) = args.next() {
        let value = args.next().context("each option has a value")?;
        match arg.as_str() {
            "--config" => file = Some(PathBuf::from(value)),
            "--set" => {
                let (path, value) = value.split_once('=').context("--set PATH=VALUE")?;
                overrides.push((path.to_owned(), value.to_owned()));
            }
            _ => bail!("no such option: {arg}"),
        }
    }
    Ok(config::load(file.as_deref(), &overrides)?)
}

// === an embedder that misbehaves ===

struct Misbehaving {
    inner: HashEmbedder,
    pass: Duration,
    fails: Vec<i64>,
    stumbles: Vec<i64>,
    nan: Vec<i64>,
    hangs: Vec<i64>,
}

impl Misbehaving {
    fn new(package: &Package) -> anyhow::Result<Misbehaving> {
        let manifest = &package.manifest;
        let tokenizer = package.tokenizer()?;
        let ids = |word: &str| -> anyhow::Result<Vec<i64>> {
            let ids = tokenizer.tokenize(word)?.ids;
            // Without [SEP], so that longer captions begin so too.
            Ok(ids[..ids.len() - 1].iter().map(|id| i64::from(*id)).collect())
        };
        let pass_ms = env::var(PASS_MS).unwrap_or_default().parse().unwrap_or(0);
        Ok(Misbehaving {
            inner: HashEmbedder::new(manifest.network.dim),
            pass: Duration::from_millis(pass_ms),
            fails: ids(FAILS)?,
            stumbles: ids(STUMBLES)?,
            nan: ids(NAN)?,
            hangs: ids(HANGS)?,
        })
    }
}

impl Embedder for Misbehaving {
    fn dim(&self) -> usize {
        self.inner.dim()
    }

    fn embed(&mut self, batch: &TokenBatch) -> Result<Vec<f32>, EmbedError> {
        let until = Instant::now() + self.pass;
        let mut vectors = self.inner.embed(batch)?;
        let mut rest = &batch.token_ids[..];
        for (row, &length) in batch.caption_lengths.iter().enumerate() {
            let (ids, others) = rest.split_at(length as usize);
            rest = others;
            let is_alone = batch.captions() == 1;
            if ids.starts_with(&self.fails) || ids.starts_with(&self.stumbles) && !is_alone {
                return Err(EmbedError::Run {
                    captions: batch.captions(),
                    tokens: batch.tokens(),
                    reason: "told to fail".into(),
                });
            }
            if ids.starts_with(&self.nan) {
                vectors[row * self.inner.dim()] = f32::NAN;
            }
            while ids.starts_with(&self.hangs) {
                std::thread::park();
            }
        }
        while let Some(left) = until.checked_duration_since(Instant::now()) {
            std::thread::park_timeout(left);
        }
        Ok(vectors)
    }
}

fn misbehaving_embedder(args: &[String]) -> anyhow::Result<()> {
    let config = load(args)?;
    tracing_subscriber::fmt().with_ansi(false).with_writer(std::io::stderr).init();
    let shutdown = Shutdown::default();
    shutdown.on_signals()?;
    let worker = pipeline::start_with(&config, &shutdown, |_, package| {
        let embedder: Box<dyn Embedder> = Box::new(Misbehaving::new(package)?);
        Ok(Embedders::without_runtime(embedder, 2048))
    })?;
    worker.wait()
}

// === a worker that commits before it produces ===

/// Most captions that it takes at a time.
const TAKEN_MAX: usize = 40;

/// How long it takes over them, as a network would. Whoever kills it then loses them.
const TAKES: Duration = Duration::from_millis(200);

fn careless_worker(args: &[String]) -> anyhow::Result<()> {
    let config = load(args)?;
    let package = Package::open(&config.model.package)?;
    let manifest = &package.manifest;
    let tokenizer = package.tokenizer()?;
    let embedder = HashEmbedder::new(manifest.network.dim);
    let decoder = config.decoder();
    let consumer: BaseConsumer = consumer_properties(&config).create()?;
    let producer: BaseProducer = producer_properties(&config).create()?;
    consumer.subscribe(&[&config.input.topic])?;
    loop {
        let mut taken = Vec::new();
        while taken.len() < TAKEN_MAX {
            let Some(message) = consumer.poll(Duration::from_millis(20)) else { break };
            taken.push(message?.detach());
        }
        let mut next = TopicPartitionList::new();
        for message in &taken {
            let (topic, partition) = (message.topic(), message.partition());
            let offset = Offset::Offset(message.offset() + 1);
            if let Some(mut known) = next.find_partition(topic, partition) {
                known.set_offset(offset)?;
            } else {
                next.add_partition_offset(topic, partition, offset)?;
            }
        }
        // Here it is, the mistake: from this moment on nobody reads these captions again.
        if !taken.is_empty() {
            consumer.commit(&next, CommitMode::Sync)?;
        }
        std::thread::park_timeout(TAKES);
        for message in &taken {
            let caption = decoder.decode(message.payload().unwrap_or_default());
            let caption = caption.map_err(|rejection| anyhow::anyhow!(rejection.detail))?;
            let vector = embedder.vector(tokenizer.tokenize(&caption.text)?.ids);
            let value: Vec<u8> = vector.into_iter().flat_map(f32::to_le_bytes).collect();
            let (topic, partition) = (message.topic(), message.partition());
            let source = format!("{topic}/{partition}/{}", message.offset());
            let source = Header { key: HEADER_SOURCE, value: Some(&source) };
            let record = BaseRecord::to(&config.output.topic)
                .key(message.key().unwrap_or_default())
                .payload(&value)
                .headers(OwnedHeaders::new().insert(source));
            producer.send(record).map_err(|(error, _)| error)?;
        }
        producer.flush(Duration::from_secs(60))?;
    }
}

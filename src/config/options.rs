//! What each option is, and its default: a struct a section, in the order of `config/capvec.toml`.

use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::properties::Properties;
use crate::embed::device::DeviceChoice;
use crate::wire::vector::VectorFormat;

/// Options of `[kafka]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct KafkaOptions {
    /// Addresses to find the cluster at, `host:port`, separated by commas (`bootstrap.servers`).
    /// Required.
    pub brokers: String,
    /// The consumer group (`group.id`); workers of one group share the input's partitions.
    /// Required.
    pub group: String,
    /// The name that brokers log and that quotas are given to (`client.id`).
    pub client_id: String,
    /// How long the start may wait for the brokers and the topics before the worker gives up.
    #[serde(with = "humantime_serde")]
    pub startup_timeout: Duration,
    /// How long a record may wait for its acknowledgement, retries included, before the worker
    /// gives up and exits (`message.timeout.ms`). Long outages are sat out within it; what is in
    /// flight then is embedded again.
    #[serde(with = "humantime_serde")]
    pub delivery_timeout: Duration,
    /// Properties of librdkafka for both clients: TLS, SASL, tuning. Those that capvec sets itself
    /// are refused.
    pub librdkafka: Properties,
    /// More of them, whose values are in files: the files' paths by the properties' names.
    pub librdkafka_files: Properties,
    /// What was in these files.
    #[serde(skip)]
    pub(super) file_values: Properties,
    /// The file that has the bearer token, where `sasl.mechanism` is `OAUTHBEARER`.
    pub bearer_token_file: PathBuf,
}

impl Default for KafkaOptions {
    fn default() -> Self {
        KafkaOptions {
            brokers: String::new(),
            group: String::new(),
            client_id: "capvec".into(),
            startup_timeout: Duration::from_secs(60),
            delivery_timeout: Duration::from_secs(600),
            librdkafka: Properties::default(),
            librdkafka_files: Properties::default(),
            file_values: Properties::default(),
            bearer_token_file: PathBuf::new(),
        }
    }
}

/// Options of `[input]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct InputOptions {
    /// The topic of captions. Required.
    pub topic: String,
    /// `json` or `text`.
    pub format: InputFormat,
    /// Where in the JSON the caption is, as a JSON Pointer.
    pub pointer: String,
    /// Larger captions are rejected before they are tokenized, in bytes of UTF-8.
    pub caption_bytes_max: NonZeroUsize,
    /// What becomes of captions without text: `reject` or `embed`.
    pub on_empty: OnEmpty,
}

impl Default for InputOptions {
    fn default() -> Self {
        InputOptions {
            topic: String::new(),
            format: InputFormat::Json,
            pointer: "/caption".into(),
            caption_bytes_max: some(65_536),
            on_empty: OnEmpty::Reject,
        }
    }
}

/// How captions lie in messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum InputFormat {
    /// JSON, with the caption at `input.pointer`.
    Json,
    /// The value is the caption.
    Text,
}

/// What becomes of captions without text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnEmpty {
    /// They are rejected.
    Reject,
    /// They get the vector of `[CLS] [SEP]`.
    Embed,
}

/// Options of `[model]`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ModelOptions {
    /// The folder of the model package. Required.
    pub package: PathBuf,
    /// Whether the package's files are compared with their SHA-256 at the start.
    pub verify: bool,
}

/// Options of `[tokenize]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TokenizeOptions {
    /// Threads that decode and tokenize.
    pub threads: NonZeroUsize,
}

impl Default for TokenizeOptions {
    fn default() -> Self {
        TokenizeOptions { threads: some(1) }
    }
}

/// Options of `[batch]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct BatchOptions {
    /// Most tokens of a batch; 0 measures how many are best. A batch grows up to here while the
    /// embedder is busy.
    pub tokens_max: usize,
    /// Most captions of a batch.
    pub captions_max: NonZeroUsize,
    /// How long the oldest caption may be kept back for a fuller batch while the embedder is free.
    #[serde(with = "humantime_serde")]
    pub wait_max: Duration,
    /// How long after it was received a caption should be embedded; 0 for no objective. Batches are
    /// cut smaller so that the oldest caption makes it; captions that don't are counted.
    #[serde(with = "humantime_serde")]
    pub latency_objective: Duration,
}

impl Default for BatchOptions {
    fn default() -> Self {
        BatchOptions {
            tokens_max: 0,
            captions_max: some(1024),
            wait_max: Duration::ZERO,
            latency_objective: Duration::ZERO,
        }
    }
}

/// Options of `[embed]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct EmbedOptions {
    /// `onnx`, or `hash` for dry runs without a network.
    pub embedder: EmbedderKind,
    /// What runs the network: `auto`, `cpu`, or GPUs such as `cuda:0` or `cuda:0,cuda:1`. A GPU
    /// that is named and can't be had is an error. `auto` takes the first one where ONNX Runtime's
    /// library is one for GPUs, and falls back to the CPU.
    pub device: DeviceChoice,
    /// Most bytes that the network may take of each GPU's memory, shared out among the sessions on
    /// it; 0 for as many as there are.
    pub device_bytes_max: usize,
    /// ONNX Runtime's library; empty to look for it.
    pub onnxruntime: PathBuf,
    /// Forward passes that run at a time, on each device; 0 measures how many are best on a CPU,
    /// and is 2 on a GPU.
    pub sessions: usize,
    /// Compute threads of one forward pass; 0 shares out the CPUs that the process may use.
    pub threads: usize,
}

impl Default for EmbedOptions {
    fn default() -> Self {
        EmbedOptions {
            embedder: EmbedderKind::Onnx,
            device: DeviceChoice::Auto,
            device_bytes_max: 0,
            onnxruntime: PathBuf::new(),
            sessions: 0,
            threads: 0,
        }
    }
}

/// The embedders.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EmbedderKind {
    /// The package's network in ONNX Runtime.
    Onnx,
    /// A hash of the token ids.
    Hash,
}

/// Options of `[output]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct OutputOptions {
    /// The topic of vectors. Required.
    pub topic: String,
    /// `native` or `json`.
    pub format: VectorFormat,
    /// Where the `id` of the JSON form is from: `key`, `source`, or a JSON Pointer into the caption
    /// message.
    pub id: String,
    /// Whether the JSON form repeats the caption.
    pub include_caption: bool,
}

impl Default for OutputOptions {
    fn default() -> Self {
        OutputOptions {
            topic: String::new(),
            format: VectorFormat::Native,
            id: "key".into(),
            include_caption: false,
        }
    }
}

/// Options of `[reject]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RejectOptions {
    /// The dead-letter topic; empty for none.
    pub topic: String,
    /// Without a dead-letter topic: `stop` at a bad message, or `skip` it.
    pub on_reject: OnReject,
    /// Rejections in a row at which the worker stops; 0 for any number.
    pub breaker_run: usize,
    /// The share of the last `breaker_window` messages above which rejections stop the worker; 1
    /// for any share.
    pub breaker_share: f64,
    /// How many messages the share is of.
    pub breaker_window: NonZeroUsize,
}

impl Default for RejectOptions {
    fn default() -> Self {
        RejectOptions {
            topic: String::new(),
            on_reject: OnReject::Stop,
            breaker_run: 1000,
            breaker_share: 0.5,
            breaker_window: some(10_000),
        }
    }
}

/// What a worker without a dead-letter topic does at a bad message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnReject {
    /// It stops, and the message's offset stays uncommitted.
    Stop,
    /// It counts the message and goes on.
    Skip,
}

/// Options of `[delivery]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DeliveryOptions {
    /// What is promised: `at-least-once` or `exactly-once`.
    pub mode: DeliveryMode,
    /// With `exactly-once`: the name under which this worker's transactions are known to the
    /// brokers (`transactional.id`). A worker that starts with it ends the transactions of the one
    /// before, so no two workers may share it. Empty for one made of the group, the input topic and
    /// the name of the host.
    pub transactional_id: String,
    /// With `exactly-once`: after how long the brokers abort the transaction of a worker that is
    /// gone (`transaction.timeout.ms`). Readers of committed records wait for so long at most.
    #[serde(with = "humantime_serde")]
    pub transaction_timeout: Duration,
    /// Captions that may be in the worker at a time; fetching pauses there.
    pub in_flight_captions_max: NonZeroUsize,
    /// Bytes of their messages that may be in the worker at a time; fetching pauses there.
    pub in_flight_bytes_max: NonZeroUsize,
    /// How often offsets are committed; with `exactly-once`, how long a transaction collects.
    #[serde(with = "humantime_serde")]
    pub commit_interval: Duration,
    /// How long what is in flight may take to settle at a stop or when a partition is taken away.
    #[serde(with = "humantime_serde")]
    pub drain_timeout: Duration,
}

impl Default for DeliveryOptions {
    fn default() -> Self {
        DeliveryOptions {
            mode: DeliveryMode::AtLeastOnce,
            transactional_id: String::new(),
            transaction_timeout: Duration::from_secs(45),
            in_flight_captions_max: some(4096),
            in_flight_bytes_max: some(64 << 20),
            commit_interval: Duration::from_secs(1),
            drain_timeout: Duration::from_secs(30),
        }
    }
}

/// What is promised of every caption.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DeliveryMode {
    /// One vector or more.
    AtLeastOnce,
    /// One vector, for readers of committed records: vectors, dead letters and offsets are
    /// committed together in Kafka's transactions.
    ExactlyOnce,
}

/// Options of `[admin]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AdminOptions {
    /// Where `/metrics`, `/livez` and `/readyz` are served.
    pub listen: SocketAddr,
    /// `/livez` fails when nothing has come of the oldest caption in the worker, or of a forward
    /// pass, for longer.
    #[serde(with = "humantime_serde")]
    pub stall_timeout: Duration,
}

impl Default for AdminOptions {
    fn default() -> Self {
        AdminOptions {
            listen: SocketAddr::from(([0, 0, 0, 0], 9180)),
            stall_timeout: Duration::from_secs(900),
        }
    }
}

/// Options of `[metrics]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MetricsOptions {
    /// Whether each partition has series of its own. Without them only those of the whole worker
    /// are left, whose number doesn't grow with the topic.
    pub per_partition: bool,
}

impl Default for MetricsOptions {
    fn default() -> Self {
        MetricsOptions { per_partition: true }
    }
}

/// Options of `[log]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LogOptions {
    /// `auto` (text on a terminal, else JSON), `text` or `json`.
    pub format: LogFormat,
    /// What is logged: a level, or `tracing` directives such as `info,capvec::kafka=debug`.
    pub filter: String,
}

impl Default for LogOptions {
    fn default() -> Self {
        LogOptions { format: LogFormat::Auto, filter: "info".into() }
    }
}

/// The format of log lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// Text on a terminal, else JSON.
    Auto,
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// A limit, from a number that isn't 0.
const fn some(number: usize) -> NonZeroUsize {
    NonZeroUsize::new(number).expect("a limit is at least 1")
}

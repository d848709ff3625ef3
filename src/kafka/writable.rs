//! Finds out what a topic takes before anything depends on it: how large a record may be, and
//! whether this client may write at all.
//!
//! Kafka has no question for the right to write. But a broker looks at it before it looks at the
//! record, so a record that is a byte over the topic's limit is refused either for the right or for
//! its size, and never kept.

use std::collections::HashMap;
use std::error::Error;
use std::time::{Duration, Instant};

use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, ResourceSpecifier};
use rdkafka::client::{ClientContext, OAuthToken};
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use rdkafka::producer::{
    BaseProducer, BaseRecord, DeliveryResult, Producer, ProducerContext, ThreadedProducer,
};

use super::asker::Asker;
use super::bearer;
use super::timestamps::TimestampBounds;
use super::topics::{TopicError, look_up};
use super::transaction::is_refusal;
use super::{admin_properties, producer_properties};
use crate::config::Config;
use crate::shutdown::{Shutdown, Wanted};

/// Larger records aren't sent to find out.
const PROBE_BYTES_MAX: usize = 16 << 20;

/// How long librdkafka is waited for at a time; a stop is looked for in between.
const STEP: Duration = Duration::from_millis(100);

/// How long the start waits for what becomes of a record.
const PATIENCE: Duration = Duration::from_secs(10);

/// How long the start waits for the topics' limits, which it can do without.
const LIMITS_PATIENCE: Duration = Duration::from_secs(5);

/// How librdkafka's mock cluster, which the demo and the benchmarks embed, begins the name of its
/// cluster. It never answers a question for a topic's options.
const EMBEDDED_CLUSTER: &str = "mockCluster";

/// Why a limit isn't known.
const SAY_NO_LIMIT: &str = "the brokers don't say max.message.bytes";
const SAY_NOTHING: &str = "the brokers say nothing of it";

/// What is asked of topics, in errors.
const WHAT_TOPICS: &str = "the topic's limits";

/// librdkafka's own `batch.size`.
const BATCH_SIZE: usize = 1_000_000;

/// What the brokers say to a client that would write a topic.
#[derive(Debug, PartialEq, Eq)]
pub enum Answer {
    /// It may.
    Allowed,
    /// They refuse, in these words.
    Refused(RDKafkaErrorCode),
    /// Nothing in time, or the worker was told to stop.
    None,
    /// They took a record over the topic's own limit.
    Taken,
    /// It isn't known, for this reason.
    Untried(String),
}

/// A client that asks of topics, and is polled by a thread of its own. Its questions, as any
/// producer's, make topics where the brokers make them by themselves.
pub type Asking = ThreadedProducer<Asker>;

/// Makes the client that asks.
///
/// # Errors
///
/// When librdkafka refuses the configuration.
pub fn asking(config: &Config, asker: Asker) -> KafkaResult<Asking> {
    admin_properties(config).create_with_context(asker)
}

/// What a topic takes.
#[derive(Debug, PartialEq, Eq)]
pub struct Takes {
    /// The topic.
    pub topic: String,
    /// The most bytes of a batch.
    pub bytes_max: usize,
    /// No record without a key: it is compacted.
    pub needs_key: bool,
    /// Timestamps of records.
    pub timestamps: TimestampBounds,
}

/// Waits until the brokers answer for the topics that are written, and returns what each takes, of
/// those of which they say it. All are asked for in one request.
///
/// # Errors
///
/// As [`look_up`], and when the brokers refuse the right to write.
pub fn try_topics(
    config: &Config,
    client: &Asking,
    shutdown: &Shutdown,
) -> Result<Vec<Takes>, TopicError> {
    let (brokers, patience) = (&config.kafka.brokers, config.kafka.startup_timeout);
    let topics: Vec<(&str, &'static str)> = config.written_topics().collect();
    for (topic, option) in &topics {
        look_up(client.client(), brokers, topic, option, patience, shutdown)?;
    }
    // The answers of before have brought it.
    let cluster = client.client().fetch_cluster_id(STEP).unwrap_or_default();
    if cluster.starts_with(EMBEDDED_CLUSTER) {
        return Ok(Vec::new());
    }
    let asked: Vec<_> = topics.iter().map(|(topic, _)| ResourceSpecifier::Topic(topic)).collect();
    let answers = options_of(config, &asked, WHAT_TOPICS, LIMITS_PATIENCE.min(patience));
    let mut answers = match answers {
        Ok(answers) => answers.into_iter(),
        Err(reason) => {
            let names: Vec<&str> = topics.iter().map(|(topic, _)| *topic).collect();
            tracing::info!(?names, reason, "whether the topics may be written isn't tried");
            return Ok(Vec::new());
        }
    };
    let mut all = Vec::new();
    for (topic, option) in topics {
        let options = answers.next().unwrap_or_else(|| Err(SAY_NOTHING.into()));
        let (takes, limit) = match options.and_then(|options| takes(topic, &options)) {
            Ok(known) => known,
            Err(reason) => {
                tracing::info!(topic, reason, "whether the topic may be written isn't tried");
                continue;
            }
        };
        match ask(config, topic, limit, PATIENCE.min(patience), shutdown) {
            Answer::Refused(code) if is_refusal(code) => {
                let (topic, reason) = (topic.into(), code.to_string());
                return Err(TopicError::Refused { topic, option, reason });
            }
            // Brokers that don't answer now may do so when there is something to write.
            answer => {
                tracing::debug!(?takes, ?answer, "asked whether the topic may be written");
                all.push(takes);
            }
        }
    }
    Ok(all)
}

/// Returns what a topic with these options takes, and its `max.message.bytes`.
fn takes(topic: &str, options: &HashMap<String, String>) -> Result<(Takes, usize), String> {
    let limit = limit_of(options).ok_or(SAY_NO_LIMIT)?;
    let policies = options.get("cleanup.policy").map_or("", String::as_str).split(',');
    let takes = Takes {
        topic: topic.into(),
        bytes_max: batch_limit_of(options).unwrap_or(limit),
        needs_key: policies.map(str::trim).any(|policy| policy == "compact"),
        timestamps: TimestampBounds::of(options),
    };
    Ok((takes, limit))
}

/// Asks what a topic takes; returns its `max.message.bytes`, too.
///
/// # Errors
///
/// In words, when the brokers don't say it: it takes the right to describe the topic's
/// configuration.
pub fn ask_what_it_takes(
    config: &Config,
    topic: &str,
    patience: Duration,
) -> Result<(Takes, usize), String> {
    takes(topic, &topic_options(config, topic, patience)?)
}

/// Returns `max.message.bytes` of a topic with these options. A broker looks at it before all other
/// limits, and at the batch as it was sent.
fn limit_of(options: &HashMap<String, String>) -> Option<usize> {
    options.get("max.message.bytes")?.parse().ok()
}

/// Returns the most bytes of a batch that a topic with these options takes. It has to fit into a
/// segment, too.
pub fn batch_limit_of(options: &HashMap<String, String>) -> Option<usize> {
    let segment = options.get("segment.bytes").and_then(|bytes| bytes.parse().ok());
    let limit = limit_of(options)?;
    Some(segment.map_or(limit, |segment: usize| segment.min(limit)))
}

/// Asks for a topic's options, such as `retention.ms`.
///
/// # Errors
///
/// As [`ask_what_it_takes`].
pub fn topic_options(
    config: &Config,
    topic: &str,
    patience: Duration,
) -> Result<HashMap<String, String>, String> {
    one(options_of(config, &[ResourceSpecifier::Topic(topic)], WHAT_TOPICS, patience))
}

/// Asks for a broker's options, such as `transaction.max.timeout.ms`.
///
/// # Errors
///
/// As [`ask_what_it_takes`]; it takes the right to describe the cluster's configuration.
pub fn broker_options(
    config: &Config,
    broker: i32,
    patience: Duration,
) -> Result<HashMap<String, String>, String> {
    one(options_of(config, &[ResourceSpecifier::Broker(broker)], "the broker's options", patience))
}

/// What the brokers say of a topic or a broker: its options, or in words why not.
type Options = Result<HashMap<String, String>, String>;

fn one(answers: Result<Vec<Options>, String>) -> Options {
    answers?.pop().unwrap_or_else(|| Err(SAY_NOTHING.into()))
}

/// Asks for the options of several resources in one request; the answers are in their order.
fn options_of(
    config: &Config,
    resources: &[ResourceSpecifier<'_>],
    what: &str,
    patience: Duration,
) -> Result<Vec<Options>, String> {
    if config.kafka.bearer_token_file().is_some() {
        return Err("rdkafka's admin client can't log in with a bearer token".into());
    }
    let cannot = |reason: &dyn std::fmt::Display| format!("{what} can't be read: {reason}");
    let runtime = tokio::runtime::Builder::new_current_thread().build().map_err(|e| cannot(&e))?;
    let client: AdminClient<Asker> =
        admin_properties(config).create_with_context(Asker::default()).map_err(|e| cannot(&e))?;
    let options = AdminOptions::new().request_timeout(Some(patience));
    let described =
        runtime.block_on(client.describe_configs(resources, &options)).map_err(|e| cannot(&e))?;
    // librdkafka keeps the order of the questions, and a refusal doesn't name its resource.
    let answers = described.into_iter().map(|resource| {
        let resource = resource.map_err(|code| cannot(&code))?;
        let entries = resource.entries.into_iter();
        Ok(entries.filter_map(|entry| Some((entry.name, entry.value?))).collect())
    });
    Ok(answers.collect())
}

/// Finds out whether a topic with this limit may be written, and leaves no record in it.
pub fn ask(
    config: &Config,
    topic: &str,
    limit: usize,
    patience: Duration,
    shutdown: &Shutdown,
) -> Answer {
    if limit > PROBE_BYTES_MAX {
        return Answer::Untried(format!("its max.message.bytes is {limit}"));
    }
    let (sender, reports) = crossbeam_channel::bounded(1);
    let mut properties = producer_properties(config);
    properties
        .set("message.timeout.ms", patience.as_millis().to_string())
        .set("message.max.bytes", (2 * PROBE_BYTES_MAX).to_string())
        .set("compression.type", "none")
        .set("enable.idempotence", "false")
        .set("linger.ms", "0");
    let producer: BaseProducer<Reporter> = match properties.create_with_context(Reporter(sender)) {
        Ok(producer) => producer,
        Err(error) => return Answer::Untried(error.to_string()),
    };
    let value = vec![0u8; limit + 1];
    let record = BaseRecord::<str, [u8]>::to(topic).key("capvec-check").payload(&value);
    if let Err((error, _)) = producer.send(record) {
        return Answer::Untried(error.to_string());
    }
    // A little more, for the report of a record that ran out of time.
    let until = Instant::now() + patience + 10 * STEP;
    while Instant::now() < until && shutdown.wanted() == Wanted::Run {
        producer.poll(STEP);
        match reports.try_recv() {
            Ok(Some(RDKafkaErrorCode::MessageSizeTooLarge)) => return Answer::Allowed,
            Ok(Some(RDKafkaErrorCode::MessageTimedOut)) => return Answer::None,
            Ok(Some(code)) => return Answer::Refused(code),
            Ok(None) => return Answer::Taken,
            Err(_) => {}
        }
    }
    Answer::None
}

/// Keeps a producer's batches within what a topic takes: a larger one would be refused whole, with
/// records that the topic would have taken one by one.
pub fn limit_batches(properties: &mut ClientConfig, limit: usize) {
    let wanted = properties.get("batch.size").and_then(|size| size.parse().ok());
    properties.set("batch.size", wanted.unwrap_or(BATCH_SIZE).min(limit).to_string());
}

/// Receives what became of the record: `None` where it was taken.
struct Reporter(crossbeam_channel::Sender<Option<RDKafkaErrorCode>>);

impl ClientContext for Reporter {
    const ENABLE_REFRESH_OAUTH_TOKEN: bool = true;

    fn generate_oauth_token(&self, file: Option<&str>) -> Result<OAuthToken, Box<dyn Error>> {
        bearer::answer(file)
    }

    fn log(&self, _level: RDKafkaLogLevel, _facility: &str, _message: &str) {}
    fn error(&self, _error: KafkaError, _reason: &str) {}
}

impl ProducerContext for Reporter {
    type DeliveryOpaque = ();

    fn delivery(&self, result: &DeliveryResult<'_>, (): ()) {
        let code = result.as_ref().err().and_then(|(error, _)| error.rdkafka_error_code());
        // One record, one report; whoever gave up waiting doesn't listen.
        let _ = self.0.try_send(code);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_are_no_larger_than_the_smallest_limit() {
        let size = |set: Option<&str>, limit| {
            let mut properties = ClientConfig::new();
            if let Some(set) = set {
                properties.set("batch.size", set);
            }
            limit_batches(&mut properties, limit);
            properties.get("batch.size").map(str::to_owned)
        };
        assert_eq!(size(None, 1_048_588).as_deref(), Some("1000000"));
        assert_eq!(size(None, 12_000).as_deref(), Some("12000"));
        assert_eq!(size(Some("5000"), 12_000).as_deref(), Some("5000"));
        assert_eq!(size(Some("50000"), 12_000).as_deref(), Some("12000"));
    }

    #[test]
    fn a_batch_is_no_larger_than_a_message_may_be_and_a_segment() {
        let limits = |options: &[(&str, &str)]| {
            let own = |(name, value): &(&str, &str)| (String::from(*name), String::from(*value));
            takes("out", &options.iter().map(own).collect())
                .map(|(takes, limit)| (takes.bytes_max, limit))
        };
        let [message, large] = ["1048588", "10000000"].map(|bytes| ("max.message.bytes", bytes));
        let segment = ("segment.bytes", "1073741824");
        assert_eq!(limits(&[message, segment]), Ok((1_048_588, 1_048_588)));
        // The record that nobody is to keep has to be over max.message.bytes: a broker may have
        // compressed it before it looks at segment.bytes.
        assert_eq!(limits(&[large, ("segment.bytes", "1048576")]), Ok((1_048_576, 10_000_000)));
        assert_eq!(limits(&[large]), Ok((10_000_000, 10_000_000)));
        assert!(limits(&[segment]).is_err());
    }

    #[test]
    fn a_batch_size_that_is_not_set_is_librdkafkas() {
        let default = ClientConfig::new().create_native_config().unwrap();
        assert_eq!(default.get("batch.size").unwrap(), BATCH_SIZE.to_string());
    }
}

//! Kafka: the properties of the clients.

pub mod acknowledged;
mod anew;
pub mod asker;
pub mod bearer;
pub mod breaker;
mod caller;
pub mod committer;
pub mod consumer;
pub mod dead_letter;
pub mod known;
mod log;
pub mod login;
pub mod offsets;
pub mod reach;
pub mod renewed;
pub mod sequencer;
pub mod sink;
pub mod source;
pub mod timestamps;
pub mod topics;
pub mod transaction;
pub mod writable;

use rdkafka::ClientConfig;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::topic_partition_list::Offset;

use crate::config::Config;
use log::{log, log_client_error};

/// How often the clients report statistics, from which the lag comes, and which brokers are
/// connected.
const STATISTICS_INTERVAL_MS: u32 = 2_000;

/// Returns the properties of the consumer. Those that a user may change come first, so that the map
/// overrides them; those that delivery depends on come last.
pub fn consumer_properties(config: &Config) -> ClientConfig {
    let mut client = ClientConfig::new();
    // In KIP-848's protocol the brokers assign, and librdkafka refuses a strategy beside it.
    if !brokers_assign(config) {
        client.set("partition.assignment.strategy", "cooperative-sticky");
    }
    client
        // A group without offsets begins at the beginning: nothing is skipped.
        .set("auto.offset.reset", "earliest")
        // The worker holds captions itself, and a pause throws away what is fetched ahead.
        .set("queued.max.messages.kbytes", "8192");
    common_properties(&mut client, config);
    if group_begins(config) == Some(Offset::End) {
        // What that means the source asks for by itself. librdkafka would do the same where the
        // topic has deleted what comes next, and skip all that is left.
        client.set("auto.offset.reset", "earliest");
    }
    client
        .set("group.id", &config.kafka.group)
        .set("enable.auto.commit", "false")
        .set("enable.auto.offset.store", "false")
        .set("isolation.level", "read_committed")
        .set("statistics.interval.ms", STATISTICS_INTERVAL_MS.to_string());
    client
}

/// Returns where a group without an offset begins; `None` where that is an error. The names are
/// librdkafka's.
fn group_begins(config: &Config) -> Option<Offset> {
    match config.kafka.property("auto.offset.reset").map(str::to_lowercase).as_deref() {
        None | Some("earliest" | "smallest" | "beginning") => Some(Offset::Beginning),
        Some("latest" | "largest" | "end") => Some(Offset::End),
        Some(_) => None,
    }
}

/// Returns whether the group's protocol is KIP-848's, in which the brokers share the partitions
/// out.
fn brokers_assign(config: &Config) -> bool {
    config.kafka.property("group.protocol").is_some_and(|it| it.eq_ignore_ascii_case("consumer"))
}

/// Returns the properties of the producer.
pub fn producer_properties(config: &Config) -> ClientConfig {
    let mut client = ClientConfig::new();
    client
        .set("linger.ms", "1")
        // A dead letter is as large as the message that it was; the brokers' limit decides, not
        // librdkafka's smaller one.
        .set("message.max.bytes", "67108864");
    common_properties(&mut client, config);
    client
        .set("enable.idempotence", "true")
        .set("acks", "all")
        .set("partitioner", "murmur2_random")
        .set("message.timeout.ms", config.kafka.delivery_timeout.as_millis().to_string())
        .set("queue.buffering.max.messages", config.in_flight_bound().to_string())
        .set("statistics.interval.ms", STATISTICS_INTERVAL_MS.to_string());
    client
}

/// Returns the properties of the producer of exactly-once delivery.
///
/// # Panics
///
/// When the configuration hasn't been validated.
pub fn transactional_properties(config: &Config) -> ClientConfig {
    let mut client = producer_properties(config);
    let id = config.transactional_id().expect("validated: delivery.transactional_id");
    let timeout = config.delivery.transaction_timeout;
    // A record that takes longer than the transaction may is sent again in the next one.
    let record = config.kafka.delivery_timeout.min(timeout);
    client
        .set("transactional.id", id)
        .set("transaction.timeout.ms", timeout.as_millis().to_string())
        .set("message.timeout.ms", record.as_millis().to_string());
    client
}

/// Returns the properties of a client that only asks.
pub fn admin_properties(config: &Config) -> ClientConfig {
    let mut client = ClientConfig::new();
    common_properties(&mut client, config);
    client
}

fn common_properties(client: &mut ClientConfig, config: &Config) {
    for (key, value) in config.kafka.properties() {
        client.set(key, value);
    }
    if let Some(path) = config.kafka.bearer_token_file() {
        // The one property that librdkafka hands to whoever answers it with a token.
        client.set("sasl.oauthbearer.config", path.to_string_lossy());
    }
    client
        .set("bootstrap.servers", &config.kafka.brokers)
        .set("client.id", &config.kafka.client_id)
        // Above the level nothing is heard of what librdkafka was told to tell.
        .set_log_level(match config.kafka.property("debug") {
            Some(_) => RDKafkaLogLevel::Debug,
            None => RDKafkaLogLevel::Info,
        });
}

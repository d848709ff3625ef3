//! The bare client of `capvec bench host`: consumes captions, and produces for each a record of the
//! size of a vector's, with its key and the headers that the worker writes. What the worker takes
//! beyond it is decoding, tokenizing, batching, keeping account and making the values.

use std::time::{Duration, Instant};

use clap::Args;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};
use rdkafka::error::RDKafkaErrorCode;
use rdkafka::message::{BorrowedHeaders, Header, Message};
use rdkafka::producer::{BaseRecord, DefaultProducerContext, ThreadedProducer};

use crate::cli::ConfigArgs;
use crate::kafka::{consumer_properties, producer_properties};
use crate::wire::vector::{
    DTYPE, HEADER_DIM, HEADER_DTYPE, HEADER_MODEL, HEADER_SOURCE, HEADER_TOKENS, HEADER_TRUNCATED,
};

/// The longest wait for a caption.
const TICK: Duration = Duration::from_millis(100);

/// Between two tries while the producer's queue is full.
const QUEUE_FULL_PAUSE: Duration = Duration::from_millis(5);

/// Arguments of the bare client.
#[derive(Debug, Args)]
pub struct RelayArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// Bytes of a record's value.
    #[arg(long, value_name = "N")]
    value_bytes: usize,
    /// The model id in the headers.
    #[arg(long, value_name = "ID")]
    model_id: String,
    /// The number of numbers in the headers.
    #[arg(long, value_name = "N")]
    dim: usize,
}

/// Moves messages until it is killed.
///
/// # Errors
///
/// When the brokers refuse.
pub fn run(args: &RelayArgs) -> anyhow::Result<()> {
    let config = args.config.load()?;
    let consumer: BaseConsumer = consumer_properties(&config).create()?;
    let producer: ThreadedProducer<DefaultProducerContext> =
        producer_properties(&config).create()?;
    consumer.subscribe(&[&config.input.topic])?;
    let value = vec![b'0'; args.value_bytes];
    let dim = args.dim.to_string();
    let mut last_commit = Instant::now();
    loop {
        if let Some(message) = consumer.poll(TICK) {
            let message = message?;
            let source =
                format!("{}/{}/{}", message.topic(), message.partition(), message.offset());
            let own = message.headers().map(BorrowedHeaders::detach).unwrap_or_default();
            let headers = [
                (HEADER_MODEL, args.model_id.as_str()),
                (HEADER_DIM, &dim),
                (HEADER_DTYPE, DTYPE),
                (HEADER_SOURCE, &source),
                // It doesn't tokenize; most captions have two digits of tokens.
                (HEADER_TOKENS, "20"),
                (HEADER_TRUNCATED, "false"),
            ]
            .into_iter()
            .fold(own, |headers, (key, value)| headers.insert(Header { key, value: Some(value) }));
            let mut record = BaseRecord::<[u8], [u8]> {
                topic: &config.output.topic,
                partition: None,
                payload: Some(&value),
                key: message.key(),
                timestamp: message.timestamp().to_millis(),
                headers: Some(headers),
                delivery_opaque: (),
            };
            while let Err((error, back)) = producer.send(record) {
                if error.rdkafka_error_code() != Some(RDKafkaErrorCode::QueueFull) {
                    return Err(error.into());
                }
                std::thread::sleep(QUEUE_FULL_PAUSE);
                record = back;
            }
            consumer.store_offset_from_message(&message)?;
        }
        if last_commit.elapsed() >= config.delivery.commit_interval {
            last_commit = Instant::now();
            // Before the first message there is nothing to commit, which librdkafka calls an error.
            drop(consumer.commit_consumer_state(CommitMode::Async));
        }
    }
}

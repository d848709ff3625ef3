//! The bare client of `capvec bench host`: consumes captions, and produces for each a record with
//! its key, the headers that the worker writes, and a value of the worker's kind, made beforehand.
//! What the worker takes beyond it is decoding, tokenizing, batching, keeping account and making
//! the values.

use std::time::{Duration, Instant};

use clap::Args;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};
use rdkafka::error::RDKafkaErrorCode;
use rdkafka::message::{BorrowedHeaders, Header, Message};
use rdkafka::producer::{BaseRecord, DefaultProducerContext, ThreadedProducer};

use crate::cli::ConfigArgs;
use crate::embed::hash::HashEmbedder;
use crate::kafka::{consumer_properties, producer_properties};
use crate::wire::caption::Id;
use crate::wire::vector::{
    DTYPE, HEADER_DIM, HEADER_DTYPE, HEADER_MODEL, HEADER_SOURCE, HEADER_TOKENS, HEADER_TRUNCATED,
    JsonVector, VectorFormat, native, write_json,
};

/// The longest wait for a caption.
const TICK: Duration = Duration::from_millis(100);

/// Between two tries while the producer's queue is full.
const QUEUE_FULL_PAUSE: Duration = Duration::from_millis(5);

/// Bytes of values before the first comes again: more than are compressed together, which is
/// librdkafka's `batch.size`, a million bytes. There a value that comes twice would take next to
/// nothing.
const VALUES_BYTES: usize = 2 << 20;

/// Arguments of the bare client.
#[derive(Debug, Args)]
pub struct RelayArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// The model id in headers and values.
    #[arg(long, value_name = "ID")]
    model_id: String,
    /// The number of numbers of a vector.
    #[arg(long, value_name = "N")]
    dim: usize,
}

/// Returns values as the worker makes them with the hash embedder, for captions of one token each.
pub fn values(format: VectorFormat, dim: usize, model: &str) -> Vec<Vec<u8>> {
    let embedder = HashEmbedder::new(dim);
    let mut values = Vec::new();
    let mut bytes = 0;
    for number in 0u32.. {
        let vector = embedder.vector([number]);
        let mut value = Vec::new();
        match format {
            VectorFormat::Native => value.extend_from_slice(&native(&vector)),
            VectorFormat::Json => {
                let id = Id::Text(number.to_string());
                write_json(
                    &JsonVector { id: &id, caption: None, vector: &vector, model },
                    &mut value,
                );
            }
        }
        bytes += value.len();
        values.push(value);
        if bytes >= VALUES_BYTES {
            break;
        }
    }
    values
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
    let values = values(config.output.format, args.dim, &args.model_id);
    let mut values = values.iter().cycle();
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
                payload: values.next().map(Vec::as_slice),
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn values_are_vectors_and_none_comes_twice_in_what_is_compressed_together() {
        const DIM: usize = 640;
        for format in [VectorFormat::Native, VectorFormat::Json] {
            let values = values(format, DIM, "m@1");
            assert!(values.iter().map(Vec::len).sum::<usize>() > 1_000_000);
            for value in &values {
                let vector: Vec<f32> = match format {
                    VectorFormat::Native => {
                        let numbers = value.chunks_exact(4);
                        numbers.map(|n| f32::from_le_bytes(n.try_into().unwrap())).collect()
                    }
                    VectorFormat::Json => {
                        let mut json: serde_json::Value = serde_json::from_slice(value).unwrap();
                        assert_eq!(json["model"], "m@1");
                        serde_json::from_value(json["vector"].take()).unwrap()
                    }
                };
                assert_eq!(vector.len(), DIM);
                let different: HashSet<u32> = vector.iter().map(|n| n.to_bits()).collect();
                assert!(different.len() > DIM * 9 / 10, "{} numbers", different.len());
                assert!(vector.iter().all(|number| (-1.0..1.0).contains(number)));
            }
            let different: HashSet<&Vec<u8>> = values.iter().collect();
            assert_eq!(different.len(), values.len());
        }
    }
}

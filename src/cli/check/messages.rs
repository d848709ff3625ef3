//! Reads messages of the input topic from where a worker of the group would begin.
//!
//! It joins no group, commits nothing, and takes nothing from a worker that runs.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

use super::captions::{Judge, Judged};
use super::topic_in_words;
use crate::cli::{PATIENCE, patience};
use crate::config::Config;
use crate::kafka::asker::Asker;
use crate::kafka::consumer::is_final;
use crate::kafka::consumer_properties;
use crate::kafka::topics::Inquiry;
use crate::shutdown::Shutdown;
use crate::tokenize::Tokenizer;

/// Most messages with a value that are judged.
const MESSAGES_MAX: usize = 100;

/// How long a request for the group's offsets may take; what is left of the whole is tried again.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(2);

/// Between two of these requests.
const PAUSE: Duration = Duration::from_millis(100);

/// How many offsets before the end of each partition it begins where nothing is left for the group.
const LAST_OFFSETS: i64 = 10;

/// Reads messages from where the group is, or the last ones where it has read all; says how many
/// and from where.
pub(super) fn read(
    config: &Config,
    tokenizer: Option<&Tokenizer>,
) -> anyhow::Result<(String, Judged)> {
    let mut properties = consumer_properties(config);
    properties.set("enable.partition.eof", "true");
    let consumer: BaseConsumer<Asker> = properties.create_with_context(Asker::default())?;
    let topic = &config.input.topic;
    let refused = RefCell::new(None);
    let inquiry = Inquiry {
        client: consumer.client(),
        serve: &|patience| note_refusal(&consumer, patience, &refused),
        brokers: &config.kafka.brokers,
        patience: patience(config),
        shutdown: &Shutdown::default(),
    };
    let partitions = inquiry.partitions_of(topic, "input.topic")?;
    let begins = begins_of_group(&consumer, config, partitions, &refused)?;
    let judge = Judge::new(config, tokenizer);
    let unreadable = || format!("{topic:?} can't be read");
    let mut judged = judge_from(&consumer, &begins, &judge).with_context(unreadable)?;
    let group = &config.kafka.group;
    let mut said = match judged.read() {
        1 => format!("a message was read from where the group {group:?} would begin"),
        read => format!("{read} messages were read from where the group {group:?} would begin"),
    };
    if judged.messages == 0 {
        let last = last_offsets(&consumer, topic, partitions).with_context(unreadable)?;
        let found = judge_from(&consumer, &last, &judge).with_context(unreadable)?;
        if found.messages > 0 {
            judged = found;
            let last = match judged.read() {
                1 => "the last message was read".into(),
                read => format!("the last {read} messages were read"),
            };
            said = format!("nothing is left for the group {group:?}, so {last}");
        }
    }
    if judged.read() == 0 {
        said = "nothing to read now".into();
    }
    Ok((format!("{}; {said}", topic_in_words(topic, partitions)), judged))
}

/// Polls a consumer that has no messages yet, and notes in `refused` if the group isn't for it: of
/// that librdkafka tells once, and whoever asks for the group's offsets waits in vain.
fn note_refusal(
    consumer: &BaseConsumer<Asker>,
    patience: Duration,
    refused: &RefCell<Option<RDKafkaErrorCode>>,
) {
    if let Some(Err(error)) = consumer.poll(patience)
        && is_final(&error)
    {
        *refused.borrow_mut() = error.rdkafka_error_code();
    }
}

/// Returns from where a worker of the group would read; what the group has behind it no worker
/// will.
fn begins_of_group(
    consumer: &BaseConsumer<Asker>,
    config: &Config,
    partitions: usize,
    refused: &RefCell<Option<RDKafkaErrorCode>>,
) -> anyhow::Result<TopicPartitionList> {
    let topic = &config.input.topic;
    let mut list = TopicPartitionList::new();
    list.add_partition_range(topic, 0, partitions as i32 - 1);
    let group = &config.kafka.group;
    let deadline = Instant::now() + PATIENCE;
    let committed = loop {
        note_refusal(consumer, PAUSE, refused);
        if let Some(code) = *refused.borrow() {
            bail!("the brokers refuse the group {group:?} (kafka.group): {code}");
        }
        match consumer.committed_offsets(list.clone(), REQUEST_TIMEOUT) {
            Ok(committed) => break committed,
            // Of a group that is asked for the first time, the coordinator is still being found.
            Err(error) if Instant::now() < deadline && is_transient(&error) => {}
            Err(error) => {
                return Err(error).with_context(|| format!("the group {group:?} can't be read"));
            }
        }
    };
    list.set_all_offsets(Offset::Beginning)?;
    for partition in committed.elements() {
        if let Offset::Offset(_) = partition.offset() {
            list.set_partition_offset(topic, partition.partition(), partition.offset())?;
        }
    }
    Ok(list)
}

/// Returns the last offsets of the partitions that have any.
fn last_offsets(
    consumer: &BaseConsumer<Asker>,
    topic: &str,
    partitions: usize,
) -> anyhow::Result<TopicPartitionList> {
    let mut list = TopicPartitionList::new();
    for partition in 0..partitions as i32 {
        let (low, high) = consumer.fetch_watermarks(topic, partition, PATIENCE)?;
        if low < high {
            let begin = low.max(high - LAST_OFFSETS);
            list.add_partition_offset(topic, partition, Offset::Offset(begin))?;
        }
    }
    Ok(list)
}

/// Looks at messages up to the ends of all partitions, or so many as are enough. Errors that pass,
/// as of one of several brokers, are passed over, as the worker does.
fn judge_from(
    consumer: &BaseConsumer<Asker>,
    begins: &TopicPartitionList,
    judge: &Judge<'_>,
) -> anyhow::Result<Judged> {
    // Assigned by hand, this joins no group.
    consumer.assign(begins)?;
    let partitions = begins.count();
    let deadline = Instant::now() + PATIENCE;
    let mut judged = Judged::default();
    let mut ends = BTreeSet::new();
    let mut trouble = None;
    while ends.len() < partitions && judged.messages < MESSAGES_MAX {
        match consumer.poll(deadline.saturating_duration_since(Instant::now())) {
            Some(Ok(message)) => judged.take(&message, judge),
            Some(Err(KafkaError::PartitionEOF(partition))) => drop(ends.insert(partition)),
            Some(Err(error)) if is_final(&error) => return Err(error.into()),
            Some(Err(error)) => trouble = Some(error),
            None => {}
        }
        if Instant::now() >= deadline {
            if judged.read() > 0 {
                break;
            }
            let reason = trouble.map_or("they say nothing".into(), |error| error.to_string());
            let without = partitions - ends.len();
            bail!(
                "{without} of {partitions} partitions didn't answer within {PATIENCE:?}: {reason}"
            );
        }
    }
    consumer.unassign()?;
    Ok(judged)
}

fn is_transient(error: &KafkaError) -> bool {
    matches!(
        error.rdkafka_error_code(),
        Some(
            RDKafkaErrorCode::OperationTimedOut
                | RDKafkaErrorCode::NotCoordinator
                | RDKafkaErrorCode::CoordinatorNotAvailable
                | RDKafkaErrorCode::CoordinatorLoadInProgress
        )
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::embedded::EmbeddedBroker;
    use rdkafka::types::{RDKafkaApiKey, RDKafkaRespErr};

    #[test]
    fn a_group_that_is_refused_is_told_as_that() {
        let broker = EmbeddedBroker::start(&[("captions", 1)]).unwrap();
        let refusals = [RDKafkaRespErr::RD_KAFKA_RESP_ERR_GROUP_AUTHORIZATION_FAILED; 1000];
        broker.cluster().request_errors(RDKafkaApiKey::FindCoordinator, &refusals);
        let mut config = Config::default();
        config.kafka.brokers = broker.bootstrap();
        config.kafka.group = "theirs".into();
        config.input.topic = "captions".into();
        let said = read(&config, None).unwrap_err().to_string();
        assert!(
            said.starts_with("the brokers refuse the group \"theirs\" (kafka.group): "),
            "{said}"
        );
        assert!(said.contains("GroupAuthorizationFailed"), "{said}");
    }
}

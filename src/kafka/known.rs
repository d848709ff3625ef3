//! Which partitions of its topic a group begins at the ends of, where it is told to.
//!
//! A group commits where it begins in a partition before it takes a message from it. So once it has
//! an offset, it has begun: a partition of which it has none was added since, or was never begun
//! with, and is read from its beginning. (Whether others behind it have offsets tells nothing:
//! members commit each for its own, one may be gone before it has, and all that came into its
//! partitions would be passed over.) That must be asked before the group is joined: of one that has
//! just begun, the members commit one after the other.

use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::error::KafkaResult;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

use super::consumer::is_final;
use super::group_begins;
use super::topics::TopicError;
use crate::config::Config;
use crate::shutdown::{Shutdown, Wanted};

/// One question waits this long; what is left of the whole is tried again.
const PATIENCE: Duration = Duration::from_secs(2);

/// Between two questions, in which the client's callbacks are served.
const PAUSE: Duration = Duration::from_millis(200);

/// Waits until the group's offsets are told, and returns how many of the input topic's partitions
/// the group begins with: all, where it has no offset yet, and else none. It matters nowhere but
/// where a group begins at the end, and isn't asked for elsewhere.
///
/// # Errors
///
/// When they aren't told: to take it for a group that begins now is to pass over what it has left.
pub fn known_to_group<C: ConsumerContext>(
    config: &Config,
    client: &BaseConsumer<C>,
    partitions: usize,
    shutdown: &Shutdown,
) -> Result<usize, TopicError> {
    if group_begins(config) != Some(Offset::End) {
        return Ok(partitions);
    }
    let group = &config.kafka.group;
    let until = Instant::now() + config.kafka.startup_timeout;
    loop {
        let error = match has_begun(client, &config.input.topic, partitions) {
            Ok(has_begun) => return Ok(if has_begun { 0 } else { partitions }),
            Err(error) => error,
        };
        if shutdown.wanted() != Wanted::Run {
            return Err(TopicError::Stopped { brokers: config.kafka.brokers.clone() });
        }
        if is_final(&error) || Instant::now() >= until {
            return Err(TopicError::Offsets { group: group.clone(), source: error });
        }
        tracing::info!(group, %error, "waiting for the group's offsets");
        drop(client.poll(PAUSE));
    }
}

/// Returns whether the group has an offset of any partition.
fn has_begun<C: ConsumerContext>(
    client: &BaseConsumer<C>,
    topic: &str,
    partitions: usize,
) -> KafkaResult<bool> {
    let mut all = TopicPartitionList::with_capacity(partitions);
    all.add_partition_range(topic, 0, partitions as i32 - 1);
    let mut has_begun = false;
    for element in client.committed_offsets(all, PATIENCE)?.elements() {
        element.error()?;
        has_begun |= matches!(element.offset(), Offset::Offset(_));
    }
    Ok(has_begun)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::embedded::EmbeddedBroker;
    use crate::kafka::asker::Asker;
    use rdkafka::consumer::CommitMode;
    use rdkafka::types::{RDKafkaApiKey, RDKafkaRespErr};

    #[test]
    fn a_group_that_has_begun_somewhere_begins_with_no_partition_any_more() {
        let broker = EmbeddedBroker::start(&[("captions", 5)]).unwrap();
        let client = broker.client().set("group.id", "group").clone();
        let client: BaseConsumer<Asker> = client.create_with_context(Asker::default()).unwrap();
        let mut config = Config::default();
        config.input.topic = "captions".into();
        let latest = ("auto.offset.reset".into(), "latest".into());
        config.kafka.librdkafka.0.extend([latest]);
        let known = || known_to_group(&config, &client, 5, &Shutdown::default()).unwrap();
        assert_eq!(known(), 5, "it begins now");

        // The last one: whoever was given those before it may be gone without a word.
        let mut offsets = TopicPartitionList::new();
        offsets.add_partition_offset("captions", 4, Offset::Offset(0)).unwrap();
        client.commit(&offsets, CommitMode::Sync).unwrap();
        assert_eq!(known(), 0);

        // Of a group that isn't told of nothing is taken for known.
        let failed = RDKafkaRespErr::RD_KAFKA_RESP_ERR_UNKNOWN;
        broker.cluster().request_errors(RDKafkaApiKey::OffsetFetch, &[failed; 2]);
        assert_eq!(known(), 0);
    }
}

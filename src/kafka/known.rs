//! Which partitions of its topic a group knows, where it was to begin at their ends.
//!
//! A group commits where it begins in a partition before it takes a message from it. So where it
//! has offsets, a partition beyond them was added later, and is to be read from its beginning. That
//! must be asked before the group is joined: of one that has just begun, the members commit one
//! after the other.

use std::time::Duration;

use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

use super::group_begins;
use crate::config::Config;

/// How long the coordinator is waited for.
const PATIENCE: Duration = Duration::from_secs(5);

/// Returns how many of the input topic's partitions the group knows: all, where it has no offset yet
/// and where that isn't told. It matters nowhere but where a group begins at the end.
pub fn known_to_group<C: ConsumerContext>(
    config: &Config,
    client: &BaseConsumer<C>,
    partitions: usize,
) -> usize {
    if group_begins(config) != Some(Offset::End) {
        return partitions;
    }
    let topic = &config.input.topic;
    let mut all = TopicPartitionList::with_capacity(partitions);
    all.add_partition_range(topic, 0, partitions as i32 - 1);
    let committed = match client.committed_offsets(all, PATIENCE) {
        Ok(committed) => committed,
        Err(error) => {
            tracing::warn!(topic, %error, "the group's offsets weren't told: its partitions are taken for known");
            return partitions;
        }
    };
    let elements = committed.elements();
    let begun = elements.iter().filter(|element| matches!(element.offset(), Offset::Offset(_)));
    begun.map(|element| element.partition() as usize + 1).max().unwrap_or(partitions)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::embedded::EmbeddedBroker;
    use rdkafka::consumer::CommitMode;

    #[test]
    fn a_group_knows_the_partitions_up_to_its_last_offset() {
        let broker = EmbeddedBroker::start(&[("captions", 5)]).unwrap();
        let client: BaseConsumer = broker.client().set("group.id", "group").create().unwrap();
        let mut config = Config::default();
        config.input.topic = "captions".into();
        let latest = ("auto.offset.reset".into(), "latest".into());
        config.kafka.librdkafka.0.extend([latest]);
        assert_eq!(known_to_group(&config, &client, 5), 5, "it begins now");
        let mut offsets = TopicPartitionList::new();
        for partition in [0, 2] {
            offsets.add_partition_offset("captions", partition, Offset::Offset(0)).unwrap();
        }
        client.commit(&offsets, CommitMode::Sync).unwrap();
        assert_eq!(known_to_group(&config, &client, 5), 3);
    }
}

//! Captions that the topic deletes before a worker has received them, on a real Kafka.

use rdkafka::admin::AdminOptions;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

use crate::support::{Cluster, Worker, captions, eventually};

const DELETED: &str = "capvec_messages_deleted_unread_total";

fn delete_before(cluster: &Cluster, topic: &str, offset: i64) {
    let mut before = TopicPartitionList::new();
    before.add_partition_offset(topic, 0, Offset::Offset(offset)).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let deleted = cluster.admin().delete_records(&before, &AdminOptions::new());
    let deleted = runtime.block_on(deleted).unwrap();
    deleted.elements().iter().for_each(|partition| partition.error().unwrap());
}

#[test]
fn captions_that_the_topic_deleted_unread_are_counted_and_told() {
    let cluster = Cluster::shared();
    cluster.create_topics("deleted", 1);
    cluster.send("deleted", &captions(5));
    let worker = Worker::start(&cluster, "deleted", &[]).ready();
    cluster.await_records("deleted.out", 5);
    assert_eq!(worker.metric(DELETED), Some(0.0));
    worker.stop();

    // While it is away there come twenty, and twelve of them go.
    cluster.send("deleted", &captions(20));
    delete_before(&cluster, "deleted", 17);
    let worker = Worker::start(&cluster, "deleted", &[]).ready();
    let out = cluster.await_records("deleted.out", 13);
    assert_eq!(out[5].header("capvec.source"), "deleted/0/17");
    eventually("the deleted ones are counted", || (worker.metric(DELETED)? == 12.0).then_some(()));
    let log = worker.stop();
    let line = log.lines().find(|line| line.contains("the topic deleted messages")).unwrap();
    assert!(line.contains("partition=0 from=5 to=17 at_most=12"), "{line}");
}

#[test]
fn a_partition_in_which_nothing_was_received_yet_has_a_beginning_to_count_from() {
    let cluster = Cluster::shared();
    for mode in ["at-least-once", "exactly-once"] {
        let name = format!("unread-{mode}");
        cluster.create_topics(&name, 1);
        let mode = format!("delivery.mode={mode}");
        let worker = Worker::start(&cluster, &name, &[&mode]).ready();
        let group = cluster.observe_group(&format!("{name}.group"), &name);
        eventually("the beginning is committed", || (group.committed()[&0] == 0).then_some(()));
        worker.stop();

        cluster.send(&name, &captions(20));
        delete_before(&cluster, &name, 12);
        let worker = Worker::start(&cluster, &name, &[&mode]).ready();
        cluster.await_records(&format!("{name}.out"), 8);
        eventually("the deleted ones are counted", || {
            (worker.metric(DELETED)? == 12.0).then_some(())
        });
        worker.stop();
    }
}

#[test]
fn a_group_that_begins_at_the_end_misses_nothing_that_comes_before_its_first_caption() {
    let cluster = Cluster::shared();
    for mode in ["at-least-once", "exactly-once"] {
        let name = format!("latest-{mode}");
        cluster.create_topics(&name, 1);
        cluster.send(&name, &captions(5));
        let mode = format!("delivery.mode={mode}");
        let options = ["kafka.librdkafka.auto.offset.reset=latest", &mode];
        let worker = Worker::start(&cluster, &name, &options).ready();
        let group = cluster.observe_group(&format!("{name}.group"), &name);
        eventually("the beginning is committed", || (group.committed()[&0] == 5).then_some(()));
        worker.stop();

        cluster.send(&name, &captions(3));
        let worker = Worker::start(&cluster, &name, &options).ready();
        let out = cluster.await_records(&format!("{name}.out"), 3);
        assert_eq!(out[0].header("capvec.source"), format!("{name}/0/5"));
        worker.stop();
    }
}

/// It was told to begin at the end, and not to skip what is left.
#[test]
fn a_group_that_began_at_the_end_goes_on_with_what_the_topic_has_left() {
    let cluster = Cluster::shared();
    cluster.create_topics("latest-left", 1);
    let options = ["kafka.librdkafka.auto.offset.reset=latest"];
    let worker = Worker::start(&cluster, "latest-left", &options).ready();
    let group = cluster.observe_group("latest-left.group", "latest-left");
    eventually("the beginning is committed", || (group.committed()[&0] == 0).then_some(()));
    worker.stop();

    cluster.send("latest-left", &captions(20));
    delete_before(&cluster, "latest-left", 12);
    let worker = Worker::start(&cluster, "latest-left", &options).ready();
    let out = cluster.await_records("latest-left.out", 8);
    assert_eq!(out[0].header("capvec.source"), "latest-left/0/12");
    eventually("the deleted ones are counted", || (worker.metric(DELETED)? == 12.0).then_some(()));
    worker.stop();
}

#[test]
fn a_partition_that_is_added_is_read_from_its_beginning_whatever_the_group_began_at() {
    let cluster = Cluster::shared();
    cluster.create_topics("latest-added", 1);
    cluster.send("latest-added", &captions(3));
    let options = [
        "kafka.librdkafka.auto.offset.reset=latest",
        "kafka.librdkafka.topic.metadata.refresh.interval.ms=3000",
    ];
    let worker = Worker::start(&cluster, "latest-added", &options).ready();
    let group = cluster.observe_group("latest-added.group", "latest-added");
    eventually("the beginning is committed", || (group.committed()[&0] == 3).then_some(()));
    // The worker hears of them later.
    cluster.add_partitions("latest-added", 4);
    cluster.send("latest-added", &captions(40));
    cluster.await_records("latest-added.out", 40);
    worker.stop();

    cluster.add_partitions("latest-added", 8);
    cluster.send("latest-added", &captions(80));
    // Another worker was given the last of them, and whoever was given the others is gone.
    let other: BaseConsumer =
        cluster.client().set("group.id", "latest-added.group").create().unwrap();
    let mut begun = TopicPartitionList::new();
    begun.add_partition_offset("latest-added", 7, Offset::Offset(0)).unwrap();
    other.commit(&begun, CommitMode::Sync).unwrap();
    let worker = Worker::start(&cluster, "latest-added", &options).ready();
    cluster.await_records("latest-added.out", 120);
    worker.stop();
}

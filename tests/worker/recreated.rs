//! An input topic that is deleted and made anew under a worker at work, on a real Kafka.

use crate::support::kafka::Kafka;
use crate::support::{Cluster, Worker, captions};

const BEFORE: usize = 5;
const AFTER: usize = 20;

/// Deletes the topic, makes it anew, and sends it more than it had, so that no offset tells.
fn recreate(cluster: &Cluster, topic: &str) {
    cluster.delete_topic(topic);
    cluster.create_topic(topic, 1);
    cluster.send(topic, &captions(AFTER));
}

/// Has a topic made anew under a worker. Every caption of both topics has its vector, once.
fn check(cluster: &Cluster, topic: &str, options: &[&str], before_the_end: impl FnOnce()) {
    cluster.create_topics(topic, 1);
    let mut worker = Worker::start(cluster, topic, options).ready();
    cluster.send(topic, &captions(BEFORE));
    cluster.await_settled(topic, BEFORE);
    before_the_end();
    recreate(cluster, topic);
    let status = worker.wait();
    assert_eq!(status.code(), Some(1), "{}", worker.log());
    let log = worker.log();
    assert!(log.contains("the input.topic, was deleted and made anew"), "{log}");

    let worker = Worker::start(cluster, topic, options).ready();
    let out = cluster.await_records(&format!("{topic}.out"), BEFORE + AFTER);
    let sources: Vec<&str> = out.iter().map(|record| record.header("capvec.source")).collect();
    let sent: Vec<String> =
        (0..BEFORE).chain(0..AFTER).map(|offset| format!("{topic}/0/{offset}")).collect();
    assert_eq!(sources, sent);
    worker.stop();
}

#[test]
fn of_a_topic_that_was_made_anew_all_is_embedded() {
    let cluster = Cluster::shared();
    for (name, option) in [
        ("anew", "delivery.mode=at-least-once"),
        ("anew-exactly", "delivery.mode=exactly-once"),
        ("anew-brokers", "kafka.librdkafka.group.protocol=consumer"),
        ("anew-debugged", "kafka.librdkafka.debug=cgrp"),
    ] {
        check(&cluster, name, &[option], || ());
    }
}

/// librdkafka remembers the leader's epoch, which is higher than the new topic's.
#[test]
fn of_a_topic_that_was_made_anew_after_its_leaders_had_changed_all_is_embedded() {
    let mut kafka = Kafka::start();
    let cluster = Cluster { bootstrap: kafka.bootstrap().into() };
    check(&cluster, "epochs", &[], || kafka.restart());
}

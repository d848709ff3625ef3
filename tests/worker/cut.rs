//! A partition whose end is cut off under a worker at work, on a real Kafka, and which is soon longer
//! than it was.

use crate::support::kafka::Kafka;
use crate::support::{Cluster, Worker, captions, eventually};

const BEFORE: usize = 5;
const AFTER: usize = 20;

/// Has a worker settle some captions, and puts more in their place.
fn replace(kafka: &mut Kafka, cluster: &Cluster, topic: &str, options: &[&str]) -> Worker {
    cluster.create_topics(topic, 1);
    let worker = Worker::start(cluster, topic, options).ready();
    cluster.send(topic, &captions(BEFORE));
    cluster.await_settled(topic, BEFORE);
    kafka.restart_without(topic, 0);
    cluster.send(topic, &captions(AFTER));
    worker
}

/// Holds the vectors against the captions: first those that are no more, then each of the others.
fn check(cluster: &Cluster, topic: &str) {
    let out = cluster.await_records(&format!("{topic}.out"), BEFORE + AFTER);
    let sources: Vec<&str> = out.iter().map(|record| record.header("capvec.source")).collect();
    let sent: Vec<String> =
        (0..BEFORE).chain(0..AFTER).map(|offset| format!("{topic}/0/{offset}")).collect();
    assert_eq!(sources, sent);
}

#[test]
fn what_comes_in_the_place_of_what_was_cut_off_is_embedded() {
    let mut kafka = Kafka::start();
    let cluster = Cluster { bootstrap: kafka.bootstrap().into() };
    let worker = replace(&mut kafka, &cluster, "cut", &[]);
    check(&cluster, "cut");
    worker.stop();

    let exactly_once = ["delivery.mode=exactly-once"];
    let mut worker = replace(&mut kafka, &cluster, "cut-exactly", &exactly_once);
    assert_eq!(worker.wait().code(), Some(1));
    let log = worker.log();
    let told = "where the group's offset is behind 0, set it to 0,";
    assert!(log.contains(told), "{log}");
    // As it is told to.
    let group = "cut-exactly.group";
    let args =
        ["--bootstrap-server", kafka.bootstrap(), "--group", group, "--topic", "cut-exactly"];
    let args = [&args[..], &["--reset-offsets", "--to-offset", "0", "--execute"]].concat();
    eventually("the group is empty, and has the offset", || {
        let class = "org.apache.kafka.tools.consumer.group.ConsumerGroupCommand";
        drop(kafka.tool(class, &args));
        (cluster.committed(group, "cut-exactly")[&0] == 0).then_some(())
    });
    let worker = Worker::start(&cluster, "cut-exactly", &exactly_once).ready();
    check(&cluster, "cut-exactly");
    worker.stop();
}

//! An input topic that is deleted and made anew under a worker at work, on a real Kafka.

use std::time::{Duration, Instant};

use crate::support::kafka::Kafka;
use crate::support::{Cluster, Worker, captions, eventually};

const BEFORE: usize = 5;
const AFTER: usize = 20;

/// How long the worker may take to find out: it looks every 20 s, and more than five times.
const FINDS_OUT: Duration = Duration::from_secs(300);

fn recreate(cluster: &Cluster, topic: &str) {
    cluster.delete_topic(topic);
    cluster.create_topic(topic, 1);
}

/// Every caption of both topics has its vector.
fn check(cluster: &Cluster, topic: &str) {
    let out = cluster.await_records(&format!("{topic}.out"), BEFORE + AFTER);
    let sources: Vec<&str> = out.iter().map(|record| record.header("capvec.source")).collect();
    let sent: Vec<String> =
        (0..BEFORE).chain(0..AFTER).map(|offset| format!("{topic}/0/{offset}")).collect();
    assert_eq!(sources, sent);
}

#[test]
fn of_a_topic_that_was_made_anew_all_is_embedded() {
    let cluster = Cluster::shared();
    cluster.create_topics("anew", 1);
    let worker = Worker::start(&cluster, "anew", &[]).ready();
    cluster.send("anew", &captions(BEFORE));
    cluster.await_records("anew.out", BEFORE);
    recreate(&cluster, "anew");
    eventually("the consumer has found out", || {
        worker.log().contains("offset reset").then_some(())
    });
    cluster.send("anew", &captions(AFTER));
    check(&cluster, "anew");
    worker.stop();
}

/// librdkafka remembers the leader's epoch, which is higher than the new topic's, and stands still.
#[test]
fn a_worker_that_hears_nothing_of_a_topic_that_was_made_anew_ends_and_says_so() {
    let mut kafka = Kafka::start();
    let cluster = Cluster { bootstrap: kafka.bootstrap().into() };
    cluster.create_topics("epochs", 1);
    let mut worker = Worker::start(&cluster, "epochs", &[]).ready();
    cluster.send("epochs", &captions(BEFORE));
    cluster.await_records("epochs.out", BEFORE);
    kafka.restart();
    recreate(&cluster, "epochs");
    cluster.send("epochs", &captions(AFTER));
    let deadline = Instant::now() + FINDS_OUT;
    let status = loop {
        if let Some(status) = worker.ended() {
            break status;
        }
        assert!(Instant::now() < deadline, "it goes on\n{}", worker.log());
        std::thread::park_timeout(Duration::from_millis(100));
    };
    assert_eq!(status.code(), Some(1), "{}", worker.log());
    let log = worker.log();
    assert!(
        log.contains("knows partition 0 up to offset 5, and the brokers end it at 20"),
        "{log}"
    );

    let worker = Worker::start(&cluster, "epochs", &[]).ready();
    check(&cluster, "epochs");
    worker.stop();
}

//! A worker that is cut off from its brokers: it must not look as if it had nothing to do.

use serde_json::Value;

use crate::support::kafka::Kafka;
use crate::support::{Cluster, Outgoing, Worker, capvec_ok, eventually};

const CONSUMER: &str = "capvec_brokers_up{client=\"consumer\"}";
const PRODUCER: &str = "capvec_brokers_up{client=\"producer\"}";

/// The group's partitions are lost soon after the brokers go.
const OPTIONS: [&str; 3] = [
    "kafka.librdkafka.session.timeout.ms=6000",
    "kafka.librdkafka.heartbeat.interval.ms=1000",
    "delivery.drain_timeout=3s",
];

#[track_caller]
fn await_metric(worker: &Worker, series: &str, holds: impl Fn(f64) -> bool) {
    eventually(series, || worker.metric(series).filter(|value| holds(*value)));
}

fn top(worker: &Worker) -> Value {
    let text = capvec_ok(&["top", worker.admin(), "--once", "--json", "--interval", "0.2"]);
    serde_json::from_str(&text).unwrap()
}

#[test]
fn a_worker_that_is_cut_off_says_so_and_goes_on_when_brokers_come_back() {
    let mut kafka = Kafka::start();
    let cluster = Cluster { bootstrap: kafka.bootstrap().into() };
    cluster.create_topics("cut", 2);
    let worker = Worker::start(&cluster, "cut", &OPTIONS).ready();
    cluster.send("cut", &[Outgoing::caption("k", "before")]);
    cluster.await_records("cut.out", 1);
    await_metric(&worker, CONSUMER, |up| up == 1.0);
    await_metric(&worker, PRODUCER, |up| up == 1.0);
    assert_eq!(top(&worker)["brokers_up"]["consumer"], 1);

    kafka.stop();
    await_metric(&worker, CONSUMER, |up| up == 0.0);
    await_metric(&worker, PRODUCER, |up| up == 0.0);
    assert_eq!(top(&worker)["brokers_up"]["consumer"], 0);
    let text = capvec_ok(&["top", worker.admin(), "--once", "--interval", "0.2"]);
    assert!(text.contains("no broker answers"), "{text}");
    // What makes the metric necessary: the lag goes with the partitions.
    await_metric(&worker, "capvec_assigned_partitions", |owned| owned == 0.0);
    assert_eq!(worker.metric("capvec_lag_messages"), Some(0.0));
    assert_eq!(worker.get("/livez").unwrap().0, 200, "a restart helps nobody");
    eventually("the wait is logged", || {
        worker.log().contains("waiting for the group").then_some(())
    });

    kafka.restart();
    await_metric(&worker, CONSUMER, |up| up == 1.0);
    await_metric(&worker, "capvec_assigned_partitions", |owned| owned == 2.0);
    cluster.send("cut", &[Outgoing::caption("k", "after")]);
    cluster.await_records("cut.out", 2);
    await_metric(&worker, PRODUCER, |up| up == 1.0);
    assert_eq!(top(&worker)["brokers_up"]["producer"], 1);
    worker.stop();
}

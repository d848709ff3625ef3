//! A worker that is cut off from its brokers: it must not look as if it had nothing to do.

use std::io::{Read, Write};
use std::net::TcpListener;

use serde_json::Value;

use crate::support::kafka::Kafka;
use crate::support::{Cluster, Outgoing, Worker, capvec_ok, eventually, mock};

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

/// A proxy that has lost its brokers, say, or a listener that speaks TLS from now on.
#[test]
fn what_is_no_broker_at_their_address_is_an_outage_and_no_damaged_message() {
    let (mock, cluster) = mock(1);
    let mut worker = Worker::start(&cluster, "in", &[]).ready();
    drop(mock);
    let listener = TcpListener::bind(&cluster.bootstrap).unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            // Who hangs up first hears nothing.
            let answered = stream
                .read(&mut [0; 1000])
                .and_then(|_| stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n"));
            drop(answered);
        }
    });
    eventually("the answer is heard", || worker.log().contains("Receive failed").then_some(()));
    await_metric(&worker, CONSUMER, |up| up == 0.0);
    worker.signal("TERM");
    worker.wait();
    assert!(!worker.log().contains("can't be consumed"), "{}", worker.log());
}

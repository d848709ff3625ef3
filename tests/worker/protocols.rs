//! The ways in which a group may share partitions out, each with workers that come and go under load.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use crate::support::{Cluster, Outgoing, Worker, eventually, tiny_package};

/// Partitions of the input.
const PARTITIONS: i32 = 4;

fn numbered(index: usize) -> Outgoing {
    let text: &'static str = index.to_string().leak();
    Outgoing {
        headers: vec![("index", Some(text.as_bytes()))],
        ..Outgoing::caption(&format!("key-{}", index % 40), &format!("caption {index}"))
    }
}

/// Captions that keep coming.
struct Stream {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<usize>,
}

impl Stream {
    fn start(cluster: &Cluster, topic: &str) -> Stream {
        let stop = Arc::new(AtomicBool::new(false));
        let (cluster, topic, is_over) = (cluster.clone(), topic.to_owned(), Arc::clone(&stop));
        let thread = std::thread::spawn(move || {
            let mut sent = 0;
            while !is_over.load(Ordering::Acquire) {
                let captions: Vec<_> = (sent..sent + 40).map(numbered).collect();
                cluster.send(&topic, &captions);
                sent += captions.len();
            }
            sent
        });
        Stream { stop, thread }
    }

    /// Returns how many have come.
    fn stop(self) -> usize {
        self.stop.store(true, Ordering::Release);
        self.thread.join().unwrap()
    }
}

/// Holds the vectors that a reader of committed records sees against what was sent.
#[track_caller]
fn check_each_once(cluster: &Cluster, topic: &str, sent: usize) {
    let mut indices: Vec<usize> = cluster
        .committed_records(&format!("{topic}.out"))
        .iter()
        .map(|record| record.header("index").parse().unwrap())
        .collect();
    indices.sort_unstable();
    let number = indices.len();
    assert!(indices.into_iter().eq(0..sent), "{topic}: {number} vectors of {sent} captions");
}

fn partitions(worker: &Worker) -> i32 {
    worker.metric("capvec_assigned_partitions").unwrap_or(0.0) as i32
}

#[track_caller]
fn await_partitions(what: &str, worker: &Worker, wanted: impl Fn(i32) -> bool) {
    eventually(what, || wanted(partitions(worker)).then_some(()));
}

#[track_caller]
fn await_settled(cluster: &Cluster, topic: &str, sent: usize) {
    eventually("all is committed", || {
        let committed = cluster.committed(&format!("{topic}.group"), topic);
        (committed.values().map(|offset| (*offset).max(0)).sum::<i64>() == sent as i64)
            .then_some(())
    });
}

/// One worker, then two, then the second alone, then two again, while captions keep coming.
#[track_caller]
fn come_and_go(topic: &str, options: &[&str]) {
    let cluster = Cluster::shared();
    cluster.create_topics(topic, PARTITIONS);
    let start = |name: &str| {
        let id = format!("delivery.transactional_id={topic}-{name}");
        let mut all = vec!["batch.captions_max=16", "delivery.commit_interval=200ms", id.as_str()];
        all.extend(options);
        Worker::start(&cluster, topic, tiny_package(), &all).ready()
    };
    let stream = Stream::start(&cluster, topic);
    let first = start("first");
    await_partitions("the first has all", &first, |n| n == PARTITIONS);
    let second = start("second");
    await_partitions("the second has some", &second, |n| n > 0 && n < PARTITIONS);
    await_partitions("the first has the others", &first, |n| n > 0 && n < PARTITIONS);
    first.stop();
    await_partitions("the second has all", &second, |n| n == PARTITIONS);
    let third = start("third");
    await_partitions("the third has some", &third, |n| n > 0 && n < PARTITIONS);
    eventually("it embeds", || {
        third.metric("capvec_captions_embedded_total").filter(|number| *number > 0.0)
    });
    let sent = stream.stop();
    await_settled(&cluster, topic, sent);
    second.stop();
    third.stop();
    check_each_once(&cluster, topic, sent);
}

#[test]
fn an_eager_group_loses_and_repeats_nothing() {
    come_and_go("eager", &["kafka.librdkafka.partition.assignment.strategy=range"]);
}

#[test]
fn a_group_that_the_brokers_assign_loses_and_repeats_nothing() {
    come_and_go("assigned", &["kafka.librdkafka.group.protocol=consumer"]);
}

#[test]
fn a_group_that_the_brokers_assign_commits_in_transactions() {
    let options = ["kafka.librdkafka.group.protocol=consumer", "delivery.mode=exactly-once"];
    come_and_go("assigned-exactly", &options);
}

#[test]
fn a_static_member_that_comes_back_moves_no_partition() {
    let cluster = Cluster::shared();
    cluster.create_topics("static", PARTITIONS);
    let start = |name: &str| {
        let id = format!("kafka.librdkafka.group.instance.id={name}");
        let options = ["batch.captions_max=16", id.as_str()];
        Worker::start(&cluster, "static", tiny_package(), &options).ready()
    };
    let stream = Stream::start(&cluster, "static");
    let (first, second) = (start("first"), start("second"));
    for worker in [&first, &second] {
        await_partitions("both have some", worker, |n| n == PARTITIONS / 2);
    }
    let revoked = || second.metric("capvec_rebalances_total{event=\"revoked\"}");
    let assigned = || second.metric("capvec_rebalances_total{event=\"assigned\"}");
    let before = (assigned(), revoked());
    first.stop();
    let first = start("first");
    await_partitions("it has its partitions again", &first, |n| n == PARTITIONS / 2);
    eventually("it embeds", || {
        first.metric("capvec_captions_embedded_total").filter(|number| *number > 0.0)
    });
    assert_eq!((assigned(), revoked()), before, "nobody noticed");
    let sent = stream.stop();
    await_settled(&cluster, "static", sent);
    first.stop();
    second.stop();
    check_each_once(&cluster, "static", sent);
}

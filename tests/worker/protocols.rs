//! The ways in which a group may share partitions out, each with workers that come and go under
//! load, and a drain that doesn't end in time.

use std::time::Duration;

use crate::support::load::Load;
use crate::support::numbered::{check_each_once, index_of, numbered};
use crate::support::{Cluster, Worker, eventually, metric, stuck};

/// Partitions of the input.
const PARTITIONS: i32 = 4;

/// Holds the vectors that a reader of committed records sees against what was sent.
#[track_caller]
fn check_vectors(cluster: &Cluster, topic: &str, sent: usize) {
    check_each_once(&cluster.records(&format!("{topic}.out")), &[], sent);
}

fn partitions(worker: &Worker) -> i32 {
    worker.metric("capvec_assigned_partitions").unwrap_or(0.0) as i32
}

#[track_caller]
fn await_partitions(what: &str, worker: &Worker, wanted: impl Fn(i32) -> bool) {
    eventually(what, || wanted(partitions(worker)).then_some(()));
}

/// One worker, then two, then the second alone, then two again, while captions keep coming.
#[track_caller]
fn come_and_go(topic: &str, options: &[&str]) {
    let cluster = Cluster::shared();
    cluster.create_topics(topic, PARTITIONS);
    let start = |name: &str| {
        let id = format!("delivery.transactional_id={topic}-{name}");
        let mut all = vec!["batch.captions_max=16", "delivery.commit_interval=200ms"];
        all.extend(options);
        if options.contains(&"delivery.mode=exactly-once") {
            all.push(&id);
        }
        Worker::start(&cluster, topic, &all).ready()
    };
    let load = Load::numbered(&cluster, topic, numbered);
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
    let sent = load.stop();
    cluster.await_settled(topic, sent);
    second.stop();
    third.stop();
    check_vectors(&cluster, topic, sent);
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
fn a_worker_that_the_brokers_give_no_partition_is_ready_too() {
    let cluster = Cluster::shared();
    cluster.create_topics("spare", PARTITIONS);
    let options = ["kafka.librdkafka.group.protocol=consumer"];
    let workers: Vec<Worker> =
        (0..=PARTITIONS).map(|_| Worker::start(&cluster, "spare", &options)).collect();
    let workers: Vec<Worker> = workers.into_iter().map(Worker::ready).collect();
    eventually("one has none, and the others one each", || {
        let mut shares: Vec<i32> = workers.iter().map(partitions).collect();
        shares.sort_unstable();
        (shares[0] == 0 && shares[1..].iter().all(|share| *share == 1)).then_some(())
    });
    workers.into_iter().for_each(|worker| drop(worker.stop()));
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
        Worker::start(&cluster, "static", &options).ready()
    };
    let load = Load::numbered(&cluster, "static", numbered);
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
    let sent = load.stop();
    cluster.await_settled("static", sent);
    first.stop();
    second.stop();
    check_vectors(&cluster, "static", sent);
}

#[test]
fn a_drain_that_takes_too_long_is_counted_and_the_next_owner_does_the_work() {
    const CAPTIONS: usize = 200;
    let cluster = Cluster::shared();
    cluster.create_topics("missed", PARTITIONS);
    let mut config = cluster.config("missed");
    config.delivery.drain_timeout = Duration::from_millis(500);
    // So that the batch that is stuck has captions of all partitions.
    config.batch.wait_max = Duration::from_secs(2);
    let (stuck, gate) = stuck::start(&config);
    let admin = stuck.admin().to_string();
    let of_stuck = |series| metric(&admin, series).unwrap_or(0.0);
    eventually("it has all partitions", || {
        (of_stuck("capvec_assigned_partitions") == f64::from(PARTITIONS)).then_some(())
    });
    gate.close();
    cluster.send("missed", &(0..CAPTIONS).map(numbered).collect::<Vec<_>>());
    eventually("all are in the network", || (gate.inside() == CAPTIONS).then_some(()));

    let next = Worker::start(&cluster, "missed", &[]).ready();
    await_partitions("the next owner has some", &next, |n| n > 0 && n < PARTITIONS);
    assert_eq!(of_stuck("capvec_drains_missed_total"), 1.0);
    eventually("it has embedded what was left", || {
        let embedded = next.metric("capvec_captions_embedded_total")?;
        let waiting = next.metric("capvec_lag_messages")?;
        (embedded > 0.0 && waiting == 0.0).then_some(())
    });
    gate.open();
    cluster.await_settled("missed", CAPTIONS);
    stuck.stop();
    next.stop();
    check_vectors(&cluster, "missed", CAPTIONS);
}

/// librdkafka joins anew where the topic has more partitions, whether what was asked back is given
/// up or not.
#[test]
fn a_drain_that_new_partitions_overtake_loses_nothing() {
    const CAPTIONS: usize = 200;
    let cluster = Cluster::shared();
    for strategy in ["range", "cooperative-sticky"] {
        let topic = &format!("overtaken-{strategy}");
        cluster.create_topics(topic, PARTITIONS);
        let properties = [
            ("partition.assignment.strategy", strategy),
            ("topic.metadata.refresh.interval.ms", "300"),
        ];
        let mut config = cluster.config(topic);
        config.batch.wait_max = Duration::from_secs(2);
        for (name, value) in properties {
            config.kafka.librdkafka.0.insert(name.into(), value.into());
        }
        let (stuck, gate) = stuck::start(&config);
        let admin = stuck.admin().to_string();
        let of_stuck = |series| metric(&admin, series);
        eventually("it has all partitions", || {
            (of_stuck("capvec_assigned_partitions") == Some(f64::from(PARTITIONS))).then_some(())
        });
        gate.close();
        cluster.send(topic, &(0..CAPTIONS).map(numbered).collect::<Vec<_>>());
        eventually("all are in the network", || (gate.inside() == CAPTIONS).then_some(()));

        let options = properties.map(|(name, value)| format!("kafka.librdkafka.{name}={value}"));
        let options: Vec<&str> = options.iter().map(String::as_str).collect();
        let next = Worker::start(&cluster, topic, &options);
        eventually("partitions are asked back", || {
            of_stuck("capvec_rebalances_total{event=\"revoked\"}").filter(|n| *n > 0.0)
        });
        cluster.add_partitions(topic, PARTITIONS as usize + 2);
        let is_over = eventually("the group goes on", || {
            match of_stuck("capvec_rebalances_total{event=\"assigned\"}") {
                None => Some(true),
                Some(assigned) => (assigned > 1.0).then_some(false),
            }
        });
        gate.open();
        let next = next.ready();
        eventually("every caption has a vector", || {
            let records = cluster.records(&format!("{topic}.out"));
            let mut indices: Vec<usize> = records.iter().map(index_of).collect();
            indices.sort_unstable();
            indices.dedup();
            (indices.len() == CAPTIONS).then_some(())
        });
        if strategy == "range" {
            assert!(!is_over && of_stuck("capvec_assigned_partitions") > Some(0.0));
            cluster.await_settled(topic, CAPTIONS);
            stuck.stop();
        } else {
            let error = stuck.ended().unwrap_err();
            assert!(format!("{error:#}").contains("has to join anew"), "{error:#}");
            cluster.await_settled(topic, CAPTIONS);
        }
        next.stop();
    }
}

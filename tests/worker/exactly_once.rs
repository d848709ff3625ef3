//! Exactly-once delivery on a real Kafka, as a reader of committed records sees it. librdkafka's
//! mock cluster shows aborted records and forgets transactional offsets, so it could prove nothing
//! here.

use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::producer::{BaseProducer, Producer};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

use crate::support::load::Load;
use crate::support::numbered::{check_each_once, index_of, numbered};
use crate::support::{Cluster, Observer, Outgoing, PATIENCE, Worker, eventually};

/// Small transactions, so that there are many, and a short session, so that a worker that was
/// killed is missed soon.
const OPTIONS: [&str; 7] = [
    "delivery.mode=exactly-once",
    "delivery.in_flight_captions_max=64",
    "batch.captions_max=16",
    "delivery.commit_interval=200ms",
    "delivery.drain_timeout=1s",
    "kafka.librdkafka.session.timeout.ms=2000",
    "kafka.librdkafka.heartbeat.interval.ms=300",
];

fn start(cluster: &Cluster, topic: &str, id: &str, options: &[&str]) -> Worker {
    let id = format!("delivery.transactional_id={id}");
    let mut all = OPTIONS.to_vec();
    all.push(&id);
    all.extend(options);
    Worker::start(cluster, topic, &all)
}

/// One in ten messages is no caption.
fn is_bad(index: usize) -> bool {
    index % 10 == 7
}

fn message(index: usize) -> Outgoing {
    let mut message = numbered(index);
    if is_bad(index) {
        message.value = Some(b"no caption".to_vec());
    }
    message
}

fn messages(number: usize) -> Vec<Outgoing> {
    (0..number).map(message).collect()
}

/// Returns what looks at a worker's input, and at the offsets that it has committed.
fn observe(cluster: &Cluster, topic: &str) -> Observer {
    cluster.observe_group(&format!("{topic}.group"), topic)
}

/// Holds what readers see against what was sent.
#[track_caller]
fn check(cluster: &Cluster, topic: &str, sent: usize) {
    let vectors = cluster.records(&format!("{topic}.out"));
    let dead = cluster.records(&format!("{topic}.dead"));
    check_each_once(&vectors, &dead, sent);
    assert!(dead.iter().all(|letter| is_bad(index_of(letter))), "and of the right kind");
}

#[test]
fn kills_under_load_lose_and_repeat_nothing_and_offsets_go_with_the_records() {
    const MESSAGES: usize = 12_000;
    const KILLS: usize = 4;
    const SHARE: usize = MESSAGES / KILLS;
    let cluster = Cluster::shared();
    cluster.create_topics("killed", 3);
    let group = observe(&cluster, "killed");
    let mut before = 0;
    for (kill, share) in messages(MESSAGES).chunks(SHARE).enumerate() {
        // Many more than it commits before it is killed, whatever the kills before have left.
        cluster.send("killed", share);
        let worker = start(&cluster, "killed", "killed-worker", &[]);
        eventually("some are committed", || (group.settled() > before + 300).then_some(()));
        // Dropping it kills it as a machine that fails does.
        drop(worker);
        cluster.fence("killed-worker");
        let seen = cluster.records("killed.out").len() + cluster.records("killed.dead").len();
        before = group.settled();
        assert_eq!(seen, before, "kill {kill}: vectors, dead letters and offsets are one");
        assert!(before < (kill + 1) * SHARE, "kill {kill}: it was one under load");
    }
    let worker = start(&cluster, "killed", "killed-worker", &[]);
    cluster.await_settled("killed", MESSAGES);
    assert!(worker.metric("capvec_transactions_total{result=\"committed\"}") > Some(1.0));
    worker.stop();
    check(&cluster, "killed", MESSAGES);
}

#[test]
fn a_second_worker_of_the_same_name_ends_the_first() {
    let cluster = Cluster::shared();
    cluster.create_topics("fenced", 2);
    let slow = ["delivery.commit_interval=20s", "delivery.in_flight_captions_max=4096"];
    let mut first = start(&cluster, "fenced", "fenced-worker", &slow).ready();
    cluster.send("fenced", &messages(100));
    eventually("the first has an open transaction", || {
        first.metric("capvec_transaction_messages").filter(|number| *number == 100.0)
    });
    assert_eq!(cluster.records("fenced.out"), [], "nothing is committed yet");
    let second = start(&cluster, "fenced", "fenced-worker", &[]).ready();
    assert_eq!(first.wait().code(), Some(1));
    let log = first.log();
    assert!(log.contains("another worker uses the transactional id"), "{log}");
    cluster.await_settled("fenced", 100);
    second.stop();
    check(&cluster, "fenced", 100);
}

#[test]
fn a_record_that_the_topic_refuses_aborts_and_comes_as_a_dead_letter() {
    let cluster = Cluster::shared();
    cluster.create_topic("refused", 1);
    cluster.create_topic_with("refused.out", 1, &[("max.message.bytes", "1000")]);
    cluster.create_topic("refused.dead", 1);
    let number = 40;
    cluster.send("refused", &messages(number));
    let worker = start(&cluster, "refused", "refused-worker", &["reject.breaker_run=0"]).ready();
    cluster.await_settled("refused", number);
    let aborted = worker.metric("capvec_transactions_total{result=\"aborted\"}");
    assert!(aborted >= Some(1.0), "{aborted:?}");
    let refused = worker.metric("capvec_captions_rejected_total{reason=\"record_refused\"}");
    assert_eq!(refused, Some(36.0), "each was counted once");
    // A record that came back has others held, and a wait for those would end with the
    // transaction's time.
    assert_eq!(worker.metric("capvec_producers_remade_total"), Some(0.0));
    worker.stop();
    assert_eq!(cluster.records("refused.out"), []);
    let dead = cluster.records("refused.dead");
    let indices: Vec<usize> = dead.iter().map(index_of).collect();
    assert_eq!(indices, (0..number).collect::<Vec<_>>(), "each once, in order");
}

/// Each few of them abort a transaction, which takes longer than an outage may; but it gets on.
#[test]
fn records_that_are_refused_by_the_hundred_do_not_end_the_worker() {
    const NUMBER: usize = 150;
    let cluster = Cluster::shared();
    cluster.create_topic("refusals", 1);
    cluster.create_topic_with("refusals.out", 1, &[("max.message.bytes", "1000")]);
    cluster.create_topic("refusals.dead", 1);
    cluster.send("refusals", &(0..NUMBER).map(numbered).collect::<Vec<_>>());
    let one_transaction = [
        "reject.breaker_run=0",
        "kafka.delivery_timeout=2s",
        "batch.captions_max=256",
        "delivery.in_flight_captions_max=4096",
    ];
    let worker = start(&cluster, "refusals", "refusals-worker", &one_transaction).ready();
    cluster.await_settled("refusals", NUMBER);
    worker.stop();
    let dead = cluster.records("refusals.dead");
    let indices: Vec<usize> = dead.iter().map(index_of).collect();
    assert_eq!(indices, (0..NUMBER).collect::<Vec<_>>(), "each once, in order");
}

#[test]
fn workers_that_come_and_go_repeat_nothing() {
    const MESSAGES: usize = 9_000;
    // Nobody dies here, and a slow machine is no fault.
    let patient = ["delivery.drain_timeout=20s", "kafka.librdkafka.session.timeout.ms=30000"];
    let cluster = Cluster::shared();
    cluster.create_topics("moved", 4);
    let all = messages(MESSAGES);
    let (early, late) = all.split_at(MESSAGES / 2);
    cluster.send("moved", early);
    let group = observe(&cluster, "moved");
    let first = start(&cluster, "moved", "moved-1", &patient).ready();
    eventually("a tenth is committed", || (group.settled() > MESSAGES / 10).then_some(()));
    let second = start(&cluster, "moved", "moved-2", &patient).ready();
    let has_work = |worker: &Worker| {
        worker.metric("capvec_assigned_partitions").filter(|number| *number > 0.0)
    };
    eventually("the second has partitions", || has_work(&second));
    cluster.send("moved", late);
    let enough = group.settled() + MESSAGES / 10;
    eventually("both have worked", || (group.settled() > enough).then_some(()));
    first.stop();
    let third = start(&cluster, "moved", "moved-3", &patient).ready();
    eventually("the third has partitions", || has_work(&third));
    cluster.await_settled("moved", MESSAGES);
    second.stop();
    third.stop();
    check(&cluster, "moved", MESSAGES);
}

/// For a worker that is frozen in a transaction: it lasts for a while, and then the brokers end it.
const LONG: [&str; 3] = [
    "delivery.commit_interval=1500ms",
    "delivery.transaction_timeout=3s",
    "delivery.in_flight_captions_max=4096",
];

/// How long one of those may last.
const TRANSACTION_MAX: Duration = Duration::from_secs(3);

/// Stops a worker in the middle of a transaction, with messages under way; returns how many were
/// sent.
fn freeze(cluster: &Cluster, topic: &str, worker: &Worker) -> usize {
    let all = cluster.observe_uncommitted(&format!("{topic}.out"));
    let readable = cluster.observe(&format!("{topic}.out"));
    // They come until it stands still, so that there is always one more transaction to catch.
    let load = Load::numbered(cluster, topic, message);
    eventually("it stands still in an open transaction", || {
        worker.signal("STOP");
        // In this order: one that is committed between the two looks isn't open.
        let written = all.records();
        if readable.records() < written {
            return Some(());
        }
        worker.signal("CONT");
        None
    });
    load.stop()
}

/// Holds a group's offset of partition 0 in an open transaction, as a worker that is gone in the
/// middle of a commit does.
fn hold(cluster: &Cluster, topic: &str) -> BaseProducer {
    let holder: BaseProducer = cluster
        .client()
        .set("transactional.id", format!("{topic}-holder"))
        .set("transaction.timeout.ms", "600000")
        .create()
        .unwrap();
    holder.init_transactions(PATIENCE).unwrap();
    let group = format!("{topic}.group");
    let held = cluster.committed(&group, topic)[&0];
    let mut offsets = TopicPartitionList::new();
    offsets.add_partition_offset(topic, 0, Offset::Offset(held)).unwrap();
    let member: BaseConsumer = cluster.client().set("group.id", &group).create().unwrap();
    let metadata = member.group_metadata().unwrap();
    // Not of this group's members, it is refused until they are gone.
    eventually("it is held", || {
        holder.begin_transaction().unwrap();
        let sent = holder.send_offsets_to_transaction(&offsets, &metadata, PATIENCE);
        if sent.is_err() {
            holder.abort_transaction(PATIENCE).unwrap();
        }
        sent.ok()
    });
    holder
}

#[test]
fn a_worker_that_was_frozen_commits_nothing_of_what_it_lost() {
    let cluster = Cluster::shared();
    cluster.create_topics("frozen", 2);
    let frozen = start(&cluster, "frozen", "frozen-1", &LONG).ready();
    let sent = freeze(&cluster, "frozen", &frozen);
    let other = start(&cluster, "frozen", "frozen-2", &[]).ready();
    cluster.await_settled("frozen", sent);
    frozen.signal("CONT");
    let more = sent + 200;
    cluster.send("frozen", &messages(more)[sent..]);
    cluster.await_settled("frozen", more);
    eventually("the frozen one goes on", || {
        frozen.metric("capvec_assigned_partitions").filter(|number| *number > 0.0)
    });
    frozen.stop();
    other.stop();
    check(&cluster, "frozen", more);
}

/// librdkafka by itself takes such an offset for none where a rebalance ends meanwhile, and begins
/// at the beginning.
#[test]
fn an_offset_that_an_open_transaction_holds_is_waited_for() {
    const MESSAGES: usize = 200;
    let cluster = Cluster::shared();
    cluster.create_topics("held", 2);
    cluster.send("held", &messages(MESSAGES));
    let first = start(&cluster, "held", "held-1", &[]);
    cluster.await_settled("held", MESSAGES);
    first.stop();

    let held = cluster.committed("held.group", "held")[&0];
    let holder = hold(&cluster, "held");

    let has_one = |worker: &Worker| worker.metric("capvec_assigned_partitions") == Some(1.0);
    let second = start(&cluster, "held", "held-2", &[]).ready();
    let more = MESSAGES + 20;
    cluster.send("held", &messages(more)[MESSAGES..]);
    let come = held + cluster.ends("held")[&1];
    eventually("the other partition goes on", || {
        let records = cluster.records("held.out").len() + cluster.records("held.dead").len();
        (records as i64 == come).then_some(())
    });
    let third = start(&cluster, "held", "held-3", &[]).ready();
    eventually("both have a partition", || (has_one(&second) && has_one(&third)).then_some(()));
    let log = || second.log() + &third.log();
    eventually("they say what they wait for", || {
        log().contains("waiting for the group's offsets").then_some(())
    });
    holder.abort_transaction(PATIENCE).unwrap();
    cluster.await_settled("held", more);
    second.stop();
    third.stop();
    check(&cluster, "held", more);
}

/// The group's offsets tell whether its transaction was committed, and one of them is another's.
#[test]
fn a_partition_that_was_lost_keeps_no_other_waiting() {
    let cluster = Cluster::shared();
    cluster.create_topics("lost", 2);
    let worker = start(&cluster, "lost", "lost-worker", &LONG).ready();
    let sent = freeze(&cluster, "lost", &worker);
    let since = Instant::now();
    eventually("its transaction is over", || (since.elapsed() > TRANSACTION_MAX).then_some(()));
    cluster.fence("lost-worker");
    let holder = hold(&cluster, "lost");
    worker.signal("CONT");
    let more = sent + 200;
    cluster.send("lost", &messages(more)[sent..]);
    let end = cluster.ends("lost")[&1] as usize;
    eventually("the other partition goes on", || {
        let (vectors, dead) = (cluster.records("lost.out"), cluster.records("lost.dead"));
        let vectors = vectors.iter().filter(|r| r.header("capvec.source").starts_with("lost/1/"));
        let dead = dead.iter().filter(|r| r.header("__connect.errors.partition") == "1");
        (vectors.count() + dead.count() == end).then_some(())
    });
    holder.abort_transaction(PATIENCE).unwrap();
    cluster.await_settled("lost", more);
    let log = worker.stop();
    assert!(log.contains("lost with messages in the worker"), "{log}");
    assert!(!log.contains("the drain didn't end in time"), "{log}");
    check(&cluster, "lost", more);
}

//! Exactly-once delivery on a real Kafka, as a reader of committed records sees it. librdkafka's mock
//! cluster shows aborted records and forgets transactional offsets, so it could prove nothing here.

use std::collections::BTreeMap;

use crate::support::{Cluster, Outgoing, Record, Worker, eventually, tiny_package};

/// Small transactions, so that there are many, and a short session, so that a worker that was killed
/// is missed soon.
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
    Worker::start(cluster, topic, tiny_package(), &all)
}

/// Captions whose keys repeat; one in ten messages is no caption.
fn messages(number: usize) -> Vec<Outgoing> {
    let message = |index: usize| {
        let text: &'static str = index.to_string().leak();
        let mut message =
            Outgoing::caption(&format!("key-{}", index % 50), &format!("caption {index}"));
        message.headers = vec![("index", Some(text.as_bytes()))];
        if index % 10 == 7 {
            message.value = Some(b"no caption".to_vec());
        }
        message
    };
    (0..number).map(message).collect()
}

fn index_of(record: &Record) -> usize {
    record.header("index").parse().unwrap()
}

fn committed(cluster: &Cluster, topic: &str) -> usize {
    let offsets = cluster.committed(&format!("{topic}.group"), topic);
    offsets.values().map(|offset| (*offset).max(0) as usize).sum()
}

/// Holds what readers see against what was sent: each message once, and the captions of a key in order.
#[track_caller]
fn check_each_once(cluster: &Cluster, topic: &str, sent: usize) {
    let vectors = cluster.committed_records(&format!("{topic}.out"));
    let dead = cluster.committed_records(&format!("{topic}.dead"));
    let mut indices: Vec<usize> = vectors.iter().chain(&dead).map(index_of).collect();
    indices.sort_unstable();
    let expected: Vec<usize> = (0..sent).collect();
    assert!(indices == expected, "{} of {sent}: each message once", indices.len());
    assert!(dead.iter().all(|letter| index_of(letter) % 10 == 7), "and of the right kind");
    let mut of_key: BTreeMap<&[u8], Vec<usize>> = BTreeMap::new();
    for record in &vectors {
        of_key.entry(record.key.as_deref().unwrap()).or_default().push(index_of(record));
    }
    assert!(of_key.values().all(|indices| indices.is_sorted()), "in the order of each key");
}

#[test]
fn kills_under_load_lose_and_repeat_nothing_and_offsets_go_with_the_records() {
    const MESSAGES: usize = 12_000;
    const KILLS: usize = 4;
    let cluster = Cluster::shared();
    cluster.create_topics("killed", 3);
    cluster.send("killed", &messages(MESSAGES));
    let mut before = 0;
    for kill in 0..KILLS {
        let worker = start(&cluster, "killed", "killed-worker", &[]);
        eventually("some are committed", || {
            (committed(&cluster, "killed") > before + 300).then_some(())
        });
        // Dropping it kills it as a machine that fails does.
        drop(worker);
        cluster.fence("killed-worker");
        let seen = cluster.committed_records("killed.out").len()
            + cluster.committed_records("killed.dead").len();
        before = committed(&cluster, "killed");
        assert_eq!(seen, before, "kill {kill}: vectors, dead letters and offsets are one");
    }
    assert!(before < MESSAGES, "they were kills under load");
    let worker = start(&cluster, "killed", "killed-worker", &[]);
    eventually("all are committed", || (committed(&cluster, "killed") == MESSAGES).then_some(()));
    assert!(worker.metric("capvec_transactions_total{result=\"committed\"}") > Some(1.0));
    worker.stop();
    check_each_once(&cluster, "killed", MESSAGES);
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
    assert_eq!(cluster.committed_records("fenced.out"), [], "nothing is committed yet");
    let second = start(&cluster, "fenced", "fenced-worker", &[]).ready();
    assert_eq!(first.wait().code(), Some(1));
    let log = first.log();
    assert!(log.contains("another worker uses the transactional id"), "{log}");
    eventually("all are committed", || (committed(&cluster, "fenced") == 100).then_some(()));
    second.stop();
    check_each_once(&cluster, "fenced", 100);
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
    eventually("all are committed", || (committed(&cluster, "refused") == number).then_some(()));
    let aborted = worker.metric("capvec_transactions_total{result=\"aborted\"}");
    assert!(aborted >= Some(1.0), "{aborted:?}");
    let refused = worker.metric("capvec_captions_rejected_total{reason=\"record_refused\"}");
    assert_eq!(refused, Some(36.0), "each was counted once");
    // A record that came back has others held, and a wait for those would end with the transaction's time.
    assert_eq!(worker.metric("capvec_producers_remade_total"), Some(0.0));
    worker.stop();
    assert_eq!(cluster.committed_records("refused.out"), []);
    let dead = cluster.committed_records("refused.dead");
    let indices: Vec<usize> = dead.iter().map(index_of).collect();
    assert_eq!(indices, (0..number).collect::<Vec<_>>(), "each once, in order");
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
    let first = start(&cluster, "moved", "moved-1", &patient).ready();
    eventually("a tenth is committed", || {
        (committed(&cluster, "moved") > MESSAGES / 10).then_some(())
    });
    let second = start(&cluster, "moved", "moved-2", &patient).ready();
    let has_work = |worker: &Worker| {
        worker.metric("capvec_assigned_partitions").filter(|number| *number > 0.0)
    };
    eventually("the second has partitions", || has_work(&second));
    cluster.send("moved", late);
    let enough = committed(&cluster, "moved") + MESSAGES / 10;
    eventually("both have worked", || (committed(&cluster, "moved") > enough).then_some(()));
    first.stop();
    let third = start(&cluster, "moved", "moved-3", &patient).ready();
    eventually("the third has partitions", || has_work(&third));
    eventually("all are committed", || (committed(&cluster, "moved") == MESSAGES).then_some(()));
    second.stop();
    third.stop();
    check_each_once(&cluster, "moved", MESSAGES);
}

#[test]
fn a_worker_that_was_frozen_commits_nothing_of_what_it_lost() {
    let cluster = Cluster::shared();
    cluster.create_topics("frozen", 2);
    let options = [
        "delivery.commit_interval=1500ms",
        "delivery.transaction_timeout=3s",
        "delivery.in_flight_captions_max=4096",
    ];
    let frozen = start(&cluster, "frozen", "frozen-1", &options).ready();
    cluster.send("frozen", &messages(500));
    eventually("it has an open transaction", || {
        frozen.metric("capvec_transaction_messages").filter(|number| *number > 0.0)
    });
    frozen.signal("STOP");
    let other = start(&cluster, "frozen", "frozen-2", &[]).ready();
    eventually("the other has done its work", || {
        (committed(&cluster, "frozen") == 500).then_some(())
    });
    frozen.signal("CONT");
    cluster.send("frozen", &messages(700)[500..]);
    eventually("all are committed", || (committed(&cluster, "frozen") == 700).then_some(()));
    eventually("the frozen one goes on", || {
        frozen.metric("capvec_assigned_partitions").filter(|number| *number > 0.0)
    });
    frozen.stop();
    other.stop();
    check_each_once(&cluster, "frozen", 700);
}

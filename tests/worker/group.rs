//! Several workers of one group on a real Kafka, with members coming and going.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use capvec::batch::packing::TokenBatch;
use capvec::embed::Embedder;
use capvec::embed::device::DeviceChoice;
use capvec::embed::load::load_one;
use capvec::model::import::{Import, import};
use capvec::model::manifest::Precision;
use capvec::model::package::{Existing, Package};
use rdkafka::consumer::{BaseConsumer, Consumer};

use crate::support::numbered::{check_each_once, index_of, with_index};
use crate::support::{
    Cluster, Outgoing, PATIENCE, Record, Worker, beside, captions, eventually, relative_error,
    tiny_package, tokenizer_of, unpacked,
};

/// The number of captions that share a key.
const PER_KEY: usize = 20;

/// Real captions where they are at hand, else as many made-up ones.
fn texts() -> Vec<String> {
    let Ok(folder) = beside("CAPVEC_CAPTIONS", "captions") else {
        return (0..20_000).map(|i| format!("{i} horses in field {}, {i}", i % 7)).collect();
    };
    unpacked(&folder.join("multi30k.jsonl.gz"))
        .lines()
        .map(|line| {
            let object: serde_json::Value = serde_json::from_str(line).unwrap();
            object["caption"].as_str().unwrap().to_owned()
        })
        .collect()
}

/// A package with PyTorch's own small weights where they are at hand, else the synthetic one.
fn package() -> (Option<tempfile::TempDir>, PathBuf) {
    let Ok(reference) = beside("CAPVEC_REFERENCE", "reference") else {
        return (None, tiny_package().to_owned());
    };
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("m-bert-mini");
    let checkpoint = reference.join("m-bert-mini");
    let request = Import {
        checkpoint: &checkpoint,
        head: &checkpoint.join("Linear Weights.pkl"),
        out: &out,
        existing: Existing::Keep,
        name: None,
        max_tokens: None,
        precision: Precision::Fp32,
    };
    import(&request, &mut |_| ()).unwrap();
    (Some(folder), out)
}

#[test]
fn two_workers_then_one_then_two_lose_nothing_and_repeat_nothing() {
    let cluster = Cluster::shared();
    cluster.create_topics("group", 6);
    let texts = texts();
    let keys = texts.len() / PER_KEY;
    let message = |(index, text): (usize, &String)| {
        with_index(index, Outgoing::caption(&format!("key-{}", index % keys), text))
    };
    let messages: Vec<Outgoing> = texts.iter().enumerate().map(message).collect();
    let (_folder, package) = package();
    let options = [
        "embed.embedder=onnx",
        "delivery.in_flight_captions_max=512",
        "batch.captions_max=512",
        &format!("model.package={}", package.display()),
    ];
    let start = || Worker::start(&cluster, "group", &options);

    let (first, second) = (start().ready(), start().ready());
    let (early, late) = messages.split_at(messages.len() / 2);
    cluster.send("group", early);
    let vectors = || cluster.count("group.out");
    eventually("a fifth is embedded", || (vectors() >= messages.len() / 5).then_some(()));
    let log_1 = first.stop();
    let third = start().ready();
    eventually("the third has partitions", || {
        third.metric("capvec_assigned_partitions").filter(|number| *number > 0.0)
    });
    // Only now, so that there is work for the third however fast the machine is.
    cluster.send("group", late);
    let records = cluster.await_records("group.out", messages.len());
    eventually("the third had a share", || {
        third.metric("capvec_captions_embedded_total").filter(|number| *number > 0.0)
    });
    let (log_2, log_3) = (second.stop(), third.stop());
    let after = cluster.records("group.out");
    assert_eq!(after.len(), texts.len(), "none twice:\n{log_1}\n{log_2}\n{log_3}");

    check_each_once(&records, &[], texts.len());
    let keeps_key = |record: &Record| record.key == messages[index_of(record)].key;
    assert!(records.iter().all(keeps_key), "each has the key of its caption");
    check_vectors(&texts, &records, &package);
    let committed = cluster.committed("group.group", "group");
    assert_eq!(committed, cluster.ends("group"), "everything is committed");
    assert_eq!(cluster.records("group.dead"), []);
}

/// Embeds every 97th caption alone, and compares.
#[track_caller]
fn check_vectors(texts: &[String], records: &[Record], package: &Path) {
    let tokenizer = tokenizer_of(package);
    let package = Package::open(package).unwrap();
    let (mut embedder, _) = load_one(&package, None, &DeviceChoice::Auto, 1).unwrap();
    for record in records.iter().step_by(97) {
        let text = &texts[index_of(record)];
        let ids = tokenizer.tokenize(text).unwrap().ids;
        let alone = embedder.embed(&TokenBatch::pack([ids.as_slice()])).unwrap();
        let relative = relative_error(&record.vector(), &alone);
        assert!(relative < 1e-5, "{text}: {relative:e}");
    }
}

/// The others would wait at their next rebalance until its session is over, and nobody would have
/// the partitions meanwhile.
#[test]
fn a_worker_without_a_partition_leaves_the_group_when_it_stops() {
    let cluster = Cluster::shared();
    cluster.create_topics("idle", 1);
    let client: BaseConsumer = cluster.client().create().unwrap();
    let members = || {
        let groups = client.fetch_group_list(Some("idle.group"), PATIENCE).unwrap();
        groups.groups()[0].members().len()
    };
    let owner = Worker::start(&cluster, "idle", &[]).ready();
    let idle = Worker::start(&cluster, "idle", &[]).ready();
    assert_eq!(idle.metric("capvec_assigned_partitions"), Some(0.0));
    assert_eq!(members(), 2);
    idle.stop();
    assert_eq!(members(), 1);
    owner.stop();
    assert_eq!(members(), 0);
}

#[test]
fn partitions_that_were_lost_while_fetching_was_paused_go_on_when_they_come_back() {
    let cluster = Cluster::shared();
    cluster.create_topics("paused", 4);
    let number = 40;
    let messages = captions(number);
    let (early, late) = messages.split_at(number / 2);
    cluster.send("paused", early);
    // Vectors wait for more than may be in flight, so that fetching is paused meanwhile.
    let options = [
        "delivery.in_flight_bytes_max=400",
        "kafka.librdkafka.linger.ms=8000",
        "delivery.drain_timeout=2s",
        "kafka.librdkafka.session.timeout.ms=3000",
        "kafka.librdkafka.heartbeat.interval.ms=500",
    ];
    let start = || Worker::start(&cluster, "paused", &options).ready();
    let partitions = |worker: &Worker| worker.metric("capvec_assigned_partitions");
    let first = start();
    eventually("the first has been full for half a second", || {
        first.metric("capvec_oldest_unsettled_seconds").filter(|seconds| *seconds > 0.5)
    });
    assert_eq!(first.metric("capvec_source_paused"), Some(1.0));
    first.signal("STOP");
    let second = start();
    eventually("the second has all", || (partitions(&second) == Some(4.0)).then_some(()));
    first.signal("CONT");
    eventually("the first knows", || {
        first.metric("capvec_rebalances_total{event=\"lost\"}").filter(|lost| *lost > 0.0)
    });
    assert!(first.log().contains("lost with messages in the worker"), "{}", first.log());
    second.kill();
    eventually("the first has all again", || (partitions(&first) == Some(4.0)).then_some(()));
    cluster.send("paused", late);
    eventually("all captions have vectors", || {
        let records = cluster.records("paused.out");
        let keys: BTreeSet<_> = records.into_iter().map(|record| record.key).collect();
        (keys.len() == number).then_some(())
    });
    first.stop();
}

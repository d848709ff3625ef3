//! Several workers of one group on a real Kafka, with members coming and going.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::PathBuf;

use capvec::batch::packing::TokenBatch;
use capvec::embed::Embedder;
use capvec::embed::device::DeviceChoice;
use capvec::embed::load::load_one;
use capvec::model::import::{Import, import};
use capvec::model::manifest::Precision;
use capvec::model::package::{Existing, Package};

use crate::support::{
    Cluster, Outgoing, Record, Worker, beside, eventually, tiny_package, tokenizer_of,
};

/// The number of captions that share a key.
const PER_KEY: usize = 20;

/// Real captions where they are at hand, else as many made-up ones.
fn captions() -> Vec<String> {
    let Some(folder) = beside("CAPVEC_CAPTIONS", "captions") else {
        return (0..20_000).map(|i| format!("{i} horses in field {}, {i}", i % 7)).collect();
    };
    let mut text = String::new();
    // gzip is everywhere that tests run, and reading it is no part of the program.
    let mut gzip = std::process::Command::new("gzip")
        .arg("-dc")
        .arg(folder.join("multi30k.jsonl.gz"))
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    gzip.stdout.take().unwrap().read_to_string(&mut text).unwrap();
    assert!(gzip.wait().unwrap().success());
    text.lines()
        .map(|line| {
            let object: serde_json::Value = serde_json::from_str(line).unwrap();
            object["caption"].as_str().unwrap().to_owned()
        })
        .collect()
}

/// A package with PyTorch's own small weights where they are at hand, else the synthetic one.
fn package() -> (Option<tempfile::TempDir>, PathBuf) {
    let Some(reference) = beside("CAPVEC_REFERENCE", "reference") else {
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
    let captions = captions();
    let messages: Vec<Outgoing> = captions
        .iter()
        .enumerate()
        .map(|(index, caption)| Outgoing {
            headers: vec![("index", Some(index.to_string().leak().as_bytes()))],
            ..Outgoing::caption(&format!("key-{}", index % (captions.len() / PER_KEY)), caption)
        })
        .collect();
    let (_folder, package) = package();
    let options =
        ["embed.embedder=onnx", "delivery.in_flight_captions_max=512", "batch.captions_max=512"];
    let start = || Worker::start(&cluster, "group", &package, &options);

    let (first, second) = (start().ready(), start().ready());
    let (early, late) = messages.split_at(messages.len() / 2);
    cluster.send("group", early);
    let vectors = || cluster.ends("group.out").values().sum::<i64>() as usize;
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
    assert_eq!(after.len(), captions.len(), "none twice:\n{log_1}\n{log_2}\n{log_3}");

    check_each_once_and_in_order(&captions, &records);
    check_vectors(&captions, &records, &package);
    let committed = cluster.committed("group.group", "group");
    assert_eq!(committed, cluster.ends("group"), "everything is committed");
    assert_eq!(cluster.records("group.dead"), []);
}

fn index_of(record: &Record) -> usize {
    record.header("index").parse().unwrap()
}

#[track_caller]
fn check_each_once_and_in_order(captions: &[String], records: &[Record]) {
    let mut indices: Vec<usize> = records.iter().map(index_of).collect();
    indices.sort_unstable();
    assert!(indices.iter().copied().eq(0..captions.len()), "every caption has one vector");

    let mut of_key: BTreeMap<&[u8], Vec<usize>> = BTreeMap::new();
    for record in records {
        of_key.entry(record.key.as_deref().unwrap()).or_default().push(index_of(record));
    }
    for (key, indices) in of_key {
        assert!(indices.is_sorted(), "{}: {indices:?}", String::from_utf8_lossy(key));
        assert_eq!(indices.len(), PER_KEY);
    }
}

/// Embeds every 97th caption alone, and compares.
#[track_caller]
fn check_vectors(captions: &[String], records: &[Record], package: &std::path::Path) {
    let tokenizer = tokenizer_of(package);
    let package = Package::open(package).unwrap();
    let (mut embedder, _) = load_one(&package, None, &DeviceChoice::Auto, 1).unwrap();
    for record in records.iter().step_by(97) {
        let ids = tokenizer.tokenize(&captions[index_of(record)]).unwrap().ids;
        let alone = embedder.embed(&TokenBatch::pack([ids.as_slice()])).unwrap();
        let (mut difference, mut norm) = (0.0, 0.0);
        for (a, b) in alone.iter().zip(record.vector()) {
            difference += f64::from(a - b).powi(2);
            norm += f64::from(*a).powi(2);
        }
        let relative = (difference / norm).sqrt();
        assert!(relative < 1e-5, "{}: {relative:e}", captions[index_of(record)]);
    }
}

#[test]
fn partitions_that_were_lost_while_fetching_was_paused_go_on_when_they_come_back() {
    let cluster = Cluster::shared();
    cluster.create_topics("paused", 4);
    let number = 40;
    let messages: Vec<Outgoing> = (0..number)
        .map(|index| Outgoing::caption(&format!("key-{index}"), &format!("caption {index}")))
        .collect();
    let (early, late) = messages.split_at(number / 2);
    cluster.send("paused", early);
    // A batch waits for more than may be in flight, so that fetching is paused meanwhile.
    let options = [
        "delivery.in_flight_bytes_max=400",
        "batch.wait_max=8s",
        "delivery.drain_timeout=2s",
        "kafka.librdkafka.session.timeout.ms=3000",
        "kafka.librdkafka.heartbeat.interval.ms=500",
    ];
    let start = || Worker::start(&cluster, "paused", tiny_package(), &options).ready();
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
    second.stop();
    eventually("the first has all again", || (partitions(&first) == Some(4.0)).then_some(()));
    cluster.send("paused", late);
    eventually("all captions have vectors", || {
        let records = cluster.records("paused.out");
        let texts: std::collections::BTreeSet<_> =
            records.into_iter().map(|record| record.key).collect();
        (texts.len() == number).then_some(())
    });
    first.stop();
}

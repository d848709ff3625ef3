//! Captions in, vectors out, on a real Kafka.

use std::collections::BTreeMap;
use std::process::Command;

use capvec::embed::hash::HashEmbedder;
use capvec::model::package::Package;

use crate::support::{
    CAPVEC, Cluster, Outgoing, Record, Worker, captions, eventually, free_address, mock,
    tiny_package, tokenizer_of,
};

const CAPTIONS: [&str; 4] = [
    "Älgen är skogens konung!",
    "Wie leben Eisbären in der Antarktis?",
    "Вы знали, что все белые медведи левши?",
    "两只北极熊在雪地里",
];

#[test]
fn a_vector_comes_with_all_that_its_caption_had() {
    let cluster = Cluster::shared();
    cluster.create_topics("passes", 1);
    let messages = [
        Outgoing {
            headers: vec![
                ("traceparent", Some(b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01")),
                ("twice", Some(b"1")),
                ("twice", Some(b"\xff\xfe")),
                ("null", None),
                ("empty", Some(b"")),
            ],
            timestamp_ms: Some(1_600_000_000_123),
            ..Outgoing::caption("key", CAPTIONS[0])
        },
        Outgoing { key: None, ..Outgoing::caption("", CAPTIONS[1]) },
        Outgoing { key: Some(vec![0xff, 0x00]), ..Outgoing::caption("", CAPTIONS[2]) },
        Outgoing { key: Some(Vec::new()), ..Outgoing::caption("", CAPTIONS[3]) },
        Outgoing {
            key: Some("gone".into()),
            headers: vec![("why", Some(b"deleted"))],
            timestamp_ms: Some(1_600_000_000_999),
            ..Outgoing::default()
        },
        Outgoing::caption("long", &"x ".repeat(500)),
    ];
    cluster.send("passes", &messages);

    let worker = Worker::start(&cluster, "passes", &[]).ready();
    let out = cluster.await_records("passes.out", messages.len());
    worker.stop();

    let tokenizer = tokenizer_of(tiny_package());
    let manifest = Package::open(tiny_package()).unwrap().manifest;
    let embedder = HashEmbedder::new(manifest.network.dim);
    assert_eq!(out.len(), messages.len());
    for (index, (message, record)) in messages.iter().zip(&out).enumerate() {
        assert_eq!(record.key, message.key, "{index}");
        if let Some(timestamp) = message.timestamp_ms {
            assert_eq!(record.timestamp_ms, Some(timestamp), "{index}");
        }
        let sent: Vec<_> = message
            .headers
            .iter()
            .map(|(key, value)| (key.to_string(), value.map(<[u8]>::to_vec)))
            .collect();
        assert_eq!(record.headers[..sent.len()], sent, "{index}");
        let Some(value) = &message.value else {
            assert_eq!(record.value, None, "a tombstone stays one");
            assert_eq!(record.headers.len(), sent.len());
            continue;
        };
        let caption = serde_json::from_slice::<serde_json::Value>(value).unwrap();
        let tokens = tokenizer.tokenize(caption["caption"].as_str().unwrap()).unwrap();
        assert_eq!(record.vector(), embedder.vector(tokens.ids.iter().copied()), "{index}");
        assert_eq!(record.header("capvec.model"), manifest.model_id);
        assert_eq!(record.header("capvec.dim"), "640");
        assert_eq!(record.header("capvec.dtype"), "float32");
        assert_eq!(record.header("capvec.source"), format!("passes/0/{index}"));
        assert_eq!(record.header("capvec.tokens"), tokens.ids.len().to_string());
        assert_eq!(record.header("capvec.truncated"), tokens.truncated.to_string());
    }
    assert_eq!(out[5].header("capvec.truncated"), "true");
    assert_eq!(out[5].header("capvec.tokens"), "128");
}

#[test]
fn the_json_form_is_flat_and_complete() {
    let cluster = Cluster::shared();
    cluster.create_topics("json", 2);
    let value = |id: &str, caption: &str| {
        format!(r#"{{"id": {id}, "nested": {{"text": ["", "{caption}"]}}}}"#).into_bytes()
    };
    let message = |id: &str, caption: &str| Outgoing {
        key: Some("same".into()),
        value: Some(value(id, caption)),
        ..Outgoing::default()
    };
    cluster.send("json", &[message("17", CAPTIONS[0]), message("\"a\"", CAPTIONS[1])]);
    let options = [
        "input.pointer=/nested/text/1",
        "output.format=json",
        "output.id=/id",
        "output.include_caption=true",
    ];
    let worker = Worker::start(&cluster, "json", &options).ready();
    let out = cluster.await_records("json.out", 2);
    worker.stop();

    let embedder = HashEmbedder::new(640);
    let tokenizer = tokenizer_of(tiny_package());
    let manifest = Package::open(tiny_package()).unwrap().manifest;
    for (record, (id, caption)) in out
        .iter()
        .zip([(serde_json::json!(17), CAPTIONS[0]), (serde_json::json!("a"), CAPTIONS[1])])
    {
        let object: BTreeMap<String, serde_json::Value> =
            serde_json::from_slice(record.value.as_ref().unwrap()).unwrap();
        let keys: Vec<_> = object.keys().map(String::as_str).collect();
        assert_eq!(keys, ["caption", "id", "model", "vector"]);
        assert_eq!(object["id"], id);
        assert_eq!(object["caption"], caption);
        assert_eq!(object["model"], manifest.model_id.as_str());
        let numbers = object["vector"].as_array().unwrap();
        let vector: Vec<f32> = numbers.iter().map(|n| n.as_f64().unwrap() as f32).collect();
        assert_eq!(vector, embedder.vector(tokenizer.tokenize(caption).unwrap().ids));
    }
}

#[test]
fn plain_text_comes_in_and_ids_are_keys_or_positions() {
    let cluster = Cluster::shared();
    cluster.create_topics("text", 1);
    let message = |key: &[u8], value: &[u8]| Outgoing {
        key: Some(key.into()),
        value: Some(value.into()),
        ..Outgoing::default()
    };
    cluster.send(
        "text",
        &[
            message(b"a", CAPTIONS[0].as_bytes()),
            message(b"b", b""),
            message(b"c", b"not \xff utf-8"),
            message(b"\xff", b"its key isn't text"),
        ],
    );
    let options =
        ["input.format=text", "input.on_empty=embed", "output.format=json", "output.id=key"];
    let worker = Worker::start(&cluster, "text", &options).ready();
    let out = cluster.await_records("text.out", 2);
    let dead = cluster.await_records("text.dead", 2);
    worker.stop();

    let tokenizer = tokenizer_of(tiny_package());
    let object = |record: &Record| -> serde_json::Value {
        serde_json::from_slice(record.value.as_ref().unwrap()).unwrap()
    };
    for (record, (id, caption)) in out.iter().zip([("a", CAPTIONS[0]), ("b", "")]) {
        let object = object(record);
        assert_eq!(object["id"], id);
        assert!(object.get("caption").is_none(), "it wasn't asked for");
        let ids = tokenizer.tokenize(caption).unwrap().ids;
        let first = HashEmbedder::new(640).vector(ids)[0];
        assert_eq!(object["vector"][0].as_f64().unwrap() as f32, first);
    }
    let reasons: Vec<_> = dead.iter().map(|r| r.reason()).collect();
    assert_eq!(reasons, ["not_utf8", "id_missing"]);

    // The same messages for another group, with positions for ids.
    let options = [
        "kafka.group=text.group.2",
        "input.format=text",
        "input.on_empty=embed",
        "output.format=json",
        "output.id=source",
    ];
    let worker = Worker::start(&cluster, "text", &options).ready();
    let out = cluster.await_records("text.out", 5);
    worker.stop();
    let ids: Vec<_> = out[2..].iter().map(|record| object(record)["id"].clone()).collect();
    assert_eq!(ids, ["text/0/0", "text/0/1", "text/0/3"]);
}

#[test]
fn what_is_settled_is_committed_and_shown() {
    let cluster = Cluster::shared();
    cluster.create_topics("committed", 3);
    cluster.send("committed", &captions(300));
    let options = ["delivery.commit_interval=100ms", "tokenize.threads=3"];
    let worker = Worker::start(&cluster, "committed", &options).ready();
    let ends = cluster.ends("committed");
    let group = cluster.observe_group("committed.group", "committed");
    eventually("all offsets are committed by the interval", || {
        (group.committed() == ends).then_some(())
    });
    assert_eq!(worker.metric("capvec_messages_consumed_total"), Some(300.0));
    assert_eq!(worker.metric("capvec_captions_embedded_total"), Some(300.0));
    assert_eq!(worker.metric("capvec_messages_settled_total{outcome=\"embedded\"}"), Some(300.0));
    assert_eq!(worker.metric("capvec_end_to_end_seconds_count"), Some(300.0));
    assert_eq!(worker.metric("capvec_assigned_partitions"), Some(3.0));
    for partition in 0..3 {
        let series = format!("capvec_consumer_lag_messages{{partition=\"{partition}\"}}");
        eventually("the lag is shown, and none", || {
            worker.metric(&series).filter(|lag| *lag == 0.0)
        });
    }
    eventually("nothing is in flight", || {
        worker.metric("capvec_in_flight_messages").filter(|n| *n == 0.0)
    });
    assert_eq!(worker.get("/livez").unwrap().0, 200);
    worker.stop();
    assert_eq!(cluster.records("committed.out").len(), 300, "none twice");
}

#[test]
fn a_log_that_cannot_be_written_stops_nothing() {
    let cluster = Cluster::shared();
    cluster.create_topics("unlogged", 1);
    cluster.send("unlogged", &[Outgoing::caption("k", CAPTIONS[0])]);
    let mut program = Command::new("sh");
    program.args(["-c", r#"exec "$0" run "$@" 2>/dev/full"#, CAPVEC]);
    // Its log tells nobody where its admin port is.
    let listen = format!("admin.listen={}", free_address());
    let options = [listen.as_str()];
    let worker = Worker::launch(program, &cluster, "unlogged", &options).ready();
    cluster.await_records("unlogged.out", 1);
    worker.stop();
}

/// Its weights are mapped: they would be others from then on.
#[test]
fn a_worker_ends_whose_weights_are_written_over() {
    let (_mock, cluster) = mock(1);
    let package = tempfile::tempdir().unwrap();
    for file in std::fs::read_dir(tiny_package()).unwrap().map(Result::unwrap) {
        std::fs::copy(file.path(), package.path().join(file.file_name())).unwrap();
    }
    let option = format!("model.package={}", package.path().display());
    let mut worker = Worker::start(&cluster, "in", &[&option]).ready();
    let weights = package.path().join("model.onnx.data");
    let others = [std::fs::read(&weights).unwrap(), vec![0]].concat();
    std::fs::write(&weights, others).unwrap();
    assert_eq!(worker.wait().code(), Some(1));
    let said = "model.onnx.data was written over while this worker ran";
    assert!(worker.log().contains(said), "{}", worker.log());
}

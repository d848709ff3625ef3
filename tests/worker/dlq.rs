//! `capvec dlq` on a real Kafka: what it lists, what it sends back, and from where it goes on.

use std::collections::{BTreeMap, BTreeSet};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rdkafka::ClientConfig;
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use serde_json::{Value, json};

use crate::support::{
    CAPVEC, Cluster, Outgoing, PATIENCE, Record, Worker, capvec, eventually, tiny_package,
};

/// Returns the arguments of `capvec dlq` for the topics of `name`.
fn arguments(cluster: &Cluster, name: &str, command: &str, args: &[&str]) -> Vec<String> {
    let sets = [
        format!("kafka.brokers={}", cluster.bootstrap),
        format!("kafka.group={name}.group"),
        format!("input.topic={name}"),
        format!("output.topic={name}.out"),
        format!("reject.topic={name}.dead"),
        format!("model.package={}", tiny_package().display()),
    ];
    let sets = sets.into_iter().flat_map(|set| ["--set".to_owned(), set]);
    let args = args.iter().map(|&arg| arg.to_owned());
    ["dlq", command].map(str::to_owned).into_iter().chain(sets).chain(args).collect()
}

/// Runs `capvec dlq` for the topics of `name`; returns its exit code, output and standard error.
fn dlq(cluster: &Cluster, name: &str, command: &str, args: &[&str]) -> (i32, String, String) {
    let all = arguments(cluster, name, command, args);
    let output = capvec(&all.iter().map(String::as_str).collect::<Vec<_>>());
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

/// Replays, which must go well, and returns its JSON.
#[track_caller]
fn replay(cluster: &Cluster, name: &str, args: &[&str]) -> Value {
    let args = [&["--execute", "--json"], args].concat();
    let (code, said, error) = dlq(cluster, name, "replay", &args);
    assert_eq!(code, 0, "{said}{error}");
    serde_json::from_str(&said).unwrap()
}

/// What a message is, wherever in its partition it lies.
fn content(record: &Record) -> Record {
    Record { offset: 0, ..record.clone() }
}

/// A dead letter as a worker would write it, each of a message of its own.
fn letter(topic: &'static str, value: &str) -> Outgoing {
    static OFFSET: AtomicU64 = AtomicU64::new(0);
    let offset = OFFSET.fetch_add(1, Ordering::Relaxed).to_string().leak();
    Outgoing {
        key: Some("key".into()),
        value: Some(value.into()),
        headers: vec![
            ("own", Some(b"kept")),
            ("__connect.errors.topic", Some(topic.as_bytes())),
            ("__connect.errors.partition", Some(b"0")),
            ("__connect.errors.offset", Some(offset.as_bytes())),
            ("__connect.errors.exception.class.name", Some(b"not_json")),
            ("__connect.errors.exception.message", Some(b"it isn't JSON")),
        ],
        timestamp_ms: None,
        partition: Some(0),
    }
}

#[test]
fn letters_of_a_reason_go_back_as_they_were_and_become_vectors() {
    const CAPTIONS: usize = 40;
    let cluster = Cluster::shared();
    cluster.create_topics("replayed", 3);
    let mut messages: Vec<_> = (0..CAPTIONS)
        .map(|index| Outgoing {
            key: (index % 4 > 0).then(|| format!("key-{index}").into_bytes()),
            value: Some(json!({ "text": format!("caption {index}") }).to_string().into()),
            headers: vec![("own", Some(b"first")), ("own", None)],
            timestamp_ms: Some(1_700_000_000_000 + index as i64),
            // Not where its key would put it.
            partition: Some(index as i32 % 3),
        })
        .collect();
    let not_json = Outgoing { value: Some(b"not json".to_vec()), ..Outgoing::default() };
    messages.splice(20..20, vec![not_json; 5]);
    cluster.send("replayed", &messages);
    let before: Vec<_> = cluster.records("replayed").iter().map(content).collect();

    // Where captions aren't looked for: each is rejected, in transactions, whose markers have
    // offsets.
    let options = ["delivery.mode=exactly-once", "delivery.commit_interval=50ms"];
    let worker = Worker::start(&cluster, "replayed", &options).ready();
    eventually("all are dead letters", || {
        let committed = cluster.committed("replayed.group", "replayed");
        (committed.values().sum::<i64>() >= messages.len() as i64).then_some(())
    });
    worker.stop();

    let (code, said, summary) = dlq(&cluster, "replayed", "list", &["--json"]);
    assert_eq!(code, 0, "{summary}");
    let listed: Vec<Value> = said.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(listed.len(), messages.len());
    let sources: BTreeSet<_> = listed.iter().map(|l| l["source"].to_string()).collect();
    assert_eq!(sources.len(), messages.len(), "each letter says where it came from");
    assert!(listed.iter().all(|l| l["source"]["topic"] == "replayed"));
    assert!(summary.contains("45 dead letters: caption_missing 40, not_json 5"), "{summary}");
    let (_, newest, _) = dlq(&cluster, "replayed", "list", &["--json", "--last", "3"]);
    assert!(said.ends_with(&newest) && newest.lines().count() == 3, "{newest}");
    let (_, said, _) = dlq(&cluster, "replayed", "list", &["--reason", "not_json", "--max", "2"]);
    assert_eq!(said.lines().count(), 2, "{said}");
    assert!(
        said.starts_with("replayed.dead/0/") && said.contains("  not_json: the value"),
        "{said}"
    );
    let one = ["--reason", "not_json", "--max", "1", "--values"];
    let (_, said, _) = dlq(&cluster, "replayed", "list", &one);
    assert_eq!(said.lines().nth(1), Some("    not json"), "{said}");
    let (_, said, _) = dlq(&cluster, "replayed", "list", &[&one[..], &["--json"]].concat());
    assert!(said.contains(r#""value":"not json""#), "{said}");

    let reason = ["--reason", "caption_missing"];
    let (code, said, error) = dlq(&cluster, "replayed", "replay", &reason);
    assert_eq!(code, 0, "{error}");
    assert!(said.contains("40 dead letters") && said.contains("nothing was sent"), "{said}");
    assert_eq!(cluster.records("replayed").len(), before.len(), "without --execute");

    let report = replay(&cluster, "replayed", &reason);
    assert_eq!(report["replayed"], CAPTIONS);
    assert_eq!(report["selected"], json!({ "caption_missing": CAPTIONS }));
    let after: Vec<_> = cluster.records("replayed").iter().map(content).collect();
    assert_eq!(after.len(), before.len() + CAPTIONS);
    for message in before.iter().filter(|m| m.value.as_deref() != Some(b"not json")) {
        let times = after.iter().filter(|one| *one == message).count();
        assert_eq!(times, 2, "as it was, in the partition where it was: {message:?}");
    }

    let options = ["input.pointer=/text"];
    let worker = Worker::start(&cluster, "replayed", &options).ready();
    let vectors = cluster.await_records("replayed.out", CAPTIONS);
    assert_eq!(vectors.len(), CAPTIONS);
    worker.stop();
}

#[test]
fn a_replay_goes_on_from_where_it_says_and_waits_for_no_open_transaction() {
    let cluster = Cluster::shared();
    cluster.create_topics("resumed", 1);
    let letters: Vec<_> = (0..5).map(|index| letter("resumed", &index.to_string())).collect();
    cluster.send("resumed.dead", &letters);
    cluster.send("resumed.dead", &[letter("another", "foreign"), Outgoing::caption("k", "none")]);
    let transaction = |value: &str| {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", &cluster.bootstrap);
        config.set("transactional.id", format!("resumed-{value}"));
        let producer: BaseProducer = config.create().unwrap();
        producer.init_transactions(PATIENCE).unwrap();
        producer.begin_transaction().unwrap();
        let letter = letter("resumed", value);
        let headers = letter.headers.iter().fold(OwnedHeaders::new(), |all, (key, value)| {
            all.insert(Header { key, value: *value })
        });
        let record = BaseRecord::to("resumed.dead").key("key").payload(value).headers(headers);
        producer.send(record).map_err(|(error, _)| error).unwrap();
        producer.flush(PATIENCE).unwrap();
        producer
    };
    transaction("aborted").abort_transaction(PATIENCE).unwrap();
    let open = transaction("open");

    let values = || -> Vec<String> {
        let records = cluster.records("resumed");
        records.into_iter().map(|r| String::from_utf8(r.value.unwrap()).unwrap()).collect()
    };
    let report = replay(&cluster, "resumed", &["--max", "3"]);
    assert_eq!(report["next"], json!({ "0": 3 }));
    assert_eq!(values(), ["0", "1", "2"]);
    let report = replay(&cluster, "resumed", &["--from", "0:3"]);
    assert_eq!(report["replayed"], 2);
    let left_out = json!({ "other_topics": 1, "same_message": 0, "without_reason": 1 });
    assert_eq!(report["left_out"], left_out);
    let next = report["next"]["0"].as_i64().unwrap();
    assert_eq!(next, 7, "not behind what isn't committed");
    assert_eq!(values(), ["0", "1", "2", "3", "4"], "nothing that is open or aborted");

    open.commit_transaction(PATIENCE).unwrap();
    let report = replay(&cluster, "resumed", &["--from", &format!("0:{next}")]);
    assert_eq!(report["replayed"], 1);
    assert_eq!(values().last().unwrap(), "open");
    let last = &cluster.records("resumed")[5];
    assert_eq!(last.headers, [("own".to_owned(), Some(b"kept".to_vec()))]);

    let (code, _, error) = dlq(&cluster, "resumed", "replay", &["--from", "0:999"]);
    assert!(code == 1 && error.contains("--from: partition 0"), "{error}");
}

#[test]
fn the_newest_letters_are_listed_from_the_end() {
    const LETTERS: i64 = 60;
    let cluster = Cluster::shared();
    cluster.create_topic("newest.dead", 2);
    let letters = (0..2 * LETTERS).map(|index| {
        let timestamp_ms = Some(1_700_000_000_000 + index);
        let partition = Some(index as i32 % 2);
        let mut letter =
            Outgoing { timestamp_ms, partition, ..letter("newest", &format!("value {index}")) };
        if index < 2 {
            let (_, reason) =
                letter.headers.iter_mut().find(|(key, _)| key.ends_with("name")).unwrap();
            *reason = Some(b"not_utf8");
        }
        letter
    });
    // Records take offsets without being letters, as the markers of transactions do.
    let none = Outgoing { partition: Some(1), ..Outgoing::caption("k", "none") };
    let letters: Vec<_> = letters.chain(vec![none; 9]).collect();
    cluster.send("newest.dead", &letters);
    let listed = |args: &[&str]| -> Vec<(i64, i64, String)> {
        let (code, said, error) =
            dlq(&cluster, "newest", "list", &[args, &["--json", "--values"]].concat());
        assert_eq!(code, 0, "{error}");
        let letter = |line| -> Value { serde_json::from_str(line).unwrap() };
        let number = |letter: &Value, key: &str| letter[key].as_i64().unwrap();
        said.lines()
            .map(letter)
            .map(|l| (number(&l, "partition"), number(&l, "offset"), l["value"].to_string()))
            .collect()
    };
    let value = |index: i64| (index % 2, index / 2, format!("\"value {index}\""));
    assert_eq!(listed(&["--last", "3"]), [117, 118, 119].map(value));
    let all: Vec<_> = (0..2 * LETTERS).map(value).collect();
    assert_eq!(listed(&["--last", "1000"]), all);
    assert_eq!(listed(&["--last", "2", "--reason", "not_utf8"]), [0, 1].map(value));
    assert_eq!(listed(&["--last", "1", "--reason", "not_embedded"]), []);
    let (_, said, summary) = dlq(&cluster, "newest", "list", &["--last", "1"]);
    assert!(said.starts_with("newest.dead/1/59  newest/0/"), "{said}");
    let counted = "1 dead letter: not_json 1; left out as without a readable reason: 9";
    assert!(summary.contains(counted), "{summary}");
    for refused in [&["--last", "0"][..], &["--last", "1001"], &["--last", "3", "--max", "2"]] {
        let (code, _, error) = dlq(&cluster, "newest", "list", refused);
        assert!(code == 2 && error.contains("--last"), "{refused:?}: {error}");
    }
}

#[test]
fn a_message_of_which_there_are_two_letters_goes_back_once() {
    let cluster = Cluster::shared();
    cluster.create_topics("doubled", 1);
    let (_, said, _) = dlq(&cluster, "doubled", "replay", &[]);
    assert_eq!(said, "0 dead letters\n", "there is nothing that --execute would send");
    // Of two groups, or of one whose worker was killed in between.
    let twice = letter("doubled", "twice");
    // At the same place of a topic that was made anew in between.
    let another = Outgoing { value: Some("another".into()), ..twice.clone() };
    let letters = [twice.clone(), letter("doubled", "once"), twice, another];
    cluster.send("doubled.dead", &letters);
    let report = replay(&cluster, "doubled", &[]);
    assert_eq!(report["replayed"], 3);
    assert_eq!(report["left_out"]["same_message"], 1);
    assert_eq!(report["next"], json!({ "0": 4 }));
    assert_eq!(cluster.records("doubled").len(), 3);
}

#[test]
fn only_what_is_acknowledged_counts_and_a_refused_letter_is_where_it_goes_on() {
    let cluster = Cluster::shared();
    cluster.create_topic_with("dlq-refused", 1, &[("max.message.bytes", "2000")]);
    cluster.create_topic("dlq-refused.dead", 1);
    let large = "large ".repeat(1000);
    let letters = ["first", large.as_str(), "last"].map(|value| letter("dlq-refused", value));
    cluster.send("dlq-refused.dead", &letters);
    let (code, said, error) = dlq(&cluster, "dlq-refused", "replay", &["--execute", "--json"]);
    assert_eq!(code, 1, "{said}");
    assert!(error.contains("0:1 was not acknowledged") && error.contains("too large"), "{error}");
    let report: Value = serde_json::from_str(&said).unwrap();
    assert_eq!(report["next"], json!({ "0": 1 }), "at the letter that was refused");
    let arrived = cluster.records("dlq-refused").len();
    assert_eq!(report["replayed"], arrived, "those that the brokers have, and no other");
    assert!((1..=2).contains(&arrived), "{arrived}");

    let (code, said, _) = dlq(&cluster, "dlq-refused", "replay", &["--execute", "--from", "0:1"]);
    assert_eq!(code, 1, "{said}");
    let past =
        "no broker takes 0:1 as it is; --from 0:2 in the place of --from 0:1 leaves it out\n";
    assert!(said.contains(past) && said.ends_with("--from 0:1\n"), "{said}");
}

#[test]
fn letters_that_the_topic_would_delete_are_refused_unless_they_get_another_time() {
    let cluster = Cluster::shared();
    cluster.create_topic_with("aged", 1, &[("retention.ms", "3600000")]);
    cluster.create_topic("aged.dead", 1);
    let old = Outgoing { timestamp_ms: Some(1_700_000_000_000), ..letter("aged", "old") };
    cluster.send("aged.dead", &[letter("aged", "young"), old]);
    for flags in [&[][..], &["--execute"]] {
        let (code, said, error) = dlq(&cluster, "aged", "replay", flags);
        assert_eq!(code, 1, "the dry run says it too");
        for part in ["the letter 0:1", "retention.ms", "--stamp-now"] {
            assert!(error.contains(part), "{part}: {error}");
        }
        assert_eq!(said.contains("--from 0:1"), !flags.is_empty(), "where to go on: {said}");
    }
    assert_eq!(cluster.records("aged").len(), 1);
    replay(&cluster, "aged", &["--from", "0:1", "--stamp-now"]);
    let records = cluster.records("aged");
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let stamp = Duration::from_millis(records[1].timestamp_ms.unwrap() as u64);
    assert!(now.abs_diff(stamp) < PATIENCE, "{stamp:?}");
}

/// The brokers would refuse the batch with all letters that are in it.
#[test]
fn a_letter_whose_time_the_topic_does_not_take_is_refused_alone() {
    let cluster = Cluster::shared();
    cluster.create_topic_with("bounded", 1, &[("message.timestamp.before.max.ms", "3600000")]);
    cluster.create_topic("bounded.dead", 1);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let two_hours_ago = now.as_millis() as i64 - 7_200_000;
    let old = Outgoing { timestamp_ms: Some(two_hours_ago), ..letter("bounded", "old") };
    cluster.send("bounded.dead", &[letter("bounded", "young"), old]);
    let (code, said, error) = dlq(&cluster, "bounded", "replay", &["--execute"]);
    assert_eq!(code, 1, "{said}");
    for part in ["the letter 0:1", "message.timestamp.before.max.ms of 3600000", "--stamp-now"] {
        assert!(error.contains(part), "{part}: {error}");
    }
    assert!(said.contains("--from 0:1"), "where to go on: {said}");
    assert_eq!(cluster.records("bounded").len(), 1);
    replay(&cluster, "bounded", &["--from", "0:1", "--stamp-now"]);
    assert_eq!(cluster.records("bounded").len(), 2);
}

#[test]
fn a_letter_whose_time_is_refused_is_named_and_not_another_of_its_batch() {
    let cluster = Cluster::shared();
    let hour = [("message.timestamp.after.max.ms", "3600000")];
    cluster.create_topic_with("named", 1, &hour);
    let any = [("message.timestamp.after.max.ms", "9223372036854775807")];
    cluster.create_topic_with("named.dead", 1, &any);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    // Within a minute of the bound the replay leaves it to the brokers. One alone they don't tell.
    let ahead = (now + Duration::from_secs(3600 + 55)).as_millis() as i64;
    let untimely = |value: &str| Outgoing { timestamp_ms: Some(ahead), ..letter("named", value) };
    let letters = [letter("named", "good"), untimely("one"), untimely("two")];
    cluster.send("named.dead", &letters);
    // So that they are in one batch.
    let options = ["--execute", "--set", "kafka.librdkafka.linger.ms=500"];
    let (code, said, error) = dlq(&cluster, "named", "replay", &options);
    assert_eq!(code, 1, "{said}");
    assert!(error.contains("the letter 0:1 was not acknowledged"), "{error}");
    assert!(said.contains("--from 0:0"), "none of them is there: {said}");
    assert!(!said.contains("--from 0:2"), "which would leave out the good one, too: {said}");
}

#[test]
fn a_replay_that_is_interrupted_says_from_where_to_go_on_and_loses_none() {
    const LETTERS: usize = 6000;
    let cluster = Cluster::shared();
    cluster.create_topics("interrupted", 1);
    let letters: Vec<_> =
        (0..LETTERS).map(|index| letter("interrupted", &index.to_string())).collect();
    cluster.send("interrupted.dead", &letters);
    // A request for each letter, so that the replay takes a while.
    let slow = ["--execute", "--json", "--set", "kafka.librdkafka.batch.num.messages=1"];
    let all = arguments(&cluster, "interrupted", "replay", &slow);
    let mut command = Command::new(CAPVEC);
    let command = command.args(&all).stdin(Stdio::null()).stdout(Stdio::piped());
    let target = cluster.observe("interrupted");
    let replaying = command.stderr(Stdio::piped()).spawn().unwrap();
    eventually("some have arrived", || (target.records() >= 100).then_some(()));
    let id = replaying.id().to_string();
    assert!(Command::new("kill").args(["-s", "INT", &id]).status().unwrap().success());
    let output = replaying.wait_with_output().unwrap();
    let error = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(130), "{error}");
    assert!(error.contains("interrupted"), "{error}");
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let next = report["next"]["0"].as_i64().unwrap();
    let arrived = cluster.ends("interrupted")[&0];
    assert_eq!(report["replayed"], arrived, "those that the brokers have, and no other");
    assert!(next <= arrived && arrived - next <= 1000, "{next} of {arrived}");
    assert!(arrived < LETTERS as i64, "it was interrupted in the middle");

    replay(&cluster, "interrupted", &["--from", &format!("0:{next}")]);
    let mut times = BTreeMap::new();
    for record in cluster.records("interrupted") {
        *times.entry(record.value.unwrap()).or_insert(0) += 1;
    }
    assert_eq!(times.len(), LETTERS, "none is lost");
    let twice = times.values().filter(|&&times| times == 2).count() as i64;
    assert_eq!(twice, arrived - next, "and none comes again but those that it said");
}

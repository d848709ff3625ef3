//! Bad messages on a real Kafka: each reaches the dead-letter topic as it was, with its reason.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::support::{Cluster, Outgoing, Record, Worker, captions, eventually};

/// A message of each bad kind, with the reason that it must be rejected for.
fn bad_values() -> Vec<(Vec<u8>, &'static str)> {
    let caption = |json: &str| format!(r#"{{"caption": {json}}}"#).into_bytes();
    vec![
        (b"".to_vec(), "not_json"),
        (b"   ".to_vec(), "not_json"),
        (b"not json".to_vec(), "not_json"),
        (br#"{"caption": "cut o"#.to_vec(), "not_json"),
        (br#"{"caption": "a"} trailing"#.to_vec(), "not_json"),
        (br#"{"caption": "a",}"#.to_vec(), "not_json"),
        (caption(r#""lone \ud800 surrogate""#), "not_json"),
        (caption("\"raw \u{1} control\""), "not_json"),
        (b"\xff\xfe\x00a".to_vec(), "not_utf8"),
        (b"{\"caption\": \"half \xc3\"}".to_vec(), "not_utf8"),
        (br#"{}"#.to_vec(), "caption_missing"),
        (br#"{"Caption": "wrong case"}"#.to_vec(), "caption_missing"),
        (br#"{"a": {"caption": "too deep"}}"#.to_vec(), "caption_missing"),
        (br#"["caption"]"#.to_vec(), "caption_missing"),
        (br#""just a string""#.to_vec(), "caption_missing"),
        (caption("null"), "caption_not_text"),
        (caption("42"), "caption_not_text"),
        (caption("[\"a list\"]"), "caption_not_text"),
        (caption("{\"text\": \"an object\"}"), "caption_not_text"),
        (caption("\"\""), "caption_empty"),
        (caption("\" \\t\\n \\u00a0\""), "caption_empty"),
        (caption("\"\\u0000\\u200d\\u0007\""), "caption_empty"),
        (caption(&format!("\"{}\"", "word ".repeat(200_000))), "caption_too_large"),
        ("[".repeat(100_000).into_bytes(), "not_json"),
    ]
}

#[test]
fn each_bad_message_becomes_a_dead_letter_and_the_good_ones_come_through() {
    let cluster = Cluster::shared();
    cluster.create_topics("bad", 1);
    let mut messages = Vec::new();
    let bad = bad_values();
    for (index, (value, _)) in bad.iter().enumerate() {
        messages.push(Outgoing::caption(&format!("good-{index}"), &format!("good {index}")));
        messages.push(Outgoing {
            key: Some(format!("bad-{index}").into_bytes()),
            value: Some(value.clone()),
            headers: vec![("own", Some(b"kept")), ("own", Some(b"twice"))],
            timestamp_ms: Some(1_700_000_000_000 + index as i64),
            ..Outgoing::default()
        });
    }
    messages.push(Outgoing::caption("good-last", "the last"));
    cluster.send("bad", &messages);

    let worker = Worker::start(&cluster, "bad", &[]).ready();
    let dead = cluster.await_records("bad.dead", bad.len());
    let good = cluster.await_records("bad.out", bad.len() + 1);
    eventually("every message is settled", || {
        worker.metric("capvec_in_flight_messages").filter(|n| *n == 0.0)
    });
    let counted = worker.metric("capvec_captions_rejected_total{reason=\"caption_empty\"}");
    assert_eq!(counted, Some(3.0));
    worker.stop();

    assert_eq!(good.len(), bad.len() + 1);
    for (index, record) in good.iter().take(bad.len()).enumerate() {
        assert_eq!(record.key, Some(format!("good-{index}").into_bytes()), "in order");
    }
    assert_eq!(dead.len(), bad.len());
    for letter in &dead {
        let key = String::from_utf8(letter.key.clone().unwrap()).unwrap();
        let index: usize = key.strip_prefix("bad-").unwrap().parse().unwrap();
        let (value, reason) = &bad[index];
        assert!(letter.value.as_ref() == Some(value), "{key}: byte for byte");
        assert_eq!(letter.reason(), *reason, "{key}");
        assert_eq!(letter.header("__connect.errors.topic"), "bad");
        assert_eq!(letter.header("__connect.errors.partition"), "0");
        assert_eq!(letter.header("__connect.errors.offset"), (2 * index + 1).to_string());
        assert_eq!(letter.header("__connect.errors.connector.name"), "bad.group");
        assert!(!letter.header("__connect.errors.exception.message").is_empty());
        assert_eq!(letter.timestamp_ms, Some(1_700_000_000_000 + index as i64));
        let own: Vec<_> = letter.headers[..2].iter().map(|(_, v)| v.clone().unwrap()).collect();
        assert_eq!(own, [b"kept".to_vec(), b"twice".to_vec()]);
    }
    let committed = cluster.committed("bad.group", "bad");
    assert_eq!(committed[&0], messages.len() as i64, "dead letters are settled like vectors");
}

#[test]
fn without_a_dead_letter_topic_the_worker_stops_at_a_bad_message() {
    let cluster = Cluster::shared();
    for (topic, mode) in [("stops", "at-least-once"), ("stops-exactly", "exactly-once")] {
        cluster.create_topics(topic, 1);
        let bad = Outgoing { value: Some(b"bad".to_vec()), ..Outgoing::default() };
        let good = Outgoing::caption("k", "good");
        cluster.send(topic, &[good.clone(), good.clone(), bad, good]);
        let mode_option = format!("delivery.mode={mode}");
        let options = ["reject.topic=", "delivery.commit_interval=20s", &mode_option];
        let mut worker = Worker::start(&cluster, topic, &options);
        assert_eq!(worker.wait().code(), Some(1), "{mode}");
        let log = worker.log();
        let place = format!("{topic}/0/2");
        assert!(log.contains(&place) && log.contains("reject.topic"), "{mode}: {log}");
        assert_eq!(cluster.records(&format!("{topic}.out")).len(), 2, "{mode}");
        let committed = cluster.committed(&format!("{topic}.group"), topic)[&0];
        assert_eq!(committed, 2, "{mode}: what is before the bad message is done, and no more");
    }
}

#[test]
fn bad_messages_are_skipped_where_it_is_told_to() {
    let cluster = Cluster::shared();
    cluster.create_topics("skips", 1);
    let bad = Outgoing { value: Some(b"bad".to_vec()), ..Outgoing::default() };
    cluster.send("skips", &[bad.clone(), Outgoing::caption("k", "good"), bad]);
    let options = ["reject.topic=", "reject.on_reject=skip"];
    let worker = Worker::start(&cluster, "skips", &options).ready();
    cluster.await_records("skips.out", 1);
    eventually("both are counted", || {
        worker
            .metric("capvec_messages_settled_total{outcome=\"rejected\"}")
            .filter(|number| *number == 2.0)
    });
    worker.stop();
    assert_eq!(cluster.committed("skips.group", "skips")[&0], 3);
}

/// Gives a worker ten captions and two hundred messages that it must reject, of which the breaker
/// stops it at the fiftieth. Returns its log.
#[track_caller]
fn stopped_by_the_breaker(topic: &str, spoil: fn(&mut Outgoing), options: &[&str]) -> String {
    let cluster = Cluster::shared();
    // One partition, so in this order.
    cluster.create_topics(topic, 1);
    let mut messages = captions(210);
    messages[10..].iter_mut().for_each(spoil);
    cluster.send(topic, &messages);
    let mut worker =
        Worker::start(&cluster, topic, &[&["reject.breaker_run=50"], options].concat());
    assert_eq!(worker.wait().code(), Some(1), "{topic}");
    let log = worker.log();
    assert!(log.contains("50 messages in a row were rejected"), "{topic}: {log}");
    let dead = cluster.records(&format!("{topic}.dead"));
    assert_eq!(dead.len(), 49, "{topic}: the fiftieth and what is after it stay");
    assert_eq!(cluster.records(&format!("{topic}.out")).len(), 10, "{topic}");
    let committed = cluster.committed(&format!("{topic}.group"), topic);
    assert_eq!(committed[&0], 59, "{topic}: their offsets too");
    log
}

#[test]
fn the_breaker_stops_a_worker_that_rejects_everything_and_keeps_its_dead_letters() {
    for (topic, mode) in [("broken", "at-least-once"), ("broken-exactly", "exactly-once")] {
        let no_caption = |message: &mut Outgoing| message.value = Some(b"no caption".to_vec());
        let log = stopped_by_the_breaker(topic, no_caption, &[&format!("delivery.mode={mode}")]);
        assert!(log.contains("a message was rejected"), "{log}");
        assert!(log.contains(", the last at ") && log.contains("capvec dlq list"), "{log}");
    }
}

/// Captions that turn out to be no records only where they are written.
#[test]
fn the_breaker_counts_what_cannot_be_written_as_it_counts_what_is_no_caption() {
    for (topic, mode) in [("keyless", "at-least-once"), ("keyless-exactly", "exactly-once")] {
        let options = [
            "output.format=json",
            "delivery.commit_interval=20s",
            &format!("delivery.mode={mode}"),
        ];
        stopped_by_the_breaker(topic, |message| message.key = None, &options);
    }
}

/// Has a worker settle all messages of a topic.
fn work_off(cluster: &Cluster, topic: &str, options: &[&str], messages: &[Outgoing]) {
    cluster.send(topic, messages);
    let worker = Worker::start(cluster, topic, options).ready();
    cluster.await_settled(topic, messages.len());
    worker.stop();
}

/// A compacted topic refuses records without a key, and the whole batch that one is in.
#[test]
fn a_record_without_a_key_for_a_compacted_topic_does_not_stop_the_others() {
    for mode in ["at-least-once", "exactly-once"] {
        let cluster = Cluster::shared();
        let topic = format!("compacted-{mode}");
        cluster.create_topic(&topic, 1);
        cluster.create_topic_with(&format!("{topic}.out"), 1, &[("cleanup.policy", "compact")]);
        cluster.create_topic(&format!("{topic}.dead"), 1);
        let mut messages = captions(200);
        messages[50].key = None;
        messages[120] = Outgoing::default();
        work_off(&cluster, &topic, &[&format!("delivery.mode={mode}")], &messages);
        let dead = cluster.records(&format!("{topic}.dead"));
        let reason =
            |letter: &Record| letter.header("__connect.errors.exception.message").to_owned();
        assert_eq!(dead.len(), 2, "{mode}: {:?}", dead.first().map(reason));
        for letter in dead {
            assert_eq!(letter.reason(), "record_refused");
            assert_eq!(letter.key, None);
        }
        let vectors = cluster.records(&format!("{topic}.out"));
        let keys: std::collections::BTreeSet<_> = vectors.iter().map(|v| &v.key).collect();
        assert_eq!((keys.len(), vectors.len()), (198, 198), "{mode}");
    }
}

/// Brokers refuse the whole batch that a record with such a timestamp is in, in the dead-letter
/// topic too.
#[test]
fn a_timestamp_that_the_topics_do_not_take_does_not_stop_the_others() {
    for mode in ["at-least-once", "exactly-once"] {
        let cluster = Cluster::shared();
        let topic = format!("untimely-{mode}");
        // As in a topic of before Kafka 4, which bounds how far ahead a timestamp may be.
        cluster.create_topic_with(
            &topic,
            1,
            &[("message.timestamp.after.max.ms", "9223372036854775807")],
        );
        let hour = [("message.timestamp.after.max.ms", "3600000")];
        cluster.create_topic_with(&format!("{topic}.out"), 1, &hour);
        cluster.create_topic_with(&format!("{topic}.dead"), 1, &hour);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        let mut messages = captions(200);
        // Microseconds where milliseconds are due; in a tombstone and in what is no caption, too.
        for index in [50, 120, 121] {
            messages[index].timestamp_ms = Some(now.as_micros() as i64);
        }
        messages[120].value = None;
        messages[121].value = Some(b"no caption".to_vec());
        work_off(&cluster, &topic, &[&format!("delivery.mode={mode}")], &messages);
        let mut dead = cluster.records(&format!("{topic}.dead"));
        dead.sort_by_key(|letter| letter.key.clone());
        let letters: Vec<_> = dead
            .iter()
            .map(|letter| {
                let key = String::from_utf8(letter.key.clone().unwrap()).unwrap();
                // The time of the letter, since the topic doesn't take the message's.
                let time = Duration::from_millis(letter.timestamp_ms.unwrap() as u64);
                assert!(time >= now && time < now + Duration::from_secs(3600), "{mode}: {time:?}");
                (key, letter.reason().to_owned())
            })
            .collect();
        let expected =
            [("k120", "record_refused"), ("k121", "not_json"), ("k50", "record_refused")];
        assert_eq!(letters, expected.map(|(key, reason)| (key.into(), reason.into())), "{mode}");
        let sentence = dead[2].header("__connect.errors.exception.message");
        assert!(sentence.contains("message.timestamp.after.max.ms of 3600000"), "{sentence}");
        assert!(sentence.contains(&now.as_micros().to_string()), "{sentence}");
        let vectors = cluster.records(&format!("{topic}.out"));
        assert_eq!(vectors.len(), 197, "{mode}");
    }
}

/// Captions of last year, as where a topic is read anew: what has their time is acknowledged, and
/// deleted at the next look.
#[test]
fn a_letter_that_its_topic_would_delete_for_its_age_has_the_time_of_now() {
    const WEEK: &str = "604800000";
    for mode in ["at-least-once", "exactly-once"] {
        let cluster = Cluster::shared();
        let topic = format!("old-{mode}");
        cluster.create_topic(&topic, 1);
        let week = [("retention.ms", WEEK)];
        cluster.create_topic_with(&format!("{topic}.out"), 1, &week);
        cluster.create_topic_with(&format!("{topic}.dead"), 1, &week);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() as i64;
        let (last_year, yesterday) = (now - 365 * 86_400_000, now - 86_400_000);
        let mut messages = captions(20);
        for (index, message) in messages.iter_mut().enumerate() {
            message.timestamp_ms = Some(if index < 10 { last_year } else { yesterday });
        }
        messages[5].value = Some(b"no caption".to_vec());
        messages[15].value = Some(b"no caption".to_vec());
        cluster.send(&topic, &messages);
        let worker = Worker::start(&cluster, &topic, &[&format!("delivery.mode={mode}")]).ready();
        cluster.await_settled(&topic, messages.len());
        let log = worker.stop();

        let dead = cluster.records(&format!("{topic}.dead"));
        let times: Vec<_> = dead.iter().map(|letter| letter.timestamp_ms.unwrap()).collect();
        assert!(times[0] >= now && times[1..] == [yesterday], "{mode}: {times:?} at {now}");
        // Vectors keep their captions' times, and somebody is told.
        let told: Vec<_> =
            log.lines().filter(|line| line.contains("readers have minutes")).collect();
        assert_eq!(told.len(), 1, "{mode}: {told:?}");
        assert!(told[0].contains(&format!("timestamp_ms={last_year}")), "{told:?}");
        assert!(told[0].contains(&format!("position=\"{topic}/0/0\"")), "{told:?}");
    }
}

/// Of several records that are refused in one batch librdkafka says only that they are invalid.
#[test]
fn dead_letters_that_are_refused_for_their_times_together_get_the_time_of_now() {
    for mode in ["at-least-once", "exactly-once"] {
        let cluster = Cluster::shared();
        let topic = format!("untimely-together-{mode}");
        let any = [("message.timestamp.after.max.ms", "9223372036854775807")];
        cluster.create_topic_with(&topic, 1, &any);
        cluster.create_topic_with(&format!("{topic}.out"), 1, &any);
        let hour = [("message.timestamp.after.max.ms", "3600000")];
        cluster.create_topic_with(&format!("{topic}.dead"), 1, &hour);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        // Within a minute of the bound the worker leaves it to the brokers.
        let ahead = now + Duration::from_secs(3600 + 55);
        let mut messages = captions(20);
        for message in &mut messages[5..10] {
            message.value = Some(b"no caption".to_vec());
            message.timestamp_ms = Some(ahead.as_millis() as i64);
        }
        // So that they are in one batch.
        let options = [&format!("delivery.mode={mode}"), "kafka.librdkafka.linger.ms=300"];
        work_off(&cluster, &topic, &options, &messages);
        let dead = cluster.records(&format!("{topic}.dead"));
        let keys: Vec<_> = dead.iter().map(|letter| letter.key.clone()).collect();
        let expected: Vec<_> = messages[5..10].iter().map(|sent| sent.key.clone()).collect();
        assert_eq!(keys, expected, "{mode}");
        for letter in &dead {
            let time = Duration::from_millis(letter.timestamp_ms.unwrap() as u64);
            assert!(time >= now && time < ahead, "{mode}: {time:?}");
        }
        let vectors = cluster.records(&format!("{topic}.out"));
        assert_eq!(vectors.len(), messages.len() - dead.len(), "{mode}");
    }
}

#[test]
fn vectors_that_the_topic_takes_one_by_one_are_no_dead_letters() {
    let cluster = Cluster::shared();
    let number = 1000;
    for (topic, limits, options) in [
        // Room for four vectors: a producer's batch of a backlog has hundreds.
        ("narrow", vec![("max.message.bytes", "12000")], vec![]),
        // Room for four hundred, in a batch that waits for more.
        (
            "short",
            vec![("segment.bytes", "1048576"), ("max.message.bytes", "10000000")],
            vec!["kafka.librdkafka.batch.size=8000000", "kafka.librdkafka.linger.ms=500"],
        ),
    ] {
        cluster.create_topic(topic, 1);
        cluster.create_topic_with(&format!("{topic}.out"), 1, &limits);
        cluster.create_topic(&format!("{topic}.dead"), 1);
        cluster.send(topic, &captions(number));
        let worker = Worker::start(&cluster, topic, &options).ready();
        let vectors = cluster.await_records(&format!("{topic}.out"), number);
        worker.stop();
        assert_eq!(vectors.len(), number, "{topic}");
        assert_eq!(cluster.records(&format!("{topic}.dead")), [], "{topic}");
    }
}

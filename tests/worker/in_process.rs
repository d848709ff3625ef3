//! The library's pipeline in this process, on librdkafka's mock cluster: what is hard to bring
//! about on a real broker.

use std::num::NonZeroUsize;
use std::time::{Duration, Instant};

use capvec::config::{DeliveryMode, EmbedderKind};
use capvec::embed::load::load;
use capvec::kafka::asker::Asker;
use capvec::kafka::writable::{Takes, asking, try_topics};
use capvec::model::package::{Existing, Package};
use capvec::model::synth::{Synthesis, synthesize};
use capvec::pipeline;
use capvec::shutdown::Shutdown;
use rdkafka::mocking::MockCoordinator;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use rdkafka::types::{RDKafkaApiKey, RDKafkaRespErr};

use crate::support::{
    Cluster, Outgoing, PATIENCE, Running, captions, eventually, free_address, http_get, mock,
    stuck, tiny_package, tokenizer_of, value_of, why_not,
};

#[test]
fn a_limit_in_flight_pauses_fetching_and_nothing_is_lost() {
    let (_mock, cluster) = mock(1);
    let mut config = cluster.config("in");
    config.delivery.in_flight_captions_max = 8.try_into().unwrap();
    config.batch.captions_max = 4.try_into().unwrap();
    let worker = Running::start(&config);
    cluster.send("in", &captions(500));
    cluster.await_records("in.out", 500);
    assert!(worker.metric("capvec_source_paused_seconds_total") > 0.0, "it was paused");
    worker.stop();
    assert_eq!(cluster.count("in.out"), 500);
}

#[test]
fn a_limit_in_bytes_pauses_fetching_too() {
    let (_mock, cluster) = mock(1);
    let mut config = cluster.config("in");
    config.delivery.in_flight_bytes_max = 100.try_into().unwrap();
    let worker = Running::start(&config);
    cluster.send("in", &captions(100));
    cluster.await_records("in.out", 100);
    assert!(worker.metric("capvec_source_paused_seconds_total") > 0.0, "it was paused");
}

/// What is in flight takes all bytes that there may be, so a batch would wait for nothing.
#[test]
fn no_caption_is_kept_back_for_others_that_a_limit_in_flight_keeps_out() {
    let (_mock, cluster) = mock(1);
    let mut config = cluster.config("in");
    config.delivery.in_flight_bytes_max = 100.try_into().unwrap();
    (config.batch.tokens_max, config.batch.wait_max) = (100_000, Duration::from_secs(3600));
    let _worker = Running::start(&config);
    cluster.send("in", &captions(2000));
    // Of the last ones a few may stay below the limit, and wait.
    cluster.await_records("in.out", 1900);
}

#[test]
fn an_objective_that_is_missed_is_counted_and_drops_nothing() {
    let (_mock, cluster) = mock(1);
    let mut config = cluster.config("in");
    config.batch.latency_objective = Duration::from_nanos(1);
    let worker = Running::start(&config);
    cluster.send("in", &captions(100));
    cluster.await_records("in.out", 100);
    assert_eq!(worker.metric("capvec_latency_objective_missed_total"), 100.0);
}

#[test]
fn several_sessions_share_the_captions_and_their_order_holds() {
    let (_mock, cluster) = mock(1);
    let mut config = cluster.config("in");
    config.embed.embedder = EmbedderKind::Onnx;
    (config.embed.sessions, config.embed.threads) = (3, 1);
    (config.batch.tokens_max, config.batch.captions_max) = (40, 4.try_into().unwrap());
    let worker = Running::start(&config);
    assert_eq!(worker.metric("capvec_embedders"), 3.0);
    let one_key: Vec<_> =
        (0..300).map(|i| Outgoing::caption("key", &format!("caption {i}"))).collect();
    cluster.send("in", &one_key);
    let records = cluster.await_records("in.out", 300);
    let sources: Vec<_> = records.iter().map(|record| record.header("capvec.source")).collect();
    let offsets =
        sources.iter().map(|source| source.rsplit_once('/').unwrap().1.parse::<usize>().unwrap());
    assert!(offsets.eq(0..300), "{sources:?}");
}

/// What isn't finite goes through the mask and the pooling of the real graph into all vectors of a
/// batch.
#[test]
fn a_caption_whose_numbers_are_not_finite_spoils_no_other() {
    let (_mock, cluster) = mock(1);
    let package = tempfile::tempdir().unwrap();
    for file in std::fs::read_dir(tiny_package()).unwrap().map(Result::unwrap) {
        std::fs::copy(file.path(), package.path().join(file.file_name())).unwrap();
    }
    let spoilt = tokenizer_of(package.path()).tokenize("ö").unwrap().ids[1] as usize;
    let hidden = Package::open(package.path()).unwrap().manifest.network.hidden;
    // The word embeddings come first.
    let weights = package.path().join("model.onnx.data");
    let mut bytes = std::fs::read(&weights).unwrap();
    bytes[4 * spoilt * hidden..][..4].copy_from_slice(&f32::NAN.to_le_bytes());
    std::fs::write(&weights, bytes).unwrap();

    let mut config = cluster.config("in");
    config.embed.embedder = EmbedderKind::Onnx;
    config.model.package = package.path().into();
    // All are in one batch.
    (config.batch.tokens_max, config.batch.wait_max) = (4096, Duration::from_secs(2));
    let worker = Running::start(&config);
    let mut messages = captions(20);
    messages[7] = Outgoing::caption("k7", "caption ö");
    cluster.send("in", &messages);
    assert_eq!(cluster.await_records("in.out", 19).len(), 19);
    let dead = cluster.await_records("in.dead", 1);
    assert_eq!(dead[0].key.as_deref(), Some(&b"k7"[..]));
    assert_eq!(dead[0].reason(), "not_finite");
    assert!(worker.metric("capvec_batch_splits_total{reason=\"not_finite\"}") > 0.0);
}

#[test]
fn a_broker_that_refuses_for_a_while_is_waited_for() {
    let (mock, cluster) = mock(1);
    cluster.send("in", &captions(10));
    let refusals = [RDKafkaRespErr::RD_KAFKA_RESP_ERR_NOT_ENOUGH_REPLICAS; 5];
    mock.request_errors(RDKafkaApiKey::Produce, &refusals);
    let worker = Running::start(&cluster.config("in"));
    assert_eq!(cluster.await_records("in.out", 10).len(), 10);
    worker.stop();
    assert_eq!(cluster.count("in.out"), 10, "none twice");
    let committed = cluster.committed("in.group", "in");
    assert_eq!(committed.into_values().filter(|offset| *offset > 0).sum::<i64>(), 10);
}

#[test]
fn a_broker_that_forbids_stops_the_worker_and_no_offset_moves() {
    let (mock, cluster) = mock(1);
    cluster.send("in", &captions(10));
    let forbidden = [RDKafkaRespErr::RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED; 50];
    mock.request_errors(RDKafkaApiKey::Produce, &forbidden);
    let worker = Running::start(&cluster.config("in"));
    let error = format!("{:#}", worker.ended().unwrap_err());
    let due = "the sink stage failed: in.out can't be written";
    assert!(error.starts_with(due), "{error}");
    let committed = cluster.committed("in.group", "in");
    assert!(committed.values().all(|offset| *offset <= 0), "{committed:?}");
}

/// librdkafka says of the commit that it is in no state for one.
#[test]
fn a_transaction_that_is_given_up_is_so_for_what_became_of_its_records() {
    let (mock, cluster) = mock(1);
    cluster.send("in", &captions(10));
    let refusals = [RDKafkaRespErr::RD_KAFKA_RESP_ERR_NOT_ENOUGH_REPLICAS; 1000];
    mock.request_errors(RDKafkaApiKey::Produce, &refusals);
    let mut config = cluster.config("in");
    config.delivery.mode = DeliveryMode::ExactlyOnce;
    config.kafka.delivery_timeout = Duration::from_secs(2);
    let error = format!("{:#}", Running::start(&config).ended().unwrap_err());
    assert!(error.starts_with("the sink stage failed"), "{error}");
    assert!(error.contains("MessageTimedOut"), "{error}");
}

#[test]
fn a_record_that_the_broker_refuses_for_its_size_becomes_a_dead_letter() {
    let (_mock, cluster) = mock(1);
    let mut config = cluster.config("in");
    // librdkafka's own limit stands for the topic's: a vector has 2,560 bytes.
    config.kafka.librdkafka.0.insert("message.max.bytes".into(), "2000".into());
    let worker = Running::start(&config);
    cluster.send("in", &captions(5));
    let dead = cluster.await_records("in.dead", 5);
    for letter in dead {
        assert_eq!(letter.reason(), "record_refused");
    }
    assert_eq!(worker.metric("capvec_captions_rejected_total{reason=\"record_refused\"}"), 5.0);
}

/// Where the worker knows nothing of the topics' bounds.
#[test]
fn a_timestamp_that_no_topic_takes_is_left_out_of_the_dead_letter() {
    for mode in [DeliveryMode::AtLeastOnce, DeliveryMode::ExactlyOnce] {
        let (mock, cluster) = mock(1);
        let mut config = cluster.config("in");
        config.delivery.mode = mode;
        let of_then = Some(1_600_000_000_123);
        cluster.send("in", &[Outgoing { timestamp_ms: of_then, ..captions(1).remove(0) }]);
        // For the vector, and for its dead letter.
        let untimely = [RDKafkaRespErr::RD_KAFKA_RESP_ERR_INVALID_TIMESTAMP; 2];
        mock.request_errors(RDKafkaApiKey::Produce, &untimely);
        let worker = Running::start(&config);
        eventually("the letter is settled", || {
            (worker.metric("capvec_messages_settled_total{outcome=\"rejected\"}") == 1.0)
                .then_some(())
        });
        worker.stop();
        let [letter] = &cluster.records("in.dead")[..] else { panic!("{mode:?}") };
        assert_eq!(letter.reason(), "record_refused");
        assert!(letter.timestamp_ms > of_then.map(|then| then + 1), "{:?}", letter.timestamp_ms);
        assert_eq!(cluster.records("in.out"), []);
    }
}

#[test]
fn what_all_topics_take_is_asked_for_at_once() {
    let cluster = Cluster::shared();
    let timed = [("max.message.bytes", "12000"), ("message.timestamp.after.max.ms", "5000")];
    cluster.create_topic_with("limited.out", 1, &timed);
    let compacted = [
        ("max.message.bytes", "34000"),
        ("cleanup.policy", "delete,compact"),
        ("message.timestamp.type", "LogAppendTime"),
    ];
    cluster.create_topic_with("limited.dead", 1, &compacted);
    let config = cluster.config("limited");
    let all =
        try_topics(&config, &asking(&config, Asker::default()).unwrap(), &Shutdown::default())
            .unwrap();
    let [out, dead] = &all[..] else { panic!("{all:?}") };
    assert_eq!((&*out.topic, out.bytes_max, out.needs_key), ("limited.out", 12_000, false));
    assert_eq!((&*dead.topic, dead.bytes_max, dead.needs_key), ("limited.dead", 34_000, true));
    let ahead = |takes: &Takes| takes.timestamps.check(3_600_000, 0).is_ok();
    assert!(!ahead(out) && ahead(dead), "{all:?}");
    assert_eq!(cluster.count("limited.out"), 0, "a probe isn't kept");
}

/// The mock cluster, which the demo and the benchmarks embed, never answers for limits.
#[test]
fn the_embedded_broker_is_not_asked_for_limits() {
    let (_mock, cluster) = mock(1);
    let config = cluster.config("in");
    let client = asking(&config, Asker::default()).unwrap();
    let started = Instant::now();
    let limits = try_topics(&config, &client, &Shutdown::default()).unwrap();
    assert!(limits.is_empty(), "{limits:?}");
    // One question that isn't answered would take this long.
    assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
}

#[test]
fn a_missing_topic_is_named_at_the_start() {
    let cluster = Cluster::shared();
    cluster.create_topics("there", 1);
    let mut config = cluster.config("in");
    config.reject.topic = String::new();
    for (input, output, option) in
        [("there", "missing", "output.topic"), ("missing", "there.out", "input.topic")]
    {
        config.input.topic = input.into();
        config.output.topic = output.into();
        let error = why_not(pipeline::start(&config, &Shutdown::default()));
        assert!(error.contains("\"missing\"") && error.contains(option), "{error}");
    }
}

#[test]
fn brokers_that_do_not_answer_are_given_up_in_time() {
    let (_mock, cluster) = mock(1);
    let mut config = cluster.config("in");
    config.kafka.brokers = free_address();
    config.kafka.startup_timeout = Duration::from_secs(1);
    let started = Instant::now();
    let error = why_not(pipeline::start(&config, &Shutdown::default()));
    assert!(error.contains("no answer") && error.contains(&config.kafka.brokers), "{error}");
    assert!(started.elapsed() < Duration::from_secs(20));
}

#[test]
fn it_is_ready_once_assigned_and_not_while_stopping() {
    let (_mock, cluster) = mock(1);
    let worker = Running::start(&cluster.config("in"));
    let admin = worker.admin().to_string();
    eventually("it is ready", || http_get(&admin, "/readyz").filter(|(status, _)| *status == 200));
    assert_eq!(http_get(&admin, "/livez").unwrap(), (200, "ok\n".into()));
    let (_, metrics) = http_get(&admin, "/metrics").unwrap();
    assert!(metrics.contains("capvec_build_info{version="), "{metrics}");
    worker.stop();
    assert_eq!(http_get(&admin, "/readyz").unwrap(), (503, "stopping\n".into()));
}

#[test]
fn a_worker_whose_stage_has_failed_publishes_no_more() {
    const BEFORE: usize = 20;
    const CAPTIONS: usize = 1000;
    let (_mock, cluster) = mock(1);
    let mut config = cluster.config("in");
    config.batch.captions_max = NonZeroUsize::MIN;
    let (worker, gate) = stuck::start(&config);
    let out = cluster.observe("in.out");
    let all = captions(CAPTIONS);
    cluster.send("in", &all[..BEFORE]);
    eventually("some are published", || (out.records() == BEFORE).then_some(()));
    gate.close();
    cluster.send("in", &all[BEFORE..]);
    eventually("the others wait for the network, and one is in it", || {
        let waiting = worker.metric("capvec_batch_pending_captions") as usize;
        (waiting + 1 == CAPTIONS - BEFORE).then_some(())
    });
    // As a stage that fails does. Another worker gets the partitions, and is to publish the rest.
    assert!(worker.abort(|| gate.open()).is_err());
    // The sink may take one more before it looks.
    let published = out.records();
    assert!(published <= BEFORE + 1, "{published} were published");
}

/// A reader of committed records is handed nothing of it, and nothing of what comes after.
#[test]
fn captions_that_a_transaction_holds_up_are_lag() {
    let cluster = Cluster::shared();
    cluster.create_topics("left-open", 1);
    let worker = Running::start(&cluster.config("left-open"));
    // Before the first there is no age to tell.
    cluster.send("left-open", &captions(1));
    cluster.await_records("left-open.out", 1);
    let producer: BaseProducer =
        cluster.client().set("transactional.id", "left-open").create().unwrap();
    producer.init_transactions(PATIENCE).unwrap();
    producer.begin_transaction().unwrap();
    let caption = br#"{"caption": "held up"}"#;
    producer.send(BaseRecord::<(), _>::to("left-open").payload(&caption[..])).unwrap();
    producer.flush(PATIENCE).unwrap();
    cluster.send("left-open", &captions(20));
    eventually("all of them are lag", || {
        (worker.metric("capvec_lag_messages") == 21.0).then_some(())
    });
    eventually("they grow old", || (worker.metric("capvec_lag_seconds") > 3.0).then_some(()));
    producer.commit_transaction(PATIENCE).unwrap();
    cluster.await_records("left-open.out", 22);
    eventually("there is no lag", || (worker.metric("capvec_lag_messages") == 0.0).then_some(()));
    worker.stop();
}

/// A consumer hears nothing of a partition that is paused: the lag would stay at what had come
/// before, and shrink by what is settled.
#[test]
fn the_lag_grows_with_the_topic_while_fetching_pauses() {
    let (_mock, cluster) = mock(1);
    let mut config = cluster.config("in");
    config.delivery.in_flight_captions_max = 8.try_into().unwrap();
    let (worker, gate) = stuck::start(&config);
    gate.close();
    cluster.send("in", &captions(50));
    let lag = |number: f64| {
        eventually("all that is in the topic is lag", || {
            (worker.metric("capvec_lag_messages") == number).then_some(())
        });
    };
    lag(50.0);
    eventually("the partitions have been paused for long", || {
        (worker.metric("capvec_oldest_unsettled_seconds") > 2.0).then_some(())
    });
    assert_eq!(worker.metric("capvec_source_paused"), 1.0);
    cluster.send("in", &captions(100));
    lag(150.0);
    let paused = worker.metric("capvec_source_paused_seconds_total");
    assert!(paused > 1.0, "a pause is counted while it lasts: {paused}");
    let stalled = worker.metric("capvec_stalled_seconds");
    assert!(stalled > 1.0, "nothing comes of the first caption: {stalled}");
    gate.open();
    lag(0.0);
    assert_eq!(worker.metric("capvec_stalled_seconds"), 0.0);
    worker.stop();
}

#[test]
fn a_stop_leaves_what_is_not_embedded_to_the_next_worker() {
    // A real broker: in the mock's group, the next member waits for the session's timeout.
    let cluster = Cluster::shared();
    cluster.create_topics("leaves", 2);
    let config = cluster.config("leaves");
    let mut patient = config.clone();
    // An embedder that would take an hour: captions wait for a batch that never fills.
    patient.batch.wait_max = Duration::from_secs(3600);
    patient.batch.tokens_max = 100_000;
    let worker = Running::start(&patient);
    let mut messages = captions(50);
    messages.push(Outgoing { value: None, ..messages[0].clone() });
    messages.push(Outgoing { value: Some(b"bad".to_vec()), ..messages[1].clone() });
    cluster.send("leaves", &messages);
    eventually("all of them wait", || {
        (worker.metric("capvec_batch_pending_captions") == 50.0).then_some(())
    });
    let metrics = worker.metrics();
    let stopped = Instant::now();
    worker.stop();
    assert!(stopped.elapsed() < patient.delivery.drain_timeout / 2, "{:?}", stopped.elapsed());
    assert!(metrics.render().contains("\ncapvec_captions_abandoned_total 50\n"));
    assert!(metrics.render().contains("\ncapvec_drains_missed_total 0\n"));
    assert_eq!(cluster.count("leaves.out"), 0, "nothing overtakes a caption");
    assert_eq!(cluster.count("leaves.dead"), 0, "nor does a dead letter");

    let worker = Running::start(&config);
    assert_eq!(cluster.await_records("leaves.out", 51).len(), 51);
    worker.stop();
    assert_eq!(cluster.count("leaves.out"), 51, "none is lost, none comes twice");
    assert_eq!(cluster.count("leaves.dead"), 1);
}

/// A header's name on the wire is bytes, and other clients write other bytes than UTF-8.
/// rdkafka panics where it is asked for such a name.
#[test]
fn a_header_whose_name_is_not_utf8_passes_through() {
    let (_mock, cluster) = mock(1);
    // SAFETY: rdkafka only copies the name's bytes into a C string.
    let name = unsafe { std::str::from_utf8_unchecked(b"caf\xe9".to_vec().leak()) };
    let good = Outgoing { headers: vec![(name, Some(b"x"))], ..captions(1).remove(0) };
    let bad = Outgoing { value: Some(b"bad".to_vec()), ..good.clone() };
    cluster.send("in", &[good, bad]);
    let worker = Running::start(&cluster.config("in"));
    eventually("both come out", || {
        (cluster.count("in.out") == 1 && cluster.count("in.dead") == 1).then_some(())
    });
    worker.stop();
}

/// librdkafka's call that sends a transaction's offsets waits for a coordinator that has gone for
/// ever.
#[test]
fn a_coordinator_that_goes_away_for_good_does_not_stop_transactions() {
    let (mock, cluster) = mock(3);
    for topic in ["in", "in.out", "in.dead"] {
        for partition in 0..2 {
            mock.partition_leader(topic, partition, Some(1)).unwrap();
        }
    }
    let group = || MockCoordinator::Group("in.group".into());
    mock.coordinator(group(), 2).unwrap();
    mock.coordinator(MockCoordinator::Transaction("worker".into()), 1).unwrap();
    let mut config = cluster.config("in");
    config.delivery.mode = DeliveryMode::ExactlyOnce;
    config.delivery.transactional_id = "worker".into();
    let worker = Running::start(&config);
    cluster.send("in", &captions(10));
    let committed = "capvec_transactions_total{result=\"committed\"}";
    eventually("the coordinator is known", || (worker.metric(committed) >= 1.0).then_some(()));

    mock.broker_down(2).unwrap();
    mock.coordinator(group(), 3).unwrap();
    let before = worker.metric(committed);
    cluster.send("in", &captions(10));
    eventually("transactions go on", || (worker.metric(committed) > before).then_some(()));
    assert!(worker.metric("capvec_producers_remade_total") >= 1.0, "a call was left behind");
}

/// Of brokers that are slow to commit: a transaction for each batch that waits would make the drain
/// long.
#[test]
fn a_drain_commits_what_waits_together() {
    let (mock, cluster) = mock(1);
    let mut config = cluster.config("in");
    config.delivery.mode = DeliveryMode::ExactlyOnce;
    config.delivery.transactional_id = "drains".into();
    config.delivery.commit_interval = Duration::from_millis(100);
    config.batch.captions_max = 4.try_into().unwrap();
    let worker = Running::start(&config);
    cluster.send("in", &captions(4000));
    mock.broker_round_trip_time(1, Duration::from_millis(100)).unwrap();
    let limit = worker.metric("capvec_queue_limit{queue=\"finished\"}");
    eventually("as many batches wait for a commit as may", || {
        (worker.metric("capvec_queue_length{queue=\"finished\"}") >= limit).then_some(())
    });
    let committed = "capvec_transactions_total{result=\"committed\"}";
    let before = worker.metric(committed);
    let metrics = worker.metrics();
    worker.stop();
    let while_draining = value_of(&metrics, committed) - before;
    assert!((1.0..16.0).contains(&while_draining), "{while_draining} transactions");
    assert!(metrics.render().contains("\ncapvec_drains_missed_total 0\n"));
}

#[test]
fn a_package_that_is_replaced_while_it_is_loaded_ends_the_start() {
    let (_mock, cluster) = mock(1);
    let folder = tempfile::tempdir().unwrap();
    let package = folder.path().join("model");
    synthesize(&Synthesis::tiny(1, &package), &mut |_| ()).unwrap();
    let mut config = cluster.config("in");
    config.model.package = package.clone();
    let started = pipeline::start_with(&config, &Shutdown::default(), |config, opened| {
        let another = Synthesis { existing: Existing::Replace, ..Synthesis::tiny(2, &package) };
        synthesize(&another, &mut |_| ())?;
        Ok(load(config, opened)?)
    });
    let error = why_not(started);
    assert!(error.contains("was replaced while it was loaded"), "{error}");
}

#[test]
fn a_stop_while_the_model_is_loaded_leaves_the_group_alone() {
    for mode in [DeliveryMode::AtLeastOnce, DeliveryMode::ExactlyOnce] {
        let (_mock, cluster) = mock(1);
        let mut config = cluster.config("in");
        config.delivery.mode = mode;
        let shutdown = Shutdown::default();
        let started = pipeline::start_with(&config, &shutdown, |config, package| {
            shutdown.drain();
            Ok(load(config, package)?)
        });
        let error = why_not(started);
        assert!(error.contains("told to stop"), "{mode:?}: {error}");
    }
}

#[test]
fn a_stop_ends_the_wait_for_brokers() {
    let (_mock, cluster) = mock(1);
    let mut config = cluster.config("in");
    config.kafka.brokers = free_address();
    let shutdown = Shutdown::default();
    shutdown.drain();
    let started = Instant::now();
    let error = why_not(pipeline::start(&config, &shutdown));
    assert!(error.contains("stopped while waiting"), "{error}");
    assert!(started.elapsed() < config.kafka.startup_timeout / 3, "{:?}", started.elapsed());
}

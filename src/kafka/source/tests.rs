//! The source on a broker inside the process.

use std::thread::JoinHandle;

use crossbeam_channel::Sender;
use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::BaseConsumer;
use rdkafka::consumer::CommitMode;
use rdkafka::error::RDKafkaErrorCode;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use rdkafka::topic_partition_list::Offset as Position;
use rdkafka::types::{RDKafkaApiKey, RDKafkaRespErr};

use super::*;
use crate::cli::embedded::EmbeddedBroker;
use crate::config::load;
use crate::kafka::consumer::Event;
use crate::metrics::Metrics;
use crate::queue::{self, QueueReceiver};

const TOPIC: &str = "captions";
const PATIENCE: Duration = Duration::from_secs(30);

/// A source that runs, or doesn't yet, with what it is connected to.
struct Rig<S = JoinHandle<Result<(), SourceError>>> {
    source: S,
    consumer: Arc<SourceConsumer>,
    received: QueueReceiver<Vec<Tracked<()>>>,
    settlements: Sender<Settlement>,
    shutdown: Shutdown,
    health: Arc<Health>,
    /// Dropped last: no client outlives its broker.
    broker: EmbeddedBroker,
}

impl Rig<Source> {
    /// Makes the source of a topic with one partition of ten messages, after something is done
    /// with the broker.
    fn new(options: &[(&str, &str)], prepare: impl FnOnce(&EmbeddedBroker)) -> Rig<Source> {
        let broker = EmbeddedBroker::start(&[(TOPIC, 1)]).unwrap();
        send(&broker, 0..10);
        prepare(&broker);

        let bootstrap = broker.bootstrap();
        let mut all = vec![
            ("kafka.brokers", bootstrap.as_str()),
            ("kafka.group", "group"),
            ("input.topic", TOPIC),
            ("output.topic", "vectors"),
            ("model.package", "/nowhere"),
        ];
        all.extend(options);
        let all: Vec<_> = all.into_iter().map(|(k, v)| (k.to_owned(), v.to_owned())).collect();
        let config = load(None, &all).unwrap();
        let metrics = Metrics::new();
        let renewed = Renewed::new(&config.kafka);
        let connection = Connection::new(&config, 1, renewed, &metrics.source).unwrap();
        let consumer = Arc::clone(&connection.consumer);
        let (out, received) = queue::bounded("received", 100, &metrics.queues);
        let (settlements, settled) = crossbeam_channel::bounded(100);
        let shutdown = Shutdown::default();
        let health = Health::new(PATIENCE);
        let source = Source::new(
            &config,
            connection,
            out,
            settled,
            shutdown.clone(),
            Arc::clone(&health),
            metrics.source.clone(),
        )
        .unwrap();
        Rig { source, consumer, received, settlements, shutdown, health, broker }
    }

    fn run(self) -> Rig {
        let Rig { source, consumer, received, settlements, shutdown, health, broker } = self;
        let source = std::thread::spawn(move || source.run());
        Rig { source, consumer, received, settlements, shutdown, health, broker }
    }
}

impl Rig {
    fn start(options: &[(&str, &str)]) -> Rig {
        Rig::new(options, |_| ()).run()
    }

    /// Returns the messages from the next one to that of an offset.
    fn receive_until(&self, last: i64) -> Vec<Tracked<()>> {
        let mut messages: Vec<Tracked<()>> = Vec::new();
        while messages.last().is_none_or(|message| message.origin.offset.0 < last) {
            messages.extend(self.received.inner().recv_timeout(PATIENCE).expect("messages"));
        }
        messages
    }

    /// Settles the messages, and ends the source.
    fn finish(self, messages: Vec<Tracked<()>>) {
        messages.iter().for_each(|message| self.settle(message));
        drop(messages);
        self.shutdown.drain();
        self.source.join().unwrap().unwrap();
    }

    fn await_end(&self) {
        let deadline = Instant::now() + PATIENCE;
        while !self.source.is_finished() {
            assert!(Instant::now() < deadline, "the source goes on");
            std::thread::yield_now();
        }
    }

    fn settle(&self, message: &Tracked<()>) {
        let (assignment, offset) = (Arc::clone(&message.origin.assignment), message.origin.offset);
        self.settlements
            .send(Settlement { assignment, offset, outcome: Outcome::Embedded })
            .unwrap();
    }
}

/// Sends messages of these numbers.
fn send(broker: &EmbeddedBroker, numbers: std::ops::Range<u32>) {
    let producer: BaseProducer = broker.client().create().unwrap();
    for number in numbers {
        let text = number.to_string();
        producer.send(BaseRecord::to(TOPIC).key(&text).payload(&text)).unwrap();
    }
    producer.flush(PATIENCE).unwrap();
}

fn offsets(messages: &[Tracked<()>]) -> Vec<i64> {
    messages.iter().map(|message| message.origin.offset.0).collect()
}

#[test]
fn where_offsets_go_back_what_is_unsettled_comes_again() {
    let rig = Rig::start(&[]);
    let first = rig.receive_until(9);
    assert_eq!(offsets(&first), (0..10).collect::<Vec<_>>());
    first[..3].iter().for_each(|message| rig.settle(message));
    // As after a log whose end was cut off: the consumer goes on behind what is still unsettled.
    rig.consumer.seek(TOPIC, 0, Position::Offset(7), Duration::ZERO).unwrap();
    let again = rig.receive_until(9);
    assert_eq!(offsets(&again), (3..10).collect::<Vec<_>>());
    assert!(first.iter().all(|message| message.origin.assignment.is_revoked()));
    assert_ne!(again[0].origin.assignment.number, first[0].origin.assignment.number);
    drop(first);
    rig.finish(again);
}

/// A transaction may hold what would be fetched again.
#[test]
fn where_offsets_go_back_a_worker_of_exactly_once_delivery_ends() {
    let options = [("delivery.mode", "exactly-once"), ("delivery.transactional_id", "worker")];
    let rig = Rig::start(&options);
    let first = rig.receive_until(9);
    rig.consumer.seek(TOPIC, 0, Position::Offset(7), Duration::ZERO).unwrap();
    rig.await_end();
    let error = rig.source.join().unwrap().unwrap_err();
    let SourceError::WentBack { partition: 0, source } = error else { panic!("{error}") };
    let went_back = WentBack { last: Offset(9), found: Offset(7), skipped: Some(Offset(0)) };
    assert_eq!(source, went_back);
    assert_eq!(rig.shutdown.wanted(), Wanted::Abort, "the open transaction is not to be committed");
    drop(first);
}

/// It would be for a topic that has its name by then.
#[test]
fn nothing_is_committed_for_a_topic_that_is_no_more() {
    let options = [
        ("delivery.commit_interval", "1h"),
        ("kafka.librdkafka.topic.metadata.refresh.interval.ms", "300"),
        ("kafka.librdkafka.topic.metadata.propagation.max.ms", "0"),
    ];
    for is_made_anew in [true, false] {
        let rig = Rig::start(&options);
        let messages = rig.receive_until(9);
        messages.iter().for_each(|message| rig.settle(message));
        drop(messages);
        let unknown = RDKafkaRespErr::RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART;
        if is_made_anew {
            for id in ["YaprMwCWTBOr1FzOY+mTUw", "Yc7avGnyTlyn95c5wJ/WVQ"] {
                let line = format!("[thrd:main]: Topic {TOPIC} changed id from {id} to {id}");
                rig.consumer.context().log(RDKafkaLogLevel::Debug, "METADATA", &line);
            }
        } else {
            rig.broker.cluster().topic_error(TOPIC, unknown).unwrap();
        }
        rig.await_end();
        let error = rig.source.join().unwrap().unwrap_err();
        assert_eq!(matches!(error, SourceError::MadeAnew { .. }), is_made_anew, "{error}");
        let mut partition = TopicPartitionList::new();
        partition.add_partition(TOPIC, 0);
        let consumer: BaseConsumer = rig.broker.client().set("group.id", "group").create().unwrap();
        let committed = consumer.committed_offsets(partition, PATIENCE).unwrap();
        assert_eq!(committed.elements()[0].offset(), Position::Offset(0), "where it began");
    }
}

/// librdkafka may hand it out twice around a rebalance.
#[test]
fn the_last_message_again_is_no_log_that_was_cut() {
    let rig = Rig::start(&[]);
    let mut messages = rig.receive_until(9);
    rig.consumer.seek(TOPIC, 0, Position::Offset(9), Duration::ZERO).unwrap();
    send(&rig.broker, 10..11);
    let next = rig.receive_until(10);
    assert_eq!(offsets(&next), [10], "and nothing twice");
    assert!(!messages[0].origin.assignment.is_revoked());
    messages.extend(next);
    rig.finish(messages);
}

/// librdkafka joins anew without an answer where the topic's partitions change in the middle of a
/// drain.
#[test]
fn a_drain_that_the_group_does_not_wait_for_ends() {
    for strategy in ["range", "cooperative-sticky"] {
        let rig = Rig::start(&[("kafka.librdkafka.partition.assignment.strategy", strategy)]);
        let first = rig.receive_until(9);
        first[..3].iter().for_each(|message| rig.settle(message));
        let partitions = rig.consumer.assignment().unwrap();
        let context = rig.consumer.context();
        let (lost, generation) = (false, None);
        context.note(Event::Revoked { partitions: partitions.clone(), lost, generation });
        let deadline = Instant::now() + PATIENCE;
        while !first[3].origin.assignment.is_leaving() {
            assert!(Instant::now() < deadline, "{strategy}: the partition is on its way out");
            std::thread::yield_now();
        }
        context.note(Event::Assigned(partitions));
        if strategy == "cooperative-sticky" {
            let error = rig.source.join().unwrap().unwrap_err();
            assert!(matches!(error, SourceError::Overtaken), "{error}");
            continue;
        }
        let again = rig.receive_until(9);
        assert_eq!(offsets(&again).last(), Some(&9));
        assert!(offsets(&again)[0] <= 3, "{:?}", offsets(&again));
        assert!(first.iter().all(|message| message.origin.assignment.is_revoked()));
        drop(first);
        rig.finish(again);
    }
}

/// As where librdkafka takes itself for rebalancing for good: it tells of no rebalance.
#[test]
fn a_member_that_the_group_does_not_know_any_more_ends() {
    let mut rig = Rig::new(&[], |_| ());
    rig.source.refused = Refused::new(Duration::ZERO);
    let rig = rig.run();
    let messages = rig.receive_until(9);
    let refusals = [RDKafkaRespErr::RD_KAFKA_RESP_ERR_ILLEGAL_GENERATION];
    rig.broker.cluster().request_errors(RDKafkaApiKey::OffsetCommit, &refusals);
    messages.iter().for_each(|message| rig.settle(message));
    rig.await_end();
    let error = rig.source.join().unwrap().unwrap_err();
    let SourceError::Refused(error) = error else { panic!("{error}") };
    assert_eq!(error.rdkafka_error_code(), Some(RDKafkaErrorCode::IllegalGeneration));
}

/// librdkafka itself would never ask again, and the partition would stand still
/// (confluentinc/librdkafka#5586).
#[test]
fn the_groups_offsets_are_asked_for_until_they_are_told() {
    let moves = [
        RDKafkaRespErr::RD_KAFKA_RESP_ERR_NOT_COORDINATOR,
        RDKafkaRespErr::RD_KAFKA_RESP_ERR_COORDINATOR_NOT_AVAILABLE,
        RDKafkaRespErr::RD_KAFKA_RESP_ERR_UNSTABLE_OFFSET_COMMIT,
    ];
    let rig = Rig::new(&[], |broker| {
        broker.cluster().request_errors(RDKafkaApiKey::OffsetFetch, &moves);
        // The group is in the middle of the topic.
        let consumer: BaseConsumer = broker.client().set("group.id", "group").create().unwrap();
        let mut offsets = TopicPartitionList::new();
        offsets.add_partition_offset(TOPIC, 0, Position::Offset(4)).unwrap();
        consumer.commit(&offsets, CommitMode::Sync).unwrap();
    })
    .run();
    let messages = rig.receive_until(9);
    assert_eq!(offsets(&messages), (4..10).collect::<Vec<_>>());
    rig.finish(messages);
}

/// Returns why a source ends of which the broker refuses a request.
fn end_by(request: RDKafkaApiKey, refused: RDKafkaRespErr) -> SourceError {
    let rig = Rig::new(&[], |broker| broker.cluster().request_errors(request, &[refused])).run();
    rig.await_end();
    rig.source.join().unwrap().unwrap_err()
}

#[test]
fn offsets_that_may_not_be_read_end_the_worker() {
    let refused = RDKafkaRespErr::RD_KAFKA_RESP_ERR_GROUP_AUTHORIZATION_FAILED;
    let error = end_by(RDKafkaApiKey::OffsetFetch, refused);
    let SourceError::Consumer(error) = error else { panic!("{error}") };
    assert_eq!(error.rdkafka_error_code(), Some(RDKafkaErrorCode::GroupAuthorizationFailed));
}

#[test]
fn a_topic_that_may_not_be_read_is_named() {
    let refused = RDKafkaRespErr::RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED;
    for request in [RDKafkaApiKey::Fetch, RDKafkaApiKey::OffsetCommit] {
        let error = end_by(request, refused);
        assert!(error.to_string().starts_with(&format!("{TOPIC}, the input.topic, ")), "{error}");
    }
}

/// Runs a source whose group begins at the end. It has its offset before the first message comes.
fn begin_at_the_end(prepare: impl FnOnce(&EmbeddedBroker), meanwhile: impl FnOnce(&Rig)) {
    let rig = Rig::new(&[("kafka.librdkafka.auto.offset.reset", "latest")], prepare).run();
    meanwhile(&rig);
    let consumer: BaseConsumer = rig.broker.client().set("group.id", "group").create().unwrap();
    let deadline = Instant::now() + PATIENCE;
    loop {
        let mut partition = TopicPartitionList::new();
        partition.add_partition(TOPIC, 0);
        let committed = consumer.committed_offsets(partition, PATIENCE).unwrap();
        if committed.elements()[0].offset() == Position::Offset(10) {
            break;
        }
        assert!(Instant::now() < deadline, "{committed:?}");
    }
    send(&rig.broker, 10..12);
    let messages = rig.receive_until(11);
    assert_eq!(offsets(&messages), [10, 11]);
    rig.finish(messages);
}

#[test]
fn a_beginning_that_cannot_be_committed_is_asked_for_again() {
    let refusals = [
        RDKafkaRespErr::RD_KAFKA_RESP_ERR_NOT_COORDINATOR,
        RDKafkaRespErr::RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART,
        RDKafkaRespErr::RD_KAFKA_RESP_ERR_REBALANCE_IN_PROGRESS,
    ];
    let refuse = |broker: &EmbeddedBroker| {
        broker.cluster().request_errors(RDKafkaApiKey::OffsetCommit, &refusals);
    };
    begin_at_the_end(refuse, |_| ());
}

/// Messages that came and weren't settled would be passed over by the partition's next owner, for
/// which the end would be another.
#[test]
fn an_end_that_is_not_told_is_asked_for_again() {
    let refuse = |broker: &EmbeddedBroker| {
        let refusals = [RDKafkaRespErr::RD_KAFKA_RESP_ERR_UNKNOWN; 2];
        broker.cluster().request_errors(RDKafkaApiKey::ListOffsets, &refusals);
    };
    begin_at_the_end(refuse, |_| ());
}

#[test]
fn a_partition_that_has_no_leader_when_its_group_begins_is_taken_once_it_has_one() {
    let lead = |broker: &EmbeddedBroker, leader| {
        broker.cluster().partition_leader(TOPIC, 0, leader).unwrap();
    };
    begin_at_the_end(
        |broker| lead(broker, None),
        |rig| {
            let deadline = Instant::now() + PATIENCE;
            while !rig.health.is_assigned() {
                assert!(Instant::now() < deadline, "no partition");
                std::thread::yield_now();
            }
            let until = Instant::now() + Duration::from_millis(500);
            while Instant::now() < until {
                assert_eq!(rig.consumer.assignment().unwrap().count(), 0, "its end isn't told");
                std::thread::yield_now();
            }
            lead(&rig.broker, Some(1));
        },
    );
}

/// It may be another's, which has gone on from a beginning of its own.
#[test]
fn the_beginning_of_a_partition_that_is_asked_back_is_not_committed() {
    const ROUND_TRIP: Duration = Duration::from_millis(300);
    let rig = Rig::new(&[], |broker| {
        // A question takes several.
        broker.cluster().broker_round_trip_time(1, ROUND_TRIP).unwrap();
    })
    .run();
    let deadline = Instant::now() + PATIENCE;
    while !rig.health.is_assigned() {
        assert!(Instant::now() < deadline, "no partition");
        std::thread::yield_now();
    }
    let mut partitions = TopicPartitionList::new();
    partitions.add_partition(TOPIC, 0);
    let event = Event::Revoked { partitions: partitions.clone(), lost: false, generation: None };
    rig.consumer.context().note(event);
    rig.shutdown.drain();
    rig.source.join().unwrap().unwrap();
    let consumer: BaseConsumer = rig.broker.client().set("group.id", "group").create().unwrap();
    let committed = consumer.committed_offsets(partitions, PATIENCE).unwrap();
    assert_eq!(committed.elements()[0].offset(), Position::Invalid, "{committed:?}");
}

#[test]
fn a_group_without_offsets_begins_where_it_is_told_to() {
    let rig = Rig::start(&[("kafka.librdkafka.auto.offset.reset", "earliest")]);
    let messages = rig.receive_until(9);
    assert_eq!(offsets(&messages), (0..10).collect::<Vec<_>>());
    rig.finish(messages);
}

#[test]
fn a_stop_whose_last_commit_is_not_answered_is_no_success() {
    let rig = Rig::start(&[]);
    let messages = rig.receive_until(9);
    rig.broker.cluster().broker_down(1).unwrap();
    messages.iter().for_each(|message| rig.settle(message));
    drop(messages);
    rig.shutdown.drain();
    let error = rig.source.join().unwrap().unwrap_err();
    assert!(matches!(error, SourceError::CommitMissed), "{error}");
}

/// The last commit takes seconds where no broker answers.
#[test]
fn a_worker_that_fails_is_not_ready_while_it_commits() {
    let rig = Rig::start(&[]);
    let messages = rig.receive_until(9);
    rig.broker.cluster().broker_down(1).unwrap();
    messages.iter().for_each(|message| rig.settle(message));
    rig.shutdown.abort();
    let deadline = Instant::now() + PATIENCE;
    while rig.health.not_ready() != Some("stopping") {
        assert!(!rig.source.is_finished(), "it was ready to its end");
        assert!(Instant::now() < deadline, "the source goes on");
        std::thread::yield_now();
    }
    assert!(rig.source.join().unwrap().is_err());
}

/// Nothing of them is published or committed any more.
#[test]
fn a_worker_that_fails_has_no_partitions_when_it_leaves() {
    let rig = Rig::start(&[]);
    let messages = rig.receive_until(9);
    rig.shutdown.abort();
    assert!(rig.source.join().unwrap().is_err());
    assert!(messages.iter().all(|message| message.origin.assignment.is_revoked()));
}

#[test]
fn a_stop_does_not_wait_for_partitions_that_are_lost() {
    let rig = Rig::start(&[]);
    let messages = rig.receive_until(9);
    let partitions = rig.consumer.assignment().unwrap();
    rig.consumer.context().note(Event::Revoked { partitions, lost: true, generation: None });
    rig.shutdown.drain();
    let started = Instant::now();
    rig.source.join().unwrap().unwrap();
    assert!(started.elapsed() < PATIENCE / 3, "{:?}", started.elapsed());
    assert!(messages.iter().all(|message| message.origin.assignment.is_revoked()));
}

/// librdkafka gives them in a row with messages, and rdkafka returns nothing for each of them.
#[test]
fn what_is_no_message_does_not_end_a_look_at_librdkafka() {
    // It logs its configuration, line by line, before it is there.
    let mut rig = Rig::new(&[("kafka.librdkafka.debug", "conf")], |_| ());
    assert!(rig.source.poll().unwrap(), "there was something");
    let served = rig.consumer.context().served();
    assert!(served > 5, "{served} lines of many");
    rig.source.close();
}

#[test]
fn a_position_that_is_nowhere_ends_the_worker_where_it_is_an_error() {
    let rig = Rig::start(&[("kafka.librdkafka.auto.offset.reset", "error")]);
    let error = rig.source.join().unwrap().unwrap_err();
    let SourceError::Consumer(error) = error else { panic!("{error}") };
    assert_eq!(error.rdkafka_error_code(), Some(RDKafkaErrorCode::AutoOffsetReset), "{error}");
}

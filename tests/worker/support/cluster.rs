//! A cluster as a test sees it: its topics, what is sent to them, and what lies in them.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use capvec::config::{Config, EmbedderKind};
use rdkafka::ClientConfig;
use rdkafka::admin::{
    AdminClient, AdminOptions, NewPartitions, NewTopic, TopicReplication, TopicResult,
};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, KafkaResult};
use rdkafka::message::{BorrowedMessage, Header, Headers, Message, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

use super::{PATIENCE, eventually, kafka, tiny_package};

/// A record as it lies in a topic.
#[derive(Clone, Debug, PartialEq)]
pub struct Record {
    pub partition: i32,
    pub offset: i64,
    pub key: Option<Vec<u8>>,
    pub value: Option<Vec<u8>>,
    pub headers: Vec<(String, Option<Vec<u8>>)>,
    pub timestamp_ms: Option<i64>,
}

impl Record {
    fn of(message: &BorrowedMessage<'_>) -> Record {
        let headers = message.headers().map_or(Vec::new(), |headers| {
            headers.iter().map(|h| (h.key.to_owned(), h.value.map(<[u8]>::to_vec))).collect()
        });
        Record {
            partition: message.partition(),
            offset: message.offset(),
            key: message.key().map(<[u8]>::to_vec),
            value: message.payload().map(<[u8]>::to_vec),
            headers,
            timestamp_ms: message.timestamp().to_millis(),
        }
    }

    /// Returns the text of a header that is there once.
    #[track_caller]
    pub fn header(&self, key: &str) -> &str {
        let mut found = self.headers.iter().filter(|(k, _)| k == key);
        let (_, value) = found.next().unwrap_or_else(|| panic!("no header {key}: {self:?}"));
        assert!(found.next().is_none(), "two headers {key}");
        std::str::from_utf8(value.as_deref().expect("the header has a value")).unwrap()
    }

    /// Returns the reason that a dead letter gives.
    #[track_caller]
    pub fn reason(&self) -> &str {
        self.header("__connect.errors.exception.class.name")
    }

    /// Returns the vector of a record in the native format.
    #[track_caller]
    pub fn vector(&self) -> Vec<f32> {
        let value = self.value.as_deref().expect("a vector has a value");
        value.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
    }
}

/// A message to send.
#[derive(Clone, Debug, Default)]
pub struct Outgoing {
    pub key: Option<Vec<u8>>,
    pub value: Option<Vec<u8>>,
    pub headers: Vec<(&'static str, Option<&'static [u8]>)>,
    pub timestamp_ms: Option<i64>,
    pub partition: Option<i32>,
}

impl Outgoing {
    pub fn caption(key: &str, caption: &str) -> Outgoing {
        Outgoing {
            key: Some(key.into()),
            value: Some(serde_json::json!({ "caption": caption }).to_string().into()),
            ..Outgoing::default()
        }
    }
}

/// Returns so many captions, each of a key of its own.
pub fn captions(number: usize) -> Vec<Outgoing> {
    (0..number).map(|i| Outgoing::caption(&format!("k{i}"), &format!("caption {i}"))).collect()
}

/// A cluster, seen by a test.
#[derive(Clone, Debug)]
pub struct Cluster {
    pub bootstrap: String,
}

impl Cluster {
    /// The real Kafka that all tests share.
    pub fn shared() -> Cluster {
        Cluster { bootstrap: kafka::shared().bootstrap().into() }
    }

    /// Returns the configuration of a worker in this process, from the topic to `.out` and `.dead`,
    /// with the hash embedder.
    pub fn config(&self, topic: &str) -> Config {
        let mut config = Config::default();
        config.kafka.brokers = self.bootstrap.clone();
        config.kafka.group = format!("{topic}.group");
        config.input.topic = topic.into();
        config.output.topic = format!("{topic}.out");
        config.reject.topic = format!("{topic}.dead");
        config.model.package = tiny_package().into();
        config.embed.embedder = EmbedderKind::Hash;
        config.admin.listen = ([127, 0, 0, 1], 0).into();
        config
    }

    /// Returns the properties of a client of this cluster.
    pub fn client(&self) -> ClientConfig {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", &self.bootstrap);
        config
    }

    /// Returns a client that makes and deletes.
    pub fn admin(&self) -> AdminClient<DefaultClientContext> {
        self.client().create().unwrap()
    }

    /// Makes a topic and waits until it can be used.
    pub fn create_topic(&self, topic: &str, partitions: i32) {
        self.create_topic_with(topic, partitions, &[]);
    }

    /// Makes a topic with options of its own, and waits until it can be used.
    pub fn create_topic_with(&self, topic: &str, partitions: i32, options: &[(&str, &str)]) {
        let admin = self.admin();
        let new = NewTopic::new(topic, partitions, TopicReplication::Fixed(1));
        let new = options.iter().fold(new, |new, (key, value)| new.set(key, value));
        done(admin.create_topics([&new], &AdminOptions::new()));
        eventually("the topic has leaders", || {
            let metadata = admin.inner().fetch_metadata(Some(topic), PATIENCE).ok()?;
            let found = metadata.topics().first()?;
            let led = found.partitions().iter().filter(|p| p.leader() >= 0).count();
            (led == partitions as usize).then_some(())
        });
    }

    /// Gives a topic more partitions.
    pub fn add_partitions(&self, topic: &str, partitions: usize) {
        let more = NewPartitions::new(topic, partitions);
        done(self.admin().create_partitions([&more], &AdminOptions::new()));
    }

    /// Deletes a topic and waits until it is gone.
    pub fn delete_topic(&self, topic: &str) {
        done(self.admin().delete_topics(&[topic], &AdminOptions::new()));
        eventually("the topic is gone", || {
            (!self.topics(topic).contains(&topic.into())).then_some(())
        });
    }

    /// Makes the topics `name`, `name.out` and `name.dead`.
    pub fn create_topics(&self, name: &str, partitions: i32) {
        self.create_topic(name, partitions);
        self.create_topic(&format!("{name}.out"), partitions);
        self.create_topic(&format!("{name}.dead"), 1);
    }

    /// Sends messages and waits for their acknowledgements.
    pub fn send(&self, topic: &str, messages: &[Outgoing]) {
        let producer: BaseProducer = self
            .client()
            .set("partitioner", "murmur2_random")
            .set("enable.idempotence", "true")
            .set("message.max.bytes", "10000000")
            .create()
            .unwrap();
        for message in messages {
            let headers = message.headers.iter().fold(OwnedHeaders::new(), |all, (key, value)| {
                all.insert(Header { key, value: *value })
            });
            let mut record = BaseRecord::<[u8], [u8]> {
                topic,
                partition: message.partition,
                payload: message.value.as_deref(),
                key: message.key.as_deref(),
                timestamp: message.timestamp_ms,
                headers: Some(headers),
                delivery_opaque: (),
            };
            while let Err((_, back)) = producer.send(record) {
                producer.poll(Duration::from_millis(10));
                record = back;
            }
        }
        producer.flush(PATIENCE).unwrap();
    }

    /// Returns what looks at a topic, as a reader of committed records.
    pub fn observe(&self, topic: &str) -> Observer {
        Observer::new(&self.client(), topic)
    }

    /// As [`Cluster::observe`], with what lies in open transactions.
    pub fn observe_uncommitted(&self, topic: &str) -> Observer {
        Observer::new(self.client().set("isolation.level", "read_uncommitted"), topic)
    }

    /// Returns what looks at a topic, and at the offsets that a group has committed of it.
    pub fn observe_group(&self, group: &str, topic: &str) -> Observer {
        Observer::new(self.client().set("group.id", group), topic)
    }

    /// Returns the ends of a topic's partitions.
    pub fn ends(&self, topic: &str) -> BTreeMap<i32, i64> {
        self.observe(topic).ends()
    }

    /// Returns the number of records in a topic, by its partitions' ends.
    pub fn count(&self, topic: &str) -> usize {
        self.observe(topic).records()
    }

    /// Returns the topics whose names begin so.
    pub fn topics(&self, prefix: &str) -> Vec<String> {
        let consumer: BaseConsumer = self.client().create().unwrap();
        let metadata = consumer.fetch_metadata(None, PATIENCE).unwrap();
        let names = metadata.topics().iter().map(|topic| topic.name().to_owned());
        names.filter(|name| name.starts_with(prefix)).collect()
    }

    /// Returns what a reader of committed records sees in a topic, in the order of each partition.
    pub fn records(&self, topic: &str) -> Vec<Record> {
        let consumer: BaseConsumer = self
            .client()
            .set("group.id", "reader")
            .set("enable.auto.commit", "false")
            .set("isolation.level", "read_committed")
            .set("enable.partition.eof", "true")
            .create()
            .unwrap();
        let mut from = TopicPartitionList::new();
        for partition in self.ends(topic).into_keys() {
            from.add_partition_offset(topic, partition, Offset::Beginning).unwrap();
        }
        consumer.assign(&from).unwrap();
        let (mut ended, mut records) = (BTreeSet::new(), Vec::new());
        while ended.len() < from.count() {
            match eventually("the next record", || consumer.poll(PATIENCE)) {
                Ok(message) => records.push(Record::of(&message)),
                Err(KafkaError::PartitionEOF(partition)) => drop(ended.insert(partition)),
                Err(error) => panic!("{topic}: {error}"),
            }
        }
        records.sort_by_key(|r| (r.partition, r.offset));
        records
    }

    /// Ends the transactions of a worker that was killed, as its next start would.
    pub fn fence(&self, transactional_id: &str) {
        let producer: BaseProducer =
            self.client().set("transactional.id", transactional_id).create().unwrap();
        producer.init_transactions(PATIENCE).unwrap();
    }

    /// Waits until a topic has `number` records or more, and returns all.
    #[track_caller]
    pub fn await_records(&self, topic: &str, number: usize) -> Vec<Record> {
        let observer = self.observe(topic);
        eventually(&format!("{number} records in {topic}"), || {
            (observer.records() >= number).then_some(())
        });
        self.records(topic)
    }

    /// Waits until the offsets of a worker's group cover this number of messages, and no other.
    #[track_caller]
    pub fn await_settled(&self, topic: &str, number: usize) {
        let group = self.observe_group(&format!("{topic}.group"), topic);
        eventually(&format!("{number} messages of {topic} are settled"), || {
            (group.settled() == number).then_some(())
        });
    }

    /// Returns the offsets that a group has committed, by partition; -1 where there is none.
    pub fn committed(&self, group: &str, topic: &str) -> BTreeMap<i32, i64> {
        self.observe_group(group, topic).committed()
    }
}

/// Waits for what brokers were told to make; all of it must be made.
#[track_caller]
fn done(made: impl Future<Output = KafkaResult<Vec<TopicResult>>>) {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let results = runtime.block_on(made).unwrap();
    results.into_iter().for_each(|result| drop(result.unwrap()));
}

/// A consumer that looks at a topic again and again. To make one for each look takes a second on a
/// busy machine, and what is looked for may be over by then.
pub struct Observer {
    consumer: BaseConsumer,
    topic: String,
    partitions: Vec<i32>,
}

impl Observer {
    fn new(config: &ClientConfig, topic: &str) -> Observer {
        let consumer: BaseConsumer = config.create().unwrap();
        let metadata = consumer.fetch_metadata(Some(topic), PATIENCE).unwrap();
        let partitions = metadata.topics()[0].partitions().iter().map(|p| p.id()).collect();
        Observer { consumer, topic: topic.into(), partitions }
    }

    /// Returns the ends of the topic's partitions.
    pub fn ends(&self) -> BTreeMap<i32, i64> {
        let end = |partition: i32| {
            self.consumer.fetch_watermarks(&self.topic, partition, PATIENCE).unwrap().1
        };
        self.partitions.iter().map(|&partition| (partition, end(partition))).collect()
    }

    /// Returns the number of records in the topic, by its partitions' ends.
    pub fn records(&self) -> usize {
        self.ends().into_values().sum::<i64>() as usize
    }

    /// Returns the offsets that the group has committed, by partition; -1 where there is none.
    pub fn committed(&self) -> BTreeMap<i32, i64> {
        let mut partitions = TopicPartitionList::new();
        for &partition in &self.partitions {
            partitions.add_partition(&self.topic, partition);
        }
        let committed = self.consumer.committed_offsets(partitions, PATIENCE).unwrap();
        let offsets = committed.elements().into_iter().map(|e| {
            let offset = match e.offset() {
                Offset::Offset(offset) => offset,
                _ => -1,
            };
            (e.partition(), offset)
        });
        offsets.collect()
    }

    /// Returns how many messages the group's offsets cover.
    pub fn settled(&self) -> usize {
        self.committed().into_values().map(|offset| offset.max(0) as usize).sum()
    }
}

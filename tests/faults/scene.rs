//! What every row has: topics of its own, captions that keep coming, workers, an eye on what comes
//! out, and at the end the wait until all is settled and the comparison.

use std::collections::BTreeMap;
use std::process::Command;
use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::{BorrowedMessage, Message};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

use crate::check::{Verdict, as_it_lies, judge};
use crate::cluster::Cluster;
use crate::feed::{Feed, Mix, Truth, is_placed};
use crate::prover::Prover;
use crate::support::{self, CAPVEC, Worker};
use crate::watch::Watch;
use crate::{Mode, Setting};

/// Partitions of the input and the output.
pub const PARTITIONS: i32 = 6;

/// How long the group waits for a worker that died without a word; the default is 45 s, and rows
/// would be as long.
pub const SESSION_TIMEOUT: Duration = Duration::from_secs(6);

/// Most captions that a worker has in flight.
pub const IN_FLIGHT_MAX: usize = 1024;

/// How long the brokers leave a transaction open whose worker died.
pub const TRANSACTION_TIMEOUT: Duration = Duration::from_secs(10);

/// How long everything may take to be settled once the captions have ended.
const SETTLED_MAX: Duration = Duration::from_secs(180);

/// One request to the brokers waits this long.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// Returns the options that all workers of all rows have.
fn common_options() -> Vec<String> {
    let session_ms = SESSION_TIMEOUT.as_millis();
    let options = [
        "log.filter=info",
        &format!("kafka.librdkafka.session.timeout.ms={session_ms}"),
        "kafka.librdkafka.heartbeat.interval.ms=1500",
        "delivery.drain_timeout=5s",
        "delivery.commit_interval=500ms",
        &format!("delivery.in_flight_captions_max={IN_FLIGHT_MAX}"),
        "batch.captions_max=256",
        // Captions wait here, so that some are always in flight.
        "batch.wait_max=20ms",
        // Where a row changes it, it says so.
        "kafka.delivery_timeout=10m",
    ];
    options.map(String::from).into()
}

/// How a worker reaches the brokers.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Way {
    /// As a user, through the proxies where there are any.
    Proxied,
    /// Around the proxies.
    Direct,
}

/// The stage of one row.
pub struct Scene<'a> {
    pub cluster: &'a Cluster,
    pub mode: Mode,
    pub topic: String,
    feed: Option<Feed>,
    watch: Watch,
}

/// What is left when a row has ended.
pub struct End {
    pub verdict: Verdict,
    pub truth: Truth,
    /// The logs of the workers that ended last.
    pub logs: Vec<String>,
}

impl<'a> Scene<'a> {
    /// Makes the row's topics; captions come from [`Scene::feed`].
    pub fn new(setting: &Setting<'a>) -> Scene<'a> {
        Scene::with_output(setting, &[])
    }

    /// As [`Scene::new`], with a configuration of the output topic.
    pub fn with_output(setting: &Setting<'a>, config: &[(&str, &str)]) -> Scene<'a> {
        let (cluster, topic) = (setting.cluster, setting.name.clone());
        let large = [("max.message.bytes", "8000000")];
        cluster.create_topic(&topic, PARTITIONS, &large);
        cluster.create_topic(&format!("{topic}.out"), PARTITIONS, config);
        cluster.create_topic(&format!("{topic}.dead"), 1, &large);
        let watch = Watch::start(cluster, &format!("{topic}.out"));
        Scene { cluster, mode: setting.mode, topic, feed: None, watch }
    }

    /// Begins to send captions, `rate` a second.
    pub fn start_feed(&mut self, rate: u32, mix: Mix) {
        assert!(self.feed.is_none(), "one feed a row");
        self.feed = Some(Feed::start(&self.cluster.client(), &self.topic, rate, mix));
    }

    /// Returns the captions' producer.
    pub fn feed(&self) -> &Feed {
        self.feed.as_ref().expect("the row has started it")
    }

    /// Starts a worker; `number` tells the row's workers apart.
    pub fn worker(&self, number: usize, way: Way, options: &[&str]) -> Worker {
        let mut program = Command::new(CAPVEC);
        program.arg("run");
        self.worker_of(program, number, way, options)
    }

    /// As [`Scene::worker`], with another program that takes the options of `capvec run`.
    pub fn worker_of(
        &self,
        mut program: Command,
        number: usize,
        way: Way,
        options: &[&str],
    ) -> Worker {
        let mut all = common_options();
        let bootstrap = match way {
            Way::Direct => self.cluster.direct(),
            Way::Proxied => {
                program.env("CAPVEC__KAFKA__LIBRDKAFKA__SASL_PASSWORD", "worker");
                all.extend(
                    [
                        "security.protocol=SASL_PLAINTEXT",
                        "sasl.mechanisms=PLAIN",
                        "sasl.username=worker",
                    ]
                    .map(|property| format!("kafka.librdkafka.{property}")),
                );
                self.cluster.for_workers()
            }
        };
        if self.mode == Mode::ExactlyOnce {
            let id = self.transactional_id(number);
            let timeout = TRANSACTION_TIMEOUT.as_secs();
            all.extend([
                "delivery.mode=exactly-once".to_owned(),
                format!("delivery.transactional_id={id}"),
                format!("delivery.transaction_timeout={timeout}s"),
            ]);
        }
        all.extend(options.iter().map(|option| (*option).to_owned()));
        let options: Vec<&str> = all.iter().map(String::as_str).collect();
        let cluster = support::Cluster { bootstrap: bootstrap.to_owned() };
        Worker::launch(program, &cluster, &self.topic, &options)
    }

    /// Returns the transactional id of a worker.
    pub fn transactional_id(&self, number: usize) -> String {
        format!("{}-{number}", self.topic)
    }

    /// Returns the workers' consumer group.
    pub fn group(&self) -> String {
        format!("{}.group", self.topic)
    }

    /// Waits until every partition has given a vector of a caption that was sent after this call,
    /// and returns how long it took.
    pub fn until_going_again(&self, most: Duration) -> Duration {
        let started = Instant::now();
        let before = self.feed().latest();
        let deadline = started + most;
        loop {
            let after = self.watch.latest();
            let is_going = |partition: &i32| after.get(partition) > before.get(partition);
            if (0..PARTITIONS).all(|partition| is_going(&partition)) {
                return started.elapsed();
            }
            assert!(
                Instant::now() < deadline,
                "no partition may stand still for {most:?}: before {before:?}, after {after:?}"
            );
            std::thread::park_timeout(Duration::from_millis(10));
        }
    }

    /// Lets time pass in which a fault works. Nothing is waited for: captions go on coming.
    pub fn pass(&self, time: Duration) {
        let until = Instant::now() + time;
        while let Some(left) = until.checked_duration_since(Instant::now()) {
            std::thread::park_timeout(left);
        }
    }

    /// Returns how much of the input the group's offsets don't cover; `None` where the brokers
    /// don't answer.
    pub fn uncommitted(&self) -> Option<i64> {
        let (ends, committed) = (self.ends()?, self.committed()?);
        Some(ends.iter().map(|(partition, end)| end - committed[partition]).sum())
    }

    /// Returns the ends of the input.
    pub fn ends(&self) -> Option<BTreeMap<i32, i64>> {
        let consumer: BaseConsumer = self.cluster.client().create().unwrap();
        let of = |partition| {
            let (_, end) =
                consumer.fetch_watermarks(&self.topic, partition, REQUEST_TIMEOUT).ok()?;
            Some((partition, end))
        };
        (0..PARTITIONS).map(of).collect()
    }

    /// Returns the group's offsets, 0 where there is none.
    pub fn committed(&self) -> Option<BTreeMap<i32, i64>> {
        let mut client = self.cluster.client();
        let consumer: BaseConsumer = client.set("group.id", self.group()).create().unwrap();
        let mut partitions = TopicPartitionList::new();
        for partition in 0..PARTITIONS {
            partitions.add_partition(&self.topic, partition);
        }
        let committed = consumer.committed_offsets(partitions, REQUEST_TIMEOUT).ok()?;
        let offset = |offset: Offset| match offset {
            Offset::Offset(offset) => offset,
            _ => 0,
        };
        Some(committed.elements().iter().map(|e| (e.partition(), offset(e.offset()))).collect())
    }

    /// Waits until the group's offsets cover the whole input. The captions must have ended.
    pub fn until_settled(&self) {
        let deadline = Instant::now() + SETTLED_MAX;
        while self.uncommitted() != Some(0) {
            let (ends, committed) = (self.ends(), self.committed());
            assert!(
                Instant::now() < deadline,
                "not settled within {SETTLED_MAX:?}: ends {ends:?}, committed {committed:?}"
            );
            std::thread::park_timeout(Duration::from_millis(200));
        }
    }

    /// Ends the captions, waits until all is settled, stops the workers, and compares.
    pub fn finish(self, workers: Vec<Worker>) -> End {
        self.finish_after(workers, &BTreeMap::new())
    }

    /// As [`Scene::finish`], of what was sent from these offsets on.
    pub fn finish_after(mut self, workers: Vec<Worker>, from: &BTreeMap<i32, i64>) -> End {
        let mut truth = self.stop_feed();
        truth.retain(|place, _| {
            !is_placed(place) || from.get(&place.0).is_none_or(|from| place.1 >= *from)
        });
        self.until_settled();
        let logs = workers.into_iter().map(Worker::stop).collect();
        let verdict = self.compare(&truth);
        End { verdict, truth, logs }
    }

    /// Ends the captions, and returns all that were acknowledged.
    pub fn stop_feed(&mut self) -> Truth {
        self.feed.take().expect("the row has started it").stop()
    }

    /// Waits until a broker has ended by itself.
    pub fn until_down(&self, node: usize) {
        support::eventually("the broker ends", || {
            (!self.cluster.node(node).is_running()).then_some(())
        });
    }

    /// Compares what was sent with what lies in the topics.
    pub fn compare(&self, truth: &Truth) -> Verdict {
        let mut beyond = Vec::new();
        read(self.cluster, &self.topic, |record| {
            let place = (record.partition(), record.offset());
            if !truth.contains_key(&place) {
                beyond.push((place, record.payload().unwrap_or_default().to_vec()));
            }
        });
        let mut truth = truth.clone();
        let unplaced = truth.keys().filter(|place| !is_placed(place)).count();
        if unplaced > 0 {
            println!("  unplaced  {unplaced} of the captions, by what the sender was told");
        }
        let (written_twice, nowhere) = as_it_lies(&mut truth, &beyond);
        let truth = &truth;
        let prover = Prover::new();
        let mut vectors = Vec::new();
        read(self.cluster, &format!("{}.out", self.topic), |record| {
            vectors.push(prover.vector(truth, record));
        });
        let mut letters = Vec::new();
        read(self.cluster, &format!("{}.dead", self.topic), |record| {
            letters.push(prover.letter(truth, record));
        });
        for seen in vectors.iter().chain(&letters).filter(|seen| !seen.proven) {
            let what =
                if truth.contains_key(&seen.source) { "another content" } else { "no message" };
            println!("  wrong     {:?} at {:?} has {what}", seen.source, seen.place);
        }
        let judged = judge(truth, &vectors, &letters);
        for place in judged.lost.iter().take(10) {
            println!("  lost      {place:?}");
        }
        Verdict {
            uncommitted: self.uncommitted().expect("the brokers answer"),
            open_transactions: self.open_transactions(),
            written_twice,
            nowhere,
            ..judged
        }
    }

    /// Returns the number of the row's partitions in which a transaction is open.
    pub fn open_transactions(&self) -> usize {
        let topics = ["out", "dead"].map(|suffix| format!("{}.{suffix}", self.topic));
        topics.iter().map(|topic| open_transactions(self.cluster, topic)).sum()
    }
}

/// Reads a topic from its beginning to its end, without what is in open and aborted transactions.
pub fn read(cluster: &Cluster, topic: &str, visit: impl FnMut(&BorrowedMessage<'_>)) {
    read_as(cluster, topic, "read_committed", visit);
}

/// Reads a topic from its beginning to its end, at an isolation level.
pub fn read_as(
    cluster: &Cluster,
    topic: &str,
    isolation: &str,
    mut visit: impl FnMut(&BorrowedMessage<'_>),
) {
    let consumer: BaseConsumer = cluster
        .client()
        .set("group.id", "the-checker")
        .set("enable.auto.commit", "false")
        .set("isolation.level", isolation)
        .set("enable.partition.eof", "true")
        .create()
        .unwrap();
    let partitions = cluster.leaders(topic);
    let mut from = TopicPartitionList::new();
    for partition in partitions.keys() {
        from.add_partition_offset(topic, *partition, Offset::Beginning).unwrap();
    }
    consumer.assign(&from).unwrap();
    // The end is told once a partition: nothing is written any more.
    let mut ended = 0;
    let deadline = Instant::now() + SETTLED_MAX;
    while ended < partitions.len() {
        assert!(Instant::now() < deadline, "{topic} can't be read to its end");
        match consumer.poll(Duration::from_millis(200)) {
            None => {}
            Some(Ok(message)) => visit(&message),
            Some(Err(rdkafka::error::KafkaError::PartitionEOF(_))) => ended += 1,
            // librdkafka tries again by itself.
            Some(Err(_)) => {}
        }
    }
}

/// Returns the number of partitions whose end a reader of committed records can't reach.
fn open_transactions(cluster: &Cluster, topic: &str) -> usize {
    let consumer = |isolation: &str| -> BaseConsumer {
        cluster.client().set("isolation.level", isolation).create().unwrap()
    };
    let (committed, all) = (consumer("read_committed"), consumer("read_uncommitted"));
    let end = |consumer: &BaseConsumer, partition| {
        consumer.fetch_watermarks(topic, partition, REQUEST_TIMEOUT).expect("the brokers answer").1
    };
    let partitions = cluster.leaders(topic);
    partitions.keys().filter(|&&p| end(&committed, p) != end(&all, p)).count()
}

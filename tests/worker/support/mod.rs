//! What the tests share: topics, records, worker processes, packages, and waiting on conditions.

// Each test module uses its part of this.
#![allow(dead_code)]
// The harness shows what a failed test prints.
#![allow(clippy::disallowed_macros)]

pub mod kafka;
pub mod load;
pub mod prometheus;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use capvec::config::{Config, EmbedderKind};
use capvec::model::package::{Package, TOKENIZER};
use capvec::model::synth::{Synthesis, synthesize};
use capvec::tokenize::Tokenizer;
use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, NewPartitions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::message::{BorrowedMessage, Header, Headers, Message, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

/// How long a test waits for what must come: long, for a slow machine; a test that passes never
/// waits for it.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// The program.
pub const CAPVEC: &str = env!("CARGO_BIN_EXE_capvec");

/// Waits until the condition gives a value.
#[track_caller]
pub fn eventually<T>(what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    eventually_ok(what, || condition().ok_or("it isn't so yet"))
}

/// Waits until the condition gives a value; a failure shows what it last said instead.
#[track_caller]
pub fn eventually_ok<T, E: Display>(what: &str, mut condition: impl FnMut() -> Result<T, E>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match condition() {
            Ok(value) => return value,
            Err(e) => assert!(Instant::now() < deadline, "not within {PATIENCE:?}: {what}: {e}"),
        }
        std::thread::park_timeout(Duration::from_millis(20));
    }
}

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

    /// Returns the configuration of a worker in this process, from the topic to `.out` and `.dead`, with the hash
    /// embedder.
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

    fn client(&self) -> ClientConfig {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", &self.bootstrap);
        config
    }

    /// Makes a topic and waits until it can be used.
    pub fn create_topic(&self, topic: &str, partitions: i32) {
        self.create_topic_with(topic, partitions, &[]);
    }

    /// Makes a topic with options of its own, and waits until it can be used.
    pub fn create_topic_with(&self, topic: &str, partitions: i32, options: &[(&str, &str)]) {
        let admin: AdminClient<DefaultClientContext> = self.client().create().unwrap();
        let new = NewTopic::new(topic, partitions, TopicReplication::Fixed(1));
        let new = options.iter().fold(new, |new, (key, value)| new.set(key, value));
        let options = AdminOptions::new();
        let created = tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap()
            .block_on(admin.create_topics([&new], &options))
            .unwrap();
        created.into_iter().for_each(|result| drop(result.unwrap()));
        eventually("the topic has leaders", || {
            let metadata = admin.inner().fetch_metadata(Some(topic), PATIENCE).ok()?;
            let found = metadata.topics().first()?;
            let led = found.partitions().iter().filter(|p| p.leader() >= 0).count();
            (led == partitions as usize).then_some(())
        });
    }

    /// Gives a topic more partitions.
    pub fn add_partitions(&self, topic: &str, partitions: usize) {
        let admin: AdminClient<DefaultClientContext> = self.client().create().unwrap();
        let more = NewPartitions::new(topic, partitions);
        let options = AdminOptions::new();
        let made = tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap()
            .block_on(admin.create_partitions([&more], &options))
            .unwrap();
        made.into_iter().for_each(|result| drop(result.unwrap()));
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

    /// Returns the number of messages in a topic, by its partitions' ends.
    pub fn ends(&self, topic: &str) -> BTreeMap<i32, i64> {
        let consumer: BaseConsumer = self.client().create().unwrap();
        let metadata = consumer.fetch_metadata(Some(topic), PATIENCE).unwrap();
        let partitions = metadata.topics()[0].partitions().iter().map(|p| p.id());
        partitions.map(|p| (p, consumer.fetch_watermarks(topic, p, PATIENCE).unwrap().1)).collect()
    }

    /// Returns the topics whose names begin so.
    pub fn topics(&self, prefix: &str) -> Vec<String> {
        let consumer: BaseConsumer = self.client().create().unwrap();
        let metadata = consumer.fetch_metadata(None, PATIENCE).unwrap();
        let names = metadata.topics().iter().map(|topic| topic.name().to_owned());
        names.filter(|name| name.starts_with(prefix)).collect()
    }

    /// Returns everything in a topic, in the order of each partition.
    pub fn records(&self, topic: &str) -> Vec<Record> {
        let ends = self.ends(topic);
        let consumer: BaseConsumer = self
            .client()
            .set("group.id", "reader")
            .set("enable.auto.commit", "false")
            .create()
            .unwrap();
        let mut from = TopicPartitionList::new();
        for &partition in ends.keys() {
            from.add_partition_offset(topic, partition, Offset::Beginning).unwrap();
        }
        consumer.assign(&from).unwrap();
        let mut left: i64 = ends.values().sum();
        let mut records = Vec::new();
        while left > 0 {
            let message = eventually("the next record", || consumer.poll(PATIENCE)).unwrap();
            records.push(Record::of(&message));
            left -= 1;
        }
        records.sort_by_key(|r| (r.partition, r.offset));
        records
    }

    /// Returns what a reader of committed records sees in a topic, in the order of each partition.
    pub fn committed_records(&self, topic: &str) -> Vec<Record> {
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
        eventually(&format!("{number} records in {topic}"), || {
            (self.ends(topic).values().sum::<i64>() >= number as i64).then_some(())
        });
        self.records(topic)
    }

    /// Returns the offsets that a group has committed, by partition; -1 where there is none.
    pub fn committed(&self, group: &str, topic: &str) -> BTreeMap<i32, i64> {
        let consumer: BaseConsumer = self.client().set("group.id", group).create().unwrap();
        let mut partitions = TopicPartitionList::new();
        for partition in self.ends(topic).into_keys() {
            partitions.add_partition(topic, partition);
        }
        let committed = consumer.committed_offsets(partitions, PATIENCE).unwrap();
        let offsets = committed.elements().into_iter().map(|e| {
            let offset = match e.offset() {
                Offset::Offset(offset) => offset,
                _ => -1,
            };
            (e.partition(), offset)
        });
        offsets.collect()
    }
}

/// A synthetic package that all tests share.
pub fn tiny_package() -> &'static Path {
    static PACKAGE: OnceLock<(tempfile::TempDir, PathBuf)> = OnceLock::new();
    let (_, path) = PACKAGE.get_or_init(|| {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tiny");
        synthesize(&Synthesis::tiny(7, &path), &mut |_| ()).unwrap();
        (folder, path)
    });
    path
}

/// The tokenizer of a package.
pub fn tokenizer_of(package: &Path) -> Tokenizer {
    let manifest = Package::open(package).unwrap().manifest;
    Tokenizer::from_file(&package.join(TOKENIZER), manifest.max_tokens).unwrap()
}

/// Returns the length of the difference as a share of the golden vector's.
pub fn relative_error(found: &[f32], golden: &[f32]) -> f64 {
    let norm = |numbers: &mut dyn Iterator<Item = f64>| numbers.map(|n| n * n).sum::<f64>().sqrt();
    let pairs = found.iter().zip(golden).map(|(f, g)| f64::from(*f) - f64::from(*g));
    norm(&mut pairs.into_iter()) / norm(&mut golden.iter().map(|g| f64::from(*g)))
}

/// A folder beside the checkout that not every machine has. A test that needs it says that it is
/// skipped where it isn't there.
pub fn beside(variable: &str, folder: &str) -> Option<PathBuf> {
    let path = std::env::var_os(variable).map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared").join(folder),
        PathBuf::from,
    );
    if path.is_dir() {
        return Some(path);
    }
    // Not by eprintln!, which is shown of tests that fail alone.
    let line = format!("skipped: {} is not there (or name it in {variable})\n", path.display());
    std::io::stderr().write_all(line.as_bytes()).unwrap();
    None
}

/// A worker process.
pub struct Worker {
    child: Child,
    admin: String,
    log: PathBuf,
    _folder: tempfile::TempDir,
}

impl Worker {
    /// Starts `capvec run` from `topic` to `topic.out`, rejections to `topic.dead`, with the hash
    /// embedder; `options` come over that, as `section.key=value`.
    pub fn start(cluster: &Cluster, topic: &str, package: &Path, options: &[&str]) -> Worker {
        let mut program = Command::new(CAPVEC);
        program.arg("run");
        Worker::launch(program, cluster, topic, package, options)
    }

    /// As [`Worker::start`], with a program that takes the options of `capvec run`.
    pub fn launch(
        mut command: Command,
        cluster: &Cluster,
        topic: &str,
        package: &Path,
        options: &[&str],
    ) -> Worker {
        let folder = tempfile::tempdir().unwrap();
        let config = folder.path().join("capvec.toml");
        let admin = free_address();
        let text = format!(
            r#"
            [kafka]
            brokers = "{bootstrap}"
            group = "{topic}.group"
            [input]
            topic = "{topic}"
            [output]
            topic = "{topic}.out"
            [reject]
            topic = "{topic}.dead"
            [model]
            package = "{package}"
            [embed]
            embedder = "hash"
            threads = 1
            [admin]
            listen = "{admin}"
            [log]
            format = "text"
            filter = "debug"
            "#,
            bootstrap = cluster.bootstrap,
            package = package.display(),
        );
        std::fs::write(&config, text).unwrap();
        let log = folder.path().join("log");
        let log_file = std::fs::File::create(&log).unwrap();
        command.arg("--config").arg(&config);
        for option in options {
            command.args(["--set", option]);
        }
        let child = command.stdin(Stdio::null()).stderr(log_file).spawn().unwrap();
        Worker { child, admin, log, _folder: folder }
    }

    /// Returns the address of its admin port.
    pub fn admin(&self) -> &str {
        &self.admin
    }

    /// Waits until `/readyz` says so.
    #[track_caller]
    pub fn ready(mut self) -> Worker {
        eventually("the worker is ready", || {
            if let Some(status) = self.child.try_wait().unwrap() {
                panic!("the worker ended with {status}:\n{}", self.log());
            }
            self.get("/readyz").filter(|(status, _)| *status == 200)
        });
        self
    }

    /// Asks an admin endpoint; `None` where nobody answers.
    pub fn get(&self, path: &str) -> Option<(u16, String)> {
        http_get(&self.admin, path)
    }

    /// Returns the value of a metric's series, written as in the text format.
    pub fn metric(&self, series: &str) -> Option<f64> {
        metric(&self.admin, series)
    }

    /// Returns the process's id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Kills the worker by SIGKILL, as a machine that fails would. Returns its log.
    pub fn kill(mut self) -> String {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        self.log()
    }

    /// Returns the status that the worker has ended with, if it has.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().unwrap()
    }

    /// Sends a signal by its name.
    pub fn signal(&self, name: &str) {
        let status =
            Command::new("kill").args(["-s", name, &self.child.id().to_string()]).status().unwrap();
        assert!(status.success());
    }

    /// Waits until the worker has ended.
    #[track_caller]
    pub fn wait(&mut self) -> ExitStatus {
        eventually("the worker ends", || self.child.try_wait().unwrap())
    }

    /// Stops the worker as Kubernetes does; it must end well. Returns its log.
    #[track_caller]
    pub fn stop(mut self) -> String {
        self.signal("TERM");
        let status = self.wait();
        assert!(status.success(), "{status}\n{}", self.log());
        self.log()
    }

    /// Returns what the worker has logged.
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap()
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // It may have ended already.
        drop(self.child.kill());
        drop(self.child.wait());
        if std::thread::panicking() {
            let log = self.log();
            let lines: Vec<_> = log.lines().collect();
            eprintln!(
                "the worker's last lines:\n{}",
                lines[lines.len().saturating_sub(40)..].join("\n")
            );
        }
    }
}

/// Returns an address that nobody listens at.
pub fn free_address() -> String {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().to_string()
}

/// Returns the value of a metric's series at an admin address.
pub fn metric(admin: &str, series: &str) -> Option<f64> {
    let (_, text) = http_get(admin, "/metrics")?;
    let line = text
        .lines()
        .find(|line| line.strip_prefix(series).is_some_and(|rest| rest.starts_with(' ')))?;
    line.rsplit_once(' ')?.1.parse().ok()
}

/// One HTTP GET.
pub fn http_get(address: &str, path: &str) -> Option<(u16, String)> {
    let mut stream = TcpStream::connect(address).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(10))).ok()?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    let status = answer.split(' ').nth(1)?.parse().ok()?;
    let body = answer.split_once("\r\n\r\n")?.1.to_owned();
    Some((status, body))
}

/// Runs the program and returns its output.
#[track_caller]
pub fn capvec(args: &[&str]) -> std::process::Output {
    Command::new(CAPVEC).args(args).stdin(Stdio::null()).output().unwrap()
}

/// Runs the program, which must succeed, and returns its standard output.
#[track_caller]
pub fn capvec_ok(args: &[&str]) -> String {
    let output = capvec(args);
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "capvec {args:?}: {}\n{error}", output.status);
    String::from_utf8(output.stdout).unwrap()
}

/// Runs the program, which must fail, and returns its exit code and standard error.
#[track_caller]
pub fn capvec_fails(args: &[&str]) -> (i32, String) {
    let output = capvec(args);
    assert!(!output.status.success(), "capvec {args:?} succeeded");
    (output.status.code().unwrap(), String::from_utf8(output.stderr).unwrap())
}

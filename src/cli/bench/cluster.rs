//! The brokers that a benchmark runs on: the embedded one, or real ones with topics of its own,
//! which are deleted at the end.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, bail, ensure};
use clap::Args;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

use crate::cli::embedded::{EmbeddedBroker, FETCH_WAIT};
use crate::cli::{ids_of_brokers, key_value, tell};
use crate::config::{Config, load};
use crate::kafka::admin_properties;
use crate::shutdown::Shutdown;

/// Partitions of captions, and of vectors.
pub const PARTITIONS: i32 = 6;

/// Options of the worker without which it wouldn't be the benchmark's.
const OWN: [&str; 4] = ["kafka.brokers", "kafka.group", "input.topic", "output.topic"];

/// How long the brokers may take for a request.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// Between two requests of which the first failed.
const ASK_PAUSE: Duration = Duration::from_millis(10);

/// How long new topics may take until they can be used.
const TOPICS_TIMEOUT: Duration = Duration::from_secs(30);

/// Which brokers, and options of the worker.
#[derive(Debug, Args)]
pub struct ClusterArgs {
    /// Brokers to run on; without any, one inside the process. Topics `capvec-bench-...` are made
    /// and deleted.
    #[arg(long, value_name = "HOST:PORT")]
    pub brokers: Option<String>,
    /// Sets an option of the worker, as `capvec run` takes it, but for those of brokers, group and
    /// topics; may be repeated.
    #[arg(long = "set", value_name = "SECTION.KEY=VALUE", value_parser = key_value)]
    pub overrides: Vec<(String, String)>,
}

/// Brokers with a topic of captions and one of vectors.
pub struct Cluster {
    bootstrap: String,
    embedded: Option<EmbeddedBroker>,
    name: String,
    admin: Option<AdminClient<DefaultClientContext>>,
}

impl Cluster {
    /// Starts the embedded broker, or takes the brokers that are named.
    ///
    /// # Errors
    ///
    /// When an option is set that the benchmark has to set, or the embedded broker doesn't start.
    pub fn new(args: &ClusterArgs) -> anyhow::Result<Cluster> {
        if let Some((path, _)) = args.overrides.iter().find(|(path, _)| OWN.contains(&&**path)) {
            bail!("--set {path}: a benchmark sets it itself; --brokers names other brokers");
        }
        // Other benchmarks may run on the same brokers; std seeds each state at random.
        let name = format!("capvec-bench-{:016x}", RandomState::new().build_hasher().finish());
        if let Some(brokers) = &args.brokers {
            return Ok(Cluster { bootstrap: brokers.clone(), embedded: None, name, admin: None });
        }
        let topics = [(name.clone(), PARTITIONS), (format!("{name}.vectors"), PARTITIONS)];
        let embedded = EmbeddedBroker::start(&topics.each_ref().map(|(t, n)| (t.as_str(), *n)))?;
        Ok(Cluster { bootstrap: embedded.bootstrap(), embedded: Some(embedded), name, admin: None })
    }

    /// Returns whether the broker is the embedded one.
    pub fn is_embedded(&self) -> bool {
        self.embedded.is_some()
    }

    /// Returns the topic of captions.
    pub fn input(&self) -> &str {
        &self.name
    }

    /// Returns the topic of vectors.
    pub fn output(&self) -> String {
        format!("{}.vectors", self.name)
    }

    /// Returns the options of a worker on these brokers, `options` over them, and the user's over
    /// those.
    pub fn options(&self, options: &[(&str, String)], args: &ClusterArgs) -> Vec<(String, String)> {
        let mut all = vec![
            ("kafka.brokers".to_owned(), self.bootstrap.clone()),
            ("kafka.group".to_owned(), format!("{}.group", self.name)),
            ("input.topic".to_owned(), self.input().to_owned()),
            ("output.topic".to_owned(), self.output()),
            ("admin.listen".to_owned(), "127.0.0.1:0".to_owned()),
        ];
        if self.is_embedded() {
            let (property, value) = FETCH_WAIT;
            all.push((format!("kafka.librdkafka.{property}"), value.into()));
        }
        all.extend(options.iter().map(|(path, value)| ((*path).to_owned(), value.clone())));
        all.extend_from_slice(&args.overrides);
        all
    }

    /// Returns the configuration of these options.
    ///
    /// # Errors
    ///
    /// With every fault of every option.
    pub fn config(&self, options: &[(&str, String)], args: &ClusterArgs) -> anyhow::Result<Config> {
        Ok(load(None, &self.options(options, args))?)
    }

    /// Makes the topics and waits until they can be used. The embedded broker has them already.
    ///
    /// On real brokers the records of both get the time at which they were appended.
    ///
    /// # Errors
    ///
    /// When the brokers don't answer or refuse, and when a stop is asked for before they have
    /// answered.
    pub fn create_topics(&mut self, config: &Config, shutdown: &Shutdown) -> anyhow::Result<()> {
        if self.is_embedded() {
            return Ok(());
        }
        ids_of_brokers(config, shutdown)?;
        let admin: AdminClient<_> = admin_properties(config).create()?;
        let output = self.output();
        let topics = [&self.name, &output].map(|topic| {
            NewTopic::new(topic, PARTITIONS, TopicReplication::Fixed(1))
                .set("message.timestamp.type", "LogAppendTime")
        });
        let made = block_on(admin.create_topics(&topics, &admin_options()))?
            .with_context(|| format!("no topics can be made on {}", self.bootstrap))?;
        // From here on they are deleted, whatever comes.
        let admin = self.admin.insert(admin);
        for result in made {
            result.map_err(|(topic, code)| anyhow!("{topic} can't be made: {code}"))?;
        }
        let deadline = Instant::now() + TOPICS_TIMEOUT;
        for topic in [&self.name, &output] {
            while !is_led(admin, topic)? {
                ensure!(Instant::now() < deadline, "{topic} has no leaders yet");
                std::thread::sleep(Duration::from_millis(50));
            }
        }
        Ok(())
    }
}

fn is_led(admin: &AdminClient<DefaultClientContext>, topic: &str) -> anyhow::Result<bool> {
    let metadata = admin.inner().fetch_metadata(Some(topic), REQUEST_TIMEOUT)?;
    let partitions = metadata.topics().first().map_or(&[][..], |topic| topic.partitions());
    let led = partitions.iter().filter(|partition| partition.leader() >= 0).count();
    Ok(led == PARTITIONS as usize)
}

fn admin_options() -> AdminOptions {
    AdminOptions::new()
        .request_timeout(Some(REQUEST_TIMEOUT))
        .operation_timeout(Some(REQUEST_TIMEOUT))
}

fn block_on<T>(future: impl Future<Output = T>) -> anyhow::Result<T> {
    Ok(tokio::runtime::Builder::new_current_thread().build()?.block_on(future))
}

impl Drop for Cluster {
    fn drop(&mut self) {
        let Some(admin) = &self.admin else { return };
        let output = self.output();
        let topics = [self.name.as_str(), &output];
        let deleted = block_on(admin.delete_topics(&topics, &admin_options()));
        let refused = match deleted {
            Ok(Ok(results)) => {
                results.into_iter().find_map(|r| r.err()).map(|(_, e)| e.to_string())
            }
            Ok(Err(error)) => Some(error.to_string()),
            Err(error) => Some(error.to_string()),
        };
        if let Some(reason) = refused {
            tell(format_args!("{} and {output} are not deleted: {reason}", self.name));
        }
    }
}

/// Looks at how much is in the topic of vectors.
pub struct OutputEnds {
    consumer: BaseConsumer,
    topic: String,
}

impl OutputEnds {
    /// Makes the client.
    ///
    /// # Errors
    ///
    /// When librdkafka refuses the configuration.
    pub fn new(config: &Config) -> anyhow::Result<OutputEnds> {
        let consumer = admin_properties(config).create()?;
        Ok(OutputEnds { consumer, topic: config.output.topic.clone() })
    }

    /// Returns the number of records that the topic has had.
    ///
    /// # Errors
    ///
    /// When the brokers don't answer.
    pub fn records(&self) -> anyhow::Result<u64> {
        let began = Instant::now();
        loop {
            match self.ask() {
                // Of a topic just made, one broker may say that another leads it.
                Err(error) if began.elapsed() < REQUEST_TIMEOUT => {
                    tracing::debug!(error = format!("{error:#}"), "the ends are asked for again");
                    std::thread::sleep(ASK_PAUSE);
                }
                answered => return answered,
            }
        }
    }

    fn ask(&self) -> anyhow::Result<u64> {
        // All partitions in one request: a busy broker takes long for each, while captions go by.
        let mut ends = TopicPartitionList::with_capacity(PARTITIONS as usize);
        for partition in 0..PARTITIONS {
            ends.add_partition_offset(&self.topic, partition, Offset::End)?;
        }
        let ends = self.consumer.offsets_for_times(ends, REQUEST_TIMEOUT)?;
        let mut records = 0;
        for end in ends.elements() {
            end.error().with_context(|| format!("{}/{}", self.topic, end.partition()))?;
            records += end.offset().to_raw().unwrap_or(0).max(0) as u64;
        }
        Ok(records)
    }
}

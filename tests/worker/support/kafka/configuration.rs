//! What a node is made of: Kafka's jars, ports, and its configuration.

use std::env;
use std::hash::{BuildHasher, RandomState};
use std::net::TcpListener;
use std::path::PathBuf;

use capvec::embed::library::cache_folder;

/// Names the version of Kafka; `scripts/kafka-jars` takes it from the same place.
const POM: &str = include_str!("../../../kafka/pom.xml");

/// Returns the folder of Kafka's jars.
pub fn libs() -> Result<PathBuf, String> {
    let set = env::var_os("CAPVEC_KAFKA_LIBS").filter(|value| !value.is_empty());
    let in_cache = || {
        let (_, rest) = POM.split_once("<kafka.version>")?;
        let (version, _) = rest.split_once("</kafka.version>")?;
        Some(cache_folder()?.join("kafka").join(version).join("libs"))
    };
    let libs = set.map(PathBuf::from).or_else(in_cache);
    let libs = libs.ok_or("there is no HOME to look for the real Kafka in; run `make test`")?;
    if libs.is_dir() {
        return Ok(libs);
    }
    Err(format!("the real Kafka is missing, there is no {}; run `make test`", libs.display()))
}

/// Returns ports on which nothing listens.
///
/// They lie below the range from which Linux takes the ports of outgoing connections (32768 and
/// up). One from that range, as binding port 0 gives, could be handed to any client while the node
/// is down, even to one that tries to reach that very port and so would connect to itself.
pub fn free_ports<const NUMBER: usize>() -> [u16; NUMBER] {
    // A random place to begin, so that two test processes do not try the same ports at the same
    // moment.
    let first = (RandomState::new().hash_one("port") % 10_000) as u16;
    let ports = (0..10_000).map(|step| 20_000 + (first + step) % 10_000);
    let mut free = ports.filter_map(|port| TcpListener::bind(("127.0.0.1", port)).ok());
    // All stay bound until all are found, or the second could be the first.
    let bound = [(); NUMBER].map(|()| free.next().expect("some of 10,000 ports are free"));
    bound.map(|listener| listener.local_addr().expect("a bound listener has an address").port())
}

/// Returns the node's configuration. What it does not name is as Kafka ships it.
pub fn node(client_port: u16, controller_port: u16) -> String {
    format!(
        "\
# === one node, broker and controller ===
process.roles=broker,controller
node.id=1
listeners=CLIENT://127.0.0.1:{client_port},CONTROLLER://127.0.0.1:{controller_port}
advertised.listeners=CLIENT://127.0.0.1:{client_port}
listener.security.protocol.map=CLIENT:PLAINTEXT,CONTROLLER:PLAINTEXT
inter.broker.listener.name=CLIENT
controller.listener.names=CONTROLLER
controller.quorum.bootstrap.servers=127.0.0.1:{controller_port}
log.dirs=data

# === internal topics: one replica, as there is one node, and few partitions, as each takes time to load ===
offsets.topic.replication.factor=1
offsets.topic.num.partitions=4
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
transaction.state.log.num.partitions=4
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
share.coordinator.state.topic.num.partitions=4

{FOR_TESTS}"
    )
}

/// What tests need of every node.
pub const FOR_TESTS: &str = "\
# === what tests need ===
# A misspelt topic is an error, not another topic.
auto.create.topics.enable=false
log.retention.ms=-1
message.max.bytes=2097152
# A group is complete when its first member is there; the default waits 3 s for more.
group.initial.rebalance.delay.ms=0
# A test of a worker that died may choose a short session; the default allows none under 6 s.
group.min.session.timeout.ms=1000
# Timed-out transactions are looked for this often; the default is 10 s.
transaction.abort.timed.out.transaction.cleanup.interval.ms=500
# A node that was killed may come back only when the session of the one before has ended; the default is 9 s.
broker.session.timeout.ms=3000
broker.heartbeat.interval.ms=500
# The default sets 128 MiB of the heap aside.
log.cleaner.dedupe.buffer.size=4194304
";

/// Everything on standard output. Kafka brings no configuration in its jars, and without one log4j
/// is silent.
pub const LOG4J: &str = "\
rootLogger.level=info
rootLogger.appenderRef.output.ref=output
appender.output.type=Console
appender.output.name=output
appender.output.layout.type=PatternLayout
appender.output.layout.pattern=%d{HH:mm:ss.SSS} %-5p %c{1}: %m%n
# Prints hundreds of configuration values for every client and server.
logger.config.name=org.apache.kafka.common.config.AbstractConfig
logger.config.level=warn
";

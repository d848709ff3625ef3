//! Three real Kafka nodes, and toxiproxy before them.
//!
//! Each node is broker and controller. Topics have three replicas, of which two must be in sync. A
//! node has two listeners for clients: a direct one, for the brokers among themselves and for this
//! harness, which must know the truth whatever happens to the workers; and one for workers,
//! advertised at the address of a proxy of its own. Workers log in there as a user, so that a topic
//! can be forbidden to them and to nobody else.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use capvec::lock::lock;
use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::metadata::Metadata;

use crate::support::kafka::{FOR_TESTS, Kafka, Plan, free_ports};
use crate::toxiproxy::Toxiproxy;

/// How many nodes.
pub const NODES: usize = 3;

/// How long a broker, a leader or a replica may take to come back.
const RECOVERY_MAX: Duration = Duration::from_secs(120);

/// One request to the brokers waits this long.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);

/// Partitions of the topics in which coordinators keep groups and transactions.
const COORDINATOR_PARTITIONS: i32 = 6;

/// The cluster.
pub struct Cluster {
    /// By position: node `n` has the id `n + 1`.
    nodes: Vec<Mutex<Kafka>>,
    /// Between workers and brokers, where it was asked for.
    pub toxiproxy: Option<Toxiproxy>,
    direct: String,
    for_workers: String,
}

/// Whether there are proxies between workers and brokers.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Network {
    /// Workers reach the brokers' listener for them straight.
    Plain,
    /// Toxiproxy stands between.
    Proxied,
}

impl Cluster {
    /// Starts the nodes; `data` are their data folders, by default each in its own temporary
    /// folder.
    pub fn start(network: Network, data: [Option<&str>; NODES]) -> Cluster {
        let [a, b, c, d, e, f, g, h, i, j, k, l, control] = free_ports();
        let (direct, listening, controllers, proxies) =
            ([a, b, c], [d, e, f], [g, h, i], [j, k, l]);
        let advertised = if network == Network::Proxied { proxies } else { listening };
        let toxiproxy = (network == Network::Proxied).then(|| {
            let pairs: Vec<_> = proxies.into_iter().zip(listening).collect();
            Toxiproxy::start(control, &pairs)
        });
        let plans: Vec<Plan> = (0..NODES)
            .map(|n| Plan {
                properties: properties(
                    n,
                    [direct[n], listening[n], advertised[n]],
                    controllers,
                    data[n].unwrap_or("data"),
                ),
                client_port: direct[n],
                format: &[],
            })
            .collect();
        let nodes = Kafka::start_all(&plans).unwrap_or_else(|why| panic!("{why}"));
        let nodes = nodes.into_iter().map(Mutex::new).collect();
        let list = |ports: [u16; NODES]| ports.map(|port| format!("127.0.0.1:{port}")).join(",");
        let cluster =
            Cluster { nodes, toxiproxy, direct: list(direct), for_workers: list(advertised) };
        cluster.until("three brokers", |metadata| metadata.brokers().len() == NODES);
        cluster
    }

    /// Returns a node, to be stopped, killed and started.
    pub fn node(&self, position: usize) -> MutexGuard<'_, Kafka> {
        // A row that failed has left nothing half-done in it.
        lock(&self.nodes[position])
    }

    /// Returns the brokers' addresses for this harness.
    pub fn direct(&self) -> &str {
        &self.direct
    }

    /// Returns the brokers' addresses for workers.
    pub fn for_workers(&self) -> &str {
        &self.for_workers
    }

    /// Returns the proxies.
    ///
    /// # Panics
    ///
    /// Where there are none: the row was to be left out.
    pub fn proxies(&self) -> &Toxiproxy {
        self.toxiproxy.as_ref().expect("rows that need proxies run in `--full` alone")
    }

    /// Makes a topic and waits until all its replicas are there.
    pub fn create_topic(&self, topic: &str, partitions: i32, config: &[(&str, &str)]) {
        let admin: AdminClient<DefaultClientContext> = self.client().create().unwrap();
        let new = NewTopic::new(topic, partitions, TopicReplication::Fixed(NODES as i32));
        let new = config.iter().fold(new, |new, (key, value)| new.set(key, value));
        let created = in_tokio(admin.create_topics([&new], &AdminOptions::new())).unwrap();
        created.into_iter().for_each(|result| drop(result.unwrap()));
        self.until_in_sync();
    }

    /// Deletes a topic, and waits until no broker knows it.
    pub fn delete_topic(&self, topic: &str) {
        let admin: AdminClient<DefaultClientContext> = self.client().create().unwrap();
        let deleted = in_tokio(admin.delete_topics(&[topic], &AdminOptions::new())).unwrap();
        deleted.into_iter().for_each(|result| drop(result.unwrap()));
        self.until("the topic is gone", |m| m.topics().iter().all(|t| t.name() != topic));
    }

    /// Waits until every partition has a leader and all its replicas are in sync.
    pub fn until_in_sync(&self) {
        self.until("all replicas in sync", |metadata| {
            let mut partitions = metadata.topics().iter().flat_map(|topic| topic.partitions());
            partitions.all(|p| p.leader() >= 0 && p.isr().len() == p.replicas().len())
                && metadata.brokers().len() == NODES
        });
    }

    /// Returns the position of the node that leads a partition.
    pub fn leader(&self, topic: &str, partition: i32) -> usize {
        let mut leader = None;
        self.until("the partition has a leader", |metadata| {
            let topic = metadata.topics().iter().find(|t| t.name() == topic);
            let found = topic.and_then(|t| t.partitions().iter().find(|p| p.id() == partition));
            leader = found.map(|p| p.leader()).filter(|id| *id > 0);
            leader.is_some()
        });
        leader.expect("waited for") as usize - 1
    }

    /// Returns the partitions' leaders of a topic, as nodes' ids.
    pub fn leaders(&self, topic: &str) -> BTreeMap<i32, i32> {
        let mut leaders = BTreeMap::new();
        self.until("the topic is known", |metadata| {
            let found = metadata.topics().iter().find(|t| t.name() == topic);
            leaders = found.map_or(BTreeMap::new(), |topic| {
                topic.partitions().iter().map(|p| (p.id(), p.leader())).collect()
            });
            !leaders.is_empty()
        });
        leaders
    }

    /// Returns the position of the node that coordinates a consumer group.
    pub fn group_coordinator(&self, group: &str) -> usize {
        self.leader("__consumer_offsets", coordinator_partition(group))
    }

    /// Returns the position of the node that coordinates a transactional id's transactions.
    pub fn transaction_coordinator(&self, transactional_id: &str) -> usize {
        self.leader("__transaction_state", coordinator_partition(transactional_id))
    }

    /// Forbids workers to write to a topic.
    pub fn forbid_writing(&self, topic: &str) {
        self.acl(&["--add", "--deny-principal", "User:worker", "--operation", "Write"], topic);
        let may = ["--operation", "Describe", "--operation", "DescribeConfigs"];
        self.acl(&[&["--add", "--allow-principal", "User:worker"], &may[..]].concat(), topic);
    }

    /// Allows it again.
    pub fn allow_writing(&self, topic: &str) {
        self.acl(&["--remove", "--force"], topic);
    }

    fn acl(&self, what: &[&str], topic: &str) {
        let to = ["--bootstrap-server", self.direct.as_str()];
        let args = [&to[..], what, &["--topic", topic]].concat();
        self.tool("org.apache.kafka.tools.AclCommand", &args);
    }

    /// Runs one of Kafka's tools, which must succeed, and returns what it said.
    pub fn tool(&self, class: &str, args: &[&str]) -> String {
        let (status, said) = self.node(0).tool(class, args);
        assert!(status.success(), "{class} {args:?}: {status}\n{said}");
        said
    }

    /// Returns properties of a client of this harness.
    pub fn client(&self) -> ClientConfig {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", &self.direct);
        config
    }

    fn until(&self, what: &str, mut holds: impl FnMut(&Metadata) -> bool) {
        let client: BaseConsumer = self.client().create().unwrap();
        let deadline = Instant::now() + RECOVERY_MAX;
        loop {
            // Brokers that are away are asked again.
            if client.fetch_metadata(None, REQUEST_TIMEOUT).is_ok_and(|metadata| holds(&metadata)) {
                return;
            }
            assert!(Instant::now() < deadline, "not within {RECOVERY_MAX:?}: {what}");
            std::thread::park_timeout(Duration::from_millis(50));
        }
    }
}

fn in_tokio<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(future)
}

/// Kafka's own choice of the partition in which a coordinator keeps a name: Java's hash of a
/// string.
fn coordinator_partition(name: &str) -> i32 {
    let hash = name.encode_utf16().fold(0_i32, |h, c| h.wrapping_mul(31).wrapping_add(c.into()));
    // As Kafka's Utils.abs, which makes 0 of the one number without a positive.
    hash.checked_abs().unwrap_or(0) % COORDINATOR_PARTITIONS
}

fn properties(
    n: usize,
    [direct, listening, advertised]: [u16; 3],
    controllers: [u16; NODES],
    data: &str,
) -> String {
    let id = n + 1;
    let controller = controllers[n];
    let voters: Vec<String> =
        (1..).zip(controllers).map(|(id, port)| format!("{id}@127.0.0.1:{port}")).collect();
    let voters = voters.join(",");
    format!(
        "\
process.roles=broker,controller
node.id={id}
listeners=DIRECT://127.0.0.1:{direct},WORKERS://127.0.0.1:{listening},CONTROLLER://127.0.0.1:{controller}
advertised.listeners=DIRECT://127.0.0.1:{direct},WORKERS://127.0.0.1:{advertised}
listener.security.protocol.map=DIRECT:PLAINTEXT,WORKERS:SASL_PLAINTEXT,CONTROLLER:PLAINTEXT
inter.broker.listener.name=DIRECT
controller.listener.names=CONTROLLER
controller.quorum.voters={voters}
log.dirs={data}

# === a user for workers, from whom rights can be taken ===
sasl.enabled.mechanisms=PLAIN
listener.name.workers.plain.sasl.jaas.config=org.apache.kafka.common.security.plain.PlainLoginModule \
required user_worker=\"worker\";
authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer
super.users=User:ANONYMOUS
allow.everyone.if.no.acl.found=true

# === three replicas, two of them in sync ===
default.replication.factor=3
min.insync.replicas=2
offsets.topic.replication.factor=3
offsets.topic.num.partitions={COORDINATOR_PARTITIONS}
transaction.state.log.replication.factor=3
transaction.state.log.min.isr=2
transaction.state.log.num.partitions={COORDINATOR_PARTITIONS}
share.coordinator.state.topic.replication.factor=3
share.coordinator.state.topic.num.partitions=1
# A replica that is away is given up after 10 s instead of 30 s, so that rows stay short.
replica.lag.time.max.ms=10000

{FOR_TESTS}"
    )
}

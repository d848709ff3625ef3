//! A real Apache Kafka, for the tests that a mock cannot pass: transactions, rebalances, a broker that goes away.
//!
//! It is one KRaft node, broker and controller in one JVM, on two ports of the loopback address, with its data in a
//! temporary folder; [`Kafka::start_all`] starts nodes of a given configuration as one cluster.
//! `make test` fetches Java and the jars; without them these tests fail and say so, because a run
//! that left them out would prove nothing. A node takes about four seconds to start, so most tests use [`shared`] and
//! keep apart by topic and group names; a test that stops its broker starts one of its own.
//!
//! # Invariants
//!
//! - No JVM outlives the test process, however that ends: see [`Guard`]. Rust drops no statics, and a process killed
//!   from outside drops nothing at all.
//! - Ports and data stay the same for the life of a [`Kafka`], through [`Kafka::restart`] and [`Kafka::kill`].
//!
//! This file knows the server only. Topics, records and groups are the business of the clients.

use std::collections::VecDeque;
use std::env;
use std::fs;
use std::hash::{BuildHasher, RandomState};
use std::io::{BufRead, BufReader, Error, ErrorKind, PipeReader};
use std::net::{TcpListener, TcpStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use capvec::embed::library::cache_folder;
use tempfile::TempDir;

/// Names the version of Kafka; `scripts/kafka-jars` takes it from the same place.
const POM: &str = include_str!("../../kafka/pom.xml");

/// How long a node may take to start, on a busy machine with two cores.
const START_MAX: Duration = Duration::from_secs(90);

/// How long a node may take to stop cleanly.
const STOP_MAX: Duration = Duration::from_secs(60);

/// How many lines of a node's log are kept for [`Kafka::log_tail`].
const LOG_LINES_MAX: usize = 200;

/// The line with which Kafka says that it serves clients.
const STARTED: &str = "Kafka Server started";

/// Kafka wants 16 bytes in URL-safe Base64; these say "capvec-tests-001".
const CLUSTER_ID: &str = "Y2FwdmVjLXRlc3RzLTAwMQ";

/// What a node is made of.
pub struct Plan {
    /// Its configuration.
    pub properties: String,
    /// Where its clients connect.
    pub client_port: u16,
    /// What the data folder's identity is made with, beside the cluster's.
    pub format: &'static [&'static str],
}

/// A real Apache Kafka node, stopped when the value is dropped or this process ends.
pub struct Kafka {
    bootstrap: String,
    libs: PathBuf,
    log: Arc<Log>,
    node: Option<Node>,
    // Dropped last, in this order: the guard deletes what is left of the folder.
    folder: TempDir,
    guard: Guard,
}

/// The running JVM, and the thread that reads its log.
struct Node {
    jvm: Child,
    log_reader: JoinHandle<()>,
}

/// A shell that waits for this process to end, then kills the JVM and deletes the folder.
///
/// It waits by reading a pipe on which nobody writes: the kernel closes our end when we die, of whatever. The JVM is
/// in the guard's process group, so the guard needs no process id, and nothing is missed between a start and being
/// told of it: a child lets go of our end of the pipe, as of all we have open, after it has joined the group. The
/// group of its own also keeps a Ctrl-C in the terminal from the JVM.
struct Guard(Child);

/// The last lines of a node's log, and what they say about it.
#[derive(Default)]
struct Log {
    state: Mutex<LogState>,
    changed: Condvar,
}

#[derive(Default)]
struct LogState {
    lines: VecDeque<String>,
    phase: Phase,
}

#[derive(Clone, Copy, Debug, Default, PartialEq)]
enum Phase {
    #[default]
    Starting,
    Started,
    Ended,
}

/// Returns the node that all tests of this binary share, started on first use.
///
/// # Panics
///
/// Panics where it could not be started; every later call then panics with the same message at once.
#[track_caller]
pub fn shared() -> &'static Kafka {
    static SHARED: OnceLock<Result<Kafka, String>> = OnceLock::new();
    match SHARED.get_or_init(Kafka::try_start) {
        Ok(kafka) => kafka,
        Err(why) => panic!("{why}"),
    }
}

// === impl Kafka ===

impl Kafka {
    /// Starts a node and returns when it serves clients.
    ///
    /// # Panics
    ///
    /// Panics with the end of the log where it does not within [`START_MAX`], or where Java or the jars are missing.
    #[track_caller]
    pub fn start() -> Kafka {
        match Kafka::try_start() {
            Ok(kafka) => kafka,
            Err(why) => panic!("{why}"),
        }
    }

    /// Returns the address that clients take as `bootstrap.servers`.
    pub fn bootstrap(&self) -> &str {
        &self.bootstrap
    }

    /// Stops the node as an operator would, by SIGTERM. Does nothing where it is stopped.
    #[track_caller]
    pub fn stop(&mut self) {
        let Some(node) = self.node.take() else { return };
        node.terminate();
        if self.log.wait_until(STOP_MAX, |phase| phase == Phase::Ended) == Phase::Ended {
            node.reap();
        } else {
            node.kill();
            panic!("Kafka did not stop within {STOP_MAX:?}. Its log ends:\n{}", self.log_tail());
        }
    }

    /// Kills the node by SIGKILL, as a machine that fails would. Does nothing where it is stopped.
    pub fn kill(&mut self) {
        if let Some(node) = self.node.take() {
            node.kill();
        }
    }

    /// Starts the node again on the same data and ports, after a clean stop where it runs.
    #[track_caller]
    pub fn restart(&mut self) {
        self.stop();
        if let Err(why) = self.run() {
            panic!("{why}");
        }
    }

    /// Returns the last lines of the log, across restarts.
    pub fn log_tail(&self) -> String {
        self.log.tail()
    }

    fn try_start() -> Result<Kafka, String> {
        let [client_port, controller_port] = free_ports();
        let properties = node(client_port, controller_port);
        Kafka::start_planned(&Plan { properties, client_port, format: &["--standalone"] })
    }

    /// Starts nodes that need one another, and returns when all serve clients.
    ///
    /// # Errors
    ///
    /// With what the first said that didn't start.
    pub fn start_all(plans: &[Plan]) -> Result<Vec<Kafka>, String> {
        thread::scope(|scope| {
            let starting: Vec<_> =
                plans.iter().map(|plan| scope.spawn(|| Kafka::start_planned(plan))).collect();
            starting.into_iter().map(|one| one.join().expect("a start does not panic")).collect()
        })
    }

    /// Runs one of Kafka's own tools by its class, and returns its status and what it said.
    pub fn tool(&self, class: &str, args: &[&str]) -> (ExitStatus, String) {
        let output = self.java().arg(class).args(args).output().expect("the node itself is Java");
        let said = [output.stdout, output.stderr].concat();
        (output.status, String::from_utf8_lossy(&said).into_owned())
    }

    /// Returns a command that runs a class of Kafka's; the process dies with this one.
    pub fn class(&self, class: &str) -> Command {
        let mut command = self.java();
        command.arg(class);
        command
    }

    /// Returns whether the JVM runs.
    pub fn is_running(&self) -> bool {
        self.node.is_some() && self.log.wait_until(Duration::ZERO, |_| true) != Phase::Ended
    }

    fn start_planned(plan: &Plan) -> Result<Kafka, String> {
        let libs = libs()?;
        let folder = tempfile::Builder::new()
            .prefix("capvec-kafka-")
            .tempdir()
            .map_err(|error| format!("failed to make a folder for Kafka: {error}"))?;
        fs::write(folder.path().join("node.properties"), &plan.properties)
            .and_then(|()| fs::write(folder.path().join("log4j2.properties"), LOG4J))
            .map_err(|error| format!("failed to write Kafka's configuration: {error}"))?;

        let mut kafka = Kafka {
            bootstrap: format!("127.0.0.1:{}", plan.client_port),
            libs,
            log: Arc::default(),
            node: None,
            guard: Guard::start(folder.path()),
            folder,
        };
        kafka.format(plan.format)?;
        kafka.run()?;
        Ok(kafka)
    }

    /// Prepares the empty data folder, as a node refuses to start on one without an identity.
    fn format(&self, identity: &[&str]) -> Result<(), String> {
        let output = self
            .java()
            .args(["kafka.tools.StorageTool", "format"])
            .args(identity)
            .args(["--cluster-id", CLUSTER_ID, "--config", "node.properties"])
            .output()
            .map_err(|error| no_java(&error))?;
        if output.status.success() {
            return Ok(());
        }
        let said = [output.stdout, output.stderr].concat();
        Err(format!("failed to format Kafka's storage:\n{}", String::from_utf8_lossy(&said)))
    }

    /// Starts the JVM and waits until it serves.
    fn run(&mut self) -> Result<(), String> {
        self.log.enter(Phase::Starting);
        let (output, jvm_output) = std::io::pipe().expect("a process has room for a pipe");
        let mut command = self.java();
        command.args(["kafka.Kafka", "node.properties"]);
        command.stdout(jvm_output.try_clone().expect("a process has room for a pipe"));
        command.stderr(jvm_output);
        let jvm = command.spawn().map_err(|error| no_java(&error))?;
        // It holds our copies of the end that the JVM writes on, and the log must end when the JVM does.
        drop(command);
        let log = Arc::clone(&self.log);
        let log_reader = thread::Builder::new()
            .name("kafka log".to_owned())
            .spawn(move || log.read(output))
            .expect("the system has room for a thread");
        self.node = Some(Node { jvm, log_reader });

        let phase = self.log.wait_until(START_MAX, |phase| phase != Phase::Starting);
        if phase == Phase::Started && TcpStream::connect(&self.bootstrap).is_ok() {
            return Ok(());
        }
        self.kill();
        let what = match phase {
            Phase::Starting => format!("did not start within {START_MAX:?}"),
            Phase::Started => format!("started and does not listen on {}", self.bootstrap),
            Phase::Ended => "ended while it started".to_owned(),
        };
        Err(format!("Kafka {what}. Its log ends:\n{}", self.log_tail()))
    }

    /// Returns a command that lacks only the class to run and its arguments.
    fn java(&self) -> Command {
        let mut command = Command::new("java");
        command.current_dir(self.folder.path()).stdin(Stdio::null());
        command.process_group(self.guard.group());
        // A small heap, and what starts fastest: one collector thread and the quick compiler alone.
        command.args(["-Xmx384m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"]);
        command.arg("-Dlog4j2.configurationFile=log4j2.properties");
        // The JVM, not a shell, reads the `*` as "every jar in this folder".
        command.arg("-cp").arg(self.libs.join("*"));
        command
    }
}

impl Drop for Kafka {
    fn drop(&mut self) {
        self.kill();
    }
}

// === impl Node ===

impl Node {
    /// Asks the JVM to stop.
    fn terminate(&self) {
        let id = self.jvm.id().to_string();
        // By a shell, because the standard library sends no signal but SIGKILL. The id cannot be someone else's, as
        // nobody has waited for the child.
        let sent = Command::new("sh").args(["-c", "kill -s TERM \"$1\"", "sh", &id]).status();
        let sent = sent.expect("every Unix has a shell");
        assert!(sent.success(), "failed to send SIGTERM to Kafka, process {id}");
    }

    fn kill(mut self) {
        self.jvm.kill().expect("an own child can be signalled");
        self.reap();
    }

    /// Waits for a JVM that has ended or is about to.
    fn reap(mut self) {
        self.jvm.wait().expect("an own child can be waited for");
        self.log_reader.join().expect("reading the log does not panic");
    }
}

// === impl Guard ===

impl Guard {
    fn start(folder: &Path) -> Guard {
        // `setsid` leaves the group, which may then be killed as a whole, and the folder deleted after it.
        const SCRIPT: &str = r#"
            read -r _
            exec setsid sh -c 'kill -s KILL -- "-$1"; rm -rf -- "$2"' sh "$$" "$1"
        "#;
        let shell = Command::new("sh")
            .args(["-c", SCRIPT, "sh"])
            .arg(folder)
            .stdin(Stdio::piped())
            // Whoever reads this process's output is not to wait for the guard too.
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .expect("every Unix has a shell");
        Guard(shell)
    }

    /// Returns the process group that dies with this process.
    fn group(&self) -> i32 {
        self.0.id().try_into().expect("the kernel's process ids are positive i32")
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        self.0.wait().expect("an own child can be waited for");
    }
}

// === impl Log ===

impl Log {
    /// Keeps what the JVM writes, until it ends.
    fn read(&self, output: PipeReader) {
        // A read error cannot be told from the end, and means the same: nothing more will come.
        for line in BufReader::new(output).split(b'\n').map_while(Result::ok) {
            let line = String::from_utf8_lossy(&line).into_owned();
            let mut state = self.state();
            if line.contains(STARTED) {
                state.phase = Phase::Started;
                self.changed.notify_all();
            }
            if state.lines.len() == LOG_LINES_MAX {
                state.lines.pop_front();
            }
            state.lines.push_back(line);
        }
        self.enter(Phase::Ended);
    }

    fn enter(&self, phase: Phase) {
        self.state().phase = phase;
        self.changed.notify_all();
    }

    /// Waits until the phase is one that is wanted, at most `wait_max`, and returns the phase then.
    fn wait_until(&self, wait_max: Duration, wanted: impl Fn(Phase) -> bool) -> Phase {
        let waited =
            self.changed.wait_timeout_while(self.state(), wait_max, |state| !wanted(state.phase));
        waited.expect("nothing panics while it holds the log").0.phase
    }

    fn tail(&self) -> String {
        self.state().lines.iter().map(|line| format!("{line}\n")).collect()
    }

    fn state(&self) -> MutexGuard<'_, LogState> {
        self.state.lock().expect("nothing panics while it holds the log")
    }
}

// === what a node is made of ===

/// Returns the folder of Kafka's jars.
fn libs() -> Result<PathBuf, String> {
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

fn no_java(error: &Error) -> String {
    match error.kind() {
        ErrorKind::NotFound => {
            "the real Kafka needs Java, which is missing; run `make test`".into()
        }
        _ => format!("failed to run java: {error}"),
    }
}

/// Returns ports on which nothing listens.
///
/// They lie below the range from which Linux takes the ports of outgoing connections (32768 and up). One from that
/// range, as binding port 0 gives, could be handed to any client while the node is down, even to one that tries to
/// reach that very port and so would connect to itself.
pub fn free_ports<const NUMBER: usize>() -> [u16; NUMBER] {
    // A random place to begin, so that two test processes do not try the same ports at the same moment.
    let first = (RandomState::new().hash_one("port") % 10_000) as u16;
    let ports = (0..10_000).map(|step| 20_000 + (first + step) % 10_000);
    let mut free = ports.filter_map(|port| TcpListener::bind(("127.0.0.1", port)).ok());
    // All stay bound until all are found, or the second could be the first.
    let bound = [(); NUMBER].map(|()| free.next().expect("some of 10,000 ports are free"));
    bound.map(|listener| listener.local_addr().expect("a bound listener has an address").port())
}

/// Returns the node's configuration. What it does not name is as Kafka ships it.
fn node(client_port: u16, controller_port: u16) -> String {
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

/// Everything on standard output. Kafka brings no configuration in its jars, and without one log4j is silent.
const LOG4J: &str = "\
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

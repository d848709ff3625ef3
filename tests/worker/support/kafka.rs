//! A real Apache Kafka, for the tests that a mock cannot pass: transactions, rebalances, a broker
//! that goes away.
//!
//! It is one KRaft node, broker and controller in one JVM, on two ports of the loopback address,
//! with its data in a temporary folder; [`Kafka::start_all`] starts nodes of a given configuration
//! as one cluster. `make test` fetches Java and the jars; without them these tests fail and say so,
//! because a run that left them out would prove nothing. A node takes about four seconds to start,
//! so most tests use [`shared`] and keep apart by topic and group names; a test that stops its
//! broker starts one of its own.
//!
//! # Invariants
//!
//! - No JVM outlives the test process, however that ends: see [`Guard`]. Rust drops no statics, and
//!   a process killed from outside drops nothing at all.
//! - Ports and data stay the same for the life of a [`Kafka`], through [`Kafka::restart`] and
//!   [`Kafka::kill`].
//!
//! This file knows the server only. Topics, records and groups are the business of the clients.

mod configuration;
mod guard;
mod log;

use std::fs;
use std::io::{Error, ErrorKind};
use std::net::TcpStream;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, OnceLock};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use tempfile::TempDir;

pub use configuration::{FOR_TESTS, free_ports};
use configuration::{LOG4J, libs, node};
use guard::Guard;
use log::{Log, Phase};

/// How long a node may take to start, on a busy machine with two cores.
const START_MAX: Duration = Duration::from_secs(90);

/// How long a node may take to stop cleanly.
const STOP_MAX: Duration = Duration::from_secs(60);

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

/// Returns the node that all tests of this binary share, started on first use.
///
/// # Panics
///
/// Panics where it could not be started; every later call then panics with the same message at
/// once.
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
    /// Panics with the end of the log where it does not within [`START_MAX`], or where Java or the
    /// jars are missing.
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

    /// Restarts the node without what it had of a partition: it goes on with an empty one, as after
    /// an election that wasn't clean, or with a disk of its own that was replaced.
    #[track_caller]
    pub fn restart_without(&mut self, topic: &str, partition: i32) {
        self.stop();
        let log = self.folder.path().join(format!("data/{topic}-{partition}"));
        fs::remove_dir_all(&log).unwrap_or_else(|error| panic!("{}: {error}", log.display()));
        self.restart();
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
        // It holds our copies of the end that the JVM writes on, and the log must end when the JVM
        // does.
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
        // By a shell, because the standard library sends no signal but SIGKILL. The id cannot be
        // someone else's, as nobody has waited for the child.
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

fn no_java(error: &Error) -> String {
    match error.kind() {
        ErrorKind::NotFound => {
            "the real Kafka needs Java, which is missing; run `make test`".into()
        }
        _ => format!("failed to run java: {error}"),
    }
}

//! A worker process, and what its admin port says.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::OnceLock;
use std::time::Duration;

use super::{CAPVEC, Cluster, eventually, tiny_package};

/// A worker process.
pub struct Worker {
    child: Child,
    /// Where its admin port is, once that is known.
    admin: OnceLock<String>,
    log: PathBuf,
    _folder: tempfile::TempDir,
}

impl Worker {
    /// Starts `capvec run` from `topic` to `topic.out`, rejections to `topic.dead`, with the tiny
    /// package and the hash embedder; `options` come over that, as `section.key=value`.
    pub fn start(cluster: &Cluster, topic: &str, options: &[&str]) -> Worker {
        let mut program = Command::new(CAPVEC);
        program.arg("run");
        Worker::launch(program, cluster, topic, options)
    }

    /// As [`Worker::start`], with a program that takes the options of `capvec run`.
    ///
    /// The system chooses the admin port, since one that is chosen here could be another's by then,
    /// and the log tells it. Where the log can't be read, the port has to be set by an option.
    pub fn launch(
        mut command: Command,
        cluster: &Cluster,
        topic: &str,
        options: &[&str],
    ) -> Worker {
        let folder = tempfile::tempdir().unwrap();
        let config = folder.path().join("capvec.toml");
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
            listen = "127.0.0.1:0"
            [log]
            format = "text"
            filter = "debug"
            "#,
            bootstrap = cluster.bootstrap,
            package = tiny_package().display(),
        );
        std::fs::write(&config, text).unwrap();
        let log = folder.path().join("log");
        let log_file = std::fs::File::create(&log).unwrap();
        command.arg("--config").arg(&config);
        let admin = OnceLock::new();
        for option in options {
            command.args(["--set", option]);
            if let Some(address) = option.strip_prefix("admin.listen=") {
                admin.set(address.to_owned()).expect("it is set once");
            }
        }
        let child = command.stdin(Stdio::null()).stderr(log_file).spawn().unwrap();
        Worker { child, admin, log, _folder: folder }
    }

    /// Returns the address of its admin port; waits for it, where it isn't known yet.
    #[track_caller]
    pub fn admin(&self) -> &str {
        eventually("the worker says where its admin port is", || self.known_admin())
    }

    /// Returns the address of its admin port, once the log has it.
    fn known_admin(&self) -> Option<&str> {
        if let Some(known) = self.admin.get() {
            return Some(known);
        }
        let log = self.log();
        // A line that is being written may lack the end of the address.
        let mut lines = log.split_inclusive('\n').filter(|line| line.ends_with('\n'));
        let line = lines.find(|line| line.contains("serving /metrics"))?;
        let address = line.split_once(" address=")?.1.split_whitespace().next()?;
        Some(self.admin.get_or_init(|| address.to_owned()))
    }

    /// Returns whether `/readyz` says that it is ready. It mustn't have ended.
    #[track_caller]
    pub fn is_ready(&mut self) -> bool {
        if let Some(status) = self.ended() {
            panic!("the worker ended with {status}:\n{}", self.log());
        }
        self.get("/readyz").is_some_and(|(status, _)| status == 200)
    }

    /// Waits until `/readyz` says so.
    #[track_caller]
    pub fn ready(mut self) -> Worker {
        eventually("the worker is ready", || self.is_ready().then_some(()));
        self
    }

    /// Asks an admin endpoint; `None` where nobody answers.
    pub fn get(&self, path: &str) -> Option<(u16, String)> {
        http_get(self.known_admin()?, path)
    }

    /// Returns the value of a metric's series, written as in the text format.
    pub fn metric(&self, series: &str) -> Option<f64> {
        metric(self.known_admin()?, series)
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
        // The last line may be written in part.
        String::from_utf8_lossy(&std::fs::read(&self.log).unwrap()).into_owned()
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

/// Returns the value of a metric's series at an admin address.
pub fn metric(admin: &str, series: &str) -> Option<f64> {
    let (_, text) = http_get(admin, "/metrics")?;
    value_in(&text, series)
}

/// Returns the value of a series in the text format.
pub fn value_in(metrics: &str, series: &str) -> Option<f64> {
    let of_series = |line: &&str| line.strip_prefix(series).is_some_and(|r| r.starts_with(' '));
    metrics.lines().find(of_series)?.rsplit_once(' ')?.1.parse().ok()
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

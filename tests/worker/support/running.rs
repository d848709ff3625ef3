//! A worker in this process.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use capvec::config::Config;
use capvec::metrics::Metrics;
use capvec::pipeline::{self, Worker};
use capvec::shutdown::Shutdown;

use super::eventually;

/// How long a worker may take to end whose test has failed: it may stand still, which is why.
const LEFT_MAX: Duration = Duration::from_secs(10);

/// A worker, drained when the value is dropped. It must end well, unless the test fails anyway.
pub struct Running {
    /// Until it ends.
    worker: Option<Worker>,
    shutdown: Shutdown,
}

impl Running {
    /// Starts a worker.
    #[track_caller]
    pub fn start(config: &Config) -> Running {
        let shutdown = Shutdown::default();
        let worker = pipeline::start(config, &shutdown).unwrap();
        Running::of(worker, shutdown)
    }

    /// Takes a worker that was started with this word.
    pub fn of(worker: Worker, shutdown: Shutdown) -> Running {
        Running { worker: Some(worker), shutdown }
    }

    /// Returns where its admin endpoints are.
    pub fn admin(&self) -> SocketAddr {
        self.worker().admin()
    }

    /// Returns its metrics, which outlive it.
    pub fn metrics(&self) -> Metrics {
        self.worker().metrics().clone()
    }

    /// Returns the value of a metric's series, written as in the text format.
    #[track_caller]
    pub fn metric(&self, series: &str) -> f64 {
        value_of(self.worker().metrics(), series)
    }

    /// Stops it as SIGTERM does; it must end well.
    #[track_caller]
    pub fn stop(mut self) {
        self.drain();
    }

    /// Stops it as a stage that fails does, and returns what it says.
    #[track_caller]
    pub fn abort(mut self, before_its_end: impl FnOnce()) -> anyhow::Result<()> {
        self.shutdown.abort();
        before_its_end();
        self.end()
    }

    /// Waits until it ends by itself, and returns what it says.
    #[track_caller]
    pub fn ended(mut self) -> anyhow::Result<()> {
        self.end()
    }

    fn worker(&self) -> &Worker {
        self.worker.as_ref().expect("it is there until it ends")
    }

    #[track_caller]
    fn drain(&mut self) {
        self.shutdown.drain();
        self.end().unwrap();
    }

    #[track_caller]
    fn end(&mut self) -> anyhow::Result<()> {
        let worker = self.worker.take().expect("it ends once");
        let waiting = std::thread::spawn(|| worker.wait());
        eventually("the worker ends", || waiting.is_finished().then_some(()));
        waiting.join().expect("waiting doesn't panic")
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            if self.worker.is_some() {
                self.drain();
            }
            return;
        }
        self.shutdown.abort();
        let Some(worker) = self.worker.take() else { return };
        let waiting = std::thread::spawn(|| worker.wait());
        let deadline = Instant::now() + LEFT_MAX;
        while !waiting.is_finished() && Instant::now() < deadline {
            std::thread::park_timeout(Duration::from_millis(20));
        }
    }
}

/// Returns the value of a metric's series, written as in the text format.
#[track_caller]
pub fn value_of(metrics: &Metrics, series: &str) -> f64 {
    let text = metrics.render();
    let line = text.lines().find(|l| l.strip_prefix(series).is_some_and(|r| r.starts_with(' ')));
    line.unwrap_or_else(|| panic!("no {series}")).rsplit_once(' ').unwrap().1.parse().unwrap()
}

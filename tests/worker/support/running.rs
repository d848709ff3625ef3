//! A worker in this process.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use capvec::config::Config;
use capvec::embed::Embedder;
use capvec::embed::hash::HashEmbedder;
use capvec::embed::load::Embedders;
use capvec::metrics::Metrics;
use capvec::pipeline::{self, Worker};
use capvec::shutdown::Shutdown;

use super::eventually;
use super::worker::value_in;

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
        Running { worker: Some(worker), shutdown }
    }

    /// Starts a worker with an embedder that the test makes around the hash embedder, and with
    /// batches of at most so many tokens.
    #[track_caller]
    pub fn start_with<E: Embedder + 'static>(
        config: &Config,
        embedder: impl FnOnce(HashEmbedder) -> E,
        tokens_max: usize,
    ) -> Running {
        let shutdown = Shutdown::default();
        let worker = pipeline::start_with(config, &shutdown, |_, package| {
            let hash = HashEmbedder::new(package.manifest.network.dim);
            Ok(Embedders::without_runtime(Box::new(embedder(hash)), tokens_max))
        });
        Running { worker: Some(worker.unwrap()), shutdown }
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

/// Returns why a worker didn't start.
#[track_caller]
pub fn why_not(started: anyhow::Result<Worker>) -> String {
    match started {
        Ok(_) => panic!("it started"),
        Err(error) => format!("{error:#}"),
    }
}

/// Returns the value of a metric's series, written as in the text format.
#[track_caller]
pub fn value_of(metrics: &Metrics, series: &str) -> f64 {
    value_in(&metrics.render(), series).unwrap_or_else(|| panic!("no {series}"))
}

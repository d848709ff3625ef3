//! The worker at work between a producer and a reader, and the two ways to load it.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};

use super::reader::{self, Counts, Receipt, Tally};
use crate::cli::Interrupted;
use crate::cli::bench::captions::BenchCaption;
use crate::cli::bench::cluster::{Cluster, PARTITIONS};
use crate::cli::bench::feed::Feed;
use crate::cli::bench::process::own_cpu_seconds;
use crate::cli::reading::Reading;
use crate::config::Config;
use crate::embed::load::load;
use crate::metrics::Metrics;
use crate::pipeline::{self, Worker};
use crate::shutdown::{Shutdown, Wanted};

/// How long the group may take to give the worker its partitions.
const ASSIGNMENT_TIMEOUT: Duration = Duration::from_secs(60);

/// How long nothing may come out while something is due.
const STALL: Duration = Duration::from_secs(60);

/// Between two looks at how far the worker is: how exact the ends of a window are. Looking takes
/// from the worker's cores.
const TICK: Duration = Duration::from_millis(2);

/// How long before its first caption an open load begins.
const LEAD: Duration = Duration::from_millis(50);

/// Captions that are ahead of the worker at least under a closed load.
const AHEAD_MIN: u64 = 128;

/// Captions that are ahead of the worker at most: the embedded broker keeps more of both topics.
const AHEAD_MAX: u64 = 20_000;

/// The share of them that is through before more are sent. They leave together, as a backlog that
/// waits in its topic would come: sent one by one, each is a request of its own to a broker that
/// has the same cores.
const REFILL: f64 = 0.25;

/// Captions ahead of the worker, in seconds of its work.
const AHEAD_SECONDS: f64 = 0.25;

/// The worker, its input and its output.
pub struct Rig {
    worker: Option<Worker>,
    metrics: Metrics,
    embedding: Embedding,
    shutdown: Shutdown,
    reader: Reading<Tally>,
    feed: Feed,
    ahead: u64,
    /// Dropped last: no client outlives its broker.
    _cluster: Cluster,
}

/// How the worker's network runs, which may have been measured at its start.
#[derive(Clone, Copy, Debug, Default)]
pub struct Embedding {
    /// Passes at a time on each device.
    pub sessions: usize,
    /// Compute threads of each.
    pub threads: usize,
    /// Tokens of a batch.
    pub tokens_max: usize,
}

/// Throughput over a steady window.
#[derive(Clone, Copy, Debug)]
pub struct Rate {
    /// Captions a second.
    pub captions_per_second: f64,
    /// Their tokens a second.
    pub tokens_per_second: f64,
    /// The share of the time for which a device had a pass under way, on average.
    pub duty_cycle: f64,
    /// CPUs that the process kept busy, its feed, reader and broker among it.
    pub cpu_cores: Option<f64>,
}

/// How long a caption of an open load took, from when it was due.
#[derive(Clone, Copy, Debug)]
pub struct Latency {
    /// When it was due, from the beginning of the load.
    pub due: Duration,
    /// Its tokens.
    pub tokens: usize,
    /// Until the reader had its vector, in milliseconds.
    pub received_ms: f64,
    /// From when the broker had the caption until it had the vector, where its topics say when;
    /// exact to a millisecond.
    pub broker_to_broker_ms: Option<f64>,
}

impl Drop for Rig {
    fn drop(&mut self) {
        // After an error that isn't the worker's: its threads must not outlive the broker.
        self.shutdown.abort();
        drop(self.stop());
    }
}

impl Rig {
    /// Starts the worker and waits until it has its partitions.
    ///
    /// # Errors
    ///
    /// When the worker fails or doesn't get its partitions.
    pub fn start(cluster: Cluster, config: &Config, shutdown: Shutdown) -> anyhow::Result<Rig> {
        let reader = reader::start(config)?;
        // Every caption leaves by itself, as the captions of an open load do.
        let feed = Feed::new(config, 0)?;
        let mut embedding = Embedding::default();
        let worker = pipeline::start_with(config, &shutdown, |config, package| {
            let loaded = load(config, package)?;
            (embedding.sessions, embedding.threads) = (loaded.sessions, loaded.threads);
            embedding.tokens_max = loaded.budget.tokens();
            Ok(loaded)
        })?;
        let mut rig = Rig {
            metrics: worker.metrics().clone(),
            worker: Some(worker),
            embedding,
            shutdown,
            reader,
            feed,
            ahead: AHEAD_MIN,
            _cluster: cluster,
        };
        let deadline = Instant::now() + ASSIGNMENT_TIMEOUT;
        while rig.metrics.source.partitions.get() < i64::from(PARTITIONS) {
            rig.check()?;
            ensure!(Instant::now() < deadline, "no partitions after {ASSIGNMENT_TIMEOUT:?}");
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(rig)
    }

    /// Returns how the worker's network runs.
    pub fn embedding(&self) -> Embedding {
        self.embedding
    }

    /// Says how fast the worker may be, for the input to be far enough ahead of it.
    pub fn expect(&mut self, captions_per_second: f64) {
        let ahead = (captions_per_second * AHEAD_SECONDS) as u64;
        self.ahead = ahead.clamp(AHEAD_MIN, AHEAD_MAX);
    }

    /// Stops the worker and waits for its end.
    ///
    /// # Errors
    ///
    /// When it failed, now or before.
    pub fn stop(&mut self) -> anyhow::Result<()> {
        self.shutdown.drain();
        match self.worker.take() {
            Some(worker) => worker.wait().context("the worker failed"),
            None => Ok(()),
        }
    }

    fn take_receipts(&self) -> Vec<Receipt> {
        std::mem::take(&mut self.reader.tally().receipts)
    }

    /// Finds out whether all goes on.
    fn check(&mut self) -> anyhow::Result<()> {
        match self.shutdown.wanted() {
            Wanted::Run => self.reader.check(),
            Wanted::Drain => bail!(Interrupted),
            Wanted::Abort => {
                self.stop()?;
                bail!("the worker has stopped")
            }
        }
    }

    /// Keeps captions waiting, and returns what comes out over a steady window, without the start
    /// and without what is left at its end.
    ///
    /// # Errors
    ///
    /// When the worker fails, or nothing comes out.
    pub fn closed(&mut self, captions: &[BenchCaption], window: Duration) -> anyhow::Result<Rate> {
        // Once all that was ahead at first is through, the queues are as full as they stay.
        let steady = self.feed.sent() + self.ahead;
        self.work_until(captions, |_, counts| counts.captions >= steady)?;
        let (first, began) = self.next_batch(captions)?;
        let embed = self.metrics.embed.clone();
        let busy = move || (embed.mean_busy_seconds(), own_cpu_seconds());
        let busy_first = busy();
        self.work_until(captions, |now, _| now - began >= window)?;
        let (last, ended) = self.next_batch(captions)?;
        let busy_last = busy();
        self.await_all()?;
        let seconds = (ended - began).as_secs_f64();
        Ok(Rate {
            duty_cycle: (busy_last.0 - busy_first.0) / seconds,
            cpu_cores: busy_last.1.zip(busy_first.1).map(|(last, first)| (last - first) / seconds),
            captions_per_second: (last.captions - first.captions) as f64 / seconds,
            tokens_per_second: (last.tokens - first.tokens) as f64 / seconds,
        })
    }

    /// Returns when the next vectors begin to come, and how much had come before them. Vectors come
    /// a batch at a time: between two such moments lie whole batches.
    fn next_batch(&mut self, captions: &[BenchCaption]) -> anyhow::Result<(Counts, Instant)> {
        let before = self.reader.tally().counts;
        let at = self.work_until(captions, |_, counts| counts != before)?;
        Ok((before, at))
    }

    /// Keeps captions waiting until `is_done`, and returns when that was.
    fn work_until(
        &mut self,
        captions: &[BenchCaption],
        is_done: impl Fn(Instant, Counts) -> bool,
    ) -> anyhow::Result<Instant> {
        let (mut seen, mut moved) = (self.reader.tally().counts, Instant::now());
        loop {
            let (now, counts) = (Instant::now(), self.reader.tally().counts);
            if is_done(now, counts) {
                return Ok(now);
            }
            self.check()?;
            if counts != seen {
                (seen, moved) = (counts, now);
            }
            ensure!(now - moved < STALL, "no vector for {STALL:?}");
            let refill = (self.ahead as f64 * REFILL) as u64;
            if self.feed.sent() + refill <= counts.captions + self.ahead {
                while self.feed.sent() < counts.captions + self.ahead {
                    let caption = &captions[self.feed.sent() as usize % captions.len()];
                    self.feed.send(&caption.text)?;
                }
            }
            std::thread::sleep(TICK);
        }
    }

    /// Waits until every caption that was sent has come out.
    fn await_all(&mut self) -> anyhow::Result<()> {
        let (mut seen, mut moved) = (self.reader.tally().counts, Instant::now());
        loop {
            let counts = self.reader.tally().counts;
            let sent = self.feed.sent();
            if counts.captions >= sent {
                return Ok(());
            }
            self.check()?;
            if counts != seen {
                (seen, moved) = (counts, Instant::now());
            }
            let missing = sent - counts.captions;
            ensure!(moved.elapsed() < STALL, "{missing} of {sent} captions never came out");
            std::thread::sleep(TICK);
        }
    }

    /// Sends captions when they are due, however the worker does, and returns how long each took.
    ///
    /// # Errors
    ///
    /// When the worker fails, or a caption doesn't come out.
    pub fn open(
        &mut self,
        captions: &[BenchCaption],
        schedule: &[Duration],
    ) -> anyhow::Result<Vec<Latency>> {
        self.await_all()?;
        drop((self.take_receipts(), self.feed.take_appended()));
        let first = self.feed.sent();
        let start = Instant::now() + LEAD;
        for due in schedule {
            self.check()?;
            std::thread::sleep((start + *due).saturating_duration_since(Instant::now()));
            let caption = &captions[self.feed.sent() as usize % captions.len()];
            self.feed.send(&caption.text)?;
        }
        self.await_all()?;
        let came: HashMap<u64, i64> = self
            .feed
            .take_appended()
            .into_iter()
            .map(|caption| (caption.number, caption.ms))
            .collect();
        let latencies = self.take_receipts().into_iter().filter_map(|receipt| {
            let due = *schedule.get(usize::try_from(receipt.number.checked_sub(first)?).ok()?)?;
            let left_ms = receipt.appended_ms.zip(came.get(&receipt.number));
            Some(Latency {
                due,
                tokens: captions[receipt.number as usize % captions.len()].ids.len(),
                received_ms: receipt.at.saturating_duration_since(start + due).as_secs_f64() * 1e3,
                broker_to_broker_ms: left_ms.map(|(left, came)| (left - came) as f64),
            })
        });
        Ok(latencies.collect())
    }
}

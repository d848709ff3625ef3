//! How the worker is: stages write it, the probes of [`crate::admin`] read it.
//!
//! The worker is sick when the source's thread hasn't polled for a while, or nothing has come of
//! the oldest caption in the worker, or of a forward pass, for too long: then only a restart helps.
//! It is ready once the brokers know the topics, the model has run once and the group has answered,
//! until a stop begins or a stage fails.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::lock::lock;

/// The source polls every few milliseconds; this long without is a hang.
const POLL_AGE_MAX: Duration = Duration::from_secs(30);

/// What the probes look at.
#[derive(Debug)]
pub struct Health {
    started: Instant,
    brokers_answered: AtomicBool,
    model_loaded: AtomicBool,
    assigned: AtomicBool,
    stopping: AtomicBool,
    /// Milliseconds since `started`, plus 1; 0 for never.
    last_poll: AtomicU64,
    oldest_unsettled: AtomicU64,
    /// When each embedder's pass began; 0 where it has none.
    passes: Mutex<Vec<Arc<AtomicU64>>>,
    stall_timeout: Duration,
}

/// Tells the probes of the passes of one embedder. A pass that hangs outlives its captions: once
/// their partitions are another worker's, no age of theirs tells of it.
#[derive(Debug)]
pub struct PassWatch {
    health: Arc<Health>,
    began: Arc<AtomicU64>,
}

impl PassWatch {
    /// Runs a pass.
    pub fn run<T>(&self, pass: impl FnOnce() -> T) -> T {
        self.began.store(self.health.stamp(Instant::now()), Ordering::Release);
        let result = pass();
        self.began.store(0, Ordering::Release);
        result
    }
}

impl Health {
    /// Returns the health of a worker that has just started.
    pub fn new(stall_timeout: Duration) -> Arc<Health> {
        Arc::new(Health {
            started: Instant::now(),
            brokers_answered: AtomicBool::new(false),
            model_loaded: AtomicBool::new(false),
            assigned: AtomicBool::new(false),
            stopping: AtomicBool::new(false),
            last_poll: AtomicU64::new(0),
            oldest_unsettled: AtomicU64::new(0),
            passes: Mutex::default(),
            stall_timeout,
        })
    }

    /// The brokers have answered for the topics.
    pub fn brokers_answered(&self) {
        self.brokers_answered.store(true, Ordering::Release);
    }

    /// The model has been loaded and has run once.
    pub fn model_loaded(&self) {
        self.model_loaded.store(true, Ordering::Release);
    }

    /// The group has answered with an assignment, if an empty one.
    pub fn assigned(&self) {
        self.assigned.store(true, Ordering::Release);
    }

    /// Returns whether the group has answered.
    pub fn is_assigned(&self) -> bool {
        self.assigned.load(Ordering::Acquire)
    }

    /// A stop has begun, or a stage has failed.
    pub fn stopping(&self) {
        self.stopping.store(true, Ordering::Release);
    }

    /// The source has polled.
    pub fn polled(&self) {
        self.last_poll.store(self.stamp(Instant::now()), Ordering::Release);
    }

    /// The oldest unsettled message has been the oldest since then.
    pub fn oldest_unsettled(&self, since: Option<Instant>) {
        let stamp = since.map_or(0, |since| self.stamp(since));
        self.oldest_unsettled.store(stamp, Ordering::Release);
    }

    /// Returns what tells of another embedder's passes.
    pub fn watch_passes(self: &Arc<Self>) -> PassWatch {
        let began = Arc::<AtomicU64>::default();
        lock(&self.passes).push(Arc::clone(&began));
        PassWatch { health: Arc::clone(self), began }
    }

    fn stamp(&self, at: Instant) -> u64 {
        at.saturating_duration_since(self.started).as_millis() as u64 + 1
    }

    fn age(&self, stamp: &AtomicU64) -> Option<Duration> {
        let at = stamp.load(Ordering::Acquire).checked_sub(1)?;
        Some(self.started.elapsed().saturating_sub(Duration::from_millis(at)))
    }

    /// Returns why the worker should be restarted, if it should.
    pub fn sick(&self) -> Option<String> {
        if let Some(age) = self.age(&self.last_poll).filter(|age| *age > POLL_AGE_MAX) {
            return Some(format!("the consumer was last polled {age:.1?} ago"));
        }
        let is_long = |age: &Duration| *age > self.stall_timeout;
        let passes = lock(&self.passes);
        let longest = passes.iter().filter_map(|began| self.age(began)).max();
        if let Some(age) = longest.filter(is_long) {
            return Some(format!("a forward pass has been under way for {age:.1?}"));
        }
        let age = self.age(&self.oldest_unsettled).filter(is_long)?;
        Some(format!("nothing has come of the oldest caption in the worker for {age:.1?}"))
    }

    /// Returns what the worker still waits for, if anything.
    pub fn not_ready(&self) -> Option<&'static str> {
        if self.stopping.load(Ordering::Acquire) {
            return Some("stopping");
        }
        if !self.brokers_answered.load(Ordering::Acquire) {
            return Some("the brokers haven't answered for the topics yet");
        }
        if !self.model_loaded.load(Ordering::Acquire) {
            return Some("the model is being loaded");
        }
        if !self.assigned.load(Ordering::Acquire) {
            return Some("the group hasn't answered yet");
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ready_from_the_first_assignment_to_the_stop() {
        let health = Health::new(Duration::from_secs(1));
        assert!(health.not_ready().is_some_and(|why| why.contains("brokers")));
        health.brokers_answered();
        assert!(health.not_ready().is_some_and(|why| why.contains("model")));
        health.model_loaded();
        assert!(health.not_ready().is_some_and(|why| why.contains("group")));
        health.assigned();
        assert_eq!(health.not_ready(), None);
        health.stopping();
        assert_eq!(health.not_ready(), Some("stopping"));
    }

    #[test]
    fn a_pass_that_hangs_is_a_reason_to_restart_without_captions_too() {
        let health = Health::new(Duration::ZERO);
        let watches = [health.watch_passes(), health.watch_passes()];
        assert_eq!(health.sick(), None);
        watches[1].run(|| {
            let began = Instant::now();
            while began.elapsed() < Duration::from_millis(2) {
                std::thread::yield_now();
            }
            assert!(health.sick().is_some_and(|why| why.contains("a forward pass")));
        });
        assert_eq!(health.sick(), None);
    }

    #[test]
    fn a_caption_that_stays_is_a_reason_to_restart() {
        let health = Health::new(Duration::ZERO);
        assert_eq!(health.sick(), None);
        health.oldest_unsettled(Some(health.started));
        while health.started.elapsed() < Duration::from_millis(2) {
            std::thread::yield_now();
        }
        assert!(health.sick().is_some_and(|why| why.contains("in the worker")));
        health.oldest_unsettled(None);
        assert_eq!(health.sick(), None);
    }
}

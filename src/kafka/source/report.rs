//! What the source tells of itself, at each turn: metrics, what the probes look at, and lines about
//! what it waits for; and what it hears of its partitions' ends.

use std::time::Instant;

use rdkafka::consumer::Consumer;

use super::{Source, SourceError};

impl Source {
    pub(super) fn report(&mut self) {
        let now = Instant::now();
        self.report_in_flight(now);
        self.report_ends();
        self.report_wait(now);
    }

    fn report_in_flight(&mut self, now: Instant) {
        let in_flight = self.ledger.in_flight();
        self.metrics.in_flight.set(in_flight.messages as i64);
        self.metrics.in_flight_bytes.set(in_flight.bytes as i64);
        let oldest = self.ledger.oldest();
        let seconds_since = |since: Instant| now.duration_since(since).as_secs_f64();
        self.metrics
            .oldest_unsettled_seconds
            .set(oldest.map_or(0.0, |oldest| seconds_since(oldest.received)));
        let stalled = self.stall.since(oldest, now);
        self.metrics.stalled_seconds.set(stalled.map_or(0.0, seconds_since));
        self.health.oldest_unsettled(stalled);
    }

    /// Takes what new statistics say of the partitions.
    fn report_ends(&mut self) {
        let mut ends = self.consumer.context().take_ends();
        self.deleted.report(&ends, &mut self.ledger);
        let mut positions = self.consumer.context().take_unheard();
        let is_fetched =
            |p: i32| self.ledger.assignment(p).is_some() && !self.placing.is_unplaced(p);
        ends.retain(|&partition, _| is_fetched(partition));
        positions.retain(|&partition, _| is_fetched(partition));
        self.ends.note(&ends, positions);
        self.ends.complete(&mut ends);
        self.lag.report(ends, &self.ledger);
    }

    fn report_wait(&mut self, now: Instant) {
        let is_first_wait = self.waiting.is_some() && !self.health.is_assigned();
        if is_first_wait && self.consumer.context().is_member() {
            self.waiting = None;
            self.health.assigned();
            tracing::info!("in the group, which has no partition for this worker so far");
        }
        if let Some(waited) = self.waiting.as_mut().and_then(|waiting| waiting.line_due(now)) {
            let brokers_up = self.metrics.brokers_up.get();
            tracing::info!(
                waited_s = waited.as_secs(),
                brokers_up,
                "waiting for the group: it gives no partitions before it knows that a member which ended \
                 without a word is gone (session.timeout.ms), and none while no broker answers"
            );
        }
    }

    /// Looks whether the worker is cut off for what it read at its start and has changed since.
    pub(super) fn look_for_renewed(&mut self) -> Result<(), SourceError> {
        match self.renewed.changed(self.metrics.brokers_up.get(), Instant::now()) {
            // A stop ends by itself.
            Some(path) if !self.stopping => Err(SourceError::Renewed { path: path.into() }),
            _ => Ok(()),
        }
    }

    /// Looks whether the consumer still hears of what there is.
    pub(super) fn listen(&mut self) -> Result<(), SourceError> {
        let is_paused = self.full.as_ref().is_some_and(|full| full.is_paused);
        let is_placed = self.leaving.is_none() && !self.placing.is_busy();
        if is_paused || !is_placed {
            // Nothing, or not everything, is fetched.
            self.ends.is_not_fetched();
        }
        let paused = (is_paused && is_placed).then_some(&self.ledger);
        Ok(self.ends.progress(Instant::now(), paused)?)
    }
}

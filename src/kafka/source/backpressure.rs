//! What the source does when a limit in flight is reached: it takes nothing until half of it is
//! free.

use std::time::{Duration, Instant};

use rdkafka::consumer::Consumer;

use super::{Source, SourceError};

/// How long the thread may not poll because a limit in flight is reached; a rebalance waits for it.
/// A transaction is mostly committed within it.
pub(super) const HOLD_MAX: Duration = Duration::from_millis(500);

/// A limit in flight is reached: nothing is taken until half of it is free.
pub(super) struct Full {
    since: Instant,
    /// Until when its time has been counted. A pause may last for minutes, and its time isn't to be
    /// told of them all at once.
    counted: Instant,
    /// Whether the partitions are paused, and the thread polls again.
    pub(super) is_paused: bool,
}

impl Source {
    pub(super) fn is_holding(&self) -> bool {
        self.full.as_ref().is_some_and(|full| !full.is_paused)
    }

    pub(super) fn apply_backpressure(&mut self) -> Result<(), SourceError> {
        let now = Instant::now();
        if let Some(full) = &mut self.full {
            let more = now.duration_since(std::mem::replace(&mut full.counted, now));
            self.metrics.paused_seconds.inc_by(more.as_secs_f64());
        }
        let in_flight = self.ledger.in_flight();
        let is_over = in_flight.messages >= self.messages_max || in_flight.bytes >= self.bytes_max;
        let is_half_free =
            in_flight.messages <= self.messages_max / 2 && in_flight.bytes <= self.bytes_max / 2;
        match &mut self.full {
            None if is_over => {
                self.full = Some(Full { since: now, counted: now, is_paused: false });
                self.metrics.paused.set(1);
                self.intake.set_full(true);
            }
            Some(full) if is_half_free => {
                self.metrics.paused.set(0);
                self.intake.set_full(false);
                let resume = full.is_paused && !self.stopping;
                self.full = None;
                if resume {
                    let first = self.turns.go_on(self.ledger.partitions(), now);
                    self.resume(&first)?;
                }
            }
            Some(full) if !full.is_paused && now.duration_since(full.since) >= HOLD_MAX => {
                full.is_paused = true;
                self.turns.paused();
                self.consumer.pause(&self.owned()).map_err(SourceError::Consumer)?;
            }
            _ => {}
        }
        let due = self.turns.due(now);
        if due.is_empty() || self.stopping { Ok(()) } else { self.resume(&due) }
    }

    /// Goes on fetching those of the partitions that are still this worker's.
    fn resume(&self, partitions: &[i32]) -> Result<(), SourceError> {
        let owned = self.ledger.partitions();
        let list = self.list(partitions.iter().copied().filter(|p| owned.contains(p)));
        self.consumer.resume(&list).map_err(SourceError::Consumer)
    }
}

//! The channels between stages: bounded, with their length, their limit and the time that senders
//! were blocked as metrics. What a sender waits with counts as in the queue.

use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvError, SendTimeoutError, Sender, TrySendError};
use prometheus::{Counter, IntGauge};

use crate::metrics::QueueMetrics;

/// The neighbour stage has ended; whoever meets this ends too.
#[derive(Debug, thiserror::Error)]
#[error("the next stage has ended")]
pub struct Closed;

/// How often a sender that waits tells of it.
const BLOCKED_STEP: Duration = Duration::from_secs(1);

/// Makes a queue of at most `limit` entries under a name for the metrics.
pub fn bounded<T>(
    name: &str,
    limit: usize,
    metrics: &QueueMetrics,
) -> (QueueSender<T>, QueueReceiver<T>) {
    let (sender, receiver) = crossbeam_channel::bounded(limit);
    let length = metrics.length.with_label_values(&[name]);
    let blocked_seconds = metrics.blocked_seconds.with_label_values(&[name]);
    metrics.limit.with_label_values(&[name]).set(limit as i64);
    (
        QueueSender { inner: sender, length: length.clone(), blocked_seconds },
        QueueReceiver { inner: receiver, length },
    )
}

/// The end that a stage puts things into. The queue closes when all clones are dropped.
#[derive(Debug)]
pub struct QueueSender<T> {
    inner: Sender<T>,
    length: IntGauge,
    blocked_seconds: Counter,
}

impl<T> Clone for QueueSender<T> {
    fn clone(&self) -> Self {
        QueueSender {
            inner: self.inner.clone(),
            length: self.length.clone(),
            blocked_seconds: self.blocked_seconds.clone(),
        }
    }
}

impl<T> QueueSender<T> {
    /// Puts `value` into the queue, waiting while it is full.
    ///
    /// # Errors
    ///
    /// When the receiving stage has ended; the value is dropped, and redelivery brings it again.
    pub fn send(&self, value: T) -> Result<(), Closed> {
        // Counted up and down, and not looked up: of two looks the older may be noted last, and an
        // idle queue would seem to have an entry for good.
        self.length.inc();
        let sent = match self.inner.try_send(value) {
            Ok(()) => Ok(()),
            Err(TrySendError::Disconnected(_)) => Err(Closed),
            Err(TrySendError::Full(value)) => self.wait_for_room(value),
        };
        if sent.is_err() {
            self.length.dec();
        }
        sent
    }

    /// The time is told piece by piece: who looks wants to know of a wait that hasn't ended.
    fn wait_for_room(&self, mut value: T) -> Result<(), Closed> {
        loop {
            let started = Instant::now();
            let sent = self.inner.send_timeout(value, BLOCKED_STEP);
            self.blocked_seconds.inc_by(started.elapsed().as_secs_f64());
            value = match sent {
                Ok(()) => return Ok(()),
                Err(SendTimeoutError::Disconnected(_)) => return Err(Closed),
                Err(SendTimeoutError::Timeout(value)) => value,
            };
        }
    }
}

/// The end that a stage takes things out of.
#[derive(Debug)]
pub struct QueueReceiver<T> {
    inner: Receiver<T>,
    length: IntGauge,
}

impl<T> Clone for QueueReceiver<T> {
    fn clone(&self) -> Self {
        QueueReceiver { inner: self.inner.clone(), length: self.length.clone() }
    }
}

impl<T> QueueReceiver<T> {
    /// Takes the next value, waiting while there is none; `None` when the queue is closed and
    /// empty.
    pub fn recv(&self) -> Option<T> {
        let received = self.inner.recv();
        self.took(received)
    }

    /// Takes the next value if there is one.
    pub fn try_recv(&self) -> Option<T> {
        let received = self.inner.try_recv().ok()?;
        self.took(Ok(received))
    }

    /// Returns the bare receiver, for `select!`; pass what it gives through
    /// [`QueueReceiver::took`].
    pub fn inner(&self) -> &Receiver<T> {
        &self.inner
    }

    /// Notes that a value was taken.
    pub fn took(&self, received: Result<T, RecvError>) -> Option<T> {
        if received.is_ok() {
            self.length.dec();
        }
        received.ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::Metrics;

    #[test]
    fn the_length_of_a_queue_that_two_threads_use_ends_at_what_is_in_it() {
        const VALUES: usize = 20_000;
        let metrics = Metrics::new().queues;
        let (sender, receiver) = bounded("test", 3, &metrics);
        let taker = std::thread::spawn(move || {
            (0..VALUES - 2).for_each(|_| assert!(receiver.recv().is_some()));
            receiver
        });
        (0..VALUES).for_each(|value| sender.send(value).unwrap());
        let receiver = taker.join().unwrap();
        let length = metrics.length.with_label_values(&["test"]);
        assert_eq!(length.get(), 2);
        assert!(metrics.blocked_seconds.with_label_values(&["test"]).get() > 0.0);
        drop(receiver);
        assert!(sender.send(0).is_err());
        assert_eq!(length.get(), 2, "what wasn't sent isn't in it");
    }
}

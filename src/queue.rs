//! The channels between stages: bounded, with their length, their limit and the time that senders
//! were blocked as metrics.

use std::time::Instant;

use crossbeam_channel::{Receiver, RecvError, Sender, TrySendError};
use prometheus::{Counter, IntGauge};

use crate::metrics::QueueMetrics;

/// The neighbour stage has ended; whoever meets this ends too.
#[derive(Debug, thiserror::Error)]
#[error("the next stage has ended")]
pub struct Closed;

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
        match self.inner.try_send(value) {
            Ok(()) => {}
            Err(TrySendError::Disconnected(_)) => return Err(Closed),
            Err(TrySendError::Full(value)) => {
                let started = Instant::now();
                self.inner.send(value).map_err(|_| Closed)?;
                self.blocked_seconds.inc_by(started.elapsed().as_secs_f64());
            }
        }
        self.length.set(self.inner.len() as i64);
        Ok(())
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
    /// Takes the next value, waiting while there is none; `None` when the queue is closed and empty.
    pub fn recv(&self) -> Option<T> {
        let received = self.inner.recv();
        self.took(received)
    }

    /// Takes the next value if there is one.
    pub fn try_recv(&self) -> Option<T> {
        let received = self.inner.try_recv().ok()?;
        self.took(Ok(received))
    }

    /// Returns the bare receiver, for `select!`; pass what it gives through [`QueueReceiver::took`].
    pub fn inner(&self) -> &Receiver<T> {
        &self.inner
    }

    /// Notes that a value was taken.
    pub fn took(&self, received: Result<T, RecvError>) -> Option<T> {
        self.length.set(self.inner.len() as i64);
        received.ok()
    }
}

//! An embedder that stands still at a gate, so that a test chooses the moment at which captions go
//! on.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};

use capvec::batch::packing::TokenBatch;
use capvec::config::Config;
use capvec::embed::hash::HashEmbedder;
use capvec::embed::{EmbedError, Embedder};

use super::Running;

/// Holds an embedder up while it is closed.
#[derive(Default)]
pub struct Gate {
    is_closed: Mutex<bool>,
    opened: Condvar,
    /// Captions of the batch that came to it last.
    inside: AtomicUsize,
}

impl Gate {
    /// Lets no batch through any more.
    pub fn close(&self) {
        *self.is_closed.lock().unwrap() = true;
    }

    /// Lets all through, the one that stands before it too.
    pub fn open(&self) {
        *self.is_closed.lock().unwrap() = false;
        self.opened.notify_all();
    }

    /// Returns how many captions the batch has that came to it last.
    pub fn inside(&self) -> usize {
        self.inside.load(Ordering::Acquire)
    }

    fn pass(&self, batch: &TokenBatch) {
        self.inside.store(batch.captions(), Ordering::Release);
        let is_closed = self.is_closed.lock().unwrap();
        drop(self.opened.wait_while(is_closed, |is_closed| *is_closed).unwrap());
    }
}

/// Gives the hash embedder's vectors, once the gate is open.
struct Stuck {
    inner: HashEmbedder,
    gate: Arc<Gate>,
}

impl Embedder for Stuck {
    fn dim(&self) -> usize {
        self.inner.dim()
    }

    fn embed(&mut self, batch: &TokenBatch) -> Result<Vec<f32>, EmbedError> {
        self.gate.pass(batch);
        self.inner.embed(batch)
    }
}

/// Starts a worker in this process whose embedder it is; the gate is open. All fit into one batch.
#[track_caller]
pub fn start(config: &Config) -> (Running, Arc<Gate>) {
    let gate = Arc::<Gate>::default();
    let stuck = |inner| Stuck { inner, gate: Arc::clone(&gate) };
    (Running::start_with(config, stuck, 8192), gate)
}

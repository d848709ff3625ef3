//! The batcher: a thread that holds what waits and cuts a batch when an embedder is free.
//!
//! Embedders ask first, by a [`Request`] with the channel that they wait on; the batch is cut after
//! that, so it holds everything that has come by then. What to cut is [`policy`]'s decision, and
//! [`packing`] makes tensors of it.

pub mod packing;
pub mod policy;

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, never, select};
use prometheus::Histogram;

use crate::metrics::BatchMetrics;
use crate::queue::QueueReceiver;
use crate::tokenize::task::PreparedCaption;
use crate::tracked::Tracked;
use packing::TokenBatch;
use policy::{Arrivals, CutReason, Decision, Limits};

/// A batch on its way to an embedder.
#[derive(Debug)]
pub struct Job {
    /// The captions, in the order of the batch.
    pub captions: Vec<Tracked<PreparedCaption>>,
    /// Their tensors.
    pub batch: TokenBatch,
}

/// A free embedder: the place to send its next batch to.
pub type Request = Sender<Job>;

/// The batcher stage.
pub struct Batcher {
    /// Captions from the tokenizers.
    pub input: QueueReceiver<Tracked<PreparedCaption>>,
    /// Free embedders.
    pub requests: Receiver<Request>,
    /// The limits of a batch.
    pub limits: Limits,
    /// Most captions that wait here; more stay in the queue before.
    pub pending_max: usize,
    /// Counts.
    pub metrics: BatchMetrics,
    /// Seconds that a caption waits.
    pub wait_seconds: Histogram,
}

impl Batcher {
    /// Runs until its queue is closed and all that waited is cut, or all embedders have ended.
    pub fn run(self) {
        let mut pending: VecDeque<Tracked<PreparedCaption>> = VecDeque::new();
        let mut free: VecDeque<Request> = VecDeque::new();
        let mut arrivals = Arrivals::Open;
        let nothing = never();
        loop {
            let mut timeout = None;
            if let Some(request) = free.front() {
                match self.decide(&pending, arrivals) {
                    Decision::Cut { captions, reason } => {
                        let job = self.cut(&mut pending, captions, reason);
                        // An embedder that has ended in the meantime has failed the worker; the
                        // batch is redelivered.
                        drop(request.send(job));
                        free.pop_front();
                        continue;
                    }
                    Decision::Nothing if arrivals == Arrivals::Ended => return,
                    Decision::Wait(duration) => timeout = Some(duration),
                    Decision::Nothing => {}
                }
            } else if pending.is_empty() && arrivals == Arrivals::Ended {
                return;
            }

            let room = pending.len() < self.pending_max && arrivals == Arrivals::Open;
            let input = if room { self.input.inner() } else { &nothing };
            let alarm = timeout.map_or_else(never, crossbeam_channel::after);
            select! {
                recv(input) -> caption => match self.input.took(caption) {
                    Some(caption) => {
                        self.take(caption, &mut pending);
                        // All that has come by now belongs into the decision.
                        while pending.len() < self.pending_max
                            && let Ok(caption) = self.input.inner().try_recv()
                        {
                            self.take(caption, &mut pending);
                        }
                    }
                    None => arrivals = Arrivals::Ended,
                },
                recv(self.requests) -> request => match request {
                    Ok(request) => free.push_back(request),
                    Err(_) => return,
                },
                recv(alarm) -> _ => {}
            }
            self.metrics.pending.set(pending.len() as i64);
        }
    }

    fn take(
        &self,
        caption: Tracked<PreparedCaption>,
        pending: &mut VecDeque<Tracked<PreparedCaption>>,
    ) {
        if !caption.origin.assignment.is_revoked() {
            pending.push_back(caption);
        }
    }

    fn decide(&self, pending: &VecDeque<Tracked<PreparedCaption>>, arrivals: Arrivals) -> Decision {
        let waited = pending.front().map_or(Duration::ZERO, |c| c.payload.ready.elapsed());
        let lengths = pending.iter().map(|caption| caption.payload.tokens.ids.len());
        self.limits.decide(lengths, waited, arrivals)
    }

    fn cut(
        &self,
        pending: &mut VecDeque<Tracked<PreparedCaption>>,
        captions: usize,
        reason: CutReason,
    ) -> Job {
        let captions: Vec<_> = pending.drain(..captions).collect();
        let batch = TokenBatch::pack(captions.iter().map(|c| c.payload.tokens.ids.as_slice()));
        let now = Instant::now();
        for caption in &captions {
            self.wait_seconds.observe((now - caption.payload.ready).as_secs_f64());
        }
        self.metrics.cut.with_label_values(&[reason.as_label()]).inc();
        self.metrics.captions.observe(batch.captions() as f64);
        self.metrics.tokens.observe(batch.tokens() as f64);
        Job { captions, batch }
    }
}

//! The batcher: a thread that holds what waits and cuts a batch when an embedder is free.
//!
//! Embedders ask first, by a [`Request`] with the channel that they wait on; the batch is cut after
//! that, so it holds everything that has come by then. What to cut is [`policy`]'s decision, and
//! [`packing`] makes tensors of it.

pub mod packing;
pub mod policy;

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, after, never, select};
use prometheus::Histogram;

use crate::kafka::sink::Finished;
use crate::metrics::BatchMetrics;
use crate::queue::{Closed, QueueReceiver, QueueSender};
use crate::tokenize::task::PreparedCaption;
use crate::tracked::Tracked;
use packing::TokenBatch;
use policy::{CutReason, Decision, Limits};

/// How often captions that wait are looked at for whether their partition is being given up: a look
/// takes as long as there are captions. One that is embedded in between is published in time.
const LEAVING_CHECK: Duration = Duration::from_millis(50);

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
    /// What is abandoned goes around the network.
    pub around: QueueSender<Finished>,
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
    ///
    /// # Errors
    ///
    /// When the sink has ended.
    pub fn run(self) -> Result<(), Closed> {
        let mut pending: VecDeque<Tracked<PreparedCaption>> = VecDeque::new();
        let mut free: VecDeque<Request> = VecDeque::new();
        let mut is_open = true;
        let mut looked = Instant::now();
        let nothing = never();
        loop {
            if looked.elapsed() >= LEAVING_CHECK {
                looked = Instant::now();
                self.abandon_leaving(&mut pending)?;
            }
            self.metrics.pending.set(pending.len() as i64);
            if pending.is_empty() && !is_open {
                return Ok(());
            }
            let mut alarm = never();
            if let Some(request) = free.front() {
                match self.decide(&pending) {
                    Decision::Cut { captions, reason } => {
                        // An embedder that has ended in the meantime has failed the worker; the
                        // batch is redelivered.
                        drop(request.send(self.cut(&mut pending, captions, reason)));
                        free.pop_front();
                        continue;
                    }
                    Decision::Wait(duration) => alarm = after(duration.min(LEAVING_CHECK)),
                    Decision::Nothing => {}
                }
            } else if !pending.is_empty() {
                alarm = after(LEAVING_CHECK);
            }

            let room = pending.len() < self.pending_max && is_open;
            let input = if room { self.input.inner() } else { &nothing };
            select! {
                recv(input) -> caption => match self.input.took(caption) {
                    Some(caption) => {
                        pending.push_back(caption);
                        // All that has come by now belongs into the decision.
                        while pending.len() < self.pending_max
                            && let Some(caption) = self.input.try_recv()
                        {
                            pending.push_back(caption);
                        }
                    }
                    None => is_open = false,
                },
                recv(self.requests) -> request => match request {
                    Ok(request) => free.push_back(request),
                    Err(_) => return Ok(()),
                },
                recv(alarm) -> _ => {}
            }
        }
    }

    /// Passes on what is of a partition that is being given up.
    fn abandon_leaving(
        &self,
        pending: &mut VecDeque<Tracked<PreparedCaption>>,
    ) -> Result<(), Closed> {
        if !pending.iter().any(|caption| caption.origin.assignment.is_leaving()) {
            return Ok(());
        }
        for caption in std::mem::take(pending) {
            if caption.origin.assignment.is_leaving() {
                self.around.send(Finished::Abandoned(caption.map(|_| ())))?;
            } else {
                pending.push_back(caption);
            }
        }
        Ok(())
    }

    fn decide(&self, pending: &VecDeque<Tracked<PreparedCaption>>) -> Decision {
        let waited = pending.front().map_or(Duration::ZERO, |c| c.payload.ready.elapsed());
        self.limits.decide(pending.iter().map(|c| c.payload.tokens.ids.len()), waited)
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

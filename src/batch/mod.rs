//! The batcher: a thread that holds what waits and cuts a batch when an embedder is free.
//!
//! Embedders ask first, by a [`Request`]; the batch is cut after that, so it holds everything that
//! has come by then. The channels that they wait on are the batcher's alone, so that its end ends
//! them: in a request, one could lie unseen in the requests' channel and keep its embedder waiting
//! for ever. A request says also what the last batch took: [`cost`] learns to predict the next from
//! it, and [`budget`] how many tokens it should have. What to cut is [`policy`]'s decision, and
//! [`packing`] makes tensors of it.

pub mod budget;
pub mod cost;
mod line;
pub mod packing;
pub mod policy;

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, after, never, select};
use prometheus::Histogram;

use crate::handover::{Finished, Intake, PreparedCaption};
use crate::metrics::BatchMetrics;
use crate::queue::{Closed, QueueReceiver, QueueSender};
use crate::tracked::Tracked;
use budget::TokenBudget;
use cost::CostModel;
use packing::TokenBatch;
use policy::{CutReason, Decision, Limits, Objective, share};

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

impl Job {
    /// Packs captions, in their order.
    pub fn pack(captions: Vec<Tracked<PreparedCaption>>) -> Job {
        let batch = TokenBatch::pack(captions.iter().map(|c| c.payload.tokens.ids.as_slice()));
        Job { captions, batch }
    }
}

/// A free embedder asks for a batch.
#[derive(Clone, Copy, Debug)]
pub struct Request {
    /// Which embedder, as an index of [`Batcher::jobs`].
    pub embedder: usize,
    /// What its last batch took, if it was embedded whole.
    pub last: Option<Pass>,
    /// If there was too little memory for its last batch: the tokens of the smallest part of it
    /// that was too large.
    pub out_of_memory: Option<usize>,
}

/// A forward pass that was made.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Pass {
    /// Tokens of its batch.
    pub tokens: usize,
    /// How long it took.
    pub seconds: f64,
}

/// The batcher stage.
pub struct Batcher {
    /// Captions from the tokenizers.
    pub input: QueueReceiver<Vec<Tracked<PreparedCaption>>>,
    /// Whether more may come to them.
    pub intake: Intake,
    /// Free embedders.
    pub requests: Receiver<Request>,
    /// Where each embedder waits for its batch. There is room for one.
    pub jobs: Vec<Sender<Job>>,
    /// What is abandoned goes around the network.
    pub around: QueueSender<Finished>,
    /// Most captions of a batch.
    pub captions_max: usize,
    /// How long the oldest caption may be kept back for a fuller batch.
    pub wait_max: Duration,
    /// How long after a caption was received its pass should be done.
    pub latency_objective: Option<Duration>,
    /// How many tokens a batch may have.
    pub budget: TokenBudget,
    /// What passes take.
    pub cost: CostModel,
    /// Captions that wait here before more stay in the queue.
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
    pub fn run(mut self) -> Result<(), Closed> {
        self.report();
        let mut pending: VecDeque<Tracked<PreparedCaption>> = VecDeque::new();
        let mut free: VecDeque<Request> = VecDeque::new();
        // What the batch of each embedder shows, see [`TokenBudget::cut`].
        let mut sizes = vec![None; self.jobs.len()];
        let mut is_open = true;
        // Whether captions may be kept back for others that come.
        let mut is_more = true;
        let mut looked = Instant::now();
        let nothing = never();
        loop {
            if looked.elapsed() >= LEAVING_CHECK {
                looked = Instant::now();
                self.abandon_leaving(&mut pending)?;
                is_more = is_open;
            }
            self.metrics.pending.set(pending.len() as i64);
            if pending.is_empty() && !is_open {
                return Ok(());
            }
            let mut alarm = never();
            if let Some(request) = free.front() {
                // At a limit in flight more come once some have gone out, and where no pass is
                // under way these must be the next.
                let is_stuck = free.len() == self.jobs.len() && self.intake.is_full();
                match self.decide(&pending, free.len(), is_more && !is_stuck) {
                    Decision::Cut { captions, reason } => {
                        // An embedder that has ended in the meantime has failed the worker; the
                        // batch is redelivered.
                        let embedder = request.embedder;
                        free.pop_front();
                        let (job, size) = self.cut(&mut pending, captions, reason);
                        sizes[embedder] = size;
                        drop(self.jobs[embedder].send(job));
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
                recv(input) -> captions => match self.input.took(captions) {
                    Some(captions) => {
                        pending.extend(captions);
                        // All that has come by now belongs into the decision.
                        while pending.len() < self.pending_max
                            && let Some(captions) = self.input.try_recv()
                        {
                            pending.extend(captions);
                        }
                    }
                    None => {
                        is_open = false;
                        // At a stop the partitions are given up in this moment, and then nothing of
                        // them is cut; where a stage has failed they aren't.
                        looked = Instant::now();
                    }
                },
                recv(self.requests) -> request => match request {
                    Ok(request) => {
                        if let Some(pass) = request.last {
                            self.learn(pass, sizes[request.embedder]);
                        }
                        if let Some(tokens) = request.out_of_memory {
                            self.shrink(tokens);
                        }
                        free.push_back(request);
                    }
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

    /// Decides for so many free embedders. Where `is_more` is false, no other caption comes.
    fn decide(
        &self,
        pending: &VecDeque<Tracked<PreparedCaption>>,
        free: usize,
        is_more: bool,
    ) -> Decision {
        let limits = Limits {
            tokens_max: self.budget.next_limit(),
            captions_max: self.captions_max,
            wait_max: if is_more { self.wait_max } else { Duration::ZERO },
        };
        let Some(oldest) = pending.front() else { return Decision::Nothing };
        let objective = self.latency_objective.map(|objective| Objective {
            left: objective.saturating_sub(oldest.origin.received.elapsed()),
            cost: &self.cost,
        });
        let lengths = pending.iter().map(|caption| caption.payload.tokens.ids.len());
        let decision = limits.decide(lengths.clone(), oldest.payload.ready.elapsed(), objective);
        if let Decision::Cut { captions, reason: CutReason::Idle } = decision
            && let Some(captions) = share(lengths.take(captions), free, &self.cost)
        {
            return Decision::Cut { captions, reason: CutReason::Shared };
        }
        decision
    }

    fn learn(&mut self, pass: Pass, size: Option<usize>) {
        self.cost.observe(pass.tokens, pass.seconds);
        if let Some(size) = size {
            self.budget.observe(size, pass.tokens, pass.seconds);
        }
        self.report();
    }

    /// Makes batches that fit into the device's memory, where one of so many tokens didn't.
    fn shrink(&mut self, tokens: usize) {
        self.budget.out_of_memory(tokens);
        let budget = self.budget.tokens();
        tracing::warn!(tokens, budget, "too little memory for a batch; the next ones are smaller");
        self.report();
    }

    fn report(&self) {
        self.metrics.tokens_limit.set(self.budget.tokens() as i64);
        self.metrics.fixed_seconds.set(self.cost.fixed_seconds());
        self.metrics.token_seconds.set(self.cost.token_seconds());
        self.metrics.prediction_error.set(self.cost.error());
    }

    /// Returns the batch, and the size whose rate its pass will show.
    fn cut(
        &mut self,
        pending: &mut VecDeque<Tracked<PreparedCaption>>,
        captions: usize,
        reason: CutReason,
    ) -> (Job, Option<usize>) {
        let job = Job::pack(pending.drain(..captions).collect());
        let Job { captions, batch } = &job;
        let size = self.budget.cut(batch.tokens(), reason == CutReason::Full);
        let now = Instant::now();
        for caption in captions {
            self.wait_seconds.observe((now - caption.payload.ready).as_secs_f64());
        }
        self.metrics.cut.with_label_values(&[reason.as_label()]).inc();
        self.metrics.captions.observe(batch.captions() as f64);
        self.metrics.tokens.observe(batch.tokens() as f64);
        (job, size)
    }
}

#[cfg(test)]
mod tests {
    use super::budget::Step;
    use super::*;
    use crate::embed::hash::HashEmbedder;
    use crate::embed::task::EmbedTask;
    use crate::health::Health;
    use crate::metrics::{Metrics, Stage};
    use crate::queue;
    use crate::tokenize::TokenizedCaption;
    use crate::tracked::{Assignment, Offset, Origin, RawMessage};

    /// Long enough for a thread to end, however busy the machine is.
    const PATIENCE: Duration = Duration::from_secs(30);

    /// Returns a batcher of these ends, with limits that nothing reaches.
    fn batcher(
        metrics: &Metrics,
        input: QueueReceiver<Vec<Tracked<PreparedCaption>>>,
        requests: Receiver<Request>,
        jobs: Vec<Sender<Job>>,
        around: QueueSender<Finished>,
    ) -> Batcher {
        Batcher {
            input,
            intake: Intake::default(),
            requests,
            jobs,
            around,
            captions_max: 100,
            wait_max: Duration::ZERO,
            latency_objective: None,
            budget: TokenBudget::fixed(1000),
            cost: CostModel::default(),
            pending_max: 100,
            metrics: metrics.batch.clone(),
            wait_seconds: metrics.stage(Stage::Wait),
        }
    }

    /// A batcher that runs, and its neighbours' ends.
    struct Rig {
        metrics: Metrics,
        captions: QueueSender<Vec<Tracked<PreparedCaption>>>,
        requests: Sender<Request>,
        jobs: Vec<Receiver<Job>>,
        finished: QueueReceiver<Finished>,
        thread: std::thread::JoinHandle<bool>,
    }

    impl Rig {
        /// Starts one that so many embedders ask, after a change of it.
        fn start(embedders: usize, change: impl FnOnce(&mut Batcher)) -> Rig {
            let metrics = Metrics::new();
            let (captions, input) = queue::bounded("tokenized", 1, &metrics.queues);
            let (around, finished) = queue::bounded("finished", 2, &metrics.queues);
            let (requests, free) = crossbeam_channel::bounded(embedders);
            let (senders, jobs) = (0..embedders).map(|_| crossbeam_channel::bounded(1)).unzip();
            let mut batcher = batcher(&metrics, input, free, senders, around);
            change(&mut batcher);
            let thread = std::thread::spawn(move || batcher.run().is_ok());
            Rig { metrics, captions, requests, jobs, finished, thread }
        }

        fn ask(&self, embedder: usize, last: Option<Pass>, out_of_memory: Option<usize>) {
            self.requests.send(Request { embedder, last, out_of_memory }).unwrap();
        }

        /// Returns an embedder's next batch.
        fn cut(&self, embedder: usize) -> Job {
            self.jobs[embedder].recv_timeout(PATIENCE).expect("a batch is cut")
        }

        /// Returns whether it ends well where nothing comes any more.
        fn ends(self) -> bool {
            drop((self.captions, self.requests));
            self.thread.join().unwrap()
        }
    }

    /// Starts an embedder and lets its batcher end, in whichever order their threads come to run.
    fn batcher_ends(metrics: &Metrics) {
        let (captions, input) = queue::bounded("tokenized", 1, &metrics.queues);
        let (around, _finished) = queue::bounded("finished", 1, &metrics.queues);
        let (requests, free) = crossbeam_channel::bounded(1);
        let (job, jobs) = crossbeam_channel::bounded(1);
        let embedder = EmbedTask {
            embedder: Box::new(HashEmbedder::new(4)),
            duty: metrics.embed.clock_of("none"),
            watch: Health::new(PATIENCE).watch_passes(),
            number: 0,
            requests,
            jobs,
            out: around.clone(),
            metrics: metrics.embed.clone(),
            seconds: metrics.stage(Stage::Embed),
            latency_objective: None,
        };
        let batcher = batcher(metrics, input, free, vec![job], around);
        let (ended, end) = crossbeam_channel::bounded(1);
        std::thread::spawn(move || ended.send(embedder.run().is_ok()));
        drop::<QueueSender<Vec<Tracked<PreparedCaption>>>>(captions);
        batcher.run().unwrap();
        assert_eq!(end.recv_timeout(PATIENCE), Ok(true), "the embedder ends with its batcher");
    }

    fn caption(tokens: usize) -> Tracked<PreparedCaption> {
        let origin = Origin {
            assignment: Assignment::new(0, 1),
            offset: Offset(0),
            sequence: 0,
            received: Instant::now(),
            message: RawMessage::default(),
        };
        let tokens = TokenizedCaption { ids: vec![2; tokens], truncated: false };
        let payload =
            PreparedCaption { tokens, text: String::new(), id: None, ready: Instant::now() };
        Tracked { origin: Box::new(origin), payload }
    }

    #[test]
    fn captions_that_come_together_go_to_all_that_are_free() {
        let mut cost = CostModel::default();
        for tokens in [10, 20, 40].into_iter().cycle().take(30) {
            cost.observe(tokens, tokens as f64 * 1e-3);
        }
        let rig = Rig::start(2, |batcher| batcher.cost = cost);
        for embedder in 0..2 {
            rig.ask(embedder, None, None);
        }
        // Both are known to be free once their channel is empty.
        let begun = Instant::now();
        while !rig.requests.is_empty() {
            assert!(begun.elapsed() < PATIENCE);
            std::thread::yield_now();
        }
        rig.captions.send(vec![caption(20), caption(21), caption(19), caption(20)]).unwrap();
        let sizes = [0, 1].map(|embedder| rig.cut(embedder).captions.len());
        assert_eq!(sizes, [2, 2]);
        assert!(rig.ends());
    }

    #[test]
    fn nothing_is_kept_back_for_more_once_no_more_can_come() {
        let rig = Rig::start(1, |batcher| batcher.wait_max = Duration::from_secs(3600));
        rig.ask(0, None, None);
        rig.captions.send(vec![caption(20)]).unwrap();
        // As where another stage has failed: the partitions aren't given up before, as at a stop.
        drop(rig.captions);
        let job = rig.jobs[0].recv_timeout(PATIENCE).expect("it is cut at once");
        assert_eq!(job.captions.len(), 1);
        assert!(rig.thread.join().unwrap());
    }

    #[test]
    fn nothing_is_kept_back_while_a_limit_in_flight_keeps_others_out() {
        let intake = Intake::default();
        let rig = Rig::start(2, |batcher| {
            batcher.intake = intake.clone();
            batcher.wait_max = Duration::from_secs(3600);
        });
        rig.ask(0, None, None);
        rig.ask(1, None, None);
        rig.captions.send(vec![caption(20)]).unwrap();
        // It has begun to wait for more by then, or begins without.
        intake.set_full(true);
        assert_eq!(rig.cut(0).captions.len(), 1, "the limit is noticed");
        // One is under way: when it is done others may come.
        rig.captions.send(vec![caption(20)]).unwrap();
        let short = 4 * LEAVING_CHECK;
        assert!(rig.jobs[1].recv_timeout(short).is_err(), "it is kept back for more");
        rig.ask(0, None, None);
        assert_eq!(rig.cut(1).captions.len(), 1, "none is under way");
        assert!(rig.ends());
    }

    #[test]
    fn what_a_request_tells_of_the_last_batch_is_learnt() {
        let step = |tokens: usize| Step { tokens, tokens_per_second: tokens as f64 };
        // Passes of either size take a second: 40 tokens are best.
        let budget = TokenBudget::new(vec![step(20), step(40)]);
        let rig = Rig::start(1, |batcher| batcher.budget = budget);
        let metrics = &rig.metrics.batch;
        rig.ask(0, None, None);
        // Those of 20 tokens, which are tried now and then, take an instant from now on.
        let (begun, mut waiting) = (Instant::now(), 0);
        while metrics.tokens_limit.get() != 20 {
            if waiting < 2 {
                let captions = vec![caption(20), caption(20), caption(20), caption(20)];
                rig.captions.send(captions).unwrap();
                waiting += 4;
            }
            let Job { captions, batch } = rig.cut(0);
            waiting -= captions.len();
            let tokens = batch.tokens();
            let seconds = if tokens == 20 { 1e-3 } else { 1.0 };
            rig.ask(0, Some(Pass { tokens, seconds }), None);
            assert!(begun.elapsed() < PATIENCE, "the smaller ones are never found to be better");
        }
        assert!(metrics.token_seconds.get() > 0.0);
        rig.captions.send(vec![caption(20)]).unwrap();
        drop(rig.cut(0));
        rig.ask(0, None, Some(20));
        while metrics.tokens_limit.get() != 10 {
            assert!(begun.elapsed() < 2 * PATIENCE, "a lack of memory makes no smaller batches");
            std::thread::yield_now();
        }
        assert!(rig.ends());
    }

    #[test]
    fn what_is_asked_back_is_left_to_the_next_owner_while_all_embedders_are_busy() {
        let rig = Rig::start(1, |_| ());
        let asked_back = caption(20);
        let assignment = std::sync::Arc::clone(&asked_back.origin.assignment);
        rig.captions.send(vec![asked_back, caption(20)]).unwrap();
        assignment.leave();
        let abandoned = rig.finished.inner().recv_timeout(PATIENCE);
        assert!(matches!(abandoned, Ok(Finished::Abandoned(_))), "{abandoned:?}");
        rig.ask(0, None, None);
        assert_eq!(rig.cut(0).captions.len(), 1, "the other's partition is held");
        assert!(rig.ends());
    }

    #[test]
    fn an_embedder_that_asks_while_the_batcher_ends_is_not_left_waiting() {
        let metrics = Metrics::new();
        for _ in 0..500 {
            batcher_ends(&metrics);
        }
    }
}

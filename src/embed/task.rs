//! The worker's thread around an embedder.
//!
//! A batch that fails is split until the caption at fault is alone, and that one is rejected; so
//! are those of a batch whose vectors aren't finite, for one caption's numbers may spoil all
//! others'. A caption is at fault only if the network still works without it: before anything is
//! rejected, a known caption must succeed. Where it doesn't, the network is at fault, and the
//! worker fails. Nor is it at fault for what passes: after the known caption it fails once more.
//!
//! A batch for which there was too little memory is split too, and the batcher is told, which makes
//! smaller ones from then on. No caption is at fault for that: where there isn't the memory for one
//! alone, the worker fails.

use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender};
use prometheus::Histogram;
use thiserror::Error;

use super::duty::DutyClock;
use super::{EmbedError, Embedder, SplitReason, embed_known, is_finite};
use crate::batch::packing::TokenBatch;
use crate::batch::{Job, Pass, Request};
use crate::handover::{EmbeddedBatch, Finished, PreparedCaption};
use crate::health::PassWatch;
use crate::metrics::EmbedMetrics;
use crate::queue::{Closed, QueueSender};
use crate::seldom::repeats;
use crate::tracked::{RejectReason, Rejection, Tracked};

/// Why the stage ended.
#[derive(Debug, Error)]
pub enum EmbedTaskError {
    /// The network fails on everything.
    #[error("the embedder fails on a caption that it has embedded before")]
    Embedder(#[source] EmbedError),
    /// The device has no room for the smallest batch.
    #[error("there isn't the memory to embed one caption alone")]
    OutOfMemory(#[source] EmbedError),
    /// The next stage has ended.
    #[error("stopped")]
    Closed(#[from] Closed),
}

/// What came of a batch, for the batcher to learn from.
#[derive(Clone, Copy, Debug, Default)]
struct Last {
    /// What the pass took, if it was one.
    pass: Option<Pass>,
    /// Tokens of the smallest batch for which there was too little memory.
    out_of_memory: Option<usize>,
}

/// The stage of one embedder.
pub struct EmbedTask {
    /// The embedder.
    pub embedder: Box<dyn Embedder>,
    /// The clock of its device.
    pub duty: DutyClock,
    /// Tells the probes.
    pub watch: PassWatch,
    /// Its number, as an index of [`crate::batch::Batcher::jobs`].
    pub number: usize,
    /// Where the batcher hears that it is free.
    pub requests: Sender<Request>,
    /// Batches from the batcher.
    pub jobs: Receiver<Job>,
    /// Vectors, rejections and what is abandoned, for the sink.
    pub out: QueueSender<Finished>,
    /// Counts.
    pub metrics: EmbedMetrics,
    /// Seconds of a forward pass, once for each caption in it.
    pub seconds: Histogram,
    /// How long after a caption was received its pass should be done.
    pub latency_objective: Option<Duration>,
}

impl EmbedTask {
    /// Runs until the batcher has ended.
    ///
    /// # Errors
    ///
    /// When the embedder fails on everything, or the sink has ended.
    pub fn run(mut self) -> Result<(), EmbedTaskError> {
        let mut last = Last::default();
        loop {
            let Last { pass, out_of_memory } = last;
            let request = Request { embedder: self.number, last: pass, out_of_memory };
            if self.requests.send(request).is_err() {
                return Ok(());
            }
            let Ok(job) = self.jobs.recv() else { return Ok(()) };
            last = self.embed(job)?;
        }
    }

    /// Returns what came of the batch.
    fn embed(&mut self, Job { captions, batch }: Job) -> Result<Last, EmbedTaskError> {
        let (result, seconds) = self.pass(&batch);
        let tokens = batch.tokens();
        match result {
            Ok(vectors) => {
                let spoilt = self.pass_on(captions, vectors, seconds)?;
                let (vectors, captions) = (spoilt.len(), batch.captions());
                let error = EmbedError::NotFinite { vectors, captions };
                let out_of_memory = match vectors {
                    0 => None,
                    // What it gives alone is still to be seen.
                    1 if captions > 1 => {
                        self.tell_split(captions, &error);
                        self.embed_anew(spoilt)?
                    }
                    _ => self.isolate(spoilt, error)?,
                };
                Ok(Last { pass: Some(Pass { tokens, seconds }), out_of_memory })
            }
            Err(error) => {
                let is_too_large = error.split_reason() == SplitReason::OutOfMemory;
                let smaller = self.isolate(captions, error)?;
                // A half that was too large as well says more.
                let out_of_memory = smaller.or(is_too_large.then_some(tokens));
                Ok(Last { pass: None, out_of_memory })
            }
        }
    }

    /// Returns what a pass gave, and the seconds that it took.
    fn pass(&mut self, batch: &TokenBatch) -> (Result<Vec<f32>, EmbedError>, f64) {
        let started = Instant::now();
        let result = self.watch.run(|| self.duty.run(|| self.embedder.embed(batch)));
        let seconds = started.elapsed().as_secs_f64();
        (result, seconds)
    }

    /// Counts and passes on the captions whose vectors are finite; returns the others.
    fn pass_on(
        &mut self,
        captions: Vec<Tracked<PreparedCaption>>,
        vectors: Vec<f32>,
        seconds: f64,
    ) -> Result<Vec<Tracked<PreparedCaption>>, EmbedTaskError> {
        let dim = self.embedder.dim();
        assert_eq!(vectors.len(), captions.len() * dim, "one vector a caption");
        let (mut good, mut spoilt) = (Vec::with_capacity(captions.len()), Vec::new());
        let (mut tokens, mut late) = (0, 0);
        for (row, caption) in captions.into_iter().enumerate() {
            if !is_finite(&vectors[row * dim..(row + 1) * dim]) {
                spoilt.push(caption);
                continue;
            }
            self.seconds.observe(seconds);
            tokens += caption.payload.tokens.ids.len() as u64;
            let received = caption.origin.received;
            late += u64::from(self.latency_objective.is_some_and(|most| received.elapsed() > most));
            good.push((row, caption));
        }
        self.metrics.captions.inc_by(good.len() as u64);
        self.metrics.tokens.inc_by(tokens);
        self.metrics.objective_missed.inc_by(late);
        if !good.is_empty() {
            let finished = Instant::now();
            let embedded = EmbeddedBatch { captions: good, vectors, dim, finished };
            self.out.send(Finished::Embedded(embedded))?;
        }
        Ok(spoilt)
    }

    /// Splits a batch that failed; rejects the caption that fails alone, and again. Returns the
    /// tokens of the smallest of the parts for which there was too little memory.
    fn isolate(
        &mut self,
        mut captions: Vec<Tracked<PreparedCaption>>,
        error: EmbedError,
    ) -> Result<Option<usize>, EmbedTaskError> {
        let reason = error.split_reason();
        if captions.len() > 1 {
            self.tell_split(captions.len(), &error);
            let second = captions.split_off(captions.len() / 2);
            let mut too_large: Option<usize> = None;
            for half in [captions, second] {
                let smaller = self.embed_anew(half)?;
                too_large = too_large.into_iter().chain(smaller).min();
            }
            return Ok(too_large);
        }
        if reason == SplitReason::OutOfMemory {
            return Err(EmbedTaskError::OutOfMemory(error));
        }
        let known = self.watch.run(|| self.duty.run(|| embed_known(&mut *self.embedder)));
        known.map_err(EmbedTaskError::Embedder)?;
        self.try_again(captions)?;
        Ok(None)
    }

    fn tell_split(&self, captions: usize, error: &EmbedError) {
        let reason = error.split_reason().as_label();
        // Where a network fails on one caption of many, there would be several lines for each.
        if let Some(before) = repeats(&format!("split {reason}")) {
            tracing::warn!(captions, reason, %error, before, "a batch failed and is split");
        }
        self.metrics.splits.with_label_values(&[reason]).inc();
    }

    /// Embeds a caption that has failed alone once more, now that the network is known to work;
    /// what fails again is rejected.
    fn try_again(&mut self, alone: Vec<Tracked<PreparedCaption>>) -> Result<(), EmbedTaskError> {
        let Job { captions: alone, batch } = Job::pack(alone);
        let (result, seconds) = self.pass(&batch);
        let (failed, rejection) = match result {
            Ok(vectors) => {
                let detail = "the vector has a number that isn't finite";
                let spoilt = self.pass_on(alone, vectors, seconds)?;
                (spoilt, Rejection::new(RejectReason::NotFinite, detail))
            }
            Err(error) if error.split_reason() == SplitReason::OutOfMemory => {
                return Err(EmbedTaskError::OutOfMemory(error));
            }
            Err(error) => (alone, Rejection::new(RejectReason::NotEmbedded, error.to_string())),
        };
        for caption in failed {
            self.reject(caption, rejection.clone())?;
        }
        Ok(())
    }

    /// Embeds a part of a batch; returns the tokens of the smallest batch for which there was too
    /// little memory. What is of a partition that is being given up is abandoned: there may be many
    /// parts, and the group waits.
    fn embed_anew(
        &mut self,
        part: Vec<Tracked<PreparedCaption>>,
    ) -> Result<Option<usize>, EmbedTaskError> {
        let is_leaving = |c: &Tracked<PreparedCaption>| c.origin.assignment.is_leaving();
        let (leaving, part): (Vec<_>, Vec<_>) = part.into_iter().partition(is_leaving);
        for caption in leaving {
            self.out.send(Finished::Abandoned(caption.map(|_| ())))?;
        }
        if part.is_empty() {
            return Ok(None);
        }
        Ok(self.embed(Job::pack(part))?.out_of_memory)
    }

    fn reject(
        &self,
        caption: Tracked<PreparedCaption>,
        rejection: Rejection,
    ) -> Result<(), EmbedTaskError> {
        Ok(self.out.send(Finished::Rejected(caption.map(|_| rejection)))?)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::embed::hash::HashEmbedder;
    use crate::health::Health;
    use crate::metrics::Metrics;
    use crate::queue;
    use crate::tokenize::TokenizedCaption;
    use crate::tracked::{Assignment, Offset, Origin, RawMessage};

    /// Fails on every batch that has the token 13, gives NaN for the token 17, for the token 19 in
    /// company, and for a whole batch that has the token 18; has memory for so many tokens.
    struct Superstitious {
        inner: HashEmbedder,
        state: State,
        tokens_max: usize,
    }

    #[derive(Clone, Copy, PartialEq)]
    enum State {
        Works,
        Dead,
        /// It gives NaN for everything.
        Numb,
    }

    impl Embedder for Superstitious {
        fn dim(&self) -> usize {
            self.inner.dim()
        }

        fn embed(&mut self, batch: &TokenBatch) -> Result<Vec<f32>, EmbedError> {
            let (captions, tokens) = (batch.captions(), batch.tokens());
            if self.state == State::Dead || batch.token_ids.contains(&13) {
                return Err(EmbedError::Run { captions, tokens, reason: "bad luck".into() });
            }
            if tokens > self.tokens_max {
                let reason = "CUDA failure 2: out of memory".into();
                return Err(EmbedError::Run { captions, tokens, reason });
            }
            let mut vectors = self.inner.embed(batch)?;
            let is_bad = |id: i64| id == 17 || id == 19 && captions > 1;
            for (&slot, _) in
                batch.token_slots.iter().zip(&batch.token_ids).filter(|(_, id)| is_bad(**id))
            {
                let caption = batch.slot_captions[slot as usize] as usize - 1;
                vectors[caption * self.inner.dim()] = f32::NAN;
            }
            if self.state == State::Numb || batch.token_ids.contains(&18) {
                vectors.fill(f32::NAN);
            }
            Ok(vectors)
        }
    }

    /// Fails on every batch of several captions. The partition is asked back during its first pass.
    struct Interrupted {
        inner: HashEmbedder,
        asked_back: Arc<Assignment>,
    }

    impl Embedder for Interrupted {
        fn dim(&self) -> usize {
            self.inner.dim()
        }

        fn embed(&mut self, batch: &TokenBatch) -> Result<Vec<f32>, EmbedError> {
            self.asked_back.leave();
            let (captions, tokens) = (batch.captions(), batch.tokens());
            if captions > 1 {
                return Err(EmbedError::Run { captions, tokens, reason: "bad luck".into() });
            }
            self.inner.embed(batch)
        }
    }

    /// Fails on its first pass, or gives NaN.
    struct Hiccups {
        inner: HashEmbedder,
        is_first: bool,
        gives: bool,
    }

    impl Embedder for Hiccups {
        fn dim(&self) -> usize {
            self.inner.dim()
        }

        fn embed(&mut self, batch: &TokenBatch) -> Result<Vec<f32>, EmbedError> {
            let (captions, tokens) = (batch.captions(), batch.tokens());
            match (std::mem::take(&mut self.is_first), self.gives) {
                (false, _) => self.inner.embed(batch),
                (true, true) => Ok(vec![f32::NAN; captions * self.dim()]),
                (true, false) => {
                    Err(EmbedError::Run { captions, tokens, reason: "bad luck".into() })
                }
            }
        }
    }

    /// Fails on the token 5, the second time for want of memory.
    struct Narrowing {
        inner: HashEmbedder,
        is_first: bool,
    }

    impl Embedder for Narrowing {
        fn dim(&self) -> usize {
            self.inner.dim()
        }

        fn embed(&mut self, batch: &TokenBatch) -> Result<Vec<f32>, EmbedError> {
            if !batch.token_ids.contains(&5) {
                return self.inner.embed(batch);
            }
            let is_first = std::mem::take(&mut self.is_first);
            let reason = if is_first { "bad luck" } else { "std::bad_alloc" }.into();
            Err(EmbedError::Run { captions: batch.captions(), tokens: batch.tokens(), reason })
        }
    }

    fn caption(sequence: u64, token: u32) -> Tracked<PreparedCaption> {
        caption_of(&Assignment::new(0, 1), sequence, token)
    }

    fn caption_of(
        assignment: &Arc<Assignment>,
        sequence: u64,
        token: u32,
    ) -> Tracked<PreparedCaption> {
        let origin = Origin {
            assignment: Arc::clone(assignment),
            offset: Offset(sequence as i64),
            sequence,
            received: Instant::now(),
            message: RawMessage::default(),
        };
        let tokens = TokenizedCaption { ids: vec![2, token, 3], truncated: false };
        let payload =
            PreparedCaption { tokens, text: String::new(), id: None, ready: Instant::now() };
        Tracked { origin: Box::new(origin), payload }
    }

    /// What came of a batch.
    struct Outcome {
        result: Result<Last, EmbedTaskError>,
        /// Sequence numbers.
        embedded: Vec<u64>,
        rejected: Vec<(u64, RejectReason)>,
        abandoned: Vec<u64>,
        metrics: Metrics,
    }

    fn run(tokens: &[u32], state: State, tokens_max: usize) -> Outcome {
        let inner = HashEmbedder::new(4);
        let captions =
            tokens.iter().enumerate().map(|(i, &token)| caption(i as u64, token)).collect();
        run_with(Box::new(Superstitious { inner, state, tokens_max }), captions)
    }

    fn run_with(embedder: Box<dyn Embedder>, captions: Vec<Tracked<PreparedCaption>>) -> Outcome {
        let metrics = Metrics::new();
        let (out, finished) = queue::bounded("test", 100, &metrics.queues);
        let (requests, _free) = crossbeam_channel::bounded(1);
        let (_batcher, jobs) = crossbeam_channel::bounded(1);
        let mut task = EmbedTask {
            embedder,
            duty: metrics.embed.clock_of("none"),
            watch: Health::new(Duration::from_secs(60)).watch_passes(),
            number: 0,
            requests,
            jobs,
            out,
            metrics: metrics.embed.clone(),
            seconds: metrics.stage(crate::metrics::Stage::Embed),
            latency_objective: Some(Duration::from_secs(3600)),
        };
        let result = task.embed(Job::pack(captions));
        drop(task);
        let (mut embedded, mut rejected, mut abandoned) = (Vec::new(), Vec::new(), Vec::new());
        while let Some(item) = finished.recv() {
            match item {
                Finished::Embedded(batch) => {
                    embedded.extend(batch.captions.iter().map(|(_, c)| c.origin.sequence));
                }
                Finished::Rejected(r) => rejected.push((r.origin.sequence, r.payload.reason)),
                Finished::Abandoned(a) => abandoned.push(a.origin.sequence),
                Finished::Tombstone(_) => panic!("none of these here"),
            }
        }
        embedded.sort_unstable();
        rejected.sort_unstable_by_key(|(sequence, _)| *sequence);
        Outcome { result, embedded, rejected, abandoned, metrics }
    }

    #[test]
    fn the_caption_at_fault_is_found_and_the_others_are_embedded() {
        let outcome = run(&[5, 6, 13, 7, 8, 17, 13], State::Works, 1000);
        assert_eq!(outcome.result.unwrap().out_of_memory, None);
        assert_eq!(outcome.embedded, [0, 1, 3, 4]);
        assert_eq!(
            outcome.rejected,
            [
                (2, RejectReason::NotEmbedded),
                (5, RejectReason::NotFinite),
                (6, RejectReason::NotEmbedded)
            ]
        );
    }

    #[test]
    fn a_dead_network_rejects_nothing() {
        for state in [State::Dead, State::Numb] {
            let outcome = run(&[5, 6, 7], state, 1000);
            assert!(matches!(outcome.result, Err(EmbedTaskError::Embedder(_))));
            assert_eq!((outcome.embedded.len(), outcome.rejected.len()), (0, 0));
        }
    }

    #[test]
    fn a_caption_that_spoils_its_batch_is_rejected_alone() {
        let outcome = run(&[5, 6, 18, 7, 8, 17], State::Works, 1000);
        assert_eq!(outcome.result.unwrap().out_of_memory, None);
        assert_eq!(outcome.embedded, [0, 1, 3, 4]);
        let not_finite = RejectReason::NotFinite;
        assert_eq!(outcome.rejected, [(2, not_finite), (5, not_finite)]);
        assert_eq!(outcome.metrics.embed.captions.get(), 4);
        assert_eq!(outcome.metrics.embed.tokens.get(), 12);
        assert!(outcome.metrics.embed.splits.with_label_values(&["not_finite"]).get() > 0);
    }

    #[test]
    fn a_caption_is_rejected_for_what_it_gives_alone() {
        let outcome = run(&[5, 19, 6], State::Works, 1000);
        assert!(outcome.result.is_ok());
        assert_eq!((outcome.embedded, outcome.rejected), (vec![0, 1, 2], Vec::new()));
        let splits = outcome.metrics.embed.splits.with_label_values(&["not_finite"]).get();
        assert_eq!(splits, 1, "the one was taken out of its batch");
    }

    #[test]
    fn a_batch_too_large_for_the_memory_is_embedded_in_parts_and_reported() {
        // Eight captions of 3 tokens: 24 and 12 are too many, 6 are not.
        let outcome = run(&[5; 8], State::Works, 10);
        let last = outcome.result.unwrap();
        assert_eq!((last.pass, last.out_of_memory), (None, Some(12)));
        assert_eq!(outcome.embedded, [0, 1, 2, 3, 4, 5, 6, 7]);
        assert!(outcome.rejected.is_empty());
        let splits = outcome.metrics.embed.splits.with_label_values(&["out_of_memory"]).get();
        assert_eq!(splits, 3);
        assert_eq!(outcome.metrics.embed.captions.get(), 8);
        assert_eq!(outcome.metrics.embed.tokens.get(), 24, "each counts once, where it succeeded");
    }

    #[test]
    fn the_smallest_part_that_was_too_large_is_reported() {
        // Nine of 3 tokens: halves of four and five, 12 and 15 tokens, are too many.
        let outcome = run(&[5; 9], State::Works, 10);
        assert_eq!(outcome.result.unwrap().out_of_memory, Some(12));
        assert_eq!(outcome.embedded.len(), 9);
    }

    #[test]
    fn a_batch_tells_what_it_took_and_how_many_of_it_were_late() {
        let outcome = run(&[5; 4], State::Works, 1000);
        assert_eq!(outcome.result.unwrap().pass.map(|pass| pass.tokens), Some(12));
        assert_eq!(outcome.metrics.embed.objective_missed.get(), 0, "within the hour");
    }

    #[test]
    fn no_caption_is_rejected_for_want_of_memory() {
        let narrowing = Narrowing { inner: HashEmbedder::new(4), is_first: true };
        let outcome = run_with(Box::new(narrowing), vec![caption(0, 5)]);
        assert!(matches!(outcome.result, Err(EmbedTaskError::OutOfMemory(_))), "at the second try");
        assert!(outcome.rejected.is_empty());
        let outcome = run(&[5, 6], State::Works, 2);
        assert!(matches!(outcome.result, Err(EmbedTaskError::OutOfMemory(_))));
        assert_eq!((outcome.embedded.len(), outcome.rejected.len()), (0, 0));
    }

    #[test]
    fn what_is_asked_back_while_a_batch_is_split_is_left_to_the_next_owner() {
        let [asked_back, held] = [1, 2].map(|number| Assignment::new(number as i32, number));
        let captions = (0..6).map(|i| caption_of([&asked_back, &held][i % 2], i as u64, 5));
        let inner = HashEmbedder::new(4);
        let interrupted = Interrupted { inner, asked_back: Arc::clone(&asked_back) };
        let outcome = run_with(Box::new(interrupted), captions.collect());
        assert!(outcome.result.is_ok());
        assert_eq!((outcome.embedded, outcome.abandoned), (vec![1, 3, 5], vec![0, 2, 4]));
        assert!(outcome.rejected.is_empty());
    }

    #[test]
    fn a_failure_that_passes_is_no_fault_of_a_caption_that_was_alone() {
        for gives in [false, true] {
            let inner = HashEmbedder::new(4);
            let hiccups = Hiccups { inner, is_first: true, gives };
            let outcome = run_with(Box::new(hiccups), vec![caption(0, 5)]);
            assert!(outcome.result.is_ok());
            assert_eq!((outcome.embedded, outcome.rejected), (vec![0], Vec::new()), "{gives}");
            assert_eq!(outcome.metrics.embed.captions.get(), 1);
        }
    }
}

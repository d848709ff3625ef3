//! What the stages hand to each other, beside [`Tracked`] itself: a caption that is prepared for
//! the network, a batch that it has embedded, what is finished and waits for the sink, and whether
//! more can come.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use crate::tokenize::TokenizedCaption;
use crate::tracked::{Rejection, Tracked};
use crate::wire::caption::Id;

/// A caption that is ready for the network, with what its record will need.
#[derive(Clone, Debug)]
pub struct PreparedCaption {
    /// Its tokens.
    pub tokens: TokenizedCaption,
    /// Its text; empty where the output doesn't repeat it.
    pub text: String,
    /// Its id, where the output takes one from the message's value.
    pub id: Option<Id>,
    /// When it was ready.
    pub ready: Instant,
}

/// Captions with their vectors.
#[derive(Debug)]
pub struct EmbeddedBatch {
    /// The captions, each with its row in `vectors`.
    pub captions: Vec<(usize, Tracked<PreparedCaption>)>,
    /// Row-major `[rows, dim]`.
    pub vectors: Vec<f32>,
    /// Numbers in a vector.
    pub dim: usize,
    /// When the forward pass ended.
    pub finished: Instant,
}

impl EmbeddedBatch {
    /// Returns the captions, each with a vector of its own. One that waits for long, as where its
    /// record's partition has no leader, would else keep those of all its batch, and so would one
    /// of each other batch.
    pub fn into_captions(self) -> impl Iterator<Item = (Tracked<PreparedCaption>, Box<[f32]>)> {
        let EmbeddedBatch { captions, vectors, dim, .. } = self;
        let of_row = move |row: usize| vectors[row * dim..(row + 1) * dim].into();
        captions.into_iter().map(move |(row, caption)| (caption, of_row(row)))
    }
}

/// What comes to the sink.
#[derive(Debug)]
pub enum Finished {
    /// Captions with their vectors.
    Embedded(EmbeddedBatch),
    /// A message that can't become a vector.
    Rejected(Tracked<Rejection>),
    /// A message without a value.
    Tombstone(Tracked<()>),
    /// A message whose partition is being given up before it was embedded.
    Abandoned(Tracked<()>),
}

/// Whether a limit in flight is reached, and the source takes no messages before some are settled.
/// Clones tell the same.
#[derive(Clone, Debug, Default)]
pub struct Intake(Arc<AtomicBool>);

impl Intake {
    /// Says whether it is.
    pub fn set_full(&self, is_full: bool) {
        self.0.store(is_full, Ordering::Release);
    }

    /// Returns whether it is.
    pub fn is_full(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tracked::{Assignment, Offset, Origin, RawMessage};

    #[test]
    fn a_caption_that_waits_keeps_no_vector_but_its_own() {
        let caption = |row: usize| {
            let origin = Origin {
                assignment: Assignment::new(0, 1),
                offset: Offset(row as i64),
                sequence: row as u64,
                received: Instant::now(),
                message: RawMessage::default(),
            };
            let tokens = TokenizedCaption { ids: vec![2, 5, 3], truncated: false };
            let payload =
                PreparedCaption { tokens, text: String::new(), id: None, ready: Instant::now() };
            (row, Tracked { origin: Box::new(origin), payload })
        };
        let vectors = (0..6).map(|number| number as f32).collect();
        let captions = vec![caption(0), caption(2)];
        let batch = EmbeddedBatch { captions, vectors, dim: 2, finished: Instant::now() };
        let kept: Vec<_> = batch
            .into_captions()
            .map(|(caption, vector)| (caption.origin.sequence, vector.to_vec()))
            .collect();
        assert_eq!(kept, [(0, vec![0.0, 1.0]), (2, vec![4.0, 5.0])]);
    }
}

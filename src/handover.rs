//! What the stages hand to each other, beside [`Tracked`] itself: a caption that is prepared for
//! the network, a batch that it has embedded, and what is finished and waits for the sink.

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
    /// When the forward pass ended.
    pub finished: Instant,
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

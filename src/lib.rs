//! capvec: a Kafka topic of captions becomes a Kafka topic of vectors.
//!
//! ```text
//!  input topic                                                                  output topic
//!      │                                                                              ▲
//!      ▼                                                                              │
//!  kafka::source ──▶ wire::caption ──▶ tokenize ──▶ batch ──▶ embed ──▶ wire::vector ──▶ kafka::sink
//!      ▲                  │ rejected        │ rejected           │ rejected    │ rejected   │
//!      │                  └─────────────────┴──────── dead-letter topic ◀──────┘            │
//!      └── offsets ◀──────────────────────── Settlement ◀───────────────────────────────────┘
//! ```
//!
//! Data goes one way; settlements are the only edge back. The modules, in the order of a caption's
//! life:
//!
//! - [`kafka`]: the source with its offset ledger, the sequencer, the sink, dead letters.
//! - [`wire`]: what caption messages and vector records look like.
//! - [`tokenize`]: text to token ids.
//! - [`batch`]: when a batch is cut, and captions to tensors without padding.
//! - [`embed`]: tensors to vectors.
//! - [`tracked`]: the words that all stages share; [`handover`]: what they hand to each other.
//! - [`pipeline`]: the only file that knows every stage.
//!
//! Around them: [`config`], [`model`] (packages, and how they are made), [`metrics`], [`health`],
//! [`admin`], [`queue`], [`lock`], [`seldom`], [`shutdown`], [`clock`], [`stats`], [`unfinished`],
//! `label`, `causes`, [`cli`].
//!
//! It is for Unix alone: it takes signals and the modes of files for granted.

#![forbid(unsafe_code)]
#![deny(missing_docs)]

pub mod kafka;
pub mod wire;

pub mod tokenize;

pub mod batch;

pub mod embed;

pub mod handover;
pub mod tracked;

pub mod pipeline;

pub mod admin;
mod causes;
pub mod cli;
pub mod clock;
pub mod config;
pub mod health;
mod label;
pub mod lock;
pub mod metrics;
pub mod model;
pub mod queue;
pub mod seldom;
pub mod shutdown;
pub mod stats;
pub mod unfinished;

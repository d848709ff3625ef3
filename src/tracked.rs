//! The words that all stages share: where a message came from, how far it has come, how it ended.
//!
//! A message is opened in the source, travels as [`Tracked<T>`] from stage to stage while `T`
//! changes, and ends in exactly one [`Settlement`], which goes back to the source. The origin can't
//! be lost on the way: [`Tracked::map`] changes the payload alone. There is no settlement by
//! `Drop`: a message that a bug forgets stays visible as a commit that doesn't move and a growing
//! age.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Instant;

use rdkafka::message::{BorrowedMessage, Headers, Message, OwnedHeaders};

use crate::label::labels;

/// The offset of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Offset(pub i64);

impl Offset {
    /// Returns what Kafka wants committed once this message is settled: the offset of the next.
    pub fn next(self) -> NextOffset {
        NextOffset(self.0 + 1)
    }
}

/// The offset from which a group goes on: one more than the last settled message's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NextOffset(pub i64);

/// A span of time in which this worker owns a partition. A partition that is taken away and given
/// back is another assignment, so that what is left of the first can't be taken for the second's.
#[derive(Debug)]
pub struct Assignment {
    /// The partition of the input topic.
    pub partition: i32,
    /// Counts the assignments of this worker; no two are equal.
    pub number: u64,
    state: AtomicU8,
}

/// The partition is this worker's.
const HELD: u8 = 0;
/// The partition is to be given up.
const LEAVING: u8 = 1;
/// The partition is another's.
const OVER: u8 = 2;

impl Assignment {
    /// Returns an assignment that holds.
    pub fn new(partition: i32, number: u64) -> Arc<Self> {
        Arc::new(Assignment { partition, number, state: AtomicU8::new(HELD) })
    }

    /// Begins the end: what hasn't been embedded is abandoned, what has is still published and
    /// committed. That keeps the time that a rebalance or a stop takes to one forward pass.
    pub fn leave(&self) {
        self.state.fetch_max(LEAVING, Ordering::AcqRel);
    }

    /// Returns whether the assignment is ending or has ended.
    pub fn is_leaving(&self) -> bool {
        self.state.load(Ordering::Acquire) >= LEAVING
    }

    /// Ends the assignment. Messages of it that are still on their way may be dropped anywhere: the
    /// partition's next owner gets them again.
    pub fn revoke(&self) {
        self.state.fetch_max(OVER, Ordering::AcqRel);
    }

    /// Returns whether the assignment has ended.
    pub fn is_revoked(&self) -> bool {
        self.state.load(Ordering::Acquire) >= OVER
    }
}

/// A message as the broker gave it.
#[derive(Clone, Debug, Default)]
pub struct RawMessage {
    /// The key, if it has one.
    pub key: Option<Vec<u8>>,
    /// The value; `None` is a tombstone.
    pub value: Option<Vec<u8>>,
    /// The headers, in order, duplicates included.
    pub headers: Option<OwnedHeaders>,
    /// Milliseconds since 1970, if the message has a timestamp.
    pub timestamp_ms: Option<i64>,
}

impl RawMessage {
    /// Copies a message out of librdkafka's memory.
    pub fn copy(message: &BorrowedMessage<'_>) -> RawMessage {
        RawMessage {
            key: message.key().map(<[u8]>::to_vec),
            value: message.payload().map(<[u8]>::to_vec),
            headers: message.headers().filter(|h| h.count() > 0).map(|h| h.detach()),
            timestamp_ms: message.timestamp().to_millis(),
        }
    }

    /// Returns about how many bytes of memory the message takes. Headers are counted and not looked
    /// at: rdkafka panics where a header's name isn't UTF-8, which Kafka allows.
    pub fn bytes(&self) -> usize {
        let of = |part: &Option<Vec<u8>>| part.as_ref().map_or(0, Vec::len);
        let headers = self.headers.as_ref().map_or(0, Headers::count);
        of(&self.key) + of(&self.value) + headers * HEADER_BYTES
    }
}

/// What a header is taken to weigh.
const HEADER_BYTES: usize = 128;

/// Where a message came from, and the message itself: a rejection must reach the dead-letter topic
/// byte for byte, from whatever stage.
#[derive(Debug)]
pub struct Origin {
    /// The assignment under which it was received.
    pub assignment: Arc<Assignment>,
    /// Its offset in the partition.
    pub offset: Offset,
    /// Its number within the assignment, from 0, without gaps. Offsets have gaps.
    pub sequence: u64,
    /// When this worker received it.
    pub received: Instant,
    /// The message.
    pub message: RawMessage,
}

/// Something on its way through the stages, with its origin.
#[derive(Debug)]
pub struct Tracked<T> {
    /// Where it came from.
    pub origin: Box<Origin>,
    /// What it has become.
    pub payload: T,
}

impl<T> Tracked<T> {
    /// Changes the payload, and keeps the origin.
    pub fn map<U>(self, change: impl FnOnce(T) -> U) -> Tracked<U> {
        Tracked { origin: self.origin, payload: change(self.payload) }
    }
}

/// Why a message was rejected. The label is in the dead letter's headers, too.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RejectReason {
    /// The value isn't UTF-8.
    NotUtf8,
    /// The value isn't JSON.
    NotJson,
    /// The JSON has nothing at the caption's pointer.
    CaptionMissing,
    /// What is at the caption's pointer isn't a string.
    CaptionNotText,
    /// The caption has more bytes than `input.caption_bytes_max`.
    CaptionTooLarge,
    /// The caption has no text for the network: empty, blank, or nothing that the tokenizer keeps.
    CaptionEmpty,
    /// The tokenizer failed on the caption.
    NotTokenized,
    /// The id is missing, or neither a string nor a whole number, nor a key in UTF-8.
    IdMissing,
    /// The network failed on this caption and not on others.
    NotEmbedded,
    /// The vector has a number that isn't finite.
    NotFinite,
    /// The broker refuses the record of the vector, or the tombstone, for what it is: too large, an
    /// invalid timestamp, or no key for a topic that is compacted.
    RecordRefused,
}

labels!(RejectReason {
    NotUtf8 => "not_utf8",
    NotJson => "not_json",
    CaptionMissing => "caption_missing",
    CaptionNotText => "caption_not_text",
    CaptionTooLarge => "caption_too_large",
    CaptionEmpty => "caption_empty",
    NotTokenized => "not_tokenized",
    IdMissing => "id_missing",
    NotEmbedded => "not_embedded",
    NotFinite => "not_finite",
    RecordRefused => "record_refused",
});

/// A message that can't become a vector, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejection {
    /// The kind of fault.
    pub reason: RejectReason,
    /// A sentence about this one, for people. It goes into the log, and never quotes the message.
    pub detail: String,
}

impl Rejection {
    /// Returns a rejection with a sentence about it.
    pub fn new(reason: RejectReason, detail: impl Into<String>) -> Self {
        Rejection { reason, detail: detail.into() }
    }
}

/// How a message ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Its vector is acknowledged by the broker.
    Embedded,
    /// It was a tombstone, and its tombstone is acknowledged.
    Tombstone,
    /// Its dead letter is acknowledged, or `on_reject = "skip"` let it go.
    Rejected,
}

labels!(Outcome {
    Embedded => "embedded",
    Tombstone => "tombstone",
    Rejected => "rejected",
});

/// The end of a message: the only thing that goes back to the source.
#[derive(Debug)]
pub struct Settlement {
    /// The assignment under which it was received.
    pub assignment: Arc<Assignment>,
    /// Its offset.
    pub offset: Offset,
    /// How it ended.
    pub outcome: Outcome,
}

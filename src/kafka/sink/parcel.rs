//! What the sink publishes: one message's vector, tombstone or dead letter.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use crate::handover::PreparedCaption;
use crate::tracked::{Origin, Outcome, Rejection, Tracked};

/// What leaves in the order of its partition.
pub(super) enum Ordered {
    Vector {
        caption: Tracked<PreparedCaption>,
        vector: Box<[f32]>,
        embedded: Instant,
    },
    Tombstone(Tracked<()>),
    /// It holds nobody up, but waits like the others: one that overtook captions which are then
    /// abandoned would be written again by the partition's next owner.
    Rejected(Tracked<Rejection>),
}

/// Something on its way to the brokers. It keeps the message until it is settled, for it may still
/// become a dead letter, or be sent again.
pub struct Parcel {
    pub(super) item: Ordered,
    /// Why the record couldn't be written, or the broker wouldn't take it.
    refused: OnceLock<Rejection>,
    /// Whether the broker wouldn't take the dead letter for its time.
    is_untimely: AtomicBool,
}

impl Parcel {
    pub(super) fn new(item: Ordered) -> Arc<Parcel> {
        Arc::new(Parcel { item, refused: OnceLock::new(), is_untimely: AtomicBool::new(false) })
    }

    pub(super) fn origin(&self) -> &Origin {
        match &self.item {
            Ordered::Vector { caption, .. } => &caption.origin,
            Ordered::Tombstone(tombstone) => &tombstone.origin,
            Ordered::Rejected(rejected) => &rejected.origin,
        }
    }

    /// Makes it a dead letter.
    pub(super) fn refuse(&self, rejection: Rejection) {
        // One that was refused is a dead letter, which isn't refused for itself another time.
        drop(self.refused.set(rejection));
    }

    /// Has the dead letter sent with the time of now; returns whether it wasn't before.
    pub(super) fn drop_time(&self) -> bool {
        !self.is_untimely.swap(true, Ordering::AcqRel)
    }

    /// Returns whether the dead letter has the time of now.
    pub(super) fn is_untimely(&self) -> bool {
        self.is_untimely.load(Ordering::Acquire)
    }

    /// Returns which record it is sent as: whether that is a dead letter, and whether it has the time
    /// of now. A parcel takes each form once.
    pub(super) fn form(&self) -> (bool, bool) {
        (self.rejection().is_some(), self.is_untimely())
    }

    /// Returns why it is a dead letter, if it is one.
    pub(super) fn rejection(&self) -> Option<&Rejection> {
        match &self.item {
            Ordered::Rejected(rejected) => Some(&rejected.payload),
            _ => self.refused.get(),
        }
    }

    pub(super) fn outcome(&self) -> Outcome {
        match &self.item {
            _ if self.rejection().is_some() => Outcome::Rejected,
            Ordered::Tombstone(_) => Outcome::Tombstone,
            _ => Outcome::Embedded,
        }
    }
}

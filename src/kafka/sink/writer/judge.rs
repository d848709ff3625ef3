//! Whether a parcel may become a record: what its topic takes, what a refusal asks for, and whether
//! there are too many.

use std::time::Instant;

use rdkafka::error::{KafkaError, RDKafkaErrorCode};

use super::Writer;
use crate::clock::since_epoch;
use crate::config::OnReject;
use crate::kafka::acknowledged::{is_refused_for_another, is_refused_for_itself};
use crate::kafka::sink::SinkError;
use crate::kafka::sink::parcel::{Ordered, Parcel};
use crate::kafka::timestamps::{OutOfBounds, TimestampBounds};
use crate::tracked::{Origin, RejectReason, Rejection};
use crate::wire::caption::key_as_id;

impl Writer {
    /// Judges and counts a parcel that is about to be written for the first time.
    pub(in crate::kafka::sink) fn count(&mut self, parcel: &Parcel) {
        if parcel.rejection().is_none()
            && let Some(rejection) = self.unwritable(parcel)
        {
            parcel.refuse(rejection);
        }
        match parcel.rejection() {
            Some(rejection) => {
                self.count_rejection(parcel.origin(), rejection);
                self.breaker.rejected();
            }
            None => {
                self.breaker.accepted();
                self.tell_if_soon_deleted(parcel);
            }
        }
        self.look_at_breaker();
    }

    /// Says that a record has the time of its caption, and that the output topic deletes it for
    /// that.
    fn tell_if_soon_deleted(&mut self, parcel: &Parcel) {
        let timestamp_ms = parcel.origin().message.timestamp_ms;
        let Some(retention_ms) = too_old(self.output_timestamps, timestamp_ms) else { return };
        let Some(before) = self.soon_deleted.due((), Instant::now()) else { return };
        let (position, topic) = (self.source(parcel.origin()), &self.output_topic);
        tracing::warn!(
            position,
            timestamp_ms,
            retention_ms,
            before,
            "{topic} deletes this record soon after it is written, as its retention.ms counts from the caption's own \
             time: readers have minutes"
        );
    }

    /// Returns why a parcel must not be written, once it is counted: the breaker has tripped, or it
    /// is rejected and may be neither kept nor skipped. What was written before is to be settled
    /// first.
    pub(in crate::kafka::sink) fn check(&self, parcel: &Parcel) -> Result<(), SinkError> {
        self.check_breaker()?;
        match parcel.rejection() {
            Some(rejection)
                if self.dead_letter_topic.is_none()
                    && self.on_reject == OnReject::Stop
                    && !parcel.origin().assignment.is_revoked() =>
            {
                Err(self.stop_at(parcel.origin(), rejection))
            }
            _ => Ok(()),
        }
    }

    /// Returns why to stop, if the breaker has tripped.
    pub(in crate::kafka::sink) fn check_breaker(&self) -> Result<(), SinkError> {
        let Some(tripped) = self.tripped else { return Ok(()) };
        Err(SinkError::Breaker { tripped, last: self.rejections.last().into() })
    }

    /// Returns why the output topic wouldn't take a parcel's record, as far as can be known before
    /// it is sent: the brokers refuse all that is in one batch with such a record.
    fn unwritable(&self, parcel: &Parcel) -> Option<Rejection> {
        let (topic, message) = (&self.output_topic, &parcel.origin().message);
        let refused = |detail| Some(Rejection::new(RejectReason::RecordRefused, detail));
        if self.needs_key && message.key.is_none() {
            return refused(format!("{topic} is compacted, and takes no record without a key"));
        }
        if let Err(bounds) = check(self.output_timestamps, message.timestamp_ms) {
            return refused(format!("{topic} doesn't take {bounds}"));
        }
        let is_vector = matches!(parcel.item, Ordered::Vector { .. });
        if is_vector && self.key_is_id {
            return key_as_id(message.key.as_deref()).err();
        }
        None
    }

    fn count_rejection(&mut self, origin: &Origin, rejection: &Rejection) {
        self.metrics.rejected.with_label_values(&[rejection.reason.as_label()]).inc();
        let position = self.source(origin);
        self.rejections.add(&position, rejection, Instant::now());
    }

    fn look_at_breaker(&mut self) {
        self.metrics.rejected_run.set(self.breaker.run() as i64);
        self.metrics.rejected_share.set(self.breaker.share());
        if let Err(tripped) = self.breaker.check() {
            self.tripped.get_or_insert(tripped);
        }
    }

    /// Makes a dead letter of a parcel that was counted as a good one. It is written even where
    /// this trips the breaker.
    pub(in crate::kafka::sink) fn refuse(&mut self, parcel: &Parcel, rejection: Rejection) {
        self.count_rejection(parcel.origin(), &rejection);
        parcel.refuse(rejection);
        self.breaker.rejected_after_all();
        self.look_at_breaker();
    }

    /// Judges a parcel that is to be written another time: what its topic takes may have changed
    /// with the time.
    pub(in crate::kafka::sink) fn judge_again(&mut self, parcel: &Parcel) {
        if parcel.rejection().is_none()
            && let Some(rejection) = self.unwritable(parcel)
        {
            self.refuse(parcel, rejection);
        }
    }

    /// Changes a parcel whose record came back so that the next one may be taken; returns whether
    /// there is to be one. What was refused for itself becomes a dead letter, and a dead letter
    /// that may have been refused for its time gets that of now, once.
    pub(in crate::kafka::sink) fn amend(&mut self, parcel: &Parcel, error: &KafkaError) -> bool {
        if is_refused_for_another(error) {
            self.judge_again(parcel);
            return true;
        }
        match self.rejection_for(parcel, error) {
            Some(rejection) => {
                self.refuse(parcel, rejection);
                true
            }
            None => parcel.rejection().is_some() && may_be_for_time(error) && parcel.drop_time(),
        }
    }

    /// Returns the rejection that a refused record asks for; `None` where it isn't the record's
    /// fault, or it is a dead letter already.
    pub(super) fn rejection_for(&self, parcel: &Parcel, error: &KafkaError) -> Option<Rejection> {
        if parcel.rejection().is_some() || !is_refused_for_itself(error) {
            return None;
        }
        let detail = format!("{} refuses the record: {error}", self.output_topic);
        Some(Rejection::new(RejectReason::RecordRefused, detail))
    }
}

/// Tells whether a topic of these bounds takes a record of this time now. One without a time is
/// given that of now.
pub(super) fn check(bounds: TimestampBounds, timestamp_ms: Option<i64>) -> Result<(), OutOfBounds> {
    let Some(timestamp_ms) = timestamp_ms else { return Ok(()) };
    bounds.check(timestamp_ms, since_epoch().as_millis() as i64)
}

/// Returns the topic's `retention.ms` where it would delete a record of this time at once.
pub(super) fn too_old(bounds: TimestampBounds, timestamp_ms: Option<i64>) -> Option<i64> {
    bounds.too_old(timestamp_ms?, since_epoch().as_millis() as i64)
}

/// Returns whether a record may have been refused for its time. Where the brokers refuse several
/// records of a batch, whatever for, librdkafka says of each only that it is invalid.
fn may_be_for_time(error: &KafkaError) -> bool {
    matches!(
        error.rdkafka_error_code(),
        Some(RDKafkaErrorCode::InvalidTimestamp | RDKafkaErrorCode::InvalidRecord)
    )
}

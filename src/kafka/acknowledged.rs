//! Whether a record that was sent is acknowledged.
//!
//! librdkafka's idempotent producer takes a record for acknowledged, too, where a later one of its
//! partition is (`rd_kafka_dr_implicit_ack`): a broker refuses what comes behind a gap, so the
//! earlier one must have arrived, and only its answer been lost. But a broker that knows nothing of
//! the producer yet accepts any first number. Where a leader refuses the first batch, since it
//! isn't one yet, and is one when the second arrives, the first is in no log, and is reported as
//! delivered. Such a record has no offset, for no answer told one.

use rdkafka::bindings::RD_KAFKA_OFFSET_INVALID;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{DeliveryResult, Message};

/// What is said of a record that no broker has answered for.
const UNANSWERED: RDKafkaErrorCode = RDKafkaErrorCode::Inconsistent;

/// Returns whether a broker has answered that it has the record.
///
/// # Errors
///
/// With why the record came back, or, where a later record was acknowledged in its place, one that
/// [`is_unanswered`].
pub fn acknowledged(result: &DeliveryResult<'_>) -> Result<(), KafkaError> {
    match result {
        Ok(record) if record.offset() == i64::from(RD_KAFKA_OFFSET_INVALID) => {
            Err(KafkaError::MessageProduction(UNANSWERED))
        }
        Ok(_) => Ok(()),
        Err((error, _)) => Err(error.clone()),
    }
}

/// Returns whether it isn't known if a record was written: a later one was acknowledged, and it
/// wasn't.
pub fn is_unanswered(error: &KafkaError) -> bool {
    error.rdkafka_error_code() == Some(UNANSWERED)
}

/// Returns whether a record was refused for another one of its batch.
pub fn is_refused_for_another(error: &KafkaError) -> bool {
    error.rdkafka_error_code() == Some(RDKafkaErrorCode::InvalidDifferentRecord)
}

/// Returns whether a record was refused for what it is.
pub fn is_refused_for_itself(error: &KafkaError) -> bool {
    matches!(
        error.rdkafka_error_code(),
        Some(
            RDKafkaErrorCode::MessageSizeTooLarge
                // It is larger than a segment of its topic.
                | RDKafkaErrorCode::MessageBatchTooLarge
                | RDKafkaErrorCode::InvalidMessageSize
                | RDKafkaErrorCode::InvalidRecord
                | RDKafkaErrorCode::InvalidTimestamp
        )
    )
}

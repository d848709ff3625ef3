//! What librdkafka has to say, in the worker's log.

use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::KafkaError;

use crate::seldom::repeats;

/// Writes a line of librdkafka into the log.
pub(super) fn log(level: RDKafkaLogLevel, facility: &str, message: &str) {
    // One map of properties serves both clients, and each is told of the other's: no news.
    if facility == "CONFWARN" {
        tracing::debug!(target: "librdkafka", facility, "{message}");
        return;
    }
    match level {
        RDKafkaLogLevel::Emerg
        | RDKafkaLogLevel::Alert
        | RDKafkaLogLevel::Critical
        | RDKafkaLogLevel::Error => {
            if let Some(repeated) = repeats(facility) {
                tracing::error!(target: "librdkafka", facility, repeated, "{message}");
            }
        }
        RDKafkaLogLevel::Warning => {
            if let Some(repeated) = repeats(facility) {
                tracing::warn!(target: "librdkafka", facility, repeated, "{message}");
            }
        }
        RDKafkaLogLevel::Notice | RDKafkaLogLevel::Info => {
            tracing::info!(target: "librdkafka", facility, "{message}");
        }
        RDKafkaLogLevel::Debug => tracing::debug!(target: "librdkafka", facility, "{message}"),
    }
}

/// Notes an error that librdkafka tells of and retries by itself.
pub(super) fn log_client_error(client: &'static str, error: &KafkaError, reason: &str) {
    if let Some(repeated) = repeats(&format!("{client} {error}")) {
        tracing::warn!(client, %error, repeated, "{reason}");
    }
}

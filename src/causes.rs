//! An error with its causes, in one line, for the log and for standard error.

use std::error::Error;

/// Returns an error and its causes, one after the other. librdkafka's errors end with the words of
/// their cause; those aren't said again.
pub fn with_causes(error: &dyn Error) -> String {
    let mut said = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let words = error.to_string();
        if !said.ends_with(&words) {
            said = format!("{said}: {words}");
        }
        cause = error.source();
    }
    said
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::anyhow;
    use rdkafka::error::{KafkaError, RDKafkaErrorCode};

    #[test]
    fn a_cause_is_said_once() {
        let refused =
            KafkaError::MessageConsumptionFatal(RDKafkaErrorCode::GroupAuthorizationFailed);
        let failed = anyhow::Error::new(refused).context("the consumer failed");
        let said = with_causes(&*failed);
        assert!(said.starts_with("the consumer failed: "), "{said}");
        assert_eq!(said.matches("GroupAuthorizationFailed").count(), 1, "{said}");
        assert_eq!(with_causes(&*anyhow!("c").context("b").context("a")), "a: b: c");
    }
}

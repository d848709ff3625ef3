//! An error with its causes, in one line, for the log and for standard error.

/// Returns an error and its causes, one after the other. librdkafka's errors end with the words of
/// their cause; those aren't said again.
pub fn with_causes(error: &anyhow::Error) -> String {
    let mut said = String::new();
    for cause in error.chain() {
        let words = cause.to_string();
        if said.is_empty() {
            said = words;
        } else if !said.ends_with(&words) {
            said = format!("{said}: {words}");
        }
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
        let said = with_causes(&anyhow::Error::new(refused).context("the consumer failed"));
        assert!(said.starts_with("the consumer failed: "), "{said}");
        assert_eq!(said.matches("GroupAuthorizationFailed").count(), 1, "{said}");
        assert_eq!(with_causes(&anyhow!("c").context("b").context("a")), "a: b: c");
    }
}

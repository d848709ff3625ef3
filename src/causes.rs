//! An error with its causes, in one line, for the log and for standard error.

use std::error::Error;

/// Returns an error and its causes, one after the other. librdkafka's errors end with the words of
/// their cause; those aren't said again. Control characters, which may be a stranger's and which a
/// terminal would obey, are escaped, but for ends of lines and tabs.
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
    let is_obeyed = |c: char| c.is_control() && !matches!(c, '\n' | '\t');
    let shown = |c: char| match is_obeyed(c) {
        true => c.escape_default().to_string(),
        false => c.to_string(),
    };
    if said.contains(is_obeyed) { said.chars().map(shown).collect() } else { said }
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

    #[test]
    fn no_terminal_obeys_what_is_said() {
        let said = with_causes(&*anyhow!("of\u{1b}[2J and\r\u{9b}A\n\tsecond").context("a\u{7}"));
        assert_eq!(said, "a\\u{7}: of\\u{1b}[2J and\\r\\u{9b}A\n\tsecond");
    }
}

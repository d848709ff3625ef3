//! What the tests of this folder share: a file that is enough, and the faults of one that isn't.

use std::io::Write;

use super::Config;
use super::fault::{ConfigError, Fault};
use super::load::load_with;

/// All that is required.
pub(super) const MINIMAL: &str = r#"
    kafka = { brokers = "b:9092", group = "g" }
    input = { topic = "in" }
    output = { topic = "out" }
    model = { package = "p" }
"#;

/// What [`without_kafka`] needs.
pub(super) const BROKERS: [(&str, &str); 2] =
    [("CAPVEC__KAFKA__BROKERS", "b"), ("CAPVEC__KAFKA__GROUP", "g")];

/// For a table of Kafka's to be written out behind it.
pub(super) fn without_kafka() -> String {
    MINIMAL.replace("kafka = { brokers = \"b:9092\", group = \"g\" }", "")
}

/// Loads a file and variables.
pub(super) fn load_text(text: &str, variables: &[(&str, &str)]) -> Result<Config, ConfigError> {
    load_layers(text, variables, &[])
}

/// Loads a file, variables and flags.
pub(super) fn load_layers(
    text: &str,
    variables: &[(&str, &str)],
    flags: &[(&str, &str)],
) -> Result<Config, ConfigError> {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(text.as_bytes()).unwrap();
    load_with(Some(file.path()), &pairs::<Vec<_>>(flags), Some(pairs(variables)))
}

/// Returns variables or flags as [`load_with`] takes them.
pub(super) fn pairs<C: FromIterator<(String, String)>>(pairs: &[(&str, &str)]) -> C {
    pairs.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect()
}

/// Returns the faults, each as it is told.
#[track_caller]
pub(super) fn faults(result: Result<Config, ConfigError>) -> Vec<String> {
    match result {
        Err(ConfigError::Faults(faults)) => faults.iter().map(Fault::to_string).collect(),
        other => panic!("faults were due, and not {other:?}"),
    }
}

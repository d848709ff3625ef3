//! Mistakes outside the file: variables that nobody would read, and secrets on the command line.

use serde_json::{Map, Value};

use super::Config;
use super::fault::Fault;
use super::merge::closest;
use super::properties::{is_visible_secret, property_name};

/// Finds the variables that nobody would read: an option's name with one underscore where two are
/// due.
pub(super) fn misspelt_variables<'a>(names: impl Iterator<Item = &'a String>) -> Vec<Fault> {
    let defaults = serde_json::to_value(Config::default()).expect("options are plain data");
    let sections = defaults.as_object().expect("the configuration has sections");
    let mut faults: Vec<Fault> = names
        .filter_map(|name| {
            let rest = name.strip_prefix("CAPVEC_").filter(|rest| !rest.starts_with('_'))?;
            let due = sections.iter().find_map(|(section, known)| {
                let key = rest.strip_prefix(&section.to_uppercase())?.strip_prefix('_')?;
                option_meant(key.trim_start_matches('_'), known.as_object()?)
                    .map(|option| format!("CAPVEC__{}__{option}", section.to_uppercase()))
            })?;
            Some(Fault::new(name, format!("isn't read; is it {due}, with two underscores?")))
        })
        .collect();
    faults.sort_by(|a, b| a.path.cmp(&b.path));
    faults
}

/// Returns the name, for a variable, of the option that is meant, if one is.
fn option_meant(key: &str, known: &Map<String, Value>) -> Option<String> {
    for map in ["LIBRDKAFKA_FILES", "LIBRDKAFKA"] {
        if let Some(property) = key.strip_prefix(map).and_then(|rest| rest.strip_prefix('_')) {
            return Some(format!("{map}__{}", property.trim_start_matches('_')));
        }
    }
    // Kubernetes sets CAPVEC_KAFKA_GROUP_PORT_9092_TCP and the like for a service of the name
    // capvec-kafka-group.
    if key.split('_').any(|word| word == "SERVICE" || word == "PORT") {
        return None;
    }
    closest(&key.to_lowercase(), known).map(str::to_uppercase)
}

/// Finds the secrets among the values of `--set`.
pub(super) fn secrets_on_the_command_line(
    overrides: &[(String, String)],
) -> impl Iterator<Item = Fault> {
    overrides.iter().filter_map(|(path, _)| {
        let path = path.to_lowercase();
        let property = path.strip_prefix("kafka.librdkafka.").map(property_name)?;
        let variable = property.replace('.', "_").to_uppercase();
        is_visible_secret(&property).then(|| {
            let message = format!(
                "is a secret, which every user of the machine reads in --set; put it into a file that \
                 kafka.librdkafka_files.{property} names, or into the variable \
                 CAPVEC__KAFKA__LIBRDKAFKA__{variable}"
            );
            Fault::new(format!("kafka.librdkafka.{property}"), message)
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::fixtures::{MINIMAL, faults, load_layers, load_text};

    #[test]
    fn a_variable_with_single_underscores_is_a_fault_with_the_right_spelling() {
        let variables = [
            ("CAPVEC_KAFKA_BROKERS", "b"),
            ("CAPVEC_KAFKA__GROUP", "g"),
            ("CAPVEC_BATCH_TOKENS_MAX", "1"),
            ("CAPVEC_INPUT_TOPIK", "in"),
            ("CAPVEC_KAFKA_LIBRDKAFKA_SASL_PASSWORD", "hunter2"),
            ("CAPVEC_KAFKA_LIBRDKAFKA_FILES_SASL_PASSWORD", "f"),
        ];
        let faults = faults(load_text(MINIMAL, &variables));
        for due in [
            "CAPVEC__KAFKA__BROKERS",
            "CAPVEC__KAFKA__GROUP",
            "CAPVEC__BATCH__TOKENS_MAX",
            "CAPVEC__INPUT__TOPIC",
            "CAPVEC__KAFKA__LIBRDKAFKA__SASL_PASSWORD",
            "CAPVEC__KAFKA__LIBRDKAFKA_FILES__SASL_PASSWORD",
        ] {
            assert!(faults.iter().any(|f| f.contains(&format!("{due}, "))), "{due}\n{faults:#?}");
        }
        assert_eq!(faults.len(), variables.len(), "{faults:#?}");
        // Those of scripts, and those that Kubernetes makes of services.
        let others = [
            ("CAPVEC_CACHE", "c"),
            ("CAPVEC_KAFKA_LIBS", "l"),
            ("CAPVEC_PORT", "tcp://10.0.0.1:9180"),
            ("CAPVEC_METRICS_SERVICE_HOST", "10.0.0.1"),
            ("CAPVEC_KAFKA_BOOTSTRAP_PORT_9092_TCP_ADDR", "10.0.0.1"),
        ];
        load_text(MINIMAL, &others).unwrap();
    }

    #[test]
    fn a_secret_on_the_command_line_is_refused_without_its_value() {
        let set = |path: &str| load_layers(MINIMAL, &[], &[(path, "hunter2")]);
        for path in ["sasl.password", "sasl_password", "SASL.password", "ssl.key.pem"] {
            let faults = faults(set(&format!("kafka.librdkafka.{path}")));
            let fault = faults.iter().find(|f| f.contains("kafka.librdkafka_files.s")).unwrap();
            assert!(fault.contains("CAPVEC__KAFKA__LIBRDKAFKA__S"), "{fault}");
            assert!(!faults.concat().contains("hunter2"), "{faults:?}");
        }
        for path in ["sasl.username", "sasl.oauthbearer.token.endpoint.url"] {
            let flag = (format!("kafka.librdkafka.{path}"), "https://login.example".to_string());
            assert_eq!(secrets_on_the_command_line(&[flag]).count(), 0, "{path}");
        }
    }
}

//! Mistakes outside the file: variables that nobody would read or that are wrong, and secrets on
//! the command line.

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
    closest(key, known).map(str::to_uppercase)
}

/// Notes of each fault the variable that sets its option, or something in it. A flag, which lies
/// over the variables, everybody sees.
pub(super) fn name_variables(
    faults: &mut [Fault],
    variables: &[String],
    flags: &[(String, String)],
) {
    let mut set: Vec<(String, &String)> = variables
        .iter()
        .filter_map(|name| {
            let option = name.to_lowercase().strip_prefix("capvec__")?.replace("__", ".");
            Some((option_name(&option), name))
        })
        .collect();
    set.sort_unstable();
    for fault in faults {
        let is_of = |option: &str| {
            let rest = option.strip_prefix(fault.path.as_str());
            rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
        };
        if !flags.iter().any(|(path, _)| is_of(&option_name(path))) {
            let variable = set.iter().find(|(option, _)| is_of(option));
            fault.variable = variable.map(|(_, name)| (*name).clone());
        }
    }
}

/// Returns the path of an option, however a variable or a flag writes it.
fn option_name(path: &str) -> String {
    let path = path.to_lowercase();
    for map in ["kafka.librdkafka_files.", "kafka.librdkafka."] {
        if let Some(property) = path.strip_prefix(map) {
            return format!("{map}{}", property_name(property));
        }
    }
    path
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
    fn a_fault_of_a_variable_names_the_variable() {
        let text = format!("{MINIMAL}\nbatch = {{ tokens_max = -1 }}");
        let variables = [
            ("CAPVEC__KAFKA__BROKER", "b"),
            ("CAPVEC__COLOUR__OF__IT", "red"),
            ("CAPVEC__INPUT__FORMAT", "xml"),
            ("capvec__kafka__librdkafka__sasl_pasword", "hunter2"),
            ("CAPVEC__OUTPUT__TOPIC", "in"),
            ("CAPVEC__BATCH__WAIT_MAX", "5"),
        ];
        let faults = faults(load_layers(&text, &variables, &[("batch.wait_max", "6")]));
        for (option, variable) in [
            ("kafka.broker", "CAPVEC__KAFKA__BROKER"),
            ("colour", "CAPVEC__COLOUR__OF__IT"),
            ("input.format", "CAPVEC__INPUT__FORMAT"),
            ("kafka.librdkafka.sasl.pasword", "capvec__kafka__librdkafka__sasl_pasword"),
            ("output.topic", "CAPVEC__OUTPUT__TOPIC"),
        ] {
            let end = format!(" (set by the variable {variable})");
            let fault = faults.iter().find(|f| f.starts_with(&format!("{option}: "))).unwrap();
            assert!(fault.ends_with(&end), "{fault}");
        }
        for option in ["batch.tokens_max", "batch.wait_max"] {
            let fault = faults.iter().find(|f| f.starts_with(option)).unwrap();
            assert!(!fault.contains("variable"), "{fault}: of the file, or of a flag");
        }
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

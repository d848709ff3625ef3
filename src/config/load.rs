//! Reads the layers of the configuration, each laid over those before it.
//!
//! The `config` crate reads a layer into a tree. However a layer has to write an option, it has one
//! name in the trees; what they come to is checked in `merge`.

use std::ffi::OsString;
use std::io::ErrorKind;
use std::path::Path;

use config::builder::{ConfigBuilder, DefaultState};
use config::{Environment, File, FileFormat};
use serde_json::{Map, Value};

use super::Config;
use super::fault::{ConfigError, Fault};
use super::merge::from_tree;
use super::mistakes::{misspelt_variables, name_variables, secrets_on_the_command_line};
use super::properties::property_name;

/// Reads and checks the configuration: the defaults, then the file, then `CAPVEC__SECTION__KEY`
/// variables, then `overrides`, pairs of `section.key` and a value.
///
/// # Errors
///
/// When a layer can't be read, or with every fault of every option.
pub fn load(file: Option<&Path>, overrides: &[(String, String)]) -> Result<Config, ConfigError> {
    load_with(file, overrides, None)
}

/// As [`load`], with the environment given; the process's own where it is `None`.
pub(super) fn load_with(
    file: Option<&Path>,
    overrides: &[(String, String)],
    environment: Option<config::Map<String, String>>,
) -> Result<Config, ConfigError> {
    let (environment, mut faults) = match environment {
        Some(variables) => (variables, Vec::new()),
        None => own_environment(std::env::vars_os()),
    };
    faults.extend(misspelt_variables(environment.keys()));
    faults.extend(secrets_on_the_command_line(overrides));
    let names: Vec<String> = environment.keys().cloned().collect();
    let mut given = Value::Object(Map::new());
    if let Some(path) = file {
        let source = File::from_str(&read(path)?, FileFormat::Toml);
        lay_over(&mut given, layer(config::Config::builder().add_source(source))?);
    }
    let variables = Environment::with_prefix("CAPVEC")
        .prefix_separator("__")
        .separator("__")
        .source(Some(environment));
    lay_over(&mut given, layer(config::Config::builder().add_source(variables))?);
    let mut builder = config::Config::builder();
    for (path, value) in overrides {
        builder = builder
            .set_override(path, value.as_str())
            .map_err(|e| ConfigError::Syntax(format!("--set {path}: {e}")))?;
    }
    lay_over(&mut given, layer(builder)?);
    let is_empty = given.as_object().is_some_and(Map::is_empty);
    if file.is_none() && is_empty && faults.is_empty() {
        return Err(ConfigError::Nothing);
    }
    from_tree(given, faults).map_err(|error| match error {
        ConfigError::Faults(mut faults) => {
            name_variables(&mut faults, &names, overrides);
            ConfigError::Faults(faults)
        }
        other => other,
    })
}

/// Returns the variables, and a fault for each of capvec's whose value can't be read: it may be a
/// secret, which the `config` crate's error would quote.
fn own_environment(
    variables: impl Iterator<Item = (OsString, OsString)>,
) -> (config::Map<String, String>, Vec<Fault>) {
    let mut faults = Vec::new();
    let read = variables
        .filter_map(|(name, value)| {
            let name = name.into_string().ok()?;
            match value.into_string() {
                Ok(value) => Some((name, value)),
                Err(_) => {
                    let is_own = name.to_lowercase().starts_with("capvec__");
                    faults.extend(is_own.then(|| Fault::new(name, "is no UTF-8")));
                    None
                }
            }
        })
        .collect();
    (read, faults)
}

/// Returns what one layer gives, with librdkafka's properties by their names: `session.timeout.ms`
/// is the same option in all layers, however each of them has to write it.
fn layer(builder: ConfigBuilder<DefaultState>) -> Result<Value, ConfigError> {
    let built = builder.build().map_err(|e| ConfigError::Syntax(e.to_string()))?;
    let mut given = built.try_deserialize().map_err(|e| ConfigError::Syntax(e.to_string()))?;
    flatten_properties(&mut given);
    Ok(given)
}

/// Puts a later layer over the earlier ones.
fn lay_over(given: &mut Value, later: Value) {
    match (given, later) {
        (Value::Object(given), Value::Object(later)) => {
            for (key, value) in later {
                match given.get_mut(&key) {
                    Some(before) => lay_over(before, value),
                    None => drop(given.insert(key, value)),
                }
            }
        }
        (given, later) => *given = later,
    }
}

/// Returns the text of the file, which is known to be TOML.
///
/// The parsers' own errors quote the line, and a line may hold a secret.
fn read(path: &Path) -> Result<String, ConfigError> {
    if path.is_dir() {
        return Err(ConfigError::Folder(path.into()));
    }
    let shown = path.display();
    let text = std::fs::read_to_string(path).map_err(|error| match error.kind() {
        ErrorKind::NotFound => ConfigError::NoFile(path.into()),
        _ => ConfigError::Syntax(format!("{shown}: {error}")),
    })?;
    match toml::from_str::<toml::Table>(&text) {
        Ok(_) => Ok(text),
        Err(error) => {
            let before = error.span().and_then(|span| text.get(..span.start)).unwrap_or("");
            let line = before.matches('\n').count() + 1;
            let column = before.chars().rev().take_while(|c| *c != '\n').count() + 1;
            let message = error.message();
            Err(ConfigError::Syntax(format!(
                "{shown} is no TOML: line {line}, column {column}: {message}"
            )))
        }
    }
}

/// librdkafka's names have dots in them. Quoted or not in TOML, they come out as one name each;
/// variables, whose names can't have dots, write them with underscores, which no property has.
fn flatten_properties(given: &mut Value) {
    fn walk(prefix: &str, value: &Value, flat: &mut Map<String, Value>) {
        let text = match value {
            Value::Object(map) => {
                for (key, value) in map {
                    let dot = if prefix.is_empty() { "" } else { "." };
                    walk(&format!("{prefix}{dot}{key}"), value, flat);
                }
                return;
            }
            Value::String(text) => text.clone(),
            scalar => scalar.to_string(),
        };
        // Of the whole name: a part of it has no second name.
        flat.insert(property_name(prefix), Value::String(text));
    }
    for map in ["/kafka/librdkafka", "/kafka/librdkafka_files"] {
        if let Some(properties) = given.pointer_mut(map)
            && properties.is_object()
        {
            let mut flat = Map::new();
            walk("", properties, &mut flat);
            *properties = Value::Object(flat);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::fixtures::{
        BROKERS, MINIMAL, faults, load_layers, load_text, pairs, without_kafka,
    };
    use std::time::Duration;

    #[test]
    fn layers_override_each_other() {
        let text = format!("{MINIMAL}\nbatch = {{ tokens_max = 100, captions_max = 5 }}");
        let variables =
            [("CAPVEC__BATCH__TOKENS_MAX", "200"), ("CAPVEC__DELIVERY__COMMIT_INTERVAL", "2s")];
        let config = load_text(&text, &variables).unwrap();
        assert_eq!(config.batch.tokens_max, 200);
        assert_eq!(config.batch.captions_max.get(), 5);
        assert_eq!(config.delivery.commit_interval, Duration::from_secs(2));
        assert_eq!(config.input.pointer, "/caption");
    }

    #[test]
    fn flags_come_last() {
        let variable = [("CAPVEC__INPUT__TOPIC", "variable")];
        let flag = [("input.topic", "flag")];
        let config = load_layers(MINIMAL, &variable, &flag).unwrap();
        assert_eq!(config.input.topic, "flag");
    }

    #[test]
    fn a_property_is_one_option_however_a_layer_writes_it() {
        let text = without_kafka()
            + "\n[kafka.librdkafka]\n\"session.timeout.ms\" = 46000\n"
            + "security.protocol = \"sasl_ssl\"\n\"sasl.mechanisms\" = \"PLAIN\"\n"
            + "sasl.username = \"me\"\nsasl.password = \"hunter2\"\n";
        let load = |variables: &[(&str, &str)], flags: &[(&str, &str)]| {
            let variables = [&BROKERS[..], variables].concat();
            load_layers(&text, &variables, flags).unwrap().kafka.librdkafka.0
        };
        let variable = [("CAPVEC__KAFKA__LIBRDKAFKA__SESSION_TIMEOUT_MS", "47000")];
        let flag = [("kafka.librdkafka.session.timeout.ms", "48000")];
        assert_eq!(load(&[], &[])["session.timeout.ms"], "46000");
        assert_eq!(load(&variable, &[])["session.timeout.ms"], "47000");
        assert_eq!(load(&[], &flag)["session.timeout.ms"], "48000");
        assert_eq!(load(&variable, &flag)["session.timeout.ms"], "48000");
        for other_name in ["sasl.mechanism", "sasl.mechanisms"] {
            let flag = format!("kafka.librdkafka.{other_name}");
            let properties = load(&[], &[(&flag, "SCRAM-SHA-512")]);
            assert_eq!(properties["sasl.mechanism"], "SCRAM-SHA-512");
            assert!(!properties.contains_key("sasl.mechanisms"), "{:?}", properties.keys());
        }
    }

    #[test]
    fn properties_may_be_quoted_bare_or_variables() {
        let text = without_kafka()
            + "\n[kafka.librdkafka]\n\"linger.ms\" = 7\nsecurity.protocol = \"sasl_ssl\"\n"
            + "sasl.mechanism = \"PLAIN\"\nsasl.username = \"me\"\n"
            + "\n[kafka]\nbrokers = \"b\"\ngroup = \"g\"\n";
        let secret = [("CAPVEC__KAFKA__LIBRDKAFKA__SASL_PASSWORD", "hunter2")];
        let config = load_text(&text, &secret).unwrap();
        let properties = &config.kafka.librdkafka.0;
        assert_eq!(properties["linger.ms"], "7");
        assert_eq!(properties["security.protocol"], "sasl_ssl");
        assert_eq!(properties["sasl.password"], "hunter2");
        assert!(!format!("{config:?}").contains("hunter2"));
    }

    #[test]
    fn no_fault_quotes_what_may_be_a_secret() {
        let unquoted = "[kafka.librdkafka]\n\"sasl.password\" = hunter2\n";
        let unclosed = "[kafka.librdkafka]\n\"sasl.password\" = \"hunter2\n";
        let twice = "[kafka]\nlibrdkafka.sasl.password = \"hunter2\"\nlibrdkafka = \"hunter2\"\n";
        for text in [unquoted, unclosed, twice] {
            let error = load_text(text, &[]).unwrap_err();
            assert!(matches!(error, ConfigError::Syntax(_)), "{error}");
            let error = error.to_string();
            assert!(error.contains(": line ") && !error.contains("hunter2"), "{error}");
        }
        let no_table = "[kafka]\nlibrdkafka = \"sasl.password=hunter2\"\n";
        let misspelt = "[kafka.librdkafka]\n\"sasl.pasword\" = \"hunter2\"\n";
        let misplaced = "[kafka]\n\"sasl.password\" = \"hunter2\"\nsasl.password = \"hunter2\"\n";
        for text in [no_table, misspelt, misplaced] {
            let error = load_text(text, &[]).unwrap_err().to_string();
            assert!(error.contains("  kafka.") && !error.contains("hunter2"), "{error}");
        }
        let variable = [("CAPVEC__KAFKA__LIBRDKAFKA", "sasl.password=hunter2")];
        assert_eq!(
            faults(load_text(MINIMAL, &variable)),
            ["kafka.librdkafka: a table of properties is due (set by the variable \
              CAPVEC__KAFKA__LIBRDKAFKA)"]
        );
        // The secret where the name of its file is due.
        for option in ["LIBRDKAFKA_FILES__SASL_PASSWORD", "BEARER_TOKEN_FILE"] {
            let variables = [
                (&*format!("CAPVEC__KAFKA__{option}"), "hunter2"),
                ("CAPVEC__KAFKA__LIBRDKAFKA__SASL_MECHANISM", "OAUTHBEARER"),
            ];
            let faults = faults(load_text(MINIMAL, &variables)).concat();
            assert!(faults.contains("No such file") && !faults.contains("hunter2"), "{faults}");
        }
    }

    #[cfg(unix)]
    #[test]
    fn a_variable_that_is_no_text_is_a_fault_without_its_value() {
        use std::os::unix::ffi::OsStringExt;

        let latin1 = || OsString::from_vec(b"hunter2\xe9".to_vec());
        let name = "CAPVEC__KAFKA__LIBRDKAFKA__SASL_PASSWORD";
        let variables =
            [(name.into(), latin1()), ("LESS".into(), latin1()), ("A".into(), "b".into())];
        let (read, faults) = own_environment(variables.into_iter());
        assert_eq!(read, [("A".to_string(), "b".to_string())].into());
        assert_eq!(faults, [Fault::new(name, "is no UTF-8")]);
    }

    #[test]
    fn a_folder_and_a_missing_file_are_told_apart() {
        let folder = tempfile::tempdir().unwrap();
        let load = |path: &Path| load_with(Some(path), &[], Some(config::Map::new()));
        let error = load(folder.path()).unwrap_err().to_string();
        assert!(error.contains("is a folder") && error.contains("capvec.toml"), "{error}");
        let error = load(&folder.path().join("none")).unwrap_err().to_string();
        assert!(error.contains("no such file"), "{error}");
    }

    #[test]
    fn without_any_layer_the_file_is_asked_for() {
        let load = |variable: (&str, &str)| load_with(None, &[], Some(pairs(&[variable])));
        let error = load(("CAPVEC_CACHE", "c")).unwrap_err();
        assert!(error.to_string().contains("--config FILE"), "{error}");
        let faults = faults(load(("CAPVEC__KAFKA__GROUP", "g")));
        assert!(faults.iter().any(|f| f.starts_with("kafka.brokers: is required")), "{faults:?}");
    }
}

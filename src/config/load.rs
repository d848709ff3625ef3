//! Reads the layers of the configuration and finds every fault in them.
//!
//! The `config` crate reads each layer into a tree, and each is laid over those before it. The result
//! is held against the tree of the defaults, key by key, so that all faults are found and each is named
//! by its path, where deserializing the whole would stop at the first.

use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};

use config::builder::{ConfigBuilder, DefaultState};
use config::{Environment, File, FileFormat};
use serde_json::{Map, Value};
use thiserror::Error;

use super::Config;
use super::mistakes::{misspelt_variables, secrets_on_the_command_line};
use super::properties::{goes_elsewhere, property_name};
use super::together::refused_together;
use super::words::due;

/// A fault of one option.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// The option, `section.key`.
    pub path: String,
    /// What is wrong with it, and what to do.
    pub message: String,
}

impl Fault {
    pub(super) fn new(path: impl Into<String>, message: impl Into<String>) -> Fault {
        Fault { path: path.into(), message: message.into() }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.path, self.message)
    }
}

/// Why there is no configuration.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// The file isn't there.
    #[error("{0}: no such file")]
    NoFile(PathBuf),
    /// There is a folder.
    #[error("{0} is a folder; --config names the file, such as {shown}", shown = .0.join("capvec.toml").display())]
    Folder(PathBuf),
    /// No layer sets anything.
    #[error(
        "no option is set: pass --config FILE (config/capvec.toml documents every option), or set options by \
         CAPVEC__SECTION__KEY variables or --set SECTION.KEY=VALUE"
    )]
    Nothing,
    /// A layer can't be parsed.
    #[error("{0}")]
    Syntax(String),
    /// Options are wrong.
    #[error("{}", lines(.0))]
    Faults(Vec<Fault>),
}

fn lines(faults: &[Fault]) -> String {
    let number = faults.len();
    let mut text =
        format!("the configuration has {number} fault{}:", if number == 1 { "" } else { "s" });
    for fault in faults {
        text.push_str(&format!("\n  {fault}"));
    }
    text
}

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
fn load_with(
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
    from_tree(given, faults)
}

/// Returns the variables, and a fault for each of capvec's whose value can't be read: it may be a secret, which the
/// `config` crate's error would quote.
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

/// Returns what one layer gives, with librdkafka's properties by their names: `session.timeout.ms` is the same option
/// in all layers, however each of them has to write it.
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
    if !path.is_file() {
        return Err(ConfigError::NoFile(path.into()));
    }
    let shown = path.display();
    let text = std::fs::read_to_string(path)
        .map_err(|error| ConfigError::Syntax(format!("{shown}: {error}")))?;
    match toml::from_str::<toml::Table>(&text) {
        Ok(_) => Ok(text),
        Err(error) => {
            let before = error.span().and_then(|span| text.get(..span.start)).unwrap_or("");
            let line = before.matches('\n').count() + 1;
            let column = before.chars().rev().take_while(|c| *c != '\n').count() + 1;
            let message = error.message();
            Err(ConfigError::Syntax(format!("{shown}: line {line}, column {column}: {message}")))
        }
    }
}

fn from_tree(given: Value, mut faults: Vec<Fault>) -> Result<Config, ConfigError> {
    let defaults = serde_json::to_value(Config::default()).expect("options are plain data");
    let mut config = defaults.clone();
    merge(&mut Vec::new(), &given, &defaults, &mut config, &mut faults);

    let mut config: Config =
        serde_json::from_value(config).expect("each option has been tried by itself");
    faults.extend(config.read_files());
    faults.extend(config.faults(&faults));
    if faults.is_empty() {
        faults.extend(refused_together(&config));
    }
    match faults.is_empty() {
        true => Ok(config),
        false => Err(ConfigError::Faults(faults)),
    }
}

/// Takes over each given option into `config` where it can be read, and notes a fault where not.
fn merge(
    path: &mut Vec<String>,
    given: &Value,
    defaults: &Value,
    config: &mut Value,
    faults: &mut Vec<Fault>,
) {
    let (Value::Object(given), Value::Object(known)) = (given, defaults) else {
        faults.push(Fault::new(path.join("."), "a section is due, with options in it"));
        return;
    };
    for (key, value) in given {
        path.push(key.clone());
        match known.get(key) {
            None => {
                let elsewhere =
                    (path.len() == 2 && path[0] == "kafka").then(|| goes_elsewhere(key));
                let of_section = (path.len() == 1).then(|| in_a_section(key, known)).flatten();
                let near = closest(key, known).map(str::to_owned).or(of_section);
                let message = match (elsewhere.flatten(), near) {
                    (Some(place), _) => format!("no such option; {place}"),
                    (None, Some(near)) => format!("no such option; is it {near}?"),
                    (None, None) => "no such option".into(),
                };
                faults.push(Fault::new(path.join("."), message));
            }
            // A value that is no table may hold a secret, and isn't quoted.
            Some(_) if is_properties(path) && !value.is_object() => {
                faults.push(Fault::new(path.join("."), "a table of properties is due"));
            }
            Some(default @ Value::Object(_)) if !is_properties(path) => {
                merge(path, value, default, &mut config[key.as_str()], faults);
            }
            Some(default) => match try_option(path, as_kind_of(value, default)) {
                Ok(value) => config[key.as_str()] = value,
                Err(message) => faults.push(Fault::new(path.join("."), message)),
            },
        }
        path.pop();
    }
}

/// Returns whether an option is a free map of librdkafka's properties.
fn is_properties(path: &[String]) -> bool {
    path == ["kafka", "librdkafka"] || path == ["kafka", "librdkafka_files"]
}

/// Returns the value if a configuration with it and nothing else can be read.
fn try_option(path: &[String], value: Value) -> Result<Value, String> {
    let tree = path
        .iter()
        .rev()
        .fold(value.clone(), |inner, key| Value::Object(Map::from_iter([(key.clone(), inner)])));
    match serde_json::from_value::<Config>(tree) {
        Ok(_) => Ok(value),
        Err(error) => Err(due(&value, &error.to_string())),
    }
}

/// Variables and flags are text; returns it as the number or the boolean that the option is.
fn as_kind_of(value: &Value, default: &Value) -> Value {
    match (value, default) {
        (Value::String(text), Value::Number(_) | Value::Bool(_)) => {
            serde_json::from_str(text.trim()).unwrap_or_else(|_| value.clone())
        }
        _ => value.clone(),
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

/// Returns the path of the option of this name that is in a section, if one is.
fn in_a_section(key: &str, sections: &Map<String, Value>) -> Option<String> {
    let has = |options: &Value| options.get(key).is_some();
    let (section, _) = sections.iter().find(|(_, options)| has(options))?;
    Some(format!("{section}.{key}"))
}

/// Returns the known key that differs least from `key`, if one is near enough to be meant.
pub(super) fn closest<'a>(key: &str, known: &'a Map<String, Value>) -> Option<&'a str> {
    known
        .keys()
        .map(|candidate| (strsim::damerau_levenshtein(key, candidate), candidate.as_str()))
        .min()
        .filter(|(distance, _)| *distance <= key.len().div_ceil(3))
        .map(|(_, candidate)| candidate)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::time::Duration;

    const MINIMAL: &str = r#"
        kafka = { brokers = "b:9092", group = "g" }
        input = { topic = "in" }
        output = { topic = "out" }
        model = { package = "p" }
    "#;

    /// What [`without_kafka`] needs.
    const BROKERS: [(&str, &str); 2] =
        [("CAPVEC__KAFKA__BROKERS", "b"), ("CAPVEC__KAFKA__GROUP", "g")];

    /// For a table of Kafka's to be written out behind it.
    fn without_kafka() -> String {
        MINIMAL.replace("kafka = { brokers = \"b:9092\", group = \"g\" }", "")
    }

    fn load_text(text: &str, variables: &[(&str, &str)]) -> Result<Config, ConfigError> {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(text.as_bytes()).unwrap();
        let variables = variables.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect();
        load_with(Some(file.path()), &[], Some(variables))
    }

    #[track_caller]
    fn faults(result: Result<Config, ConfigError>) -> Vec<String> {
        match result {
            Err(ConfigError::Faults(faults)) => faults.iter().map(Fault::to_string).collect(),
            other => panic!("faults were due, and not {other:?}"),
        }
    }

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
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(MINIMAL.as_bytes()).unwrap();
        let variables = [("CAPVEC__INPUT__TOPIC".to_string(), "variable".to_string())].into();
        let flags = [("input.topic".to_string(), "flag".to_string())];
        let config = load_with(Some(file.path()), &flags, Some(variables)).unwrap();
        assert_eq!(config.input.topic, "flag");
    }

    #[test]
    fn a_property_is_one_option_however_a_layer_writes_it() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        let quoted =
            "\n[kafka.librdkafka]\n\"session.timeout.ms\" = 46000\n\"sasl.mechanisms\" = \"PLAIN\"";
        file.write_all(format!("{}{quoted}", without_kafka()).as_bytes()).unwrap();
        let load = |variables: &[(&str, &str)], flags: &[(&str, &str)]| {
            let variables = BROKERS.iter().chain(variables);
            let variables = variables.map(|(k, v)| (k.to_string(), v.to_string())).collect();
            let flags: Vec<_> = flags.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect();
            load_with(Some(file.path()), &flags, Some(variables)).unwrap().kafka.librdkafka.0
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
    fn every_fault_is_told_at_once_by_its_path() {
        let text = r#"
            kafka = { brokers = "b:9092", gruop = "g" }
            input = { topic = "x", format = "xml", pointer = "caption" }
            output = { topic = "x" }
            batch = { tokens_max = -2, wait_max = "soon" }
            colour = "red"
            pointer = "/caption"
        "#;
        let faults = faults(load_text(text, &[("CAPVEC__TOKENIZE__THREADS", "many")]));
        for expected in [
            "kafka.gruop: no such option; is it group?",
            "kafka.group: is required",
            "input.format: ",
            "input.pointer: ",
            "output.topic: ",
            "model.package: is required",
            "batch.tokens_max: ",
            "batch.wait_max: ",
            "tokenize.threads: ",
            "colour: no such option",
            "pointer: no such option; is it input.pointer?",
        ] {
            assert!(faults.iter().any(|f| f.starts_with(expected)), "{expected}\n{faults:#?}");
        }
        assert_eq!(faults.len(), 11, "{faults:#?}");
    }

    #[test]
    fn properties_may_be_quoted_bare_or_variables() {
        let text = without_kafka()
            + "\n[kafka.librdkafka]\n\"linger.ms\" = 7\nsecurity.protocol = \"ssl\"\n"
            + "\n[kafka]\nbrokers = \"b\"\ngroup = \"g\"\n";
        let secret = [("CAPVEC__KAFKA__LIBRDKAFKA__SASL_PASSWORD", "hunter2")];
        let config = load_text(&text, &secret).unwrap();
        let properties = &config.kafka.librdkafka.0;
        assert_eq!(properties["linger.ms"], "7");
        assert_eq!(properties["security.protocol"], "ssl");
        assert_eq!(properties["sasl.password"], "hunter2");
        assert!(!format!("{config:?}").contains("hunter2"));
    }

    #[test]
    fn a_property_may_be_in_a_file_that_a_variable_names() {
        let mut secret = tempfile::NamedTempFile::new().unwrap();
        secret.write_all(b"hunter2\n").unwrap();
        let path = secret.path().to_str().unwrap();
        let variable = [("CAPVEC__KAFKA__LIBRDKAFKA_FILES__SASL_PASSWORD", path)];
        let config = load_text(MINIMAL, &variable).unwrap();
        assert_eq!(config.kafka.property("sasl.password"), Some("hunter2"));
        let variable = [("CAPVEC__KAFKA__LIBRDKAFKA_FILES__SASL_PASSWORD", "/no/such/file")];
        let faults = faults(load_text(MINIMAL, &variable));
        let expected = "kafka.librdkafka_files.sasl.password: /no/such/file: No such file";
        assert!(faults.len() == 1 && faults[0].starts_with(expected), "{faults:?}");
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
            ["kafka.librdkafka: a table of properties is due"]
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
    fn what_librdkafka_refuses_together_is_a_fault() {
        for (properties, named) in [
            ("\"max.poll.interval.ms\" = 1000", "max.poll.interval.ms"),
            ("\"fetch.max.bytes\" = 500000", "fetch.max.bytes"),
            ("\"reconnect.backoff.ms\" = 20000", "reconnect.backoff.max.ms"),
            ("\"queuing.strategy\" = \"lifo\"", "queuing.strategy"),
        ] {
            let text = format!("{}\n[kafka.librdkafka]\n{properties}\n", without_kafka());
            let faults = faults(load_text(&text, &BROKERS));
            assert_eq!(faults.len(), 1, "{faults:?}");
            assert!(
                faults[0].starts_with("kafka.librdkafka: ") && faults[0].contains(named),
                "{faults:?}"
            );
        }
        let text =
            format!("{}\n[kafka.librdkafka]\n\"socket.timeout.ms\" = 60000\n", without_kafka());
        assert!(load_text(&text, &BROKERS).is_ok());
        let exactly_once = [
            &BROKERS[..],
            &[
                ("CAPVEC__DELIVERY__MODE", "exactly-once"),
                ("CAPVEC__DELIVERY__TRANSACTIONAL_ID", "one"),
            ],
        ]
        .concat();
        let faults = faults(load_text(&text, &exactly_once));
        assert!(faults.concat().contains("socket.timeout.ms"), "{faults:?}");
    }

    #[test]
    fn owned_properties_are_refused_by_name() {
        let text = format!("{}\n[kafka.librdkafka]\n\"acks\" = 1\n", without_kafka());
        let faults = faults(load_text(&text, &BROKERS));
        assert_eq!(faults.len(), 1, "{faults:?}");
        assert!(faults[0].starts_with("kafka.librdkafka.acks: "), "{faults:?}");
    }

    #[test]
    fn a_secret_on_the_command_line_is_refused_without_its_value() {
        let set = |path: &str| {
            let mut file = tempfile::NamedTempFile::new().unwrap();
            file.write_all(MINIMAL.as_bytes()).unwrap();
            let flags = [(path.to_string(), "hunter2".to_string())];
            load_with(Some(file.path()), &flags, Some(config::Map::new()))
        };
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

    #[test]
    fn a_login_in_the_wrong_table_is_told_where_it_goes() {
        for (text, expected) in [
            (
                "password = \"hunter2\"",
                "kafka.password: no such option; kafka.librdkafka_files.sasl.password",
            ),
            ("sasl.password = \"hunter2\"", "kafka.sasl: no such option; properties"),
            (
                "username = \"me\"",
                "kafka.username: no such option; set kafka.librdkafka.sasl.username",
            ),
            (
                "security_protocol = \"ssl\"",
                "kafka.security_protocol: no such option; set kafka.librdkafka.security.protocol",
            ),
            ("groop = \"g\"", "kafka.groop: no such option; is it group?"),
        ] {
            let faults = faults(load_text(&format!("[kafka]\n{text}\n"), &[]));
            assert!(faults.iter().any(|f| f.starts_with(expected)), "{expected}\n{faults:#?}");
            assert!(!faults.concat().contains("hunter2"), "{faults:?}");
        }
    }

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
        let variables = |pairs: &[(&str, &str)]| {
            Some(pairs.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect())
        };
        let error = load_with(None, &[], variables(&[("CAPVEC_CACHE", "c")])).unwrap_err();
        assert!(error.to_string().contains("--config FILE"), "{error}");
        let faults = faults(load_with(None, &[], variables(&[("CAPVEC__KAFKA__GROUP", "g")])));
        assert!(faults.iter().any(|f| f.starts_with("kafka.brokers: is required")), "{faults:?}");
    }

    #[test]
    fn the_documented_file_is_the_defaults() {
        let text = include_str!("../../config/capvec.toml");
        let given: Value =
            serde_json::to_value(toml::from_str::<toml::Table>(text).unwrap()).unwrap();
        let documented: Config = serde_json::from_value(given.clone()).unwrap();
        assert_eq!(documented, Config::default());
        // Every option stands in the file, and each has its comment.
        let defaults = serde_json::to_value(Config::default()).unwrap();
        for (section, options) in defaults.as_object().unwrap() {
            for option in options.as_object().unwrap().keys() {
                assert!(given[section].get(option).is_some(), "{section}.{option} is undocumented");
            }
        }
        let mut previous = "";
        for line in text.lines() {
            if line.contains(" = ") && !line.starts_with('#') {
                assert!(previous.starts_with('#'), "no comment above: {line}");
            }
            previous = line;
        }
    }
}

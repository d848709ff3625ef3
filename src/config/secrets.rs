//! Secrets from files: values of librdkafka's properties, and the bearer token.
//!
//! The values of properties are read once, when the configuration is loaded. The token is only
//! looked at; it is read whenever librdkafka asks for one, see `src/kafka/bearer.rs`.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use super::fault::Fault;
use super::{Config, KafkaOptions};
use crate::kafka::bearer;

/// A larger file is no secret, and reading it might not end.
const BYTES_MAX: u64 = 1 << 20;

impl KafkaOptions {
    /// Returns the value of a property of librdkafka, wherever it is from.
    pub fn property(&self, name: &str) -> Option<&str> {
        let value = self.librdkafka.0.get(name).or_else(|| self.file_values.0.get(name));
        value.map(String::as_str)
    }

    /// Returns librdkafka's properties, wherever their values are from.
    pub fn properties(&self) -> impl Iterator<Item = (&str, &str)> {
        let all = self.librdkafka.0.iter().chain(&self.file_values.0);
        all.map(|(name, value)| (name.as_str(), value.as_str()))
    }

    /// Returns the file of the bearer token, if one is named.
    pub fn bearer_token_file(&self) -> Option<&Path> {
        Some(self.bearer_token_file.as_path()).filter(|path| !path.as_os_str().is_empty())
    }
}

impl Config {
    /// Reads the files that options name, and returns what is wrong with them.
    pub(super) fn read_files(&mut self) -> Vec<Fault> {
        let kafka = &mut self.kafka;
        let mut faults = Vec::new();
        for (property, path) in &kafka.librdkafka_files.0 {
            let value = if kafka.librdkafka.0.contains_key(property) {
                Err("is set in kafka.librdkafka too".into())
            } else {
                read_value(path).and_then(|value| {
                    // librdkafka's words may have the value in them.
                    let fault = super::properties::fault_of(property, &value, true);
                    fault.map_or(Ok(value), Err)
                })
            };
            match value {
                Ok(value) => drop(kafka.file_values.0.insert(property.clone(), value)),
                Err(message) => {
                    faults.push(Fault::new(format!("kafka.librdkafka_files.{property}"), message));
                }
            }
        }
        if let Err(message) = check_token(kafka) {
            faults.push(Fault::new("kafka.bearer_token_file", message));
        }
        faults
    }
}

/// Returns what is in a file, less what editors put at its ends: a newline, and on Windows a mark
/// of the byte order, which nobody would see in a login that is refused.
fn read_value(path: &str) -> Result<String, String> {
    if path.is_empty() {
        return Err("names no file".into());
    }
    let mut value = String::new();
    let read =
        File::open(path).and_then(|file| file.take(BYTES_MAX + 1).read_to_string(&mut value));
    let shown = bearer::shown(Path::new(path));
    let bytes = read.map_err(|error| format!("{shown}: {error}"))?;
    if bytes as u64 > BYTES_MAX {
        return Err(format!("{shown}: is over {BYTES_MAX} bytes"));
    }
    let value = value.strip_prefix('\u{feff}').unwrap_or(&value);
    let value = value.strip_suffix('\n').unwrap_or(value);
    let value = value.strip_suffix('\r').unwrap_or(value);
    if value.is_empty() {
        return Err(format!("{shown}: is empty"));
    }
    Ok(value.into())
}

fn check_token(kafka: &KafkaOptions) -> Result<(), String> {
    let mechanism = kafka.property("sasl.mechanism");
    let is_bearer = mechanism == Some("OAUTHBEARER");
    // librdkafka fetches the token itself.
    let is_fetched = kafka.property("sasl.oauthbearer.method").is_some_and(|m| m != "default");
    match kafka.bearer_token_file() {
        Some(_) if !is_bearer => {
            Err("has no use unless sasl.mechanism in kafka.librdkafka is OAUTHBEARER".into())
        }
        Some(_) if is_fetched => Err("has no use beside sasl.oauthbearer.method".into()),
        Some(path) => bearer::read(path).map(drop).map_err(|error| error.to_string()),
        None if is_bearer && !is_fetched => {
            Err("is required with sasl.mechanism OAUTHBEARER: the file that has the token".into())
        }
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::fixtures::{MINIMAL, faults, load_text};

    /// A configuration whose properties of these names have these files.
    fn config(files: &[(&str, &Path)]) -> Config {
        let mut config = Config::default();
        for (property, path) in files {
            let path = path.to_str().unwrap().to_owned();
            config.kafka.librdkafka_files.0.insert(property.to_string(), path);
        }
        config
    }

    fn file(text: &str) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        file
    }

    #[test]
    fn a_value_is_the_file_less_what_editors_put_at_its_ends() {
        for (text, value) in [
            ("hunter2", "hunter2"),
            ("hunter2\n", "hunter2"),
            ("a\r\n", "a"),
            (" b \n\n", " b \n"),
            ("\u{feff}hunter2\r\n", "hunter2"),
        ] {
            let file = file(text);
            let mut config = config(&[("sasl.password", file.path())]);
            assert_eq!(config.read_files(), []);
            assert_eq!(config.kafka.property("sasl.password"), Some(value));
            assert!(!format!("{config:?}").contains("hunter2"), "{config:?}");
        }
    }

    #[test]
    fn a_property_may_be_in_a_file_that_a_variable_names() {
        let secret = file("hunter2\n");
        let path = secret.path().to_str().unwrap();
        let variables = [
            ("CAPVEC__KAFKA__LIBRDKAFKA_FILES__SASL_PASSWORD", path),
            ("CAPVEC__KAFKA__LIBRDKAFKA__SECURITY_PROTOCOL", "sasl_ssl"),
            ("CAPVEC__KAFKA__LIBRDKAFKA__SASL_MECHANISM", "PLAIN"),
            ("CAPVEC__KAFKA__LIBRDKAFKA__SASL_USERNAME", "me"),
        ];
        let config = load_text(MINIMAL, &variables).unwrap();
        assert_eq!(config.kafka.property("sasl.password"), Some("hunter2"));
        let variable = [("CAPVEC__KAFKA__LIBRDKAFKA_FILES__SASL_PASSWORD", "/no/such/file")];
        let faults = faults(load_text(MINIMAL, &variable));
        let expected = "kafka.librdkafka_files.sasl.password: /no/such/file: No such file";
        assert!(faults.len() == 1 && faults[0].starts_with(expected), "{faults:?}");
    }

    #[test]
    fn every_fault_names_its_option_and_no_value() {
        let (secret, empty) = (file("hunter2"), file("\n"));
        let mut config = config(&[
            ("sasl.pasword", secret.path()),
            ("session.timeout.ms", secret.path()),
            ("acks", secret.path()),
            ("sasl.username", secret.path()),
            ("ssl.key.pem", empty.path()),
            ("ssl.key.password", Path::new("/no/such/file")),
            ("sasl.password", Path::new("/dev/zero")),
        ]);
        config.kafka.librdkafka.0.insert("sasl.username".into(), "me".into());
        let faults: Vec<_> = config.read_files().iter().map(Fault::to_string).collect();
        for expected in [
            "sasl.pasword: No such configuration property",
            "session.timeout.ms: librdkafka refuses the value",
            "acks: capvec sets this property itself",
            "sasl.username: is set in kafka.librdkafka too",
            "ssl.key.pem: /",
            "ssl.key.password: /no/such/file: No such file",
            "sasl.password: /dev/zero: is over",
        ] {
            let expected = format!("kafka.librdkafka_files.{expected}");
            assert!(faults.iter().any(|f| f.starts_with(&expected)), "{expected}\n{faults:#?}");
        }
        assert_eq!(faults.len(), 7, "{faults:#?}");
        assert!(!faults.concat().contains("hunter2"), "{faults:#?}");
    }

    #[test]
    fn a_bearer_token_and_its_mechanism_need_each_other() {
        let token = file("a-token\n");
        let faults = |mechanism: &str, path: &str| {
            let mut config = Config::default();
            config.kafka.librdkafka.0.insert("sasl.mechanism".into(), mechanism.into());
            config.kafka.bearer_token_file = path.into();
            config.read_files().iter().map(Fault::to_string).collect::<Vec<_>>().join("\n")
        };
        let path = token.path().to_str().unwrap();
        assert_eq!(faults("OAUTHBEARER", path), "");
        assert_eq!(faults("PLAIN", ""), "");
        for (mechanism, path, expected) in [
            ("OAUTHBEARER", "", "is required"),
            ("PLAIN", path, "has no use"),
            ("OAUTHBEARER", "/no/such/file", "/no/such/file"),
        ] {
            let said = faults(mechanism, path);
            let expected = format!("kafka.bearer_token_file: {expected}");
            assert!(said.starts_with(&expected), "{expected}: {said}");
        }
    }
}

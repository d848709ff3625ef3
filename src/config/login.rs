//! What the properties of TLS and SASL need of each other. librdkafka ignores those that the
//! protocol has no use for, so that a worker would talk in the clear; and it finds the rest out at
//! the first connection.

use std::fs;
use std::path::Path;

use super::KafkaOptions;
use super::fault::Fault;
use crate::kafka::bearer;

/// Properties whose values are paths.
const FILES: [&str; 5] = [
    "ssl.ca.location",
    "ssl.certificate.location",
    "ssl.key.location",
    "ssl.crl.location",
    "ssl.keystore.location",
];

/// What librdkafka logs in with, in its spelling, beside GSSAPI.
const MECHANISMS: [&str; 4] = ["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", BEARER];

/// The one that has neither a user nor a password.
const BEARER: &str = "OAUTHBEARER";

impl KafkaOptions {
    /// Returns the files that are read once, when the configuration is loaded or a client is made.
    pub fn files_read_once(&self) -> impl Iterator<Item = &Path> {
        let of_properties = FILES.iter().filter_map(|name| self.property(name));
        let of_values = self.librdkafka_files.0.values().map(String::as_str);
        of_properties.chain(of_values).map(Path::new)
    }
}

/// Returns what is missing for the logins that the properties ask for.
pub(super) fn faults(kafka: &KafkaOptions) -> Vec<Fault> {
    let mut faults = Vec::new();
    let mut fault = |property: &str, message: String| {
        faults.push(Fault::new(format!("kafka.librdkafka.{property}"), message));
    };
    let protocol = kafka.property("security.protocol").map(str::to_lowercase);
    // Where it is set, what it has no use for may be of a layer below.
    let mut names = kafka.properties().map(|(name, _)| name);
    if protocol.is_none()
        && let Some(name) = names.find(|n| n.starts_with("sasl.") || n.starts_with("ssl."))
    {
        let due = "SASL_SSL, SSL without a login, or SASL_PLAINTEXT without TLS";
        fault("security.protocol", format!("is not set, and {name} has no effect; set {due}"));
    }
    let protocol = protocol.unwrap_or_default();
    let (is_sasl, is_tls) = (protocol.starts_with("sasl_"), protocol.ends_with("ssl"));
    let advice = "such as SCRAM-SHA-512, PLAIN or OAUTHBEARER";
    match kafka.property("sasl.mechanism") {
        None if is_sasl => {
            fault("sasl.mechanism", format!("is required with security.protocol SASL_*, {advice}"));
        }
        Some(mechanism) if is_sasl && mechanism.eq_ignore_ascii_case("GSSAPI") => {
            fault(
                "sasl.mechanism",
                format!("is GSSAPI, which isn't built in; set another, {advice}"),
            );
        }
        Some(mechanism) if is_sasl && !MECHANISMS.contains(&mechanism) => {
            let known = MECHANISMS.join(", ");
            fault("sasl.mechanism", format!("is {mechanism:?}; one of {known} is due"));
        }
        Some(mechanism) if is_sasl && mechanism != BEARER => {
            for name in ["sasl.username", "sasl.password"] {
                // What is wrong with a file is told of the file.
                let is_given =
                    kafka.property(name).is_some() || kafka.librdkafka_files.0.contains_key(name);
                if !is_given {
                    let file = match name {
                        "sasl.password" => "; kafka.librdkafka_files.sasl.password names its file",
                        _ => "",
                    };
                    fault(name, format!("is required with sasl.mechanism {mechanism}{file}"));
                }
            }
        }
        _ => {}
    }
    for name in FILES.iter().filter(|_| is_tls) {
        // librdkafka looks for the system's certificates where it is told to probe.
        let path = kafka.property(name).filter(|path| !["probe", ""].contains(path));
        if let Some(path) = path.map(Path::new)
            && let Err(error) = fs::metadata(path).and_then(|_| fs::File::open(path))
        {
            fault(name, format!("{}: {error}", bearer::shown(path)));
        }
    }
    faults
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn refused(properties: &[(&str, &str)], due: &[&str]) {
        let mut kafka = KafkaOptions::default();
        for (name, value) in properties {
            kafka.librdkafka.0.insert((*name).into(), (*value).into());
        }
        let said: Vec<_> = faults(&kafka).iter().map(Fault::to_string).collect();
        assert_eq!(said.len(), due.len(), "{said:#?}");
        for (said, due) in said.iter().zip(due) {
            let said = said.strip_prefix("kafka.librdkafka.").unwrap();
            assert!(said.starts_with(due), "{said}\n{due}");
        }
    }

    #[test]
    fn a_login_without_its_protocol_is_refused() {
        let of_protocol = "security.protocol: is not set, and ";
        refused(&[("sasl.password", "hunter2")], &[&format!("{of_protocol}sasl.password has")]);
        refused(&[("ssl.ca.location", "probe")], &[&format!("{of_protocol}ssl.ca.location has")]);
        let plain = [
            ("security.protocol", "SASL_PLAINTEXT"),
            ("sasl.mechanism", "PLAIN"),
            ("sasl.username", "me"),
            ("sasl.password", "hunter2"),
        ];
        refused(&plain, &[]);
        let over = [&plain[..], &[("ssl.ca.pem", "x")]].concat();
        refused(&over, &[]);
        refused(&[("security.protocol", "PLAINTEXT"), ("sasl.password", "hunter2")], &[]);
        refused(&[("security.protocol", "PLAINTEXT"), ("ssl.ca.location", "/nowhere")], &[]);
        refused(&[("security.protocol", "ssl"), ("ssl.ca.pem", "x")], &[]);
        refused(&[("linger.ms", "1")], &[]);
    }

    #[test]
    fn a_protocol_without_its_login_is_refused() {
        let protocol = ("security.protocol", "sasl_ssl");
        refused(&[protocol], &["sasl.mechanism: is required"]);
        refused(&[protocol, ("sasl.mechanism", "GSSAPI")], &["sasl.mechanism: is GSSAPI, which"]);
        let mechanism = |name| ("sasl.mechanism", name);
        for unknown in ["plain", "SCRAM", "AWS_MSK_IAM"] {
            let due = format!("sasl.mechanism: is {unknown:?}; one of PLAIN, SCRAM-SHA-256, ");
            refused(&[protocol, mechanism(unknown)], &[&due]);
        }
        refused(&[protocol, mechanism("OAUTHBEARER")], &[]);
        let (user, password) = (("sasl.username", "me"), ("sasl.password", "hunter2"));
        refused(&[protocol, mechanism("PLAIN"), user, password], &[]);
        refused(
            &[protocol, mechanism("SCRAM-SHA-256")],
            &[
                "sasl.username: is required with sasl.mechanism SCRAM-SHA-256",
                "sasl.password: is required with sasl.mechanism SCRAM-SHA-256; kafka.librdkafka_files",
            ],
        );
        refused(&[protocol, mechanism("PLAIN"), user], &["sasl.password: is required"]);
    }

    #[test]
    fn files_that_are_not_there_are_named() {
        let folder = tempfile::tempdir().unwrap();
        let protocol = ("security.protocol", "SSL");
        let there = folder.path().to_str().unwrap();
        refused(&[protocol, ("ssl.ca.location", there)], &[]);
        let nowhere = format!("{there}/nowhere.pem");
        let due = format!("ssl.ca.location: {nowhere}: No such file");
        refused(&[protocol, ("ssl.ca.location", &nowhere)], &[&due]);
    }
}

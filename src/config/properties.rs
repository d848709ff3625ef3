//! The free map of librdkafka properties: everything that capvec doesn't set itself.

use std::collections::BTreeMap;
use std::fmt;

use rdkafka::ClientConfig;
use rdkafka::error::KafkaError;
use rdkafka::types::RDKafkaConfRes;
use serde::{Deserialize, Serialize};

/// Properties by name. Values may be secrets: they are in no debug output and no error.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Properties(pub BTreeMap<String, String>);

impl fmt::Debug for Properties {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

/// Properties that capvec sets, each with the option that stands for it, or the reason.
const OWNED: [(&str, &str); 28] = [
    ("bootstrap.servers", "set kafka.brokers instead"),
    ("metadata.broker.list", "set kafka.brokers instead"),
    ("group.id", "set kafka.group instead"),
    ("client.id", "set kafka.client_id instead"),
    ("message.timeout.ms", "set kafka.delivery_timeout instead"),
    ("delivery.timeout.ms", "set kafka.delivery_timeout instead"),
    ("enable.auto.commit", "capvec commits what is settled, every delivery.commit_interval"),
    ("auto.commit.interval.ms", "set delivery.commit_interval instead"),
    ("auto.commit.enable", "capvec commits what is settled, every delivery.commit_interval"),
    ("enable.auto.offset.store", "capvec commits what is settled"),
    ("enable.partition.eof", "capvec has no use for it"),
    ("enable.idempotence", "vectors are never doubled or reordered by a retry"),
    ("enable.gapless.guarantee", "vectors are never doubled or reordered by a retry"),
    ("acks", "a vector is settled when all replicas have it"),
    ("request.required.acks", "a vector is settled when all replicas have it"),
    ("delivery.report.only.error", "a vector is settled by the report that it is there"),
    ("max.in.flight", "idempotence decides it"),
    ("max.in.flight.requests.per.connection", "idempotence decides it"),
    ("message.send.max.retries", "kafka.delivery_timeout limits retries"),
    ("retries", "kafka.delivery_timeout limits retries"),
    ("partitioner", "a key's vectors go to the partition that Java clients would choose"),
    ("transactional.id", "set delivery.transactional_id instead"),
    ("transaction.timeout.ms", "set delivery.transaction_timeout instead"),
    ("isolation.level", "captions of aborted transactions are never embedded"),
    ("sasl.oauthbearer.config", "set kafka.bearer_token_file instead"),
    ("enable.sasl.oauthbearer.unsecure.jwt", "set kafka.bearer_token_file instead"),
    ("statistics.interval.ms", "the lag metrics depend on it"),
    ("queue.buffering.max.messages", "delivery.in_flight_captions_max bounds the queue"),
];

impl Properties {
    /// Returns what is wrong, as pairs of a property and a sentence.
    pub(super) fn faults(&self) -> Vec<(&str, String)> {
        let mut faults = Vec::new();
        for (key, value) in &self.0 {
            if let Some(fault) = fault_of(key, value, is_secret(key)) {
                faults.push((key.as_str(), fault));
            }
        }
        faults
    }
}

/// Returns what is wrong with a property; of a secret the value isn't in it.
pub(super) fn fault_of(key: &str, value: &str, is_secret: bool) -> Option<String> {
    if let Some((_, why)) = OWNED.iter().find(|(owned, _)| *owned == key) {
        return Some(format!("capvec sets this property itself: {why}"));
    }
    if value.contains('\0') {
        return Some("has a character of code 0".into());
    }
    let mut config = ClientConfig::new();
    config.set(key, value);
    let error = config.create_native_config().err()?;
    Some(match &error {
        // librdkafka's own words, which name the value unless the property is unknown.
        KafkaError::ClientConfig(code, words, _, _)
            if !is_secret || *code == RDKafkaConfRes::RD_KAFKA_CONF_UNKNOWN =>
        {
            words.trim_end().into()
        }
        KafkaError::ClientConfig(..) => "librdkafka refuses the value".into(),
        other => other.to_string(),
    })
}

fn is_secret(key: &str) -> bool {
    ["password", "passphrase", "secret", "pem", "token", "jaas", "oauthbearer.config"]
        .iter()
        .any(|part| key.contains(part))
}

/// Returns whether a property's value is a secret and not merely called like one: it may be on no
/// command line, which every user of the machine reads.
pub(super) fn is_visible_secret(key: &str) -> bool {
    let is_public = [".url", ".location", ".file"].iter().any(|end| key.ends_with(end))
        || ["ssl.ca.pem", "ssl.certificate.pem"].contains(&key);
    is_secret(key) && !is_public
}

/// Properties with two names, and the one that is kept. Of two that are set librdkafka heeds the
/// last, and the order is nobody's.
const OTHER_NAMES: [(&str, &str); 6] = [
    ("sasl.mechanisms", "sasl.mechanism"),
    ("sasl.oauthbearer.client.credentials.client.id", "sasl.oauthbearer.client.id"),
    ("sasl.oauthbearer.client.credentials.client.secret", "sasl.oauthbearer.client.secret"),
    ("queue.buffering.max.ms", "linger.ms"),
    ("compression.codec", "compression.type"),
    ("fetch.message.max.bytes", "max.partition.fetch.bytes"),
];

/// Returns the name of a property, which variables and keys may have with underscores for dots, and
/// of which librdkafka may have two.
pub(super) fn property_name(key: &str) -> String {
    let name = key.replace('_', ".");
    match OTHER_NAMES.iter().find(|(other, _)| *other == name) {
        Some((_, kept)) => (*kept).into(),
        None => name,
    }
}

/// Returns where a key that stands in `[kafka]` belongs, if it is of a login.
pub(super) fn goes_elsewhere(key: &str) -> Option<String> {
    let name = match key {
        "password" => "sasl.password".into(),
        "user" | "username" => "sasl.username".into(),
        "mechanism" => "sasl.mechanism".into(),
        "protocol" => "security.protocol".into(),
        other => property_name(other),
    };
    if !["sasl", "ssl", "security"].contains(&name.split('.').next()?) {
        return None;
    }
    Some(if !name.contains('.') {
        "properties of librdkafka go into kafka.librdkafka, and secrets such as sasl.password into files that \
         kafka.librdkafka_files names"
            .into()
    } else if is_visible_secret(&name) {
        format!("kafka.librdkafka_files.{name} names the file that it is in")
    } else {
        format!("set kafka.librdkafka.{name} instead")
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use crate::config::fixtures::{BROKERS, faults, load_text, without_kafka};
    use crate::kafka::{
        admin_properties, consumer_properties, producer_properties, transactional_properties,
    };

    fn properties(pairs: &[(&str, &str)]) -> Properties {
        Properties(pairs.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect())
    }

    #[test]
    fn every_fault_is_told_at_once() {
        let properties = properties(&[
            ("acks", "1"),
            ("delivery.report.only.error", "true"),
            ("linger.ms", "7"),
            ("linger.mss", "7"),
            ("session.timeout.ms", "soon"),
        ]);
        let keys: Vec<_> = properties.faults().into_iter().map(|(key, _)| key).collect();
        assert_eq!(
            keys,
            ["acks", "delivery.report.only.error", "linger.mss", "session.timeout.ms"]
        );
    }

    #[test]
    fn a_fault_is_one_line() {
        let properties = properties(&[("linger.ms", "1000000000")]);
        let said = &properties.faults()[0].1;
        assert!(said.contains("outside allowed range") && !said.contains('\n'), "{said:?}");
    }

    #[test]
    fn secrets_are_not_shown() {
        let properties = properties(&[("sasl.password", "hunter2")]);
        assert!(!format!("{properties:?}").contains("hunter2"));
        assert!(properties.faults().is_empty());
    }

    #[test]
    fn owned_properties_are_refused_by_name() {
        let text = format!("{}\n[kafka.librdkafka]\n\"acks\" = 1\n", without_kafka());
        let faults = faults(load_text(&text, &BROKERS));
        assert_eq!(faults.len(), 1, "{faults:?}");
        assert!(faults[0].starts_with("kafka.librdkafka.acks: "), "{faults:?}");
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
    fn what_capvec_sets_leaves_the_users_value_or_refuses_it() {
        let mut config = Config::default();
        config.delivery.transactional_id = "one".into();
        config.kafka.bearer_token_file = "token".into();
        let clients: [fn(&Config) -> ClientConfig; 4] =
            [consumer_properties, producer_properties, transactional_properties, admin_properties];
        for properties_of in clients {
            for name in properties_of(&config).config_map().keys() {
                let mut theirs = config.clone();
                theirs.kafka.librdkafka.0.insert(name.to_string(), "theirs".into());
                let comes_through = properties_of(&theirs).get(name) == Some("theirs");
                let is_refused = OWNED.iter().any(|(owned, _)| owned == name);
                assert!(comes_through || is_refused, "{name} is dropped in silence");
            }
        }
    }
}

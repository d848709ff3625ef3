//! What librdkafka refuses of properties that are good each by itself: it looks at them together
//! only where a client is made.

use rdkafka::ClientConfig;
use rdkafka::consumer::BaseConsumer;
use rdkafka::error::KafkaError;
use rdkafka::producer::BaseProducer;

use super::fault::Fault;
use super::{Config, DeliveryMode};
use crate::kafka::{consumer_properties, producer_properties, transactional_properties};

/// Makes the worker's clients once, without brokers and logins; the configuration must be free of
/// other faults.
pub(super) fn refused_together(config: &Config) -> Vec<Fault> {
    let producer = match config.delivery.mode {
        DeliveryMode::AtLeastOnce => producer_properties(config),
        DeliveryMode::ExactlyOnce => transactional_properties(config),
    };
    let consumer = without_brokers(consumer_properties(config));
    let refusals = [
        consumer.create::<BaseConsumer>().err(),
        without_brokers(producer).create::<BaseProducer>().err(),
    ];
    let mut faults: Vec<Fault> = refusals
        .into_iter()
        .flatten()
        .map(|error| match error {
            KafkaError::ClientCreation(words) => words,
            other => other.to_string(),
        })
        .map(|words| Fault::new("kafka.librdkafka", words))
        .collect();
    // What concerns both clients is told once.
    faults.dedup();
    faults
}

/// Leaves out what would make the client open files and connections.
fn without_brokers(mut client: ClientConfig) -> ClientConfig {
    let names: Vec<String> = client.config_map().keys().map(|name| (*name).to_owned()).collect();
    for name in names {
        let first = name.split('.').next().unwrap_or_default();
        if ["bootstrap", "sasl", "security", "ssl", "https"].contains(&first) {
            client.remove(&name);
        }
    }
    client
}

#[cfg(test)]
mod tests {
    use crate::config::fixtures::{BROKERS, faults, load_text, without_kafka};

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
}

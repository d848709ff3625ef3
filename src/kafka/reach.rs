//! Which brokers a client is connected to, from librdkafka's statistics.
//!
//! A client that is cut off from its brokers tries again for ever and says so in the log alone.
//! After the session's timeout the consumer's partitions are taken from it, and with them goes the
//! lag: the worker looks as if it had nothing to do. The number of brokers is what tells the two
//! apart.

use std::collections::BTreeSet;

use rdkafka::statistics::{Broker, Statistics};

/// Returns how many brokers a client is connected to. Each counts once, whatever librdkafka has it
/// for: an address of `kafka.brokers`, a node of the cluster, the group's coordinator.
pub fn brokers_up(statistics: &Statistics) -> usize {
    let is_up = |broker: &&Broker| broker.state == "UP" && broker.source != "internal";
    let up: Vec<&Broker> = statistics.brokers.values().filter(is_up).collect();
    let nodes: BTreeSet<i32> = up.iter().map(|b| b.nodeid).filter(|id| *id >= 0).collect();
    if !nodes.is_empty() {
        return nodes.len();
    }
    // An address whose node isn't known yet: it counts only where it is all that there is, as it
    // may be another name of a node.
    let addresses: BTreeSet<&str> = up.iter().map(|broker| broker.nodename.as_str()).collect();
    addresses.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn up(brokers: &[(&str, i32, &str, &str)]) -> usize {
        let broker = |&(nodename, nodeid, source, state): &(&str, i32, &str, &str)| {
            let name = format!("{nodename}/{nodeid}/{source}");
            let (nodename, source, state) = (nodename.into(), source.into(), state.into());
            let broker =
                Broker { name: name.clone(), nodeid, nodename, source, state, ..Broker::default() };
            (name, broker)
        };
        let brokers = brokers.iter().map(broker).collect();
        brokers_up(&Statistics { brokers, ..Statistics::default() })
    }

    #[test]
    fn a_broker_counts_once() {
        let internal = (":0", -1, "internal", "UP");
        let bootstrap = ("a:9092", -1, "configured", "UP");
        let first = ("a:9092", 1, "learned", "UP");
        let coordinator = ("a:9092", 1, "logical", "UP");
        let second = ("b:9092", 2, "learned", "UP");
        assert_eq!(up(&[]), 0);
        assert_eq!(up(&[internal]), 0, "librdkafka's own queue is no broker");
        assert_eq!(
            up(&[internal, bootstrap]),
            1,
            "one has answered, and isn't known by its number"
        );
        assert_eq!(up(&[internal, bootstrap, first, coordinator]), 1);
        assert_eq!(up(&[bootstrap, first, coordinator, second]), 2);
    }

    #[test]
    fn a_broker_that_is_tried_is_not_up() {
        let tried = ["INIT", "DOWN", "TRY_CONNECT", "CONNECT", "SSL_HANDSHAKE", "AUTH_REQ"];
        for state in tried {
            assert_eq!(up(&[("a:9092", 1, "learned", state)]), 0, "{state}");
        }
        assert_eq!(up(&[("a:9092", 1, "learned", "DOWN"), ("b:9092", 2, "learned", "UP")]), 1);
    }
}

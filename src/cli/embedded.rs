//! A Kafka broker inside the process, for the demo and the benchmarks.
//!
//! It is librdkafka's mock cluster: real clients talk to it over the loopback interface, and
//! nothing has to be installed. It keeps about 5 MB a partition and throws the oldest away, so
//! whoever feeds it never runs far ahead of who reads.

use anyhow::Context;
use rdkafka::ClientConfig;
use rdkafka::mocking::MockCluster;
use rdkafka::producer::DefaultProducerContext;

/// The mock broker answers an empty fetch when this time is over, whatever comes meanwhile; the
/// default of 500 ms would be what a measurement of latency measures.
pub const FETCH_WAIT: (&str, &str) = ("fetch.wait.max.ms", "5");

/// A Kafka cluster of one broker.
pub struct EmbeddedBroker(MockCluster<'static, DefaultProducerContext>);

impl EmbeddedBroker {
    /// Starts the broker and makes topics, each with a number of partitions.
    ///
    /// # Errors
    ///
    /// When librdkafka can't.
    pub fn start(topics: &[(&str, i32)]) -> anyhow::Result<EmbeddedBroker> {
        let cluster = MockCluster::new(1).context("the embedded broker doesn't start")?;
        for (topic, partitions) in topics {
            cluster.create_topic(topic, *partitions, 1).with_context(|| (*topic).to_owned())?;
        }
        Ok(EmbeddedBroker(cluster))
    }

    /// Returns the cluster, for what can be made to go wrong in it.
    #[cfg(test)]
    pub(crate) fn cluster(&self) -> &MockCluster<'static, DefaultProducerContext> {
        &self.0
    }

    /// Returns the address, as `bootstrap.servers` takes it.
    pub fn bootstrap(&self) -> String {
        self.0.bootstrap_servers()
    }

    /// Returns the properties of a client of this broker.
    pub fn client(&self) -> ClientConfig {
        let mut client = ClientConfig::new();
        client.set("bootstrap.servers", self.bootstrap());
        client
    }
}

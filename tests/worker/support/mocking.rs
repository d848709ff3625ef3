//! librdkafka's mock cluster, in this process: brokers that answer with the errors that they are
//! told.

use rdkafka::mocking::MockCluster;
use rdkafka::producer::DefaultProducerContext;

use super::Cluster;

/// Makes a cluster of so many brokers with the topics `in`, `in.out` and `in.dead`, of two
/// partitions each. It ends with the first value.
pub fn mock(brokers: i32) -> (MockCluster<'static, DefaultProducerContext>, Cluster) {
    let mock = MockCluster::new(brokers).unwrap();
    for topic in ["in", "in.out", "in.dead"] {
        mock.create_topic(topic, 2, 1).unwrap();
    }
    let cluster = Cluster { bootstrap: mock.bootstrap_servers() };
    (mock, cluster)
}

//! What signals do to a worker that can't drain.

use std::time::{Duration, Instant};

use rdkafka::types::{RDKafkaApiKey, RDKafkaRespErr};

use crate::support::{Worker, captions, eventually, mock};

/// Signals within this time are one stop, as `src/shutdown.rs` has it.
const ONE_STOP: Duration = Duration::from_secs(1);

/// The drain would last longer than the test.
const OPTIONS: [&str; 2] =
    ["delivery.drain_timeout=100s", "kafka.librdkafka.session.timeout.ms=120000"];

#[test]
fn another_signal_after_a_second_ends_a_worker_that_cannot_drain() {
    const CAPTIONS: usize = 10;
    for (name, number) in [("TERM", 15), ("INT", 2)] {
        let (mock, cluster) = mock(1);
        cluster.send("in", &captions(CAPTIONS));
        // More than it asks for: no vector is ever acknowledged.
        let refusals = [RDKafkaRespErr::RD_KAFKA_RESP_ERR_NOT_ENOUGH_REPLICAS; 10_000];
        mock.request_errors(RDKafkaApiKey::Produce, &refusals);
        let mut worker = Worker::start(&cluster, "in", &OPTIONS).ready();
        eventually("all are embedded", || {
            let embedded = worker.metric("capvec_captions_embedded_total")?;
            (embedded == CAPTIONS as f64).then_some(())
        });
        let first = Instant::now();
        worker.signal("TERM");
        eventually("it drains", || worker.log().contains("stopping: settling").then_some(()));
        // Of these, all that come in the first second belong to the first.
        let status = eventually("another signal ends it", || {
            worker.signal(name);
            worker.ended()
        });
        assert!(first.elapsed() > ONE_STOP, "{name}: {:?}", first.elapsed());
        assert_eq!(status.code(), Some(128 + number), "{name}: {}", worker.log());
        assert!(worker.log().contains("stopping at once"), "{name}: {}", worker.log());
    }
}

//! What librdkafka takes for acknowledged, and no broker has.

use std::time::Duration;

use capvec::config::DeliveryMode;
use capvec::pipeline;
use capvec::shutdown::{Shutdown, Wanted};
use rdkafka::types::{RDKafkaApiKey, RDKafkaRespErr};

use crate::support::{Outgoing, eventually, mock};

const CAPTIONS: usize = 5;

/// A leader that isn't one yet refuses a batch, and takes those behind it, since it knows nothing
/// of the producer. A batch is a record here, and all are on their way at once. Returns how the
/// worker ended, and the number of records of vectors.
fn refused_once(mode: DeliveryMode) -> (anyhow::Result<()>, usize) {
    let (mock, cluster) = mock(1);
    let mut config = cluster.config("in");
    config.delivery.mode = mode;
    config.kafka.librdkafka.0.insert("batch.num.messages".into(), "1".into());
    let messages: Vec<_> = (0..CAPTIONS)
        .map(|number| Outgoing::caption("one", &format!("caption {number}")))
        .collect();
    cluster.send("in", &messages);
    mock.broker_round_trip_time(1, Duration::from_millis(100)).unwrap();
    let refusal = [RDKafkaRespErr::RD_KAFKA_RESP_ERR_NOT_LEADER_FOR_PARTITION];
    mock.request_errors(RDKafkaApiKey::Produce, &refusal);
    let shutdown = Shutdown::default();
    let worker = pipeline::start(&config, &shutdown).unwrap();
    let settled = format!("capvec_messages_settled_total{{outcome=\"embedded\"}} {CAPTIONS}\n");
    eventually("all are settled, or it has failed", || {
        let has_failed = shutdown.wanted() != Wanted::Run;
        (has_failed || worker.metrics().render().contains(&settled)).then_some(())
    });
    shutdown.drain();
    (worker.wait(), cluster.records("in.out").len())
}

#[test]
fn a_record_that_a_later_one_overtook_is_not_settled() {
    let (ended, records) = refused_once(DeliveryMode::AtLeastOnce);
    let Err(error) = ended else {
        panic!("{CAPTIONS} captions are settled, with {records} vectors")
    };
    let error = format!("{error:#}");
    assert!(error.contains("in.out has a later record"), "{error}");
}

#[test]
fn a_transaction_with_a_record_that_a_later_one_overtook_is_sent_again() {
    let (ended, records) = refused_once(DeliveryMode::ExactlyOnce);
    ended.unwrap();
    assert!(records >= CAPTIONS, "{CAPTIONS} captions are settled, with {records} vectors");
}

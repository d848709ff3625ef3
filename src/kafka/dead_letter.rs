//! What a dead letter looks like: the message as it was, and headers that say why it is here.
//!
//! The headers are those of Kafka Connect (KIP-298), so that tools which know Connect's dead-letter
//! topics know these. All their values are UTF-8 text.

use rdkafka::message::{Header, OwnedHeaders};

use crate::tracked::{Origin, RejectReason, Rejection};

/// Header: the topic that the message came from.
pub const HEADER_TOPIC: &str = "__connect.errors.topic";
/// Header: its partition there.
pub const HEADER_PARTITION: &str = "__connect.errors.partition";
/// Header: its offset there.
pub const HEADER_OFFSET: &str = "__connect.errors.offset";
/// Header: who rejected it; the consumer group.
pub const HEADER_CONNECTOR: &str = "__connect.errors.connector.name";
/// Header: which worker of the group; the client id.
pub const HEADER_TASK: &str = "__connect.errors.task.id";
/// Header: the stage that rejected it.
pub const HEADER_STAGE: &str = "__connect.errors.stage";
/// Header: the part of the program that did.
pub const HEADER_CLASS: &str = "__connect.errors.class.name";
/// Header: the reason, as in the metric `capvec_captions_rejected_total`.
pub const HEADER_EXCEPTION: &str = "__connect.errors.exception.class.name";
/// Header: a sentence about this message.
pub const HEADER_MESSAGE: &str = "__connect.errors.exception.message";

/// All of them.
pub const HEADERS: [&str; 9] = [
    HEADER_TOPIC,
    HEADER_PARTITION,
    HEADER_OFFSET,
    HEADER_CONNECTOR,
    HEADER_TASK,
    HEADER_STAGE,
    HEADER_CLASS,
    HEADER_EXCEPTION,
    HEADER_MESSAGE,
];

/// Who writes dead letters.
#[derive(Clone, Debug)]
pub struct Author {
    /// The input topic.
    pub topic: String,
    /// The consumer group.
    pub group: String,
    /// The client id.
    pub client_id: String,
}

/// Returns the message's own headers, in order, and the reasons after them.
pub fn headers(author: &Author, origin: &Origin, rejection: &Rejection) -> OwnedHeaders {
    let (stage, class) = stage_of(rejection.reason);
    let partition = origin.assignment.partition.to_string();
    let offset = origin.offset.0.to_string();
    // In the order of the names.
    let values = [
        author.topic.as_str(),
        &partition,
        &offset,
        &author.group,
        &author.client_id,
        stage,
        class,
        rejection.reason.as_label(),
        &rejection.detail,
    ];
    let own = origin.message.headers.clone().unwrap_or_default();
    HEADERS
        .into_iter()
        .zip(values)
        .fold(own, |headers, (key, value)| headers.insert(Header { key, value: Some(value) }))
}

/// Returns Connect's name for the stage, and capvec's for the part of the program.
fn stage_of(reason: RejectReason) -> (&'static str, &'static str) {
    match reason {
        RejectReason::NotUtf8
        | RejectReason::NotJson
        | RejectReason::CaptionMissing
        | RejectReason::CaptionNotText
        | RejectReason::CaptionTooLarge
        | RejectReason::IdMissing => ("VALUE_CONVERTER", "capvec::wire::caption"),
        RejectReason::CaptionEmpty | RejectReason::NotTokenized => {
            ("TRANSFORMATION", "capvec::tokenize")
        }
        RejectReason::NotEmbedded | RejectReason::NotFinite => ("TRANSFORMATION", "capvec::embed"),
        RejectReason::RecordRefused => ("TASK_PUT", "capvec::kafka::sink"),
    }
}

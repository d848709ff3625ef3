//! What a record of an output topic says of itself, and whether it is what its message must become.

use capvec::embed::hash::HashEmbedder;
use capvec::kafka::dead_letter;
use capvec::model::package::Package;
use capvec::tokenize::Tokenizer;
use capvec::wire::vector::HEADER_SOURCE;
use rdkafka::message::{BorrowedMessage, Headers, Message};

use crate::check::Seen;
use crate::feed::{Fate, Place, Sent, Truth};
use crate::support::{tiny_package, tokenizer_of};

/// Recomputes what a record must be from its message's text, through the library.
pub struct Prover {
    tokenizer: Tokenizer,
    embedder: HashEmbedder,
}

impl Prover {
    pub fn new() -> Prover {
        let package = Package::open(tiny_package()).unwrap();
        let embedder = HashEmbedder::new(package.manifest.network.dim);
        Prover { tokenizer: tokenizer_of(&package.path), embedder }
    }

    pub fn vector(&self, truth: &Truth, record: &BorrowedMessage<'_>) -> Seen {
        let source = source(record).unwrap_or((-1, -1));
        seen(record, source, truth.get(&source).is_some_and(|sent| self.is_vector(sent, record)))
    }

    fn is_vector(&self, sent: &Sent, record: &BorrowedMessage<'_>) -> bool {
        let Fate::Vector(text) = &sent.fate else { return false };
        let ids = self.tokenizer.tokenize(text).unwrap().ids;
        let vector = self.embedder.vector(ids);
        let bytes: Vec<u8> = vector.into_iter().flat_map(f32::to_le_bytes).collect();
        record.payload() == Some(&bytes) && own_header(record) == sent.header
    }

    pub fn letter(&self, truth: &Truth, record: &BorrowedMessage<'_>) -> Seen {
        let number = |key| header(record, key).and_then(|text| text.parse::<i64>().ok());
        let partition = number(dead_letter::HEADER_PARTITION).unwrap_or(-1) as i32;
        let source = (partition, number(dead_letter::HEADER_OFFSET).unwrap_or(-1));
        let reason = header(record, dead_letter::HEADER_EXCEPTION);
        let proven = truth.get(&source).is_some_and(|sent| match sent.fate {
            Fate::DeadLetter(due) => {
                reason.as_deref() == Some(due)
                    && record.payload() == Some(&sent.value)
                    && own_header(record) == sent.header
            }
            Fate::Vector(_) => false,
        });
        seen(record, source, proven)
    }
}

fn seen(record: &BorrowedMessage<'_>, source: Place, proven: bool) -> Seen {
    Seen {
        source,
        place: (record.partition(), record.offset()),
        key: record.key().unwrap_or_default().to_vec(),
        proven,
    }
}

/// Returns which message a vector says that it is of.
pub fn source(record: &BorrowedMessage<'_>) -> Option<Place> {
    let source = header(record, HEADER_SOURCE)?;
    let mut parts = source.rsplit('/').map(|part| part.parse::<i64>());
    let (offset, partition) = (parts.next()?.ok()?, parts.next()?.ok()?);
    Some((partition as i32, offset))
}

fn header(record: &BorrowedMessage<'_>, key: &str) -> Option<String> {
    let headers = record.headers()?;
    let value = headers.iter().find(|header| header.key == key)?.value?;
    Some(String::from_utf8_lossy(value).into_owned())
}

fn own_header(record: &BorrowedMessage<'_>) -> Option<Vec<u8>> {
    let headers = record.headers()?;
    Some(headers.iter().find(|header| header.key == "own")?.value?.to_vec())
}

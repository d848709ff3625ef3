//! What records look like: the headers of a vector, and its value in JSON.

use std::fmt::Write as _;

use rdkafka::message::{Header, OwnedHeaders};

use super::Writer;
use crate::config::IdFrom;
use crate::handover::PreparedCaption;
use crate::tracked::Origin;
use crate::wire::caption::{Id, key_as_id};
use crate::wire::vector::{
    DTYPE, HEADER_DIM, HEADER_DTYPE, HEADER_MODEL, HEADER_SOURCE, HEADER_TOKENS, HEADER_TRUNCATED,
    JsonVector, write_json,
};

/// Why writing into a string doesn't fail.
const WRITES: &str = "a string takes all";

impl Writer {
    pub(super) fn write_json(
        &self,
        origin: &Origin,
        caption: &PreparedCaption,
        vector: &[f32],
        out: &mut Vec<u8>,
    ) {
        let of_message;
        let id = match (&self.id_from, &caption.id) {
            (IdFrom::Pointer(_), Some(id)) => id,
            (IdFrom::Pointer(pointer), None) => {
                unreachable!("the decoder rejects a message without an id at {pointer}")
            }
            (IdFrom::Source, _) => {
                of_message = Id::Text(self.source(origin));
                &of_message
            }
            (IdFrom::Key, _) => {
                let Ok(key) = key_as_id(origin.message.key.as_deref()) else {
                    unreachable!("a message whose key is no id is rejected before it is written")
                };
                of_message = Id::Text(key.to_owned());
                &of_message
            }
        };
        let text = self.include_caption.then_some(caption.text.as_str());
        write_json(&JsonVector { id, caption: text, vector, model: &self.model_id }, out);
    }

    pub(super) fn vector_headers(
        &mut self,
        origin: &Origin,
        caption: &PreparedCaption,
    ) -> OwnedHeaders {
        let mut text = std::mem::take(&mut self.text);
        text.clear();
        self.write_source(origin, &mut text);
        let source_bytes = text.len();
        write!(text, "{}", caption.tokens.ids.len()).expect(WRITES);
        let (source, tokens) = text.split_at(source_bytes);
        let truncated = if caption.tokens.truncated { "true" } else { "false" };
        let of_worker = [
            (HEADER_MODEL, self.model_id.as_str()),
            (HEADER_DIM, &self.dim_text),
            (HEADER_DTYPE, DTYPE),
            (HEADER_SOURCE, source),
            (HEADER_TOKENS, tokens),
            (HEADER_TRUNCATED, truncated),
        ];
        let of_message = origin.message.headers.clone();
        let headers = of_worker.into_iter().fold(
            of_message.unwrap_or_else(|| OwnedHeaders::new_with_capacity(of_worker.len())),
            |headers, (key, value)| headers.insert(Header { key, value: Some(value) }),
        );
        self.text = text;
        headers
    }

    fn write_source(&self, origin: &Origin, out: &mut String) {
        let (partition, offset) = (origin.assignment.partition, origin.offset.0);
        write!(out, "{}/{partition}/{offset}", self.author.topic).expect(WRITES);
    }

    pub(super) fn source(&self, origin: &Origin) -> String {
        let mut source = String::new();
        self.write_source(origin, &mut source);
        source
    }
}

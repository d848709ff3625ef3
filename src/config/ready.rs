//! What the stages take from a configuration that has been checked.
//!
//! Options are text and numbers. Here they become what a stage works with: a decoder, a pointer, a
//! topic that may be absent where the option's text may be empty.

use std::path::Path;
use std::str::FromStr;
use std::time::Duration;

use super::{Config, EmbedOptions, InputFormat};
use crate::wire::caption::{CaptionDecoder, CaptionFormat};
use crate::wire::pointer::Pointer;
use crate::wire::vector::VectorFormat;

/// Where the id of the JSON form is from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum IdFrom {
    /// The message's key, which must be UTF-8.
    Key,
    /// `topic/partition/offset`.
    Source,
    /// A place in the caption message.
    Pointer(Pointer),
}

impl FromStr for IdFrom {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "key" => Ok(IdFrom::Key),
            "source" => Ok(IdFrom::Source),
            pointer if pointer.starts_with('/') => Ok(IdFrom::Pointer(pointer.parse()?)),
            other => Err(format!(
                "{other:?} is neither `key` nor `source` nor a JSON Pointer such as /id"
            )),
        }
    }
}

impl Config {
    /// Returns how captions are read out of messages.
    ///
    /// # Panics
    ///
    /// When the configuration hasn't been validated.
    pub fn decoder(&self) -> CaptionDecoder {
        CaptionDecoder {
            format: match self.input.format {
                InputFormat::Json => {
                    let pointer = self.input.pointer.parse().expect("validated: input.pointer");
                    CaptionFormat::Json { pointer }
                }
                InputFormat::Text => CaptionFormat::Text,
            },
            id_pointer: match self.id_from() {
                IdFrom::Pointer(pointer) if self.output.format == VectorFormat::Json => {
                    Some(pointer)
                }
                _ => None,
            },
            caption_bytes_max: self.input.caption_bytes_max.get(),
        }
    }

    /// Returns where ids are from.
    ///
    /// # Panics
    ///
    /// When the configuration hasn't been validated.
    pub fn id_from(&self) -> IdFrom {
        self.output.id.parse().expect("validated: output.id")
    }

    /// Returns whether the message's key becomes the id of the record, and so must be one.
    pub fn key_is_id(&self) -> bool {
        self.output.format == VectorFormat::Json && self.id_from() == IdFrom::Key
    }

    /// Returns how many messages there can be in the worker: what a rebalance brings while the
    /// source pauses goes over the limit.
    pub fn in_flight_bound(&self) -> usize {
        // It is asked for before the limit has been checked, too.
        self.delivery.in_flight_captions_max.get().saturating_mul(2).saturating_add(1000)
    }

    /// Returns the latency objective, if there is one.
    pub fn latency_objective(&self) -> Option<Duration> {
        Some(self.batch.latency_objective).filter(|objective| !objective.is_zero())
    }

    /// Returns the dead-letter topic, if there is one.
    pub fn dead_letter_topic(&self) -> Option<&str> {
        Some(self.reject.topic.as_str()).filter(|topic| !topic.is_empty())
    }

    /// Returns the topics that are written, each with the option that names it.
    pub fn written_topics(&self) -> impl Iterator<Item = (&str, &'static str)> {
        let dead_letters = self.dead_letter_topic().map(|topic| (topic, "reject.topic"));
        std::iter::once((self.output.topic.as_str(), "output.topic")).chain(dead_letters)
    }
}

impl EmbedOptions {
    /// Returns the path of ONNX Runtime's library, if one is named.
    pub fn onnxruntime(&self) -> Option<&Path> {
        Some(self.onnxruntime.as_path()).filter(|path| !path.as_os_str().is_empty())
    }
}

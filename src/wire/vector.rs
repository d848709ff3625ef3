//! Out: what a vector record looks like.
//!
//! `native` is the raw little-endian float32 numbers, 4 bytes each. `json` is a flat object with
//! `id`, `caption` if asked for, `vector` and `model`; its numbers are the shortest that read back
//! as the same float32. The headers of both say what a reader must know to use the vector.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

use super::caption::Id;

/// The format of a vector record's value, as `output.format` names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum VectorFormat {
    /// Raw little-endian float32.
    Native,
    /// A flat JSON object.
    Json,
}

impl VectorFormat {
    /// Returns the name that options have for it.
    pub fn as_str(self) -> &'static str {
        match self {
            VectorFormat::Native => "native",
            VectorFormat::Json => "json",
        }
    }
}

/// Header: the model id.
pub const HEADER_MODEL: &str = "capvec.model";
/// Header: the number of numbers.
pub const HEADER_DIM: &str = "capvec.dim";
/// Header: the type of the numbers; always [`DTYPE`].
pub const HEADER_DTYPE: &str = "capvec.dtype";
/// Header: `topic/partition/offset` of the caption.
pub const HEADER_SOURCE: &str = "capvec.source";
/// Header: the number of tokens that the network saw, `[CLS]` and `[SEP]` included.
pub const HEADER_TOKENS: &str = "capvec.tokens";
/// Header: `true` where the caption was cut to the model's longest, else `false`.
pub const HEADER_TRUNCATED: &str = "capvec.truncated";

/// The type of a vector's numbers.
pub const DTYPE: &str = "float32";

/// Returns the numbers as raw little-endian float32: themselves, where the machine has them so.
pub fn native(vector: &[f32]) -> Cow<'_, [u8]> {
    if cfg!(target_endian = "little") {
        Cow::Borrowed(bytemuck::cast_slice(vector))
    } else {
        Cow::Owned(vector.iter().flat_map(|number| number.to_le_bytes()).collect())
    }
}

/// The JSON form of a vector.
#[derive(Debug, Serialize)]
pub struct JsonVector<'a> {
    /// The caption's id.
    pub id: &'a Id,
    /// The caption, where it is asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub caption: Option<&'a str>,
    /// The numbers.
    pub vector: &'a [f32],
    /// The model id.
    pub model: &'a str,
}

/// Appends the JSON form.
pub fn write_json(vector: &JsonVector<'_>, out: &mut Vec<u8>) {
    serde_json::to_writer(out, vector).expect("strings and finite floats always serialize");
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn native_reads_back(vector in prop::collection::vec(any::<f32>(), 0..50)) {
            let bytes = native(&vector);
            let back = bytes.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap()));
            prop_assert!(back.map(f32::to_bits).eq(vector.iter().map(|n| n.to_bits())));
        }

        #[test]
        fn json_reads_back(
            vector in prop::collection::vec(-1e30f32..1e30, 0..50),
            caption in ".{0,20}",
            id in prop_oneof![
                ".{0,8}".prop_map(Id::Text),
                any::<i64>().prop_map(|n| Id::Integer(n.into())),
            ],
        ) {
            let mut bytes = Vec::new();
            let json = JsonVector { id: &id, caption: Some(&caption), vector: &vector, model: "m" };
            write_json(&json, &mut bytes);
            let back: serde_json::Value = serde_json::from_slice(&bytes).unwrap();
            prop_assert_eq!(back["caption"].as_str(), Some(caption.as_str()));
            match &id {
                Id::Text(text) => prop_assert_eq!(back["id"].as_str(), Some(text.as_str())),
                Id::Integer(n) => prop_assert_eq!(back["id"].as_i64().map(i128::from), Some(*n)),
            }
            for (number, read) in vector.iter().zip(back["vector"].as_array().unwrap()) {
                prop_assert_eq!(read.as_f64().unwrap() as f32, *number);
            }
        }
    }

    #[test]
    fn the_caption_is_left_out_unless_asked_for() {
        let mut bytes = Vec::new();
        let id = Id::Integer(7);
        write_json(
            &JsonVector { id: &id, caption: None, vector: &[0.1, -2.0], model: "m@1" },
            &mut bytes,
        );
        assert_eq!(bytes, br#"{"id":7,"vector":[0.1,-2.0],"model":"m@1"}"#);
    }
}

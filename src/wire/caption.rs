//! In: what a caption message looks like.

use std::borrow::Cow;

use super::pointer::{Found, Pointer};
use crate::tracked::{RejectReason, Rejection};

/// How captions lie in messages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CaptionFormat {
    /// The value is JSON with the caption at this pointer.
    Json {
        /// Where the caption is.
        pointer: Pointer,
    },
    /// The value is the caption, in UTF-8.
    Text,
}

/// A caption as it came out of a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caption<'a> {
    /// The text; the message's own bytes where nothing in it is escaped.
    pub text: Cow<'a, str>,
    /// The id, where the output asks for one of the message's own.
    pub id: Option<Id>,
}

/// The id of a caption.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(untagged)]
pub enum Id {
    /// A string.
    Text(String),
    /// A whole number.
    Integer(i128),
}

/// Returns the id that a message's key is, for an output with ids from keys.
///
/// # Errors
///
/// When the message has none, or it is no text.
pub fn key_as_id(key: Option<&[u8]>) -> Result<&str, Rejection> {
    let missing = |detail: &str| Rejection::new(RejectReason::IdMissing, detail);
    let key = key.ok_or_else(|| missing("the message has no key"))?;
    std::str::from_utf8(key).map_err(|_| missing("the message's key isn't UTF-8"))
}

/// Decodes message values.
#[derive(Clone, Debug)]
pub struct CaptionDecoder {
    /// How captions lie in messages.
    pub format: CaptionFormat,
    /// Where in the JSON the id is, if it is taken from there.
    pub id_pointer: Option<Pointer>,
    /// Most bytes of a caption.
    pub caption_bytes_max: usize,
}

impl CaptionDecoder {
    /// Returns the caption in a message's value.
    ///
    /// # Errors
    ///
    /// When there is none, with the reason.
    pub fn decode<'a>(&self, value: &'a [u8]) -> Result<Caption<'a>, Rejection> {
        let value = std::str::from_utf8(value).map_err(|e| {
            let place = e.valid_up_to();
            Rejection::new(RejectReason::NotUtf8, format!("the value isn't UTF-8 at byte {place}"))
        })?;
        let text = match &self.format {
            CaptionFormat::Text => Cow::Borrowed(value),
            CaptionFormat::Json { pointer } => find_text(value, pointer)?,
        };
        if text.len() > self.caption_bytes_max {
            let detail = format!(
                "the caption has {} bytes where input.caption_bytes_max is {}",
                text.len(),
                self.caption_bytes_max
            );
            return Err(Rejection::new(RejectReason::CaptionTooLarge, detail));
        }
        let id = self.id_pointer.as_ref().map(|pointer| find_id(value, pointer)).transpose()?;
        Ok(Caption { text, id })
    }
}

fn find<'a>(json: &'a str, pointer: &Pointer) -> Result<Option<Found<'a>>, Rejection> {
    pointer
        .find(json)
        .map_err(|e| Rejection::new(RejectReason::NotJson, format!("the value isn't JSON: {e}")))
}

fn find_text<'a>(json: &'a str, pointer: &Pointer) -> Result<Cow<'a, str>, Rejection> {
    let not_text = |what: &str| {
        let place = shown(pointer);
        let detail = format!("{what} stands at {place} where the caption's text is due");
        Err(Rejection::new(RejectReason::CaptionNotText, detail))
    };
    match find(json, pointer)? {
        Some(Found::Text(text)) => Ok(text),
        Some(Found::Integer(_)) => not_text("a number"),
        Some(Found::Other(what)) => not_text(what),
        None => Err(Rejection::new(
            RejectReason::CaptionMissing,
            format!("nothing stands at {}", shown(pointer)),
        )),
    }
}

/// An empty pointer would be a gap in the sentence.
fn shown(pointer: &Pointer) -> String {
    let place = pointer.to_string();
    if place.is_empty() { "\"\" (the whole value)".into() } else { place }
}

fn find_id(json: &str, pointer: &Pointer) -> Result<Id, Rejection> {
    let reject = |detail: String| Err(Rejection::new(RejectReason::IdMissing, detail));
    match find(json, pointer)? {
        Some(Found::Text(text)) => Ok(Id::Text(text.into_owned())),
        Some(Found::Integer(number)) => Ok(Id::Integer(number)),
        Some(Found::Other(what)) => {
            reject(format!("{what} stands at {pointer} where the id is due"))
        }
        None => reject(format!("nothing stands at {pointer} where the id is due")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decoder() -> CaptionDecoder {
        CaptionDecoder {
            format: CaptionFormat::Json { pointer: "/caption".parse().unwrap() },
            id_pointer: None,
            caption_bytes_max: 20,
        }
    }

    #[track_caller]
    fn rejected(decoder: &CaptionDecoder, value: &[u8]) -> RejectReason {
        decoder.decode(value).unwrap_err().reason
    }

    #[test]
    fn takes_the_caption_out_of_json() {
        let caption = decoder().decode(r#"{"caption": "\u00c4lg"}"#.as_bytes()).unwrap();
        assert_eq!(caption, Caption { text: "Älg".into(), id: None });
    }

    #[test]
    fn each_fault_has_its_reason() {
        let decoder = decoder();
        assert_eq!(rejected(&decoder, b"\xff"), RejectReason::NotUtf8);
        assert_eq!(rejected(&decoder, b""), RejectReason::NotJson);
        assert_eq!(rejected(&decoder, b"{"), RejectReason::NotJson);
        assert_eq!(rejected(&decoder, br#"{"caption": "\ud800"}"#), RejectReason::NotJson);
        assert_eq!(rejected(&decoder, b"{}"), RejectReason::CaptionMissing);
        assert_eq!(rejected(&decoder, br#"{"caption": 3}"#), RejectReason::CaptionNotText);
        assert_eq!(rejected(&decoder, br#"{"caption": null}"#), RejectReason::CaptionNotText);
        let long = format!(r#"{{"caption": "{}"}}"#, "x".repeat(21));
        assert_eq!(rejected(&decoder, long.as_bytes()), RejectReason::CaptionTooLarge);
        let of = |text: String| format!(r#"{{"caption": "{text}"}}"#);
        let longest = of("ä".repeat(10));
        assert!(decoder.decode(longest.as_bytes()).is_ok(), "as many bytes as there may be");
        let many = of("ä".repeat(11));
        assert_eq!(rejected(&decoder, many.as_bytes()), RejectReason::CaptionTooLarge);
    }

    #[test]
    fn an_empty_pointer_is_told_of_as_the_whole_value() {
        let format = CaptionFormat::Json { pointer: "".parse().unwrap() };
        let rejection = CaptionDecoder { format, ..decoder() }.decode(b"{}").unwrap_err();
        let due = "an object stands at \"\" (the whole value) where the caption's text is due";
        assert_eq!(rejection.detail, due);
    }

    #[test]
    fn no_sentence_quotes_the_message() {
        let decoder = CaptionDecoder { id_pointer: Some("/id".parse().unwrap()), ..decoder() };
        for value in [
            "secret",
            "\"secret\"",
            "[\"secret\"]",
            r#"{"secret": "secret"}"#,
            r#"{"secret": "secret" "#,
            r#"{"caption": {"secret": "secret"}}"#,
            r#"{"caption": "secret secret secret secret"}"#,
            r#"{"caption": "secret \ud800"}"#,
            r#"{"caption": "secret\secret"}"#,
            r#"{"caption": "x", "secret": 1}"#,
            r#"{"caption": "x", "id": {"secret": "secret"}}"#,
            r#"{"caption": "x", "id": "secret" "secret"}"#,
        ] {
            let rejection = decoder.decode(value.as_bytes()).unwrap_err();
            assert!(!rejection.detail.contains("secret"), "{value}: {}", rejection.detail);
        }
    }

    #[test]
    fn takes_an_id_of_either_kind() {
        let decoder = CaptionDecoder { id_pointer: Some("/id".parse().unwrap()), ..decoder() };
        let id = |value: &str| decoder.decode(value.as_bytes()).unwrap().id.unwrap();
        assert_eq!(id(r#"{"caption": "x", "id": "a"}"#), Id::Text("a".into()));
        let large = u64::MAX;
        assert_eq!(id(&format!(r#"{{"caption": "x", "id": {large}}}"#)), Id::Integer(large.into()));
        assert_eq!(rejected(&decoder, br#"{"caption": "x"}"#), RejectReason::IdMissing);
        assert_eq!(rejected(&decoder, br#"{"caption": "x", "id": []}"#), RejectReason::IdMissing);
    }

    #[test]
    fn a_key_is_an_id_where_it_is_text() {
        assert_eq!(key_as_id(Some("Älg".as_bytes())).unwrap(), "Älg");
        assert_eq!(key_as_id(Some(b"")).unwrap(), "");
        for key in [None, Some(&b"\xff"[..])] {
            assert_eq!(key_as_id(key).unwrap_err().reason, RejectReason::IdMissing);
        }
    }

    #[test]
    fn takes_plain_text_as_it_is() {
        let decoder = CaptionDecoder { format: CaptionFormat::Text, ..decoder() };
        assert_eq!(decoder.decode(b"{\"x\"}").unwrap().text, "{\"x\"}");
        assert_eq!(rejected(&decoder, b"a\xc3"), RejectReason::NotUtf8);
    }
}

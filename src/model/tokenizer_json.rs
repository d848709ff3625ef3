//! The tokenizer of a package, as Hugging Face's `tokenizer.json`.
//!
//! A checkpoint has either that file, which is taken as it is, or the older pair of `vocab.txt` and
//! `tokenizer_config.json`, from which it is made: the BERT normaliser and pre-tokeniser, WordPiece,
//! and the `[CLS] caption [SEP]` template. Source of the form: the `tokenizers` project's file
//! version 1.0, which every Hugging Face tool reads.

use std::collections::HashMap;

use serde::Deserialize;
use serde_json::{Map, Value, json};
use thiserror::Error;

/// What can be wrong with a vocabulary.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum VocabularyError {
    /// A token stands on two lines.
    #[error("line {line}: the token {token:?} stands on line {first} already")]
    Twice {
        /// The token.
        token: String,
        /// The first line, from 1.
        first: usize,
        /// The second line, from 1.
        line: usize,
    },
    /// A token that the encoder needs isn't there.
    #[error("the token {0:?} is missing; this is no BERT vocabulary")]
    Missing(&'static str),
}

/// The options of `tokenizer_config.json` that change token ids. The file's other keys say nothing
/// about them and are left alone.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct TokenizerConfig {
    /// Lower-cases the text.
    pub do_lower_case: bool,
    /// Takes accents off; by default where the text is lower-cased.
    pub strip_accents: Option<bool>,
    /// Puts spaces around Chinese characters, so that each is a token of its own.
    pub tokenize_chinese_chars: bool,
}

impl Default for TokenizerConfig {
    /// The defaults of `BertTokenizer`, for options that a file leaves out.
    fn default() -> Self {
        TokenizerConfig { do_lower_case: true, strip_accents: None, tokenize_chinese_chars: true }
    }
}

/// The tokens that are matched in the text as they stand, before anything else.
const SPECIAL: [&str; 5] = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"];

/// Words of more characters than this are unknown to WordPiece as a whole.
const WORD_CHARS_MAX: usize = 100;

/// Returns the `tokenizer.json` of the vocabulary `vocab`, one token a line, the first being 0.
///
/// # Errors
///
/// When a token stands there twice, or one that the encoder needs doesn't.
pub fn from_vocabulary(vocab: &str, config: &TokenizerConfig) -> Result<String, VocabularyError> {
    let mut ids: HashMap<&str, usize> = HashMap::new();
    let mut ordered = Map::new();
    for (id, token) in vocab.lines().enumerate() {
        if let Some(first) = ids.insert(token, id) {
            return Err(VocabularyError::Twice {
                token: token.into(),
                first: first + 1,
                line: id + 1,
            });
        }
        ordered.insert(token.into(), json!(id));
    }
    let mut special = Vec::new();
    for token in SPECIAL {
        match ids.get(token) {
            Some(&id) => special.push((id, token)),
            None if matches!(token, "[UNK]" | "[CLS]" | "[SEP]") => {
                return Err(VocabularyError::Missing(token));
            }
            None => {}
        }
    }
    special.sort();
    let added: Vec<Value> = special
        .iter()
        .map(|(id, content)| {
            json!({
                "id": id, "content": content, "single_word": false, "lstrip": false,
                "rstrip": false, "normalized": false, "special": true
            })
        })
        .collect();
    let (cls, sep) = (ids["[CLS]"], ids["[SEP]"]);
    let token = |token: &str| json!({ "SpecialToken": { "id": token, "type_id": 0 } });
    let tokenizer = json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": added,
        "normalizer": {
            "type": "BertNormalizer",
            "clean_text": true,
            "handle_chinese_chars": config.tokenize_chinese_chars,
            "strip_accents": config.strip_accents,
            "lowercase": config.do_lower_case,
        },
        "pre_tokenizer": { "type": "BertPreTokenizer" },
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [token("[CLS]"), { "Sequence": { "id": "A", "type_id": 0 } }, token("[SEP]")],
            "pair": [
                token("[CLS]"), { "Sequence": { "id": "A", "type_id": 0 } }, token("[SEP]"),
                { "Sequence": { "id": "B", "type_id": 1 } },
                { "SpecialToken": { "id": "[SEP]", "type_id": 1 } },
            ],
            "special_tokens": {
                "[CLS]": { "id": "[CLS]", "ids": [cls], "tokens": ["[CLS]"] },
                "[SEP]": { "id": "[SEP]", "ids": [sep], "tokens": ["[SEP]"] },
            },
        },
        "decoder": { "type": "WordPiece", "prefix": "##", "cleanup": true },
        "model": {
            "type": "WordPiece",
            "unk_token": "[UNK]",
            "continuing_subword_prefix": "##",
            "max_input_chars_per_word": WORD_CHARS_MAX,
            "vocab": ordered,
        },
    });
    Ok(tokenizer.to_string())
}

/// Returns the number of entries that a `tokenizer.json` gives ids to, or `None` where it is of
/// another shape: one more than its largest id.
pub fn id_space(tokenizer_json: &str) -> Option<usize> {
    let tokenizer: Value = serde_json::from_str(tokenizer_json).ok()?;
    let vocab = tokenizer.pointer("/model/vocab")?.as_object()?;
    let added = tokenizer.pointer("/added_tokens").and_then(Value::as_array);
    let added = added.into_iter().flatten().filter_map(|t| t.pointer("/id")?.as_u64());
    let largest = vocab.values().filter_map(Value::as_u64).chain(added).max()?;
    usize::try_from(largest).ok()?.checked_add(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    const VOCAB: &str = "[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\nhello\n##s\n";

    #[test]
    fn counts_ids() {
        let json = from_vocabulary(VOCAB, &TokenizerConfig::default()).unwrap();
        assert_eq!(id_space(&json), Some(7));
        assert_eq!(id_space("{}"), None);
    }

    #[test]
    fn a_doubled_token_is_named_with_both_lines() {
        let error = from_vocabulary(&format!("{VOCAB}hello\n"), &TokenizerConfig::default());
        assert_eq!(
            error.unwrap_err().to_string(),
            "line 8: the token \"hello\" stands on line 6 already"
        );
    }

    #[test]
    fn a_vocabulary_without_its_marks_is_refused() {
        let error = from_vocabulary("a\nb\n", &TokenizerConfig::default()).unwrap_err();
        assert_eq!(error, VocabularyError::Missing("[UNK]"));
    }
}

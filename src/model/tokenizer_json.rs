//! The tokenizer of a package, as Hugging Face's `tokenizer.json`.
//!
//! A checkpoint has either that file, which is taken as it is where it can be used, or the older
//! pair of `vocab.txt` and `tokenizer_config.json`, from which it is made: the BERT normaliser and
//! pre-tokeniser, WordPiece, and the `[CLS] caption [SEP]` template. Source of the form: the
//! `tokenizers` project's file version 1.0, which every Hugging Face tool reads.

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
    /// A token ends in white space, which some versions of Hugging Face's library take off.
    #[error("line {line}: the token {token:?} ends in white space; take it off")]
    Trailing {
        /// The token.
        token: String,
        /// The line, from 1.
        line: usize,
    },
    /// A token that the encoder needs isn't there.
    #[error("the token {0:?} is missing; this is no BERT vocabulary")]
    Missing(&'static str),
}

/// The options of `tokenizer_config.json` that change token ids, beside those that add tokens.
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
pub const SPECIAL: [&str; 5] = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"];

/// Words of more characters than this are unknown to WordPiece as a whole.
const WORD_CHARS_MAX: usize = 100;

/// The most characters that a tokenizer may take for one word: it makes room for them.
const WORD_CHARS_BOUND: u64 = 1 << 16;

/// The longest added token that the tokenizer can look for.
const ADDED_BYTES_MAX: usize = u16::MAX as usize;

/// Returns the `tokenizer.json` of the vocabulary `vocab`, one token a line, the first being 0.
///
/// # Errors
///
/// When a token stands there twice, or ends in white space, or one that the encoder needs isn't
/// there.
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
        // One that is nothing else is in no text.
        if !["", "##", token].contains(&token.trim_end()) {
            return Err(VocabularyError::Trailing { token: token.into(), line: id + 1 });
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

/// Compares a `tokenizer.json` with the `tokenizer_config.json` beside it, whose options Hugging
/// Face puts over those of BERT's normaliser.
///
/// # Errors
///
/// With what they differ in.
pub fn agrees(
    tokenizer: &Value,
    options: &Map<String, Value>,
    config: &TokenizerConfig,
) -> Result<(), String> {
    let Some(normalizer) = tokenizer.get("normalizer") else { return Ok(()) };
    if normalizer.get("type").and_then(Value::as_str) != Some("BertNormalizer") {
        return Ok(());
    }
    let of_json = |key: &str| normalizer.get(key).and_then(Value::as_bool);
    let lowercase = of_json("lowercase").unwrap_or(true);
    let compared = [
        ("lowercase", lowercase, "do_lower_case", config.do_lower_case),
        // Where nobody says, accents go where capitals do.
        (
            "strip_accents",
            of_json("strip_accents").unwrap_or(lowercase),
            "strip_accents",
            config.strip_accents.unwrap_or(config.do_lower_case),
        ),
        (
            "handle_chinese_chars",
            of_json("handle_chinese_chars").unwrap_or(true),
            "tokenize_chinese_chars",
            config.tokenize_chinese_chars,
        ),
    ];
    match compared.into_iter().find(|(_, found, _, configured)| found != configured) {
        None => Ok(()),
        Some((key, found, option, configured)) => {
            let default = if options.contains_key(option) { "" } else { " (the default)" };
            Err(format!(
                "{option} is {configured}{default}, and tokenizer.json has {key} {found}; Hugging Face goes \
                 by the former, so their ids would differ: make them say the same"
            ))
        }
    }
}

/// Compares the parts of a `tokenizer.json` with those that BERT's tokenizer is made of: Hugging
/// Face's library makes them so from version 5 on, whatever the file says, and goes by the file
/// before.
///
/// # Errors
///
/// With the first that is another.
pub fn is_berts(tokenizer: &Value) -> Result<(), String> {
    let parts = [
        ("/normalizer/type", json!("BertNormalizer")),
        ("/normalizer/clean_text", json!(true)),
        ("/pre_tokenizer/type", json!("BertPreTokenizer")),
        ("/model/continuing_subword_prefix", json!("##")),
        ("/model/max_input_chars_per_word", json!(WORD_CHARS_MAX)),
    ];
    let other = parts.iter().find(|(part, due)| tokenizer.pointer(part) != Some(due));
    let Some((part, due)) = other else { return Ok(()) };
    let found = tokenizer.pointer(part).unwrap_or(&Value::Null);
    Err(format!(
        "{} is {found}, and BERT's is {due}, which some versions of Hugging Face take instead; with \
         the tokenizer_class PreTrainedTokenizerFast in tokenizer_config.json all go by this file",
        &part[1..]
    ))
}

/// Checks that a network with so many embeddings has one for each id that a `tokenizer.json` gives,
/// and that building the tokenizer takes no more memory than the file itself.
///
/// # Errors
///
/// With what is wrong with it.
pub fn fits(tokenizer: &Value, vocabulary: usize) -> Result<(), String> {
    let ids = ids(tokenizer).ok_or("the tokenizer has no vocabulary")?;
    if ids > vocabulary {
        return Err(format!("the tokenizer gives {ids} ids where the network knows {vocabulary}"));
    }
    let model = &tokenizer["model"];
    // The oldest files have no type.
    let is_word_piece = model["type"].as_str().unwrap_or("WordPiece") == "WordPiece";
    let unknown = model["unk_token"].as_str().unwrap_or("[UNK]");
    if is_word_piece && model["vocab"].get(unknown).is_none() {
        return Err(format!("the token {unknown:?}, for unknown words, isn't in the vocabulary"));
    }
    if model["max_input_chars_per_word"].as_u64().is_some_and(|chars| chars > WORD_CHARS_BOUND) {
        return Err(format!("max_input_chars_per_word is above {WORD_CHARS_BOUND}"));
    }
    // The library looks at the wrong neighbours of such a token, and panics where one begins in the
    // middle of a character.
    let tokens = tokenizer.pointer("/added_tokens").and_then(Value::as_array);
    let is_single = |token: &Value| token.get("single_word").and_then(Value::as_bool) == Some(true);
    if tokens.is_some_and(|tokens| tokens.iter().any(is_single)) {
        return Err("an added token is a single_word, which can't be imported".into());
    }
    if truncates_left(tokenizer.pointer("/truncation/direction")) {
        return Err("it cuts long texts at their beginning, and the worker at their end".into());
    }
    let long = added(tokenizer).find(|token| token.len() > ADDED_BYTES_MAX);
    if let Some(token) = long {
        return Err(format!("an added token has {} bytes, above {ADDED_BYTES_MAX}", token.len()));
    }
    for is_normalized in [false, true] {
        findable(tokenizer, is_normalized)?;
    }
    Ok(())
}

/// Returns whether this names the side on which Hugging Face would cut a text's beginning off.
pub fn truncates_left(side: Option<&Value>) -> bool {
    side.and_then(Value::as_str).is_some_and(|side| side.eq_ignore_ascii_case("left"))
}

/// Checks that the library finds the added tokens that are looked for in normalised text, or those
/// that are looked for in the text as it is.
///
/// # Errors
///
/// With one that it would miss where Hugging Face's finds it.
fn findable(tokenizer: &Value, is_normalized: bool) -> Result<(), String> {
    let has = |token: &Value, flag: &str| token.get(flag).and_then(Value::as_bool) == Some(true);
    let tokens = tokenizer.pointer("/added_tokens").and_then(Value::as_array);
    let mut contents = Vec::new();
    for token in tokens.into_iter().flatten() {
        let Some(content) = token.get("content").and_then(Value::as_str) else { continue };
        if has(token, "normalized") != is_normalized {
            continue;
        }
        // It would take a space that the normaliser put around the next token's character.
        if is_normalized && (has(token, "lstrip") || has(token, "rstrip")) {
            return Err(format!(
                "the added token {content:?} is normalized and takes the white space beside it, which \
                 can't be imported; without one of the two it can"
            ));
        }
        contents.push(content);
    }
    // It looks for the tokens' common beginning, and goes on behind one that has led to nothing: a
    // beginning within that is passed over.
    let repeats = |forms: &[String]| {
        let beginning = common_beginning(forms);
        (1..beginning.len()).any(|at| beginning.starts_with(&beginning[at..]))
    };
    let as_they_are: Vec<String> = contents.iter().map(|&content| content.into()).collect();
    let in_lower_case: Vec<String> =
        contents.iter().map(|content| content.to_lowercase()).collect();
    if repeats(&as_they_are) || (is_normalized && repeats(&in_lower_case)) {
        let token = contents[0];
        let way_out = if is_normalized { "; with \"normalized\": false it wouldn't" } else { "" };
        return Err(format!(
            "the beginning of the added token {token:?} repeats itself, so that the token would be \
             missed in some texts{way_out}"
        ));
    }
    Ok(())
}

/// Returns the bytes that all tokens begin with, of each at most all but the last.
fn common_beginning(tokens: &[String]) -> &[u8] {
    let Some((first, others)) = tokens.split_first() else { return &[] };
    let mut length = first.len().saturating_sub(1);
    for other in others {
        let equal = first.bytes().zip(other.bytes()).take_while(|(a, b)| a == b).count();
        length = length.min(equal).min(other.len().saturating_sub(1));
    }
    &first.as_bytes()[..length]
}

/// Returns one more than the largest id of a `tokenizer.json`, or `None` where it is of another
/// shape.
pub fn id_space(tokenizer_json: &str) -> Option<usize> {
    ids(&serde_json::from_str(tokenizer_json).ok()?)
}

/// As [`id_space`], of one that is parsed.
pub fn ids(tokenizer: &Value) -> Option<usize> {
    let vocab = tokenizer.pointer("/model/vocab")?.as_object()?;
    let named = tokenizer.pointer("/added_tokens").and_then(Value::as_array);
    let named = named.into_iter().flatten().filter_map(|t| t.get("id")?.as_u64());
    let largest = vocab.values().filter_map(Value::as_u64).chain(named).max()?;
    // An added token that isn't in the vocabulary gets the next id behind it, whatever it says.
    let new = added(tokenizer).filter(|token| !vocab.contains_key(*token)).count();
    let largest = usize::try_from(largest).ok()?.checked_add(1)?;
    Some(largest.max(vocab.len() + new))
}

/// Returns the tokens that a `tokenizer.json` has beside its vocabulary's, or finds in a text as
/// they stand.
pub fn added(tokenizer: &Value) -> impl Iterator<Item = &str> {
    added_tokens(tokenizer).filter_map(|token| token.get("content")?.as_str())
}

/// Returns the one of these that is this text, with its flags.
pub fn find_added<'a>(tokenizer: &'a Value, text: &str) -> Option<&'a Value> {
    added_tokens(tokenizer).find(|token| token["content"] == text)
}

fn added_tokens(tokenizer: &Value) -> impl Iterator<Item = &Value> {
    tokenizer.pointer("/added_tokens").and_then(Value::as_array).into_iter().flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    const VOCAB: &str = "[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\nhello\n##s\n";

    #[test]
    fn added_tokens_that_must_stand_alone_are_refused() {
        let token = |single_word: bool| {
            serde_json::json!({
                "model": { "vocab": { "[UNK]": 0, "a": 1 } },
                "added_tokens": [{ "id": 1, "content": "a", "single_word": single_word }],
            })
        };
        assert_eq!(fits(&token(false), 2), Ok(()));
        assert!(fits(&token(true), 2).unwrap_err().contains("single_word"));
    }

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

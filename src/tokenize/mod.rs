//! Text to token ids, as Hugging Face's `BertTokenizerFast` computes them.
//!
//! [`Tokenizer`] wraps the `tokenizers` crate: it encodes the text alone, cuts it as Hugging Face
//! does with `truncation=True` (the first `max_tokens - 2` tokens stay), and puts the ids of
//! `[CLS]` and `[SEP]` around it. The crate's tables of Unicode are newer than those of the one
//! that Python has: 142 characters are punctuation to this one alone, and one to that alone.
//! [`task`] is the worker's thread around it, which remembers [`Words`].

pub mod task;
mod words;

use std::path::Path;

use thiserror::Error;
use tokenizers::pipeline::{EncodeOptions, Override, PipelineToken, PipelineTokenizer};

use words::Word;
pub use words::Words;

/// The shortest that a caption may be cut to: `[CLS]`, a token, `[SEP]`.
pub const TOKENS_MIN: usize = 3;

/// Words that are looked up at a time: a caption's, mostly.
const WORDS_AHEAD: usize = 16;

/// A caption as the network reads it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenizedCaption {
    /// Token ids, `[CLS]` first and `[SEP]` last; at most `max_tokens` of them.
    pub ids: Vec<u32>,
    /// Whether tokens were cut off.
    pub truncated: bool,
}

impl TokenizedCaption {
    /// Returns whether there is nothing between `[CLS]` and `[SEP]`: the text was empty, blank, or
    /// made only of characters that the tokenizer drops.
    pub fn is_empty(&self) -> bool {
        self.ids.len() < TOKENS_MIN
    }
}

/// What can be wrong with a tokenizer.
#[derive(Debug, Error)]
pub enum TokenizerError {
    /// The file can't be read.
    #[error("{path}")]
    Io {
        /// The file.
        path: std::path::PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The file is no tokenizer, or one that the `tokenizers` crate doesn't know.
    #[error("not a usable tokenizer: {0}")]
    Unusable(String),
    /// The tokenizer doesn't put one token before the text and one after.
    #[error(
        "the tokenizer makes {found} of an empty text where BERT's makes [CLS] and [SEP]; is it \
         another family's?"
    )]
    Template {
        /// The ids it made.
        found: String,
    },
    /// A text can't be encoded.
    #[error("the tokenizer failed: {0}")]
    Encode(String),
}

/// A tokenizer with the longest caption that it makes. Cloning is cheap; clones share the
/// vocabulary.
#[derive(Clone)]
pub struct Tokenizer {
    inner: PipelineTokenizer,
    options: EncodeOptions,
    first: u32,
    last: u32,
    max_tokens: usize,
    splits_at_spaces: bool,
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tokenizer").field("max_tokens", &self.max_tokens).finish_non_exhaustive()
    }
}

impl Tokenizer {
    /// Reads a `tokenizer.json`.
    ///
    /// # Errors
    ///
    /// When the file can't be read, or [`Tokenizer::from_json`] refuses it.
    pub fn from_file(path: &Path, max_tokens: usize) -> Result<Tokenizer, TokenizerError> {
        let json = std::fs::read_to_string(path)
            .map_err(|source| TokenizerError::Io { path: path.into(), source })?;
        Tokenizer::from_json(&json, max_tokens)
    }

    /// Builds the tokenizer that the text of a `tokenizer.json` describes. Its own settings for
    /// truncation and padding are left aside: `max_tokens` is the truncation, and there is no
    /// padding.
    ///
    /// # Errors
    ///
    /// When the text is no tokenizer, or not one that puts one token before a text and one after.
    ///
    /// # Panics
    ///
    /// When `max_tokens` is less than [`TOKENS_MIN`].
    pub fn from_json(json: &str, max_tokens: usize) -> Result<Tokenizer, TokenizerError> {
        assert!(max_tokens >= TOKENS_MIN, "a caption is [CLS], a token, [SEP] at least");
        let canonical = tokenizers::canonicalize_str(json)
            .map_err(|e| TokenizerError::Unusable(e.to_string()))?;
        let inner = tokenizers::from_json(&canonical)
            .map_err(|e| TokenizerError::Unusable(e.to_string()))?;
        let mut options = EncodeOptions {
            add_special_tokens: true,
            encode_special_tokens: false,
            padding: Override::Off,
            truncation: Override::Off,
        };
        let mut framed = Vec::new();
        encode(&inner, &options, "", &mut framed)?;
        let framed = PipelineToken::cast_slice(&framed);
        let &[first, last] = framed else {
            return Err(TokenizerError::Template { found: format!("{framed:?}") });
        };
        options.add_special_tokens = false;
        let splits_at_spaces = words::splits_at_spaces(&canonical);
        Ok(Tokenizer { inner, options, first, last, max_tokens, splits_at_spaces })
    }

    /// Returns the ids of the tokens before and behind every text.
    pub fn frame(&self) -> [u32; 2] {
        [self.first, self.last]
    }

    /// Returns the token ids of `text`.
    ///
    /// # Errors
    ///
    /// When the tokenizer has no token for a part of the text, not even `[UNK]`.
    pub fn tokenize(&self, text: &str) -> Result<TokenizedCaption, TokenizerError> {
        let mut tokens = self.begin(text);
        encode(&self.inner, &self.options, text, &mut tokens)?;
        Ok(self.end(tokens))
    }

    /// As [`Tokenizer::tokenize`], and the same ids, for a thread that does it all the time:
    /// `words` are those that it has seen, with this tokenizer and no other.
    ///
    /// # Errors
    ///
    /// As [`Tokenizer::tokenize`].
    pub fn tokenize_with(
        &self,
        words: &mut Words,
        text: &str,
    ) -> Result<TokenizedCaption, TokenizerError> {
        if !self.splits_at_spaces {
            return self.tokenize(text);
        }
        let mut tokens = self.begin(text);
        let mut rest = text.split(' ').filter(|word| !word.is_empty());
        let mut ahead = [Word::default(); WORDS_AHEAD];
        loop {
            let count = words.look_ahead(&mut rest, &mut ahead);
            for &word in &ahead[..count] {
                if let Some(known) = words.get(word) {
                    tokens.extend(known.iter().map(|&id| PipelineToken::from(id)));
                    continue;
                }
                let before = tokens.len();
                encode(&self.inner, &self.options, word.text, &mut tokens)?;
                words.put(word, PipelineToken::cast_slice(&tokens[before..]));
            }
            if count < ahead.len() {
                break;
            }
        }
        Ok(self.end(tokens))
    }

    fn begin(&self, text: &str) -> Vec<PipelineToken> {
        // A token is three to five bytes, mostly.
        let mut tokens = Vec::with_capacity((text.len() / 3).min(self.max_tokens) + 2);
        tokens.push(self.first.into());
        tokens
    }

    fn end(&self, mut tokens: Vec<PipelineToken>) -> TokenizedCaption {
        let kept = tokens.len().min(self.max_tokens - 1);
        let truncated = kept < tokens.len();
        if truncated {
            // A caption may have many more tokens than the network reads, and it stays for a while.
            tokens.truncate(kept);
            tokens.shrink_to(kept + 1);
        }
        tokens.push(self.last.into());
        // In place: both are 4 bytes.
        TokenizedCaption { ids: tokens.into_iter().map(u32::from).collect(), truncated }
    }
}

/// Appends the tokens of a text.
fn encode(
    inner: &PipelineTokenizer,
    options: &EncodeOptions,
    text: &str,
    tokens: &mut Vec<PipelineToken>,
) -> Result<(), TokenizerError> {
    inner.encode_into(text, options, tokens).map_err(|e| TokenizerError::Encode(e.to_string()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::model::tokenizer_json::{TokenizerConfig, from_vocabulary};

    const VOCAB: &str = "[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\nhello\nwor\n##ld\n!\nHé\nhe\nhé\n\u{4e2d}\n\u{6587}\n##\u{6587}\n";

    fn tokenizer(config: &TokenizerConfig) -> Tokenizer {
        Tokenizer::from_json(&from_vocabulary(VOCAB, config).unwrap(), 8).unwrap()
    }

    fn ids(config: &TokenizerConfig, text: &str) -> Vec<u32> {
        tokenizer(config).tokenize(text).unwrap().ids
    }

    #[test]
    fn frames_and_splits() {
        let cased = TokenizerConfig { do_lower_case: false, ..Default::default() };
        assert_eq!(ids(&cased, "hello world!"), [2, 5, 6, 7, 8, 3]);
        assert_eq!(ids(&cased, "unseen hello"), [2, 1, 5, 3]);
        assert_eq!(ids(&cased, " \u{0} \t"), [2, 3]);
    }

    #[test]
    fn a_caption_of_one_token_is_not_empty() {
        let tokenizer = tokenizer(&TokenizerConfig::default());
        let is_empty = |text: &str| tokenizer.tokenize(text).unwrap().is_empty();
        assert!(!is_empty("hello") && !is_empty("\u{1f600}"));
        assert!(is_empty("") && is_empty(" \u{0}"));
    }

    #[test]
    fn honours_the_three_options() {
        let cased = TokenizerConfig { do_lower_case: false, ..Default::default() };
        let lower = TokenizerConfig::default();
        let lower_with_accents =
            TokenizerConfig { strip_accents: Some(false), ..Default::default() };
        let whole_words = TokenizerConfig { tokenize_chinese_chars: false, ..cased.clone() };
        assert_eq!(ids(&cased, "Hé"), [2, 9, 3]);
        assert_eq!(ids(&lower, "Hé"), [2, 10, 3]);
        assert_eq!(ids(&lower_with_accents, "Hé"), [2, 11, 3]);
        assert_eq!(ids(&cased, "\u{4e2d}\u{6587}"), [2, 12, 13, 3]);
        assert_eq!(ids(&whole_words, "\u{4e2d}\u{6587}"), [2, 12, 14, 3]);
    }

    #[test]
    fn cuts_to_the_first_tokens_and_says_so() {
        let tokenizer = tokenizer(&TokenizerConfig::default());
        let exact = tokenizer.tokenize("hello hello hello hello hello hello").unwrap();
        assert_eq!((exact.ids.len(), exact.truncated), (8, false));
        let cut = tokenizer.tokenize("hello hello hello hello hello hello !").unwrap();
        assert_eq!(cut.ids, exact.ids);
        assert!(cut.truncated);
    }

    #[test]
    fn special_tokens_in_the_text_are_themselves() {
        let cased = TokenizerConfig { do_lower_case: false, ..Default::default() };
        assert_eq!(ids(&cased, "hello [SEP] hello"), [2, 5, 3, 5, 3]);
    }

    #[test]
    fn words_that_were_seen_are_not_asked_of_another_family() {
        let json = from_vocabulary(VOCAB, &TokenizerConfig::default()).unwrap();
        // An added token with a space: it must be found where its words are known.
        let mut value: serde_json::Value = serde_json::from_str(&json).unwrap();
        let added = value["added_tokens"].as_array_mut().unwrap();
        let mut token = added[0].clone();
        token["content"] = "hello hello".into();
        added[0] = token;
        let tokenizer = Tokenizer::from_json(&value.to_string(), 8).unwrap();
        assert!(!tokenizer.splits_at_spaces);
        let mut words = Words::default();
        for text in ["hello", "hello hello"] {
            let with_words = tokenizer.tokenize_with(&mut words, text).unwrap();
            assert_eq!(with_words, tokenizer.tokenize(text).unwrap());
        }
        assert_eq!(tokenizer.tokenize("hello hello").unwrap().ids.len(), 3);
    }

    #[test]
    fn words_that_were_seen_change_nothing_beside_a_token_that_takes_spaces() {
        let json = from_vocabulary(VOCAB, &TokenizerConfig::default()).unwrap();
        // In normalised text a Chinese character has spaces around it, which belong to the token.
        let mut value: serde_json::Value = serde_json::from_str(&json).unwrap();
        let added = value["added_tokens"].as_array_mut().unwrap();
        let mut token = added[0].clone();
        (token["content"], token["id"]) = ("\u{4e2d}hello".into(), 15.into());
        (token["normalized"], token["rstrip"]) = (true.into(), true.into());
        added.push(token);
        let tokenizer = Tokenizer::from_json(&value.to_string(), 8).unwrap();
        let mut words = Words::default();
        for text in ["\u{4e2d}hello", "\u{4e2d}hello \u{4e2d}hello"] {
            let with_words = tokenizer.tokenize_with(&mut words, text).unwrap();
            assert_eq!(with_words, tokenizer.tokenize(text).unwrap(), "{text}");
        }
    }

    /// What a normaliser may take for more than a letter: accents apart from their letters, a
    /// letter whose lower case depends on its place, white space of many kinds, what is dropped,
    /// tokens of the vocabulary's own, and a word that is too long for WordPiece.
    fn text() -> impl Strategy<Value = String> {
        const PIECES: &[&str] = &[
            "hello",
            "wor",
            "world",
            "!",
            "He\u{301}",
            "\u{301}",
            "Hé",
            "ΟΔΟΣ",
            "ß",
            "İ",
            "\u{4e2d}",
            "\u{6587}",
            "\u{0}",
            "\u{fffd}",
            "\u{200d}",
            "\t",
            "\n",
            "\u{a0}",
            "\u{3000}",
            "\u{2028}",
            " ",
            " ",
            " ",
            "[SEP]",
            "[MASK]",
            "[",
            "]",
            "'",
            "\u{1f600}",
        ];
        let piece = prop_oneof![
            8 => prop::sample::select(PIECES).prop_map(str::to_owned),
            1 => any::<char>().prop_map(String::from),
            1 => (90..120usize).prop_map(|length| "x".repeat(length)),
        ];
        prop::collection::vec(piece, 0..20).prop_map(|pieces| pieces.concat())
    }

    proptest! {
        #[test]
        fn words_that_were_seen_change_nothing(
            texts in prop::collection::vec(text(), 1..20),
            do_lower_case in any::<bool>(),
            strip_accents in prop::option::of(any::<bool>()),
            tokenize_chinese_chars in any::<bool>(),
        ) {
            let config = TokenizerConfig { do_lower_case, strip_accents, tokenize_chinese_chars };
            let tokenizer = tokenizer(&config);
            prop_assert!(tokenizer.splits_at_spaces);
            let mut words = Words::default();
            for text in texts.iter().chain(&texts) {
                let with_words = tokenizer.tokenize_with(&mut words, text).unwrap();
                prop_assert_eq!(with_words, tokenizer.tokenize(text).unwrap(), "{:?}", text);
            }
        }
    }

    #[test]
    fn a_caption_of_many_words_is_read_to_its_end() {
        let json = from_vocabulary(VOCAB, &TokenizerConfig::default()).unwrap();
        let tokenizer = Tokenizer::from_json(&json, 100).unwrap();
        for number in [WORDS_AHEAD - 1, WORDS_AHEAD, WORDS_AHEAD + 1, 3 * WORDS_AHEAD] {
            let text = format!("{}!", "hello ".repeat(number));
            let mut words = Words::default();
            for _ in 0..2 {
                let with_words = tokenizer.tokenize_with(&mut words, &text).unwrap();
                assert_eq!(with_words.ids.len(), number + 3, "[CLS], the words, !, [SEP]");
                assert_eq!(with_words, tokenizer.tokenize(&text).unwrap());
            }
        }
    }

    #[test]
    fn another_template_is_refused() {
        let json = from_vocabulary(VOCAB, &TokenizerConfig::default()).unwrap();
        let mut value: serde_json::Value = serde_json::from_str(&json).unwrap();
        value["post_processor"] = serde_json::Value::Null;
        let error = Tokenizer::from_json(&value.to_string(), 8).unwrap_err();
        assert!(matches!(error, TokenizerError::Template { .. }), "{error}");
    }
}

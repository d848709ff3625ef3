//! The words that a tokenizing thread has seen lately, with their token ids.
//!
//! Most words of a stream of captions have come before, and looking one up costs little beside
//! tokenizing it. What lies between two spaces is tokenized by itself in BERT's way, see
//! [`splits_at_spaces`], so that a caption is its words' ids one behind the other.

use std::hash::BuildHasher;

use foldhash::fast::FixedState;
use serde::Deserialize;

/// Words that are kept. Each has one place, by its hash, and gives way to the next that has the
/// same. Of 20,000 real captions in four languages, no two alike, 84 in a hundred words are found;
/// with a quarter of the places, 78.
const PLACES: usize = 1 << 16;

/// Bytes of the longest word that is kept, and its tokens: a place fills a line of the CPU's cache.
/// Hardly a word between spaces is longer; text without spaces, as Chinese has none, is not kept.
const BYTES_MAX: usize = 30;
const IDS_MAX: usize = 8;

/// The words of one thread, with one tokenizer.
pub struct Words {
    places: Vec<Place>,
    hasher: FixedState,
}

#[derive(Clone, Copy, Default)]
#[repr(C, align(64))]
struct Place {
    word: [u8; BYTES_MAX],
    /// 0 where there is no word yet.
    bytes: u8,
    tokens: u8,
    ids: [u32; IDS_MAX],
}

impl Default for Words {
    fn default() -> Words {
        Words { places: vec![Place::default(); PLACES], hasher: FixedState::default() }
    }
}

/// A word, and its place among the words that are kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Word<'a> {
    /// The word.
    pub text: &'a str,
    place: usize,
}

impl Words {
    /// Fills `ahead` with the next words, and returns how many there were. Their places come from
    /// memory meanwhile: to wait for each by itself would take longer than all the rest.
    pub fn look_ahead<'a>(
        &self,
        words: &mut impl Iterator<Item = &'a str>,
        ahead: &mut [Word<'a>],
    ) -> usize {
        let (mut count, mut touched) = (0, 0);
        for (slot, text) in ahead.iter_mut().zip(words) {
            let place = self.hasher.hash_one(text.as_bytes()) as usize % PLACES;
            touched ^= self.places[place].bytes;
            *slot = Word { text, place };
            count += 1;
        }
        std::hint::black_box(touched);
        count
    }

    /// Returns the ids of a word if it is known.
    pub fn get(&self, word: Word<'_>) -> Option<&[u32]> {
        let (place, text) = (&self.places[word.place], word.text);
        let is_there = usize::from(place.bytes) == text.len() && !text.is_empty();
        (is_there && &place.word[..text.len()] == text.as_bytes())
            .then(|| &place.ids[..usize::from(place.tokens)])
    }

    /// Keeps the ids of a word, unless it is longer than is kept.
    pub fn put(&mut self, word: Word<'_>, ids: &[u32]) {
        let text = word.text;
        if text.len() > BYTES_MAX || ids.len() > IDS_MAX {
            return;
        }
        let place = &mut self.places[word.place];
        (place.bytes, place.tokens) = (text.len() as u8, ids.len() as u8);
        place.word[..text.len()].copy_from_slice(text.as_bytes());
        place.ids[..ids.len()].copy_from_slice(ids);
    }
}

/// Returns whether the tokenizer of a `tokenizer.json` makes the same of a text and of its parts
/// between spaces.
///
/// BERT's does: its normaliser looks at one character at a time but for accents, which a space
/// ends, its pre-tokeniser cuts at white space before anything else, and WordPiece sees single
/// words. A token that was added to the vocabulary is looked for in the whole text; with white
/// space inside, which the normaliser makes a space of, it would be missed. One that takes the
/// spaces beside it in normalised text takes those that the normaliser puts around the next, which
/// is not found then.
pub fn splits_at_spaces(tokenizer_json: &str) -> bool {
    let Ok(parts) = serde_json::from_str::<Parts>(tokenizer_json) else { return false };
    parts.normalizer.kind == "BertNormalizer"
        && parts.pre_tokenizer.kind == "BertPreTokenizer"
        && parts.model.kind == "WordPiece"
        && !parts.added_tokens.iter().any(AddedToken::may_span_a_space)
}

/// What is looked at of a `tokenizer.json`; its vocabulary, which is nearly all of it, is passed
/// over.
#[derive(Deserialize)]
struct Parts {
    normalizer: Part,
    pre_tokenizer: Part,
    model: Part,
    #[serde(default)]
    added_tokens: Vec<AddedToken>,
}

#[derive(Deserialize)]
struct Part {
    #[serde(rename = "type")]
    kind: String,
}

#[derive(Deserialize)]
struct AddedToken {
    content: String,
    #[serde(default)]
    normalized: bool,
    #[serde(default)]
    lstrip: bool,
    #[serde(default)]
    rstrip: bool,
}

impl AddedToken {
    fn may_span_a_space(&self) -> bool {
        let takes_spaces = self.normalized && (self.lstrip || self.rstrip);
        takes_spaces || self.content.contains(char::is_whitespace)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;
    use crate::model::tokenizer_json::{TokenizerConfig, from_vocabulary};

    fn word<'a>(words: &Words, text: &'a str) -> Word<'a> {
        let mut ahead = [Word::default(); 2];
        assert_eq!(words.look_ahead(&mut [text].into_iter(), &mut ahead), 1);
        ahead[0]
    }

    #[test]
    fn a_word_is_found_until_another_has_its_place() {
        let mut words = Words::default();
        let [hello, hell, nothing, empty] =
            ["hello", "hell", "nothing", ""].map(|text| word(&words, text));
        assert_eq!((words.get(hello), words.get(empty)), (None, None));
        words.put(hello, &[7, 8]);
        words.put(nothing, &[]);
        assert_eq!(words.get(hello), Some(&[7, 8][..]));
        assert_eq!(words.get(hell), None);
        for text in ["hell", "hella", "hello!"] {
            assert_eq!(words.get(Word { text, ..hello }), None, "{text} at the same place");
        }
        assert_eq!(words.get(nothing), Some(&[][..]));
        let texts: Vec<String> = (0..1_000_000).map(|number| format!("w{number}")).collect();
        let mut others = texts.iter().map(|text| word(&words, text));
        let other = others.find(|other| other.place == hello.place).unwrap();
        words.put(other, &[9]);
        assert_eq!((words.get(hello), words.get(other)), (None, Some(&[9][..])));
    }

    #[test]
    fn looks_as_far_ahead_as_there_is_room() {
        let words = Words::default();
        let mut ahead = [Word::default(); 2];
        let mut texts = "a b c".split(' ');
        assert_eq!(words.look_ahead(&mut texts, &mut ahead), 2);
        assert_eq!(ahead.map(|word| word.text), ["a", "b"]);
        assert_eq!(words.look_ahead(&mut texts, &mut ahead), 1);
        assert_eq!(ahead[0].text, "c");
        assert_eq!(words.look_ahead(&mut texts, &mut ahead), 0);
    }

    #[test]
    fn what_doesnt_fit_is_not_kept() {
        let mut words = Words::default();
        let texts = ["x".repeat(BYTES_MAX), "x".repeat(BYTES_MAX + 1), "many".into()];
        let [longest, longer, many] = texts.each_ref().map(|text| word(&words, text));
        words.put(longest, &[1; IDS_MAX]);
        assert_eq!(words.get(longest), Some(&[1; IDS_MAX][..]));
        words.put(longer, &[1]);
        words.put(many, &[1; IDS_MAX + 1]);
        assert_eq!((words.get(longer), words.get(many)), (None, None));
    }

    #[test]
    fn a_place_is_a_line_of_the_cache() {
        assert_eq!(size_of::<Place>(), 64);
    }

    #[test]
    fn only_berts_way_splits_at_spaces() {
        let json = from_vocabulary("[UNK]\n[CLS]\n[SEP]\n", &TokenizerConfig::default()).unwrap();
        assert!(splits_at_spaces(&json));
        let value: Value = serde_json::from_str(&json).unwrap();
        for (pointer, other) in [
            ("/normalizer/type", "Lowercase"),
            ("/pre_tokenizer/type", "Metaspace"),
            ("/model/type", "Unigram"),
            ("/added_tokens/0/content", "New York"),
            ("/added_tokens/0/content", "New\u{a0}York"),
            ("/added_tokens/0/content", "\n"),
        ] {
            let mut changed = value.clone();
            *changed.pointer_mut(pointer).unwrap() = other.into();
            assert!(!splits_at_spaces(&changed.to_string()), "{pointer}");
        }
        let mut changed = value.clone();
        changed["added_tokens"][0]["normalized"] = true.into();
        assert!(splits_at_spaces(&changed.to_string()));
        changed["added_tokens"][0]["rstrip"] = true.into();
        assert!(!splits_at_spaces(&changed.to_string()), "it takes the spaces of another");
        assert!(!splits_at_spaces("{"));
    }
}

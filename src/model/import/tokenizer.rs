//! The tokenizer of a checkpoint: in which of its files it is, and whether a package can have it.
//!
//! Hugging Face builds BERT's tokenizer from `tokenizer.json` and then changes its normaliser to
//! what `tokenizer_config.json` says. Where the two differ nobody can tell which one the weights
//! were trained with, so that is refused. So is what would give other ids than Hugging Face's, or
//! make the worker fail on the first caption that has a token.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::ImportError;
use super::config::CONFIG as NETWORK;
use super::files::{find, read_to_string};
use crate::model::network::Network;
use crate::model::tokenizer_json::{self, SPECIAL, TokenizerConfig};
use crate::tokenize::Tokenizer;

/// The file with the options.
const CONFIG: &str = "tokenizer_config.json";

/// The file with tokens that have been added, and their ids.
const ADDED: &str = "added_tokens.json";

/// The file with the special tokens alone, which older tokenizers have beside [`CONFIG`].
const MAP: &str = "special_tokens_map.json";

/// Keys of [`CONFIG`] and [`MAP`] under which there are several tokens.
const LISTS: [&str; 3] =
    ["additional_special_tokens", "extra_special_tokens", "added_tokens_decoder"];

/// Keys of both with one token, and the one that BERT has there.
const OWN: [(&str, &str); 5] = [
    ("pad_token", "[PAD]"),
    ("unk_token", "[UNK]"),
    ("cls_token", "[CLS]"),
    ("sep_token", "[SEP]"),
    ("mask_token", "[MASK]"),
];

/// Classes that take `vocab.txt` in BERT's way, each also with `Fast` behind it.
/// BertJapaneseTokenizer, for one, does otherwise.
const BERTS: [&str; 3] = ["BertTokenizer", "DistilBertTokenizer", "ElectraTokenizer"];

/// Classes of no model's own, which are what `tokenizer.json` says and nothing else.
const GENERIC: [&str; 2] = ["PreTrainedTokenizerFast", "TokenizersBackend"];

/// Returns the tokenizer's JSON and the files that it was read from.
pub fn read_tokenizer(
    folder: &Path,
    network: &Network,
) -> Result<(String, Vec<PathBuf>), ImportError> {
    let path = find(folder, &["tokenizer.json", "vocab.txt"])?;
    let text = read_to_string(&path)?;
    let config_path = folder.join(CONFIG);
    let (options, config) = match read_if_there(&config_path)? {
        Some(object) => {
            let config = serde_json::from_value(Value::Object(object.clone()));
            let config = config.map_err(|e| wrong(&config_path, e.to_string()))?;
            (Some(object), config)
        }
        None => (None, TokenizerConfig::default()),
    };
    let mut files = vec![path.clone()];
    let is_published = path.ends_with("tokenizer.json");
    let class = class(folder, options.as_ref())?;
    if tokenizer_json::truncates_left(options.as_ref().and_then(|o| o.get("truncation_side"))) {
        let reason = "truncation_side is left: long texts would be cut at their beginning, and the \
                      worker cuts them at their end";
        return Err(wrong(&config_path, reason.into()));
    }
    let json = if is_published {
        text
    } else {
        if let Some((named_in, class)) = &class
            && !BERTS.contains(&class.trim_end_matches("Fast"))
        {
            let reason = format!("a {class} can't be imported from vocab.txt; a BertTokenizer can");
            return Err(wrong(named_in, reason));
        }
        refuse_added_tokens(folder, options.as_ref(), None)?;
        if options.is_some() {
            files.push(config_path.clone());
        }
        tokenizer_json::from_vocabulary(&text, &config)
            .map_err(|source| ImportError::Vocabulary { path: path.clone(), source })?
    };
    let parsed: Value = serde_json::from_str(&json).map_err(|e| wrong(&path, e.to_string()))?;
    let is_generic = class.is_some_and(|(_, class)| GENERIC.contains(&class.as_str()));
    if is_published {
        refuse_added_tokens(folder, options.as_ref(), Some(&parsed))?;
    }
    if is_published && !is_generic {
        // Without the file Hugging Face goes by the defaults of its options.
        let missing = if options.is_none() { "it isn't there: " } else { "" };
        tokenizer_json::agrees(&parsed, options.as_ref().unwrap_or(&Map::new()), &config)
            .map_err(|reason| wrong(&config_path, format!("{missing}{reason}")))?;
    }
    // Before it is built: ids and lengths are what it would take memory for.
    tokenizer_json::fits(&parsed, network.vocabulary).map_err(|reason| wrong(&path, reason))?;
    // The worker will load it: find out here whether it can.
    let tokenizer = Tokenizer::from_json(&json, network.positions)
        .map_err(|source| ImportError::Tokenizer { path: path.clone(), source })?;
    if let Some(id) = tokenizer.frame().into_iter().find(|id| *id as usize >= network.vocabulary) {
        let reason = format!(
            "the template puts the id {id} around a text, and the network knows {}",
            network.vocabulary
        );
        return Err(wrong(&path, reason));
    }
    Ok((json, files))
}

fn wrong(path: &Path, reason: String) -> ImportError {
    ImportError::Config { path: path.into(), reason }
}

fn read_object(path: &Path) -> Result<Map<String, Value>, ImportError> {
    serde_json::from_str(&read_to_string(path)?).map_err(|e| wrong(path, e.to_string()))
}

/// Returns the class that Hugging Face makes the tokenizer of, and the file that names it.
fn class(
    folder: &Path,
    options: Option<&Map<String, Value>>,
) -> Result<Option<(PathBuf, String)>, ImportError> {
    let network = read_object(&folder.join(NETWORK))?;
    let named = [(CONFIG, options), (NETWORK, Some(&network))];
    Ok(named.into_iter().find_map(|(name, options)| {
        let class = options?.get("tokenizer_class")?.as_str()?;
        Some((folder.join(name), class.to_owned()))
    }))
}

/// Refuses tokens that Hugging Face would add to those of the `tokenizer.json`, or, beside a
/// `vocab.txt`, to BERT's own: it looks for them in the text as they stand.
fn refuse_added_tokens(
    folder: &Path,
    options: Option<&Map<String, Value>>,
    tokenizer: Option<&Value>,
) -> Result<(), ImportError> {
    let refused = |name: &str, token: &str| {
        let reason = match tokenizer {
            None => format!(
                "the token {token:?} can't be imported beside vocab.txt; save the tokenizer as \
                 tokenizer.json"
            ),
            Some(_) => format!(
                "the token {token:?} isn't among the added tokens of tokenizer.json; save the \
                 tokenizer again, with all its files"
            ),
        };
        wrong(&folder.join(name), reason)
    };
    let is_known = |token: &str| match tokenizer {
        None => SPECIAL.contains(&token),
        Some(tokenizer) => tokenizer_json::added(tokenizer).any(|added| added == token),
    };
    let is_foreign = |key: &str, token: &Value| {
        // With flags of its own a token is an object.
        let text = token.get("content").unwrap_or(token).as_str()?;
        let must_stand_alone = token.get("single_word").and_then(Value::as_bool) == Some(true);
        let own = OWN.iter().find(|(name, _)| *name == key).map(|(_, token)| *token);
        let is_own =
            tokenizer.is_some() || (own.is_none_or(|own| own == text) && !must_stand_alone);
        (!is_own || !is_known(text)).then(|| text.to_owned())
    };
    let added = read_if_there(&folder.join(ADDED))?.unwrap_or_default();
    if let Some(token) = added.keys().find(|token| !is_known(token)) {
        return Err(refused(ADDED, token));
    }
    let map = read_if_there(&folder.join(MAP))?;
    for (name, options) in [(CONFIG, options), (MAP, map.as_ref())] {
        let mut named = options.into_iter().flat_map(named_tokens);
        if let Some(token) = named.find_map(|(key, token)| is_foreign(key, token)) {
            return Err(refused(name, &token));
        }
    }
    Ok(())
}

fn read_if_there(path: &Path) -> Result<Option<Map<String, Value>>, ImportError> {
    path.exists().then(|| read_object(path)).transpose()
}

/// Returns the tokens that these options name, with the keys under which they do.
fn named_tokens(options: &Map<String, Value>) -> impl Iterator<Item = (&str, &Value)> {
    options.iter().flat_map(|(key, value)| {
        let tokens: Vec<&Value> = match value {
            Value::Array(tokens) if LISTS.contains(&key.as_str()) => tokens.iter().collect(),
            Value::Object(tokens) if LISTS.contains(&key.as_str()) => tokens.values().collect(),
            // As `unk_token`, and other tokenizers' `bos_token`.
            token if key.ends_with("_token") => vec![token],
            _ => Vec::new(),
        };
        tokens.into_iter().map(move |token| (key.as_str(), token))
    })
}

//! The tokenizer of a checkpoint: in which of its files it is, and whether a package can have it.
//!
//! Hugging Face builds BERT's tokenizer from `tokenizer.json` and then changes its normaliser to
//! what `tokenizer_config.json` says. Where the two differ nobody can tell which one the weights
//! were trained with, so that is refused. So is what would give other ids than Hugging Face's, or
//! make the worker fail on the first caption that has a token.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::ImportError;
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
    let json = if is_published {
        text
    } else {
        refuse_added_tokens(folder, options.as_ref())?;
        if options.is_some() {
            files.push(config_path.clone());
        }
        tokenizer_json::from_vocabulary(&text, &config)
            .map_err(|source| ImportError::Vocabulary { path: path.clone(), source })?
    };
    let parsed: Value = serde_json::from_str(&json).map_err(|e| wrong(&path, e.to_string()))?;
    if is_published {
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

/// A `vocab.txt` has no tokens that are looked for in the text as they stand, but for BERT's own.
fn refuse_added_tokens(
    folder: &Path,
    options: Option<&Map<String, Value>>,
) -> Result<(), ImportError> {
    let refused = |name: &str, token: &str| {
        let reason = format!(
            "the token {token:?} can't be imported beside vocab.txt; save the tokenizer as tokenizer.json"
        );
        wrong(&folder.join(name), reason)
    };
    let added = read_if_there(&folder.join(ADDED))?.unwrap_or_default();
    if let Some(token) = added.keys().find(|token| !SPECIAL.contains(&token.as_str())) {
        return Err(refused(ADDED, token));
    }
    let map = read_if_there(&folder.join(MAP))?;
    for (name, options) in [(CONFIG, options), (MAP, map.as_ref())] {
        if let Some(token) = options.and_then(foreign_token) {
            return Err(refused(name, token));
        }
    }
    Ok(())
}

fn read_if_there(path: &Path) -> Result<Option<Map<String, Value>>, ImportError> {
    path.exists().then(|| read_object(path)).transpose()
}

/// Returns a token that these options name and that isn't one of BERT's own, or stands in another's
/// place.
fn foreign_token(options: &Map<String, Value>) -> Option<&str> {
    options.iter().find_map(|(key, value)| {
        let tokens: Vec<&Value> = match value {
            Value::Array(tokens) if LISTS.contains(&key.as_str()) => tokens.iter().collect(),
            Value::Object(tokens) if LISTS.contains(&key.as_str()) => tokens.values().collect(),
            // As `unk_token`, and other tokenizers' `bos_token`.
            token if key.ends_with("_token") => vec![token],
            _ => Vec::new(),
        };
        let own = OWN.iter().find(|(name, _)| name == key).map(|(_, token)| *token);
        // With flags of its own a token is an object.
        let mut texts =
            tokens.into_iter().filter_map(|token| token.get("content").unwrap_or(token).as_str());
        texts.find(|token| match own {
            Some(own) => *token != own,
            None => !SPECIAL.contains(token),
        })
    })
}

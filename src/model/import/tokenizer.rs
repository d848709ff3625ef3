//! The tokenizer of a checkpoint: in which of its files it is, and whether a package can have it.
//!
//! Hugging Face builds BERT's tokenizer from `tokenizer.json` and then changes its normaliser to what
//! `tokenizer_config.json` says. Where the two differ nobody can tell which one the weights were
//! trained with, so that is refused. So is what would give other ids than Hugging Face's, or make the
//! worker fail on the first caption that has a token.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::ImportError;
use super::files::{find, read_to_string};
use crate::model::network::Network;
use crate::model::tokenizer_json::{self, SPECIAL, TokenizerConfig};
use crate::tokenize::Tokenizer;

/// The file with the options.
const CONFIG: &str = "tokenizer_config.json";

/// Returns the tokenizer's JSON and the files that it was read from.
pub fn read_tokenizer(
    folder: &Path,
    network: &Network,
) -> Result<(String, Vec<PathBuf>), ImportError> {
    let path = find(folder, &["tokenizer.json", "vocab.txt"])?;
    let text = read_to_string(&path)?;
    let config_path = folder.join(CONFIG);
    let (options, config) = match config_path.exists() {
        true => {
            let object = read_object(&config_path)?;
            let config = serde_json::from_value(Value::Object(object.clone()));
            let config = config.map_err(|e| wrong(&config_path, e.to_string()))?;
            (Some(object), config)
        }
        false => (None, TokenizerConfig::default()),
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
    if is_published && let Some(options) = &options {
        tokenizer_json::agrees(&parsed, options, &config)
            .map_err(|reason| wrong(&config_path, reason))?;
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
    let advice = "can't be imported beside vocab.txt; save the tokenizer as tokenizer.json";
    let is_ours = |token: &str| SPECIAL.contains(&token);
    let path = folder.join("added_tokens.json");
    if path.exists()
        && let Some(token) = read_object(&path)?.keys().find(|token| !is_ours(token))
    {
        return Err(wrong(&path, format!("the added token {token:?} {advice}")));
    }
    let of = |key: &str| options.and_then(|options| options.get(key));
    let content = |token: &Value| -> Option<String> {
        let text = token.get("content").unwrap_or(token).as_str()?;
        (!is_ours(text)).then(|| text.to_owned())
    };
    let special = of("additional_special_tokens").and_then(Value::as_array);
    let decoded = of("added_tokens_decoder").and_then(Value::as_object);
    let tokens = special.into_iter().flatten().chain(decoded.into_iter().flat_map(|d| d.values()));
    match tokens.filter_map(content).next() {
        Some(token) => {
            Err(wrong(&folder.join(CONFIG), format!("the added token {token:?} {advice}")))
        }
        None => Ok(()),
    }
}

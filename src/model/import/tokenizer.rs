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
    let option = |name: &str| options.as_ref().and_then(|options| options.get(name));
    if tokenizer_json::truncates_left(option("truncation_side")) {
        let reason = "truncation_side is left: long texts would be cut at their beginning, and the \
                      worker cuts them at their end";
        return Err(wrong(&config_path, reason.into()));
    }
    if option("split_special_tokens") == Some(&Value::Bool(true)) {
        let reason = "split_special_tokens is true: a special token in a text would be cut as words \
                      are, and the worker takes it as it stands";
        return Err(wrong(&config_path, reason.into()));
    }
    let map = read_if_there(&folder.join(MAP))?;
    let named = Named { folder, files: [(CONFIG, options.as_ref()), (MAP, map.as_ref())] };
    let json = if is_published {
        text
    } else {
        if let Some((named_in, class)) = &class
            && !is_berts(class)
        {
            let reason = format!("a {class} can't be imported from vocab.txt; a BertTokenizer can");
            return Err(wrong(named_in, reason));
        }
        named.refuse_added_tokens(None)?;
        if options.is_some() {
            files.push(config_path.clone());
        }
        tokenizer_json::from_vocabulary(&text, &config)
            .map_err(|source| ImportError::Vocabulary { path: path.clone(), source })?
    };
    let parsed: Value = serde_json::from_str(&json).map_err(|e| wrong(&path, e.to_string()))?;
    let is_generic = class.as_ref().is_some_and(|(_, class)| GENERIC.contains(&class.as_str()));
    let is_berts = class.is_none_or(|(_, class)| is_berts(&class));
    if is_published {
        named.refuse_added_tokens(Some(&parsed))?;
    }
    if is_published && !is_generic {
        // Without the file Hugging Face goes by the defaults of its options.
        let missing = if options.is_none() { "it isn't there: " } else { "" };
        tokenizer_json::agrees(&parsed, options.as_ref().unwrap_or(&Map::new()), &config)
            .map_err(|reason| wrong(&config_path, format!("{missing}{reason}")))?;
    }
    if is_published && is_berts {
        tokenizer_json::is_berts(&parsed).map_err(|reason| wrong(&path, reason))?;
    }
    // Before it is built: ids and lengths are what it would take memory for.
    tokenizer_json::fits(&parsed, network.vocabulary).map_err(|reason| wrong(&path, reason))?;
    if is_berts && tokenizer_json::ids(&parsed).is_some_and(|ids| ids < network.vocabulary) {
        named.refuse_missing(&path, &parsed)?;
    }
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
    if is_published && is_berts {
        named.refuse_other_roles(&path, &parsed, tokenizer.frame())?;
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

fn read_if_there(path: &Path) -> Result<Option<Map<String, Value>>, ImportError> {
    path.exists().then(|| read_object(path)).transpose()
}

/// Returns whether this class takes its files in BERT's way.
fn is_berts(class: &str) -> bool {
    BERTS.contains(&class.trim_end_matches("Fast"))
}

/// The files that name tokens.
struct Named<'a> {
    folder: &'a Path,
    files: [(&'static str, Option<&'a Map<String, Value>>); 2],
}

impl Named<'_> {
    /// Refuses tokens that Hugging Face would add to those of the `tokenizer.json`, or, beside a
    /// `vocab.txt`, to BERT's own: it looks for them in the text as they stand.
    fn refuse_added_tokens(&self, tokenizer: Option<&Value>) -> Result<(), ImportError> {
        let refused = |name: &str, token: &str| {
            let reason = match tokenizer {
                None => format!(
                    "the token {token:?} can't be imported beside vocab.txt; save the tokenizer as \
                     tokenizer.json"
                ),
                Some(_) => format!(
                    "the token {token:?} isn't among the added tokens of tokenizer.json, or with \
                     other flags; save the tokenizer again, with all its files"
                ),
            };
            wrong(&self.folder.join(name), reason)
        };
        let flag_of = |token: &Value, flag: &str| token.get(flag).and_then(Value::as_bool);
        let is_known = |token: &str| match tokenizer {
            None => SPECIAL.contains(&token),
            Some(tokenizer) => tokenizer_json::added(tokenizer).any(|added| added == token),
        };
        // BERT's own have neither of the two.
        let has = |token: &str, flag: &str| {
            let added =
                tokenizer.and_then(|tokenizer| tokenizer_json::find_added(tokenizer, token));
            added.and_then(|added| flag_of(added, flag)).unwrap_or(false)
        };
        let is_foreign = |key: &str, token: &Value| {
            // With flags of its own a token is an object.
            let text = text_of(token)?;
            let is_otherwise = ["single_word", "normalized"]
                .iter()
                .any(|flag| flag_of(token, flag).is_some_and(|set| set != has(text, flag)));
            let own = OWN.iter().find(|(name, _)| *name == key).map(|(_, token)| *token);
            let is_own = tokenizer.is_some() || own.is_none_or(|own| own == text);
            (!is_own || is_otherwise || !is_known(text)).then(|| text.to_owned())
        };
        let added = read_if_there(&self.folder.join(ADDED))?.unwrap_or_default();
        if let Some(token) = added.keys().find(|token| !is_known(token)) {
            return Err(refused(ADDED, token));
        }
        for (name, options) in self.files {
            let mut named = options.into_iter().flat_map(named_tokens);
            if let Some(token) = named.find_map(|(key, token)| is_foreign(key, token)) {
                return Err(refused(name, &token));
            }
        }
        Ok(())
    }

    /// Refuses a vocabulary without one of BERT's own tokens, for a network with more embeddings than
    /// it has ids: Hugging Face would give the token the next id, and look for it.
    fn refuse_missing(&self, path: &Path, tokenizer: &Value) -> Result<(), ImportError> {
        let is_own = |key: &str, own: &str| {
            let mut named = self.files.iter().filter_map(|(_, options)| (*options)?.get(key));
            named.all(|token| text_of(token) == Some(own))
        };
        let vocab = &tokenizer["model"]["vocab"];
        match OWN.iter().find(|(key, own)| vocab.get(own).is_none() && is_own(key, own)) {
            None => Ok(()),
            Some((_, own)) => {
                let reason = format!("the token {own:?} isn't in the vocabulary; add it");
                Err(wrong(path, reason))
            }
        }
    }

    /// Refuses a `tokenizer.json` that gives BERT's own tokens, or those that the files name in
    /// their places, other roles than these, or looks for others in a text: some versions of
    /// Hugging Face's library go by these files alone.
    fn refuse_other_roles(
        &self,
        path: &Path,
        tokenizer: &Value,
        frame: [u32; 2],
    ) -> Result<(), ImportError> {
        let model = &tokenizer["model"];
        let id_of = |token: &str| model["vocab"].get(token).and_then(Value::as_u64);
        for (key, own) in OWN {
            let named = self.files.iter().filter_map(|(_, options)| (*options)?.get(key));
            let mut named: Vec<Option<&str>> = named.map(text_of).collect();
            if named.is_empty() {
                named.push(Some(own));
            }
            for token in named.into_iter().flatten() {
                let is_in_place = match key {
                    "unk_token" => model["unk_token"].as_str().unwrap_or(own) == token,
                    "cls_token" => id_of(token) == Some(frame[0].into()),
                    "sep_token" => id_of(token) == Some(frame[1].into()),
                    _ => true,
                };
                let is_looked_for = tokenizer_json::find_added(tokenizer, token).is_some();
                if !is_in_place || (id_of(token).is_some() && !is_looked_for) {
                    let reason = format!(
                        "the {key} is {token:?}, and it has another in its place or doesn't look \
                         for it; save the tokenizer again, with all its files"
                    );
                    return Err(wrong(path, reason));
                }
            }
        }
        let [(_, options), _] = self.files;
        let listed = options.and_then(|options| options.get("added_tokens_decoder")?.as_object());
        let is_listed = |token: &str| {
            let mut tokens = listed.into_iter().flat_map(Map::values);
            listed.is_none() || tokens.any(|listed| text_of(listed) == Some(token))
        };
        if let Some(token) = tokenizer_json::added(tokenizer).find(|token| !is_listed(token)) {
            let reason = format!(
                "the added token {token:?} isn't in the added_tokens_decoder of {CONFIG}; save the \
                 tokenizer again, with all its files"
            );
            return Err(wrong(path, reason));
        }
        Ok(())
    }
}

/// Returns the text of a token, which is an object where it has flags of its own.
fn text_of(token: &Value) -> Option<&str> {
    token.get("content").unwrap_or(token).as_str()
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

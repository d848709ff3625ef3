//! `capvec model import`: a Hugging Face checkpoint and its head become a model package.
//!
//! Weights stream from the checkpoint into the package tensor by tensor; nothing is held whole but
//! the head and the position embeddings.

mod config;
mod files;
mod tokenizer;
mod weights;

use std::io;
use std::path::{Path, PathBuf};

use thiserror::Error;

// By its whole path: a crate has the name too.
use self::config::{CONFIG, check_sizes, read_config};
use super::checkpoint::{Checkpoint, ReadError, read_head};
use super::manifest::{Manifest, Precision};
use super::network::Network;
use super::package::{Draft, Existing, PackageError, write};
use super::tokenizer_json::VocabularyError;
use crate::tokenize::{TOKENS_MIN, TokenizerError};
use files::{digest, find, folder_name};
use tokenizer::read_tokenizer;
use weights::{CopyFault, check_weights, fill};

/// The longest caption where nobody says otherwise, in tokens.
pub const MAX_TOKENS_DEFAULT: usize = 128;

/// The files that may hold the weights, the safer format first.
const WEIGHT_FILES: [&str; 2] = ["model.safetensors", "pytorch_model.bin"];

/// What can be wrong with a checkpoint.
#[derive(Debug, Error)]
pub enum ImportError {
    /// A file could not be read.
    #[error("{path}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The folder lacks a file.
    #[error("{folder} has {}; is it a Hugging Face checkpoint?", none_of(.wanted))]
    Missing {
        /// The folder.
        folder: PathBuf,
        /// The names looked for.
        wanted: Vec<&'static str>,
    },
    /// `config.json` says something that can't be imported.
    #[error("{path}: {reason}")]
    Config {
        /// The file.
        path: PathBuf,
        /// What it is.
        reason: String,
    },
    /// The vocabulary is damaged.
    #[error("{path}")]
    Vocabulary {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: VocabularyError,
    },
    /// The tokenizer can't be used.
    #[error("{path}")]
    Tokenizer {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: TokenizerError,
    },
    /// A weights file can't be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The weights are not those of the network that `config.json` describes.
    #[error("{path}: {reason}")]
    Weights {
        /// The weights file.
        path: PathBuf,
        /// What is missing or of another shape.
        reason: String,
    },
    /// The package can't be written.
    #[error(transparent)]
    Package(#[from] PackageError),
}

fn none_of(names: &[&str]) -> String {
    match names {
        [name] => format!("no {name}"),
        names => format!("neither {}", names.join(" nor ")),
    }
}

/// What to import, and where to.
pub struct Import<'a> {
    /// The checkpoint's folder.
    pub checkpoint: &'a Path,
    /// The file with the head.
    pub head: &'a Path,
    /// The package's folder.
    pub out: &'a Path,
    /// Whether a package there is replaced.
    pub existing: Existing,
    /// A name for people; by default that of the checkpoint's folder.
    pub name: Option<String>,
    /// Longest caption in tokens, `[CLS]` and `[SEP]` included; by default 128, or the network's
    /// positions where it has fewer.
    pub max_tokens: Option<usize>,
    /// The number format of the layers' matrices.
    pub precision: Precision,
}

/// How far an import has come.
#[derive(Clone, Copy, Debug)]
pub struct ImportProgress<'a> {
    /// What is being done.
    pub doing: &'a str,
    /// Weights written so far.
    pub done_bytes: u64,
    /// Weights in all.
    pub total_bytes: u64,
}

/// Reads the checkpoint and writes the package.
///
/// # Errors
///
/// When a file is missing, damaged or hostile, when the family isn't known, when the weights are
/// not those of the configured network, or when the package can't be written. Nothing is left
/// behind.
pub fn import(
    request: &Import<'_>,
    progress: &mut dyn FnMut(ImportProgress<'_>),
) -> Result<Manifest, ImportError> {
    let config_path = find(request.checkpoint, &[CONFIG])?;
    let mut network = read_config(&config_path)?;
    let weights_path = find_weights(request.checkpoint)?;
    progress(ImportProgress { doing: "reading the index", done_bytes: 0, total_bytes: 0 });
    let checkpoint = Checkpoint::open(&weights_path)?;
    let head = read_head(request.head)?;
    network.dim = head.dim;
    check_sizes(&network, &config_path)?;
    if head.hidden != network.hidden {
        return Err(ImportError::Weights {
            path: request.head.into(),
            reason: format!(
                "the head takes {} numbers where the encoder gives {}",
                head.hidden, network.hidden
            ),
        });
    }
    let prefix = check_weights(&checkpoint, &weights_path, &network)?;
    let max_tokens = max_tokens(request, &network)?;
    let (tokenizer_json, tokenizer_files) = read_tokenizer(request.checkpoint, &network)?;

    progress(ImportProgress { doing: "digesting the sources", done_bytes: 0, total_bytes: 0 });
    let mut sources = vec![digest(&config_path)?, digest(&weights_path)?];
    for file in tokenizer_files {
        sources.push(digest(&file)?);
    }
    sources.push(digest(request.head)?);

    let name = match &request.name {
        Some(name) => name.clone(),
        None => folder_name(request.checkpoint),
    };
    let draft = Draft {
        name,
        network: network.clone(),
        max_tokens,
        precision: request.precision,
        tokenizer_json,
        sources,
    };
    let total_bytes = 4 * network.parameters() as u64;
    let mut done_bytes = 0;
    write(request.out, request.existing, draft, |weight, sink| {
        progress(ImportProgress { doing: &weight.name, done_bytes, total_bytes });
        fill(weight, &checkpoint, prefix, &head, sink).map_err(|fault| match fault {
            CopyFault::Read(e) => ImportError::Read(e),
            CopyFault::Write(source) => ImportError::Io { path: request.out.into(), source },
        })?;
        done_bytes += 4 * weight.elements() as u64;
        Ok(())
    })
}

fn find_weights(folder: &Path) -> Result<PathBuf, ImportError> {
    let found = find(folder, &WEIGHT_FILES);
    let indexes = WEIGHT_FILES.map(|name| folder.join(format!("{name}.index.json")));
    match (found, indexes.into_iter().find(|index| index.exists())) {
        (Err(ImportError::Missing { .. }), Some(path)) => Err(ImportError::Weights {
            path,
            reason: "the weights are in several files; save the checkpoint again in one, with \
                     save_pretrained(NEW, max_shard_size=\"100GB\")"
                .into(),
        }),
        (found, _) => found,
    }
}

fn max_tokens(request: &Import<'_>, network: &Network) -> Result<usize, ImportError> {
    let most = network.positions;
    let asked = request.max_tokens.unwrap_or(MAX_TOKENS_DEFAULT.min(most));
    if (TOKENS_MIN..=most).contains(&asked) {
        return Ok(asked);
    }
    Err(ImportError::Config {
        path: request.checkpoint.join(CONFIG),
        reason: format!(
            "--max-tokens {asked} is out of range: at least {TOKENS_MIN}, a token between [CLS] and \
             [SEP], and at most the network's {most} positions"
        ),
    })
}

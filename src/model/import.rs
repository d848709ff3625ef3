//! `capvec model import`: a Hugging Face checkpoint and its head become a model package.
//!
//! Weights stream from the checkpoint into the package tensor by tensor; nothing is held whole but
//! the head and the position embeddings.

mod tokenizer;

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use serde::Deserialize;
use thiserror::Error;

use super::checkpoint::{Checkpoint, Head, Quoted, ReadError, read_head};
use super::manifest::{FileDigest, Manifest, Precision};
use super::network::{Family, LAYERS_MAX, Network, SIZE_MAX, Weight, WeightSource};
use super::package::{Draft, Existing, PackageError, write};
use super::tokenizer_json::VocabularyError;
use crate::tokenize::TokenizerError;
use tokenizer::read_tokenizer;

/// The longest caption where nobody says otherwise, in tokens.
pub const MAX_TOKENS_DEFAULT: usize = 128;

/// No `config.json` and no vocabulary is larger: those of the largest tokenizers have some tens of MB.
const TEXT_BYTES_MAX: u64 = 256 << 20;

/// The files that may hold the weights, the safer format first.
const WEIGHT_FILES: [&str; 2] = ["model.safetensors", "pytorch_model.bin"];

/// Prefixes that a checkpoint of a larger model puts before the encoder's names.
const PREFIXES: [&str; 4] = ["", "bert.", "distilbert.", "transformer."];

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
    #[error("{folder} has neither {}; is it a Hugging Face checkpoint?", .wanted.join(" nor "))]
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
pub struct Progress<'a> {
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
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<Manifest, ImportError> {
    let mut network = read_config(&request.checkpoint.join("config.json"))?;
    let weights_path = find(request.checkpoint, &WEIGHT_FILES)?;
    progress(Progress { doing: "reading the index", done_bytes: 0, total_bytes: 0 });
    let checkpoint = Checkpoint::open(&weights_path)?;
    let head = read_head(request.head)?;
    if head.hidden != network.hidden {
        return Err(ImportError::Weights {
            path: request.head.into(),
            reason: format!(
                "the head takes {} numbers where the encoder gives {}",
                head.hidden, network.hidden
            ),
        });
    }
    network.dim = head.dim;
    let prefix = check_weights(&checkpoint, &weights_path, &network)?;
    let max_tokens = max_tokens(request, &network)?;
    let (tokenizer_json, tokenizer_files) = read_tokenizer(request.checkpoint, &network)?;

    progress(Progress { doing: "digesting the sources", done_bytes: 0, total_bytes: 0 });
    let mut sources =
        vec![digest(&request.checkpoint.join("config.json"))?, digest(&weights_path)?];
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
        progress(Progress { doing: &weight.name, done_bytes, total_bytes });
        fill(weight, &checkpoint, prefix, &head, sink).map_err(|fault| match fault {
            Fault::Read(e) => ImportError::Read(e),
            Fault::Write(source) => ImportError::Io { path: request.out.into(), source },
        })?;
        done_bytes += 4 * weight.elements() as u64;
        Ok(())
    })
}

/// Which side of the copy failed.
enum Fault {
    Read(ReadError),
    Write(io::Error),
}

fn fill(
    weight: &Weight,
    checkpoint: &Checkpoint,
    prefix: &str,
    head: &Head,
    sink: &mut dyn FnMut(&[f32]) -> io::Result<()>,
) -> Result<(), Fault> {
    let full = |name: &str| stored_name(checkpoint, prefix, name);
    match &weight.source {
        WeightSource::Stacked(names) => {
            for name in names {
                checkpoint.stream(&full(name), sink).map_err(Fault::Read)?;
            }
            Ok(())
        }
        WeightSource::Positions { positions, token_types: None } => {
            checkpoint.stream(&full(positions), sink).map_err(Fault::Read)
        }
        WeightSource::Positions { positions, token_types: Some(token_types) } => {
            let types = checkpoint.read(&full(token_types)).map_err(Fault::Read)?;
            let mut numbers = checkpoint.read(&full(positions)).map_err(Fault::Read)?;
            let hidden = weight.shape[1];
            for row in numbers.chunks_exact_mut(hidden) {
                for (number, of_type) in row.iter_mut().zip(&types[..hidden]) {
                    *number += of_type;
                }
            }
            sink(&numbers).map_err(Fault::Write)
        }
        WeightSource::HeadWeight => sink(&head.weight).map_err(Fault::Write),
        WeightSource::HeadBias => sink(&head.bias).map_err(Fault::Write),
    }
}

/// Returns the name under which a checkpoint keeps a tensor. The first BERT checkpoints, converted
/// from TensorFlow, call a layer norm's two vectors gamma and beta.
fn stored_name(checkpoint: &Checkpoint, prefix: &str, name: &str) -> String {
    let full = format!("{prefix}{name}");
    if checkpoint.get(&full).is_none() && full.contains("LayerNorm") {
        let older = full.replace(".weight", ".gamma").replace(".bias", ".beta");
        if checkpoint.get(&older).is_some() {
            return older;
        }
    }
    full
}

/// Checks that every tensor is there with its shape, and returns the prefix of the names.
fn check_weights(
    checkpoint: &Checkpoint,
    path: &Path,
    network: &Network,
) -> Result<&'static str, ImportError> {
    let wrong = |reason: String| ImportError::Weights { path: path.into(), reason };
    let anchor = "embeddings.word_embeddings.weight";
    let prefix = PREFIXES
        .into_iter()
        .find(|prefix| checkpoint.get(&format!("{prefix}{anchor}")).is_some())
        .ok_or_else(|| {
            let some = checkpoint.names().take(3).map(|name| Quoted(name).to_string());
            wrong(format!(
                "no tensor {anchor}; the file has {} tensors, such as {}",
                checkpoint.names().count(),
                some.collect::<Vec<_>>().join(", ")
            ))
        })?;

    let mut faults = Vec::new();
    let mut expect = |name: &str, shape: &[usize]| {
        let name = stored_name(checkpoint, prefix, name);
        match checkpoint.get(&name) {
            None => faults.push(format!("{name} is missing")),
            Some(info) if info.shape != shape => {
                faults.push(format!("{name} has shape {:?} and not {shape:?}", info.shape));
            }
            Some(_) => {}
        }
    };
    for weight in network.weights() {
        match &weight.source {
            WeightSource::Stacked(names) => {
                let mut shape = weight.shape.clone();
                shape[0] /= names.len();
                for name in names {
                    expect(name, &shape);
                }
            }
            WeightSource::Positions { positions, token_types } => {
                expect(positions, &weight.shape);
                if let Some(token_types) = token_types {
                    let stored = stored_name(checkpoint, prefix, token_types);
                    // Any number of types will do: captions are of the first.
                    let rows = checkpoint.get(&stored).and_then(|i| i.shape.first().copied());
                    expect(token_types, &[rows.unwrap_or(2).max(1), network.hidden]);
                }
            }
            WeightSource::HeadWeight | WeightSource::HeadBias => {}
        }
    }
    match faults.len() {
        0 => Ok(prefix),
        1..=5 => Err(wrong(faults.join("; "))),
        n => Err(wrong(format!("{}; and {} more", faults[..5].join("; "), n - 5))),
    }
}

fn max_tokens(request: &Import<'_>, network: &Network) -> Result<usize, ImportError> {
    let most = network.positions;
    let asked = request.max_tokens.unwrap_or(MAX_TOKENS_DEFAULT.min(most));
    if (3..=most).contains(&asked) {
        return Ok(asked);
    }
    Err(ImportError::Config {
        path: request.checkpoint.join("config.json"),
        reason: format!(
            "--max-tokens {asked} is out of range: at least 3, a token between [CLS] and [SEP], and \
             at most the network's {most} positions"
        ),
    })
}

/// The keys of `config.json` that decide the graph, under the names of both families.
#[derive(Deserialize)]
struct HuggingFaceConfig {
    model_type: String,
    vocab_size: usize,
    max_position_embeddings: usize,
    #[serde(alias = "dim")]
    hidden_size: usize,
    #[serde(alias = "n_layers")]
    num_hidden_layers: usize,
    #[serde(alias = "n_heads")]
    num_attention_heads: usize,
    #[serde(alias = "hidden_dim")]
    intermediate_size: usize,
    #[serde(alias = "activation")]
    hidden_act: Option<String>,
    layer_norm_eps: Option<f32>,
    position_embedding_type: Option<String>,
    #[serde(default)]
    is_decoder: bool,
}

fn read_config(path: &Path) -> Result<Network, ImportError> {
    let wrong = |reason: String| ImportError::Config { path: path.into(), reason };
    let text = read_to_string(path)?;
    let raw: serde_json::Value =
        serde_json::from_str(&text).map_err(|e| wrong(format!("not JSON: {e}")))?;
    // The family comes first: another family's file lacks keys, and that isn't what is wrong.
    let family = match raw.get("model_type").and_then(serde_json::Value::as_str) {
        Some("bert") => Family::Bert,
        Some("distilbert") => Family::DistilBert,
        Some(other) => {
            return Err(wrong(format!(
                "the family {other:?} can't be imported; bert and distilbert can"
            )));
        }
        None => return Err(wrong("no model_type; which family is it?".into())),
    };
    let config: HuggingFaceConfig =
        serde_json::from_value(raw).map_err(|e| wrong(e.to_string()))?;
    debug_assert_eq!(config.model_type, family.as_str());

    match config.hidden_act.as_deref() {
        None | Some("gelu") => {}
        Some(other) => {
            return Err(wrong(format!("the activation {other:?} can't be imported; gelu can")));
        }
    }
    match config.position_embedding_type.as_deref() {
        None | Some("absolute") => {}
        Some(other) => {
            return Err(wrong(format!(
                "position embeddings of type {other:?} can't be imported; absolute ones can"
            )));
        }
    }
    if config.is_decoder {
        return Err(wrong(
            "is_decoder is true: each token would see those before it alone, which can't be imported"
                .into(),
        ));
    }
    let sizes = [
        ("vocab_size", config.vocab_size),
        ("max_position_embeddings", config.max_position_embeddings),
        ("hidden_size", config.hidden_size),
        ("num_hidden_layers", config.num_hidden_layers),
        ("num_attention_heads", config.num_attention_heads),
        ("intermediate_size", config.intermediate_size),
    ];
    for (key, size) in sizes {
        if !(1..=SIZE_MAX).contains(&size) {
            return Err(wrong(format!("{key} is {size}, which no encoder has")));
        }
    }
    if config.num_hidden_layers > LAYERS_MAX {
        return Err(wrong(format!("{} layers are too many", config.num_hidden_layers)));
    }
    if !config.hidden_size.is_multiple_of(config.num_attention_heads) {
        return Err(wrong(format!(
            "hidden_size {} is no multiple of num_attention_heads {}",
            config.hidden_size, config.num_attention_heads
        )));
    }
    Ok(Network {
        family,
        vocabulary: config.vocab_size,
        positions: config.max_position_embeddings,
        hidden: config.hidden_size,
        layers: config.num_hidden_layers,
        heads: config.num_attention_heads,
        feed_forward: config.intermediate_size,
        layer_norm_epsilon: config.layer_norm_eps.unwrap_or(1e-12),
        dim: 0,
    })
}

fn find(folder: &Path, names: &[&'static str]) -> Result<PathBuf, ImportError> {
    if !folder.is_dir() {
        let source = io::Error::new(io::ErrorKind::NotFound, "no such folder");
        return Err(ImportError::Io { path: folder.into(), source });
    }
    names
        .iter()
        .map(|name| folder.join(name))
        .find(|path| path.exists())
        .ok_or_else(|| ImportError::Missing { folder: folder.into(), wanted: names.to_vec() })
}

/// Reads a text that a stranger may have made: a link to a device would have no end, and a pipe no
/// beginning.
fn read_to_string(path: &Path) -> Result<String, ImportError> {
    let failed = |source| ImportError::Io { path: path.into(), source };
    let refused = |reason: String| failed(io::Error::new(io::ErrorKind::InvalidInput, reason));
    if !fs::metadata(path).map_err(failed)?.is_file() {
        return Err(refused("it is no regular file".into()));
    }
    let mut text = String::new();
    let mut file = File::open(path).map_err(failed)?.take(TEXT_BYTES_MAX + 1);
    file.read_to_string(&mut text).map_err(failed)?;
    if text.len() as u64 > TEXT_BYTES_MAX {
        return Err(refused(format!("it has more than {TEXT_BYTES_MAX} bytes")));
    }
    Ok(text)
}

/// Digests a source under its own name: a cache of checkpoints has links to files that are named by
/// their contents.
fn digest(path: &Path) -> Result<FileDigest, ImportError> {
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned());
    FileDigest::of_file(path, &name.unwrap_or_else(|| folder_name(path)))
        .map_err(|source| ImportError::Io { path: path.into(), source })
}

/// Returns the last part of a path, also of one that ends in `.` or `..`.
fn folder_name(path: &Path) -> String {
    let whole = fs::canonicalize(path).unwrap_or_else(|_| path.into());
    whole.file_name().map_or_else(|| "model".into(), |name| name.to_string_lossy().into_owned())
}

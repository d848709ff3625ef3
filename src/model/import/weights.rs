//! The checkpoint's weights: whether all of the network's are there, and their way into the
//! package.

use std::io;
use std::path::Path;

use super::ImportError;
use crate::model::checkpoint::{Checkpoint, Head, Quoted, ReadError};
use crate::model::network::{Network, Weight, WeightSource};

/// Prefixes that a checkpoint of a larger model puts before the encoder's names.
const PREFIXES: [&str; 4] = ["", "bert.", "distilbert.", "transformer."];

/// Checks that every tensor is there with its shape, and returns the prefix of the names.
pub fn check_weights(
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

/// Which side of the copy failed.
pub enum CopyFault {
    /// The checkpoint can't be read.
    Read(ReadError),
    /// The package can't be written.
    Write(io::Error),
}

/// Gives the numbers of a weight to `sink`.
pub fn fill(
    weight: &Weight,
    checkpoint: &Checkpoint,
    prefix: &str,
    head: &Head,
    sink: &mut dyn FnMut(&[f32]) -> io::Result<()>,
) -> Result<(), CopyFault> {
    let full = |name: &str| stored_name(checkpoint, prefix, name);
    match &weight.source {
        WeightSource::Stacked(names) => {
            for name in names {
                checkpoint.stream(&full(name), sink).map_err(CopyFault::Read)?;
            }
            Ok(())
        }
        WeightSource::Positions { positions, token_types: None } => {
            checkpoint.stream(&full(positions), sink).map_err(CopyFault::Read)
        }
        WeightSource::Positions { positions, token_types: Some(token_types) } => {
            let types = checkpoint.read(&full(token_types)).map_err(CopyFault::Read)?;
            let mut numbers = checkpoint.read(&full(positions)).map_err(CopyFault::Read)?;
            let hidden = weight.shape[1];
            for row in numbers.chunks_exact_mut(hidden) {
                for (number, of_type) in row.iter_mut().zip(&types[..hidden]) {
                    *number += of_type;
                }
            }
            sink(&numbers).map_err(CopyFault::Write)
        }
        WeightSource::HeadWeight => sink(&head.weight).map_err(CopyFault::Write),
        WeightSource::HeadBias => sink(&head.bias).map_err(CopyFault::Write),
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

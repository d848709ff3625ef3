//! `capvec model`: makes, shows, verifies and compares packages.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use indicatif::{DecimalBytes, HumanCount};

use super::progress::{LongWork, Unit};
use super::{compare, say};
use crate::model::import::{self, Import, import};
use crate::model::manifest::{Manifest, Precision};
use crate::model::package::{Existing, Package};
use crate::model::synth::{Preset, Synthesis, synthesize};
use crate::unfinished;

/// The subcommands.
#[derive(Debug, Subcommand)]
pub enum ModelCommand {
    /// Makes a package of a Hugging Face checkpoint and its head.
    Import(ImportArgs),
    /// Makes a package with random weights, for load and speed work.
    Synth(SynthArgs),
    /// Shows what a package is.
    Inspect(InspectArgs),
    /// Compares a package's files with their SHA-256.
    Verify(VerifyArgs),
    /// Compares what two packages make of the same captions: vectors, neighbours and speed.
    Compare(compare::CompareArgs),
}

/// Where a package goes.
#[derive(Debug, Args)]
struct OutArgs {
    /// The package's folder.
    #[arg(long, value_name = "PACKAGE")]
    out: PathBuf,
    /// Replaces a package that is there.
    #[arg(long)]
    force: bool,
}

impl OutArgs {
    fn existing(&self) -> Existing {
        if self.force { Existing::Replace } else { Existing::Keep }
    }
}

/// Arguments of `capvec model import`.
#[derive(Debug, Args)]
pub struct ImportArgs {
    /// The checkpoint: config.json, model.safetensors or pytorch_model.bin, and tokenizer.json or
    /// vocab.txt.
    #[arg(value_name = "DIR")]
    checkpoint: PathBuf,
    /// The head: the published pickle, or .npz, or .safetensors.
    #[arg(long, value_name = "FILE")]
    head: PathBuf,
    #[command(flatten)]
    out: OutArgs,
    /// A name for people; by default that of the checkpoint's folder.
    #[arg(long, value_parser = readable)]
    name: Option<String>,
    /// Longest caption in tokens, [CLS] and [SEP] included [default: 128].
    #[arg(long, value_name = "N")]
    max_tokens: Option<usize>,
    /// The number format of the layers' matrices.
    #[arg(long, value_enum, default_value_t = Precision::Fp32)]
    precision: Precision,
}

/// Reads a name that is part of the model id, which stands in headers, metrics and lines.
fn readable(name: &str) -> Result<String, String> {
    if name.trim().is_empty() || name.contains(char::is_control) {
        return Err("a name of one line, with something in it, is due".into());
    }
    Ok(name.into())
}

/// Arguments of `capvec model synth`.
#[derive(Debug, Args)]
pub struct SynthArgs {
    /// The network.
    #[arg(long, value_enum)]
    preset: Preset,
    /// The seed of the weights.
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// A vocabulary, so that captions have as many tokens as with the real model.
    #[arg(long, value_name = "FILE")]
    vocab: Option<PathBuf>,
    /// The number format of the layers' matrices.
    #[arg(long, value_enum, default_value_t = Precision::Fp32)]
    precision: Precision,
    #[command(flatten)]
    out: OutArgs,
}

/// Arguments of `capvec model inspect`.
#[derive(Debug, Args)]
pub struct InspectArgs {
    /// The package.
    package: PathBuf,
    /// Prints the manifest as JSON.
    #[arg(long)]
    json: bool,
}

/// Arguments of `capvec model verify`.
#[derive(Debug, Args)]
pub struct VerifyArgs {
    /// The package.
    package: PathBuf,
}

/// Runs the subcommand.
///
/// # Errors
///
/// When the package can't be made or read.
pub fn run(command: ModelCommand) -> anyhow::Result<()> {
    match command {
        ModelCommand::Import(args) => {
            unfinished::remove_on_signals()?;
            let request = Import {
                checkpoint: &args.checkpoint,
                head: &args.head,
                out: &args.out.out,
                existing: args.out.existing(),
                name: args.name,
                max_tokens: args.max_tokens,
                precision: args.precision,
            };
            let manifest = shown("importing", |progress| import(&request, progress))?;
            say(format_args!("{}\n{}", args.out.out.display(), describe(&manifest)))?;
        }
        ModelCommand::Synth(args) => {
            unfinished::remove_on_signals()?;
            let request = Synthesis {
                preset: args.preset,
                seed: args.seed,
                vocab: args.vocab.as_deref(),
                precision: args.precision,
                out: &args.out.out,
                existing: args.out.existing(),
            };
            let manifest = shown("synthesizing", |progress| synthesize(&request, progress))?;
            say(format_args!("{}\n{}", args.out.out.display(), describe(&manifest)))?;
        }
        ModelCommand::Inspect(args) => {
            let manifest = Package::open(&args.package)?.manifest;
            match args.json {
                true => say(serde_json::to_string_pretty(&manifest)?)?,
                false => say(describe(&manifest))?,
            }
        }
        ModelCommand::Verify(args) => {
            let package = Package::open(&args.package)?;
            package.verify(|_| ())?;
            for file in &package.manifest.files {
                say(format_args!("ok  {}  {}", file.sha256, file.name))?;
            }
            say(format_args!("{} is whole", package.manifest.model_id))?;
        }
        ModelCommand::Compare(args) => compare::run(&args)?,
    }
    Ok(())
}

fn shown<T, E>(
    what: &'static str,
    work: impl FnOnce(&mut dyn FnMut(import::ImportProgress<'_>)) -> Result<T, E>,
) -> Result<T, E> {
    let mut progress = LongWork::start(what, Unit::Bytes, None);
    let mut total = 0;
    let result = work(&mut |p| {
        total = p.total_bytes;
        progress.update(p.done_bytes, p.total_bytes, p.doing);
    })?;
    progress.update(total, total, "");
    progress.finish();
    Ok(result)
}

fn describe(manifest: &Manifest) -> String {
    let network = &manifest.network;
    let mut lines = vec![
        format!("model id    {}", manifest.model_id),
        format!(
            "network     {}: {} layers, {} wide, {} heads, feed-forward {}",
            network.family.as_str(),
            network.layers,
            network.hidden,
            network.heads,
            network.feed_forward
        ),
        format!(
            "parameters  {}, {}",
            number_in_words(network.parameters() as u64),
            manifest.precision.as_str()
        ),
        format!("vocabulary  {} tokens", network.vocabulary),
        format!(
            "captions    cut at {} tokens of the network's {}",
            manifest.max_tokens, network.positions
        ),
        format!("vectors     {} numbers, {:?} pooling", network.dim, manifest.pooling)
            .to_lowercase(),
        format!("graph       {}, opset {}", manifest.graph.form, manifest.opset),
    ];
    for (title, files) in [("made from", &manifest.sources), ("files", &manifest.files)] {
        for (number, file) in files.iter().enumerate() {
            let title = if number == 0 { title } else { "" };
            let size = DecimalBytes(file.bytes).to_string();
            lines.push(format!("{title:<11} {}  {size:>9}  {}", &file.sha256[..12], file.name));
        }
    }
    lines.join("\n")
}

/// Returns a number in millions, unless so little is left of it then.
fn number_in_words(number: u64) -> String {
    match number {
        ..1_000_000 => HumanCount(number).to_string(),
        _ => format!("{:.1} million", number as f64 / 1e6),
    }
}

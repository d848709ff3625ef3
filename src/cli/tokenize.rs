//! `capvec tokenize`: the token ids of captions.

use std::io::Write;
use std::path::PathBuf;

use clap::Args;

use super::captions::InputArgs;
use super::output;
use crate::model::package::Package;

/// Arguments of `capvec tokenize`.
#[derive(Debug, Args)]
pub struct TokenizeArgs {
    /// The model package.
    #[arg(long, value_name = "PACKAGE")]
    model: PathBuf,
    #[command(flatten)]
    input: InputArgs,
}

/// Prints the ids of each caption as a JSON array, one a line.
///
/// # Errors
///
/// When the package or the input can't be read.
pub fn run(args: &TokenizeArgs) -> anyhow::Result<()> {
    let package = Package::open(&args.model)?;
    let tokenizer = package.tokenizer()?;
    let mut out = std::io::BufWriter::new(output::stdout());
    for caption in args.input.open()? {
        let ids = tokenizer.tokenize(&caption?)?.ids;
        serde_json::to_writer(&mut out, &ids)?;
        out.write_all(b"\n")?;
    }
    out.flush()?;
    Ok(())
}

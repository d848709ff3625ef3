//! `capvec embed`: captions of a file to vectors, with the worker's tokenizer, batch policy,
//! packing and embedder.
//!
//! A thread reads and tokenizes ahead into a bounded channel; the main thread cuts full batches by
//! the worker's policy, embeds and writes. One embedder takes one batch at a time, so the vectors
//! come in the order of the input by themselves, and the same input gives the same bytes.

mod vectors;

use std::collections::VecDeque;
use std::io::{self, BufWriter, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::bail;
use clap::Args;
use crossbeam_channel::Receiver;

use super::captions::{Captions, InputArgs};
use super::network::NetworkArgs;
use super::output::{self, OutFile};
use super::progress::{LongWork, Unit};
use crate::batch::policy::{Decision, Limits};
use crate::embed::Embedder;
use crate::embed::alone::embed_finite;
use crate::embed::onnx::OnnxEmbedder;
use crate::model::package::Package;
use crate::tokenize::{TokenizedCaption, Tokenizer};
use crate::unfinished;
use vectors::{Format, VectorWriter, npy_header};

/// Captions tokenized ahead of the embedder.
const AHEAD: usize = 4096;

/// Arguments of `capvec embed`.
#[derive(Debug, Args)]
pub struct EmbedArgs {
    /// The model package.
    #[arg(long, value_name = "PACKAGE")]
    model: PathBuf,
    #[command(flatten)]
    input: InputArgs,
    /// Where the vectors go; `-` is standard output, which npy can't be written to. A file is
    /// replaced when all are written; a device, a pipe, or what a link points to, is written into.
    #[arg(long, short, value_name = "FILE")]
    out: PathBuf,
    /// The format of the vectors.
    #[arg(long, value_enum, default_value_t = Format::Jsonl)]
    format: Format,
    #[command(flatten)]
    network: NetworkArgs,
}

const NPY_NEEDS_A_FILE: &str =
    "--format npy needs a file: its first bytes say how many vectors follow";

/// Embeds the captions.
///
/// # Errors
///
/// When the package, the input or the output can't be used, the output is the input, or a line
/// holds no caption.
pub fn run(args: &EmbedArgs) -> anyhow::Result<()> {
    let to_stdout = args.out == Path::new("-");
    if to_stdout && args.format == Format::Npy {
        bail!(NPY_NEEDS_A_FILE);
    }
    if !to_stdout && args.input.are_in(&args.out) {
        bail!("{} has the captions, which the vectors would replace", args.out.display());
    }
    let package = Package::open(&args.model)?;
    let manifest = &package.manifest;
    let tokenizer = package.tokenizer()?;
    let mut embedder = args.network.load(&package)?;
    let captions = args.input.open()?;
    let limits = args.network.limits();

    if to_stdout {
        let out = BufWriter::new(output::stdout());
        embed_all(
            captions,
            &tokenizer,
            &mut embedder,
            limits,
            &mut VectorWriter::new(out, args.format),
        )?;
        return Ok(());
    }
    unfinished::remove_on_signals()?;
    let mut file = OutFile::create(&args.out)?;
    if args.format == Format::Npy && !file.is_seekable() {
        bail!("{}: {NPY_NEEDS_A_FILE}", args.out.display());
    }
    let mut vectors = VectorWriter::new(BufWriter::new(file), args.format);
    if args.format == Format::Npy {
        vectors.out.write_all(&npy_header(0, manifest.network.dim))?;
    }
    let number = embed_all(captions, &tokenizer, &mut embedder, limits, &mut vectors)?;
    let mut file = vectors.out.into_inner().map_err(io::IntoInnerError::into_error)?;
    if args.format == Format::Npy {
        file.seek(SeekFrom::Start(0))?;
        file.write_all(&npy_header(number, manifest.network.dim))?;
    }
    file.finish()
}

/// Embeds and writes all captions; returns their number.
fn embed_all<W: Write>(
    captions: Captions,
    tokenizer: &Tokenizer,
    embedder: &mut OnnxEmbedder,
    limits: Limits,
    vectors: &mut VectorWriter<W>,
) -> anyhow::Result<u64> {
    let (sender, receiver) = crossbeam_channel::bounded(AHEAD);
    let tokenizer = tokenizer.clone();
    let reader = std::thread::spawn(move || -> anyhow::Result<()> {
        for caption in captions {
            let tokens = tokenizer.tokenize(&caption?)?;
            // The other side has failed, and says why.
            if sender.send(tokens).is_err() {
                return Ok(());
            }
        }
        Ok(())
    });
    let mut progress = LongWork::start("embedding", Unit::Stream, None);
    // On an error the reader isn't waited for: the next line may never come.
    let number = embed_batches(&receiver, embedder, limits, vectors, &mut progress)?;
    reader.join().expect("the reader doesn't panic")?;
    vectors.out.flush()?;
    progress.finish();
    Ok(number)
}

fn embed_batches<W: Write>(
    tokenized: &Receiver<TokenizedCaption>,
    embedder: &mut dyn Embedder,
    limits: Limits,
    vectors: &mut VectorWriter<W>,
    progress: &mut LongWork,
) -> anyhow::Result<u64> {
    // A batch is cut when it is full, and never because the reader is slow: batches, and with them
    // the last bits of the vectors, depend on the input alone.
    let limits = Limits { wait_max: Duration::MAX, ..limits };
    let mut waited = Duration::ZERO;
    let mut pending: VecDeque<TokenizedCaption> = VecDeque::new();
    let (mut tokens, mut done) = (0, 0u64);
    loop {
        // To look at all of them for each that comes would be quadratic.
        let is_full = tokens >= limits.tokens_max || pending.len() >= limits.captions_max;
        if !is_full && waited.is_zero() {
            match tokenized.recv() {
                Ok(caption) => {
                    tokens += caption.ids.len();
                    pending.push_back(caption);
                }
                // That was all.
                Err(_) => waited = Duration::MAX,
            }
            continue;
        }
        let lengths = pending.iter().map(|caption| caption.ids.len());
        match limits.decide(lengths, waited, None) {
            Decision::Cut { captions, .. } => {
                let batch: Vec<_> = pending.drain(..captions).collect();
                tokens -= batch.iter().map(|caption| caption.ids.len()).sum::<usize>();
                let ids: Vec<_> = batch.iter().map(|caption| caption.ids.as_slice()).collect();
                let named = |row: usize| format!("caption {}", done + row as u64 + 1);
                let rows = embed_finite(embedder, &ids, named)?;
                vectors.write(&rows, embedder.dim())?;
                done += captions as u64;
                progress.update(done, None, "");
            }
            Decision::Nothing => return Ok(done),
            Decision::Wait(_) => unreachable!("it is full, or that was all"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::batch::packing::TokenBatch;
    use crate::embed::EmbedError;

    /// Notes the captions of each batch; a caption that begins with 9 spoils its batch.
    struct Notes(Vec<usize>);

    impl Embedder for Notes {
        fn dim(&self) -> usize {
            1
        }

        fn embed(&mut self, batch: &TokenBatch) -> Result<Vec<f32>, EmbedError> {
            self.0.push(batch.captions());
            let number = if batch.token_ids.contains(&9) { f32::NAN } else { 0.0 };
            Ok(vec![number; batch.captions()])
        }
    }

    #[test]
    fn batches_are_full_however_slow_the_reader_is() {
        // No caption is ahead of the one that is asked for.
        let (sender, receiver) = crossbeam_channel::bounded(0);
        let reader = std::thread::spawn(move || {
            for _ in 0..5 {
                sender.send(TokenizedCaption { ids: vec![7; 3], truncated: false }).unwrap();
            }
        });
        let limits = Limits { tokens_max: 7, captions_max: 9, wait_max: Duration::ZERO };
        let mut notes = Notes(Vec::new());
        let mut vectors = VectorWriter::new(Vec::new(), Format::F32);
        let mut progress = LongWork::start("embedding", Unit::Stream, None);
        let done = embed_batches(&receiver, &mut notes, limits, &mut vectors, &mut progress);
        reader.join().unwrap();
        assert_eq!(done.unwrap(), 5);
        assert_eq!(notes.0, [2, 2, 1]);
        assert_eq!(vectors.out.len(), 5 * 4);
    }

    #[test]
    fn a_vector_that_is_no_number_is_an_error_that_names_the_caption() {
        let (sender, receiver) = crossbeam_channel::bounded(5);
        for id in [7, 7, 7, 9, 7] {
            sender.send(TokenizedCaption { ids: vec![id; 3], truncated: false }).unwrap();
        }
        drop(sender);
        let limits = Limits { tokens_max: 15, captions_max: 9, wait_max: Duration::ZERO };
        let mut vectors = VectorWriter::new(Vec::new(), Format::Jsonl);
        let mut progress = LongWork::start("embedding", Unit::Stream, None);
        let mut notes = Notes(Vec::new());
        let done = embed_batches(&receiver, &mut notes, limits, &mut vectors, &mut progress);
        assert!(done.unwrap_err().to_string().contains("caption 4 "));
        assert_eq!(notes.0, [5, 1, 1, 1, 1]);
        assert_eq!(vectors.out.len(), 0);
    }
}

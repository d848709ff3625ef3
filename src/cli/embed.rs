//! `capvec embed`: captions of a file to vectors, with the worker's tokenizer, batch policy, packing
//! and embedder.
//!
//! A thread reads and tokenizes ahead into a bounded channel; the main thread cuts full batches by the
//! worker's policy, embeds and writes. One embedder takes one batch at a time, so the vectors come in
//! the order of the input by themselves, and the same input gives the same bytes.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, BufRead, BufReader, BufWriter, Seek, SeekFrom, Write};
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use clap::{Args, ValueEnum};
use crossbeam_channel::Receiver;

use super::output::OutFile;
use super::progress::{Progress, Unit};
use crate::batch::packing::TokenBatch;
use crate::batch::policy::{Decision, Limits};
use crate::config;
use crate::embed::calibration::TOKENS_UNMEASURED;
use crate::embed::device::DeviceChoice;
use crate::embed::load::{load_one, threads_of_one};
use crate::embed::onnx::{LoadError, OnnxEmbedder};
use crate::embed::{Embedder, is_finite};
use crate::model::package::{Package, TOKENIZER};
use crate::tokenize::{TokenizedCaption, Tokenizer};
use crate::wire::pointer::{Found, Pointer};

/// Captions tokenized ahead of the embedder.
const AHEAD: usize = 4096;

/// Where captions come from.
#[derive(Debug, Args)]
pub struct InputArgs {
    /// The captions, one a line; `-` is standard input.
    #[arg(value_name = "FILE", default_value = "-")]
    file: PathBuf,
    /// Lines are JSON with the caption at this JSON Pointer, such as /caption.
    #[arg(long, value_name = "POINTER")]
    pointer: Option<Pointer>,
}

impl InputArgs {
    /// Opens the file.
    ///
    /// # Errors
    ///
    /// When it can't be opened.
    pub fn open(&self) -> anyhow::Result<Captions> {
        Captions::open(&self.file, self.pointer.clone())
    }
}

/// Tokens of a batch where nobody says otherwise.
const TOKENS_DEFAULT: NonZeroUsize =
    NonZeroUsize::new(TOKENS_UNMEASURED).expect("a batch has tokens");

/// How a package is run.
#[derive(Debug, Args)]
pub struct NetworkArgs {
    /// Most tokens of a batch.
    #[arg(long, value_name = "N", default_value_t = TOKENS_DEFAULT)]
    batch_tokens: NonZeroUsize,
    /// Most captions of a batch.
    #[arg(long, value_name = "N", default_value_t = config::Batch::default().captions_max)]
    batch_captions: NonZeroUsize,
    /// Compute threads; 0 takes as many as the process may use CPUs.
    #[arg(long, value_name = "N", default_value_t = 0)]
    threads: usize,
    #[command(flatten)]
    runtime: RuntimeArgs,
}

/// What runs a package.
#[derive(Debug, Args)]
pub struct RuntimeArgs {
    /// What runs the network: auto, cpu, or a GPU such as cuda:0.
    #[arg(long, value_name = "DEVICE", default_value_t = DeviceChoice::Auto, value_parser = one_device)]
    pub device: DeviceChoice,
    /// ONNX Runtime's library, where it isn't found by itself.
    #[arg(long, value_name = "FILE")]
    pub onnxruntime: Option<PathBuf>,
}

impl RuntimeArgs {
    /// Loads the package.
    ///
    /// # Errors
    ///
    /// When ONNX Runtime isn't found, or can't run the package on the device.
    pub fn load(&self, package: &Package, threads: usize) -> Result<OnnxEmbedder, LoadError> {
        Ok(load_one(package, self.onnxruntime.as_deref(), &self.device, threads)?.0)
    }
}

fn one_device(text: &str) -> Result<DeviceChoice, String> {
    match text.parse()? {
        DeviceChoice::Named(devices) if devices.len() > 1 => {
            Err(format!("{text:?} are several devices; one is due here"))
        }
        choice => Ok(choice),
    }
}

impl NetworkArgs {
    /// Loads the package.
    ///
    /// # Errors
    ///
    /// When ONNX Runtime isn't found, or can't run the package.
    pub fn load(&self, package: &Package) -> Result<OnnxEmbedder, LoadError> {
        self.runtime.load(package, threads_of_one(self.threads))
    }

    /// Returns the limits of a batch; nothing is waited for.
    pub fn limits(&self) -> Limits {
        Limits {
            tokens_max: self.batch_tokens.get(),
            captions_max: self.batch_captions.get(),
            wait_max: Duration::ZERO,
        }
    }
}

/// Arguments of `capvec embed`.
#[derive(Debug, Args)]
pub struct EmbedArgs {
    /// The model package.
    #[arg(long, value_name = "PACKAGE")]
    model: PathBuf,
    #[command(flatten)]
    input: InputArgs,
    /// Where the vectors go; `-` is standard output, which npy can't be written to. A file is replaced when all are
    /// written; a device, a pipe, or what a link points to, is written into.
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

/// Formats of vectors in files.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    /// A JSON array a line.
    Jsonl,
    /// NumPy's array file, float32 `[captions, dim]`.
    Npy,
    /// Raw little-endian float32, row after row.
    F32,
}

/// The captions of a file, in order.
pub struct Captions {
    lines: io::Split<Box<dyn BufRead + Send>>,
    pointer: Option<Pointer>,
    name: String,
    number: usize,
}

impl Captions {
    /// Opens the file, `-` for standard input, of captions or of JSON with captions at `pointer`.
    ///
    /// # Errors
    ///
    /// When it can't be opened.
    pub fn open(file: &Path, pointer: Option<Pointer>) -> anyhow::Result<Captions> {
        let name = file.display().to_string();
        let reader: Box<dyn BufRead + Send> = if file == Path::new("-") {
            Box::new(BufReader::new(io::stdin()))
        } else {
            Box::new(BufReader::new(File::open(file).with_context(|| name.clone())?))
        };
        Ok(Captions { lines: reader.split(b'\n'), pointer, name, number: 0 })
    }

    fn caption(&self, mut line: Vec<u8>) -> anyhow::Result<String> {
        if line.last() == Some(&b'\r') {
            line.pop();
        }
        let line = String::from_utf8(line).map_err(|_| anyhow::anyhow!("not UTF-8"))?;
        let Some(pointer) = &self.pointer else { return Ok(line) };
        match pointer.find(&line).context("not JSON")? {
            Some(Found::Text(text)) => Ok(text.into_owned()),
            Some(Found::Integer(_)) => bail!("a number stands at {pointer}, not a caption"),
            Some(Found::Other(what)) => bail!("{what} stands at {pointer}, not a caption"),
            None => bail!("nothing stands at {pointer}"),
        }
    }
}

impl Iterator for Captions {
    type Item = anyhow::Result<String>;

    fn next(&mut self) -> Option<Self::Item> {
        let line = self.lines.next()?;
        self.number += 1;
        let caption = line.map_err(anyhow::Error::from).and_then(|line| self.caption(line));
        Some(caption.with_context(|| format!("{}, line {}", self.name, self.number)))
    }
}

/// Embeds the captions.
///
/// # Errors
///
/// When the package, the input or the output can't be used, or a line holds no caption.
pub fn run(args: &EmbedArgs) -> anyhow::Result<()> {
    let to_stdout = args.out == Path::new("-");
    if to_stdout && args.format == Format::Npy {
        bail!(NPY_NEEDS_A_FILE);
    }
    let package = Package::open(&args.model)?;
    let manifest = &package.manifest;
    let tokenizer = Tokenizer::from_file(&package.path.join(TOKENIZER), manifest.max_tokens)?;
    let mut embedder = args.network.load(&package)?;
    let captions = args.input.open()?;
    let limits = args.network.limits();

    if to_stdout {
        let out = BufWriter::new(io::stdout().lock());
        embed_all(
            captions,
            &tokenizer,
            &mut embedder,
            limits,
            &mut Vectors::new(out, args.format),
        )?;
        return Ok(());
    }
    let mut file = OutFile::create(&args.out)?;
    if args.format == Format::Npy && !file.is_seekable() {
        bail!("{}: {NPY_NEEDS_A_FILE}", args.out.display());
    }
    let mut vectors = Vectors::new(BufWriter::new(file), args.format);
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
    vectors: &mut Vectors<W>,
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
    let mut progress = Progress::start("embedding", Unit::Stream, None);
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
    vectors: &mut Vectors<W>,
    progress: &mut Progress,
) -> anyhow::Result<u64> {
    // A batch is cut when it is full, and never because the reader is slow: batches, and with them the
    // last bits of the vectors, depend on the input alone.
    let limits = Limits { wait_max: Duration::MAX, ..limits };
    let mut waited = Duration::ZERO;
    let mut pending: VecDeque<TokenizedCaption> = VecDeque::new();
    let mut done = 0;
    loop {
        let lengths = pending.iter().map(|caption| caption.ids.len());
        match limits.decide(lengths, waited, None) {
            Decision::Cut { captions, .. } => {
                let batch: Vec<_> = pending.drain(..captions).collect();
                let packed = TokenBatch::pack(batch.iter().map(|caption| caption.ids.as_slice()));
                let mut rows = embedder.embed(&packed)?;
                make_finite(&mut rows, &batch, embedder, done)?;
                vectors.write(&rows, embedder.dim())?;
                done += captions as u64;
                progress.update(done, None, "");
            }
            Decision::Nothing if waited == Duration::MAX => return Ok(done),
            Decision::Nothing | Decision::Wait(_) => match tokenized.recv() {
                Ok(caption) => pending.push_back(caption),
                // That was all.
                Err(_) => waited = Duration::MAX,
            },
        }
    }
}

/// Embeds the captions alone whose vectors aren't finite: another one of their batch may have spoilt them.
fn make_finite(
    vectors: &mut [f32],
    batch: &[TokenizedCaption],
    embedder: &mut dyn Embedder,
    before: u64,
) -> anyhow::Result<()> {
    let dim = embedder.dim();
    for (row, vector) in vectors.chunks_exact_mut(dim).enumerate() {
        if !is_finite(vector) {
            let alone = embedder.embed(&TokenBatch::pack([batch[row].ids.as_slice()]))?;
            if !is_finite(&alone) {
                bail!(
                    "the vector of caption {} has a number that isn't finite: the package's weights are damaged, or its \
                     numbers too large for its precision",
                    before + row as u64 + 1
                );
            }
            vector.copy_from_slice(&alone);
        }
    }
    Ok(())
}

/// Writes vectors.
struct Vectors<W> {
    out: W,
    format: Format,
    bytes: Vec<u8>,
}

impl<W: Write> Vectors<W> {
    fn new(out: W, format: Format) -> Self {
        Vectors { out, format, bytes: Vec::new() }
    }

    fn write(&mut self, vectors: &[f32], dim: usize) -> io::Result<()> {
        self.bytes.clear();
        match self.format {
            Format::Npy | Format::F32 => {
                self.bytes.extend_from_slice(&crate::wire::vector::native(vectors));
            }
            Format::Jsonl => {
                for vector in vectors.chunks_exact(dim) {
                    serde_json::to_writer(&mut self.bytes, vector)?;
                    self.bytes.push(b'\n');
                }
            }
        }
        self.out.write_all(&self.bytes)
    }
}

/// The header of NumPy's format 1.0 for float32 `[rows, dim]`: always 128 bytes, so that it can be
/// written again when the number of rows is known. Source: NumPy's `numpy.lib.format`.
fn npy_header(rows: u64, dim: usize) -> [u8; 128] {
    let shape = format!("{{'descr': '<f4', 'fortran_order': False, 'shape': ({rows}, {dim}), }}");
    let mut header = [b' '; 128];
    header[..8].copy_from_slice(b"\x93NUMPY\x01\x00");
    header[8..10].copy_from_slice(&118u16.to_le_bytes());
    header[10..10 + shape.len()].copy_from_slice(shape.as_bytes());
    header[127] = b'\n';
    header
}

#[cfg(test)]
mod tests {
    use super::*;
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
        let mut vectors = Vectors::new(Vec::new(), Format::F32);
        let mut progress = Progress::start("embedding", Unit::Stream, None);
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
        let mut vectors = Vectors::new(Vec::new(), Format::Jsonl);
        let mut progress = Progress::start("embedding", Unit::Stream, None);
        let mut notes = Notes(Vec::new());
        let done = embed_batches(&receiver, &mut notes, limits, &mut vectors, &mut progress);
        assert!(done.unwrap_err().to_string().contains("caption 4 "));
        assert_eq!(notes.0, [5, 1, 1, 1, 1]);
        assert_eq!(vectors.out.len(), 0);
    }
}

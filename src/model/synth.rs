//! `capvec model synth`: packages with random weights, for load and speed work where the real
//! weights are not at hand. They have the shape, the size and the cost of real ones, and no
//! meaning.

use std::io;
use std::path::Path;

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, StandardNormal};

use super::import::{ImportError, ImportProgress, MAX_TOKENS_DEFAULT};
use super::manifest::{FileDigest, Manifest, Precision};
use super::network::{Family, Network, Weight, WeightKind};
use super::package::{Draft, Existing, write};
use super::tokenizer_json::{TokenizerConfig, from_vocabulary, id_space};

/// The networks that can be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Preset {
    /// M-BERT Base 69 of Multilingual-CLIP: 12 layers, 768 wide, 640 numbers a vector, 711 MB.
    #[value(name = "m-bert-base-69")]
    MBertBase69,
    /// M-BERT Distil 40 of Multilingual-CLIP: 6 layers, 768 wide, 640 numbers a vector, 540 MB.
    #[value(name = "m-bert-distil-40")]
    MBertDistil40,
    /// 2 layers, 64 wide, 49,385 tokens, 640 numbers a vector, 14 MB: for tests and demos.
    Tiny,
}

impl Preset {
    /// Returns the name of the preset, which becomes the package's.
    pub fn name(self) -> &'static str {
        match self {
            Preset::MBertBase69 => "m-bert-base-69",
            Preset::MBertDistil40 => "m-bert-distil-40",
            Preset::Tiny => "tiny",
        }
    }

    /// Returns the sizes of the preset.
    pub fn network(self) -> Network {
        let base = Network {
            family: Family::Bert,
            vocabulary: 119_547,
            positions: 512,
            hidden: 768,
            layers: 12,
            heads: 12,
            feed_forward: 3072,
            layer_norm_epsilon: 1e-12,
            dim: 640,
        };
        match self {
            Preset::MBertBase69 => base,
            Preset::MBertDistil40 => Network { family: Family::DistilBert, layers: 6, ..base },
            Preset::Tiny => Network {
                vocabulary: synthetic_vocabulary().lines().count(),
                hidden: 64,
                layers: 2,
                heads: 4,
                feed_forward: 128,
                ..base
            },
        }
    }
}

/// What to make, and where.
pub struct Synthesis<'a> {
    /// The network.
    pub preset: Preset,
    /// The seed of the weights.
    pub seed: u64,
    /// A vocabulary; without one the tokenizer knows single characters only, so a caption has about
    /// as many tokens as letters.
    pub vocab: Option<&'a Path>,
    /// The number format of the layers' matrices.
    pub precision: Precision,
    /// The package's folder.
    pub out: &'a Path,
    /// Whether a package there is replaced.
    pub existing: Existing,
}

impl<'a> Synthesis<'a> {
    /// Returns a request for the smallest package, for tests and demos.
    pub fn tiny(seed: u64, out: &'a Path) -> Self {
        let (preset, precision) = (Preset::Tiny, Precision::Fp32);
        Synthesis { preset, seed, vocab: None, precision, out, existing: Existing::Keep }
    }
}

/// Writes a package of random weights. With the same preset, seed, vocabulary and precision it is
/// the same package, on every machine.
///
/// # Errors
///
/// When the vocabulary can't be read or is larger than the preset's, or the package can't be
/// written.
pub fn synthesize(
    request: &Synthesis<'_>,
    progress: &mut dyn FnMut(ImportProgress<'_>),
) -> Result<Manifest, ImportError> {
    let &Synthesis { preset, seed, vocab, precision, out, existing } = request;
    let mut network = preset.network();
    let mut sources = vec![recipe(preset, seed)];
    let tokenizer_json = match vocab {
        None => from_vocabulary(&synthetic_vocabulary(), &cased())
            .expect("the synthetic vocabulary is a vocabulary"),
        Some(path) => {
            let io = |source| ImportError::Io { path: path.into(), source };
            // Once: what a pipe has given is gone.
            let text = std::fs::read_to_string(path).map_err(io)?;
            sources.push(FileDigest::of_bytes(text.as_bytes(), "vocab.txt"));
            from_vocabulary(&text, &cased())
                .map_err(|source| ImportError::Vocabulary { path: path.into(), source })?
        }
    };
    let ids = id_space(&tokenizer_json).expect("the tokenizer was made here, with a vocabulary");
    match (preset, vocab) {
        (Preset::Tiny, _) => network.vocabulary = ids,
        (_, Some(path)) if ids > network.vocabulary => {
            let reason =
                format!("{ids} entries where {} has {}", preset.name(), network.vocabulary);
            return Err(ImportError::Config { path: path.into(), reason });
        }
        _ => {}
    }

    let max_tokens = MAX_TOKENS_DEFAULT;
    let total_bytes = 4 * network.parameters() as u64;
    let name = format!("synthetic-{}", preset.name());
    let draft = Draft { name, network, max_tokens, precision, tokenizer_json, sources };
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let mut done_bytes = 0;
    write(out, existing, draft, |weight, sink| {
        progress(ImportProgress { doing: &weight.name, done_bytes, total_bytes });
        fill(weight, &mut random, sink)
            .map_err(|source| ImportError::Io { path: out.into(), source })?;
        done_bytes += 4 * weight.elements() as u64;
        Ok(())
    })
}

/// Scales that keep the numbers of a random network about as large as a trained one's, and its
/// vectors apart from each other.
fn fill(
    weight: &Weight,
    random: &mut ChaCha8Rng,
    sink: &mut dyn FnMut(&[f32]) -> io::Result<()>,
) -> io::Result<()> {
    let (mean, deviation) = match weight.kind {
        WeightKind::Embedding => (0.0, 0.5),
        WeightKind::Matrix { fan_in } => (0.0, 1.5 / (fan_in as f32).sqrt()),
        WeightKind::Bias => (0.0, 0.1),
        WeightKind::Scale => (1.0, 0.2),
    };
    let mut chunk = Vec::with_capacity(CHUNK);
    let mut left = weight.elements();
    while left > 0 {
        chunk.clear();
        chunk.extend((0..left.min(CHUNK)).map(|_| {
            let normal: f32 = StandardNormal.sample(random);
            mean + deviation * normal
        }));
        sink(&chunk)?;
        left -= chunk.len();
    }
    Ok(())
}

/// Numbers made at a time.
const CHUNK: usize = 1 << 16;

/// What stands in the place of source files: the recipe.
fn recipe(preset: Preset, seed: u64) -> FileDigest {
    let contents = format!("{} {seed}", preset.name());
    FileDigest::of_bytes(contents.as_bytes(), &format!("random weights, seed {seed}"))
}

fn cased() -> TokenizerConfig {
    TokenizerConfig { do_lower_case: false, ..TokenizerConfig::default() }
}

/// The marks and the characters of the scripts that captions are written in, alone and as
/// continuations of a word.
fn synthetic_vocabulary() -> String {
    let ranges = [
        0x21..=0x7e,        // ASCII
        0xa1..=0x24f,       // Latin with marks
        0x370..=0x3ff,      // Greek
        0x400..=0x4ff,      // Cyrillic
        0x531..=0x586,      // Armenian
        0x5d0..=0x5ea,      // Hebrew
        0x621..=0x6d2,      // Arabic
        0x901..=0x97f,      // Devanagari
        0x981..=0x9fe,      // Bengali
        0xa01..=0xd7f,      // Gurmukhi to Malayalam
        0xe01..=0xe5b,      // Thai
        0x10a0..=0x10ff,    // Georgian
        0x1e00..=0x1eff,    // Latin with more marks
        0x2010..=0x2027,    // punctuation
        0x3041..=0x30ff,    // Japanese syllables
        0x4e00u32..=0x9fff, // Chinese characters
        0xac00..=0xd7a3,    // Korean syllables
    ];
    let mut vocabulary = String::from("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\n");
    for character in ranges.into_iter().flatten().filter_map(char::from_u32) {
        vocabulary.push(character);
        vocabulary.push('\n');
        // Chinese characters are words of their own and never continue one.
        if !('\u{4e00}'..='\u{9fff}').contains(&character) {
            vocabulary.push_str("##");
            vocabulary.push(character);
            vocabulary.push('\n');
        }
    }
    vocabulary
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;

    use super::*;

    #[test]
    fn a_seed_decides_the_package() {
        let folder = tempfile::tempdir().unwrap();
        let make = |name: &str, seed| {
            let out = folder.path().join(name);
            synthesize(&Synthesis::tiny(seed, &out), &mut |_| ()).unwrap()
        };
        let (a, b, c) = (make("a", 1), make("b", 1), make("c", 2));
        assert_eq!(a, b);
        assert_ne!(a.files[1].sha256, c.files[1].sha256);
        assert_ne!(a.model_id, c.model_id);
    }

    #[test]
    fn a_vocabulary_comes_through_a_pipe_as_from_a_file() {
        let folder = tempfile::tempdir().unwrap();
        let make = |name: &str, vocab: &Path| {
            let out = folder.path().join(name);
            synthesize(&Synthesis { vocab: Some(vocab), ..Synthesis::tiny(1, &out) }, &mut |_| ())
        };
        let text = "[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\nhello\n";
        let file = folder.path().join("words");
        std::fs::write(&file, text).unwrap();
        let from_file = make("a", &file).unwrap();
        let (reader, mut writer) = io::pipe().unwrap();
        io::Write::write_all(&mut writer, text.as_bytes()).unwrap();
        drop(writer);
        let pipe = format!("/dev/fd/{}", reader.as_raw_fd());
        let from_pipe = make("b", Path::new(&pipe)).unwrap();
        assert_eq!(from_pipe, from_file);
        assert_eq!(from_file.sources[1], FileDigest::of_file(&file, "vocab.txt").unwrap());
    }
}

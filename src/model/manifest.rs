//! `manifest.json`: what a model package is, where it came from, and what proves that it is whole.

use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::network::Network;
use super::quantize;

/// The layout of packages that this program writes and reads.
pub const FORMAT: u32 = 1;

/// The manifest of a package.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// The layout of the package, [`FORMAT`].
    pub format: u32,
    /// A name for people, by default the name of the checkpoint's folder.
    pub name: String,
    /// Name and fingerprint of the model; goes out with every vector. Two packages with the same id
    /// make the same vectors.
    pub model_id: String,
    /// Family and sizes, `dim` among them.
    pub network: Network,
    /// Longest caption in tokens, `[CLS]` and `[SEP]` included; the rest is cut off.
    pub max_tokens: usize,
    /// How the tokens of a caption become one vector.
    pub pooling: Pooling,
    /// The number format of the weights.
    pub precision: Precision,
    /// ONNX operator set of the graph.
    pub opset: i64,
    /// Which inputs the graph takes, see [`super::graph::FORM`].
    pub graph: GraphForm,
    /// The files that the package was made from.
    pub sources: Vec<FileDigest>,
    /// The files of the package, the manifest itself not among them.
    pub files: Vec<FileDigest>,
    /// The program that wrote the package.
    pub created_by: String,
}

/// The inputs and the output of the graph.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GraphForm {
    /// The name of the form.
    pub form: String,
    /// Names of the inputs, in order.
    pub inputs: Vec<String>,
    /// Name of the output, float32 `[captions, dim]`.
    pub output: String,
}

/// How the tokens of a caption become one vector.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Pooling {
    /// The mean over the caption's tokens, `[CLS]` and `[SEP]` included.
    Mean,
}

/// The number format of the layers' matrices, and of the products with them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// 32-bit floats.
    Fp32,
    /// 16-bit floats, with sums in 32 bits: for GPUs. CPUs run it slowly.
    Fp16,
    /// 8-bit integers: a scale for each output of a matrix, and one for each token. About 2.5 times
    /// as fast on CPUs with VNNI; `capvec model compare` tells what it costs.
    Int8,
}

impl Precision {
    /// Returns the name that the manifest has for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Precision::Fp32 => "fp32",
            Precision::Fp16 => "fp16",
            Precision::Int8 => "int8",
        }
    }
}

/// A file, and what its contents are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileDigest {
    /// The file's name.
    pub name: String,
    /// Its size.
    pub bytes: u64,
    /// SHA-256 of its contents, in hex.
    pub sha256: String,
}

impl FileDigest {
    /// Reads the file and returns its digest under `name`.
    ///
    /// # Errors
    ///
    /// When the file can't be read.
    pub fn of_file(path: &Path, name: &str) -> io::Result<FileDigest> {
        let mut hashing = Hashing::new(io::sink());
        io::copy(&mut std::fs::File::open(path)?, &mut hashing)?;
        Ok(hashing.finish(name).1)
    }

    /// Returns the digest of these contents under `name`.
    pub fn of_bytes(bytes: &[u8], name: &str) -> FileDigest {
        let sha256 = hex(&Sha256::digest(bytes));
        FileDigest { name: name.into(), bytes: bytes.len() as u64, sha256 }
    }
}

/// A writer that digests what passes through it.
pub struct Hashing<W> {
    inner: W,
    hash: Sha256,
    bytes: u64,
}

impl<W: io::Write> Hashing<W> {
    /// Returns a writer to `inner`.
    pub fn new(inner: W) -> Self {
        Hashing { inner, hash: Sha256::new(), bytes: 0 }
    }

    /// Returns the number of bytes that have passed.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Returns the inner writer and the digest of what has passed.
    pub fn finish(self, name: &str) -> (W, FileDigest) {
        let sha256 = hex(&self.hash.finalize());
        (self.inner, FileDigest { name: name.into(), bytes: self.bytes, sha256 })
    }
}

impl<W: io::Write> io::Write for Hashing<W> {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(buffer)?;
        self.hash.update(&buffer[..written]);
        self.bytes += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

/// Returns the model id: the name, and 12 hex digits of a SHA-256 over everything that decides what
/// the vectors are. The graph's form isn't among it: every form computes the same vectors.
pub fn model_id(
    name: &str,
    sources: &[FileDigest],
    max_tokens: usize,
    pooling: Pooling,
    precision: Precision,
) -> String {
    let mut hash = Sha256::new();
    for source in sources {
        hash.update(format!("{} {}\n", source.name, source.sha256));
    }
    // Ids are told by these words since there are ids: another word for the same would make the
    // vectors of a package look like another model's.
    let pooling = match pooling {
        Pooling::Mean => "Mean",
    };
    let number_format = match precision {
        Precision::Fp32 => "Fp32",
        Precision::Fp16 => "Fp16",
        Precision::Int8 => "Int8",
    };
    hash.update(format!("max_tokens {max_tokens}\n"));
    hash.update(format!("pooling {pooling}\n"));
    hash.update(format!("precision {number_format}\n"));
    // The first one isn't told, as ids are older than it has a number.
    if precision == Precision::Int8 && quantize::SCHEME > 1 {
        hash.update(format!("scheme {}\n", quantize::SCHEME));
    }
    format!("{name}@{}", &hex(&hash.finalize())[..12])
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn digests_what_passes_through() {
        let mut hashing = Hashing::new(Vec::new());
        hashing.write_all(b"ab").unwrap();
        hashing.write_all(b"c").unwrap();
        let (inner, digest) = hashing.finish("x");
        assert_eq!(inner, b"abc");
        assert_eq!(digest.bytes, 3);
        assert_eq!(
            digest.sha256,
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        );
    }

    #[test]
    fn the_model_id_follows_what_decides_the_vectors() {
        let source =
            |sha256: &str| FileDigest { name: "w".into(), bytes: 1, sha256: sha256.into() };
        let id = |source: FileDigest, max_tokens| {
            model_id("m", &[source], max_tokens, Pooling::Mean, Precision::Fp32)
        };
        assert_eq!(id(source("aa"), 128), id(source("aa"), 128));
        assert_ne!(id(source("aa"), 128), id(source("ab"), 128));
        assert_ne!(id(source("aa"), 128), id(source("aa"), 64));
        assert!(id(source("aa"), 128).starts_with("m@"));
    }

    #[test]
    fn the_model_id_of_a_package_never_changes() {
        // Consumers tell by it which vectors belong together.
        let source = [FileDigest { name: "w".into(), bytes: 1, sha256: "aa".into() }];
        for (precision, id) in [
            (Precision::Fp32, "m@7448a5c9714a"),
            (Precision::Fp16, "m@60713f97ff47"),
            (Precision::Int8, "m@03a42470178c"),
        ] {
            assert_eq!(model_id("m", &source, 128, Pooling::Mean, precision), id, "{precision:?}");
        }
    }
}

//! Model packages and what they are compared with.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use capvec::model::manifest::Precision;
use capvec::model::package::Package;
use capvec::model::synth::{Synthesis, synthesize};
use capvec::tokenize::Tokenizer;

/// A synthetic package that all tests share.
pub fn tiny_package() -> &'static Path {
    static PACKAGE: OnceLock<(tempfile::TempDir, PathBuf)> = OnceLock::new();
    let (_, path) = PACKAGE.get_or_init(|| {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tiny");
        synthesize(&Synthesis::tiny(7, &path), &mut |_| ()).unwrap();
        (folder, path)
    });
    path
}

/// Makes a tiny package of a precision in a folder, and returns its path.
pub fn package_of(folder: &Path, precision: Precision) -> PathBuf {
    let path = folder.join(precision.as_str());
    synthesize(&Synthesis { precision, ..Synthesis::tiny(1, &path) }, &mut |_| ()).unwrap();
    path
}

/// The tokenizer of a package.
pub fn tokenizer_of(package: &Path) -> Tokenizer {
    Package::open(package).unwrap().tokenizer().unwrap()
}

/// Returns the length of the difference as a share of the golden vector's.
pub fn relative_error(found: &[f32], golden: &[f32]) -> f64 {
    let norm = |numbers: &mut dyn Iterator<Item = f64>| numbers.map(|n| n * n).sum::<f64>().sqrt();
    let pairs = found.iter().zip(golden).map(|(f, g)| f64::from(*f) - f64::from(*g));
    norm(&mut pairs.into_iter()) / norm(&mut golden.iter().map(|g| f64::from(*g)))
}

/// Returns the cosine of the angle between two vectors.
pub fn cosine(a: &[f32], b: &[f32]) -> f64 {
    let dot = |a: &[f32], b: &[f32]| -> f64 {
        a.iter().zip(b).map(|(x, y)| f64::from(*x) * f64::from(*y)).sum()
    };
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}

/// Returns a folder beside the checkout that not every machine has, or that it isn't there.
pub fn beside(variable: &str, folder: &str) -> Result<PathBuf, String> {
    let path = std::env::var_os(variable).map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared").join(folder),
        PathBuf::from,
    );
    match path.is_dir() {
        true => Ok(path),
        false => Err(format!("{} is not there (or name it in {variable})", path.display())),
    }
}

/// Returns the text of a file that gzip has packed.
#[track_caller]
pub fn unpacked(path: &Path) -> String {
    // gzip is everywhere that tests run, and reading it is no part of the program.
    let output = Command::new("gzip").arg("-dc").arg(path).output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "gzip: {}\n{error}", output.status);
    String::from_utf8(output.stdout).unwrap()
}

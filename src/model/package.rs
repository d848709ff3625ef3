//! A model package on disk: a folder with `model.onnx`, its weights in `model.onnx.data`,
//! `tokenizer.json` and `manifest.json`.
//!
//! A package is written beside its place and moved there when it is whole, so that a folder with the
//! package's name is always a whole package.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use half::f16;
use prost::Message;
use thiserror::Error;

use super::graph::{self, External};
use super::manifest::{
    FORMAT, FileDigest, GraphForm, Hashing, Manifest, Pooling, Precision, model_id,
};
use super::network::{Network, Weight};
use super::onnx::DataType;
use super::quantize::quantize;

/// Name of the graph's file.
pub const MODEL: &str = "model.onnx";
/// Name of the file with the weights.
pub const WEIGHTS: &str = "model.onnx.data";
/// Name of the tokenizer's file.
pub const TOKENIZER: &str = "tokenizer.json";
/// Name of the manifest's file.
pub const MANIFEST: &str = "manifest.json";

/// The files that a manifest names, by name.
const FILES: [&str; 3] = [MODEL, WEIGHTS, TOKENIZER];

/// `[CLS]`, a token, `[SEP]`.
const TOKENS_MIN: usize = 3;

/// Weights begin at multiples of this many bytes, the size of a page, so that each can be mapped.
const ALIGNMENT: u64 = 4096;

/// A manifest larger than this isn't one.
const MANIFEST_BYTES_MAX: u64 = 1 << 20;

/// What can be wrong with a package.
#[derive(Debug, Error)]
pub enum PackageError {
    /// A file of the package could not be read or written.
    #[error("{path}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The folder has no manifest.
    #[error(
        "{0} is not a model package: it has no {MANIFEST}; make one with `capvec model import` or \
         `capvec model synth`"
    )]
    NotAPackage(PathBuf),
    /// The manifest isn't one, or is of another kind of package.
    #[error("{path}: {reason}")]
    Manifest {
        /// The manifest.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A package already lies at the place.
    #[error("{0} exists already; remove it, or pass --force to replace it")]
    Exists(PathBuf),
    /// What lies at the place isn't a package alone, and isn't replaced by one.
    #[error(
        "{0} exists and is no model package, or has other files in it, which --force doesn't replace; name \
         another place"
    )]
    NotReplaced(PathBuf),
    /// A file of the package isn't what the manifest says.
    #[error("{path}: {reason}; the package is damaged, import it or make it again")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// In what it differs.
        reason: String,
    },
}

fn io_error(path: &Path) -> impl FnOnce(io::Error) -> PackageError {
    let path = path.to_owned();
    move |source| PackageError::Io { path, source }
}

/// A package that has been opened: its place and its manifest.
#[derive(Clone, Debug)]
pub struct Package {
    /// The folder.
    pub path: PathBuf,
    /// What it says of itself.
    pub manifest: Manifest,
}

impl Package {
    /// Reads the manifest of the package at `path`, and checks that this program can run it and that
    /// its files are there with their sizes. Their contents are checked by [`Package::verify`].
    ///
    /// # Errors
    ///
    /// When the folder is no package, is of another format or form, or misses a file.
    pub fn open(path: &Path) -> Result<Package, PackageError> {
        let manifest_path = path.join(MANIFEST);
        let length = match fs::metadata(&manifest_path) {
            Ok(metadata) => metadata.len(),
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                return Err(PackageError::NotAPackage(path.into()));
            }
            Err(e) => return Err(io_error(&manifest_path)(e)),
        };
        let wrong = |reason: String| PackageError::Manifest { path: manifest_path.clone(), reason };
        if length > MANIFEST_BYTES_MAX {
            return Err(wrong(format!("{length} bytes are too many for a manifest")));
        }
        let text = fs::read_to_string(&manifest_path).map_err(io_error(&manifest_path))?;
        let manifest: Manifest =
            serde_json::from_str(&text).map_err(|e| wrong(format!("not a manifest: {e}")))?;
        if manifest.format != FORMAT {
            return Err(wrong(format!(
                "package format {} where this program knows {FORMAT}",
                manifest.format
            )));
        }
        if manifest.graph != form() {
            return Err(wrong(format!(
                "graph form {:?} where this program knows {:?}; import the model again",
                manifest.graph.form,
                graph::FORM
            )));
        }
        if let Some(reason) = impossible(&manifest) {
            return Err(wrong(format!("{reason}; import the model again")));
        }
        let package = Package { path: path.into(), manifest };
        for file in &package.manifest.files {
            let path = package.path.join(&file.name);
            let bytes = fs::metadata(&path).map_err(io_error(&path))?.len();
            if bytes != file.bytes {
                let reason = format!("{bytes} bytes where the manifest says {}", file.bytes);
                return Err(PackageError::Damaged { path, reason });
            }
        }
        Ok(package)
    }

    /// Compares each file's SHA-256 with the manifest's, telling `checked` of each that is right.
    ///
    /// # Errors
    ///
    /// At the first file that differs or can't be read.
    pub fn verify(&self, mut checked: impl FnMut(&FileDigest)) -> Result<(), PackageError> {
        for file in &self.manifest.files {
            let path = self.path.join(&file.name);
            let found = FileDigest::of_file(&path, &file.name).map_err(io_error(&path))?;
            if found.sha256 != file.sha256 {
                let reason = format!(
                    "its sha256 is {} where the manifest says {}",
                    found.sha256, file.sha256
                );
                return Err(PackageError::Damaged { path, reason });
            }
            checked(file);
        }
        Ok(())
    }
}

/// Returns what no manifest that was written here says. A manifest is data: its files are those of a package, and none
/// elsewhere.
fn impossible(manifest: &Manifest) -> Option<String> {
    let (max_tokens, positions) = (manifest.max_tokens, manifest.network.positions);
    if max_tokens < TOKENS_MIN || max_tokens > positions {
        return Some(format!("max_tokens is {max_tokens}, and not {TOKENS_MIN} to {positions}"));
    }
    if manifest.network.dim == 0 {
        return Some("dim is 0".into());
    }
    let mut names: Vec<&str> = manifest.files.iter().map(|file| file.name.as_str()).collect();
    names.sort_unstable();
    if names != FILES {
        return Some(format!("files are {names:?}, and not {FILES:?}"));
    }
    let digests = manifest.files.iter().chain(&manifest.sources);
    let is_digest = |text: &str| text.len() == 64 && text.bytes().all(|b| b.is_ascii_hexdigit());
    let wrong = digests.into_iter().find(|file| !is_digest(&file.sha256))?;
    Some(format!("{:?} has the sha256 {:?}, which is none", wrong.name, wrong.sha256))
}

/// Returns whether the folder has a package in it, of whatever version, and nothing else.
fn is_package_alone(path: &Path) -> bool {
    let manifest = fs::read_to_string(path.join(MANIFEST)).unwrap_or_default();
    let manifest: serde_json::Value = serde_json::from_str(&manifest).unwrap_or_default();
    let is_ours = manifest["format"].is_u64() && manifest["model_id"].is_string();
    let is_of_a_package =
        |name: OsString| name == MANIFEST || FILES.iter().any(|file| name == *file);
    is_ours
        && fs::read_dir(path).is_ok_and(|mut inside| {
            inside.all(|entry| entry.is_ok_and(|entry| is_of_a_package(entry.file_name())))
        })
}

fn form() -> GraphForm {
    GraphForm {
        form: graph::FORM.into(),
        inputs: graph::INPUTS.iter().map(|i| i.name.into()).collect(),
        output: graph::OUTPUT.into(),
    }
}

/// Everything about a package but its weights.
pub struct Draft {
    /// A name for people.
    pub name: String,
    /// Family and sizes.
    pub network: Network,
    /// Longest caption in tokens.
    pub max_tokens: usize,
    /// The number format of the layers' matrices.
    pub precision: Precision,
    /// The contents of `tokenizer.json`.
    pub tokenizer_json: String,
    /// What the package is made from.
    pub sources: Vec<FileDigest>,
}

/// Whether a package that lies at the place already is replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Existing {
    /// It stays, and writing fails.
    Keep,
    /// It is removed when the one that replaces it is whole.
    Replace,
}

/// Writes a package to `path`. `fill` is asked for the numbers of each weight in turn and gives them
/// piece by piece, row-major, so that no weight is ever in memory whole but a matrix that is
/// quantized.
///
/// # Errors
///
/// When a package lies there already, or something that is none; when a file can't be written, or `fill` fails.
pub fn write<E: From<PackageError>>(
    path: &Path,
    existing: Existing,
    draft: Draft,
    mut fill: impl FnMut(&Weight, &mut dyn FnMut(&[f32]) -> io::Result<()>) -> Result<(), E>,
) -> Result<Manifest, E> {
    // What a link points to is replaced, and not the link.
    let (given, resolved) = (path, fs::canonicalize(path));
    if let (Err(_), true) = (&resolved, path.is_symlink()) {
        let reason = "it is a link to what isn't there; make its target, or remove it";
        let source = io::Error::new(io::ErrorKind::NotFound, reason);
        return Err(io_error(given)(source).into());
    }
    let path = resolved.as_deref().unwrap_or(given);
    if path.exists() {
        if existing == Existing::Keep {
            return Err(PackageError::Exists(given.into()).into());
        }
        // A device or a folder of something else would be gone for a slip of the keyboard.
        let is_empty = || fs::read_dir(path).is_ok_and(|mut inside| inside.next().is_none());
        if !is_package_alone(path) && !is_empty() {
            return Err(PackageError::NotReplaced(given.into()).into());
        }
    }
    let parent = match path.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    };
    fs::create_dir_all(parent).map_err(io_error(parent))?;
    let folder = tempfile::Builder::new()
        .prefix(".capvec-package-")
        .tempdir_in(parent)
        .map_err(io_error(parent))?;

    let weights_path = folder.path().join(WEIGHTS);
    let mut data = DataFile::create(&weights_path).map_err(io_error(&weights_path))?;
    for weight in draft.network.weights() {
        if draft.precision == Precision::Int8 && weight.is_layer_matrix() {
            // Not of the size that the checkpoint claims: nothing of it has been read yet.
            let mut matrix = Vec::new();
            fill(&weight, &mut |numbers| {
                matrix.extend_from_slice(numbers);
                Ok(())
            })?;
            data.write_quantized(&weight, &matrix).map_err(io_error(&weights_path))?;
        } else {
            let (name, shape) = (weight.name.clone(), weight.shape.clone());
            let dtype = graph::weight_type(draft.precision, &weight);
            data.begin(name, shape, dtype).map_err(io_error(&weights_path))?;
            fill(&weight, &mut |numbers| data.append(numbers))?;
            data.end();
        }
    }
    let (placed, weights_digest) = data.finish().map_err(io_error(&weights_path))?;

    let put = |name: &str, contents: &[u8]| -> Result<FileDigest, PackageError> {
        let path = folder.path().join(name);
        let mut file = Hashing::new(File::create(&path).map_err(io_error(&path))?);
        file.write_all(contents).map_err(io_error(&path))?;
        Ok(file.finish(name).1)
    };
    let model = graph::emit(&draft.network, draft.precision, &placed, WEIGHTS).encode_to_vec();
    let (pooling, precision) = (Pooling::Mean, draft.precision);
    let manifest = Manifest {
        format: FORMAT,
        model_id: model_id(&draft.name, &draft.sources, draft.max_tokens, pooling, precision),
        name: draft.name,
        network: draft.network,
        max_tokens: draft.max_tokens,
        pooling,
        precision,
        opset: graph::OPSET,
        graph: form(),
        sources: draft.sources,
        files: vec![
            put(MODEL, &model)?,
            weights_digest,
            put(TOKENIZER, draft.tokenizer_json.as_bytes())?,
        ],
        created_by: concat!("capvec ", env!("CARGO_PKG_VERSION")).into(),
    };
    let mut text = serde_json::to_string_pretty(&manifest).expect("a manifest is plain data");
    text.push('\n');
    put(MANIFEST, text.as_bytes())?;

    move_into_place(folder, path, existing)?;
    Ok(manifest)
}

/// The file of weights while it is written.
struct DataFile {
    file: Hashing<BufWriter<File>>,
    placed: Vec<External>,
    bytes: Vec<u8>,
}

impl DataFile {
    fn create(path: &Path) -> io::Result<DataFile> {
        let file = BufWriter::with_capacity(1 << 20, File::create(path)?);
        Ok(DataFile { file: Hashing::new(file), placed: Vec::new(), bytes: Vec::new() })
    }

    /// Begins a tensor at the next page.
    fn begin(&mut self, name: String, shape: Vec<usize>, dtype: DataType) -> io::Result<()> {
        let padding = self.file.bytes().next_multiple_of(ALIGNMENT) - self.file.bytes();
        self.file.write_all(&vec![0; padding as usize])?;
        self.placed.push(External { name, shape, dtype, offset: self.file.bytes(), length: 0 });
        Ok(())
    }

    /// Appends numbers to the tensor that has begun, in its type.
    fn append(&mut self, numbers: &[f32]) -> io::Result<()> {
        let tensor = self.placed.last().expect("a tensor has begun");
        self.bytes.clear();
        if tensor.dtype == DataType::Float16 {
            for &number in numbers {
                let half = f16::from_f32(number);
                if half.is_infinite() && number.is_finite() {
                    let reason = format!(
                        "{} has {number}, which no 16-bit float can hold; take --precision fp32",
                        tensor.name
                    );
                    return Err(io::Error::new(io::ErrorKind::InvalidData, reason));
                }
                self.bytes.extend(half.to_le_bytes());
            }
        } else {
            self.bytes.extend(numbers.iter().flat_map(|n| n.to_le_bytes()));
        }
        self.file.write_all(&self.bytes)
    }

    /// Ends the tensor.
    fn end(&mut self) {
        let tensor = self.placed.last_mut().expect("a tensor has begun");
        tensor.length = self.file.bytes() - tensor.offset;
        let due = tensor.shape.iter().product::<usize>() * tensor.dtype.width();
        assert_eq!(tensor.length, due as u64, "{} is filled exactly", tensor.name);
    }

    /// Writes a matrix `[out, in]` as 8-bit integers `[in, out]`, and its scales `[out]`.
    fn write_quantized(&mut self, weight: &Weight, matrix: &[f32]) -> io::Result<()> {
        let (outputs, inputs) = (weight.shape[0], weight.shape[1]);
        if let Some(number) = matrix.iter().find(|number| !number.is_finite()) {
            // It would become a number like any other, and nobody would ever know.
            let name = &weight.name;
            let reason =
                format!("{name} has {number}, of which no integer can be made: is it damaged?");
            return Err(io::Error::new(io::ErrorKind::InvalidData, reason));
        }
        let quantized = quantize(matrix, inputs);
        self.begin(weight.name.clone(), vec![inputs, outputs], DataType::Int8)?;
        self.bytes.clear();
        self.bytes.extend(quantized.numbers.iter().map(|n| n.to_le_bytes()[0]));
        self.file.write_all(&self.bytes)?;
        self.end();
        self.begin(graph::scales_of(&weight.name), vec![outputs], DataType::Float)?;
        self.append(&quantized.scales)?;
        self.end();
        Ok(())
    }

    fn finish(self) -> io::Result<(Vec<External>, FileDigest)> {
        let (mut writer, digest) = self.file.finish(WEIGHTS);
        writer.flush()?;
        Ok((self.placed, digest))
    }
}

fn move_into_place(
    folder: tempfile::TempDir,
    path: &Path,
    existing: Existing,
) -> Result<(), PackageError> {
    make_readable(folder.path())?;
    let replaces = path.exists();
    if replaces && existing == Existing::Keep {
        // Another has made it meanwhile.
        return Err(PackageError::Exists(path.into()));
    }
    // A folder can't be moved over a full one: the old package steps aside first, and is removed
    // when the new one is in its place.
    let aside = folder.path().with_extension("replaced");
    if replaces {
        fs::rename(path, &aside).map_err(io_error(path))?;
    }
    if let Err(error) = fs::rename(folder.path(), path) {
        if replaces {
            fs::rename(&aside, path).map_err(io_error(&aside))?;
        }
        return Err(io_error(path)(error));
    }
    // It isn't there any more to be removed.
    drop(folder.keep());
    if replaces {
        fs::remove_dir_all(&aside).map_err(io_error(&aside))?;
    }
    Ok(())
}

/// A temporary folder is its owner's alone; a package is for whoever runs the worker.
#[cfg(unix)]
fn make_readable(folder: &Path) -> Result<(), PackageError> {
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(folder, fs::Permissions::from_mode(0o755)).map_err(io_error(folder))
}

#[cfg(not(unix))]
fn make_readable(_folder: &Path) -> Result<(), PackageError> {
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::synth::{Preset, Synthesis, synthesize};

    fn tiny(folder: &Path) -> PathBuf {
        let path = folder.join("tiny");
        synthesize(&Synthesis::tiny(1, &path), &mut |_| ()).unwrap();
        path
    }

    #[test]
    fn a_written_package_opens_and_verifies() {
        let folder = tempfile::tempdir().unwrap();
        let package = Package::open(&tiny(folder.path())).unwrap();
        let mut names = Vec::new();
        package.verify(|f| names.push(f.name.clone())).unwrap();
        assert_eq!(names, [MODEL, WEIGHTS, TOKENIZER]);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "nothing is left beside it");
    }

    #[test]
    fn an_existing_package_is_kept_unless_told() {
        let folder = tempfile::tempdir().unwrap();
        let path = tiny(folder.path());
        let again = |existing| {
            synthesize(&Synthesis { existing, ..Synthesis::tiny(2, &path) }, &mut |_| ())
        };
        assert!(again(Existing::Keep).unwrap_err().to_string().contains("--force"));
        let before = Package::open(&path).unwrap().manifest.model_id;
        again(Existing::Replace).unwrap();
        assert_ne!(Package::open(&path).unwrap().manifest.model_id, before);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn what_is_no_package_is_never_replaced_and_of_a_link_the_target_is() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let replace = |path: &Path| {
            let existing = Existing::Replace;
            synthesize(&Synthesis { existing, ..Synthesis::tiny(2, path) }, &mut |_| ())
        };
        fs::create_dir(at("letters")).unwrap();
        fs::write(at("letters/letter"), "dear").unwrap();
        for path in [at("letters"), at("letters/letter")] {
            let error = replace(&path).unwrap_err().to_string();
            assert!(error.contains("no model package"), "{error}");
        }
        assert_eq!(fs::read_to_string(at("letters/letter")).unwrap(), "dear");

        let path = tiny(folder.path());
        let before = Package::open(&path).unwrap().manifest.model_id;
        std::os::unix::fs::symlink(&path, at("current")).unwrap();
        replace(&at("current")).unwrap();
        assert!(fs::symlink_metadata(at("current")).unwrap().is_symlink());
        assert_ne!(Package::open(&path).unwrap().manifest.model_id, before);
    }

    #[test]
    fn a_folder_with_anything_else_in_it_is_never_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let replace = |path: &Path| {
            let existing = Existing::Replace;
            synthesize(&Synthesis { existing, ..Synthesis::tiny(2, path) }, &mut |_| ())
        };
        // Web applications have a file of the same name.
        let site = folder.path().join("site");
        fs::create_dir(&site).unwrap();
        fs::write(site.join(MANIFEST), "{\"name\": \"a site\"}").unwrap();
        let error = replace(&site).unwrap_err().to_string();
        assert!(error.contains("no model package"), "{error}");
        assert!(site.join(MANIFEST).is_file());

        let package = tiny(folder.path());
        fs::write(package.join("notes.txt"), "mine").unwrap();
        let error = replace(&package).unwrap_err().to_string();
        assert!(error.contains("no model package"), "{error}");
        assert_eq!(fs::read_to_string(package.join("notes.txt")).unwrap(), "mine");
    }

    #[test]
    fn a_link_to_nowhere_is_refused_and_nothing_is_left_behind() {
        let folder = tempfile::tempdir().unwrap();
        let link = folder.path().join("current");
        std::os::unix::fs::symlink(folder.path().join("nowhere"), &link).unwrap();
        let error = synthesize(&Synthesis::tiny(2, &link), &mut |_| ()).unwrap_err();
        assert!(format!("{error:?}").contains("current"), "{error:?}");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_manifest_that_cannot_be_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = tiny(folder.path());
        let manifest = path.join(MANIFEST);
        let text = fs::read_to_string(&manifest).unwrap();
        let positions = Package::open(&path).unwrap().manifest.network.positions;
        type Change = fn(&mut serde_json::Value);
        let changes: [(&str, Change); 5] = [
            ("max_tokens", |m| m["max_tokens"] = 2.into()),
            ("max_tokens", |m| m["max_tokens"] = 1_000_000.into()),
            ("dim", |m| m["network"]["dim"] = 0.into()),
            ("files", |m| drop(m["files"].as_array_mut().unwrap().pop())),
            ("sha256", |m| m["files"][0]["sha256"] = "abc".into()),
        ];
        for (named, change) in changes {
            let mut value: serde_json::Value = serde_json::from_str(&text).unwrap();
            change(&mut value);
            fs::write(&manifest, value.to_string()).unwrap();
            let error = Package::open(&path).unwrap_err().to_string();
            assert!(error.contains(named), "{named} of {positions} positions: {error}");
        }
    }

    #[test]
    fn a_weight_that_is_no_number_is_not_quantized() {
        let folder = tempfile::tempdir().unwrap();
        let mut data = DataFile::create(&folder.path().join(WEIGHTS)).unwrap();
        let weights = Preset::Tiny.network().weights();
        let weight = weights.iter().find(|weight| weight.is_layer_matrix()).unwrap();
        for number in [f32::NAN, f32::INFINITY] {
            let mut matrix = vec![0.5; weight.elements()];
            matrix[3] = number;
            let error = data.write_quantized(weight, &matrix).unwrap_err().to_string();
            assert!(error.contains(&weight.name), "{error}");
        }
    }

    #[test]
    fn a_damaged_package_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = tiny(folder.path());
        let weights = path.join(WEIGHTS);
        let mut bytes = fs::read(&weights).unwrap();
        bytes[5000] ^= 1;
        fs::write(&weights, &bytes).unwrap();
        let error = Package::open(&path).unwrap().verify(|_| ()).unwrap_err().to_string();
        assert!(error.contains(WEIGHTS) && error.contains("sha256"), "{error}");

        bytes.pop();
        fs::write(&weights, &bytes).unwrap();
        let error = Package::open(&path).unwrap_err().to_string();
        assert!(error.contains("bytes where the manifest says"), "{error}");
    }

    #[test]
    fn a_manifest_cannot_point_outside_its_package() {
        let folder = tempfile::tempdir().unwrap();
        let path = tiny(folder.path());
        let manifest = path.join(MANIFEST);
        let text = fs::read_to_string(&manifest).unwrap();
        fs::write(&manifest, text.replace("\"model.onnx\"", "\"../../etc/passwd\"")).unwrap();
        let error = Package::open(&path).unwrap_err().to_string();
        assert!(error.contains("files are") && error.contains("passwd"), "{error}");
    }
}

//! Writes a package beside its place and moves it there when it is whole, so that a folder with the
//! package's name is always a whole package. The disk has it by then, and the one that it replaces
//! goes when the disk has the move: a machine that stops in between leaves the one or the other.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use prost::Message;

use super::weights_file::WeightsFile;
use super::{FILES, MANIFEST, MODEL, PackageError, TOKENIZER, WEIGHTS, form, impossible, io_error};
use crate::model::graph;
use crate::model::manifest::{FORMAT, FileDigest, Hashing, Manifest, Pooling, Precision, model_id};
use crate::model::network::{Network, Weight};
use crate::unfinished;

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

/// Writes a package to `path`. `fill` is asked for the numbers of each weight in turn and gives
/// them piece by piece, row-major, so that no weight is ever in memory whole but a matrix that is
/// quantized.
///
/// # Errors
///
/// When a package lies there already, or something that is none; when a file can't be written, or
/// `fill` fails.
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
        .prefix(unfinished::prefix_in(parent))
        .tempdir_in(parent)
        .map_err(io_error(parent))?;

    let weights_path = folder.path().join(WEIGHTS);
    let mut data = WeightsFile::create(&weights_path).map_err(io_error(&weights_path))?;
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
        let (file, digest) = file.finish(name);
        file.sync_all().map_err(io_error(&path))?;
        Ok(digest)
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
    if let Some(reason) = impossible(&manifest) {
        // It couldn't be opened.
        return Err(PackageError::Manifest { path: path.join(MANIFEST), reason }.into());
    }
    let mut text = serde_json::to_string_pretty(&manifest).expect("a manifest is plain data");
    text.push('\n');
    put(MANIFEST, text.as_bytes())?;
    make_readable(folder.path())?;
    sync_folder(folder.path())?;

    unfinished::undisturbed(|| move_into_place(folder, path, parent, existing))?;
    Ok(manifest)
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

fn move_into_place(
    folder: tempfile::TempDir,
    path: &Path,
    parent: &Path,
    existing: Existing,
) -> Result<(), PackageError> {
    let replaces = path.exists();
    if replaces && existing == Existing::Keep {
        // Another has made it meanwhile.
        return Err(PackageError::Exists(path.into()));
    }
    // A folder can't be moved over a full one: the old package steps aside first, and is removed
    // when the new one is in its place.
    let aside = aside_of(folder.path());
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
    sync_folder(parent)?;
    if replaces {
        fs::remove_dir_all(&aside).map_err(io_error(&aside))?;
    }
    Ok(())
}

/// Returns where the package steps aside that the one in `folder` replaces. It isn't unfinished,
/// and must not be called so.
fn aside_of(folder: &Path) -> PathBuf {
    let name = folder.file_name().unwrap_or_default().to_string_lossy();
    folder.with_file_name(format!(".capvec-replaced-{}", name.trim_start_matches('.')))
}

/// A temporary folder is its owner's alone; a package is for whoever runs the worker.
fn make_readable(folder: &Path) -> Result<(), PackageError> {
    fs::set_permissions(folder, fs::Permissions::from_mode(0o755)).map_err(io_error(folder))
}

/// Returns once the disk has what is in a folder by name, where there is a way to wait for that:
/// not all file systems have one, and a folder may be there to be written and not to be opened.
fn sync_folder(folder: &Path) -> Result<(), PackageError> {
    use io::ErrorKind::{InvalidInput, PermissionDenied, Unsupported};
    match File::open(folder).and_then(|folder| folder.sync_all()) {
        Err(e) if [InvalidInput, PermissionDenied, Unsupported].contains(&e.kind()) => Ok(()),
        synced => synced.map_err(io_error(folder)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::import::ImportError;
    use crate::model::package::Package;
    use crate::model::package::tests::tiny;
    use crate::model::synth::{Preset, Synthesis, synthesize};

    /// Writes another package than [`tiny`].
    fn put(existing: Existing, path: &Path) -> Result<Manifest, ImportError> {
        synthesize(&Synthesis { existing, ..Synthesis::tiny(2, path) }, &mut |_| ())
    }

    #[test]
    fn an_existing_package_is_kept_unless_told() {
        let folder = tempfile::tempdir().unwrap();
        let path = tiny(folder.path());
        assert!(put(Existing::Keep, &path).unwrap_err().to_string().contains("--force"));
        let before = Package::open(&path).unwrap().manifest.model_id;
        put(Existing::Replace, &path).unwrap();
        assert_ne!(Package::open(&path).unwrap().manifest.model_id, before);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn what_could_not_be_opened_is_not_written() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("package");
        let draft = Draft {
            name: "folder\u{1b}[2J".into(),
            network: Preset::Tiny.network(),
            max_tokens: 128,
            precision: Precision::Fp32,
            tokenizer_json: "{}".into(),
            sources: Vec::new(),
        };
        let written = write::<ImportError>(&path, Existing::Keep, draft, |weight, sink| {
            let io = |source| ImportError::Io { path: "checkpoint".into(), source };
            sink(&vec![0.5; weight.elements()]).map_err(io)
        });
        let error = written.unwrap_err().to_string();
        assert!(error.contains("has a control character"), "{error}");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0, "nothing is left behind");
    }

    #[test]
    fn what_is_no_package_is_never_replaced_and_of_a_link_the_target_is() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        fs::create_dir(at("letters")).unwrap();
        fs::write(at("letters/letter"), "dear").unwrap();
        for path in [at("letters"), at("letters/letter")] {
            let error = put(Existing::Replace, &path).unwrap_err().to_string();
            assert!(error.contains("no model package"), "{error}");
        }
        assert_eq!(fs::read_to_string(at("letters/letter")).unwrap(), "dear");

        let path = tiny(folder.path());
        let before = Package::open(&path).unwrap().manifest.model_id;
        std::os::unix::fs::symlink(&path, at("current")).unwrap();
        put(Existing::Replace, &at("current")).unwrap();
        assert!(fs::symlink_metadata(at("current")).unwrap().is_symlink());
        assert_ne!(Package::open(&path).unwrap().manifest.model_id, before);
    }

    #[test]
    fn a_folder_with_anything_else_in_it_is_never_replaced() {
        let folder = tempfile::tempdir().unwrap();
        // Web applications have a file of the same name.
        let site = folder.path().join("site");
        fs::create_dir(&site).unwrap();
        fs::write(site.join(MANIFEST), "{\"name\": \"a site\"}").unwrap();
        let error = put(Existing::Replace, &site).unwrap_err().to_string();
        assert!(error.contains("no model package"), "{error}");
        assert!(site.join(MANIFEST).is_file());

        let package = tiny(folder.path());
        fs::write(package.join("notes.txt"), "mine").unwrap();
        let error = put(Existing::Replace, &package).unwrap_err().to_string();
        assert!(error.contains("no model package"), "{error}");
        assert_eq!(fs::read_to_string(package.join("notes.txt")).unwrap(), "mine");
    }

    #[test]
    fn a_link_to_nowhere_is_refused_and_nothing_is_left_behind() {
        let folder = tempfile::tempdir().unwrap();
        let link = folder.path().join("current");
        std::os::unix::fs::symlink(folder.path().join("nowhere"), &link).unwrap();
        let error = put(Existing::Keep, &link).unwrap_err();
        assert!(format!("{error:?}").contains("current"), "{error:?}");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }
}

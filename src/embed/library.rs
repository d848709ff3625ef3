//! Finds ONNX Runtime's library and loads it, once a process.
//!
//! The program links no ONNX Runtime: which library it loads decides between the CPU's and the
//! GPU's. It looks at, in this order: what the configuration or the flag names; `ORT_DYLIB_PATH`;
//! beside the program; the cache that `make` fills, in which the library for GPUs has a folder of
//! its own, looked at where a GPU is named.

use std::env;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use ort::environment::Environment;
use ort::logging::LogLevel;
use thiserror::Error;

use super::cuda::is_for_gpus;
use super::device::DeviceChoice;
use crate::lock::lock;

/// The version of ONNX Runtime that the program is tried with.
pub const VERSION: &str = "1.31.1";

/// The library's name on this system.
const FILE_NAME: &str =
    if cfg!(target_os = "macos") { "libonnxruntime.dylib" } else { "libonnxruntime.so" };

/// Why there is no ONNX Runtime.
#[derive(Debug, Error)]
pub enum LibraryError {
    /// The library that was named isn't there.
    #[error("{origin} names {path}, which is no file")]
    NotThere {
        /// Who named it.
        origin: &'static str,
        /// The path.
        path: PathBuf,
    },
    /// No library was named, and none found.
    #[error(
        "ONNX Runtime's library was not found; looked for {}. Get it with `scripts/onnxruntime` (or \
         `make build`), for GPUs with `scripts/onnxruntime gpu`, or take {FILE_NAME} {VERSION} from the \
         PyPI wheel onnxruntime or onnxruntime-gpu and name it in ORT_DYLIB_PATH, --onnxruntime or \
         embed.onnxruntime",
        list(.looked)
    )]
    NotFound {
        /// The places.
        looked: Vec<PathBuf>,
    },
    /// The library was found and can't be used.
    #[error("{path} can't be used as ONNX Runtime {VERSION}: {reason}")]
    Unusable {
        /// The library.
        path: PathBuf,
        /// What the loader said.
        reason: String,
    },
}

fn list(paths: &[PathBuf]) -> String {
    paths.iter().map(|p| p.display().to_string()).collect::<Vec<_>>().join(", ")
}

/// Returns the path of the library for the devices that are asked for; `named` is the
/// configuration's or the flag's, if any.
///
/// # Errors
///
/// When the named library isn't there, or none is found.
pub fn find(named: Option<&Path>, devices: &DeviceChoice) -> Result<PathBuf, LibraryError> {
    let from_variable = env::var_os("ORT_DYLIB_PATH").filter(|v| !v.is_empty()).map(PathBuf::from);
    let named = match (named, from_variable) {
        (Some(path), _) => Some(("--onnxruntime or embed.onnxruntime", path.to_owned())),
        (None, Some(path)) => Some(("ORT_DYLIB_PATH", path)),
        (None, None) => None,
    };
    if let Some((origin, path)) = named {
        if !path.is_file() {
            return Err(LibraryError::NotThere { origin, path });
        }
        // The system's loader, and `ort` before it, look for a relative path elsewhere than here.
        return Ok(std::path::absolute(&path).unwrap_or(path));
    }

    let on_gpu = match devices {
        DeviceChoice::Named(devices) => devices.iter().any(|device| device.is_gpu()),
        // A library for GPUs must have been chosen by somebody for `auto` to mean one.
        DeviceChoice::Auto => false,
    };
    let kind = if on_gpu { "gpu" } else { "cpu" };
    let beside = env::current_exe().ok().and_then(|exe| Some(exe.parent()?.join(FILE_NAME)));
    let cached = cache_folder()
        .map(|cache| cache.join("onnxruntime").join(format!("{VERSION}-{kind}")).join(FILE_NAME));
    let looked: Vec<PathBuf> = beside.into_iter().chain(cached).collect();
    let fits = |path: &&PathBuf| path.is_file() && (!on_gpu || is_for_gpus(path));
    // One that doesn't fit is better than none: what it lacks is said when it is used.
    let found = looked.iter().find(fits).or_else(|| looked.iter().find(|path| path.is_file()));
    match found {
        Some(found) => Ok(found.clone()),
        None => Err(LibraryError::NotFound { looked }),
    }
}

/// Returns the folder that `make` keeps downloads in.
pub fn cache_folder() -> Option<PathBuf> {
    let set = |name: &str| env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    set("CAPVEC_CACHE").or_else(|| {
        let caches = set("XDG_CACHE_HOME").or_else(|| Some(set("HOME")?.join(".cache")));
        Some(caches?.join("capvec"))
    })
}

/// Loads the library and returns the process's one ONNX Runtime environment, with telemetry off and
/// its log lines in this program's log. Later calls return the first one's, whatever they name.
///
/// # Errors
///
/// When the library can't be used.
pub fn environment(path: &Path) -> Result<Environment, LibraryError> {
    static LOADED: Mutex<Option<Environment>> = Mutex::new(None);
    let mut loaded = lock(&LOADED);
    if let Some(environment) = &*loaded {
        return Ok(environment.clone());
    }
    let unusable = |reason: String| LibraryError::Unusable { path: path.into(), reason };
    let environment = ort::init_from(path)
        .map_err(|e| unusable(e.to_string()))?
        .with_name("capvec")
        .with_telemetry(false)
        .with_logger(Arc::new(log))
        .build()
        .map_err(|e| unusable(e.to_string()))?;
    environment.set_log_level(LogLevel::Warning);
    tracing::debug!(library = %path.display(), "loaded ONNX Runtime");
    *loaded = Some(environment.clone());
    Ok(environment)
}

fn log(level: LogLevel, _category: &str, _id: &str, location: &str, message: &str) {
    match level {
        LogLevel::Verbose | LogLevel::Info => tracing::debug!(location, "{message}"),
        LogLevel::Warning => tracing::warn!(location, "{message}"),
        LogLevel::Error | LogLevel::Fatal => tracing::error!(location, "{message}"),
    }
}

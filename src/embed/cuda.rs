//! CUDA's libraries, loaded one by one before ONNX Runtime's CUDA provider asks for them.
//!
//! The provider would find them only where the system's loader looks, and would name the first that
//! is missing and nothing else. Loaded beforehand from the folder of ONNX Runtime, they need no
//! `LD_LIBRARY_PATH`, and the error can say what to install. `ort` has a preloading of its own,
//! which fails where two libraries are missing that the provider doesn't need.

use std::path::{Path, PathBuf};

use thiserror::Error;

use super::device::Provider;
use crate::causes::with_causes;

/// The CUDA provider's library, beside ONNX Runtime's own. With it the library is one for GPUs.
pub const PROVIDER: &str = "libonnxruntime_providers_cuda.so";

/// TensorRT's.
const PROVIDER_TENSORRT: &str = "libonnxruntime_providers_tensorrt.so";

/// A library, and where it comes from.
struct Needed {
    file: &'static str,
    from: Origin,
}

/// Where a library comes from.
enum Origin {
    /// NVIDIA's driver, which is the machine's.
    Driver,
    /// This package on PyPI, from which `scripts/onnxruntime gpu` fetches it.
    Fetched(&'static str),
}

/// What the CUDA provider of ONNX Runtime 1.31 needs: each after those that it needs itself. What
/// TensorRT's needs beside them is left to the loader, whose message names what is missing.
const CUDA: [Needed; 5] = [
    Needed { file: "libcuda.so.1", from: Origin::Driver },
    Needed { file: "libcudart.so.13", from: Origin::Fetched("nvidia-cuda-runtime 13") },
    Needed { file: "libcublasLt.so.13", from: Origin::Fetched("nvidia-cublas 13") },
    Needed { file: "libcublas.so.13", from: Origin::Fetched("nvidia-cublas 13") },
    Needed { file: "libcurand.so.10", from: Origin::Fetched("nvidia-curand 10") },
];

impl Needed {
    /// Returns what to do where it is missing from `folder`.
    fn remedy(&self, folder: &Path) -> String {
        let place =
            format!("put it into {} or where the loader looks (LD_LIBRARY_PATH)", folder.display());
        match self.from {
            Origin::Driver => {
                "It is of NVIDIA's driver: install version 580 or later; a container must \
                             be started with the GPU (docker run --gpus all, or a GPU in the pod's \
                             limits)"
                    .into()
            }
            Origin::Fetched(package) => format!(
                "`scripts/onnxruntime gpu` fetches it with ONNX Runtime; else take it from the PyPI \
                 package {package} and {place}"
            ),
        }
    }
}

/// Why there is no GPU.
#[derive(Debug, Error)]
pub enum CudaError {
    /// ONNX Runtime's library is one without the provider.
    #[error(
        "{library} can't use a GPU: it has no {provider} beside it. Get the library for GPUs with \
         `scripts/onnxruntime gpu`, or take both out of the PyPI wheel onnxruntime-gpu, and name it in \
         ORT_DYLIB_PATH, --onnxruntime or embed.onnxruntime"
    )]
    NoProvider {
        /// ONNX Runtime's library.
        library: PathBuf,
        /// The file that isn't there.
        provider: &'static str,
    },
    /// A library that the provider needs is missing.
    #[error("the GPU's library {file} can't be loaded: {reason}. {remedy}")]
    Missing {
        /// The library.
        file: &'static str,
        /// What the loader said.
        reason: String,
        /// What to do.
        remedy: String,
    },
}

/// Returns whether ONNX Runtime's library is one for GPUs.
pub fn is_for_gpus(library: &Path) -> bool {
    library.with_file_name(PROVIDER).is_file()
}

/// Loads what a provider needs, and keeps it loaded. Loading it again costs nothing.
///
/// # Errors
///
/// With the first library that is missing.
pub fn preload(library: &Path, provider: Provider) -> Result<(), CudaError> {
    let providers: &[&'static str] = match provider {
        Provider::Cpu => return Ok(()),
        Provider::Cuda => &[PROVIDER],
        Provider::TensorRt => &[PROVIDER, PROVIDER_TENSORRT],
    };
    for &provider in providers {
        if !library.with_file_name(provider).is_file() {
            return Err(CudaError::NoProvider { library: library.into(), provider });
        }
    }
    let folder = library.parent().unwrap_or(Path::new("."));
    CUDA.iter().try_for_each(|needed| load(needed, folder))
}

/// Loads a library from the folder, or else from where the system's loader looks.
fn load(needed: &Needed, folder: &Path) -> Result<(), CudaError> {
    let beside = folder.join(needed.file);
    let path = if beside.is_file() { beside } else { PathBuf::from(needed.file) };
    ort::util::preload_dylib(&path).map_err(|error| CudaError::Missing {
        file: needed.file,
        // The loader's own words are the cause.
        reason: with_causes(&error),
        remedy: needed.remedy(folder),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn the_cpus_library_is_named_with_what_it_lacks() {
        let folder = tempfile::tempdir().unwrap();
        let library = folder.path().join("libonnxruntime.so");
        assert!(!is_for_gpus(&library));
        preload(&library, Provider::Cpu).unwrap();
        let error = preload(&library, Provider::Cuda).unwrap_err().to_string();
        for part in ["libonnxruntime.so", PROVIDER, "scripts/onnxruntime gpu", "embed.onnxruntime"]
        {
            assert!(error.contains(part), "{part}: {error}");
        }
        fs::write(folder.path().join(PROVIDER), "").unwrap();
        assert!(is_for_gpus(&library));
        let error = preload(&library, Provider::TensorRt).unwrap_err().to_string();
        assert!(error.contains(PROVIDER_TENSORRT), "{error}");
    }

    #[test]
    fn a_library_that_cannot_be_loaded_is_named_with_what_to_do() {
        let folder = tempfile::tempdir().unwrap();
        let place = folder.path().display().to_string();
        for needed in &CUDA {
            // It is there and no library: what the loader says of it is passed on.
            fs::write(folder.path().join(needed.file), "no library").unwrap();
            let error = load(needed, folder.path()).unwrap_err().to_string();
            let (package, is_fetched) = match needed.from {
                Origin::Driver => ("driver: install version 580", false),
                Origin::Fetched(package) => (package, true),
            };
            assert!(error.contains(needed.file) && error.contains(package), "{error}");
            assert_eq!(error.contains("scripts/onnxruntime gpu"), is_fetched, "{error}");
            assert!(error.contains(&place), "{error}");
        }
        let missing = Needed { file: "libcapvec-has-none.so.1", from: Origin::Driver };
        let error = load(&missing, folder.path()).unwrap_err().to_string();
        assert!(error.contains("libcapvec-has-none.so.1: cannot open"), "{error}");
    }
}

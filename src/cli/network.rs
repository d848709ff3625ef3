//! The options of how a package is run, for the commands that run one without a worker.

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use clap::builder::RangedU64ValueParser;

use super::above_zero;
use crate::batch::policy::Limits;
use crate::config;
use crate::embed::calibration::TOKENS_UNMEASURED;
use crate::embed::device::DeviceChoice;
use crate::embed::load::{load_one, threads_of_one};
use crate::embed::onnx::{LoadError, OnnxEmbedder};
use crate::model::package::Package;

/// Tokens of a batch where nobody says otherwise.
const TOKENS_DEFAULT: NonZeroUsize =
    NonZeroUsize::new(TOKENS_UNMEASURED).expect("a batch has tokens");

/// How a package is run.
#[derive(Debug, Args)]
pub struct NetworkArgs {
    /// Most tokens of a batch.
    #[arg(long, value_name = "N", default_value_t = TOKENS_DEFAULT, value_parser = above_zero::<NonZeroUsize>)]
    batch_tokens: NonZeroUsize,
    /// Most captions of a batch.
    #[arg(long, value_name = "N", default_value_t = config::BatchOptions::default().captions_max, value_parser = above_zero::<NonZeroUsize>)]
    batch_captions: NonZeroUsize,
    /// Compute threads; 0 takes as many as the process may use CPUs.
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = threads())]
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

impl NetworkArgs {
    /// Loads the package.
    ///
    /// # Errors
    ///
    /// When ONNX Runtime isn't found, or can't run the package.
    pub fn load(&self, package: &Package) -> Result<OnnxEmbedder, LoadError> {
        self.runtime.load(package, threads_of_one(self.threads))
    }

    /// Returns the limits of a batch, for captions that are all there: nothing is waited for.
    pub fn limits(&self) -> Limits {
        Limits {
            tokens_max: self.batch_tokens.get(),
            captions_max: self.batch_captions.get(),
            wait_max: Duration::ZERO,
        }
    }
}

/// Returns what reads `--threads`.
pub fn threads() -> RangedU64ValueParser<usize> {
    RangedU64ValueParser::new().range(0..=config::THREADS_MAX as u64)
}

fn one_device(text: &str) -> Result<DeviceChoice, String> {
    match text.parse()? {
        DeviceChoice::Named(devices) if devices.len() > 1 => {
            Err(format!("{text:?} are several devices; one is due here"))
        }
        choice => Ok(choice),
    }
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;

    use clap::Command;
    use clap::builder::TypedValueParser;

    use super::*;
    use crate::config::THREADS_MAX;

    #[test]
    fn there_may_be_as_many_threads_as_the_worker_takes() {
        for (number, is_allowed) in [(THREADS_MAX, true), (THREADS_MAX + 1, false)] {
            let option = ("embed.threads".to_owned(), number.to_string());
            let faults = config::load(None, &[option]).unwrap_err().to_string();
            assert_eq!(!faults.contains("embed.threads"), is_allowed, "{faults}");
            let flag = number.to_string();
            let parsed = threads().parse_ref(&Command::new("capvec"), None, OsStr::new(&flag));
            assert_eq!(parsed.is_ok(), is_allowed, "--threads {flag}");
        }
    }
}

//! The devices that a network can run on, as `embed.device` and `--device` name them.
//!
//! A device that is named is a condition: where it can't be had, that is an error. `auto` is a
//! wish: it takes a GPU where ONNX Runtime's library is one for GPUs, and where that fails it falls
//! back to the CPU, and says so.

use std::collections::BTreeSet;
use std::error::Error;
use std::fmt;
use std::fs;
use std::path::Path;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::cuda;
use crate::causes::with_causes;

/// What runs a network where there is none.
pub const NONE: &str = "none";

/// Most devices of a worker.
const DEVICES_MAX: usize = 64;

/// The execution providers of ONNX Runtime that a network can run in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Provider {
    /// The CPU.
    Cpu,
    /// NVIDIA's GPUs.
    Cuda,
    /// NVIDIA's GPUs, by TensorRT, and by CUDA where TensorRT has nothing for a node.
    TensorRt,
}

impl Provider {
    /// All providers.
    const ALL: [Provider; 3] = [Provider::Cpu, Provider::Cuda, Provider::TensorRt];

    /// Returns ONNX Runtime's name for it, which is its label in the metrics.
    pub fn as_label(self) -> &'static str {
        match self {
            Provider::Cpu => "CPUExecutionProvider",
            Provider::Cuda => "CUDAExecutionProvider",
            Provider::TensorRt => "TensorrtExecutionProvider",
        }
    }

    /// Returns its name in the configuration.
    fn as_str(self) -> &'static str {
        match self {
            Provider::Cpu => "cpu",
            Provider::Cuda => "cuda",
            Provider::TensorRt => "tensorrt",
        }
    }
}

/// One device: `cpu`, `cuda:0`, `tensorrt:1`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Device {
    /// What runs the network on it.
    pub provider: Provider,
    /// Which of the machine's GPUs, as CUDA counts them; 0 for the CPU.
    pub ordinal: u16,
}

impl Device {
    /// The CPU.
    pub const CPU: Device = Device { provider: Provider::Cpu, ordinal: 0 };

    /// The first GPU, by CUDA.
    pub const FIRST_GPU: Device = Device { provider: Provider::Cuda, ordinal: 0 };

    /// Returns whether it is a GPU.
    pub fn is_gpu(self) -> bool {
        self.provider != Provider::Cpu
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.provider {
            Provider::Cpu => f.write_str("cpu"),
            provider => write!(f, "{}:{}", provider.as_str(), self.ordinal),
        }
    }
}

impl FromStr for Device {
    type Err = String;

    fn from_str(text: &str) -> Result<Device, String> {
        let wrong = || format!("{text:?} is no device; cpu, cuda:0 or tensorrt:0 would be one");
        if text == "cpu" {
            return Ok(Device::CPU);
        }
        let (name, ordinal) = text.split_once(':').ok_or_else(wrong)?;
        let is_named =
            |provider: &Provider| *provider != Provider::Cpu && provider.as_str() == name;
        let provider = Provider::ALL.into_iter().find(is_named).ok_or_else(wrong)?;
        // A sign would be parsed too.
        let is_number = ordinal.bytes().all(|byte| byte.is_ascii_digit());
        let ordinal = ordinal.parse().ok().filter(|_| is_number).ok_or_else(wrong)?;
        Ok(Device { provider, ordinal })
    }
}

/// What is asked for: `auto`, or devices by name, several with commas between them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum DeviceChoice {
    /// A GPU where ONNX Runtime's library is one for GPUs and the GPU can be had, else the CPU.
    #[default]
    Auto,
    /// These and no others: the CPU alone, or GPUs of one provider, each once.
    Named(Vec<Device>),
}

impl fmt::Display for DeviceChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DeviceChoice::Auto => f.write_str("auto"),
            DeviceChoice::Named(devices) => {
                let names: Vec<String> = devices.iter().map(Device::to_string).collect();
                f.write_str(&names.join(","))
            }
        }
    }
}

impl FromStr for DeviceChoice {
    type Err = String;

    fn from_str(text: &str) -> Result<DeviceChoice, String> {
        if text == "auto" {
            return Ok(DeviceChoice::Auto);
        }
        let devices: Vec<Device> =
            text.split(',').map(|name| name.trim().parse()).collect::<Result<_, _>>()?;
        if devices.len() > DEVICES_MAX {
            return Err(format!(
                "{} devices are too many; {DEVICES_MAX} may be named",
                devices.len()
            ));
        }
        if devices.iter().collect::<BTreeSet<_>>().len() < devices.len() {
            return Err(format!(
                "{text:?} names a device twice; embed.sessions says how many passes run on each"
            ));
        }
        // One rate of passes, one budget, one name for what runs: the devices must be of one kind.
        if devices.iter().any(|device| device.provider != devices[0].provider) {
            return Err(format!("{text:?} mixes devices of different kinds"));
        }
        Ok(DeviceChoice::Named(devices))
    }
}

impl TryFrom<String> for DeviceChoice {
    type Error = String;

    fn try_from(text: String) -> Result<DeviceChoice, String> {
        text.parse()
    }
}

impl From<DeviceChoice> for String {
    fn from(choice: DeviceChoice) -> String {
        choice.to_string()
    }
}

/// The devices that were taken, and what was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Taken {
    /// They run the network. All are of one provider.
    pub devices: Vec<Device>,
    /// What should run it.
    pub wanted: Provider,
}

impl Taken {
    /// Returns what runs the network.
    pub fn running(&self) -> Provider {
        self.devices.first().map_or(Provider::Cpu, |device| device.provider)
    }
}

/// Loads on the devices that are asked for, and returns what was loaded and on which. `library` is
/// ONNX Runtime's. With `auto`, the reason for which a GPU can't be had is logged as a warning.
///
/// # Errors
///
/// When a named device can't be had, or with `auto` not even the CPU.
pub fn take<T, E: Error>(
    choice: &DeviceChoice,
    library: &Path,
    mut load: impl FnMut(&[Device]) -> Result<T, E>,
) -> Result<(T, Taken), E> {
    if let DeviceChoice::Named(devices) = choice {
        let wanted = devices[0].provider;
        return Ok((load(devices)?, Taken { devices: devices.clone(), wanted }));
    }
    let on_cpu = vec![Device::CPU];
    if !cuda::is_for_gpus(library) {
        return Ok((load(&on_cpu)?, Taken { devices: on_cpu, wanted: Provider::Cpu }));
    }
    let wanted = Device::FIRST_GPU;
    match load(&[wanted]) {
        Ok(loaded) => Ok((loaded, Taken { devices: vec![wanted], wanted: wanted.provider })),
        Err(error) => {
            let reason = with_causes(&error);
            tracing::warn!(device = %wanted, reason, "the GPU can't be had; the network runs on the CPU");
            Ok((load(&on_cpu)?, Taken { devices: on_cpu, wanted: wanted.provider }))
        }
    }
}

/// Returns the names of the GPUs that NVIDIA's driver shows, each once; empty where it shows none.
pub fn gpu_names() -> Vec<String> {
    let Ok(gpus) = fs::read_dir("/proc/driver/nvidia/gpus") else { return Vec::new() };
    let information = gpus.flatten().map(|gpu| gpu.path().join("information"));
    let texts = information.filter_map(|path| fs::read_to_string(path).ok());
    let names: BTreeSet<String> = texts.filter_map(|text| model_of(&text)).collect();
    names.into_iter().collect()
}

fn model_of(information: &str) -> Option<String> {
    let line = information.lines().find_map(|line| line.strip_prefix("Model:"))?;
    Some(line.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::embed::library::LibraryError;

    #[test]
    fn names_are_read_and_written() {
        for text in ["auto", "cpu", "cuda:0", "tensorrt:3", "cuda:1,cuda:0"] {
            let choice: DeviceChoice = text.parse().unwrap();
            assert_eq!(choice.to_string(), text);
        }
        let spaced: DeviceChoice = "cuda:0, cuda:7".parse().unwrap();
        assert_eq!(spaced.to_string(), "cuda:0,cuda:7");
    }

    #[test]
    fn other_names_are_refused_with_a_reason() {
        for (text, reason) in [
            ("", "is no device"),
            ("gpu", "is no device"),
            ("cuda", "is no device"),
            ("cuda:", "is no device"),
            ("cuda:-1", "is no device"),
            ("cuda:+1", "is no device"),
            ("cuda:70000", "is no device"),
            ("cpu:0", "is no device"),
            ("auto,cpu", "is no device"),
            ("cuda:0,cuda:0", "twice"),
            ("cpu,cuda:0", "different kinds"),
            ("cuda:0,tensorrt:1", "different kinds"),
        ] {
            let error = text.parse::<DeviceChoice>().unwrap_err();
            assert!(error.contains(reason), "{text:?}: {error}");
        }
        let many: Vec<String> = (0..65).map(|n| format!("cuda:{n}")).collect();
        assert!(many.join(",").parse::<DeviceChoice>().unwrap_err().contains("too many"));
    }

    /// A folder with ONNX Runtime's library, which is for GPUs or isn't.
    fn library(is_for_gpus: bool) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        if is_for_gpus {
            fs::write(folder.path().join(cuda::PROVIDER), "").unwrap();
        }
        folder
    }

    fn no_gpu(devices: &[Device]) -> Result<(), LibraryError> {
        match devices {
            [Device::CPU] => Ok(()),
            _ => Err(LibraryError::NotFound { looked: Vec::new() }),
        }
    }

    #[test]
    fn a_named_device_is_taken_or_nothing() {
        let folder = library(true);
        let path = folder.path().join("libonnxruntime.so");
        let choice: DeviceChoice = "cuda:0,cuda:1".parse().unwrap();
        let (loaded, taken) =
            take(&choice, &path, |devices| Ok::<_, LibraryError>(devices.len())).unwrap();
        assert_eq!((loaded, taken.devices.len(), taken.running()), (2, 2, Provider::Cuda));
        assert!(take(&choice, &path, no_gpu).is_err());
    }

    #[test]
    fn auto_falls_back_where_there_should_be_a_gpu() {
        let folder = library(true);
        let path = folder.path().join("libonnxruntime.so");
        let ((), taken) = take(&DeviceChoice::Auto, &path, no_gpu).unwrap();
        assert_eq!(taken, Taken { devices: vec![Device::CPU], wanted: Provider::Cuda });
        let all = |_: &[Device]| Ok::<_, LibraryError>(());
        let ((), taken) = take(&DeviceChoice::Auto, &path, all).unwrap();
        assert_eq!(taken, Taken { devices: vec![Device::FIRST_GPU], wanted: Provider::Cuda });
    }

    #[test]
    fn auto_with_the_cpus_library_is_the_cpu() {
        let folder = library(false);
        let path = folder.path().join("libonnxruntime.so");
        let ((), taken) = take(&DeviceChoice::Auto, &path, no_gpu).unwrap();
        assert_eq!(taken, Taken { devices: vec![Device::CPU], wanted: Provider::Cpu });
    }

    #[test]
    fn the_driver_names_its_gpus() {
        let text = "Model: \t\t NVIDIA H100 80GB HBM3\nIRQ:   \t\t 187\n";
        assert_eq!(model_of(text).as_deref(), Some("NVIDIA H100 80GB HBM3"));
        assert_eq!(model_of("IRQ: 1\n"), None);
    }
}

//! The configuration: one section a stage, what each option is, and its default.
//!
//! [`load()`] reads the layers (the defaults, the TOML file, `CAPVEC__SECTION__KEY` variables,
//! `--set` flags) and reports every fault at once by the option's path. What it returns has been
//! checked: nothing later in the program can fail for a bad option. `config/capvec.toml` in the
//! repository documents every option; a test holds it equal to the defaults.

mod fault;
#[cfg(test)]
mod fixtures;
mod load;
mod login;
mod merge;
mod mistakes;
mod options;
mod properties;
mod ready;
mod secrets;
mod together;
mod transactional;
mod validate;
mod values;
mod words;

use serde::{Deserialize, Serialize};

pub use fault::{ConfigError, Fault};
pub use load::load;
pub use options::{
    AdminOptions, BatchOptions, DeliveryMode, DeliveryOptions, EmbedOptions, EmbedderKind,
    InputFormat, InputOptions, KafkaOptions, LogFormat, LogOptions, MetricsOptions, ModelOptions,
    OnEmpty, OnReject, OutputOptions, RejectOptions, TokenizeOptions,
};
pub use properties::Properties;
pub use ready::IdFrom;
pub use validate::THREADS_MAX;
pub use values::as_written;

/// All options.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// The cluster, and how to talk to it.
    pub kafka: KafkaOptions,
    /// The topic of captions.
    pub input: InputOptions,
    /// The model package.
    pub model: ModelOptions,
    /// Text to token ids.
    pub tokenize: TokenizeOptions,
    /// When a batch is cut.
    pub batch: BatchOptions,
    /// The network.
    pub embed: EmbedOptions,
    /// The topic of vectors.
    pub output: OutputOptions,
    /// What becomes of messages that can't become vectors.
    pub reject: RejectOptions,
    /// How much is in flight, and when offsets are committed.
    pub delivery: DeliveryOptions,
    /// Where metrics and probes are served.
    pub admin: AdminOptions,
    /// What the metrics tell.
    pub metrics: MetricsOptions,
    /// The log.
    pub log: LogOptions,
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    #[test]
    fn the_documented_file_is_the_defaults() {
        let text = include_str!("../../config/capvec.toml");
        let given: Value =
            serde_json::to_value(toml::from_str::<toml::Table>(text).unwrap()).unwrap();
        let documented: Config = serde_json::from_value(given.clone()).unwrap();
        assert_eq!(documented, Config::default());
        // Every option stands in the file, and each has its comment.
        let defaults = serde_json::to_value(Config::default()).unwrap();
        for (section, options) in defaults.as_object().unwrap() {
            for option in options.as_object().unwrap().keys() {
                assert!(given[section].get(option).is_some(), "{section}.{option} is undocumented");
            }
        }
        let mut previous = "";
        for line in text.lines() {
            if line.contains(" = ") && !line.starts_with('#') {
                assert!(previous.starts_with('#'), "no comment above: {line}");
            }
            previous = line;
        }
    }
}

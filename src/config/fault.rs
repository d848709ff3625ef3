//! What is wrong with the configuration: a fault names one option, and an error has all of them.
//!
//! Neither quotes a value that may be a secret: both may end up in a log.

use std::fmt;
use std::path::PathBuf;

use serde::Serialize;
use thiserror::Error;

/// A fault of one option.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Fault {
    /// The option, `section.key`.
    #[serde(rename = "option")]
    pub path: String,
    /// What is wrong with it, and what to do.
    pub message: String,
    /// The variable that sets it, where one does.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub variable: Option<String>,
}

impl Fault {
    pub(super) fn new(path: impl Into<String>, message: impl Into<String>) -> Fault {
        Fault { path: path.into(), message: message.into(), variable: None }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.path, self.message)?;
        match &self.variable {
            Some(variable) => write!(f, " (set by the variable {variable})"),
            None => Ok(()),
        }
    }
}

/// Why there is no configuration.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// The file isn't there.
    #[error("{0}: no such file")]
    NoFile(PathBuf),
    /// There is a folder.
    #[error("{0} is a folder; --config names the file, such as {shown}", shown = .0.join("capvec.toml").display())]
    Folder(PathBuf),
    /// No layer sets anything.
    #[error(
        "no option is set: pass --config FILE (config/capvec.toml documents every option), or set options by \
         CAPVEC__SECTION__KEY variables or --set SECTION.KEY=VALUE"
    )]
    Nothing,
    /// A layer can't be parsed.
    #[error("{0}")]
    Syntax(String),
    /// Options are wrong.
    #[error("{}", lines(.0))]
    Faults(Vec<Fault>),
}

impl ConfigError {
    /// Returns the faults, one by one, where options are wrong.
    pub fn faults(&self) -> &[Fault] {
        match self {
            ConfigError::Faults(faults) => faults,
            _ => &[],
        }
    }
}

fn lines(faults: &[Fault]) -> String {
    let number = faults.len();
    let mut text =
        format!("the configuration has {number} fault{}:", if number == 1 { "" } else { "s" });
    for fault in faults {
        text.push_str(&format!("\n  {fault}"));
    }
    text
}

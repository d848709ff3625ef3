//! How checks are told: a line each, for people or for programs.

use std::io;
use std::process::ExitCode;

use serde::Serialize;
use serde_json::json;

use crate::causes::with_causes;
use crate::cli::{say, tell};
use crate::config::{ConfigError, Fault};

/// What became of a check.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Status {
    Ok,
    Failed,
    Warning,
    Skipped,
}

impl Status {
    /// Returns the word of a line for people; what is wrong catches the eye.
    fn as_word(self) -> &'static str {
        match self {
            Status::Ok => "ok",
            Status::Failed => "FAILED",
            Status::Warning => "WARNING",
            Status::Skipped => "skipped",
        }
    }
}

/// A check as `--json` tells of it.
#[derive(Debug, Serialize)]
struct Told<'a> {
    check: &'a str,
    status: Status,
    detail: &'a str,
    /// The same one by one, where options are wrong.
    #[serde(skip_serializing_if = "<[Fault]>::is_empty")]
    faults: &'a [Fault],
}

/// The checks so far.
pub(super) struct Checks {
    json: bool,
    failed: bool,
    /// Why lines are missing from standard output, other than that nobody reads them.
    untold: Option<io::Error>,
}

impl Checks {
    /// Begins; `json` has the lines as objects.
    pub(super) fn new(json: bool) -> Checks {
        Checks { json, failed: false, untold: None }
    }

    /// Runs a check and prints its line; returns what it gave where it went well.
    pub(super) fn check<T>(
        &mut self,
        what: &str,
        check: impl FnOnce() -> anyhow::Result<(String, T)>,
    ) -> Option<T> {
        match check() {
            Ok((said, value)) => {
                self.tell(Status::Ok, what, &said);
                Some(value)
            }
            Err(error) => {
                self.tell(Status::Failed, what, &with_causes(&*error));
                None
            }
        }
    }

    /// As [`Checks::check`], of something that has to be there for it; `why` it isn't otherwise.
    pub(super) fn check_with<T, U>(
        &mut self,
        what: &str,
        needed: Option<&U>,
        why: &str,
        check: impl FnOnce(&U) -> anyhow::Result<(String, T)>,
    ) -> Option<T> {
        match needed {
            Some(needed) => self.check(what, || check(needed)),
            None => {
                self.tell(Status::Skipped, what, why);
                None
            }
        }
    }

    /// Prints a check's line. That nobody reads changes nothing of the checks and of the exit code.
    pub(super) fn tell(&mut self, status: Status, check: &str, detail: &str) {
        self.say(Told { check, status, detail, faults: &[] });
    }

    /// Prints the line of a configuration that is none.
    pub(super) fn tell_faults(&mut self, check: &str, error: &ConfigError) {
        let (detail, faults) = (&*error.to_string(), error.faults());
        self.say(Told { check, status: Status::Failed, detail, faults });
    }

    fn say(&mut self, told: Told<'_>) {
        let Told { check, status, detail, .. } = told;
        self.failed |= status == Status::Failed;
        let told = if self.json {
            say(json!(told))
        } else {
            let colon = if detail.is_empty() { "" } else { ": " };
            say(format_args!("{:<7} {check}{colon}{detail}", status.as_word()))
        };
        if let Err(error) = told
            && error.kind() != io::ErrorKind::BrokenPipe
        {
            self.untold.get_or_insert(error);
        }
    }

    /// Says what was not to be told, and returns the exit code.
    pub(super) fn end(&self) -> ExitCode {
        if let Some(error) = &self.untold {
            tell(format_args!("error: {error}"));
        }
        if self.failed || self.untold.is_some() { ExitCode::FAILURE } else { ExitCode::SUCCESS }
    }
}

//! The log: text for people on a terminal, one JSON object a line elsewhere. It goes to standard
//! error; standard output is for results.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;

use crate::config::{LogFormat, LogOptions};

/// Starts the log. A second call changes nothing.
pub fn start(log: &LogOptions) {
    let terminal = std::io::stderr().is_terminal();
    let as_json = match log.format {
        LogFormat::Auto => !terminal,
        LogFormat::Text => false,
        LogFormat::Json => true,
    };
    let filter = log.filter.parse::<EnvFilter>().expect("validated: log.filter");
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        // On a terminal, unless NO_COLOR or the like says otherwise.
        .with_ansi(console::colors_enabled_stderr() && !as_json)
        // It would be said on standard error, which is what failed, and panic there.
        .log_internal_errors(false);
    // An error means that a log has been started already.
    drop(match as_json {
        true => builder.json().flatten_event(true).try_init(),
        false => builder.try_init(),
    });
}

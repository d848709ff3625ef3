//! The command line: one file a subcommand, and what several of them share.

pub mod bench;
mod captions;
pub mod check;
pub mod compare;
pub mod demo;
pub mod dlq;
pub mod embed;
pub mod embedded;
pub mod logging;
pub mod model;
mod network;
mod output;
pub mod progress;
mod reading;
pub mod run;
mod spread;
pub mod terminal;
pub mod tokenize;
pub mod top;

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::str::FromStr;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use rdkafka::producer::Producer;
use thiserror::Error;

use crate::causes::with_causes;
use crate::config::{Config, ConfigError, load};
use crate::kafka::asker::Asker;
use crate::kafka::topics::{Inquiry, TopicError};
use crate::kafka::writable::asking;
use crate::shutdown::Shutdown;

/// The exit code for a bad configuration, `EX_USAGE` of sysexits.h. A bad command line is clap's:
/// 2.
const EXIT_USAGE: u8 = 64;

/// The exit code of a command that a signal ended before it was done: 128 and SIGINT's 2, as shells
/// say it of those that SIGINT kills.
const EXIT_INTERRUPTED: u8 = 130;

/// A command was told to stop before it was done.
#[derive(Debug, Error)]
#[error("interrupted")]
struct Interrupted;

/// More often than this nobody measures anything: medians are known long before.
const REPEATS_MAX: u64 = 1000;

/// How long the brokers may take to answer where somebody waits for what a command says of them.
const PATIENCE: Duration = Duration::from_secs(10);

/// Turns a Kafka topic of captions into a Kafka topic of vectors.
#[derive(Debug, Parser)]
#[command(name = "capvec", version, max_term_width = 100, arg_required_else_help = true)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Runs the worker: captions in, vectors out, until SIGTERM.
    Run(run::RunArgs),
    /// Checks a configuration, then the brokers, the topics and the model: one line a check.
    Check(check::CheckArgs),
    /// Embeds a file of captions, in its order, without Kafka.
    Embed(embed::EmbedArgs),
    /// Prints the token ids of captions, one JSON array a line.
    Tokenize(tokenize::TokenizeArgs),
    /// Makes, shows, verifies and compares model packages.
    #[command(subcommand)]
    Model(model::ModelCommand),
    /// Shows dead letters, and sends them back to the topic that they came from.
    #[command(subcommand)]
    Dlq(dlq::DlqCommand),
    /// Shows the worker at work, with a broker inside the process and synthetic weights.
    Demo(demo::DemoArgs),
    /// Shows a running worker in the terminal: rates, latencies, batches, lag.
    Top(top::TopArgs),
    /// Measures the network, the host's share of the work, and the whole worker.
    #[command(subcommand)]
    Bench(bench::BenchCommand),
}

/// Where the configuration is.
#[derive(Debug, Args)]
pub struct ConfigArgs {
    /// The TOML file. config/capvec.toml documents every option.
    #[arg(long, short, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Sets an option over the file and the CAPVEC__SECTION__KEY variables; may be repeated.
    #[arg(long = "set", value_name = "SECTION.KEY=VALUE", value_parser = key_value)]
    pub overrides: Vec<(String, String)>,
}

impl ConfigArgs {
    /// Reads and checks the configuration.
    ///
    /// # Errors
    ///
    /// With every fault of every option.
    pub fn load(&self) -> Result<Config, ConfigError> {
        load(self.config.as_deref(), &self.overrides)
    }
}

fn key_value(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.into(), value.into())),
        _ => Err("SECTION.KEY=VALUE is due".into()),
    }
}

/// Returns how long the brokers may take to answer such a command for a topic.
fn patience(config: &Config) -> Duration {
    PATIENCE.min(config.kafka.startup_timeout)
}

/// Waits until the brokers answer, and returns their ids.
fn ids_of_brokers(config: &Config, shutdown: &Shutdown) -> anyhow::Result<Vec<i32>> {
    let client = asking(config, Asker::default())?;
    let inquiry = Inquiry {
        client: client.client(),
        serve: &|_| (),
        brokers: &config.kafka.brokers,
        patience: patience(config),
        shutdown,
    };
    Ok(inquiry.ids_of_brokers()?)
}

/// Reads a number of what there must be some of.
fn above_zero<N: FromStr>(text: &str) -> Result<N, String> {
    text.parse().map_err(|_| "a whole number above 0 is due".into())
}

/// Parses the arguments, runs the command, and says what went wrong.
pub fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Run(args) => run::run(&args),
        Command::Check(args) => return check::run(&args),
        Command::Embed(args) => embed::run(&args),
        Command::Tokenize(args) => tokenize::run(&args),
        Command::Model(command) => model::run(command),
        Command::Dlq(command) => dlq::run(command),
        Command::Demo(args) => demo::run(&args),
        Command::Top(args) => top::run(&args),
        Command::Bench(command) => bench::run(command),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            let said = with_causes(&*error);
            tracing::error!("{said}");
            if !tracing::event_enabled!(tracing::Level::ERROR) {
                tell(format_args!("error: {said}"));
            }
            if error.is::<ConfigError>() {
                ExitCode::from(EXIT_USAGE)
            } else if is_interrupted(&error) {
                ExitCode::from(EXIT_INTERRUPTED)
            } else {
                ExitCode::FAILURE
            }
        }
    }
}

/// Prints a line of results. Unlike `println!` it doesn't panic where nobody reads.
///
/// # Errors
///
/// When standard output can't be written.
fn say(line: impl std::fmt::Display) -> std::io::Result<()> {
    writeln!(output::stdout(), "{line}")
}

/// Says a line beside the results, on standard error. That nobody hears it is no reason to end:
/// `eprintln!` would panic.
fn tell(line: impl std::fmt::Display) {
    drop(writeln!(std::io::stderr().lock(), "{line}"));
}

fn is_interrupted(error: &anyhow::Error) -> bool {
    error.is::<Interrupted>() || matches!(error.downcast_ref(), Some(TopicError::Stopped { .. }))
}

/// Nobody reads standard output any more, who may have seen enough; `output` has the rest.
fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        let kind = match cause.downcast_ref::<serde_json::Error>() {
            Some(error) => error.io_error_kind(),
            None => cause.downcast_ref::<std::io::Error>().map(std::io::Error::kind),
        };
        kind == Some(std::io::ErrorKind::BrokenPipe)
    })
}

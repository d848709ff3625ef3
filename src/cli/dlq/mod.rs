//! `capvec dlq`: shows dead letters, and sends them back to the topic that they came from.

mod letters;
mod list;
mod newest;
mod replay;
mod selection;
mod sender;

use clap::Subcommand;

pub use list::ListArgs;
pub use replay::ReplayArgs;

/// The subcommands.
#[derive(Debug, Subcommand)]
pub enum DlqCommand {
    /// Prints the dead letters, one a line, and how many there are of each reason.
    List(ListArgs),
    /// Sends dead letters back to input.topic as they were before they were rejected. Without
    /// --execute it only says what it would send.
    Replay(ReplayArgs),
}

/// Runs the subcommand.
///
/// # Errors
///
/// When the configuration is wrong, or a topic can't be read or written.
pub fn run(command: DlqCommand) -> anyhow::Result<()> {
    match command {
        DlqCommand::List(args) => list::run(args),
        DlqCommand::Replay(args) => replay::run(args),
    }
}

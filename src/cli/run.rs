//! `capvec run`: the worker.

use clap::Args;

use super::{ConfigArgs, logging};
use crate::pipeline;
use crate::shutdown::Shutdown;

/// Arguments of `capvec run`.
#[derive(Debug, Args)]
pub struct RunArgs {
    #[command(flatten)]
    config: ConfigArgs,
}

/// Runs the worker until it is told to stop or fails.
///
/// # Errors
///
/// When the configuration is wrong, or a stage fails.
pub fn run(args: &RunArgs) -> anyhow::Result<()> {
    let config = args.config.load()?;
    logging::start(&config.log);
    let shutdown = Shutdown::default();
    shutdown.on_signals()?;
    pipeline::start(&config, &shutdown)?.wait()?;
    tracing::info!("stopped; what was embedded is settled and committed");
    Ok(())
}

//! `capvec run`: the worker.

use clap::Args;

use super::{ConfigArgs, logging};
use crate::causes::with_causes;
use crate::pipeline;
use crate::shutdown::{Shutdown, Wanted};

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
    match pipeline::start(&config, &shutdown) {
        Ok(worker) => worker.wait()?,
        // Told to stop before it ran: it has taken nothing.
        Err(error) if shutdown.wanted() == Wanted::Drain => {
            tracing::info!("stopped before the start: {}", with_causes(&*error));
            return Ok(());
        }
        Err(error) => return Err(error),
    }
    tracing::info!("stopped; what was embedded is settled and committed");
    Ok(())
}

//! `capvec bench`: how fast each part is, beside what it can be compared with.
//!
//! `encoder` measures forward passes against the machine's matrix products and against padded
//! batches; `host` the worker without a network against a bare client that moves the same bytes;
//! `worker` the whole worker, its throughput against the same network without Kafka, and its
//! latencies under an open load. All that is compared is measured in turn within one run, several
//! times over, and medians are shown: on a machine that others share, only that is comparable.

mod arrivals;
mod captions;
mod chart;
mod cluster;
mod encoder;
mod feed;
mod flops;
mod host;
mod matmul;
mod offline;
mod process;
mod relay;
mod report;
mod stats;
mod worker;

use clap::Subcommand;

/// The subcommands.
#[derive(Debug, Subcommand)]
pub enum BenchCommand {
    /// The network alone: tokens a second by batch size and lengths, and packed against padded.
    Encoder(encoder::EncoderArgs),
    /// All but the network: the worker's CPU time a caption against a bare Kafka client's.
    Host(host::HostArgs),
    /// The whole worker: throughput against the network alone, and latency under load.
    Worker(worker::WorkerArgs),
    /// The bare client of `bench host`, which starts it.
    #[command(hide = true)]
    Relay(relay::RelayArgs),
}

/// Runs the subcommand.
///
/// # Errors
///
/// When something that it needs isn't there, or a part of it fails.
pub fn run(command: BenchCommand) -> anyhow::Result<()> {
    match command {
        BenchCommand::Encoder(args) => encoder::run(&args),
        BenchCommand::Host(args) => host::run(&args),
        BenchCommand::Worker(args) => worker::run(&args),
        BenchCommand::Relay(args) => relay::run(&args),
    }
}

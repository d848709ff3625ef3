//! stub
#![allow(missing_docs)]
#[derive(Debug, clap::Args)]
pub struct DemoArgs {}
pub fn run(_: &DemoArgs) -> anyhow::Result<()> { Ok(()) }

//! `capvec dlq list`: one line a letter.

use std::fmt::Display;

use clap::Args;
use serde_json::json;

use super::selection::Selection;
use crate::cli::{say, tell};
use crate::shutdown::Shutdown;

/// Arguments of `capvec dlq list`.
#[derive(Debug, Args)]
pub struct ListArgs {
    #[command(flatten)]
    selection: Selection,
    /// Prints a JSON object a letter.
    #[arg(long)]
    json: bool,
}

/// Lists the letters of all topics.
pub(super) fn run(args: ListArgs) -> anyhow::Result<()> {
    let config = args.selection.config.load()?;
    let mut selected = args.selection.open(&config, None, &Shutdown::default())?;
    while let Some((letter, cause)) = selected.next()? {
        if args.json {
            let key = letter.message.key.as_deref().map(String::from_utf8_lossy);
            say(json!({
                "partition": letter.partition,
                "offset": letter.offset,
                "reason": cause.reason,
                "message": cause.detail,
                "source": {
                    "topic": cause.topic,
                    "partition": cause.partition,
                    "offset": cause.offset,
                },
                "key": key,
                "value_bytes": letter.message.value.as_ref().map(Vec::len),
                "timestamp_ms": letter.message.timestamp_ms,
            }))?;
        } else {
            let (partition, offset) = (or_unknown(cause.partition), or_unknown(cause.offset));
            let line = format!(
                "{}/{}/{}  {}/{partition}/{offset}  {}: {}",
                selected.topic,
                letter.partition,
                letter.offset,
                cause.topic,
                cause.reason,
                cause.detail
            );
            // Another program's sentences have line breaks, and anybody's may have a terminal's commands.
            say(line.replace(char::is_control, " "))?;
        }
    }
    tell(selected.in_words());
    Ok(())
}

fn or_unknown(number: Option<impl Display>) -> String {
    number.map_or("?".into(), |number| number.to_string())
}

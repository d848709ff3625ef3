//! `capvec dlq list`: one line a letter.

use std::fmt::Display;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use clap::Args;
use serde_json::{Value, json};

use super::letters::{Cause, Letter};
use super::selection::Selection;
use crate::cli::{say, tell};
use crate::shutdown::Shutdown;

/// Arguments of `capvec dlq list`.
#[derive(Debug, Args)]
pub struct ListArgs {
    #[command(flatten)]
    selection: Selection,
    /// Only the newest letters, so many of all partitions together, the oldest of them first.
    /// Between partitions the letters' timestamps tell which is newer.
    #[arg(
        long,
        value_name = "NUMBER",
        value_parser = clap::value_parser!(u16).range(1..=LAST_MAX),
        conflicts_with_all = ["from", "max"]
    )]
    last: Option<u16>,
    /// Prints a JSON object a letter.
    #[arg(long)]
    json: bool,
    /// Prints each message's value too: its beginning, or with --json all of it.
    #[arg(long)]
    values: bool,
}

/// Characters of a value that people see.
const SHOWN: usize = 200;

/// Most letters of `--last`: they are held in memory.
const LAST_MAX: i64 = 1000;

/// Lists the letters of all topics.
pub(super) fn run(args: ListArgs) -> anyhow::Result<()> {
    let ListArgs { selection, last, json, values } = args;
    let config = selection.config.load()?;
    let mut selected = selection.open(&config, None, &Shutdown::default())?;
    if let Some(number) = last {
        for (letter, cause) in selected.newest(number.into())? {
            say_letter(&selected.topic, &letter, &cause, json, values)?;
        }
    } else {
        while let Some((letter, cause)) = selected.next()? {
            say_letter(&selected.topic, &letter, &cause, json, values)?;
        }
    }
    tell(selected.in_words());
    Ok(())
}

/// Prints a letter of the dead-letter topic `topic`.
fn say_letter(
    topic: &str,
    letter: &Letter,
    cause: &Cause,
    as_json: bool,
    values: bool,
) -> std::io::Result<()> {
    if as_json {
        let mut object = json!({
            "partition": letter.partition,
            "offset": letter.offset,
            "reason": cause.reason,
            "message": cause.detail,
            "source": {
                "topic": cause.topic,
                "partition": cause.partition,
                "offset": cause.offset,
            },
            "value_bytes": letter.message.value.as_ref().map(Vec::len),
            "timestamp_ms": letter.message.timestamp_ms,
        });
        put_bytes(&mut object, "key", letter.message.key.as_deref());
        if values {
            put_bytes(&mut object, "value", letter.message.value.as_deref());
        }
        return say(object);
    }
    let (partition, offset) = (or_unknown(cause.partition), or_unknown(cause.offset));
    let line = format!(
        "{topic}/{}/{}  {}/{partition}/{offset}  {}: {}",
        letter.partition, letter.offset, cause.topic, cause.reason, cause.detail
    );
    say(one_line(&line))?;
    if values {
        say(format_args!("    {}", shown(letter.message.value.as_deref())))?;
    }
    Ok(())
}

/// Puts bytes into a JSON object: as text where they are one, and else whole all the same, as
/// `NAME_base64`.
fn put_bytes(object: &mut Value, name: &str, bytes: Option<&[u8]>) {
    match bytes.map(std::str::from_utf8).transpose() {
        Ok(text) => object[name] = json!(text),
        Err(_) => object[format!("{name}_base64")] = json!(bytes.map(|b| STANDARD.encode(b))),
    }
}

/// Another program's sentences have line breaks, and anybody's may have a terminal's commands.
fn one_line(text: &str) -> String {
    text.replace(char::is_control, " ")
}

/// Returns the beginning of a message's value, and how much more there is.
fn shown(value: Option<&[u8]>) -> String {
    let Some(value) = value else { return "no value".into() };
    let text = String::from_utf8_lossy(value);
    let mut rest = text.chars();
    let beginning: String = rest.by_ref().take(SHOWN).collect();
    let more = match rest.as_str().len() {
        0 => String::new(),
        bytes => format!("… and {bytes} bytes more"),
    };
    one_line(&beginning) + &more
}

fn or_unknown(number: Option<impl Display>) -> String {
    number.map_or("?".into(), |number| number.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_that_are_no_text_are_told_whole() {
        let mut object = json!({});
        put_bytes(&mut object, "key", Some(b"\x00\xff"));
        put_bytes(&mut object, "value", Some("ä".as_bytes()));
        put_bytes(&mut object, "none", None);
        assert_eq!(object, json!({ "key_base64": "AP8=", "value": "ä", "none": null }));
    }

    #[test]
    fn a_value_is_shown_on_one_line_and_not_at_any_length() {
        assert_eq!(shown(None), "no value");
        assert_eq!(shown(Some(b"not\x1b[2J json\n")), "not [2J json ");
        assert_eq!(shown(Some(b"\xff")), "\u{fffd}");
        let long = "ä".repeat(SHOWN + 3);
        assert_eq!(shown(Some(long.as_bytes())), "ä".repeat(SHOWN) + "… and 6 bytes more");
    }
}

//! `capvec dlq replay`: dead letters go back as the messages that they were.
//!
//! A letter is replayed when all in-sync replicas of the input topic have it. The first letter that
//! can't be sent ends the replay. Letters stay in their topic, and nobody remembers which of them
//! were replayed: the command says from where to go on, which is never behind a letter that wasn't
//! acknowledged.

use std::collections::HashMap;
use std::time::Duration;

use anyhow::{bail, ensure};
use clap::Args;
use rdkafka::producer::Producer;
use serde_json::json;

use super::letters::{Cause, Letter};
use super::selection::{Selected, Selection};
use super::sender::Sender;
use crate::cli::progress::{LongWork, Unit};
use crate::cli::{self, Interrupted, say, tell};
use crate::clock::since_epoch;
use crate::config::Config;
use crate::kafka::asker::Asker;
use crate::kafka::timestamps::TimestampBounds;
use crate::kafka::topics::look_up;
use crate::kafka::writable::{asking, batch_limit_of, topic_options};
use crate::shutdown::{Shutdown, Wanted};

/// How long the brokers may take to tell the topic's options, once they have answered for it.
const OPTIONS_PATIENCE: Duration = Duration::from_secs(10);

/// Arguments of `capvec dlq replay`.
#[derive(Debug, Args)]
pub struct ReplayArgs {
    #[command(flatten)]
    selection: Selection,
    /// Sends the letters. Without it the command says what it would send, and sends nothing.
    #[arg(long)]
    execute: bool,
    /// Gives the messages the current time instead of their own: for letters that are older than
    /// the input topic keeps messages.
    #[arg(long)]
    stamp_now: bool,
    /// Prints what was done as a JSON object.
    #[arg(long)]
    json: bool,
}

/// Sends the selected letters back.
pub(super) fn run(args: ReplayArgs) -> anyhow::Result<()> {
    let config = args.selection.config.load()?;
    let shutdown = Shutdown::default();
    shutdown.on_signals()?;
    let target = Target::look_up(&config, args.stamp_now, &shutdown)?;
    let mut selected = args.selection.open(&config, Some(&target.topic), &shutdown)?;
    let mut sender = match args.execute {
        true => Some(Sender::new(&config, target.batch_max, shutdown.clone())?),
        false => None,
    };
    let mut result = send_all(&mut selected, &target, sender.as_mut(), &shutdown);
    if let Some(sender) = &mut sender {
        // Whatever ended it, what is on its way decides from where to go on.
        let finished = sender.finish(config.kafka.delivery_timeout);
        result = result.and(finished);
    }
    // That nobody reads the report doesn't hide what went wrong.
    let reported = report(&selected, &target, sender.as_ref(), args.json);
    result?;
    Ok(reported?)
}

fn send_all(
    selected: &mut Selected,
    target: &Target,
    mut sender: Option<&mut Sender>,
    shutdown: &Shutdown,
) -> anyhow::Result<()> {
    let what = if sender.is_some() { "replaying" } else { "reading" };
    let mut progress = LongWork::start(what, Unit::Records, None);
    while let Some((letter, cause)) = selected.next()? {
        let (done, total) = selected.letters.progress();
        progress.update(done, total, &selected.in_words());
        if let Some(sender) = &mut sender {
            sender.enter(&letter);
        }
        target.check_time(&letter)?;
        if let Some(sender) = &mut sender {
            let partition = target.partition_for(&cause);
            sender.send(&target.topic, partition, &letter, target.stamp_now)?;
        }
    }
    let (done, total) = selected.letters.progress();
    progress.update(done, total, &selected.in_words());
    progress.finish();
    ensure!(shutdown.wanted() == Wanted::Run, Interrupted);
    Ok(())
}

fn report(
    selected: &Selected,
    target: &Target,
    sender: Option<&Sender>,
    as_json: bool,
) -> std::io::Result<()> {
    // A dry run has moved nothing.
    let next = sender.map(|sender| sender.go_on_from(selected.letters.positions()));
    if as_json {
        return say(json!({
            "dead_letter_topic": selected.topic,
            "topic": target.topic,
            "executed": sender.is_some(),
            "selected": selected.by_reason,
            "replayed": sender.map_or(0, |sender| sender.replayed),
            "left_out": {
                "other_topics": selected.of_others,
                "same_message": selected.repeated,
                "without_reason": selected.without_reason,
            },
            "next": next,
        }));
    }
    say(selected.in_words())?;
    let Some(sender) = sender else {
        if selected.by_reason.is_empty() {
            return Ok(());
        }
        return say(format_args!("nothing was sent; --execute sends them to {}", target.topic));
    };
    say(format_args!("replayed to {}, each acknowledged: {}", target.topic, sender.replayed))?;
    let next = next.unwrap_or_default();
    if let Some((partition, offset)) = sender.never_taken(&next) {
        say(format_args!(
            "no broker takes {partition}:{offset} as it is; --from {partition}:{} in the place of \
             --from {partition}:{offset} leaves it out",
            offset + 1
        ))?;
    }
    let next: Vec<_> =
        next.iter().map(|(partition, offset)| format!(" --from {partition}:{offset}")).collect();
    let same = if selected.is_by_reason() { " for the same --reason" } else { "" };
    let (topic, next) = (&selected.topic, next.concat());
    say(format_args!("they stay in {topic}; to go on behind them{same}:{next}"))
}

/// Where the letters go.
struct Target {
    topic: String,
    partitions: i32,
    timestamps: TimestampBounds,
    /// The most bytes of a batch that it takes.
    batch_max: Option<usize>,
    stamp_now: bool,
}

impl Target {
    fn look_up(config: &Config, stamp_now: bool, shutdown: &Shutdown) -> anyhow::Result<Target> {
        let client = asking(config, Asker::default())?;
        let (brokers, topic) = (&config.kafka.brokers, &config.input.topic);
        let patience = cli::patience(config);
        let partitions =
            look_up(client.client(), brokers, topic, "input.topic", patience, shutdown)?;
        // A client may be forbidden to ask; then it isn't known, as it isn't to any other producer.
        let options = topic_options(config, topic, OPTIONS_PATIENCE).unwrap_or_else(|reason| {
            tell(format_args!(
                "the options of {topic:?} can't be read, so letters' times aren't looked at: {reason}"
            ));
            HashMap::new()
        });
        Ok(Target {
            topic: topic.clone(),
            partitions: partitions as i32,
            timestamps: TimestampBounds::of(&options),
            batch_max: batch_limit_of(&options),
            stamp_now,
        })
    }

    /// Refuses a letter that the brokers wouldn't take for its time, with all that is in its batch,
    /// or might delete before it is read.
    fn check_time(&self, letter: &Letter) -> anyhow::Result<()> {
        let now_ms = since_epoch().as_millis() as i64;
        let Some(timestamp_ms) = letter.message.timestamp_ms.filter(|_| !self.stamp_now) else {
            return Ok(());
        };
        if let Err(bounds) = self.timestamps.check(timestamp_ms, now_ms) {
            bail!(
                "the letter {}:{} can't be sent: {:?} doesn't take {bounds}; --stamp-now gives it the \
                 current time",
                letter.partition,
                letter.offset,
                self.topic
            );
        }
        if let Some(retention_ms) = self.timestamps.too_old(timestamp_ms, now_ms) {
            bail!(
                "the letter {}:{} is older than the {:?} topic's retention.ms of {retention_ms}, so it could be \
                 deleted before it is read; --stamp-now gives it the current time",
                letter.partition,
                letter.offset,
                self.topic
            );
        }
        Ok(())
    }

    /// Returns the partition that the message had, if the topic has it: so its key stays where it
    /// was, whatever chose the partition. Any other goes by its key.
    fn partition_for(&self, cause: &Cause) -> Option<i32> {
        cause.partition.filter(|partition| (0..self.partitions).contains(partition))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tracked::RawMessage;

    fn target(retention: Option<Duration>, stamp_now: bool) -> Target {
        let retention_ms = retention.map_or("-1".into(), |kept| kept.as_millis().to_string());
        let options = [("retention.ms", retention_ms), ("cleanup.policy", "delete".into())];
        let options = options.map(|(name, value)| (name.to_owned(), value)).into();
        Target {
            topic: "captions".into(),
            partitions: 3,
            timestamps: TimestampBounds::of(&options),
            batch_max: None,
            stamp_now,
        }
    }

    #[test]
    fn a_message_goes_back_to_its_partition_if_there_is_one() {
        let target = target(None, false);
        let partition_for = |partition| {
            let cause = Cause {
                topic: "captions".into(),
                partition,
                offset: None,
                reason: "not_json".into(),
                detail: String::new(),
            };
            target.partition_for(&cause)
        };
        assert_eq!(partition_for(Some(2)), Some(2));
        assert_eq!(partition_for(Some(3)), None);
        assert_eq!(partition_for(Some(-1)), None);
        assert_eq!(partition_for(None), None);
    }

    #[test]
    fn a_letter_that_would_be_deleted_is_refused() {
        let letter = |age: Duration| {
            let then = since_epoch() - age;
            let timestamp_ms = Some(then.as_millis() as i64);
            let message = RawMessage { timestamp_ms, ..RawMessage::default() };
            Letter { partition: 0, offset: 0, message, cause: None }
        };
        let (day, hour) = (Duration::from_secs(86_400), Duration::from_secs(3600));
        let refuses = |target: Target, age| target.check_time(&letter(age)).is_err();
        assert!(refuses(target(Some(day), false), day));
        assert!(!refuses(target(Some(day), false), hour));
        assert!(!refuses(target(Some(day), true), day));
        assert!(!refuses(target(None, false), day));
    }
}

//! Which dead letters are meant.

use std::collections::{BTreeMap, HashSet};
use std::hash::{BuildHasher, RandomState};

use anyhow::{Context, bail};
use clap::Args;
use clap::builder::PossibleValuesParser;

use super::letters::{Cause, Letter, Letters};
use crate::cli::ConfigArgs;
use crate::cli::progress::counted;
use crate::config::Config;
use crate::shutdown::Shutdown;
use crate::tracked::RejectReason;

/// Arguments of both subcommands.
#[derive(Debug, Args)]
pub(super) struct Selection {
    #[command(flatten)]
    pub(super) config: ConfigArgs,
    /// Only letters with this reason; may be repeated.
    #[arg(long = "reason", value_name = "REASON", value_parser = reasons())]
    reasons: Vec<String>,
    /// Where to begin in a partition of the dead-letter topic; may be repeated. Other partitions
    /// begin at their beginning.
    #[arg(long = "from", value_name = "PARTITION:OFFSET", value_parser = position)]
    from: Vec<(i32, i64)>,
    /// Stops after so many letters.
    #[arg(long, value_name = "NUMBER")]
    max: Option<u64>,
}

fn reasons() -> PossibleValuesParser {
    RejectReason::ALL.map(RejectReason::as_label).into()
}

fn position(text: &str) -> Result<(i32, i64), String> {
    let parsed = text
        .split_once(':')
        .and_then(|(partition, offset)| Some((partition.parse().ok()?, offset.parse().ok()?)));
    match parsed {
        Some((partition, offset)) if partition >= 0 && offset >= 0 => Ok((partition, offset)),
        _ => Err("PARTITION:OFFSET is due, such as 0:123".into()),
    }
}

/// The letters that were selected, while they are read.
pub(super) struct Selected {
    /// The dead-letter topic.
    pub(super) topic: String,
    pub(super) letters: Letters,
    reasons: Vec<String>,
    /// Letters of other topics are left out, if there is one.
    of_topic: Option<String>,
    left: u64,
    /// How many were selected, by reason.
    pub(super) by_reason: BTreeMap<String, u64>,
    /// How many came from other topics.
    pub(super) of_others: u64,
    /// The messages that were selected, by partition and offset in the topic that they are from,
    /// and by what they are: a topic that is made anew has its offsets again.
    messages: HashSet<(i32, i64, u64)>,
    digests: RandomState,
    /// How many are of a message that another letter is of: of another group, or of a worker that
    /// was stopped in between.
    pub(super) repeated: u64,
    /// How many records have no reason in their headers.
    pub(super) without_reason: u64,
}

impl Selection {
    /// Opens the dead-letter topic; letters of topics other than `of_topic` are left out.
    pub(super) fn open(
        self,
        config: &Config,
        of_topic: Option<&str>,
        shutdown: &Shutdown,
    ) -> anyhow::Result<Selected> {
        let Some(topic) = config.dead_letter_topic() else {
            bail!("there is no dead-letter topic; reject.topic names it");
        };
        let mut named = HashSet::new();
        if let Some((partition, _)) =
            self.from.iter().find(|(partition, _)| !named.insert(partition))
        {
            bail!("--from names partition {partition} twice");
        }
        let letters = Letters::open(config, topic, &self.from, shutdown)
            .with_context(|| format!("the dead letters in {topic:?} can't be read"))?;
        Ok(Selected {
            topic: topic.to_owned(),
            letters,
            reasons: self.reasons,
            of_topic: of_topic.map(str::to_owned),
            left: self.max.unwrap_or(u64::MAX),
            by_reason: BTreeMap::new(),
            of_others: 0,
            messages: HashSet::new(),
            digests: RandomState::new(),
            repeated: 0,
            without_reason: 0,
        })
    }
}

impl Selected {
    /// Returns the next letter that is selected, and its cause.
    pub(super) fn next(&mut self) -> anyhow::Result<Option<(Letter, Cause)>> {
        while self.left > 0 {
            let letter = self.letters.next();
            let letter = letter
                .with_context(|| format!("reading the dead letters in {:?} failed", self.topic))?;
            let Some(mut letter) = letter else { return Ok(None) };
            let Some(cause) = letter.cause.take() else {
                self.without_reason += 1;
                continue;
            };
            if self.of_topic.as_ref().is_some_and(|topic| *topic != cause.topic) {
                self.of_others += 1;
            } else if self.reasons.is_empty() || self.reasons.contains(&cause.reason) {
                // Only of one topic are a partition and an offset a message.
                let place = cause.partition.zip(cause.offset).filter(|_| self.of_topic.is_some());
                if let Some((partition, offset)) = place {
                    let sent = (&letter.message.key, &letter.message.value);
                    if !self.messages.insert((partition, offset, self.digests.hash_one(sent))) {
                        self.repeated += 1;
                        continue;
                    }
                }
                self.left -= 1;
                *self.by_reason.entry(cause.reason.clone()).or_default() += 1;
                return Ok(Some((letter, cause)));
            }
        }
        Ok(None)
    }

    /// Returns whether letters of other reasons are left out.
    pub(super) fn is_by_reason(&self) -> bool {
        !self.reasons.is_empty()
    }

    /// Returns how many letters were selected, and what was left out, in words.
    pub(super) fn in_words(&self) -> String {
        let number: u64 = self.by_reason.values().sum();
        let mut words = counted(number, "dead letter");
        let of_reason = self.by_reason.iter().map(|(reason, number)| format!("{reason} {number}"));
        if number > 0 {
            words += &format!(": {}", of_reason.collect::<Vec<_>>().join(", "));
        }
        if self.of_others > 0 {
            words += &format!("; left out as from other topics: {}", self.of_others);
        }
        if self.repeated > 0 {
            words += &format!("; left out as of the same message: {}", self.repeated);
        }
        if self.without_reason > 0 {
            words += &format!("; left out as without a readable reason: {}", self.without_reason);
        }
        words
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_are_a_partition_and_an_offset() {
        assert_eq!(position("3:17"), Ok((3, 17)));
        for bad in ["3", "3:", ":17", "-1:2", "1:-2", "a:b", "1:2:3"] {
            assert!(position(bad).is_err(), "{bad}");
        }
    }
}

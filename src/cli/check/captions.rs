//! Reads messages of the input topic as a worker would, and says what would become of them.
//!
//! It joins no group, commits nothing, and takes nothing from a worker that runs.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{BorrowedMessage, Message};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use serde_json::Value;

use super::Status;
use crate::cli::{PATIENCE, patience};
use crate::config::{Config, OnEmpty, OnReject};
use crate::kafka::asker::Asker;
use crate::kafka::consumer::is_final;
use crate::kafka::consumer_properties;
use crate::kafka::topics::Inquiry;
use crate::shutdown::Shutdown;
use crate::tokenize::task::accept;
use crate::tokenize::{TokenizedCaption, Tokenizer};
use crate::tracked::{RejectReason, Rejection};
use crate::wire::caption::{CaptionDecoder, key_as_id};

/// Most messages with a value that are looked at.
const LOOKED_AT_MAX: usize = 100;

/// How long a request for the group's offsets may take; what is left of the whole is tried again.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(2);

/// Between two of these requests.
const PAUSE: Duration = Duration::from_millis(100);

/// How many offsets before the end of each partition it begins where nothing is left for the group.
const LAST_OFFSETS: i64 = 10;

/// Most places of text that are named of a message.
const PLACES_MAX: usize = 8;

/// Most names that a place of text has above it, itself included.
const DEPTH_MAX: usize = 4;

/// Most characters that are told of a name: it may be of any length.
const NAME_CHARS_MAX: usize = 40;

/// What was found in messages of the input topic.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Looked {
    /// Messages without a value, which say nothing of captions.
    tombstones: usize,
    /// Messages with a value.
    messages: usize,
    /// Those of them that would be rejected, by reason.
    rejected: BTreeMap<&'static str, OfReason>,
    /// The fewest and the most tokens of a caption, where there is a tokenizer.
    tokens: Option<(usize, usize)>,
    /// Captions of more tokens than the network takes.
    cut: usize,
}

/// The messages that would be rejected for a reason.
#[derive(Debug, PartialEq)]
struct OfReason {
    number: usize,
    /// Where the first of them lies, and what is wrong with it.
    first: String,
    /// Whether another `input.pointer` could mend it.
    is_of_pointer: bool,
}

/// Reads messages from where the group is, or the last ones where it has read all; says how many
/// and from where.
pub(super) fn read(
    config: &Config,
    tokenizer: Option<&Tokenizer>,
) -> anyhow::Result<(String, Looked)> {
    let mut properties = consumer_properties(config);
    properties.set("enable.partition.eof", "true");
    let consumer: BaseConsumer<Asker> = properties.create_with_context(Asker::default())?;
    let topic = &config.input.topic;
    let refused = RefCell::new(None);
    let inquiry = Inquiry {
        client: consumer.client(),
        serve: &|patience| note_refusal(&consumer, patience, &refused),
        brokers: &config.kafka.brokers,
        patience: patience(config),
        shutdown: &Shutdown::default(),
    };
    let partitions = inquiry.partitions_of(topic, "input.topic")?;
    let begins = begins_of_group(&consumer, config, partitions, &refused)?;
    let judge = Judge::new(config, tokenizer);
    let unreadable = || format!("{topic:?} can't be read");
    let mut looked = look_from(&consumer, &begins, &judge).with_context(unreadable)?;
    let group = &config.kafka.group;
    let mut said = match looked.read() {
        1 => format!("a message was read from where the group {group:?} would begin"),
        read => format!("{read} messages were read from where the group {group:?} would begin"),
    };
    if looked.messages == 0 {
        let last = last_offsets(&consumer, topic, partitions).with_context(unreadable)?;
        let found = look_from(&consumer, &last, &judge).with_context(unreadable)?;
        if found.messages > 0 {
            looked = found;
            let last = match looked.read() {
                1 => "the last message was read".into(),
                read => format!("the last {read} messages were read"),
            };
            said = format!("nothing is left for the group {group:?}, so {last}");
        }
    }
    if looked.read() == 0 {
        said = "nothing to read now".into();
    }
    Ok((format!("{topic}, {partitions} partitions; {said}"), looked))
}

/// Polls a consumer that has no messages yet, and notes in `refused` if the group isn't for it: of
/// that librdkafka tells once, and whoever asks for the group's offsets waits in vain.
fn note_refusal(
    consumer: &BaseConsumer<Asker>,
    patience: Duration,
    refused: &RefCell<Option<RDKafkaErrorCode>>,
) {
    if let Some(Err(error)) = consumer.poll(patience)
        && is_final(&error)
    {
        *refused.borrow_mut() = error.rdkafka_error_code();
    }
}

/// Returns from where a worker of the group would read; what the group has behind it no worker
/// will.
fn begins_of_group(
    consumer: &BaseConsumer<Asker>,
    config: &Config,
    partitions: usize,
    refused: &RefCell<Option<RDKafkaErrorCode>>,
) -> anyhow::Result<TopicPartitionList> {
    let topic = &config.input.topic;
    let mut list = TopicPartitionList::new();
    list.add_partition_range(topic, 0, partitions as i32 - 1);
    let group = &config.kafka.group;
    let deadline = Instant::now() + PATIENCE;
    let committed = loop {
        note_refusal(consumer, PAUSE, refused);
        if let Some(code) = *refused.borrow() {
            bail!("the brokers refuse the group {group:?} (kafka.group): {code}");
        }
        match consumer.committed_offsets(list.clone(), REQUEST_TIMEOUT) {
            Ok(committed) => break committed,
            // Of a group that is asked for the first time, the coordinator is still being found.
            Err(error) if Instant::now() < deadline && is_transient(&error) => {}
            Err(error) => {
                return Err(error).with_context(|| format!("the group {group:?} can't be read"));
            }
        }
    };
    list.set_all_offsets(Offset::Beginning)?;
    for partition in committed.elements() {
        if let Offset::Offset(_) = partition.offset() {
            list.set_partition_offset(topic, partition.partition(), partition.offset())?;
        }
    }
    Ok(list)
}

/// Returns the last offsets of the partitions that have any.
fn last_offsets(
    consumer: &BaseConsumer<Asker>,
    topic: &str,
    partitions: usize,
) -> anyhow::Result<TopicPartitionList> {
    let mut list = TopicPartitionList::new();
    for partition in 0..partitions as i32 {
        let (low, high) = consumer.fetch_watermarks(topic, partition, PATIENCE)?;
        if low < high {
            let begin = low.max(high - LAST_OFFSETS);
            list.add_partition_offset(topic, partition, Offset::Offset(begin))?;
        }
    }
    Ok(list)
}

/// Looks at messages up to the ends of all partitions, or so many as are enough. Errors that pass,
/// as of one of several brokers, are passed over, as the worker does.
fn look_from(
    consumer: &BaseConsumer<Asker>,
    begins: &TopicPartitionList,
    judge: &Judge<'_>,
) -> anyhow::Result<Looked> {
    // Assigned by hand, this joins no group.
    consumer.assign(begins)?;
    let partitions = begins.count();
    let deadline = Instant::now() + PATIENCE;
    let mut looked = Looked::default();
    let mut ends = BTreeSet::new();
    let mut trouble = None;
    while ends.len() < partitions && looked.messages < LOOKED_AT_MAX {
        match consumer.poll(deadline.saturating_duration_since(Instant::now())) {
            Some(Ok(message)) => looked.take(&message, judge),
            Some(Err(KafkaError::PartitionEOF(partition))) => drop(ends.insert(partition)),
            Some(Err(error)) if is_final(&error) => return Err(error.into()),
            Some(Err(error)) => trouble = Some(error),
            None => {}
        }
        if Instant::now() >= deadline {
            if looked.read() > 0 {
                break;
            }
            let reason = trouble.map_or("they say nothing".into(), |error| error.to_string());
            let without = partitions - ends.len();
            bail!(
                "{without} of {partitions} partitions didn't answer within {PATIENCE:?}: {reason}"
            );
        }
    }
    consumer.unassign()?;
    Ok(looked)
}

fn is_transient(error: &KafkaError) -> bool {
    matches!(
        error.rdkafka_error_code(),
        Some(
            RDKafkaErrorCode::OperationTimedOut
                | RDKafkaErrorCode::NotCoordinator
                | RDKafkaErrorCode::CoordinatorNotAvailable
                | RDKafkaErrorCode::CoordinatorLoadInProgress
        )
    )
}

/// Tells what would become of a message, but for the network.
struct Judge<'a> {
    decoder: CaptionDecoder,
    needs_key: bool,
    on_empty: OnEmpty,
    /// `None` where the package has none that can be used.
    tokenizer: Option<&'a Tokenizer>,
}

impl Judge<'_> {
    fn new<'a>(config: &Config, tokenizer: Option<&'a Tokenizer>) -> Judge<'a> {
        Judge {
            decoder: config.decoder(),
            needs_key: config.key_is_id(),
            on_empty: config.input.on_empty,
            tokenizer,
        }
    }

    /// Returns the tokens of the caption in a message, if they are known, or why it would be
    /// rejected.
    fn judge(
        &self,
        key: Option<&[u8]>,
        value: &[u8],
    ) -> Result<Option<TokenizedCaption>, Rejection> {
        let caption = self.decoder.decode(value)?;
        if self.needs_key {
            key_as_id(key)?;
        }
        let Some(tokenizer) = self.tokenizer else { return Ok(None) };
        accept(tokenizer.tokenize(&caption.text), self.on_empty).map(Some)
    }
}

impl Looked {
    /// Returns how many messages were read.
    fn read(&self) -> usize {
        self.tombstones + self.messages
    }

    fn take(&mut self, message: &BorrowedMessage<'_>, judge: &Judge<'_>) {
        let Some(value) = message.payload() else {
            self.tombstones += 1;
            return;
        };
        let place = format!("{}/{}/{}", message.topic(), message.partition(), message.offset());
        self.count(&place, value, judge.judge(message.key(), value));
    }

    /// Counts a message at `place` by what would become of it.
    fn count(
        &mut self,
        place: &str,
        value: &[u8],
        judged: Result<Option<TokenizedCaption>, Rejection>,
    ) {
        self.messages += 1;
        match judged {
            Ok(None) => {}
            Ok(Some(tokens)) => {
                let number = tokens.ids.len();
                let (fewest, most) = self.tokens.unwrap_or((number, number));
                self.tokens = Some((fewest.min(number), most.max(number)));
                self.cut += usize::from(tokens.truncated);
            }
            Err(Rejection { reason, detail }) => {
                let is_of_pointer =
                    matches!(reason, RejectReason::CaptionMissing | RejectReason::CaptionNotText);
                let of_reason = self.rejected.entry(reason.as_label()).or_insert_with(|| {
                    let texts = if is_of_pointer { texts_in_words(value) } else { String::new() };
                    OfReason {
                        number: 0,
                        first: format!("{place}: {detail}{texts}"),
                        is_of_pointer,
                    }
                });
                of_reason.number += 1;
            }
        }
    }

    /// Returns what would become of the messages: a fault where all would be rejected, or so many
    /// that the worker would stop; `None` where there is none to tell of.
    pub(super) fn verdict(&self, config: &Config) -> Option<(Status, String)> {
        if self.messages == 0 {
            return None;
        }
        let number = self.messages;
        let rejected: usize = self.rejected.values().map(|of_reason| of_reason.number).sum();
        let Some(most) = self.rejected.values().max_by_key(|of_reason| of_reason.number) else {
            let mut said = match number {
                1 => "the message that was read has one".into(),
                _ => format!("all {number} messages that were read have one"),
            };
            if let Some((fewest, most)) = self.tokens {
                let range =
                    if fewest == most { most.to_string() } else { format!("{fewest} to {most}") };
                said += &format!(", of {range} tokens");
            }
            if self.cut > 0 {
                said += &format!("; {} of them would be cut to the model's limit", self.cut);
            }
            return Some((Status::Ok, said));
        };
        let by_reason: Vec<_> = self
            .rejected
            .iter()
            .map(|(reason, of_reason)| format!("{reason} {}", of_reason.number))
            .collect();
        let (by_reason, first) = (by_reason.join(", "), &most.first);
        Some(if rejected < number {
            let share = rejected as f64 / number as f64;
            let percent = 100.0 * share;
            let said = format!(
                "{rejected} of the {number} messages that were read ({percent:.0} %) would be rejected: \
                 {by_reason}; {first}"
            );
            match stops_worker(config, share) {
                Some(why) => (Status::Failed, format!("{said}; {why}")),
                None => (Status::Warning, said),
            }
        } else {
            let all = match number {
                1 => "the message that was read would be rejected".into(),
                _ => format!("all {number} messages that were read would be rejected"),
            };
            let to_do = if most.is_of_pointer {
                "; set input.pointer to where the captions stand"
            } else {
                ""
            };
            (Status::Failed, format!("{all}: {by_reason}; {first}{to_do}"))
        })
    }
}

/// Returns why a worker wouldn't go on, were this share of all messages rejected.
fn stops_worker(config: &Config, share: f64) -> Option<String> {
    let reject = &config.reject;
    if config.dead_letter_topic().is_none() && reject.on_reject == OnReject::Stop {
        return Some("the worker would stop at the first, as there is no reject.topic".into());
    }
    let allowed = reject.breaker_share;
    (share > allowed).then(|| {
        format!(
            "the worker would stop at more than {:.0} % of {} (reject.breaker_share)",
            100.0 * allowed,
            reject.breaker_window
        )
    })
}

/// Returns where text stands in a message in which no caption was found. Names alone are told: what
/// stands there is for none but its readers.
fn texts_in_words(json: &[u8]) -> String {
    let mut places = places_of_text(json);
    if places.is_empty() {
        return ", and text nowhere".into();
    }
    let more = if places.len() > PLACES_MAX { " and elsewhere" } else { "" };
    places.truncate(PLACES_MAX);
    format!(", but text at {}{more}", places.join(", "))
}

/// Returns pointers to texts of a JSON, one more than are told at most, those with the fewest names
/// first.
fn places_of_text(json: &[u8]) -> Vec<String> {
    let Ok(json) = serde_json::from_slice::<Value>(json) else { return Vec::new() };
    let mut places = Vec::new();
    let mut left = VecDeque::from([(String::new(), 0, &json)]);
    while let Some((place, depth, value)) = left.pop_front() {
        match value {
            Value::String(_) if place.is_empty() => places.push("\"\"".into()),
            Value::String(_) if places.len() <= PLACES_MAX => places.push(place),
            Value::Object(map) if depth < DEPTH_MAX => {
                left.extend(
                    map.iter().map(|(name, value)| {
                        (format!("{place}/{}", shown(name)), depth + 1, value)
                    }),
                );
            }
            // The others of a list are mostly as its first.
            Value::Array(list) if depth < DEPTH_MAX => {
                left.extend(list.first().map(|value| (format!("{place}/0"), depth + 1, value)));
            }
            _ => {}
        }
    }
    places
}

/// Returns a name as it stands in a pointer, and not at any length. It may have a terminal's
/// commands in it.
fn shown(name: &str) -> String {
    let mut shown: String = name.chars().take(NAME_CHARS_MAX).collect();
    if shown.len() < name.len() {
        shown.push('…');
    }
    shown.replace(char::is_control, " ").replace('~', "~0").replace('/', "~1")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::embedded::EmbeddedBroker;
    use rdkafka::types::{RDKafkaApiKey, RDKafkaRespErr};
    use serde_json::json;

    fn judge() -> Judge<'static> {
        Judge::new(&Config::default(), None)
    }

    /// The defaults, with a topic for dead letters.
    fn with_dead_letters() -> Config {
        let mut config = Config::default();
        config.reject.topic = "dead".into();
        config
    }

    fn looked(values: &[&str]) -> Looked {
        let mut looked = Looked::default();
        for (offset, value) in values.iter().enumerate() {
            let value = value.as_bytes();
            looked.count(&format!("captions/0/{offset}"), value, judge().judge(None, value));
        }
        looked
    }

    #[test]
    fn no_caption_at_the_pointer_is_a_fault_that_says_where_text_is() {
        let other = r#"{"text": "a secret", "meta": {"lang": "sv", "n": 1}}"#;
        let (status, said) = looked(&[other]).verdict(&with_dead_letters()).unwrap();
        assert_eq!(status, Status::Failed);
        assert_eq!(
            said,
            "the message that was read would be rejected: caption_missing 1; captions/0/0: nothing \
             stands at /caption, but text at /text, /meta/lang; set input.pointer to where the \
             captions stand"
        );
        let (status, said) =
            looked(&["no json", other, other]).verdict(&with_dead_letters()).unwrap();
        assert_eq!(status, Status::Failed);
        let all = "all 3 messages that were read would be rejected: caption_missing 2, not_json 1; \
                   captions/0/1: ";
        assert!(said.starts_with(all), "{said}");
        let (_, said) = looked(&[r#"{"caption": 3}"#]).verdict(&with_dead_letters()).unwrap();
        assert!(
            said.contains("a number stands at /caption") && said.contains("text nowhere"),
            "{said}"
        );
        let (status, said) = looked(&["no json"]).verdict(&with_dead_letters()).unwrap();
        assert_eq!(status, Status::Failed);
        assert!(said.contains("not_json 1") && !said.contains("input.pointer"), "{said}");
    }

    #[test]
    fn a_group_that_is_refused_is_told_as_that() {
        let broker = EmbeddedBroker::start(&[("captions", 1)]).unwrap();
        let refusals = [RDKafkaRespErr::RD_KAFKA_RESP_ERR_GROUP_AUTHORIZATION_FAILED; 1000];
        broker.cluster().request_errors(RDKafkaApiKey::FindCoordinator, &refusals);
        let mut config = Config::default();
        config.kafka.brokers = broker.bootstrap();
        config.kafka.group = "theirs".into();
        config.input.topic = "captions".into();
        let said = read(&config, None).unwrap_err().to_string();
        assert!(
            said.starts_with("the brokers refuse the group \"theirs\" (kafka.group): "),
            "{said}"
        );
        assert!(said.contains("GroupAuthorizationFailed"), "{said}");
    }

    #[test]
    fn some_captions_are_a_warning_with_the_share_of_the_others() {
        let good = r#"{"caption": "a fox"}"#;
        let (status, said) = looked(&[good, "{}", good, "{}", "no json", good])
            .verdict(&with_dead_letters())
            .unwrap();
        assert_eq!(status, Status::Warning);
        let share = "3 of the 6 messages that were read (50 %) would be rejected: caption_missing 2, \
                     not_json 1; captions/0/1: nothing stands at /caption";
        assert!(said.starts_with(share) && !said.contains("set input.pointer"), "{said}");
        let (status, said) = looked(&[good, good]).verdict(&with_dead_letters()).unwrap();
        assert_eq!((status, &*said), (Status::Ok, "all 2 messages that were read have one"));
        assert_eq!(looked(&[]).verdict(&with_dead_letters()), None);
    }

    #[test]
    fn so_many_rejections_that_the_worker_stops_are_a_fault() {
        let mut values = [r#"{"caption": "a fox"}"#; 25];
        values[0] = "no json";
        let few = looked(&values);
        values[1..24].fill("no json");
        let many = looked(&values);
        let mut config = with_dead_letters();
        assert_eq!(few.verdict(&config).unwrap().0, Status::Warning);
        let (status, said) = many.verdict(&config).unwrap();
        assert_eq!(status, Status::Failed);
        let end = "; the worker would stop at more than 50 % of 10000 (reject.breaker_share)";
        assert!(said.starts_with("24 of the 25 ") && said.ends_with(end), "{said}");
        config.reject.breaker_share = 1.0;
        assert_eq!(many.verdict(&config).unwrap().0, Status::Warning, "any part is allowed");

        config.reject.topic.clear();
        let (status, said) = few.verdict(&config).unwrap();
        assert_eq!(status, Status::Failed);
        assert!(said.ends_with("would stop at the first, as there is no reject.topic"), "{said}");
        config.reject.on_reject = OnReject::Skip;
        assert_eq!(few.verdict(&config).unwrap().0, Status::Warning);
    }

    #[test]
    fn places_of_text_are_bounded_and_harmless() {
        let places = |json: Value| places_of_text(json.to_string().as_bytes());
        assert_eq!(places(json!("a")), ["\"\""]);
        assert_eq!(places(json!({"a/b~": ["x", "y"], "z": "t"})), ["/z", "/a~1b~0/0"]);
        assert_eq!(places(json!({"\u{1b}[2J": "x"})), ["/ [2J"]);
        let long = "ä".repeat(NAME_CHARS_MAX + 1);
        assert_eq!(places(json!({ long: "x" })), [format!("/{}…", "ä".repeat(NAME_CHARS_MAX))]);
        assert_eq!(places(json!({"1": {"2": {"3": {"4": "x"}}}})), ["/1/2/3/4"]);
        assert_eq!(places(json!({"1": {"2": {"3": {"4": {"5": "x"}}}}})), [""; 0]);
        let many: serde_json::Map<_, _> = (0..100).map(|i| (i.to_string(), "x".into())).collect();
        let said = texts_in_words(Value::Object(many).to_string().as_bytes());
        assert_eq!(said, ", but text at /0, /1, /10, /11, /12, /13, /14, /15 and elsewhere");
    }
}

//! What would become of messages of the input topic, but for the network.

use std::collections::BTreeMap;

use rdkafka::message::{BorrowedMessage, Message};

use super::lines::Status;
use super::texts::texts_in_words;
use crate::cli::progress::counted;
use crate::config::{Config, OnEmpty, OnReject};
use crate::tokenize::task::accept;
use crate::tokenize::{TokenizedCaption, Tokenizer};
use crate::tracked::{RejectReason, Rejection};
use crate::wire::caption::{CaptionDecoder, key_as_id};

/// How many messages it takes to call the rejected ones a fault of the configuration: whoever tries
/// a new topic out sends it bad messages, too.
const ENOUGH: usize = 20;

/// Tells what would become of a message, but for the network.
pub(super) struct Judge<'a> {
    decoder: CaptionDecoder,
    needs_key: bool,
    on_empty: OnEmpty,
    /// `None` where the package has none that can be used.
    tokenizer: Option<&'a Tokenizer>,
}

impl Judge<'_> {
    /// Returns one that judges as a worker of this configuration.
    pub(super) fn new<'a>(config: &Config, tokenizer: Option<&'a Tokenizer>) -> Judge<'a> {
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

/// What was found in messages of the input topic.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Judged {
    /// Messages without a value, which say nothing of captions.
    tombstones: usize,
    /// Messages with a value.
    pub(super) messages: usize,
    /// Those of them that would be rejected, by reason.
    rejected: BTreeMap<&'static str, OfReason>,
    /// The fewest and the most tokens of a caption, where there is a tokenizer.
    tokens: Option<(usize, usize)>,
    /// Captions of more tokens than the network takes.
    cut: usize,
    /// Messages with a value and without a key.
    without_key: usize,
}

/// The messages that would be rejected for a reason.
#[derive(Debug, PartialEq)]
struct OfReason {
    number: usize,
    /// Where the first of them lies, and what is wrong with it.
    first: String,
    /// The option that could mend it, where all messages are so.
    remedy: Option<&'static str>,
}

impl Judged {
    /// Returns how many messages were read.
    pub(super) fn read(&self) -> usize {
        self.tombstones + self.messages
    }

    /// Judges a message and counts it.
    pub(super) fn take(&mut self, message: &BorrowedMessage<'_>, judge: &Judge<'_>) {
        let Some(value) = message.payload() else {
            self.tombstones += 1;
            return;
        };
        self.without_key += usize::from(message.key().is_none());
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
                let of_reason = self.rejected.entry(reason.as_label()).or_insert_with(|| {
                    let (remedy, texts) = match reason {
                        RejectReason::CaptionMissing | RejectReason::CaptionNotText => {
                            let remedy = "set input.pointer to where the captions stand";
                            (Some(remedy), texts_in_words(value))
                        }
                        RejectReason::NotJson => (None, text_in_words(value)),
                        RejectReason::IdMissing => {
                            (Some("set output.id to where an id is"), String::new())
                        }
                        _ => (None, String::new()),
                    };
                    OfReason { number: 0, first: format!("{place}: {detail}{texts}"), remedy }
                });
                of_reason.number += 1;
            }
        }
    }

    /// Returns what would become of the messages; `None` where there is none to tell of.
    pub(super) fn verdict(&self, config: &Config) -> Option<(Status, String)> {
        match self.messages {
            0 => None,
            _ if self.rejected.is_empty() => Some((Status::Ok, self.captions_in_words())),
            _ => self.verdict_on_rejected(config),
        }
    }

    fn captions_in_words(&self) -> String {
        let mut said = match self.messages {
            1 => "the message that was read has one".into(),
            number => format!("all {number} messages that were read have one"),
        };
        if let Some((fewest, most)) = self.tokens {
            let range =
                if fewest == most { most.to_string() } else { format!("{fewest} to {most}") };
            said += &format!(", of {range} tokens");
        }
        if self.cut > 0 {
            said += &format!("; {} of them would be cut to the model's limit", self.cut);
        }
        said
    }

    /// Returns what would become of messages without a key in an output topic that takes none;
    /// `None` where there are none.
    pub(super) fn without_key_in_words(&self) -> Option<String> {
        let (without, number) = (self.without_key, self.messages);
        (without > 0).then(|| {
            format!(
                "{without} of {} have none, and output.topic, which is compacted (cleanup.policy), \
                 takes no record without a key: such captions would be rejected (record_refused)",
                counted(number as u64, "message")
            )
        })
    }

    /// It is a fault where all would be rejected, or so many that the worker would stop.
    fn verdict_on_rejected(&self, config: &Config) -> Option<(Status, String)> {
        let most = self.rejected.values().max_by_key(|of_reason| of_reason.number)?;
        let number = self.messages;
        let rejected: usize = self.rejected.values().map(|of_reason| of_reason.number).sum();
        let (is_all, share) = (rejected == number, rejected as f64 / number as f64);
        let which = match number {
            1 => "the message that was read".into(),
            _ if is_all => format!("all {number} messages that were read"),
            _ => {
                let percent = 100.0 * share;
                format!("{rejected} of the {number} messages that were read ({percent:.0} %)")
            }
        };
        let of_reasons = self.rejected.iter();
        let by_reason: Vec<_> = of_reasons
            .map(|(reason, of_reason)| format!("{reason} {}", of_reason.number))
            .collect();
        let said = format!("{which} would be rejected: {}; {}", by_reason.join(", "), most.first);

        let reject = &config.reject;
        let enough = ENOUGH.min(reject.breaker_window.get());
        let stops_at_first =
            config.dead_letter_topic().is_none() && reject.on_reject == OnReject::Stop;
        let is_too_much = share > reject.breaker_share;
        let (status, why) = if let Some(remedy) = most.remedy.filter(|_| is_all) {
            (Status::Failed, remedy.into())
        } else if stops_at_first {
            (
                Status::Failed,
                "the worker would stop at the first, as there is no reject.topic".into(),
            )
        } else if !is_all && !is_too_much {
            return Some((Status::Warning, said));
        } else if number < enough {
            let few = format!("fewer than {enough} messages are too few to call it a fault");
            (Status::Warning, few)
        } else if is_too_much {
            let (percent, window) = (100.0 * reject.breaker_share, reject.breaker_window);
            let stop = "the worker would stop at more than";
            (Status::Failed, format!("{stop} {percent:.0} % of {window} (reject.breaker_share)"))
        } else {
            return Some((Status::Failed, said));
        };
        Some((status, format!("{said}; {why}")))
    }
}

/// Returns what a value that isn't JSON could be, where nothing says that it was meant to be.
fn text_in_words(value: &[u8]) -> String {
    match value.trim_ascii().first() {
        None | Some(b'{' | b'[' | b'"') => String::new(),
        Some(_) => ", but input.format = \"text\" would take it for the caption".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::vector::VectorFormat;

    fn judge() -> Judge<'static> {
        Judge::new(&Config::default(), None)
    }

    /// The defaults, with a topic for dead letters.
    fn with_dead_letters() -> Config {
        let mut config = Config::default();
        config.reject.topic = "dead".into();
        config
    }

    fn judged(values: &[&str]) -> Judged {
        let mut judged = Judged::default();
        for (offset, value) in values.iter().enumerate() {
            let value = value.as_bytes();
            judged.count(&format!("captions/0/{offset}"), value, judge().judge(None, value));
        }
        judged
    }

    #[test]
    fn no_caption_at_the_pointer_is_a_fault_that_says_where_text_is() {
        let other = r#"{"text": "a secret", "meta": {"lang": "sv", "n": 1}}"#;
        let (status, said) = judged(&[other]).verdict(&with_dead_letters()).unwrap();
        assert_eq!(status, Status::Failed);
        assert_eq!(
            said,
            "the message that was read would be rejected: caption_missing 1; captions/0/0: nothing \
             stands at /caption, but text at /text, /meta/lang; set input.pointer to where the \
             captions stand"
        );
        let (status, said) =
            judged(&["no json", other, other]).verdict(&with_dead_letters()).unwrap();
        assert_eq!(status, Status::Failed);
        let all = "all 3 messages that were read would be rejected: caption_missing 2, not_json 1; \
                   captions/0/1: ";
        assert!(said.starts_with(all), "{said}");
        let (_, said) = judged(&[r#"{"caption": 3}"#]).verdict(&with_dead_letters()).unwrap();
        assert!(
            said.contains("a number stands at /caption") && said.contains("text nowhere"),
            "{said}"
        );
        let (status, said) = judged(&["no json"; 20]).verdict(&with_dead_letters()).unwrap();
        assert_eq!(status, Status::Failed);
        assert!(said.contains("not_json 20") && !said.contains("input.pointer"), "{said}");
        let remedy = ", but input.format = \"text\" would take it for the caption; ";
        assert!(said.contains(remedy), "{said}");
        for broken in ["{\"caption\": ", "[", "\"a", " "] {
            let (_, said) = judged(&[broken; 20]).verdict(&with_dead_letters()).unwrap();
            assert!(!said.contains("input.format"), "{said}");
        }
    }

    #[test]
    fn no_message_with_an_id_is_a_fault_that_says_which_option_it_is_of() {
        let mut config = with_dead_letters();
        config.output.format = VectorFormat::Json;
        let value = br#"{"caption": "a fox"}"#;
        let mut without_key = Judged::default();
        without_key.count("captions/0/0", value, Judge::new(&config, None).judge(None, value));
        let (status, said) = without_key.verdict(&config).unwrap();
        assert_eq!(status, Status::Failed);
        assert!(said.contains("id_missing 1") && said.ends_with("set output.id to where an id is"));
    }

    #[test]
    fn bad_ones_among_the_first_messages_of_a_topic_are_no_fault_of_the_configuration() {
        let config = with_dead_letters();
        let (status, said) = judged(&["no json"]).verdict(&config).unwrap();
        assert_eq!(status, Status::Warning);
        let few = "; fewer than 20 messages are too few to call it a fault";
        assert!(said.contains("not_json 1") && said.ends_with(few), "{said}");
        let good = r#"{"caption": "a fox"}"#;
        let (status, said) = judged(&[good, "no json", "{}"]).verdict(&config).unwrap();
        assert_eq!(status, Status::Warning);
        assert!(said.starts_with("2 of the 3 ") && said.ends_with(few), "{said}");

        let mut narrow = with_dead_letters();
        narrow.reject.breaker_window = 3.try_into().unwrap();
        let (status, said) = judged(&[good, "no json", "{}"]).verdict(&narrow).unwrap();
        assert_eq!(status, Status::Failed, "the worker would look at no more: {said}");
    }

    #[test]
    fn some_captions_are_a_warning_with_the_share_of_the_others() {
        let good = r#"{"caption": "a fox"}"#;
        let (status, said) = judged(&[good, "{}", good, "{}", "no json", good])
            .verdict(&with_dead_letters())
            .unwrap();
        assert_eq!(status, Status::Warning);
        let share = "3 of the 6 messages that were read (50 %) would be rejected: caption_missing 2, \
                     not_json 1; captions/0/1: nothing stands at /caption";
        assert!(said.starts_with(share) && !said.contains("set input.pointer"), "{said}");
        let (status, said) = judged(&[good, good]).verdict(&with_dead_letters()).unwrap();
        assert_eq!((status, &*said), (Status::Ok, "all 2 messages that were read have one"));
        assert_eq!(judged(&[]).verdict(&with_dead_letters()), None);
    }

    #[test]
    fn so_many_rejections_that_the_worker_stops_are_a_fault() {
        let mut values = [r#"{"caption": "a fox"}"#; 25];
        values[0] = "no json";
        let few = judged(&values);
        values[1..24].fill("no json");
        let many = judged(&values);
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
}

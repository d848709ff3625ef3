//! Whether the topic was deleted and made anew under the consumer.
//!
//! librdkafka goes on at the offset where it was. Where the new topic has that many messages
//! already, the first of them would be passed over, and nothing be wrong with any offset. Only the
//! topic's id tells, of which librdkafka speaks in a line of its debug log and nowhere else. The
//! line comes before any message of the new topic, for a fetch names the topic by its id.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use rdkafka::ClientConfig;
use rdkafka::config::RDKafkaLogLevel;

use crate::lock::lock;

/// What of librdkafka's debug log has the line.
const DEBUG: &str = "metadata";

/// The id of a topic that isn't known yet, or of which the broker tells none.
const NONE: &str = "AAAAAAAAAAAAAAAAAAAAAA";

/// The topic's identity, as far as it was told.
pub(super) struct Identity {
    /// How the line goes on after the thread's name, up to the id before.
    line: String,
    id: Mutex<Option<String>>,
    is_another: AtomicBool,
}

impl Identity {
    /// Returns that of a topic of which nothing was told yet.
    pub(super) fn of(topic: &str) -> Identity {
        let line = format!("Topic {topic} changed id from ");
        Identity { line, id: Mutex::default(), is_another: AtomicBool::new(false) }
    }

    /// Reads a line of the log.
    pub(super) fn read(&self, level: RDKafkaLogLevel, message: &str) {
        if !matches!(level, RDKafkaLogLevel::Debug) {
            return;
        }
        let Some((_, ids)) = message.split_once(&self.line) else { return };
        let Some((_, id)) = ids.split_once(" to ") else { return };
        if id == NONE {
            return;
        }
        let before = lock(&self.id).replace(id.to_owned());
        if before.is_some_and(|before| before != id) {
            self.is_another.store(true, Ordering::Release);
        }
    }

    /// Returns whether the topic is another one than at first.
    pub(super) fn is_another(&self) -> bool {
        self.is_another.load(Ordering::Acquire)
    }
}

/// Has a client tell of the ids of its topics, beside what it was told to tell.
pub(super) fn tell_ids(client: &mut ClientConfig) {
    let debug = match client.get("debug") {
        Some(wanted) => format!("{wanted},{DEBUG}"),
        None => DEBUG.into(),
    };
    client.set("debug", debug).set_log_level(RDKafkaLogLevel::Debug);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns whether the topic is found to be another one by these lines.
    fn is_another(lines: &[&str]) -> bool {
        let identity = Identity::of("captions");
        for line in lines {
            identity.read(RDKafkaLogLevel::Debug, line);
        }
        identity.is_another()
    }

    fn line(topic: &str, from: &str, to: &str) -> String {
        format!("[thrd:main]: Topic {topic} changed id from {from} to {to}")
    }

    #[test]
    fn a_topic_of_another_id_is_another_one() {
        let first = line("captions", NONE, "YaprMwCWTBOr1FzOY+mTUw");
        let lost = line("captions", "YaprMwCWTBOr1FzOY+mTUw", NONE);
        let other = line("captions", "YaprMwCWTBOr1FzOY+mTUw", "Yc7avGnyTlyn95c5wJ/WVQ");
        let another = line("captions.out", "YaprMwCWTBOr1FzOY+mTUw", "Yc7avGnyTlyn95c5wJ/WVQ");
        assert!(!is_another(&[&first]));
        assert!(!is_another(&[&first, &lost, &first]), "a broker that tells none");
        assert!(!is_another(&[&first, &another]));
        assert!(is_another(&[&first, &other]));
        // librdkafka had forgotten the topic.
        assert!(is_another(&[&first, &line("captions", NONE, "Yc7avGnyTlyn95c5wJ/WVQ")]));
    }
}

//! Relations between options, checked once before anything starts.

use std::time::Duration;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;

use super::fault::Fault;
use super::{Config, DeliveryMode, IdFrom, InputFormat, OnReject};
use crate::embed::device::{Device, DeviceChoice};
use crate::kafka::producer_properties;
use crate::wire::pointer::Pointer;
use crate::wire::vector::VectorFormat;

/// More threads of one kind than any machine has use for.
const THREADS_MAX: usize = 1024;

/// librdkafka's default of `session.timeout.ms`.
const SESSION_TIMEOUT_DEFAULT: Duration = Duration::from_secs(45);

impl Config {
    /// Returns what is wrong with the options as they are; `known` faults have been reported of an
    /// option already, and another is not added to it.
    pub(super) fn faults(&self, known: &[Fault]) -> Vec<Fault> {
        let mut faults = Vec::new();
        let mut fault = |path: &str, message: String| {
            if !known.iter().any(|k| k.path == path) {
                faults.push(Fault::new(path, message));
            }
        };

        for (path, text, what) in [
            ("kafka.brokers", self.kafka.brokers.as_str(), "the brokers' addresses, host:port"),
            ("kafka.group", self.kafka.group.as_str(), "the consumer group's name"),
            ("input.topic", self.input.topic.as_str(), "the topic of captions"),
            ("output.topic", self.output.topic.as_str(), "the topic of vectors"),
            ("model.package", &self.model.package.to_string_lossy(), "the model package's folder"),
        ] {
            if text.trim().is_empty() {
                fault(path, format!("is required: {what}"));
            }
        }

        if let Some(message) = fault_of_brokers(&self.kafka.brokers) {
            fault("kafka.brokers", message);
        }

        let topics = [
            ("output.topic", self.output.topic.as_str(), "input.topic", &self.input.topic),
            ("reject.topic", self.reject.topic.as_str(), "input.topic", &self.input.topic),
            ("reject.topic", self.reject.topic.as_str(), "output.topic", &self.output.topic),
        ];
        for (path, topic, other_path, other) in topics {
            if !topic.is_empty() && topic == other {
                fault(path, format!("is the same topic as {other_path}"));
            }
        }
        if self.dead_letter_topic().is_some() && self.reject.on_reject == OnReject::Skip {
            fault(
                "reject.on_reject",
                "is \"skip\" though reject.topic is set; rejected messages go to that topic".into(),
            );
        }

        if self.input.format == InputFormat::Json
            && let Err(message) = self.input.pointer.parse::<Pointer>()
        {
            fault("input.pointer", message);
        }
        match self.output.id.parse::<IdFrom>() {
            Err(message) => fault("output.id", message),
            Ok(IdFrom::Pointer(_))
                if self.input.format == InputFormat::Text
                    && self.output.format == VectorFormat::Json =>
            {
                fault("output.id", "is a JSON Pointer though input.format is \"text\"".into());
            }
            Ok(_) => {}
        }
        if self.output.include_caption && self.output.format == VectorFormat::Native {
            fault(
                "output.include_caption",
                "has no place in raw numbers; set output.format = \"json\"".into(),
            );
        }

        let session = self.kafka.property("session.timeout.ms");
        let session = session.and_then(|text| text.trim().parse().ok());
        let session = session.map_or(SESSION_TIMEOUT_DEFAULT, Duration::from_millis);
        if self.delivery.drain_timeout >= session {
            fault(
                "delivery.drain_timeout",
                format!(
                    "is {:?}, not shorter than the group's session timeout of {session:?}: the \
                     partition would be another's before the drain ends",
                    self.delivery.drain_timeout
                ),
            );
        }
        if self.delivery.mode == DeliveryMode::AtLeastOnce
            && !self.delivery.transactional_id.is_empty()
        {
            fault(
                "delivery.transactional_id",
                "has no use unless delivery.mode is \"exactly-once\"".into(),
            );
        }
        if self.delivery.mode == DeliveryMode::ExactlyOnce {
            if let Err(message) = self.transactional_id() {
                fault("delivery.transactional_id", message);
            }
            let (timeout, interval) =
                (self.delivery.transaction_timeout, self.delivery.commit_interval);
            if timeout < interval.saturating_mul(2) {
                fault(
                    "delivery.transaction_timeout",
                    format!(
                        "is {timeout:?}, less than twice the {interval:?} of \
                         delivery.commit_interval: the brokers could abort a transaction before it \
                         is committed"
                    ),
                );
            }
        }
        if !(0.0..=1.0).contains(&self.reject.breaker_share) {
            fault("reject.breaker_share", "it may be 0 to 1, a part of the messages".into());
        }
        if self.reject.breaker_window.get() > 10_000_000 {
            fault("reject.breaker_window", "is over ten million".into());
        }
        for (path, duration, least) in [
            ("kafka.startup_timeout", self.kafka.startup_timeout, Duration::from_secs(1)),
            ("kafka.delivery_timeout", self.kafka.delivery_timeout, Duration::from_secs(1)),
            ("delivery.commit_interval", self.delivery.commit_interval, Duration::from_millis(10)),
            ("delivery.drain_timeout", self.delivery.drain_timeout, Duration::from_millis(100)),
            (
                "delivery.transaction_timeout",
                self.delivery.transaction_timeout,
                Duration::from_secs(1),
            ),
            ("admin.stall_timeout", self.admin.stall_timeout, Duration::from_secs(1)),
        ] {
            // The longest that librdkafka takes is 2^31 - 1 milliseconds, 24.8 days.
            let most = Duration::from_millis(i32::MAX as u64);
            if !(least..=most).contains(&duration) {
                fault(path, format!("is {duration:?}; it may be {least:?} to {most:?}"));
            }
        }
        let (stall, outage) = (self.admin.stall_timeout, self.kafka.delivery_timeout);
        if stall <= outage {
            fault(
                "admin.stall_timeout",
                format!(
                    "is {stall:?}, not longer than the {outage:?} of kafka.delivery_timeout: in an \
                     outage of the brokers that the worker would sit out, /livez would fail first"
                ),
            );
        }
        // The source's pause and resume marks are this number and half of it.
        if self.delivery.in_flight_captions_max.get() < 2 {
            fault("delivery.in_flight_captions_max", "is 1; it must be 2 at least".into());
        }
        if self.delivery.in_flight_captions_max.get() > 1_000_000 {
            fault("delivery.in_flight_captions_max", "is over a million".into());
        }
        if self.delivery.in_flight_captions_max < self.batch.captions_max {
            fault(
                "batch.captions_max",
                format!(
                    "is {}, more than the {} of delivery.in_flight_captions_max: no batch could be \
                     that full",
                    self.batch.captions_max, self.delivery.in_flight_captions_max
                ),
            );
        }
        let (oldest, interval) = (self.batch.wait_max, self.delivery.commit_interval);
        for (path, waits, is_so) in [
            ("batch.wait_max", oldest, true),
            // Until then nothing is settled.
            ("delivery.commit_interval", interval, self.delivery.mode == DeliveryMode::ExactlyOnce),
        ] {
            if is_so && waits >= stall {
                fault(
                    path,
                    format!(
                        "is {waits:?}, not shorter than the {stall:?} of admin.stall_timeout: captions \
                         that wait would make /livez fail"
                    ),
                );
            }
        }
        let on_cpu = DeviceChoice::Named(vec![Device::CPU]);
        if self.embed.device_bytes_max > 0 && self.embed.device == on_cpu {
            fault(
                "embed.device_bytes_max",
                "bounds the memory of GPUs, though embed.device is \"cpu\"".into(),
            );
        }
        let numbers = i64::MAX as usize;
        for (path, number, most) in [
            ("tokenize.threads", self.tokenize.threads.get(), THREADS_MAX),
            ("embed.sessions", self.embed.sessions, THREADS_MAX),
            ("embed.threads", self.embed.threads, THREADS_MAX),
            ("embed.device_bytes_max", self.embed.device_bytes_max, numbers),
            ("batch.tokens_max", self.batch.tokens_max, numbers),
            ("delivery.in_flight_bytes_max", self.delivery.in_flight_bytes_max.get(), numbers),
        ] {
            if number > most {
                fault(path, format!("is {number}; it may be {most} at most"));
            }
        }
        if let Some(message) = fault_of_filter(&self.log.filter) {
            fault("log.filter", message);
        }
        for (property, message) in self.kafka.librdkafka.faults() {
            fault(&format!("kafka.librdkafka.{property}"), message);
        }
        if let Some(message) = fault_of_queue(self) {
            fault("kafka.librdkafka.queue.buffering.max.kbytes", message);
        }
        faults
    }
}

/// Returns what is wrong with the room for records on their way. librdkafka calls an empty queue
/// full, too, for a record that is larger than it: room for that would be waited for without end.
fn fault_of_queue(config: &Config) -> Option<String> {
    let producer = producer_properties(config);
    let number = |name: &str| producer.get(name)?.trim().parse::<u64>().ok();
    let (room, largest) = (number("queue.buffering.max.kbytes")?, number("message.max.bytes")?);
    let least = largest.div_ceil(1024);
    (room < least).then(|| {
        format!(
            "is {room}, no room for a record of the {largest} bytes of message.max.bytes; set {least} at \
             least, or lower kafka.librdkafka.message.max.bytes"
        )
    })
}

/// Returns what is wrong with the log's filter. A word alone that isn't a level would be the name of a target, of
/// which there is none, and the log would be empty.
fn fault_of_filter(filter: &str) -> Option<String> {
    if filter.trim().is_empty() {
        return Some("names no level; info is usual".into());
    }
    if let Err(error) = filter.parse::<EnvFilter>() {
        return Some(error.to_string());
    }
    let is_level = |word: &str| word.parse::<LevelFilter>().is_ok();
    let is_target = |word: &str| {
        let crate_name = word.split("::").next().unwrap_or_default();
        ["capvec", "librdkafka"].contains(&crate_name)
    };
    let wrong = filter.split(',').map(str::trim).find(|directive| {
        !directive.contains(['=', '[']) && !is_level(directive) && !is_target(directive)
    })?;
    Some(format!(
        "{wrong:?} is no level; those are error, warn, info, debug, trace and off, and of a target it \
         is such as capvec::kafka=debug"
    ))
}

/// Returns what is wrong with the list of addresses, if it isn't empty. A port may be left out: librdkafka takes 9092.
fn fault_of_brokers(brokers: &str) -> Option<String> {
    let several = brokers.split(',').count() > 1;
    brokers.split(',').map(str::trim).enumerate().find_map(|(before, entry)| {
        let which = if several { format!("entry {} ", before + 1) } else { String::new() };
        let lower = entry.to_lowercase();
        if let Some(scheme) =
            ["http://", "https://"].iter().find(|scheme| lower.starts_with(**scheme))
        {
            let example = "\"host:9092\", or \"host1:9092,host2:9092\" for several";
            return Some(format!(
                "{which}begins with {scheme}, which brokers don't speak; an address is {example}"
            ));
        }
        (several && entry.is_empty())
            .then(|| format!("{which}is empty; a list is such as \"host1:9092,host2:9092\""))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::num::NonZeroUsize;

    #[test]
    fn addresses_that_no_broker_has_are_refused() {
        for good in ["", "b", "b:9092", "a:1, b:2", "SASL_SSL://b:9092", "[::1]:9092"] {
            assert_eq!(fault_of_brokers(good), None, "{good}");
        }
        for (wrong, expected) in [
            ("http://b:9092", "begins with http://"),
            ("a:1, HTTPS://b", "entry 2 begins with https://"),
            ("a:1,", "entry 2 is empty"),
            ("a:1, ,b:2", "entry 2 is empty"),
        ] {
            let said = fault_of_brokers(wrong).unwrap();
            assert!(said.starts_with(expected) && said.contains(":9092\""), "{wrong}: {said}");
        }
    }

    #[test]
    fn a_filter_that_would_silence_the_log_is_refused() {
        for good in [
            "info",
            "INFO",
            "off",
            "info,capvec::kafka=debug",
            "capvec::kafka",
            "warn,librdkafka=debug",
        ] {
            assert_eq!(fault_of_filter(good), None, "{good}");
        }
        for wrong in ["", " ", "warning", "inof", "info,verbose", "capvec=warning"] {
            assert!(fault_of_filter(wrong).is_some(), "{wrong}");
        }
    }

    #[test]
    fn numbers_that_nothing_can_hold_are_faults() {
        let mut config = Config::default();
        config.tokenize.threads = NonZeroUsize::new(1_000_000).unwrap();
        config.batch.tokens_max = usize::MAX;
        let paths = paths(&config);
        for path in ["tokenize.threads", "batch.tokens_max"] {
            assert!(paths.contains(&path.to_owned()), "{path}");
        }
    }

    #[test]
    fn the_queue_has_room_for_the_largest_record() {
        let fault = |properties: &[(&str, &str)]| {
            let mut config = Config::default();
            for (name, value) in properties {
                config.kafka.librdkafka.0.insert((*name).into(), (*value).into());
            }
            let mut faults = config.faults(&[]).into_iter();
            let path = "kafka.librdkafka.queue.buffering.max.kbytes";
            faults.find(|fault| fault.path == path).map(|fault| fault.to_string())
        };
        let kbytes = |number| ("queue.buffering.max.kbytes", number);
        for good in [&[][..], &[kbytes("65536")], &[kbytes("1"), ("message.max.bytes", "1024")]] {
            assert_eq!(fault(good), None, "{good:?}");
        }
        let said = fault(&[kbytes("65535")]).unwrap();
        for part in ["is 65535", "67108864 bytes of message.max.bytes", "set 65536 at least"] {
            assert!(said.contains(part), "{said}");
        }
        assert!(fault(&[kbytes("1"), ("message.max.bytes", "1025")]).is_some());
    }

    #[test]
    fn captions_that_wait_do_not_make_the_worker_look_stalled() {
        let mut config = Config::default();
        config.batch.wait_max = config.admin.stall_timeout;
        assert!(paths(&config).contains(&"batch.wait_max".into()));
        config.delivery.commit_interval = config.admin.stall_timeout;
        assert!(!paths(&config).contains(&"delivery.commit_interval".into()));
        config.delivery.mode = DeliveryMode::ExactlyOnce;
        assert!(paths(&config).contains(&"delivery.commit_interval".into()));
    }

    fn paths(config: &Config) -> Vec<String> {
        config.faults(&[]).into_iter().map(|fault| fault.path).collect()
    }

    #[test]
    fn a_worker_is_not_restarted_in_an_outage_that_it_would_sit_out() {
        let mut config = Config::default();
        config.admin.stall_timeout = config.kafka.delivery_timeout;
        assert!(paths(&config).contains(&"admin.stall_timeout".into()));
    }

    #[test]
    fn a_name_for_transactions_without_transactions_is_a_fault() {
        let mut config = Config::default();
        config.delivery.transactional_id = "mine".into();
        assert!(paths(&config).contains(&"delivery.transactional_id".into()));
        config.delivery.mode = DeliveryMode::ExactlyOnce;
        assert!(!paths(&config).contains(&"delivery.transactional_id".into()));
    }

    #[test]
    fn a_session_that_is_not_set_is_librdkafkas() {
        let default = rdkafka::ClientConfig::new().create_native_config().unwrap();
        let timeout_ms = SESSION_TIMEOUT_DEFAULT.as_millis().to_string();
        assert_eq!(default.get("session.timeout.ms").unwrap(), timeout_ms);
    }
}

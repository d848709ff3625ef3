//! Relations between options, checked once before anything starts: a function a section, in the
//! order of `config/capvec.toml`. A relation of two options stands with the one that it is a fault
//! of.

use std::time::Duration;

use humantime_serde::re::humantime::{FormattedDuration, format_duration};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;

use super::fault::Fault;
use super::{Config, DeliveryMode, IdFrom, InputFormat, OnReject};
use crate::embed::device::{Device, DeviceChoice};
use crate::kafka::producer_properties;
use crate::wire::pointer::Pointer;
use crate::wire::vector::VectorFormat;

/// More threads of one kind than any machine has use for.
pub const THREADS_MAX: usize = 1024;

/// More of anything than this no option may ask for: TOML's numbers end there.
const NUMBER_MAX: usize = i64::MAX as usize;

/// The longest that librdkafka takes is 2^31 - 1 milliseconds, 24.8 days.
const DURATION_MAX: Duration = Duration::from_millis(i32::MAX as u64);

/// The longest name of a topic, in bytes.
const TOPIC_BYTES_MAX: usize = 249;

/// librdkafka's default of `session.timeout.ms`.
const SESSION_TIMEOUT_DEFAULT: Duration = Duration::from_secs(45);

impl Config {
    /// Returns what is wrong with the options as they are; `known` faults have been reported of an
    /// option already, and another is not added to it.
    pub(super) fn faults(&self, known: &[Fault]) -> Vec<Fault> {
        let mut faults = Faults { known, found: Vec::new() };
        self.faults_of_kafka(&mut faults);
        self.faults_of_input(&mut faults);
        self.faults_of_model(&mut faults);
        self.faults_of_tokenize(&mut faults);
        self.faults_of_batch(&mut faults);
        self.faults_of_embed(&mut faults);
        self.faults_of_output(&mut faults);
        self.faults_of_reject(&mut faults);
        self.faults_of_delivery(&mut faults);
        self.faults_of_admin(&mut faults);
        self.faults_of_log(&mut faults);
        faults.found
    }

    fn faults_of_kafka(&self, faults: &mut Faults<'_>) {
        let kafka = &self.kafka;
        faults.required("kafka.brokers", &kafka.brokers, "the brokers' addresses, host:port");
        if let Some(message) = fault_of_brokers(&kafka.brokers) {
            faults.add("kafka.brokers", message);
        }
        faults.required("kafka.group", &kafka.group, "the consumer group's name");
        let second = Duration::from_secs(1);
        faults.duration("kafka.startup_timeout", kafka.startup_timeout, second);
        faults.duration("kafka.delivery_timeout", kafka.delivery_timeout, second);
        for (property, message) in kafka.librdkafka.faults() {
            faults.add(&format!("kafka.librdkafka.{property}"), message);
        }
        if let Some(message) = fault_of_queue(self) {
            faults.add("kafka.librdkafka.queue.buffering.max.kbytes", message);
        }
    }

    fn faults_of_input(&self, faults: &mut Faults<'_>) {
        faults.required("input.topic", &self.input.topic, "the topic of captions");
        faults.topic("input.topic", &self.input.topic);
        if self.input.format == InputFormat::Json
            && let Err(message) = self.input.pointer.parse::<Pointer>()
        {
            faults.add("input.pointer", message);
        }
    }

    fn faults_of_model(&self, faults: &mut Faults<'_>) {
        let package = self.model.package.to_string_lossy();
        faults.required("model.package", &package, "the model package's folder");
    }

    fn faults_of_tokenize(&self, faults: &mut Faults<'_>) {
        faults.at_most("tokenize.threads", self.tokenize.threads.get(), THREADS_MAX);
    }

    fn faults_of_batch(&self, faults: &mut Faults<'_>) {
        faults.at_most("batch.tokens_max", self.batch.tokens_max, NUMBER_MAX);
        let (captions, in_flight) = (self.batch.captions_max, self.delivery.in_flight_captions_max);
        if in_flight < captions {
            faults.add(
                "batch.captions_max",
                format!(
                    "is {captions}, more than the {in_flight} of delivery.in_flight_captions_max: no \
                     batch could be that full"
                ),
            );
        }
        self.longer_than_a_stall(faults, "batch.wait_max", self.batch.wait_max);
    }

    fn faults_of_embed(&self, faults: &mut Faults<'_>) {
        let embed = &self.embed;
        faults.at_most("embed.sessions", embed.sessions, THREADS_MAX);
        faults.at_most("embed.threads", embed.threads, THREADS_MAX);
        faults.at_most("embed.device_bytes_max", embed.device_bytes_max, NUMBER_MAX);
        if embed.device_bytes_max > 0 && embed.device == DeviceChoice::Named(vec![Device::CPU]) {
            faults.add(
                "embed.device_bytes_max",
                "bounds the memory of GPUs, though embed.device is \"cpu\"",
            );
        }
    }

    fn faults_of_output(&self, faults: &mut Faults<'_>) {
        let (input, output) = (&self.input, &self.output);
        faults.required("output.topic", &output.topic, "the topic of vectors");
        faults.topic("output.topic", &output.topic);
        faults.same_topic("output.topic", &output.topic, "input.topic", &input.topic);
        match output.id.parse::<IdFrom>() {
            Err(message) => faults.add("output.id", message),
            Ok(IdFrom::Pointer(_))
                if input.format == InputFormat::Text && output.format == VectorFormat::Json =>
            {
                faults.add("output.id", "is a JSON Pointer though input.format is \"text\"");
            }
            Ok(_) => {}
        }
        if output.include_caption && output.format == VectorFormat::Native {
            faults.add(
                "output.include_caption",
                "has no place in raw numbers; set output.format = \"json\"",
            );
        }
    }

    fn faults_of_reject(&self, faults: &mut Faults<'_>) {
        let reject = &self.reject;
        faults.topic("reject.topic", &reject.topic);
        faults.same_topic("reject.topic", &reject.topic, "input.topic", &self.input.topic);
        faults.same_topic("reject.topic", &reject.topic, "output.topic", &self.output.topic);
        if self.dead_letter_topic().is_some() && reject.on_reject == OnReject::Skip {
            faults.add(
                "reject.on_reject",
                "is \"skip\" though reject.topic is set; rejected messages go to that topic",
            );
        }
        if !(0.0..=1.0).contains(&reject.breaker_share) {
            faults.add("reject.breaker_share", "it may be 0 to 1, a part of the messages");
        }
        if reject.breaker_window.get() > 10_000_000 {
            faults.add("reject.breaker_window", "is over ten million");
        }
    }

    fn faults_of_delivery(&self, faults: &mut Faults<'_>) {
        let delivery = &self.delivery;
        let (interval, drain) = (delivery.commit_interval, delivery.drain_timeout);
        let timeout = delivery.transaction_timeout;
        faults.duration("delivery.commit_interval", interval, Duration::from_millis(10));
        faults.duration("delivery.drain_timeout", drain, Duration::from_millis(100));
        faults.duration("delivery.transaction_timeout", timeout, Duration::from_secs(1));

        let session = self.kafka.property("session.timeout.ms");
        let session = session.and_then(|text| text.trim().parse().ok());
        let session = session.map_or(SESSION_TIMEOUT_DEFAULT, Duration::from_millis);
        if drain >= session {
            faults.add(
                "delivery.drain_timeout",
                format!(
                    "is {}, not shorter than the group's session timeout of {}: the partition would be \
                     another's before the drain ends",
                    as_written(drain),
                    as_written(session)
                ),
            );
        }

        match delivery.mode {
            DeliveryMode::AtLeastOnce => {
                if !delivery.transactional_id.is_empty() {
                    faults.add(
                        "delivery.transactional_id",
                        "has no use unless delivery.mode is \"exactly-once\"",
                    );
                }
            }
            DeliveryMode::ExactlyOnce => {
                if let Err(message) = self.transactional_id() {
                    faults.add("delivery.transactional_id", message);
                }
                if timeout < interval.saturating_mul(2) {
                    faults.add(
                        "delivery.transaction_timeout",
                        format!(
                            "is {}, less than twice the {} of delivery.commit_interval: the brokers \
                             could abort a transaction before it is committed",
                            as_written(timeout),
                            as_written(interval)
                        ),
                    );
                }
                // Until then nothing is settled.
                self.longer_than_a_stall(faults, "delivery.commit_interval", interval);
            }
        }

        let in_flight = delivery.in_flight_captions_max.get();
        // The source's pause and resume marks are this number and half of it.
        if in_flight < 2 {
            faults.add("delivery.in_flight_captions_max", "is 1; it must be 2 at least");
        }
        if in_flight > 1_000_000 {
            faults.add("delivery.in_flight_captions_max", "is over a million");
        }
        let bytes = delivery.in_flight_bytes_max.get();
        faults.at_most("delivery.in_flight_bytes_max", bytes, NUMBER_MAX);
    }

    fn faults_of_admin(&self, faults: &mut Faults<'_>) {
        let (stall, outage) = (self.admin.stall_timeout, self.kafka.delivery_timeout);
        faults.duration("admin.stall_timeout", stall, Duration::from_secs(1));
        if stall <= outage {
            faults.add(
                "admin.stall_timeout",
                format!(
                    "is {}, not longer than the {} of kafka.delivery_timeout: in an outage of the \
                     brokers that the worker would sit out, /livez would fail first",
                    as_written(stall),
                    as_written(outage)
                ),
            );
        }
    }

    fn faults_of_log(&self, faults: &mut Faults<'_>) {
        if let Some(message) = fault_of_filter(&self.log.filter) {
            faults.add("log.filter", message);
        }
    }

    /// Captions wait for so long where all is well.
    fn longer_than_a_stall(&self, faults: &mut Faults<'_>, path: &str, waits: Duration) {
        let stall = self.admin.stall_timeout;
        if waits >= stall {
            faults.add(
                path,
                format!(
                    "is {}, not shorter than the {} of admin.stall_timeout: captions that wait would \
                     make /livez fail",
                    as_written(waits),
                    as_written(stall)
                ),
            );
        }
    }
}

/// What is found to be wrong, beside what was known before.
struct Faults<'a> {
    known: &'a [Fault],
    found: Vec<Fault>,
}

impl Faults<'_> {
    /// Adds a fault of an option, unless one of it was known before.
    fn add(&mut self, path: &str, message: impl Into<String>) {
        if !self.known.iter().any(|known| known.path == path) {
            self.found.push(Fault::new(path, message));
        }
    }

    fn required(&mut self, path: &str, text: &str, what: &str) {
        if text.trim().is_empty() {
            self.add(path, format!("is required: {what}"));
        }
    }

    /// A name that no topic has. Of a pattern, which begins with `^`, librdkafka would read every
    /// topic that fits.
    fn topic(&mut self, path: &str, name: &str) {
        let is_letter = |c: char| c.is_ascii_alphanumeric() || ['.', '_', '-'].contains(&c);
        let is_name = name.chars().all(is_letter) && name.len() <= TOPIC_BYTES_MAX;
        if !name.trim().is_empty() && (!is_name || [".", ".."].contains(&name)) {
            self.add(
                path,
                format!(
                    "is {name:?}, which no topic is called: names have at most {TOPIC_BYTES_MAX} of the \
                     letters a to z and A to Z, digits, dots, underscores and hyphens"
                ),
            );
        }
    }

    fn same_topic(&mut self, path: &str, topic: &str, other_path: &str, other: &str) {
        if !topic.is_empty() && topic == other {
            self.add(path, format!("is the same topic as {other_path}"));
        }
    }

    fn duration(&mut self, path: &str, duration: Duration, least: Duration) {
        if !(least..=DURATION_MAX).contains(&duration) {
            let [duration, least, most] = [duration, least, DURATION_MAX].map(as_written);
            self.add(path, format!("is {duration}; it may be {least} to {most}"));
        }
    }

    fn at_most(&mut self, path: &str, number: usize, most: usize) {
        if number > most {
            self.add(path, format!("is {number}; it may be {most} at most"));
        }
    }
}

/// Returns a duration as the configuration has it, such as `15m`.
fn as_written(duration: Duration) -> FormattedDuration {
    format_duration(duration)
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

/// Returns what is wrong with the log's filter. A word alone that isn't a level would be the name
/// of a target, of which there is none, and the log would be empty.
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

/// Returns what is wrong with the list of addresses, if it isn't empty. A port may be left out:
/// librdkafka takes 9092.
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
        if several && entry.is_empty() {
            return Some(format!("{which}is empty; a list is such as \"host1:9092,host2:9092\""));
        }
        if entry.contains(char::is_whitespace) {
            let example = "such as \"host1:9092,host2:9092\"";
            return Some(format!(
                "{which}has white space in it; commas separate addresses, {example}"
            ));
        }
        let address = entry.rsplit_once("://").map_or(entry, |(_, address)| address);
        let (host, port) = address.rsplit_once(':')?;
        // An address of IPv6 has colons of its own.
        let is_port = !host.contains(':') || host.ends_with(']');
        (is_port && !port.parse::<u16>().is_ok_and(|port| port > 0)).then(|| {
            format!("{which}has the port {port:?}; one is of 1 to 65535, as in \"host:9092\"")
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::num::NonZeroUsize;

    #[test]
    fn addresses_that_no_broker_has_are_refused() {
        for good in
            ["", "b", "b:9092", "a:1, b:2", "SASL_SSL://b:9092", "[::1]:9092", "[::1]", "::1"]
        {
            assert_eq!(fault_of_brokers(good), None, "{good}");
        }
        for (wrong, expected) in [
            ("http://b:9092", "begins with http://"),
            ("a:1, HTTPS://b", "entry 2 begins with https://"),
            ("a:1,", "entry 2 is empty"),
            ("a:1, ,b:2", "entry 2 is empty"),
            ("a:1 b:2", "has white space in it"),
            ("a:1,b:99999", "entry 2 has the port \"99999\""),
            ("SSL://b:9092/", "has the port \"9092/\""),
            ("[::1]:kafka", "has the port \"kafka\""),
            ("b:0", "has the port \"0\""),
            ("b:", "has the port \"\""),
        ] {
            let said = fault_of_brokers(wrong).unwrap();
            assert!(said.starts_with(expected) && said.contains(":9092\""), "{wrong}: {said}");
        }
    }

    #[test]
    fn names_that_no_topic_has_are_refused() {
        let longest = "t".repeat(TOPIC_BYTES_MAX);
        for (name, is_one) in [
            ("captions.v1_a-B", true),
            (&*longest, true),
            (&*(longest.clone() + "t"), false),
            ("a b", false),
            ("^captions", false),
            ("bilder-ö", false),
            ("..", false),
        ] {
            let mut config = Config::default();
            config.input.topic = name.into();
            config.reject.topic = format!(" {name}");
            let paths = paths(&config);
            assert_eq!(!paths.contains(&"input.topic".into()), is_one, "{name}");
            assert!(paths.contains(&"reject.topic".into()), "{name} after a space");
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
        let faults = config.faults(&[]);
        let fault = faults.iter().find(|fault| fault.path == "admin.stall_timeout").unwrap();
        let said = "is 10m, not longer than the 10m of kafka.delivery_timeout: ";
        assert!(fault.message.starts_with(said), "{fault}");
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

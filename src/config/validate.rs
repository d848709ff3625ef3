//! What options may be, and relations between them, checked once before anything starts: a function
//! a section, in the order of `config/capvec.toml`. A relation of two options stands with the one
//! that it is a fault of.

use std::time::Duration;

use super::fault::Fault;
use super::values::{as_written, fault_of_brokers, fault_of_filter, fault_of_topic};
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
        faults.of_value("kafka.brokers", fault_of_brokers(&kafka.brokers));
        faults.required("kafka.group", &kafka.group, "the consumer group's name");
        let second = Duration::from_secs(1);
        faults.duration("kafka.startup_timeout", kafka.startup_timeout, second);
        faults.duration("kafka.delivery_timeout", kafka.delivery_timeout, second);
        for (property, message) in kafka.librdkafka.faults() {
            faults.add(&format!("kafka.librdkafka.{property}"), message);
        }
        let queue = "kafka.librdkafka.queue.buffering.max.kbytes";
        faults.of_value(queue, fault_of_queue(self));
    }

    fn faults_of_input(&self, faults: &mut Faults<'_>) {
        faults.required("input.topic", &self.input.topic, "the topic of captions");
        faults.of_value("input.topic", fault_of_topic(&self.input.topic));
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
        faults.of_value("output.topic", fault_of_topic(&output.topic));
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
        faults.of_value("reject.topic", fault_of_topic(&reject.topic));
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
        faults.of_value("log.filter", fault_of_filter(&self.log.filter));
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
    /// Adds a fault of an option, unless one of it, or of all of its section, was known before.
    fn add(&mut self, path: &str, message: impl Into<String>) {
        let is_of = |known: &str| {
            let rest = path.strip_prefix(known);
            rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
        };
        if !self.known.iter().any(|known| is_of(&known.path)) {
            self.found.push(Fault::new(path, message));
        }
    }

    fn required(&mut self, path: &str, text: &str, what: &str) {
        if text.trim().is_empty() {
            self.add(path, format!("is required: {what}"));
        }
    }

    /// Adds what is wrong with a value by itself, if anything is.
    fn of_value(&mut self, path: &str, wrong: Option<String>) {
        if let Some(message) = wrong {
            self.add(path, message);
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::num::NonZeroUsize;

    #[test]
    fn no_topic_has_a_name_that_topics_do_not_have() {
        let mut config = Config::default();
        for topic in [&mut config.input.topic, &mut config.output.topic, &mut config.reject.topic] {
            *topic = "a b".into();
        }
        let paths = paths(&config);
        for path in ["input.topic", "output.topic", "reject.topic"] {
            assert!(paths.contains(&path.to_owned()), "{path}");
        }
    }

    #[test]
    fn numbers_that_nothing_can_hold_are_faults() {
        let mut config = Config::default();
        config.tokenize.threads = NonZeroUsize::new(1_000_000).unwrap();
        config.batch.tokens_max = usize::MAX;
        config.delivery.in_flight_captions_max = NonZeroUsize::MAX;
        let paths = paths(&config);
        for path in ["tokenize.threads", "batch.tokens_max", "delivery.in_flight_captions_max"] {
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

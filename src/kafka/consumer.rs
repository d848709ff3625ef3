//! The consumer's callbacks: they take notes, and the source acts on them.
//!
//! librdkafka calls back from inside `poll`, on the source's own thread. A rebalance that is only
//! noted leaves the group waiting for this worker, which is what a drain needs: librdkafka goes on
//! when the partitions are taken or given up by [`take`] and [`give_up`].

use std::collections::HashMap;
use std::error::Error;
use std::ops::Deref;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use crossbeam_channel::Receiver;
use prometheus::IntGauge;
use rdkafka::client::{ClientContext, OAuthToken};
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{
    BaseConsumer, Consumer, ConsumerContext, ConsumerGroupMetadata, RebalanceProtocol,
};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use rdkafka::statistics::Statistics;
use rdkafka::topic_partition_list::TopicPartitionList;
use rdkafka::types::RDKafkaRespErr;

use super::STATISTICS_INTERVAL_MS;
use super::anew::{Identity, tell_ids};
use super::login::{Login, WithLogin};
use super::reach::brokers_up;
use super::renewed::Renewed;
use crate::config::Config;
use crate::lock::lock;
use crate::metrics::SourceMetrics;

/// What librdkafka told while it was polled.
pub enum Event {
    /// The group gives these partitions to this worker.
    Assigned(TopicPartitionList),
    /// The group asks these partitions back.
    Revoked {
        /// The partitions.
        partitions: TopicPartitionList,
        /// Whether they are another's already, so that nothing can be committed for them.
        lost: bool,
        /// The generation of the group in which they are asked back.
        generation: Option<ConsumerGroupMetadata>,
    },
}

/// Receives librdkafka's callbacks.
pub struct SourceContext {
    topic: String,
    events: Mutex<Vec<Event>>,
    /// How often librdkafka has called back from `poll` without an error or a message.
    served: AtomicU64,
    ends: Mutex<HashMap<i32, PartitionEnd>>,
    unheard: Mutex<HashMap<i32, i64>>,
    closing: AtomicBool,
    /// Whether the brokers assign, by KIP-848's protocol.
    brokers_assign: bool,
    is_member: AtomicBool,
    /// Of the generation in which partitions were asked back, until they are given up.
    asked_back: Mutex<Option<Arc<ConsumerGroupMetadata>>>,
    login: Login,
    brokers_up: IntGauge,
    identity: Identity,
    /// Whether the last error was of a batch of messages. A connection at whose other end nobody
    /// speaks Kafka's protocol has the code of a damaged one, and so have requests that it loses.
    is_of_batch: AtomicBool,
    /// Whether librdkafka's debug log was asked for.
    is_debugged: bool,
}

/// What the statistics say of a partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PartitionEnd {
    /// The offset after the last message that can be read.
    pub end: i64,
    /// Offsets from there to the end of the partition: of transactions that are open, and of what
    /// came behind them.
    pub withheld: i64,
    /// The offset of the first message.
    pub beginning: i64,
    /// Whether librdkafka has handed over all messages before `end`. The last offsets may be of
    /// transaction markers, which it keeps to itself.
    pub is_read: bool,
}

impl SourceContext {
    /// Returns a context for a consumer of the input topic, which tells how many brokers it is
    /// connected to.
    pub fn new(config: &Config, brokers_up: IntGauge) -> SourceContext {
        SourceContext {
            topic: config.input.topic.clone(),
            events: Mutex::default(),
            served: AtomicU64::new(0),
            ends: Mutex::default(),
            unheard: Mutex::default(),
            closing: AtomicBool::new(false),
            brokers_assign: super::brokers_assign(config),
            is_member: AtomicBool::new(false),
            asked_back: Mutex::default(),
            login: Login::default(),
            brokers_up,
            identity: Identity::of(&config.input.topic),
            is_of_batch: AtomicBool::new(false),
            is_debugged: config.kafka.property("debug").is_some(),
        }
    }

    pub(super) fn note(&self, event: Event) {
        lock(&self.events).push(event);
    }

    fn has_served(&self) {
        self.served.fetch_add(1, Ordering::Relaxed);
    }

    /// Returns how often librdkafka has called back from `poll`, which returns nothing then, as
    /// where there is nothing.
    pub fn served(&self) -> u64 {
        self.served.load(Ordering::Relaxed)
    }

    /// Returns what has been noted since the last call, in order.
    pub fn take_events(&self) -> Vec<Event> {
        std::mem::take(&mut lock(&self.events))
    }

    /// Returns the ends of the partitions that have been noted since the last call.
    pub fn take_ends(&self) -> HashMap<i32, PartitionEnd> {
        std::mem::take(&mut lock(&self.ends))
    }

    /// Returns the positions of the partitions whose ends no broker has told yet, or since their
    /// leaders changed, as noted since the last call. Nothing of them waits to be handed over.
    pub fn take_unheard(&self) -> HashMap<i32, i64> {
        std::mem::take(&mut lock(&self.unheard))
    }

    /// Returns whether the topic was deleted and made anew. No message of the new one is returned
    /// by the `poll` that learns of it, or by one before.
    pub fn is_made_anew(&self) -> bool {
        self.identity.is_another()
    }

    /// Returns whether the worker seems to be in a group that the brokers assign, which may have no
    /// partition for it: librdkafka calls back where an assignment changes, and no partitions after
    /// none are no change. (Of the other protocol an empty assignment is an event like any.)
    pub fn is_member(&self) -> bool {
        self.is_member.load(Ordering::Acquire)
    }

    /// Pins the generation in which partitions were asked back; `None` once they are given up.
    pub fn pin_generation(&self, generation: Option<ConsumerGroupMetadata>) {
        *lock(&self.asked_back) = generation.map(Arc::new);
    }

    /// Returns the generation in which partitions were asked back, if they aren't given up yet.
    /// What is committed for them later is refused by the brokers then, where the group hasn't
    /// waited.
    pub fn asked_back(&self) -> Option<Arc<ConsumerGroupMetadata>> {
        lock(&self.asked_back).clone()
    }

    /// Returns whether an error that `poll` has just returned stays, however long it is waited, or
    /// passes over messages.
    pub fn is_final(&self, error: &KafkaError) -> bool {
        let is_bad = error.rdkafka_error_code() == Some(RDKafkaErrorCode::BadMessage);
        is_final(error) && (!is_bad || self.is_of_batch.load(Ordering::Acquire))
    }

    /// From here on rebalances are acknowledged at once: the consumer is being closed.
    pub fn close(&self) {
        self.closing.store(true, Ordering::Release);
    }
}

impl WithLogin for SourceContext {
    fn login(&self) -> &Login {
        &self.login
    }
}

impl ClientContext for SourceContext {
    const ENABLE_REFRESH_OAUTH_TOKEN: bool = true;

    fn generate_oauth_token(&self, file: Option<&str>) -> Result<OAuthToken, Box<dyn Error>> {
        self.has_served();
        super::bearer::answer(file)
    }

    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        self.has_served();
        self.identity.read(level, message);
        if self.is_debugged || !matches!(level, RDKafkaLogLevel::Debug) {
            super::log(level, facility, message);
        }
    }

    fn error(&self, error: KafkaError, reason: &str) {
        self.login.note(&error, reason);
        let is_of_batch =
            reason.contains("failed CRC32") || reason.starts_with("Fetch from broker");
        self.is_of_batch.store(is_of_batch, Ordering::Release);
        super::log_client_error("consumer", &error, reason);
    }

    fn stats(&self, statistics: Statistics) {
        self.has_served();
        self.brokers_up.set(brokers_up(&statistics) as i64);
        // The coordinator has been there for a while. Whether it has answered, librdkafka doesn't
        // tell.
        let is_member = statistics.cgrp.as_ref().is_some_and(|group| {
            group.state == "up" && group.stateage >= i64::from(STATISTICS_INTERVAL_MS)
        });
        self.is_member.store(self.brokers_assign && is_member, Ordering::Release);
        let Some(topic) = statistics.topics.get(&self.topic) else { return };
        let (mut ends, mut unheard) = (lock(&self.ends), lock(&self.unheard));
        for (&partition, p) in topic.partitions.iter().filter(|(id, _)| **id >= 0) {
            // Of a transactional topic, the last stable offset is the end that can be read.
            let end = if p.ls_offset >= 0 { p.ls_offset } else { p.hi_offset };
            if end >= 0 {
                let is_read = p.fetchq_cnt == 0 && p.next_offset >= end;
                let withheld = (p.hi_offset - end).max(0);
                let beginning = p.lo_offset;
                ends.insert(partition, PartitionEnd { end, withheld, beginning, is_read });
            } else if p.next_offset >= 0 && p.fetchq_cnt == 0 {
                unheard.insert(partition, p.next_offset);
            }
        }
    }
}

impl ConsumerContext for SourceContext {
    fn rebalance(
        &self,
        consumer: &BaseConsumer<Self>,
        error: RDKafkaRespErr,
        partitions: &mut TopicPartitionList,
    ) {
        self.has_served();
        let assigned = error == RDKafkaRespErr::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS;
        if self.closing.load(Ordering::Acquire) {
            let done = match assigned {
                true => take(consumer, partitions),
                false => give_up(consumer, partitions),
            };
            if let Err(error) = done {
                tracing::warn!(%error, "a rebalance failed while leaving the group");
            }
            return;
        }
        let partitions = partitions.clone();
        if assigned {
            return self.note(Event::Assigned(partitions));
        }
        let lost = consumer.assignment_lost();
        // Now, for the group may go on before the source hears of it. Where the brokers assign they
        // wait.
        let is_pinned = !lost && !self.brokers_assign;
        let generation = is_pinned.then(|| consumer.group_metadata()).flatten();
        self.note(Event::Revoked { partitions, lost, generation });
    }
}

/// The source's consumer.
pub type SourceConsumer = BaseConsumer<SourceContext>;

/// A consumer that has joined no group yet. The sink's transactions need to know it before the
/// source runs.
pub struct Connection {
    /// The consumer.
    pub consumer: Arc<SourceConsumer>,
    /// Becomes ready when there is something to poll for.
    pub(super) wake: Receiver<()>,
    /// Those of the topic with which the group begins.
    pub(super) partitions: usize,
    /// What may be read anew by a restart alone.
    pub(super) renewed: Renewed,
}

impl Connection {
    /// Makes the consumer of a topic with so many partitions of which the group begins; `renewed` has
    /// noted its files before.
    ///
    /// # Errors
    ///
    /// When librdkafka refuses the configuration.
    pub fn new(
        config: &Config,
        partitions: usize,
        renewed: Renewed,
        metrics: &SourceMetrics,
    ) -> KafkaResult<Connection> {
        let context = SourceContext::new(config, metrics.brokers_up.clone());
        let mut properties = super::consumer_properties(config);
        tell_ids(&mut properties);
        let mut consumer: SourceConsumer = properties.create_with_context(context)?;
        let (sender, wake) = crossbeam_channel::bounded(1);
        consumer.set_nonempty_callback(move || {
            // A full channel means that the thread is to be woken already.
            let _ = sender.try_send(());
        });
        Ok(Connection { consumer: Arc::new(consumer), wake, partitions, renewed })
    }
}

/// A thread's hold on a client, which a panic of the thread doesn't loosen.
///
/// In the consumer's destructor librdkafka waits, without an end, until every rebalance has been
/// answered. After a panic of the source nobody answers; the process ends without the destructor.
pub struct Held<T>(Arc<T>);

impl<T> Held<T> {
    /// Takes hold.
    pub fn new(client: Arc<T>) -> Held<T> {
        Held(client)
    }
}

impl<T> Deref for Held<T> {
    type Target = Arc<T>;

    fn deref(&self) -> &Arc<T> {
        &self.0
    }
}

impl<T> Drop for Held<T> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            // One that is never let go of: whoever lets go last, the destructor doesn't run.
            std::mem::forget(Arc::clone(&self.0));
        }
    }
}

/// Takes the partitions that the group gives.
///
/// # Errors
///
/// When librdkafka refuses, which it does once it has been closed.
pub fn take(consumer: &SourceConsumer, partitions: &TopicPartitionList) -> KafkaResult<()> {
    match consumer.rebalance_protocol() {
        RebalanceProtocol::Cooperative => consumer.incremental_assign(partitions),
        RebalanceProtocol::Eager | RebalanceProtocol::None => consumer.assign(partitions),
    }
}

/// Answers the group's assignment without taking anything of it.
///
/// # Errors
///
/// As [`take`].
pub fn take_none(consumer: &SourceConsumer) -> KafkaResult<()> {
    take(consumer, &TopicPartitionList::new())
}

/// Returns whether an error of the consumer stays, however long it is waited, or passes over
/// messages.
pub fn is_final(error: &KafkaError) -> bool {
    matches!(error, KafkaError::MessageConsumptionFatal(_))
        || matches!(
            error.rdkafka_error_code(),
            Some(
                RDKafkaErrorCode::TopicAuthorizationFailed
                    | RDKafkaErrorCode::GroupAuthorizationFailed
                    | RDKafkaErrorCode::ClusterAuthorizationFailed
                    | RDKafkaErrorCode::UnknownTopicOrPartition
                    | RDKafkaErrorCode::FencedInstanceId
                    // With auto.offset.reset=error: the partition isn't fetched any more.
                    | RDKafkaErrorCode::AutoOffsetReset
                    // With check.crcs: librdkafka goes on behind the damaged batch.
                    | RDKafkaErrorCode::BadMessage
                    // A batch that can't be unpacked is fetched again and again; one of a format
                    // that librdkafka doesn't know is passed over.
                    | RDKafkaErrorCode::BadCompression
                    | RDKafkaErrorCode::NotImplemented
            )
        )
}

/// Gives up those of the partitions that the group asks back which have been taken.
///
/// # Errors
///
/// When librdkafka refuses, which it does once it has been closed.
pub fn give_up(consumer: &SourceConsumer, partitions: &TopicPartitionList) -> KafkaResult<()> {
    match consumer.rebalance_protocol() {
        RebalanceProtocol::Cooperative => {
            // It refuses the whole for one that it doesn't have.
            let taken = consumer.assignment()?;
            let mut held = TopicPartitionList::with_capacity(partitions.count());
            for element in partitions.elements() {
                if taken.find_partition(element.topic(), element.partition()).is_some() {
                    held.add_partition(element.topic(), element.partition());
                }
            }
            consumer.incremental_unassign(&held)
        }
        RebalanceProtocol::Eager | RebalanceProtocol::None => consumer.unassign(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::Metrics;

    #[test]
    fn a_damaged_batch_is_final_and_what_is_no_broker_is_not() {
        let brokers_up = Metrics::new().source.brokers_up;
        let context = SourceContext::new(&Config::default(), brokers_up);
        let is_final = |reason: &str| {
            context.error(KafkaError::Global(RDKafkaErrorCode::BadMessage), reason);
            context.is_final(&KafkaError::MessageConsumption(RDKafkaErrorCode::BadMessage))
        };
        assert!(is_final(
            "MessageSet at offset 7 (90 bytes) failed CRC32C check (original 0x1 != 0x2)"
        ));
        assert!(is_final("Fetch from broker 1 failed at offset 7: Local: Bad message format"));
        for passing in [
            "a:9092/1: Receive failed: Invalid response size 1213486160 (0..100000000)",
            "FindCoordinator response error: Local: Bad message format",
        ] {
            assert!(!is_final(passing), "{passing}");
        }
        let refused = KafkaError::MessageConsumption(RDKafkaErrorCode::GroupAuthorizationFailed);
        assert!(context.is_final(&refused));
    }

    #[test]
    fn a_client_is_not_destroyed_by_a_thread_that_panics() {
        for panics in [false, true] {
            let client = Arc::new(());
            let (held, alive) = (Held::new(Arc::clone(&client)), Arc::downgrade(&client));
            let thread = std::thread::spawn(move || {
                let _held = held;
                assert!(!panics, "on purpose");
            });
            assert_eq!(thread.join().is_err(), panics);
            drop(client);
            assert_eq!(alive.upgrade().is_some(), panics);
        }
    }
}

//! An eye on the vectors of a row while it runs.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

use crate::cluster::Cluster;
use crate::prover::source;

/// A reader of committed vectors that notes how far each input partition has come.
pub struct Watch {
    latest: Arc<Mutex<BTreeMap<i32, i64>>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Watch {
    /// Starts its thread.
    pub fn start(cluster: &Cluster, topic: &str) -> Watch {
        let consumer: BaseConsumer = cluster
            .client()
            .set("group.id", "the-watch")
            .set("enable.auto.commit", "false")
            .set("isolation.level", "read_committed")
            .create()
            .unwrap();
        let mut from = TopicPartitionList::new();
        for partition in cluster.leaders(topic).into_keys() {
            from.add_partition_offset(topic, partition, Offset::Beginning).unwrap();
        }
        consumer.assign(&from).unwrap();
        let latest: Arc<Mutex<BTreeMap<i32, i64>>> = Arc::default();
        let stop: Arc<AtomicBool> = Arc::default();
        let (of_thread, stopped) = (Arc::clone(&latest), Arc::clone(&stop));
        let thread = std::thread::Builder::new().name("watch".into()).spawn(move || {
            while !stopped.load(Ordering::Acquire) {
                // Brokers come and go here; librdkafka tries again by itself.
                let Some(Ok(record)) = consumer.poll(Duration::from_millis(100)) else { continue };
                if let Some((partition, offset)) = source(&record) {
                    let mut latest = of_thread.lock().unwrap();
                    let known = latest.entry(partition).or_insert(offset);
                    *known = offset.max(*known);
                }
            }
        });
        Watch { latest, stop, thread: Some(thread.unwrap()) }
    }

    /// Returns the latest offset of each partition that has a vector.
    pub fn latest(&self) -> BTreeMap<i32, i64> {
        self.latest.lock().unwrap().clone()
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            // It has nothing to say.
            drop(thread.join());
        }
    }
}

//! A thread that reads topics into a tally, for the demo and the benchmarks: what has come out of
//! the worker, and when.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow};
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::{BorrowedMessage, Headers, Message};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

use crate::kafka::consumer::is_final;
use crate::lock::lock;

/// The longest that the thread waits for a record: how late it may notice its stop.
const TICK: Duration = Duration::from_millis(50);

/// The thread, until it is dropped.
pub struct Reading<T> {
    thread: Option<JoinHandle<anyhow::Result<()>>>,
    tally: Arc<Mutex<T>>,
    stop: Arc<AtomicBool>,
}

impl<T: Default + Send + 'static> Reading<T> {
    /// Starts to read these partitions from their beginnings; `enter` takes each record, and when
    /// it came, into the tally.
    ///
    /// # Errors
    ///
    /// When the consumer or the thread can't be set to work.
    pub fn start(
        consumer: BaseConsumer,
        mut partitions: TopicPartitionList,
        mut enter: impl FnMut(&mut T, &BorrowedMessage<'_>, Instant) -> anyhow::Result<()>
        + Send
        + 'static,
    ) -> anyhow::Result<Reading<T>> {
        partitions.set_all_offsets(Offset::Beginning)?;
        consumer.assign(&partitions)?;
        let (tally, stop) = (Arc::<Mutex<T>>::default(), Arc::<AtomicBool>::default());
        let thread = std::thread::Builder::new().name("reading".into()).spawn({
            let (tally, stop) = (Arc::clone(&tally), Arc::clone(&stop));
            move || {
                while !stop.load(Ordering::Acquire) {
                    match consumer.poll(TICK) {
                        Some(Ok(record)) => {
                            let at = Instant::now();
                            enter(&mut lock(&tally), &record, at)?;
                        }
                        Some(Err(error)) if is_final(&error) => return Err(error.into()),
                        // Such as one of several brokers that is away: librdkafka tries again.
                        Some(Err(_)) | None => {}
                    }
                }
                Ok(())
            }
        })?;
        Ok(Reading { thread: Some(thread), tally, stop })
    }

    /// Returns what has come so far; reading waits until it is given back.
    pub fn tally(&self) -> MutexGuard<'_, T> {
        lock(&self.tally)
    }

    /// Finds out whether it still reads.
    ///
    /// # Errors
    ///
    /// With the reason, when it doesn't.
    pub fn check(&mut self) -> anyhow::Result<()> {
        match &self.thread {
            Some(thread) if !thread.is_finished() => Ok(()),
            Some(_) => self.join(),
            None => Err(anyhow!("the reader has failed")),
        }
    }

    /// Stops reading, and returns what has come.
    ///
    /// # Errors
    ///
    /// When reading failed.
    pub fn stop(mut self) -> anyhow::Result<T> {
        self.join()?;
        Ok(std::mem::take(&mut self.tally()))
    }

    fn join(&mut self) -> anyhow::Result<()> {
        self.stop.store(true, Ordering::Release);
        let ended = self.thread.take().map(|thread| thread.join().expect("it doesn't panic"));
        ended.unwrap_or(Ok(())).context("the reader failed")
    }
}

impl<T> Drop for Reading<T> {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            // Its error would have been told by check() or stop().
            drop(thread.join());
        }
    }
}

/// Numbers of messages that have come. Delivery is at least once: one may come again.
#[derive(Debug, Default)]
pub struct Numbers(Vec<bool>);

impl Numbers {
    /// Ticks a number off; returns whether it wasn't yet.
    pub fn is_first(&mut self, number: usize) -> bool {
        if number >= self.0.len() {
            self.0.resize(number + 1, false);
        }
        !std::mem::replace(&mut self.0[number], true)
    }
}

/// Returns the text of a record's first header of this name.
pub fn header(record: &BorrowedMessage<'_>, key: &str) -> Option<String> {
    let header = record.headers()?.iter().find(|header| header.key == key)?;
    Some(String::from_utf8_lossy(header.value?).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_is_ticked_off_once() {
        let mut numbers = Numbers::default();
        assert!(numbers.is_first(3) && numbers.is_first(0));
        assert!(!numbers.is_first(3));
    }
}

//! Calls into librdkafka that may never return.
//!
//! `rd_kafka_send_offsets_to_transaction` keeps no timeout while the group's coordinator is away:
//! its request waits for a broker to come or go, without a timer
//! (<https://github.com/confluentinc/librdkafka/issues/5456>, and 5511 for one that has left the
//! cluster). It is made on a thread of its own, which is left behind, with its producer, if it
//! isn't back in time. Most come back with their broker, and then end.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::RecvTimeoutError;
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};

/// How often the caller looks whether it has to stop.
const TICK: Duration = Duration::from_millis(100);

/// A call that isn't back holds a producer with its threads and connections. With so many of them
/// the worker does better to begin anew.
const OUT_MAX: usize = 8;

/// Counts the calls that aren't back.
#[derive(Default)]
pub(super) struct Detached {
    out: Arc<AtomicUsize>,
}

/// A call while it isn't back.
struct Out(Arc<AtomicUsize>);

impl Drop for Out {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Detached {
    /// Makes a call and waits for it; what the call owns stays with it until it is back.
    ///
    /// # Errors
    ///
    /// The call's own; [`RDKafkaErrorCode::OperationTimedOut`] where it isn't back in time, or the
    /// caller has to stop; [`RDKafkaErrorCode::CriticalSystemResource`] where too many aren't back,
    /// or the system has no thread to give.
    pub(super) fn call(
        &self,
        patience: Duration,
        must_stop: impl Fn() -> bool,
        call: impl FnOnce() -> KafkaResult<()> + Send + 'static,
    ) -> KafkaResult<()> {
        let out = Out(Arc::clone(&self.out));
        if self.out.fetch_add(1, Ordering::AcqRel) >= OUT_MAX {
            tracing::error!(calls = OUT_MAX, "calls into librdkafka don't return");
            return Err(KafkaError::Global(RDKafkaErrorCode::CriticalSystemResource));
        }
        let (answer, answered) = crossbeam_channel::bounded(1);
        let work = move || {
            let result = call();
            drop(out);
            // Nobody waits any more for one that was left behind.
            let _ = answer.send(result);
        };
        if let Err(error) = std::thread::Builder::new().name("capvec-offsets".into()).spawn(work) {
            tracing::error!(%error, "no thread can be made");
            return Err(KafkaError::Global(RDKafkaErrorCode::CriticalSystemResource));
        }
        let until = Instant::now() + patience;
        loop {
            match answered.recv_timeout(TICK) {
                Ok(result) => return result,
                Err(RecvTimeoutError::Timeout) if Instant::now() < until && !must_stop() => {}
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {
                    return Err(KafkaError::Global(RDKafkaErrorCode::OperationTimedOut));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHORT: Duration = Duration::from_millis(1);
    const LONG: Duration = Duration::from_secs(60);

    fn code(result: KafkaResult<()>) -> Option<RDKafkaErrorCode> {
        result.err().and_then(|error| error.rdkafka_error_code())
    }

    #[test]
    fn a_call_that_comes_back_gives_its_result() {
        let detached = Detached::default();
        assert!(detached.call(LONG, || false, || Ok(())).is_ok());
        let failed = KafkaError::Global(RDKafkaErrorCode::NotCoordinator);
        let result = detached.call(LONG, || false, move || Err(failed));
        assert_eq!(code(result), Some(RDKafkaErrorCode::NotCoordinator));
        assert_eq!(detached.out.load(Ordering::Acquire), 0);
    }

    #[test]
    fn calls_that_do_not_come_back_are_left_behind_up_to_a_number() {
        let detached = Detached::default();
        let (release, blocked) = crossbeam_channel::bounded::<()>(0);
        let block = || {
            let blocked = blocked.clone();
            move || {
                let _ = blocked.recv();
                Ok(())
            }
        };
        for n in 0..OUT_MAX {
            // One that is to stop doesn't wait for the patience.
            let patience = if n == 0 { LONG } else { SHORT };
            let result = detached.call(patience, || n == 0, block());
            assert_eq!(code(result), Some(RDKafkaErrorCode::OperationTimedOut));
        }
        let result = detached.call(SHORT, || false, || Ok(()));
        assert_eq!(code(result), Some(RDKafkaErrorCode::CriticalSystemResource));
        assert_eq!(detached.out.load(Ordering::Acquire), OUT_MAX);
        drop(release);
        let until = Instant::now() + LONG;
        while detached.out.load(Ordering::Acquire) > 0 {
            assert!(Instant::now() < until, "the calls aren't back");
            std::thread::yield_now();
        }
        assert!(detached.call(LONG, || false, || Ok(())).is_ok());
    }
}

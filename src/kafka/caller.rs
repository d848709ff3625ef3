//! A thread that makes one blocking call of librdkafka at a time.
//!
//! Some answers librdkafka gives only to a caller who waits, and the source must go on polling
//! meanwhile.

use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, TryRecvError};

/// Makes calls, one at a time.
pub struct Caller<Request, Answer> {
    requests: Sender<Request>,
    answers: Receiver<Answer>,
    is_busy: bool,
    thread: JoinHandle<()>,
}

impl<Request: Send + 'static, Answer: Send + 'static> Caller<Request, Answer> {
    /// Starts the thread. It ends where a call gives nothing.
    ///
    /// # Errors
    ///
    /// When the system has no thread to give.
    pub fn start(
        name: &str,
        mut call: impl FnMut(Request) -> Option<Answer> + Send + 'static,
    ) -> std::io::Result<Caller<Request, Answer>> {
        let (requests, requested) = crossbeam_channel::bounded::<Request>(1);
        let (answered, answers) = crossbeam_channel::bounded(1);
        let thread = std::thread::Builder::new().name(name.into()).spawn(move || {
            for request in requested {
                let Some(answer) = call(request) else { return };
                // One call is under way at a time, so there is room for its answer.
                if answered.send(answer).is_err() {
                    return;
                }
            }
        })?;
        Ok(Caller { requests, answers, is_busy: false, thread })
    }

    /// Returns whether a call is under way.
    pub fn is_busy(&self) -> bool {
        self.is_busy
    }

    /// Begins a call.
    ///
    /// # Panics
    ///
    /// While another is under way, and where the thread has ended.
    pub fn ask(&mut self, request: Request) {
        assert!(!self.is_busy, "one call at a time");
        self.requests.send(request).expect("a thread that has ended is found by the answer");
        self.is_busy = true;
    }

    /// Returns the answer, once.
    ///
    /// # Panics
    ///
    /// Where the thread has ended without one: what it was asked for would never be done.
    pub fn answer(&mut self) -> Option<Answer> {
        if !self.is_busy {
            return None;
        }
        match self.answers.try_recv() {
            Ok(answer) => {
                self.is_busy = false;
                Some(answer)
            }
            Err(TryRecvError::Empty) => None,
            Err(TryRecvError::Disconnected) => panic!(
                "the thread {} has ended in the middle of a call",
                self.thread.thread().name().unwrap_or_default()
            ),
        }
    }

    /// Ends the thread; returns `false` where the call that is under way takes longer than is
    /// waited.
    pub fn stop(self, patience: Duration) -> bool {
        if self.is_busy
            && let Err(RecvTimeoutError::Timeout) = self.answers.recv_timeout(patience)
        {
            return false;
        }
        drop((self.requests, self.answers));
        // What it panicked with has been told.
        drop(self.thread.join());
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Instant;

    fn await_answer<A: Send + 'static>(caller: &mut Caller<i32, A>) -> A {
        let deadline = Instant::now() + Duration::from_secs(30);
        loop {
            if let Some(answer) = caller.answer() {
                return answer;
            }
            assert!(Instant::now() < deadline, "no answer");
            std::thread::yield_now();
        }
    }

    #[test]
    fn calls_are_made_one_at_a_time() {
        let (go, may_go) = crossbeam_channel::bounded::<()>(0);
        let call = move |number: i32| {
            may_go.recv().unwrap();
            Some(number + 1)
        };
        let mut caller = Caller::start("caller", call).unwrap();
        assert_eq!(caller.answer(), None, "nothing was asked");
        for number in 0..3 {
            caller.ask(number);
            assert!(caller.is_busy());
            assert_eq!(caller.answer(), None, "it is under way");
            go.send(()).unwrap();
            assert_eq!(await_answer(&mut caller), number + 1);
            assert!(!caller.is_busy());
        }
        assert!(caller.stop(Duration::ZERO));
    }

    #[test]
    fn a_call_that_takes_too_long_is_left_alone() {
        for (is_answered, patience) in [(false, Duration::ZERO), (true, Duration::from_secs(30))] {
            let (go, may_go) = crossbeam_channel::bounded::<()>(1);
            let mut caller = Caller::start("caller", move |()| may_go.recv().ok()).unwrap();
            caller.ask(());
            if is_answered {
                go.send(()).unwrap();
            }
            assert_eq!(caller.stop(patience), is_answered);
        }
    }

    #[test]
    #[should_panic = "the thread caller has ended in the middle of a call"]
    fn a_thread_that_panics_is_no_call_that_takes_long() {
        let mut caller = Caller::<i32, ()>::start("caller", |_| panic!("on purpose")).unwrap();
        caller.ask(0);
        await_answer(&mut caller);
    }
}

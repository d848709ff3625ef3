//! The circuit breaker: notices that rejections are no longer single bad messages.
//!
//! When most messages are rejected, the fault is a wrong pointer, a wrong topic or a producer that
//! has changed. Going on would empty the topic into the dead-letter topic, so the worker stops.

use std::collections::VecDeque;

use thiserror::Error;

use crate::config::RejectOptions;

/// Why the worker stops.
#[derive(Clone, Copy, Debug, PartialEq, Error)]
pub enum Tripped {
    /// Too many in a row.
    #[error("{run} messages in a row were rejected (reject.breaker_run)")]
    Run {
        /// How many.
        run: usize,
    },
    /// Too many of the last messages.
    #[error(
        "{rejected} of the last {window} messages were rejected, more than reject.breaker_share \
         allows"
    )]
    Share {
        /// How many were rejected.
        rejected: usize,
        /// Of how many.
        window: usize,
    },
}

/// Counts rejections, in a row and of the last messages.
#[derive(Debug)]
pub struct Breaker {
    run_max: usize,
    share_max: f64,
    window_max: usize,
    run: usize,
    /// Whether each of the last messages was rejected.
    window: VecDeque<bool>,
    rejected: usize,
}

impl Breaker {
    /// Returns a breaker that has seen nothing.
    pub fn new(options: &RejectOptions) -> Breaker {
        Breaker {
            run_max: if options.breaker_run == 0 { usize::MAX } else { options.breaker_run },
            share_max: options.breaker_share,
            window_max: options.breaker_window.get(),
            run: 0,
            window: VecDeque::new(),
            rejected: 0,
        }
    }

    /// Notes a message that was not rejected.
    pub fn accepted(&mut self) {
        self.run = 0;
        self.enter(false);
    }

    /// Notes one that was.
    pub fn rejected(&mut self) {
        self.run += 1;
        self.enter(true);
    }

    /// Notes that a message which was taken for a good one was rejected in the end.
    pub fn rejected_after_all(&mut self) {
        self.run += 1;
        // Which one it was doesn't matter to the number of them.
        if let Some(entry) = self.window.iter_mut().rev().find(|rejected| !**rejected) {
            *entry = true;
            self.rejected += 1;
        }
    }

    fn enter(&mut self, rejected: bool) {
        if self.window.len() == self.window_max && self.window.pop_front() == Some(true) {
            self.rejected -= 1;
        }
        self.window.push_back(rejected);
        self.rejected += usize::from(rejected);
    }

    /// Returns the number of rejections since the last good message.
    pub fn run(&self) -> usize {
        self.run
    }

    /// Returns the part of the last messages that was rejected.
    pub fn share(&self) -> f64 {
        self.rejected as f64 / self.window.len().max(1) as f64
    }

    /// Returns why to stop, if there is a reason.
    ///
    /// # Errors
    ///
    /// When there are too many rejections in a row, or in a full window.
    pub fn check(&self) -> Result<(), Tripped> {
        if self.run >= self.run_max {
            return Err(Tripped::Run { run: self.run });
        }
        if self.window.len() == self.window_max && self.share() > self.share_max {
            return Err(Tripped::Share { rejected: self.rejected, window: self.window_max });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn breaker(run: usize, share: f64, window: usize) -> Breaker {
        Breaker::new(&RejectOptions {
            breaker_run: run,
            breaker_share: share,
            breaker_window: window.try_into().unwrap(),
            ..RejectOptions::default()
        })
    }

    #[test]
    fn a_run_trips_it_and_a_good_message_ends_the_run() {
        let mut breaker = breaker(3, 1.0, 100);
        for _ in 0..10 {
            breaker.rejected();
            breaker.rejected();
            assert_eq!(breaker.check(), Ok(()));
            breaker.accepted();
        }
        breaker.rejected();
        breaker.rejected_after_all();
        breaker.rejected();
        assert_eq!(breaker.check(), Err(Tripped::Run { run: 3 }));
    }

    #[test]
    fn a_share_trips_it_once_the_window_is_full() {
        let mut breaker = breaker(0, 0.5, 4);
        for rejected in [true, true, false] {
            if rejected {
                breaker.rejected()
            } else {
                breaker.accepted()
            }
            assert_eq!(breaker.check(), Ok(()), "the window isn't full");
        }
        breaker.accepted();
        assert_eq!(breaker.check(), Ok(()), "half is not more than half");
        breaker.rejected_after_all();
        assert_eq!(breaker.check(), Err(Tripped::Share { rejected: 3, window: 4 }));
        for _ in 0..4 {
            breaker.accepted();
        }
        assert_eq!(breaker.share(), 0.0, "it left the window like the others");
    }

    #[test]
    fn it_can_be_switched_off() {
        let mut breaker = breaker(0, 1.0, 10);
        for _ in 0..1000 {
            breaker.rejected();
            assert_eq!(breaker.check(), Ok(()));
        }
        assert_eq!(breaker.share(), 1.0);
    }

    proptest! {
        #[test]
        fn it_counts_the_last_messages(
            messages in prop::collection::vec(any::<bool>(), 0..200),
            window in 1..50usize,
        ) {
            let mut breaker = breaker(0, 1.0, window);
            for &rejected in &messages {
                if rejected { breaker.rejected() } else { breaker.accepted() }
            }
            let last = &messages[messages.len().saturating_sub(window)..];
            let expected = last.iter().filter(|r| **r).count() as f64 / last.len().max(1) as f64;
            prop_assert_eq!(breaker.share(), expected);
            prop_assert_eq!(breaker.run(), messages.iter().rev().take_while(|r| **r).count());
        }
    }
}

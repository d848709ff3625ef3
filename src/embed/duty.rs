//! How long a device has a pass under way, whichever of its embedders runs it: its duty cycle.

use std::sync::{Arc, Mutex};
use std::time::Instant;

use prometheus::Counter;

use crate::lock::lock;

/// The clock of one device. Clones are the same clock.
#[derive(Clone, Debug)]
pub struct DutyClock {
    state: Arc<Mutex<State>>,
    seconds: Counter,
}

#[derive(Debug)]
struct State {
    running: usize,
    /// Up to when the time is counted.
    counted: Instant,
}

impl DutyClock {
    /// Returns a clock that counts into `seconds`.
    pub fn new(seconds: Counter) -> DutyClock {
        let state = State { running: 0, counted: Instant::now() };
        DutyClock { state: Arc::new(Mutex::new(state)), seconds }
    }

    /// Runs a pass on the device.
    pub fn run<T>(&self, pass: impl FnOnce() -> T) -> T {
        self.change(|running| running + 1);
        let result = pass();
        self.change(|running| running - 1);
        result
    }

    /// Counts what has gone by, so that passes that overlap without end are counted all the time.
    fn change(&self, of: impl FnOnce(usize) -> usize) {
        let mut state = lock(&self.state);
        let now = Instant::now();
        if state.running > 0 {
            self.seconds.inc_by((now - state.counted).as_secs_f64());
        }
        state.counted = now;
        state.running = of(state.running);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Barrier;
    use std::time::Duration;

    #[test]
    fn passes_at_the_same_time_count_once() {
        let seconds = Counter::new("seconds", "seconds").unwrap();
        let clock = DutyClock::new(seconds.clone());
        let both = Barrier::new(2);
        let started = Instant::now();
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    clock.run(|| {
                        both.wait();
                        let began = Instant::now();
                        while began.elapsed() < Duration::from_millis(30) {
                            std::hint::spin_loop();
                        }
                        both.wait();
                    });
                });
            }
        });
        let (counted, all) = (seconds.get(), started.elapsed().as_secs_f64());
        assert!((0.03..=all).contains(&counted), "{counted} of {all}");
        // A pass that begins later counts from its own beginning.
        let idle = Instant::now();
        while idle.elapsed() < Duration::from_millis(30) {
            std::hint::spin_loop();
        }
        let began = Instant::now();
        clock.run(|| ());
        assert!(seconds.get() - counted <= began.elapsed().as_secs_f64());
    }
}

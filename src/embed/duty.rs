//! How long a device has passes under way, whichever of its embedders runs them: its duty cycle.

use std::sync::{Arc, Mutex};
use std::time::Instant;

use prometheus::Counter;

use crate::lock::lock;

/// The clock of one device. Clones are the same clock.
#[derive(Clone, Debug)]
pub struct DutyClock {
    state: Arc<Mutex<State>>,
    device_seconds: Counter,
    pass_seconds: Counter,
}

#[derive(Debug)]
struct State {
    running: usize,
    /// Up to when the time is counted.
    counted: Instant,
}

impl DutyClock {
    /// Returns a clock that counts into `device_seconds` while a pass is under way, one or more,
    /// and into `pass_seconds` the time of each.
    pub fn new(device_seconds: Counter, pass_seconds: Counter) -> DutyClock {
        let state = State { running: 0, counted: Instant::now() };
        DutyClock { state: Arc::new(Mutex::new(state)), device_seconds, pass_seconds }
    }

    /// Runs a pass on the device.
    pub fn run<T>(&self, pass: impl FnOnce() -> T) -> T {
        self.change(|running| running + 1);
        let result = pass();
        self.change(|running| running - 1);
        result
    }

    /// Counts what has gone by of passes that haven't ended. A pass may take longer than it is from
    /// one look at the counters to the next.
    pub fn count(&self) {
        self.change(|running| running);
    }

    /// Counts what has gone by, so that passes that overlap without end are counted all the time.
    fn change(&self, of: impl FnOnce(usize) -> usize) {
        let mut state = lock(&self.state);
        let now = Instant::now();
        if state.running > 0 {
            let seconds = (now - state.counted).as_secs_f64();
            self.device_seconds.inc_by(seconds);
            self.pass_seconds.inc_by(state.running as f64 * seconds);
        }
        state.counted = now;
        state.running = of(state.running);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::Metrics;
    use std::sync::Barrier;
    use std::time::Duration;

    #[test]
    fn a_pass_counts_while_it_runs() {
        let metrics = Metrics::new();
        let clock = metrics.embed.clock_of("cpu");
        clock.run(|| {
            let began = Instant::now();
            while began.elapsed() < Duration::from_millis(5) {
                std::hint::spin_loop();
            }
            let text = metrics.render();
            let none = "capvec_embed_device_busy_seconds_total{device=\"cpu\"} 0\n";
            assert!(!text.contains(none), "{text}");
            assert!(!text.contains("\ncapvec_embed_busy_seconds_total 0\n"), "{text}");
        });
    }

    #[test]
    fn passes_at_the_same_time_count_once() {
        let [seconds, passes] = [(); 2].map(|()| Counter::new("seconds", "seconds").unwrap());
        let clock = DutyClock::new(seconds.clone(), passes.clone());
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
        let of_both = passes.get();
        assert!((0.06..=2.0 * all).contains(&of_both), "{of_both} of twice {all}");
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

//! How the worker is asked to stop.
//!
//! A stop is a word, not a wait: the source looks at it every few milliseconds and then closes the
//! first channel, and every stage ends when the one before it has. The first SIGTERM or SIGINT asks
//! for a drain, a second one ends the process at once.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, Instant};

use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

/// Signals within this time are one stop: some tools send theirs to the process and to its group.
const ONE_STOP: Duration = Duration::from_secs(1);

/// What is asked of the source, and of the sink.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Wanted {
    /// Go on.
    Run = 0,
    /// Take nothing more, settle what is in flight, commit, leave.
    Drain = 1,
    /// A stage has failed: commit what is settled, leave.
    Abort = 2,
}

/// A shared word; clones are the same one.
#[derive(Clone, Debug, Default)]
pub struct Shutdown(Arc<AtomicU8>);

impl Shutdown {
    /// Returns what is asked.
    pub fn wanted(&self) -> Wanted {
        match self.0.load(Ordering::Acquire) {
            0 => Wanted::Run,
            1 => Wanted::Drain,
            _ => Wanted::Abort,
        }
    }

    /// Asks for a drain, unless for more has been asked.
    pub fn drain(&self) {
        self.0.fetch_max(Wanted::Drain as u8, Ordering::AcqRel);
    }

    /// Asks for an end without a drain.
    pub fn abort(&self) {
        self.0.fetch_max(Wanted::Abort as u8, Ordering::AcqRel);
    }

    /// Drains at the first SIGTERM or SIGINT, and exits with 128 + the signal's number at the
    /// second.
    ///
    /// # Errors
    ///
    /// When the system refuses the handlers.
    pub fn on_signals(&self) -> std::io::Result<()> {
        let mut signals = Signals::new([SIGTERM, SIGINT])?;
        let shutdown = self.clone();
        std::thread::Builder::new().name("capvec-signals".into()).spawn(move || {
            let mut first: Option<Instant> = None;
            for signal in signals.forever() {
                match first {
                    None => {
                        first = Some(Instant::now());
                        let wanted = shutdown.wanted();
                        shutdown.drain();
                        // One that ends of a failure says why when it has ended.
                        match wanted {
                            Wanted::Run => {
                                tracing::info!(signal, "stopping: settling what is embedded");
                            }
                            _ => {
                                tracing::info!(signal, "stopping already; another ends it at once")
                            }
                        }
                    }
                    Some(first) if first.elapsed() > ONE_STOP => {
                        tracing::warn!(signal, "stopping at once");
                        std::process::exit(128 + signal);
                    }
                    Some(_) => {}
                }
            }
        })?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_drain_does_not_undo_an_abort() {
        let shutdown = Shutdown::default();
        assert_eq!(shutdown.wanted(), Wanted::Run);
        shutdown.abort();
        shutdown.drain();
        assert_eq!(shutdown.wanted(), Wanted::Abort);
    }
}

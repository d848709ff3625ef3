//! Progress of long work: a bar on a terminal, a log line every few seconds elsewhere.

use std::fmt;
use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressState, ProgressStyle};

use super::tell;

/// Between two lines where there is no terminal.
const LINE_INTERVAL: Duration = Duration::from_secs(5);

/// What is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// Bytes.
    Bytes,
    /// Captions.
    Captions,
    /// Captions of which nobody knows how many are still to come.
    Stream,
    /// Measurements.
    Measurements,
    /// Records of a topic, passed over ones included.
    Records,
}

/// A piece of work that takes a while.
pub struct LongWork {
    bar: Option<ProgressBar>,
    what: &'static str,
    unit: Unit,
    started: Instant,
    last_line: Instant,
    done: u64,
}

impl LongWork {
    /// Starts showing; `total` is `None` where it isn't known.
    pub fn start(what: &'static str, unit: Unit, total: Option<u64>) -> LongWork {
        let bar = std::io::stderr().is_terminal().then(|| {
            let counts = match unit {
                Unit::Bytes => "{bytes}/{total_bytes}  {bytes_per_sec}",
                Unit::Captions => "{human_pos}/{human_len} captions  {rate}",
                Unit::Stream => "{human_pos} captions  {rate}",
                Unit::Measurements => "{pos}/{len}",
                Unit::Records => "{human_pos}/{human_len} records  {rate}",
            };
            let template = match unit {
                Unit::Stream => {
                    format!("{{prefix}} {{spinner}} {counts}  {{elapsed}} {{msg:.dim}}")
                }
                _ => format!("{{prefix}} {{bar:30}} {counts}  {{eta}} {{msg:.dim}}"),
            };
            let style = ProgressStyle::with_template(&template).expect("the template is valid");
            // The library's own has four decimals. A string takes whatever is written into it.
            let rate = |state: &ProgressState, out: &mut dyn fmt::Write| {
                let _ = write!(out, "{:.0}/s", state.per_sec());
            };
            let bar = ProgressBar::new(total.unwrap_or(0));
            bar.set_style(style.with_key("rate", rate));
            bar.set_prefix(what);
            bar
        });
        let now = Instant::now();
        LongWork { bar, what, unit, started: now, last_line: now, done: 0 }
    }

    /// Shows how much is done, of how much where that is known, and what is being done.
    pub fn update(&mut self, done: u64, total: impl Into<Option<u64>>, doing: &str) {
        self.done = done;
        let total = total.into();
        if let Some(bar) = &self.bar {
            if let Some(total) = total {
                bar.set_length(total);
            }
            bar.set_position(done);
            bar.set_message(doing.to_owned());
        } else if self.last_line.elapsed() >= LINE_INTERVAL {
            self.last_line = Instant::now();
            let of = total.map_or(String::new(), |total| format!(" of {}", self.show(total)));
            let doing = if doing.is_empty() { String::new() } else { format!(", {doing}") };
            tell(format_args!("{}: {}{of}{doing}", self.what, self.show(done)));
        }
    }

    /// Stops showing, and says how much was done in which time.
    pub fn finish(self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
        let seconds = self.started.elapsed().as_secs_f64();
        let rate = match self.unit {
            Unit::Bytes | Unit::Measurements => String::new(),
            Unit::Captions | Unit::Stream | Unit::Records => {
                format!(", {:.0} a second", self.done as f64 / seconds)
            }
        };
        tell(format_args!("{}: {} in {seconds:.1} s{rate}", self.what, self.show(self.done)));
    }

    fn show(&self, number: u64) -> String {
        match self.unit {
            Unit::Bytes => format!("{:.1} MB", number as f64 / 1e6),
            Unit::Captions | Unit::Stream => counted(number, "caption"),
            Unit::Measurements => counted(number, "measurement"),
            Unit::Records => counted(number, "record"),
        }
    }
}

/// Returns a number of things of this name.
pub fn counted(number: u64, name: &str) -> String {
    format!("{number} {name}{}", if number == 1 { "" } else { "s" })
}

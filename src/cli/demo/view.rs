//! What a person sees while the demo runs.
//!
//! On a terminal it is a panel of a few lines that is drawn over itself four times a second, with
//! vectors passing by above it. Elsewhere it is a log line every two seconds.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use console::{StyledObject, Term, style};
use indicatif::HumanCount;

use super::figures::{DemoFigures, Snapshot, show_ms};
use super::reader::{PassingDeadLetter, PassingVector, Tally};
use crate::cli::reading::Reading;
use crate::cli::terminal::{Panel, bar, sparkline};
use crate::cli::{logging, tell};
use crate::config::LogOptions;

/// Between two drawings.
const DRAW_INTERVAL: Duration = Duration::from_millis(250);

/// Between two log lines where there is no terminal.
const LINE_INTERVAL: Duration = Duration::from_secs(2);

/// Between two snapshots of the history, two columns of the sparkline, and two vectors.
const SECOND: Duration = Duration::from_secs(1);

/// Columns of the sparkline.
const SPARKLINE_SECONDS: usize = 30;

/// The span of the other figures: short enough to follow, long enough to be calm.
const WINDOW_SECONDS: usize = 5;

/// A dead letter is shown in the place of each vector whose number this divides.
const DEAD_LETTER_EVERY: u64 = 5;

/// Cells of the embedder's bar.
const BAR: usize = 12;

/// What doesn't change while the demo runs.
#[derive(Clone, Debug)]
pub struct Facts {
    /// The model's id.
    pub model_id: String,
    /// Whether its weights are random.
    pub is_synthetic: bool,
    /// Where the admin endpoints are.
    pub admin: SocketAddr,
    /// Most captions in the worker.
    pub in_flight_max: usize,
}

/// How far the demo is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Captions are produced for as long.
    Producing(Duration),
    /// All are produced, and the worker goes on until all are settled.
    Settling,
    /// The worker settles what is in flight, and takes nothing more.
    Draining,
}

/// The live view.
pub struct View {
    screen: Screen,
    /// A snapshot a second, the oldest first.
    history: VecDeque<Snapshot>,
}

enum Screen {
    Terminal(Canvas),
    Log { last_line: Option<Instant> },
}

/// The terminal, and what is on it.
struct Canvas {
    panel: Panel,
    drawn: Option<Instant>,
    /// When something passed by last.
    passed: Option<Instant>,
    /// How much has passed by.
    passages: u64,
}

// === impl View ===

impl View {
    /// Finds out what kind of view there can be, and starts the log.
    pub fn start() -> View {
        let panel = Panel::on(Term::stderr());
        // A log line within the panel would tear it; what matters comes back as an error. The
        // embedded broker has no data to lose, and says so often.
        let filter = if panel.is_some() { "error,librdkafka=off" } else { "info,librdkafka=error" };
        logging::start(&LogOptions { filter: filter.into(), ..LogOptions::default() });
        let screen = match panel {
            Some(panel) => {
                Screen::Terminal(Canvas { panel, drawn: None, passed: None, passages: 0 })
            }
            None => Screen::Log { last_line: None },
        };
        View { screen, history: VecDeque::new() }
    }

    /// Says a sentence, before the panel is there.
    pub fn say(&self, sentence: &str) {
        match &self.screen {
            Screen::Terminal(_) => tell(sentence),
            Screen::Log { .. } => tracing::info!("{sentence}"),
        }
    }

    /// Shows how things are. Call it often; it takes care of the pace.
    pub fn show(&mut self, facts: &Facts, now: &Snapshot, reader: &Reading<Tally>, phase: Phase) {
        if is_over(self.history.back().map(|last| last.at), SECOND, now.at) {
            self.history.push_back(now.clone());
            if self.history.len() > SPARKLINE_SECONDS + 1 {
                self.history.pop_front();
            }
        }
        let from = self.history.len().saturating_sub(WINDOW_SECONDS + 1);
        let figures = now.since(&self.history[from]);
        match &mut self.screen {
            Screen::Log { last_line } => {
                if is_over(*last_line, LINE_INTERVAL, now.at) {
                    *last_line = Some(now.at);
                    log(now, &figures);
                }
            }
            Screen::Terminal(canvas) => {
                if is_over(canvas.drawn, DRAW_INTERVAL, now.at) {
                    let pairs = self.history.iter().zip(self.history.iter().skip(1));
                    let per_second: Vec<f64> =
                        pairs.map(|(then, next)| next.since(then).vectors_per_second).collect();
                    canvas.draw(now.at, reader, |width| {
                        panel(facts, now, &figures, &per_second, phase, width)
                    });
                }
            }
        }
    }

    /// Takes the panel away.
    pub fn finish(&mut self) {
        if let Screen::Terminal(canvas) = &mut self.screen {
            canvas.write(&[], |_| Vec::new());
        }
    }
}

fn is_over(since: Option<Instant>, interval: Duration, now: Instant) -> bool {
    since.is_none_or(|since| now - since >= interval)
}

// === impl Canvas ===

impl Canvas {
    fn draw(
        &mut self,
        now: Instant,
        reader: &Reading<Tally>,
        panel: impl FnOnce(usize) -> Vec<String>,
    ) {
        self.drawn = Some(now);
        let mut passing = Vec::new();
        if is_over(self.passed, SECOND, now) {
            self.passages += 1;
            passing = passing_by(reader, self.passages.is_multiple_of(DEAD_LETTER_EVERY));
            self.passed = Some(now).filter(|_| !passing.is_empty());
        }
        self.write(&passing, panel);
    }

    fn write(&mut self, passing: &[String], panel: impl FnOnce(usize) -> Vec<String>) {
        // A terminal that is gone has nobody to tell.
        drop(self.panel.draw(passing, panel));
    }
}

fn panel(
    facts: &Facts,
    now: &Snapshot,
    figures: &DemoFigures,
    per_second: &[f64],
    phase: Phase,
    width: usize,
) -> Vec<String> {
    let (phase, hint) = match phase {
        Phase::Producing(left) => {
            (format!("{} s left", left.as_secs_f64().ceil()), "Ctrl-C drains and ends")
        }
        Phase::Settling => ("settling".into(), "all is produced; Ctrl-C leaves the rest"),
        Phase::Draining => ("draining".into(), "a second Ctrl-C ends at once"),
    };
    let model = match facts.is_synthetic {
        true => format!("{} (random weights, no meaning)", facts.model_id),
        false => facts.model_id.clone(),
    };
    let waits = if now.held_back { ", waits for the worker" } else { "" };
    let cut = figures.cut.iter().map(|(why, share)| format!("{why} {:.0} %", share * 100.0));
    let rejected = match now.rejected.is_empty() {
        true => "none".into(),
        false => counts(&now.rejected),
    };
    let line = |title: &str, text: String| format!("{} {text}", dim(format!("{title:<10}")));
    vec![
        dim("─".repeat(width)).to_string(),
        line("model", model),
        line(
            "vectors",
            format!(
                "{} {}",
                bold(format!("{:>5.0} a second", figures.vectors_per_second)),
                green(sparkline(per_second)),
            ),
        ),
        line(
            "latency",
            format!(
                "{} median, {} for 99 %; produced to read back",
                bold(show_ms(figures.p50_ms)),
                bold(show_ms(figures.p99_ms)),
            ),
        ),
        line(
            "batch",
            format!(
                "{} captions, {:.0}{} tokens; cut when {}",
                bold(format!("{:.1}", figures.batch_captions)),
                figures.batch_tokens,
                of_limit(now.batch_tokens_limit),
                cut.collect::<Vec<_>>().join(", "),
            ),
        ),
        line(
            "embedder",
            format!("{} {:.0} % busy", green(bar(figures.busy, BAR)), figures.busy * 100.0),
        ),
        line(
            "in flight",
            format!(
                "{} of {}; {} wait in the topic",
                bold(HumanCount(now.in_flight).to_string()),
                facts.in_flight_max,
                HumanCount(now.produced.saturating_sub(now.settled + now.in_flight)),
            ),
        ),
        line("rejected", rejected),
        line(
            "so far",
            format!(
                "{} in{waits}; {} vectors, {} tombstones",
                HumanCount(now.produced),
                HumanCount(now.vectors),
                now.tombstones
            ),
        ),
        line("metrics", format!("http://{}/metrics", facts.admin)),
        line(&phase, hint.into()),
    ]
}

/// The limit behind a number of tokens, once it is known.
fn of_limit(limit: u64) -> String {
    if limit == 0 { String::new() } else { format!(" of {limit}") }
}

/// Takes what passes by from the reader, as lines. The caption has a line of its own, for one that
/// is written from right to left would turn what stands beside it around.
fn passing_by(reader: &Reading<Tally>, prefer_dead_letter: bool) -> Vec<String> {
    let mut tally = reader.tally();
    if prefer_dead_letter
        && let Some(PassingDeadLetter { reason, detail }) = tally.dead_letter.take()
    {
        return vec![format!("{}  {detail}", style(reason).yellow().for_stderr())];
    }
    tally.vector.take().as_ref().map_or_else(Vec::new, describe)
}

fn describe(vector: &PassingVector) -> Vec<String> {
    let PassingVector { lang, caption, tokens, numbers } = vector;
    // A line break in a caption would break the panel's arithmetic.
    let caption: String = caption.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    let first: Vec<String> = numbers.iter().take(4).map(|n| format!("{n:.3}")).collect();
    let norm = numbers.iter().map(|n| f64::from(*n).powi(2)).sum::<f64>().sqrt();
    let figures = format!(
        "{:7} {tokens} tokens → [{}, …] {} numbers, ‖v‖ {norm:.1}",
        "",
        first.join(", "),
        numbers.len(),
    );
    vec![format!("{} {caption}", bold(format!("{lang:<7}"))), dim(figures).to_string()]
}

fn log(now: &Snapshot, figures: &DemoFigures) {
    let whole = |number: f64| number.round() as u64;
    tracing::info!(
        produced = now.produced,
        vectors = now.vectors,
        rejected = now.rejected.iter().map(|(_, n)| n).sum::<u64>(),
        tombstones = now.tombstones,
        in_flight = now.in_flight,
        vectors_per_second = whole(figures.vectors_per_second),
        p50_ms = whole(figures.p50_ms.unwrap_or_default()),
        p99_ms = whole(figures.p99_ms.unwrap_or_default()),
        batch_captions = (figures.batch_captions * 10.0).round() / 10.0,
        batch_tokens = whole(figures.batch_tokens),
        busy_percent = whole(figures.busy * 100.0),
        held_back = now.held_back,
        "demo"
    );
}

/// Returns counts by reason, with their names.
pub fn counts(of: &[(String, u64)]) -> String {
    of.iter().map(|(reason, count)| format!("{reason} {count}")).collect::<Vec<_>>().join(", ")
}

fn bold(text: String) -> StyledObject<String> {
    style(text).bold().for_stderr()
}

fn dim(text: String) -> StyledObject<String> {
    style(text).dim().for_stderr()
}

fn green(text: String) -> StyledObject<String> {
    style(text).green().for_stderr()
}

#[cfg(test)]
mod tests {
    use console::strip_ansi_codes;

    use super::*;

    #[test]
    fn a_limit_that_is_not_known_is_not_shown_as_0() {
        assert_eq!(of_limit(0), "");
        assert_eq!(of_limit(512), " of 512");
    }

    #[test]
    fn a_vector_is_described_in_two_lines() {
        let vector = PassingVector {
            lang: "en".into(),
            caption: "two\nlines".into(),
            tokens: "4".into(),
            numbers: vec![3.0, -4.0, 0.0, 0.0, 0.0],
        };
        let lines = describe(&vector).join("\n");
        assert_eq!(
            strip_ansi_codes(&lines),
            "en      two lines\n        4 tokens → [3.000, -4.000, 0.000, 0.000, …] 5 numbers, ‖v‖ 5.0"
        );
    }
}

//! `capvec top`: a running worker in the terminal, from its `/metrics` alone.
//!
//! It looks again and again, and shows what happened in the last seconds, or, where nothing did,
//! how long captions took since the worker's start. It asks and never tells: the worker's port only
//! reads.

mod figures;
mod scrape;
mod view;

use std::collections::VecDeque;
use std::time::Duration;

use clap::Args;
use console::Term;

use super::tell;
use super::terminal::Panel;
use figures::WorkerFigures;
use scrape::Target;

/// Figures are of this long: short enough to follow, long enough to be calm.
const WINDOW: Duration = Duration::from_secs(5);

/// Columns of the sparkline.
const HISTORY: usize = 40;

/// Columns where the output isn't a terminal.
const WIDTH: usize = 100;

/// Arguments of `capvec top`.
#[derive(Debug, Args)]
pub struct TopArgs {
    /// The worker's admin port: http://HOST:PORT, or HOST:PORT, or HOST for its port 9180.
    #[arg(value_name = "URL")]
    target: Target,
    /// Seconds between two looks.
    #[arg(long, value_name = "SECONDS", default_value = "1", value_parser = seconds)]
    interval: Duration,
    /// Looks twice, prints what happened in between, and ends.
    #[arg(long)]
    once: bool,
    /// Prints a JSON object a look, for programs.
    #[arg(long)]
    json: bool,
}

fn seconds(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|_| "a number of seconds is due".to_owned())?;
    if !(0.1..=3600.0).contains(&seconds) {
        return Err("between 0.1 and 3600 seconds are due".into());
    }
    Ok(Duration::from_secs_f64(seconds))
}

/// Shows the worker until it is interrupted, or once.
///
/// # Errors
///
/// When the worker doesn't answer the first time, or `--once` at all; when what answers isn't one,
/// or with `--once` another one than before; and when standard output can't be written.
pub fn run(args: &TopArgs) -> anyhow::Result<()> {
    let mut looks = VecDeque::from([args.target.look()?]);
    let mut screen = Screen::new(args.json);
    let mut history = VecDeque::new();
    loop {
        std::thread::sleep(args.interval);
        let look = match args.target.look() {
            Ok(look) => look,
            Err(error) if args.once => return Err(error.into()),
            Err(error) => {
                screen.trouble(&error)?;
                continue;
            }
        };
        if looks.back().is_some_and(|last| look.is_of_another_process(last)) {
            let error = args.target.another_worker();
            if args.once {
                return Err(error.into());
            }
            screen.trouble(&error)?;
            looks.clear();
        }
        looks.push_back(look);
        // The oldest look that is kept is the youngest that is as old as the window.
        while looks.len() > 2 && looks[looks.len() - 1].at - looks[1].at >= WINDOW {
            looks.pop_front();
        }
        if looks.len() < 2 {
            continue;
        }
        let last = &looks[looks.len() - 1];
        let figures = WorkerFigures::between(&looks[0], last);
        // Programs go by what happened between the looks.
        let figures = if args.json { figures } else { figures.or_since_start(last) };
        history.push_back(figures.captions_per_second);
        if history.len() > HISTORY {
            history.pop_front();
        }
        screen.show(&args.target, &figures, history.make_contiguous())?;
        if args.once {
            return Ok(());
        }
    }
}

/// What the figures are shown on.
enum Screen {
    Json,
    Text,
    Terminal(Panel),
}

impl Screen {
    fn new(json: bool) -> Screen {
        match (json, Panel::on(Term::stdout())) {
            (true, _) => Screen::Json,
            (false, Some(panel)) => Screen::Terminal(panel),
            (false, None) => Screen::Text,
        }
    }

    fn show(
        &mut self,
        target: &Target,
        figures: &WorkerFigures,
        history: &[f64],
    ) -> anyhow::Result<()> {
        match self {
            Screen::Json => super::say(serde_json::to_string(figures)?)?,
            Screen::Text => {
                for line in view::panel(target, figures, history, WIDTH) {
                    super::say(console::strip_ansi_codes(&line).trim_end())?;
                }
            }
            Screen::Terminal(panel) => {
                panel.draw(&[], |width| view::panel(target, figures, history, width))?;
            }
        }
        Ok(())
    }

    /// Says that a look failed; the next may succeed.
    fn trouble(&mut self, error: &scrape::LookError) -> anyhow::Result<()> {
        match self {
            Screen::Json | Screen::Text => tell(format_args!("{error:#}")),
            Screen::Terminal(panel) => panel.draw(&[], |_| vec![view::trouble(error)])?,
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_interval_is_a_number_of_seconds() {
        assert_eq!(seconds("0.5"), Ok(Duration::from_millis(500)));
        for wrong in ["0", "-1", "1h", "", "NaN", "1e9"] {
            assert!(seconds(wrong).is_err(), "{wrong}");
        }
    }
}

//! The panel of `capvec top`: the figures as lines of text.

use console::style;
use indicatif::HumanCount;

use super::figures::WorkerFigures;
use super::scrape::{LookError, Target};
use crate::cli::terminal::{bar, sparkline};

/// Cells of a bar.
const BAR: usize = 24;

/// Longer than a forward pass takes, and an acknowledgement of brokers that are well.
const STALLED_SECONDS: f64 = 60.0;

/// Smaller shares are not listed.
const SHARE_MIN: f64 = 0.005;

/// Returns the panel's lines; the caller cuts them to the width.
pub(super) fn panel(
    target: &Target,
    figures: &WorkerFigures,
    captions_per_second: &[f64],
    width: usize,
) -> Vec<String> {
    let line =
        |title: &str, text: String| format!("{} {text}", style(format!("{title:<10}")).dim());
    let model = figures.model_in_words();
    let provider = figures.execution_provider.as_deref().unwrap_or("–");
    let partitions = figures.partitions;
    let p50 = show_quantile(figures.end_to_end_p50_seconds, figures.end_to_end_p50_over_seconds);
    let p99 = show_quantile(figures.end_to_end_p99_seconds, figures.end_to_end_p99_over_seconds);
    let mut lines = vec![style("─".repeat(width)).dim().to_string()];
    lines.extend(trouble_of(figures).map(|words| style(words).red().bold().to_string()));
    lines.extend([
        line("worker", format!("{} · capvec {}", target.shown, figures.version)),
        line("model", format!("{model} · {provider} · {partitions} partitions")),
        line(
            "captions",
            format!(
                "{} a second, {} tokens {} {} since the start",
                style(format!("{:.0}", figures.captions_per_second)).bold(),
                HumanCount(figures.tokens_per_second as u64),
                style(sparkline(captions_per_second)).green(),
                HumanCount(figures.captions_embedded),
            ),
        ),
        line(
            "latency",
            format!(
                "{} median, {} for 99 %; timestamp to acknowledgement{}",
                style(p50).bold(),
                style(p99).bold(),
                if figures.since_start { ", since the start" } else { "" },
            ),
        ),
    ]);
    let before = figures.before_worker_mean_seconds;
    let stages = figures.stages.iter().filter_map(|s| s.mean_seconds);
    let whole = (before.unwrap_or(0.0) + stages.sum::<f64>()).max(f64::MIN_POSITIVE);
    let mean_of = |mean: Option<f64>| {
        let share = mean.map_or(0.0, |mean| mean / whole);
        format!("{} {:>8} mean", style(bar(share, BAR)).cyan(), show_seconds(mean))
    };
    lines.push(line("  before", format!("{}: the topic, and the fetch", mean_of(before))));
    for stage in &figures.stages {
        let p99 = show_quantile(stage.p99_seconds, stage.p99_over_seconds);
        let text = format!("{}, {p99:>8} for 99 %", mean_of(stage.mean_seconds));
        lines.push(line(&format!("  {}", stage.stage), text));
    }
    let number = |n: Option<f64>| n.map_or("–".into(), |n| format!("{n:.1}"));
    let cut = figures.batch_cut.iter().filter(|(_, share)| **share >= SHARE_MIN);
    let cut: Vec<_> = cut.map(|(why, share)| format!("{why} {:.0} %", share * 100.0)).collect();
    let full = match figures.batch_fill {
        Some(fill) if fill > 1.0 => {
            "full: captions that are longer, or a limit that has just shrunk"
        }
        _ => "full",
    };
    lines.extend([
        line("batch", share_of_one(figures.batch_fill, full)),
        line(
            "",
            format!(
                "{} captions, {} of {} tokens; cut when {}",
                number(figures.batch_captions),
                number(figures.batch_tokens),
                figures.batch_tokens_limit,
                if cut.is_empty() { "–".into() } else { cut.join(", ") },
            ),
        ),
        line("network", share_of_one(figures.duty_cycle, "busy")),
        line(
            "lag",
            format!(
                "{}; {} of {} in flight{}, {} on their way to the brokers",
                lag(figures),
                figures.in_flight_messages,
                figures.in_flight_messages_limit,
                bytes_in_flight(figures),
                figures.outstanding_records,
            ),
        ),
        line("rejected", rejected(figures)),
    ]);
    lines
}

/// Returns the line that stands for the panel while the worker doesn't answer.
pub(super) fn trouble(error: &LookError) -> String {
    style(error.to_string()).red().to_string()
}

/// Returns what is to be known before everything else.
fn trouble_of(figures: &WorkerFigures) -> Option<String> {
    if figures.is_cut_off() {
        return Some("no broker answers: nothing comes in, and how much waits isn't known".into());
    }
    if figures.cannot_write() {
        return Some("no broker answers the producer: nothing goes out".into());
    }
    let stalled = figures.stalled_seconds;
    (stalled > STALLED_SECONDS).then(|| {
        let stalled = show_seconds(Some(stalled));
        format!("nothing has come of the oldest message in the worker for {stalled}")
    })
}

/// A worker that is cut off loses its partitions, and has no lag to tell of.
fn lag(figures: &WorkerFigures) -> String {
    if figures.is_cut_off() {
        return style("not known").bold().to_string();
    }
    if figures.model.is_some() && figures.partitions == 0 {
        return "no partitions: others have them all, or the group hasn't answered".into();
    }
    let hot = figures.hot_partition();
    format!(
        "{} messages, the oldest {} old{}",
        style(HumanCount(figures.lag_messages)).bold(),
        style(show_seconds(Some(figures.lag_seconds))).bold(),
        hot.map_or_else(String::new, |(partition, share)| {
            format!(", {:.0} % of them in partition {partition}", share * 100.0)
        }),
    )
}

/// Of the two limits in flight the nearer one pauses fetching, which resumes at half of it: the one of
/// bytes is told of where it is that one.
fn bytes_in_flight(figures: &WorkerFigures) -> String {
    let share = |n: u64, limit: u64| n as f64 / limit.max(1) as f64;
    let messages = share(figures.in_flight_messages, figures.in_flight_messages_limit);
    let bytes = share(figures.in_flight_bytes, figures.in_flight_bytes_limit);
    if bytes < 0.5 || bytes <= messages {
        return String::new();
    }
    format!(" (by bytes {:.0} %)", bytes * 100.0)
}

fn rejected(figures: &WorkerFigures) -> String {
    if figures.rejected.is_empty() {
        return "none".into();
    }
    let reasons = figures.rejected.iter().map(|(reason, count)| format!("{reason} {count}"));
    reasons.collect::<Vec<_>>().join(", ")
}

fn share_of_one(share: Option<f64>, what: &str) -> String {
    match share {
        None => "–".into(),
        Some(share) => format!("{} {:.0} % {what}", style(bar(share, BAR)).green(), share * 100.0),
    }
}

fn show_quantile(seconds: Option<f64>, over: Option<f64>) -> String {
    over.map_or_else(|| show_seconds(seconds), |over| format!("over {}", show_seconds(Some(over))))
}

fn show_seconds(seconds: Option<f64>) -> String {
    match seconds {
        None => "–".into(),
        Some(0.0) => "0 s".into(),
        Some(s) if s < 1e-3 => format!("{:.0} µs", s * 1e6),
        Some(s) if s < 1e-2 => format!("{:.1} ms", s * 1e3),
        Some(s) if s < 1.0 => format!("{:.0} ms", s * 1e3),
        Some(s) if s < 600.0 => format!("{s:.1} s"),
        Some(s) if s < 36_000.0 => format!("{:.0} min", s / 60.0),
        Some(s) => format!("{:.0} h", s / 3600.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::top::scrape::Look;
    use std::time::{Duration, Instant};

    #[test]
    fn times_have_the_unit_that_fits() {
        let times = [0.0, 0.000_04, 0.0042, 0.25, 12.0, 900.0, 259_200.0];
        let shown = times.map(|s| show_seconds(Some(s)));
        assert_eq!(shown, ["0 s", "40 µs", "4.2 ms", "250 ms", "12.0 s", "15 min", "72 h"]);
        assert_eq!(show_seconds(None), "–");
        assert_eq!(show_quantile(None, Some(50.0)), "over 50.0 s");
        assert_eq!(show_quantile(Some(2.0), None), "2.0 s");
    }

    /// The panel's text of a worker whose metrics have these lines.
    fn panel_of(lines: &str) -> String {
        let at = Instant::now();
        let text = format!("capvec_build_info{{version=\"1\"}} 1\n{lines}");
        let figures = WorkerFigures::between(
            &Look::parse("", at),
            &Look::parse(&text, at + Duration::from_secs(1)),
        );
        panel(&"localhost:9180".parse().unwrap(), &figures, &[0.0], 40).join("\n")
    }

    #[test]
    fn a_worker_that_is_cut_off_is_not_shown_as_idle() {
        let text = panel_of(
            "capvec_model_info{model=\"m@1\"} 1\ncapvec_brokers_up{client=\"consumer\"} 0\n\
             capvec_lag_messages 0\n",
        );
        let second = text.lines().nth(1).unwrap();
        assert!(second.contains("no broker answers"), "{text}");
        assert!(text.contains("not known") && !text.contains("0 messages"), "{text}");
    }

    #[test]
    fn a_worker_without_partitions_does_not_seem_to_keep_up() {
        let text = panel_of(
            "capvec_model_info{model=\"m@1\"} 1\ncapvec_brokers_up{client=\"consumer\"} 3\n\
             capvec_assigned_partitions 0\ncapvec_lag_messages 0\n",
        );
        assert!(text.contains("no partitions: ") && !text.contains("0 messages"), "{text}");
    }

    #[test]
    fn a_partition_that_has_what_waits_is_named() {
        let of = |first: u32, second: u32| {
            panel_of(&format!(
                "capvec_model_info{{model=\"m@1\"}} 1\ncapvec_brokers_up{{client=\"consumer\"}} 3\n\
                 capvec_assigned_partitions 2\ncapvec_lag_messages 5000\ncapvec_lag_seconds 40\n\
                 capvec_consumer_lag_messages{{partition=\"0\"}} {first}\n\
                 capvec_consumer_lag_messages{{partition=\"3\"}} {second}\n"
            ))
        };
        let text = of(50, 4950);
        assert!(text.contains("the oldest 40.0 s old, 99 % of them in partition 3;"), "{text}");
        for (first, second) in [(2500, 2500), (1, 500)] {
            assert!(!of(first, second).contains("of them in partition"), "{first} {second}");
        }
    }

    #[test]
    fn a_message_that_is_stuck_is_told_of_first() {
        let of = |seconds: u32| {
            panel_of(&format!(
                "capvec_model_info{{model=\"m@1\"}} 1\ncapvec_brokers_up{{client=\"consumer\"}} 3\n\
                 capvec_assigned_partitions 3\ncapvec_lag_messages 1\n\
                 capvec_outstanding_records 7\ncapvec_stalled_seconds {seconds}\n"
            ))
        };
        let text = of(90);
        let due = "nothing has come of the oldest message in the worker for 90.0 s";
        assert!(text.lines().nth(1).unwrap().contains(due), "{text}");
        assert!(text.contains("in flight, 7 on their way to the brokers"), "{text}");
        let text = of(50);
        assert!(!text.contains("nothing has come"), "{text}");
    }

    #[test]
    fn bytes_in_flight_are_told_of_where_they_are_what_pauses_fetching() {
        let of = |messages: u32, bytes: u32| {
            panel_of(&format!(
                "capvec_in_flight_messages {messages}\ncapvec_in_flight_messages_limit 4096\n\
                 capvec_in_flight_bytes {bytes}\ncapvec_in_flight_bytes_limit 1000\n"
            ))
        };
        let text = of(50, 990);
        assert!(text.contains("50 of 4096 in flight (by bytes 99 %), 0 on"), "{text}");
        for (messages, bytes) in [(4096, 990), (50, 490)] {
            let text = of(messages, bytes);
            assert!(text.contains(&format!("{messages} of 4096 in flight, 0 on")), "{text}");
        }
    }

    #[test]
    fn a_batch_over_the_budget_says_why() {
        let text = panel_of(
            "capvec_batch_tokens_sum 120\ncapvec_batch_tokens_count 2\n\
             capvec_batch_tokens_limit 50\n",
        );
        assert!(text.contains("120 % full: captions that are longer"), "{text}");
    }

    #[test]
    fn a_worker_that_has_just_started_has_a_panel() {
        let at = Instant::now();
        let text = crate::metrics::Metrics::new().render();
        let figures = WorkerFigures::between(
            &Look::parse(&text, at),
            &Look::parse(&text, at + Duration::from_secs(1)),
        );
        let panel = panel(&"localhost:9180".parse().unwrap(), &figures, &[0.0], 40);
        let panel = panel.join("\n");
        assert!(panel.contains("waiting for the brokers"), "{panel}");
        assert!(panel.contains("0 messages, the oldest 0 s old"), "{panel}");
        assert!(!panel.contains("NaN") && !panel.contains("inf"), "{panel}");
    }
}

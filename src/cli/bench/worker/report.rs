//! The results of `capvec bench worker`: the tables, the JSON form and the chart.

use serde::Serialize;

use crate::cli::bench::chart::{Chart, Scale, Series};
use crate::cli::bench::report::{Table, milliseconds, percent};
use crate::cli::bench::stats::Latencies;
use crate::cli::progress::counted;
use crate::cli::spread::Spread;

/// What is printed as JSON.
#[derive(Debug, Serialize)]
pub struct WorkerReport {
    pub bench: &'static str,
    pub model: String,
    pub brokers: String,
    /// Passes at a time on each device, of the worker and of the network without Kafka.
    pub sessions: usize,
    /// Compute threads of each.
    pub threads: usize,
    pub tokens_max: usize,
    pub repeats: u32,
    /// The length of a phase.
    pub seconds: f64,
    /// One forward pass of a caption of the median length, with nothing beside it.
    pub alone: Alone,
    pub closed: Option<ClosedLoop>,
    pub loads: Vec<OpenLoad>,
    pub long: Option<Long>,
}

#[derive(Debug, Serialize)]
pub struct Alone {
    pub tokens: usize,
    /// One right after another.
    pub milliseconds: Spread,
    /// After a tenth of a second in which nothing was done.
    pub rested_milliseconds: Spread,
}

/// A throughput.
#[derive(Debug, Serialize)]
pub struct Throughput {
    pub captions_per_second: Spread,
    pub tokens_per_second: Spread,
    /// The captions a second of each run.
    pub runs: Vec<f64>,
}

/// The closed loop, and the network without Kafka beside it.
#[derive(Debug, Serialize)]
pub struct ClosedLoop {
    pub worker: Throughput,
    /// The share of the time for which a device had a pass under way.
    pub duty_cycle: Spread,
    /// CPUs that the worker kept busy, and what feeds it, reads its vectors and is its broker.
    pub cpu_cores: Option<Spread>,
    /// Of the scenario `closed`; the others need the worker's rate alone.
    pub offline: Option<Offline>,
}

#[derive(Debug, Serialize)]
pub struct Offline {
    pub packed: Throughput,
    pub padded: Throughput,
    pub padding_share: f64,
    pub worker_over_packed: Spread,
    pub worker_over_padded: Spread,
}

/// An open load.
#[derive(Debug, Serialize)]
pub struct OpenLoad {
    pub name: String,
    /// Of the closed loop's rate, on average.
    pub load: f64,
    /// Captions that were due a second, on average.
    pub captions_per_second: f64,
    /// Until the reader had the vector: medians over the repeats.
    pub received: Latencies,
    /// The same over the captions of all repeats together.
    pub received_pooled: Latencies,
    /// From when the broker had the caption until it had the vector, on real brokers.
    pub broker_to_broker: Option<Latencies>,
    /// What that is, or else the first, beyond a forward pass of the caption alone after a rest.
    pub beyond_pass: Latencies,
}

/// The plain mix beside one with long captions.
#[derive(Debug, Serialize)]
pub struct Long {
    pub plain: Throughput,
    pub long: Throughput,
    /// Tokens of a caption, on average.
    pub plain_tokens: f64,
    pub long_tokens: f64,
    /// Of captions a second.
    pub captions_ratio: Spread,
    /// Of tokens a second; 1 where long captions cost their tokens and no more.
    pub tokens_ratio: Spread,
}

impl WorkerReport {
    /// Returns the tables.
    pub fn text(&self) -> String {
        let mut parts = vec![
            format!(
                "{}, sessions × threads {} × {}, batches of {} tokens, {} brokers, {} of {} s",
                self.model,
                self.sessions,
                self.threads,
                self.tokens_max,
                self.brokers,
                counted(self.repeats.into(), "run"),
                self.seconds
            ),
            format!(
                "one forward pass of a caption of {} tokens alone: {:.1} ms, after a rest {:.1} ms",
                self.alone.tokens,
                self.alone.milliseconds.median,
                self.alone.rested_milliseconds.median
            ),
        ];
        parts.extend(self.closed.as_ref().map(ClosedLoop::text));
        if !self.loads.is_empty() {
            parts.push(self.loads_text());
        }
        parts.extend(self.long.as_ref().map(Long::text));
        parts.join("\n\n")
    }

    fn loads_text(&self) -> String {
        let says_when = self.loads.iter().any(|load| load.broker_to_broker.is_some());
        let mut heads = vec!["open loop, ms", "captions/s", "captions", "p50", "p90", "p99", "max"];
        if says_when {
            heads.extend(["broker to broker p50", "p99"]);
        }
        heads.extend(["beyond its pass p50", "p99"]);
        let mut table = Table::new(&heads);
        for load in &self.loads {
            let of = &load.received;
            let mut cells = vec![
                load.name.clone(),
                format!("{:.1}", load.captions_per_second),
                of.captions.to_string(),
            ];
            cells.extend([of.p50_ms, of.p90_ms, of.p99_ms, of.max_ms].map(milliseconds));
            if let Some(between) = &load.broker_to_broker {
                cells.extend([between.p50_ms, between.p99_ms].map(milliseconds));
            }
            cells.extend([load.beyond_pass.p50_ms, load.beyond_pass.p99_ms].map(milliseconds));
            table.row(cells);
        }
        table.to_string().trim_end().to_owned()
    }

    /// Returns the latencies by load; without those, the throughput by run.
    pub fn chart(&self) -> Chart {
        let steady: Vec<&OpenLoad> =
            self.loads.iter().filter(|load| load.name.starts_with("steady")).collect();
        if let (true, Some(closed)) = (steady.is_empty(), &self.closed) {
            return closed.chart(&self.model);
        }
        let line = |name: &str, of: fn(&Latencies) -> Option<f64>| {
            let points = steady.iter().filter_map(|l| Some((100.0 * l.load, of(&l.received)?)));
            Series { name: name.into(), points: points.collect() }
        };
        Chart {
            title: format!("Latency of {}", self.model),
            x_label: "load, % of the closed loop's rate".into(),
            y_label: "milliseconds from due to received".into(),
            x_scale: Scale::Linear,
            series: vec![
                line("p50", |of| of.p50_ms),
                line("p90", |of| of.p90_ms),
                line("p99", |of| of.p99_ms),
            ],
        }
    }
}

impl ClosedLoop {
    fn text(&self) -> String {
        let mut table = Table::new(&["closed loop", "captions/s", "tokens/s", "worker over it"]);
        row(&mut table, "worker", &self.worker, String::new());
        let mut text = format!("a pass was under way {}", percent(self.duty_cycle.median));
        text.push_str(" of the time");
        if let Some(cores) = &self.cpu_cores {
            text.push_str(&format!(
                "; {:.1} CPUs were busy, the bench's own work included",
                cores.median
            ));
        }
        let Some(offline) = &self.offline else { return format!("{table}{text}") };
        row(&mut table, "offline packed", &offline.packed, ratio(offline.worker_over_packed));
        row(&mut table, "offline padded-32", &offline.padded, ratio(offline.worker_over_padded));
        let padding = percent(offline.padding_share);
        format!("{table}padding is {padding} of padded-32's tokens\n{text}")
    }

    fn chart(&self, model: &str) -> Chart {
        let line = |name: &str, of: &Throughput| {
            let runs = of.runs.iter().enumerate();
            let points = runs.map(|(run, rate)| (run as f64 + 1.0, *rate)).collect();
            Series { name: name.into(), points }
        };
        let mut series = vec![line("worker", &self.worker)];
        if let Some(offline) = &self.offline {
            series.push(line("offline packed", &offline.packed));
            series.push(line("offline padded-32", &offline.padded));
        }
        Chart {
            title: format!("Throughput of {model}"),
            x_label: "run".into(),
            y_label: "captions a second".into(),
            x_scale: Scale::Linear,
            series,
        }
    }
}

impl Long {
    fn text(&self) -> String {
        let mut table = Table::new(&["closed loop", "captions/s", "tokens/s", "tokens/caption"]);
        let mixes = [
            ("plain", &self.plain, self.plain_tokens),
            ("5 % long captions", &self.long, self.long_tokens),
        ];
        for (name, of, tokens) in mixes {
            row(&mut table, name, of, format!("{tokens:.1}"));
        }
        format!(
            "{table}5 % long captions / plain: {} of the captions/s, {} of the tokens/s",
            ratio(self.captions_ratio),
            ratio(self.tokens_ratio),
        )
    }
}

fn row(table: &mut Table, name: &str, of: &Throughput, last: String) {
    table.row([
        name.into(),
        format!("{:.1}", of.captions_per_second.median),
        format!("{:.0}", of.tokens_per_second.median),
        last,
    ]);
}

fn ratio(of: Spread) -> String {
    format!("{:.3} ({:.3} to {:.3})", of.median, of.min, of.max)
}

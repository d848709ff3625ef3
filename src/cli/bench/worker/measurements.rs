//! What has been measured of the worker, and its summary.

use std::time::Duration;

use super::STEP_LOADS;
use super::passes::Passes;
use super::report::{ClosedLoop, Long, Offline, OpenLoad, Throughput};
use super::rig::{Latency, Rate};
use crate::cli::bench::captions::BenchCaption;
use crate::cli::bench::offline::Work;
use crate::cli::bench::stats::Latencies;
use crate::cli::spread::Spread;

/// All measurements, in the order of the repeats.
#[derive(Default)]
pub struct Measurements {
    /// Captions that went through the network alone.
    pub passes: Passes,
    /// The worker's closed loop.
    pub worker: Vec<Rate>,
    /// The network over packed batches; nothing where that wasn't asked for.
    pub packed: Vec<Work>,
    /// The network over padded batches.
    pub padded: Vec<Work>,
    /// The open loads.
    pub loads: Vec<LoadRuns>,
    /// The closed loops that long captions are compared with.
    pub plain: Vec<Rate>,
    /// The closed loops with long captions.
    pub long: Vec<Rate>,
}

/// The runs of an open load.
pub struct LoadRuns {
    /// Its name.
    pub name: String,
    /// Its mean, as a share of the closed loop's rate.
    pub load: f64,
    /// Whether it is shown in its two halves.
    pub is_step: bool,
    /// The captions of each run.
    pub runs: Vec<Vec<Latency>>,
}

impl Measurements {
    /// Returns the worker's captions a second in the closed loop, or 0 where it wasn't measured.
    pub fn rate(&self) -> f64 {
        match self.worker.is_empty() {
            true => 0.0,
            false => Spread::of(self.worker.iter().map(|rate| rate.captions_per_second)).median,
        }
    }

    /// Sums up the closed loop, where it was measured.
    pub fn closed(&self) -> Option<ClosedLoop> {
        let ratio = |offline: &[Work]| {
            let pairs = self.worker.iter().zip(offline);
            Spread::of(pairs.map(|(w, o)| w.captions_per_second / o.captions_per_second()))
        };
        let offline = (!self.packed.is_empty()).then(|| Offline {
            packed: of_work(&self.packed),
            padded: of_work(&self.padded),
            padding_share: Spread::of(self.padded.iter().map(Work::padding_share)).median,
            worker_over_packed: ratio(&self.packed),
            worker_over_padded: ratio(&self.padded),
        });
        let cores: Option<Vec<f64>> = self.worker.iter().map(|rate| rate.cpu_cores).collect();
        (!self.worker.is_empty()).then(|| ClosedLoop {
            worker: of_rates(&self.worker),
            duty_cycle: Spread::of(self.worker.iter().map(|rate| rate.duty_cycle)),
            cpu_cores: cores.map(Spread::of),
            offline,
        })
    }

    /// Sums up the open loads, each of this length.
    pub fn loads(&self, length: Duration) -> Vec<OpenLoad> {
        let rate = self.rate();
        let mut loads = Vec::new();
        for LoadRuns { name, load, is_step, runs } in &self.loads {
            if !is_step {
                loads.push(self.of_latencies(name.clone(), *load, rate, runs));
                continue;
            }
            let (before, after) = STEP_LOADS;
            for (share, is_after) in [(before, false), (after, true)] {
                let of_half = |latency: &&Latency| (latency.due >= length / 2) == is_after;
                let halves = runs.iter().map(|run| run.iter().filter(of_half).copied().collect());
                let half = format!("{name}, at {:.0} %", 100.0 * share);
                loads.push(self.of_latencies(half, share, rate, &halves.collect::<Vec<_>>()));
            }
        }
        loads
    }

    fn of_latencies(&self, name: String, load: f64, rate: f64, runs: &[Vec<Latency>]) -> OpenLoad {
        let received = |run: &Vec<Latency>| Latencies::of(run.iter().map(|l| l.received_ms));
        let between =
            |run: &Vec<Latency>| Latencies::of(run.iter().filter_map(|l| l.broker_to_broker_ms));
        let beyond = |run: &Vec<Latency>| {
            let own = |l: &Latency| self.passes.rested_ms(l.tokens);
            Latencies::of(
                run.iter().map(|l| l.broker_to_broker_ms.unwrap_or(l.received_ms) - own(l)),
            )
        };
        let says_when = runs.iter().flatten().any(|l| l.broker_to_broker_ms.is_some());
        let medians = |of: &dyn Fn(&Vec<Latency>) -> Latencies| {
            Latencies::median_of(&runs.iter().map(of).collect::<Vec<_>>())
        };
        OpenLoad {
            name,
            load,
            captions_per_second: load * rate,
            received: medians(&received),
            received_pooled: Latencies::of(runs.iter().flatten().map(|l| l.received_ms)),
            broker_to_broker: says_when.then(|| medians(&between)),
            beyond_pass: medians(&beyond),
        }
    }

    /// Sums up the mix with long captions, where it was measured.
    pub fn long(&self, plain: &[BenchCaption], long: &[BenchCaption]) -> Option<Long> {
        let ratio = |of: fn(&Rate) -> f64| {
            Spread::of(self.long.iter().zip(&self.plain).map(|(long, plain)| of(long) / of(plain)))
        };
        (!self.long.is_empty()).then(|| Long {
            plain: of_rates(&self.plain),
            long: of_rates(&self.long),
            plain_tokens: mean_tokens(plain),
            long_tokens: mean_tokens(long),
            captions_ratio: ratio(|rate| rate.captions_per_second),
            tokens_ratio: ratio(|rate| rate.tokens_per_second),
        })
    }
}

fn mean_tokens(captions: &[BenchCaption]) -> f64 {
    let tokens: usize = captions.iter().map(|caption| caption.ids.len()).sum();
    tokens as f64 / captions.len().max(1) as f64
}

fn of_rates(rates: &[Rate]) -> Throughput {
    let captions = rates.iter().map(|rate| rate.captions_per_second);
    throughput(captions.collect(), rates.iter().map(|rate| rate.tokens_per_second))
}

fn of_work(work: &[Work]) -> Throughput {
    let captions = work.iter().map(Work::captions_per_second);
    throughput(captions.collect(), work.iter().map(Work::tokens_per_second))
}

fn throughput(captions: Vec<f64>, tokens: impl Iterator<Item = f64>) -> Throughput {
    Throughput {
        captions_per_second: Spread::of(captions.iter().copied()),
        tokens_per_second: Spread::of(tokens),
        runs: captions,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::embed::hash::HashEmbedder;

    fn latency(due_ms: u64, received_ms: f64) -> Latency {
        Latency {
            due: Duration::from_millis(due_ms),
            tokens: 9,
            received_ms,
            broker_to_broker_ms: None,
        }
    }

    fn rate(captions_per_second: f64) -> Rate {
        Rate {
            captions_per_second,
            tokens_per_second: 20.0 * captions_per_second,
            duty_cycle: 0.9,
            cpu_cores: Some(1.5),
        }
    }

    fn measured() -> Measurements {
        let run = |ms: f64| vec![latency(100, ms), latency(900, 10.0 * ms)];
        let load = |name: &str, is_step| LoadRuns {
            name: name.into(),
            load: 0.5,
            is_step,
            runs: vec![run(1.0), run(2.0), run(9.0)],
        };
        Measurements {
            passes: Passes::measure(&mut HashEmbedder::new(4), &[vec![7; 9]]).unwrap(),
            worker: vec![rate(90.0), rate(100.0), rate(120.0)],
            loads: vec![load("steady 50 %", false), load("step", true)],
            ..Measurements::default()
        }
    }

    #[test]
    fn a_load_is_summed_up_over_its_runs() {
        let loads = measured().loads(Duration::from_secs(1));
        assert_eq!(loads[0].captions_per_second, 50.0);
        assert_eq!((loads[0].received.p50_ms, loads[0].received.max_ms), (Some(2.0), Some(90.0)));
        assert_eq!(loads[0].received_pooled.captions, 6);
        assert!(loads[0].broker_to_broker.is_none(), "the embedded broker doesn't say");
        let beyond = loads[0].beyond_pass.p50_ms.unwrap();
        assert!((0.0..2.0).contains(&beyond), "a hash takes microseconds: {beyond}");
    }

    #[test]
    fn a_step_has_two_halves() {
        let loads = measured().loads(Duration::from_secs(1));
        let names: Vec<&str> = loads.iter().map(|load| load.name.as_str()).collect();
        assert_eq!(names, ["steady 50 %", "step, at 30 %", "step, at 90 %"]);
        assert_eq!(loads[1].received.p50_ms, Some(2.0));
        assert_eq!(loads[2].received.p50_ms, Some(20.0));
    }

    #[test]
    fn ratios_are_of_runs_that_were_near_in_time() {
        let mut measured = measured();
        let work = |captions| Work { captions, time: Duration::from_secs(1), ..Work::default() };
        measured.packed = vec![work(100), work(100), work(100)];
        measured.padded = vec![work(50), work(50), work(40)];
        let offline = measured.closed().unwrap().offline.unwrap();
        assert_eq!(offline.worker_over_packed.median, 1.0);
        assert_eq!(offline.worker_over_padded, Spread { median: 2.0, min: 1.8, max: 3.0 });
        assert!(measured.long(&[], &[]).is_none());
    }
}

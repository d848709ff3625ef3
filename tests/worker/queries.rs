//! Every query of the dashboard and of the rules, asked of a real Prometheus that scrapes workers
//! under load on a real Kafka: what it gave stands in docs/queries.md.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::dashboard::{dashboard, panels, title};
use crate::promises::{documented_metrics, read};
use crate::support::load::{Bursts, Load};
use crate::support::prometheus::{Prometheus, program};
use crate::support::{Cluster, Worker, eventually, eventually_ok, skipped};

/// One worker delivers at least once, and pauses early.
const AT_LEAST_ONCE: [&str; 6] = [
    "embed.embedder=onnx",
    "embed.sessions=1",
    "batch.tokens_max=512",
    "batch.captions_max=256",
    "delivery.in_flight_captions_max=1000",
    "log.filter=info",
];

/// The other delivers exactly once, and has an objective that no pass can meet.
const EXACTLY_ONCE: [&str; 7] = [
    "embed.embedder=onnx",
    "embed.sessions=1",
    "batch.tokens_max=512",
    "batch.latency_objective=1ms",
    "delivery.mode=exactly-once",
    "delivery.transactional_id=observed",
    "log.filter=info",
];

/// What Grafana and the alerts' file put into queries, as it is asked here.
const SELECTOR: &str = "{job=~\"capvec\", instance=~\".+\"}";

/// An answer that isn't the usual one, a number other than 0.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Answer {
    /// No series at all.
    Nothing,
    /// Series, and all are 0.
    Zero,
    /// Series; of what value is chance.
    Any,
}

const LATE: &str = "it is 0 unless the machine is so busy that captions take 10 s";

/// Queries that give nothing, or 0, on healthy workers under load, and why. Alerts aren't here:
/// theirs give 0 where all is well, unless they are.
const UNUSUAL: [(&str, Answer, &str); 24] = [
    ("panel Blocked / A", Answer::Any, "chance has it whether a stage waits for the sink"),
    ("panel Batches that were split / A", Answer::Zero, "no pass fails"),
    (
        "panel Queues / A",
        Answer::Any,
        "what waits for a pass waits in the batcher; chance has it whether a scrape finds a queue filled",
    ),
    (
        "panel Time without progress / A",
        Answer::Any,
        "chance has it whether a scrape finds a worker with a message in it",
    ),
    ("panel Nodes on the CPU / A", Answer::Zero, "the network is on the CPU by right"),
    (
        "panel Breaker: rejected in a row / A",
        Answer::Any,
        "chance has it whether a scrape falls between a bad message and the next good one",
    ),
    (
        "panel Fixed seconds of a pass / A",
        Answer::Any,
        "it is 0 where the passes, on a busy machine, lie on no line",
    ),
    ("panel Rebalances / B", Answer::Zero, "every drain ends in time"),
    (
        "panel Rebalances / C",
        Answer::Any,
        "chance has it whether captions wait when partitions move",
    ),
    (
        "panel Deleted before they were received / A",
        Answer::Zero,
        "the topics keep what isn't read",
    ),
    ("panel Trouble with the brokers / A", Answer::Any, "it is 0 unless the broker is very busy"),
    ("panel Trouble with the brokers / B", Answer::Any, "it is 0 unless the broker is very busy"),
    ("panel Trouble with the brokers / C", Answer::Zero, "the broker is well"),
    ("panel Trouble with the brokers / D", Answer::Zero, "the broker is well"),
    ("alerting CapvecModelNotLoaded", Answer::Nothing, "every worker has loaded its model"),
    ("recording capvec:end_to_end_late:ratio5m", Answer::Any, LATE),
    ("recording capvec:end_to_end_late:ratio30m", Answer::Any, LATE),
    ("recording capvec:end_to_end_late:ratio1h", Answer::Any, LATE),
    ("recording capvec:end_to_end_late:ratio6h", Answer::Any, LATE),
    ("alerting CapvecObjectiveBurnsFast", Answer::Any, LATE),
    ("alerting CapvecObjectiveBurnsSlowly", Answer::Any, LATE),
    ("alerting CapvecRejectsMuch", Answer::Any, "it bears just about as many bad messages"),
    ("alerting CapvecRunsOnCpu", Answer::Nothing, "no configuration asks for a GPU here"),
    ("alerting CapvecAbsent", Answer::Nothing, "there are workers"),
];

/// A query, and where it is from.
struct Query {
    place: String,
    text: String,
}

impl Query {
    /// Returns what is to be expected, and the reason where it isn't a number other than 0.
    fn expected(&self) -> Option<(Answer, &'static str)> {
        let found = UNUSUAL.iter().find(|(place, ..)| *place == self.place);
        let of_alert = || {
            let is_alert = self.place.starts_with("alerting ");
            is_alert.then_some((Answer::Zero, "there is nothing to alert of"))
        };
        found.map(|(_, answer, why)| (*answer, *why)).or_else(of_alert)
    }
}

#[test]
fn every_query_gives_data_and_every_metric_is_documented() {
    let Ok(program) = program("prometheus").map_err(skipped) else { return };
    let cluster = Cluster::shared();
    cluster.create_topics("observed", 3);
    cluster.create_topics("transacted", 2);
    let start = |topic, options: &[&str]| Worker::start(&cluster, topic, options);
    let first = start("observed", &AT_LEAST_ONCE);
    let workers = [first.ready(), start("transacted", &EXACTLY_ONCE).ready()];
    let prometheus = Prometheus::start(&program, &workers.each_ref().map(Worker::admin));
    let _loads = [
        Load::start(&cluster, "observed", Bursts::Rare),
        Load::start(&cluster, "transacted", Bursts::Often),
    ];
    eventually("the load shows in Prometheus", || {
        let busy = "sum by (instance) (rate(capvec_captions_embedded_total[15s])) > 0";
        (prometheus.query(busy).unwrap().len() == workers.len()).then_some(())
    });
    // Takes partitions from the first, which isn't seen before the first is scraped.
    let second = start("observed", &AT_LEAST_ONCE);

    let mut queries = dashboard_queries();
    queries.extend(rule_queries(&prometheus));
    assert!(queries.len() > 70, "the files have been read");
    let table = ask_until_answered(&prometheus, queries);
    every_variable_has_values(&prometheus);
    every_rule_is_healthy(&prometheus);

    let (_, text) = workers[0].get("/metrics").unwrap();
    let served: BTreeSet<String> = text
        .lines()
        .filter_map(|line| Some(line.strip_prefix("# TYPE ")?.split(' ').next()?.to_owned()))
        .collect();
    assert_eq!(served, documented_metrics(), "/metrics, and docs/metrics.md");
    the_number_of_series_is_as_documented(&text);
    second.ready().stop();
    workers.into_iter().for_each(|worker| drop(worker.stop()));
    the_document_is_of_these(&table);
}

/// The documentation has the number in tens.
fn the_number_of_series_is_as_documented(metrics: &str) {
    let of_partitions = |line: &&str| line.contains("{partition=");
    let series = metrics.lines().filter(|line| !line.starts_with('#'));
    let series = series.filter(|line| !of_partitions(line)).count();
    let document = read("docs/metrics.md");
    let (_, rest) = document.split_once("A worker has about ").unwrap();
    let said: usize = rest.split(' ').next().unwrap().parse().unwrap();
    assert!(series.abs_diff(said) <= 5, "{series} series, and docs/metrics.md says about {said}");
}

/// Asks each query until it has given what is to be expected, and returns what that was.
fn ask_until_answered(
    prometheus: &Prometheus,
    queries: Vec<Query>,
) -> BTreeMap<String, [String; 3]> {
    let mut table = BTreeMap::new();
    let mut waiting = queries;
    let mut kept = Vec::new();
    eventually_ok("every query has answered", || {
        waiting.retain(|query| {
            let Query { place, text } = query;
            let samples = prometheus.query(text).unwrap_or_else(|e| panic!("{place}: {text}: {e}"));
            let values = values(&samples);
            let is_answered = match query.expected() {
                None => values.iter().any(|value| *value != 0.0),
                Some((Answer::Nothing, _)) => true,
                // A rate over minutes takes a while to show that there is work.
                Some((Answer::Zero, _)) => {
                    !values.is_empty() && values.iter().all(|value| *value == 0.0)
                }
                Some((Answer::Any, _)) => !values.is_empty(),
            };
            if is_answered {
                let why = query.expected().map_or(String::new(), |(_, why)| why.to_owned());
                table.insert(place.clone(), [text.replace(SELECTOR, ""), show(&values), why]);
                if query.expected().is_some() {
                    kept.push((place.clone(), text.clone()));
                }
            }
            !is_answered
        });
        let places: Vec<_> = waiting.iter().map(|q| q.place.as_str()).collect();
        if places.is_empty() { Ok(()) } else { Err(format!("waiting for {}", places.join(", "))) }
    });
    // The list of reasons holds to the end of the load, too.
    for (place, text) in kept {
        let query = Query { place, text };
        let values = values(&prometheus.query(&query.text).unwrap());
        let (answer, why) = query.expected().expect("only these are kept");
        match answer {
            Answer::Nothing => {
                assert!(values.is_empty(), "{}, though {why}: {values:?}", query.place)
            }
            Answer::Zero => {
                let all = values.iter().all(|value| *value == 0.0);
                assert!(all, "{}, though {why}: {values:?}", query.place);
            }
            Answer::Any => {}
        }
    }
    table
}

/// The values of samples; nothing divided by nothing says nothing.
fn values(samples: &[Value]) -> Vec<f64> {
    let value = |s: &Value| s["value"][1].as_str().and_then(|v| v.parse::<f64>().ok());
    samples.iter().filter_map(value).filter(|value| !value.is_nan()).collect()
}

/// A file of results, beside the build.
fn out(name: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("observe");
    std::fs::create_dir_all(&folder).unwrap();
    folder.join(name)
}

fn dashboard_queries() -> Vec<Query> {
    let dashboard = dashboard();
    let mut queries = Vec::new();
    for panel in panels(&dashboard) {
        for target in panel["targets"].as_array().unwrap() {
            let text = target["expr"].as_str().unwrap();
            let text = text
                .replace("$__rate_interval", "15s")
                .replace("$job", "capvec")
                .replace("$instance", ".+");
            assert!(!text.contains('$'), "a variable is left in {text}");
            let place = format!("{} / {}", title(panel), target["refId"].as_str().unwrap());
            queries.push(Query { place: format!("panel {place}"), text });
        }
    }
    queries
}

/// The rules as Prometheus has read them.
fn rule_queries(prometheus: &Prometheus) -> Vec<Query> {
    let data = prometheus.ask("rules", &[]).unwrap();
    let groups = data["groups"].as_array().unwrap().iter();
    let rules = groups.flat_map(|group| group["rules"].as_array().unwrap());
    rules
        .map(|rule| {
            let (kind, name) = (rule["type"].as_str().unwrap(), rule["name"].as_str().unwrap());
            let text = rule["query"].as_str().unwrap();
            let text = if kind == "alerting" { as_number(text) } else { text.to_owned() };
            Query { place: format!("{kind} {name}"), text }
        })
        .collect()
}

/// An alert's comparisons only filter, so that nothing would be left where all is well. Returns
/// what gives 1 where the alert's expression gives something, and 0 where it gives nothing.
fn as_number(alert: &str) -> String {
    let mut text = alert.to_owned();
    for comparison in [" > ", " == "] {
        text = text.replace(comparison, &format!("{comparison}bool "));
    }
    // `and` would give what is on its left, be what is on its right 0 or 1.
    let sides: Vec<&str> = text.split(" and ").collect();
    if sides.len() == 1 {
        return text;
    }
    let factor = |side: &&str| match side.strip_prefix("on (job) ") {
        Some(side) => format!("on (job) group_left () ({side})"),
        None => format!("({side})"),
    };
    sides.iter().map(factor).collect::<Vec<_>>().join(" * ")
}

fn show(values: &[f64]) -> String {
    let text: Vec<String> = values.iter().map(|value| short(*value)).collect();
    match text.len() {
        0 => "nothing".into(),
        1..=4 => text.join(", "),
        n => format!("{}, … ({n} series)", text[..3].join(", ")),
    }
}

/// Three digits are enough to see that a number is one.
fn short(value: f64) -> String {
    match value.abs() {
        v if v == 0.0 || (1e-3..1e6).contains(&v) => {
            let digits = if v == 0.0 { 0 } else { (2.0 - v.log10().floor()).max(0.0) as usize };
            let text = format!("{value:.digits$}");
            let cut = text.trim_end_matches('0').trim_end_matches('.');
            if text.contains('.') { cut.into() } else { text }
        }
        _ => format!("{value:.2e}"),
    }
}

/// The document lists the queries that there are. Its figures are of the run that it was copied
/// from.
fn the_document_is_of_these(table: &BTreeMap<String, [String; 3]>) {
    let mut text = String::from("| query of | it | gave |\n| --- | --- | --- |\n");
    for (place, [query, gave, why]) in table {
        let query = query.split_whitespace().collect::<Vec<_>>().join(" ").replace('|', "\\|");
        let why = if why.is_empty() { String::new() } else { format!(": {why}") };
        writeln!(text, "| {place} | `{query}` | {gave}{why} |").unwrap();
    }
    std::fs::write(out("queries.md"), &text).unwrap();
    let columns = |text: &str| -> Vec<String> {
        let rows = text.lines().filter(|line| line.starts_with('|'));
        rows.map(|row| row.rsplit_once("` | ").map_or(row, |(what, _)| what).to_owned()).collect()
    };
    let document = columns(&read("docs/queries.md"));
    assert!(
        document == columns(&text),
        "docs/queries.md has other queries: run scripts/dashboard-queries"
    );
}

fn every_variable_has_values(prometheus: &Prometheus) {
    for variable in dashboard()["templating"]["list"].as_array().unwrap() {
        if variable["type"] != "query" {
            continue;
        }
        let text = variable["query"]["query"].as_str().unwrap();
        let inside = text.strip_prefix("label_values(").unwrap().strip_suffix(')').unwrap();
        let (series, label) = inside.rsplit_once(", ").unwrap();
        let series = series.replace("$job", "capvec");
        let values = prometheus.ask(&format!("label/{label}/values"), &[("match[]", &series)]);
        let expected = if label == "instance" { 2 } else { 1 };
        assert_eq!(values.unwrap().as_array().unwrap().len(), expected, "{text}");
    }
}

fn every_rule_is_healthy(prometheus: &Prometheus) {
    let data = prometheus.ask("rules", &[]).unwrap();
    let groups = data["groups"].as_array().unwrap().iter();
    for rule in groups.flat_map(|group| group["rules"].as_array().unwrap()) {
        assert_eq!(rule["health"], "ok", "{rule}");
    }
}

//! What an operator looks at, tried with the tools that read it: Prometheus, promtool, a browser, a
//! terminal, on a worker under load.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

use crate::promises::{documented_metrics, read, root};
use crate::support::load::{Bursts, Load};
use crate::support::prometheus::{Prometheus, program};
use crate::support::{Cluster, Worker, capvec_fails, capvec_ok, eventually, tiny_package};

/// A network, and nothing to be measured first.
const OPTIONS: [&str; 4] =
    ["embed.embedder=onnx", "embed.sessions=1", "batch.tokens_max=512", "log.filter=info"];

/// Queries that give nothing on a healthy worker without a GPU, and why.
const EMPTY: [(&str, &str); 2] = [
    ("CapvecRunsOnCpu", "no configuration asks for a GPU here"),
    ("CapvecAbsent", "a worker is there"),
];

/// A query, and where it is from.
struct Query {
    place: String,
    text: String,
}

fn dashboard() -> Value {
    serde_json::from_str(&read("dashboards/capvec.json")).unwrap()
}

/// The panels of the dashboard that show something.
fn panels(dashboard: &Value) -> impl Iterator<Item = &Value> {
    dashboard["panels"].as_array().unwrap().iter().filter(|panel| panel["type"] != "row")
}

fn title(panel: &Value) -> &str {
    panel["title"].as_str().unwrap()
}

#[test]
fn every_query_gives_data_and_every_metric_is_documented() {
    let Some(program) = program("prometheus") else { return };
    let cluster = Cluster::shared();
    cluster.create_topics("observed", 3);
    let worker = Worker::start(&cluster, "observed", tiny_package(), &OPTIONS).ready();
    let prometheus = Prometheus::start(&program, worker.admin());
    eventually("the worker is scraped", || {
        (!prometheus.query("capvec_build_info").unwrap().is_empty()).then_some(())
    });
    let _load = Load::start(&cluster, "observed", Bursts::Rare);

    let mut waiting = dashboard_queries();
    waiting.extend(rule_queries(&prometheus));
    assert!(waiting.len() > 60, "the files have been read");
    let mut table: BTreeMap<String, (String, String)> = BTreeMap::new();
    eventually("every query has given data; observe/queries-missing.txt has the others", || {
        waiting.retain(|Query { place, text }| {
            let samples = prometheus.query(text).unwrap_or_else(|e| panic!("{place}: {text}: {e}"));
            let reason = EMPTY.iter().find(|(name, _)| place.ends_with(name)).map(|(_, why)| *why);
            // Nothing divided by nothing says nothing.
            let said = samples.iter().any(|s| s["value"][1].as_str().is_some_and(|v| v != "NaN"));
            match (said, reason) {
                (true, Some(reason)) => panic!("{place} gives data, though {reason}: {samples:?}"),
                (true, None) => table.insert(place.clone(), (text.clone(), show(&samples))),
                (false, Some(why)) => {
                    table.insert(place.clone(), (text.clone(), format!("nothing: {why}")))
                }
                (false, None) => return true,
            };
            false
        });
        // What is missing goes into the message that a failure prints.
        let missing: Vec<_> = waiting.iter().map(|q| q.place.as_str()).collect();
        std::fs::write(out("queries-missing.txt"), missing.join("\n")).unwrap();
        waiting.is_empty().then_some(())
    });
    write_table(&table);
    every_variable_has_values(&prometheus);
    every_rule_is_healthy(&prometheus);

    let (_, text) = worker.get("/metrics").unwrap();
    let served: BTreeSet<String> = text
        .lines()
        .filter_map(|line| Some(line.strip_prefix("# TYPE ")?.split(' ').next()?.to_owned()))
        .collect();
    assert_eq!(served, documented_metrics(), "/metrics, and docs/metrics.md");
    worker.stop();
}

/// A file of results, beside the build.
fn out(name: &str) -> std::path::PathBuf {
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

/// The rules as Prometheus has read them. An alert's comparisons only filter, so that nothing would be
/// left where all is well; with `bool` they give 0 or 1.
fn rule_queries(prometheus: &Prometheus) -> Vec<Query> {
    let data = prometheus.ask("rules", &[]).unwrap();
    let groups = data["groups"].as_array().unwrap().iter();
    let rules = groups.flat_map(|group| group["rules"].as_array().unwrap());
    rules
        .map(|rule| {
            let (kind, name) = (rule["type"].as_str().unwrap(), rule["name"].as_str().unwrap());
            let mut text = rule["query"].as_str().unwrap().to_owned();
            if kind == "alerting" {
                for comparison in [" > ", " == "] {
                    text = text.replace(comparison, &format!("{comparison}bool "));
                }
            }
            Query { place: format!("{kind} {name}"), text }
        })
        .collect()
}

fn show(samples: &[Value]) -> String {
    let value = |s: &Value| s["value"][1].as_str().and_then(|v| v.parse::<f64>().ok());
    let values: Vec<String> = samples.iter().filter_map(value).map(|v| format!("{v:.4}")).collect();
    match values.len() {
        0..=4 => values.join(", "),
        n => format!("{}, … ({n} series)", values[..3].join(", ")),
    }
}

fn write_table(table: &BTreeMap<String, (String, String)>) {
    let mut text = String::from("| query | gave | text |\n| --- | --- | --- |\n");
    for (place, (query, gave)) in table {
        let query = query.replace('|', "\\|").replace('\n', " ");
        writeln!(text, "| {place} | {gave} | `{query}` |").unwrap();
    }
    std::fs::write(out("queries.md"), text).unwrap();
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
        assert_eq!(values.unwrap().as_array().unwrap().len(), 1, "{text}");
    }
}

fn every_rule_is_healthy(prometheus: &Prometheus) {
    let data = prometheus.ask("rules", &[]).unwrap();
    let groups = data["groups"].as_array().unwrap().iter();
    for rule in groups.flat_map(|group| group["rules"].as_array().unwrap()) {
        assert_eq!(rule["health"], "ok", "{rule}");
    }
}

#[test]
fn promtool_takes_the_rules_and_every_alert_has_its_cases_and_its_page() {
    let rules = read("dashboards/alerts.yaml");
    let cases = read("dashboards/alerts_test.yaml");
    let alerts: Vec<&str> = rules.split("- alert: ").skip(1).collect();
    assert!(alerts.len() >= 12, "{}", alerts.len());
    for alert in alerts {
        let name = alert.lines().next().unwrap();
        for part in ["severity: ", "summary: ", "description: "] {
            assert!(alert.contains(&format!("\n          {part}")), "{name} has no {part}");
        }
        let (_, page) = alert.split_once("runbook_url: ").unwrap();
        let page = page.lines().next().unwrap();
        let (_, page) = page.split_once("/blob/main/").unwrap_or_else(|| panic!("{page}"));
        let page = read(page);
        assert!(page.contains(name), "the runbook page of {name} doesn't name it");
        let key = format!("alertname: {name}");
        let of_alert =
            cases.split(&key).skip(1).map(|case| case.trim_start_matches([',', '\n', ' ']));
        let (quiet, fires): (Vec<_>, Vec<_>) =
            of_alert.partition(|case| case.starts_with("exp_alerts: []"));
        assert!(!quiet.is_empty(), "no case in which {name} is quiet");
        assert!(!fires.is_empty(), "no case in which {name} fires");
    }
    let Some(promtool) = program("promtool") else { return };
    for (command, file) in
        [("check", "dashboards/alerts.yaml"), ("test", "dashboards/alerts_test.yaml")]
    {
        let mut run = Command::new(&promtool);
        let output = run.args([command, "rules", file]).current_dir(root()).output().unwrap();
        let said = [output.stdout, output.stderr].concat();
        let said = String::from_utf8_lossy(&said);
        assert!(output.status.success(), "promtool {command} rules {file}:\n{said}");
    }
}

#[test]
fn top_shows_a_worker_to_people_and_to_programs() {
    let cluster = Cluster::shared();
    cluster.create_topics("topped", 2);
    let worker = Worker::start(&cluster, "topped", tiny_package(), &OPTIONS).ready();
    let _load = Load::start(&cluster, "topped", Bursts::Often);
    let admin = format!("http://{}", worker.admin());
    let figures = eventually("captions come through", || {
        let text = capvec_ok(&["top", &admin, "--once", "--json", "--interval", "0.5"]);
        let figures: Value = serde_json::from_str(&text).unwrap();
        (figures["captions_per_second"].as_f64().unwrap() > 0.0).then_some(figures)
    });
    for key in ["end_to_end_p50_seconds", "end_to_end_p99_seconds", "batch_fill", "duty_cycle"] {
        assert!(figures[key].as_f64().is_some_and(|n| n > 0.0), "{key}: {figures}");
    }
    assert_eq!(figures["partitions"], 2.0);
    assert_eq!(figures["execution_provider"], "CPUExecutionProvider");
    assert_eq!(figures["stages"].as_array().unwrap().len(), 4);
    eventually("batches and rejections come through", || {
        let text = capvec_ok(&["top", worker.admin(), "--once", "--interval", "0.3"]);
        assert!(text.contains("CPUExecutionProvider"), "{text}");
        (text.contains(" % full\n") && text.contains("not_json ")).then_some(())
    });

    let (code, said) = capvec_fails(&["top", "127.0.0.1:1", "--once"]);
    assert_eq!(code, 1);
    assert!(said.contains("http://127.0.0.1:1/metrics"), "{said}");
    let (code, said) = capvec_fails(&["top", "https://localhost"]);
    assert_eq!(code, 2);
    assert!(said.contains("https is not spoken"), "{said}");
    worker.stop();
}

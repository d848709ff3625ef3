//! The dashboard's form: the rules of Grafana's dashboard-linter, whose module the Go proxy doesn't
//! give everywhere, and this project's own.

use std::collections::BTreeSet;
use std::process::Command;

use serde_json::Value;

use crate::promises::{documented_metrics, read, root};

/// Units of Grafana that the panels use.
const UNITS: [&str; 5] = ["short", "s", "ops", "Bps", "percentunit"];

/// The dashboard as people install it.
pub fn dashboard() -> Value {
    serde_json::from_str(&read("dashboards/capvec.json")).unwrap()
}

/// The panels of the dashboard that show something.
pub fn panels(dashboard: &Value) -> Vec<&Value> {
    let all = dashboard["panels"].as_array().unwrap().iter();
    all.filter(|panel| panel["type"] != "row").collect()
}

/// The title of a panel.
pub fn title(panel: &Value) -> &str {
    panel["title"].as_str().unwrap()
}

fn queries(dashboard: &Value) -> Vec<(String, String)> {
    let mut queries = Vec::new();
    for panel in panels(dashboard) {
        for target in panel["targets"].as_array().unwrap() {
            let text = target["expr"].as_str().unwrap().to_owned();
            queries.push((title(panel).to_owned(), text));
        }
    }
    queries
}

/// Returns every name of a metric in a query, with what follows it.
fn metrics_in(query: &str) -> Vec<(&str, &str)> {
    let begins = query.match_indices("capvec_").map(|(index, _)| &query[index..]);
    begins
        .map(|rest| {
            let end = rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '_');
            rest.split_at(end.unwrap_or(rest.len()))
        })
        .collect()
}

#[test]
fn the_json_is_what_its_script_makes() {
    let output =
        Command::new("python3").args(["scripts/dashboard", "--check"]).current_dir(root()).output();
    let output = output.expect("python3 is needed to build, too");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// template-datasource-rule, template-job-rule, template-instance-rule, template-label-promql-rule,
/// template-on-time-change-reload-rule, uneditable-dashboard-rule.
#[test]
fn the_variables_are_as_the_linter_wants_them() {
    let dashboard = dashboard();
    assert_eq!(dashboard["editable"], false);
    let variables = dashboard["templating"]["list"].as_array().unwrap();
    let names: Vec<_> = variables.iter().map(|v| v["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["datasource", "job", "instance"]);
    assert_eq!(variables[0]["type"], "datasource");
    assert_eq!(variables[0]["query"], "prometheus");
    assert_eq!(variables[0]["label"], "Data source");
    for (variable, label) in variables[1..].iter().zip(["Job", "Instance"]) {
        assert_eq!(variable["label"], label);
        assert_eq!(variable["type"], "query");
        assert_eq!(variable["datasource"]["uid"], "${datasource}");
        assert_eq!(variable["multi"], true);
        assert_eq!(variable["includeAll"], true);
        assert_eq!(variable["allValue"], ".+");
        // 2: when the time range changes, for instances come and go.
        assert_eq!(variable["refresh"], 2);
        assert!(variable["query"]["query"].as_str().unwrap().starts_with("label_values("));
    }
}

/// panel-datasource-rule, panel-title-description-rule, panel-units-rule, panel-no-targets-rule.
#[test]
fn every_panel_has_a_title_a_description_a_unit_and_a_query() {
    let dashboard = dashboard();
    let rows: Vec<_> = dashboard["panels"].as_array().unwrap().iter().collect();
    let rows: Vec<_> = rows.into_iter().filter(|panel| panel["type"] == "row").collect();
    assert!(rows.iter().all(|row| row["title"].as_str().unwrap().ends_with('?')), "questions");
    assert_eq!(rows.len(), 7);
    let (mut ids, mut titles) = (BTreeSet::new(), BTreeSet::new());
    for panel in panels(&dashboard) {
        let title = title(panel);
        assert!(titles.insert(title), "two panels {title}");
        assert!(ids.insert(panel["id"].as_u64().unwrap()), "{title}: the id is taken");
        assert!(panel["description"].as_str().unwrap().ends_with('.'), "{title}: a sentence");
        let unit = panel["fieldConfig"]["defaults"]["unit"].as_str().unwrap();
        assert!(UNITS.contains(&unit), "{title}: {unit}");
        assert_eq!(panel["datasource"]["uid"], "${datasource}", "{title}");
        let targets = panel["targets"].as_array().unwrap();
        assert!(!targets.is_empty(), "{title}");
        for target in targets {
            assert_eq!(target["datasource"]["uid"], "${datasource}", "{title}");
        }
    }
}

/// target-job-rule, target-instance-rule, target-rate-interval-rule, target-counter-agg-rule. That
/// the queries parse, target-promql-rule, is Prometheus's own verdict in `queries.rs`.
#[test]
fn every_query_has_its_selectors_and_counters_are_read_as_rates() {
    let dashboard = dashboard();
    let documented = documented_metrics();
    for (title, query) in queries(&dashboard) {
        let metrics = metrics_in(&query);
        assert!(!metrics.is_empty(), "{title}");
        // Where the labels of both sides differ it gives both, and in a stack they count twice.
        assert!(!query.contains(" or "), "{title}: {query}");
        for (name, after) in metrics {
            let selector = "{job=~\"$job\", instance=~\"$instance\"}";
            assert!(after.starts_with(selector), "{title}: {name} has no {selector}");
            let family = ["_bucket", "_sum", "_count"].iter().find_map(|s| name.strip_suffix(s));
            let known = family.filter(|family| documented.contains(*family)).unwrap_or(name);
            assert!(documented.contains(known), "{title}: there is no metric {name}");
            let before = &query[..query.find(name).unwrap()];
            let is_counter = name.ends_with("_total") || known != name;
            let is_rate = before.ends_with("rate(") || before.ends_with("increase(");
            assert_eq!(is_counter, is_rate, "{title}: {query}");
        }
        for (index, _) in query.match_indices("rate(") {
            let range = query[index..].split(['[', ']']).nth(1);
            assert_eq!(range, Some("$__rate_interval"), "{title}: {query}");
        }
    }
}

#[test]
fn every_metric_is_in_a_panel() {
    let mut shown = BTreeSet::new();
    for (_, query) in queries(&dashboard()) {
        for (name, _) in metrics_in(&query) {
            let family = ["_bucket", "_sum", "_count"].iter().find_map(|s| name.strip_suffix(s));
            shown.extend(family.into_iter().chain([name]).map(str::to_owned));
        }
    }
    let missing: Vec<_> = documented_metrics().into_iter().filter(|m| !shown.contains(m)).collect();
    assert!(missing.is_empty(), "in no panel of scripts/dashboard: {missing:?}");
}

#[test]
fn the_alerts_name_metrics_that_exist() {
    let documented = documented_metrics();
    let rules = read("dashboards/alerts.yaml");
    let rules = rules.lines().filter(|line| !line.trim_start().starts_with('#'));
    for line in rules {
        for (name, _) in metrics_in(line) {
            let family = ["_bucket", "_sum", "_count"].iter().find_map(|s| name.strip_suffix(s));
            let known = family.filter(|family| documented.contains(*family)).unwrap_or(name);
            assert!(documented.contains(known), "there is no metric {name}: {line}");
        }
    }
}

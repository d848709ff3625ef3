//! What an operator looks at beside the dashboard: the alerts, tried with promtool, and
//! `capvec top`, on a worker under load.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::process::Command;

use serde_json::{Value, json};

use crate::dashboard::{dashboard, panels, title};
use crate::promises::{read, root};
use crate::support::load::{Bursts, Load};
use crate::support::prometheus::program;
use crate::support::{
    Cluster, Worker, capvec_fails, capvec_ok, eventually, eventually_ok, skipped,
};

/// A network, and nothing to be measured first.
const OPTIONS: [&str; 4] =
    ["embed.embedder=onnx", "embed.sessions=1", "batch.tokens_max=512", "log.filter=info"];

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
    let Ok(promtool) = program("promtool").map_err(skipped) else { return };
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

/// While fetching pauses nothing is tokenized, and the mean of no caption is no number.
#[test]
fn the_time_before_the_worker_is_told_while_a_stage_stands_still() {
    let Ok(promtool) = program("promtool").map_err(skipped) else { return };
    let dashboard = dashboard();
    let waterfall = panels(&dashboard).into_iter().find(|panel| title(panel) == "Waterfall");
    let query = waterfall.unwrap()["targets"][0]["expr"].as_str().unwrap();
    let query = query.replace("$__rate_interval", "2m").replace("$job", "capvec");
    let query = query.replace("$instance", ".+");
    let counters = [
        ("end_to_end_seconds_sum{job='capvec', instance='a'}", "0+600x10"),
        ("end_to_end_seconds_count{job='capvec', instance='a'}", "0+10x10"),
        ("stage_seconds_sum{job='capvec', instance='a', stage='deliver'}", "0+50x10"),
        ("stage_seconds_count{job='capvec', instance='a', stage='deliver'}", "0+10x10"),
        ("stage_seconds_sum{job='capvec', instance='a', stage='tokenize'}", "3x10"),
        ("stage_seconds_count{job='capvec', instance='a', stage='tokenize'}", "7x10"),
    ];
    let series: Vec<Value> = counters
        .map(|(name, values)| json!({"series": format!("capvec_{name}"), "values": values}))
        .into();
    let due = json!([{"labels": "{}", "value": 55}]);
    let case = json!({
        "interval": "1m",
        "input_series": series,
        "promql_expr_test": [{"expr": query, "eval_time": "8m", "exp_samples": due}],
    });
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("waterfall.yaml");
    // JSON is YAML.
    std::fs::write(&file, json!({"tests": [case]}).to_string()).unwrap();
    let output = Command::new(promtool).args(["test", "rules"]).arg(file).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{query}\n{said}");
}

#[test]
fn top_shows_a_worker_to_people_and_to_programs() {
    let cluster = Cluster::shared();
    cluster.create_topics("topped", 2);
    let worker = Worker::start(&cluster, "topped", &OPTIONS).ready();
    let _load = Load::start(&cluster, "topped", Bursts::Often);
    let admin = format!("http://{}", worker.admin());
    let moving = [
        "captions_per_second",
        "end_to_end_p50_seconds",
        "end_to_end_p99_seconds",
        "batch_fill",
        "duty_cycle",
    ];
    // The first look may fall between the first passes and the first acknowledgements.
    let figures = eventually_ok("captions come through", || {
        let text = capvec_ok(&["top", &admin, "--once", "--json", "--interval", "0.5"]);
        let figures: Value = serde_json::from_str(&text).unwrap();
        let is_moving = |key: &&str| figures[key].as_f64().is_some_and(|n| n > 0.0);
        if moving.iter().all(is_moving) { Ok(figures) } else { Err(text) }
    });
    assert_eq!(figures["partitions"], 2);
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

/// Answers every request as a worker that has just started. Its thread ends with the tests.
fn worker_that_always_starts_again() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    std::thread::spawn(move || {
        for (start, client) in listener.incoming().enumerate() {
            let mut client = client.unwrap();
            let lines = BufReader::new(client.try_clone().unwrap()).lines();
            let head = lines.map_while(Result::ok).take_while(|line| !line.is_empty());
            assert!(head.count() > 0, "a request has a head");
            let text = format!(
                "capvec_build_info{{version=\"1\"}} 1\ncapvec_start_time_seconds {start}\n"
            );
            let head = "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nConnection: close";
            write!(client, "{head}\r\nContent-Length: {}\r\n\r\n{text}", text.len()).unwrap();
        }
    });
    address
}

#[test]
fn top_takes_no_two_workers_for_one() {
    let address = worker_that_always_starts_again();
    let (code, said) = capvec_fails(&["top", &address, "--once", "--interval", "0.1"]);
    assert_eq!(code, 1);
    assert!(said.contains("another worker answers than before"), "{said}");
}

//! `capvec bench`: each benchmark runs, and its report has what the documents say. No speed is
//! asserted: that is the machine's.

use std::io::Read;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::support::{
    CAPVEC, Cluster, capvec_fails, capvec_ok, eventually, free_address, tiny_package,
};

fn package() -> &'static str {
    tiny_package().to_str().unwrap()
}

fn bench(args: &[&str]) -> Value {
    let said = capvec_ok(&[&["bench"], args, &["--repeats", "1", "--json"]].concat());
    serde_json::from_str(&said).unwrap_or_else(|e| panic!("one JSON document: {e}\n{said}"))
}

/// Holds that at each of these places stands a number above 0.
#[track_caller]
fn assert_positive(report: &Value, pointers: &[&str]) {
    for pointer in pointers {
        let found = report.pointer(pointer).and_then(Value::as_f64);
        assert!(found.is_some_and(|number| number > 0.0), "{pointer}: {found:?} in {report:#}");
    }
}

#[test]
fn the_encoder_is_measured_against_matrix_products_and_padding() {
    let folder = tempfile::tempdir().unwrap();
    let plot = folder.path().join("plot.svg");
    let plot = plot.to_str().unwrap();
    let report = bench(&["encoder", "--model", package(), "--tokens", "32", "--plot", plot]);
    assert_eq!(report["bench"], "encoder");
    let mixes: Vec<_> = report["grid"].as_array().unwrap().iter().map(|p| &p["mix"]).collect();
    assert_eq!(mixes, ["captions", "long", "random"]);
    assert_positive(
        &report,
        &[
            "/matrix_product_gflops/median",
            "/grid/0/tokens_per_second/median",
            "/grid/0/captions_per_second/median",
            "/grid/0/share/median",
            "/grid/2/fill",
            "/policies/packed_over_padded/median",
            "/policies/padding_share",
        ],
    );
    let svg = std::fs::read_to_string(plot).unwrap();
    assert!(svg.starts_with("<svg") && svg.contains(">random<"), "{svg}");
}

#[test]
fn what_a_benchmark_has_to_set_nobody_else_sets() {
    for option in ["kafka.brokers", "kafka.group", "input.topic", "output.topic"] {
        let set = format!("{option}=other");
        let (code, error) = capvec_fails(&["bench", "host", "--set", &set]);
        assert_eq!(code, 1, "{error}");
        assert!(error.contains(&format!("--set {option}: a benchmark sets it itself")), "{error}");
    }
}

#[test]
fn the_host_is_measured_against_a_bare_client() {
    // Nothing is paused, so that it takes as long as the work does.
    let all_at_once = "delivery.in_flight_captions_max=20000";
    let report = bench(&["host", "--messages", "20000", "--set", all_at_once]);
    assert_eq!((&report["bench"], &report["brokers"]), (&"host".into(), &"embedded".into()));
    assert_eq!(report["value_bytes"], 2560);
    assert_positive(
        &report,
        &[
            "/worker/cpu_us_per_caption/median",
            "/worker/captions_per_second/median",
            "/bare_client/cpu_us_per_caption/median",
            "/bare_client/captions_per_second/median",
            "/cpu_ratio/median",
        ],
    );
}

#[test]
fn the_worker_is_measured_in_all_scenarios() {
    let report = bench(&["worker", "--model", package(), "--seconds", "0.1"]);
    assert_eq!((&report["bench"], &report["brokers"]), (&"worker".into(), &"embedded".into()));
    let loads: Vec<_> = report["loads"].as_array().unwrap().iter().map(|l| &l["name"]).collect();
    assert_eq!(
        loads,
        [
            "steady 10 %",
            "steady 50 %",
            "steady 80 %",
            "steady 95 %",
            "bursts 50 %",
            "step, at 30 %",
            "step, at 90 %"
        ]
    );
    assert_positive(
        &report,
        &[
            "/alone/milliseconds/median",
            "/alone/rested_milliseconds/median",
            "/closed/worker/captions_per_second/median",
            "/closed/worker/tokens_per_second/median",
            "/closed/offline/worker_over_packed/median",
            "/closed/offline/worker_over_padded/median",
            "/loads/1/captions_per_second",
            "/loads/1/received/captions",
            "/loads/1/received/p50_ms",
            "/loads/1/received/p99_ms",
            "/loads/1/received/max_ms",
            "/long/tokens_ratio/median",
            "/long/long_tokens",
        ],
    );
    assert!(report.pointer("/loads/1/broker_to_broker").unwrap().is_null());
}

#[test]
fn on_real_brokers_their_clock_counts_and_the_topics_go() {
    let cluster = Cluster::shared();
    let brokers = cluster.bootstrap.as_str();
    let scenario = ["--scenario", "open", "--seconds", "0.2"];
    let args = ["worker", "--model", package(), "--brokers", brokers];
    let report = bench(&[&args[..], &scenario].concat());
    assert_eq!(report["brokers"], brokers);
    assert_positive(&report, &["/loads/1/received/p50_ms", "/loads/1/broker_to_broker/captions"]);
    assert!(report.pointer("/closed/offline").unwrap().is_null(), "it wasn't asked for");
    eventually("the topics are deleted", || {
        cluster.topics("capvec-bench-").is_empty().then_some(())
    });
}

#[test]
fn a_broker_that_is_away_ends_no_measurement() {
    let brokers = format!("{},{}", free_address(), Cluster::shared().bootstrap);
    let scenario = ["--scenario", "closed", "--seconds", "0.2"];
    let args = ["worker", "--model", package(), "--brokers", &brokers];
    let report = bench(&[&args[..], &scenario].concat());
    assert_positive(&report, &["/closed/worker/captions_per_second/median"]);
}

#[test]
fn brokers_that_are_all_away_are_told_as_everywhere_and_not_waited_for_after_a_signal() {
    let away = free_address();
    let args = ["bench", "host", "--repeats", "1", "--brokers", &away];
    let (code, error) = capvec_fails(&args);
    assert_eq!(code, 1, "{error}");
    assert!(error.contains("no answer from the brokers at ") && error.contains(&away), "{error}");
    assert!(error.contains("Connection refused"), "{error}");

    let child = interruptible(&args);
    let begun = Instant::now();
    let error = interrupted(child);
    assert!(begun.elapsed() < Duration::from_secs(5), "{error}");
    assert!(error.contains("stopped while waiting for the brokers at "), "{error}");
}

#[test]
fn an_interrupted_benchmark_ends_as_shells_say_it_of_others() {
    let closed = ["--scenario", "closed", "--seconds", "3600"];
    let worker = [&["bench", "worker", "--model", package()], &closed[..]].concat();
    let error = interrupted(interruptible(&worker));
    assert!(error.contains("interrupted"), "{error}");
}

/// Starts the program with SIGINT as it has it on a terminal, and waits until it heeds that.
fn interruptible(args: &[&str]) -> Child {
    let child = Command::new("env")
        .args(["--default-signal=INT", CAPVEC])
        .args(args)
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let id = child.id();
    eventually("it heeds SIGINT", || {
        let status = std::fs::read_to_string(format!("/proc/{id}/status")).unwrap();
        let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:")).unwrap();
        let caught = u64::from_str_radix(caught.trim(), 16).unwrap();
        // Signal 2 is the second bit.
        (caught & 2 != 0).then_some(())
    });
    child
}

/// Sends SIGINT, waits for the end that is due, and returns standard error.
fn interrupted(mut child: Child) -> String {
    let id = child.id().to_string();
    assert!(Command::new("kill").args(["-s", "INT", &id]).status().unwrap().success());
    let mut error = String::new();
    child.stderr.take().unwrap().read_to_string(&mut error).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(130), "{error}");
    error
}

#[test]
fn what_cannot_be_measured_is_said() {
    let (code, error) = capvec_fails(&["bench", "encoder", "--model", "/nowhere"]);
    assert!(code == 1 && error.contains("there is no folder"), "{error}");
    let plot = ["bench", "encoder", "--model", package(), "--plot", "/nowhere/plot.svg"];
    assert!(capvec_fails(&plot).1.contains("/nowhere is no folder"));
    let hash = ["bench", "worker", "--model", package(), "--set", "embed.embedder=hash"];
    assert!(capvec_fails(&hash).1.contains("capvec bench host"));
    let (code, error) = capvec_fails(&["bench", "host", "--set", "batch.tokens=3"]);
    assert!(code == 64 && error.contains("batch.tokens: no such option"), "{error}");
}

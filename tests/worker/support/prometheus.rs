//! A real Prometheus, from the distribution's package, that scrapes workers; and `promtool`.
//!
//! `scripts/prometheus` puts both into the cache. Where they aren't there, tests say that they are
//! skipped.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use capvec::embed::library::cache_folder;
use serde_json::Value;

use super::{eventually, free_address};

/// Ends its command when nobody holds its standard input any more, of whatever the test ended.
const UNTIL_INPUT_ENDS: &str = r#""$@" & read -r _; kill "$!"; wait "$!""#;

/// A Prometheus that runs.
pub struct Prometheus {
    guard: Child,
    address: String,
    folder: tempfile::TempDir,
}

/// Returns the path of `prometheus` or `promtool`, or that there is none.
pub fn program(name: &str) -> Result<PathBuf, String> {
    let on_the_path: Vec<PathBuf> =
        std::env::var_os("PATH").map_or(Vec::new(), |path| std::env::split_paths(&path).collect());
    let cached = cache_folder().map(|cache| cache.join("prometheus/bin"));
    let mut paths = on_the_path.into_iter().chain(cached).map(|folder| folder.join(name));
    let found = paths.find(|path| path.is_file());
    found.ok_or_else(|| format!("{name} is missing; scripts/prometheus fetches it"))
}

impl Prometheus {
    /// Starts it, with the alerts of this repository, on workers' admin addresses.
    pub fn start(program: &Path, workers: &[&str]) -> Prometheus {
        let folder = tempfile::tempdir().unwrap();
        let rules = Path::new(env!("CARGO_MANIFEST_DIR")).join("dashboards/alerts.yaml");
        // JSON is YAML.
        let config = serde_json::json!({
            "global": {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"},
            "rule_files": [rules],
            "scrape_configs": [
                {"job_name": "capvec", "static_configs": [{"targets": workers}]},
            ],
        });
        let path = folder.path().join("prometheus.yaml");
        std::fs::write(&path, config.to_string()).unwrap();
        let address = free_address();
        let log = std::fs::File::create(folder.path().join("log")).unwrap();
        let guard = Command::new("sh")
            .args(["-c", UNTIL_INPUT_ENDS, "sh"])
            .arg(program)
            .arg(format!("--config.file={}", path.display()))
            .arg(format!("--storage.tsdb.path={}", folder.path().join("data").display()))
            .arg(format!("--web.listen-address={address}"))
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        let prometheus = Prometheus { guard, address, folder };
        eventually("Prometheus is ready", || {
            ureq::get(format!("http://{}/-/ready", prometheus.address)).call().ok()
        });
        prometheus
    }

    /// Asks the API and returns the data, or what Prometheus has against the question.
    pub fn ask(&self, path: &str, parameters: &[(&str, &str)]) -> Result<Value, String> {
        let mut question = ureq::get(format!("http://{}/api/v1/{path}", self.address))
            .config()
            .http_status_as_error(false)
            .build();
        for (key, value) in parameters {
            question = question.query(key, value);
        }
        let mut answer = question.call().map_err(|e| format!("{e}\n{}", self.log()))?;
        let text = answer.body_mut().read_to_string().map_err(|e| e.to_string())?;
        let mut answer: Value = serde_json::from_str(&text).map_err(|e| format!("{e}: {text}"))?;
        match answer["status"].as_str() {
            Some("success") => Ok(answer["data"].take()),
            _ => Err(answer["error"].to_string()),
        }
    }

    /// Returns what an instant query gives.
    pub fn query(&self, query: &str) -> Result<Vec<Value>, String> {
        let data = self.ask("query", &[("query", query)])?;
        Ok(data["result"].as_array().expect("a list of samples").clone())
    }

    /// Returns what it has logged.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        drop(self.guard.stdin.take());
        // It has been told, and ends by itself.
        drop(self.guard.wait());
    }
}

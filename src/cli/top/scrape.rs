//! A look at a worker: fetches its metrics and reads the text format of Prometheus.

use std::collections::BTreeMap;
use std::str::FromStr;
use std::time::{Duration, Instant};

use thiserror::Error;

/// How long an answer may take. A worker under full load answers in milliseconds.
const TIMEOUT: Duration = Duration::from_secs(10);

/// The port where none is given, that of `admin.listen` by default.
const PORT: u16 = 9180;

/// Where a worker's metrics are.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Target {
    /// The address, as it was given.
    pub(super) shown: String,
    url: String,
}

/// Why a look failed.
#[derive(Debug, Error)]
pub(super) enum LookError {
    /// Nobody answers, or not so.
    #[error("{url}: {}", in_words(.reason))]
    Http {
        /// What was asked for.
        url: String,
        /// What went wrong; it is in the text already, and no further cause.
        reason: ureq::Error,
    },
    /// Another process answers than before.
    #[error(
        "{url}: another worker answers than before; it has started again, or there are several"
    )]
    AnotherWorker {
        /// What was asked for.
        url: String,
    },
    /// Something else answers.
    #[error("{url} is not a capvec worker: there is no metric capvec_build_info")]
    NotCapvec {
        /// What was asked for.
        url: String,
    },
}

/// Returns why nobody answers, in the system's words or plain ones.
fn in_words(reason: &ureq::Error) -> String {
    match reason {
        ureq::Error::Io(error) => error.to_string(),
        ureq::Error::Timeout(_) => format!("no answer within {TIMEOUT:?}"),
        other => other.to_string(),
    }
}

/// All metrics at a moment.
#[derive(Clone, Debug)]
pub(super) struct Look {
    /// The moment.
    pub(super) at: Instant,
    series: Vec<Series>,
}

#[derive(Clone, Debug, PartialEq)]
struct Series {
    name: String,
    labels: BTreeMap<String, String>,
    value: f64,
}

impl FromStr for Target {
    type Err = String;

    fn from_str(text: &str) -> Result<Target, String> {
        let address = match text.split_once("://") {
            None => text,
            Some(("http", rest)) => rest,
            Some((scheme, _)) => {
                return Err(format!("{scheme} is not spoken; http://HOST:PORT is due"));
            }
        };
        let address = address.trim_end_matches('/');
        let address = address.strip_suffix("/metrics").unwrap_or(address);
        if address.is_empty() || address.contains(char::is_whitespace) {
            return Err("http://HOST:PORT is due, such as http://localhost:9180".into());
        }
        let address = match has_port_or_path(address) {
            true => address.to_owned(),
            false => format!("{address}:{PORT}"),
        };
        // Without a number there, the client would ask another port.
        if let Some(port) = port(&address)
            && port.parse::<u16>().is_err()
        {
            return Err(format!("{port:?} is no port; one is a number, such as {PORT}"));
        }
        Ok(Target { url: format!("http://{address}/metrics"), shown: address })
    }
}

/// Returns whether it is said where on a host: an IPv6 address has colons of its own, in brackets.
fn has_port_or_path(address: &str) -> bool {
    let behind_brackets = address.rsplit_once(']').map_or(address, |(_, behind)| behind);
    behind_brackets.contains([':', '/'])
}

/// Returns what stands where a host's port does.
fn port(address: &str) -> Option<&str> {
    let host = address.split_once('/').map_or(address, |(host, _)| host);
    let host = host.rsplit_once('@').map_or(host, |(_, host)| host);
    let behind_brackets = host.rsplit_once(']').map_or(host, |(_, behind)| behind);
    Some(behind_brackets.split_once(':')?.1)
}

impl Target {
    /// Says that another worker answers.
    pub(super) fn another_worker(&self) -> LookError {
        LookError::AnotherWorker { url: self.url.clone() }
    }

    /// Fetches the metrics.
    ///
    /// # Errors
    ///
    /// When nobody answers within ten seconds, or what answers isn't a worker.
    pub(super) fn look(&self) -> Result<Look, LookError> {
        let url = &self.url;
        let failed = |reason| LookError::Http { url: url.clone(), reason };
        let asked = ureq::get(url).config().timeout_global(Some(TIMEOUT)).build();
        let text = asked.call().map_err(failed)?.body_mut().read_to_string().map_err(failed)?;
        let look = Look::parse(&text, Instant::now());
        if look.label("capvec_build_info", "version").is_none() {
            return Err(LookError::NotCapvec { url: url.clone() });
        }
        Ok(look)
    }
}

impl Look {
    /// Reads the text format; lines that aren't samples are passed over.
    pub(super) fn parse(text: &str, at: Instant) -> Look {
        // A comment may end with a number.
        let lines = text.lines().filter(|line| !line.starts_with('#'));
        Look { at, series: lines.filter_map(series).collect() }
    }

    /// Returns the sum of a metric's series that have all these labels.
    pub(super) fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        self.all(name, labels).map(|s| s.value).sum()
    }

    /// Returns the sum of a metric that counts things.
    pub(super) fn count(&self, name: &str) -> u64 {
        whole(self.sum(name, &[]))
    }

    /// Returns the series of a metric that counts things, by the value of a label.
    pub(super) fn counts(&self, name: &str, label: &str) -> BTreeMap<String, u64> {
        let by = self.by(name, label).into_iter();
        by.map(|(value, number)| (value.to_owned(), whole(number))).collect()
    }

    /// Returns a label's value in the first series of a metric.
    pub(super) fn label(&self, name: &str, label: &str) -> Option<&str> {
        self.all(name, &[]).find_map(|s| s.labels.get(label)).map(String::as_str)
    }

    /// Returns the series of a metric by the value of a label.
    pub(super) fn by(&self, name: &str, label: &str) -> BTreeMap<&str, f64> {
        let series = self.all(name, &[]);
        series.filter_map(|s| Some((s.labels.get(label)?.as_str(), s.value))).collect()
    }

    /// Returns a histogram's cumulative counts by their upper bounds, in order.
    pub(super) fn buckets(&self, name: &str, labels: &[(&str, &str)]) -> Vec<(f64, f64)> {
        let name = format!("{name}_bucket");
        let series = self.all(&name, labels);
        let bound = |s: &Series| s.labels.get("le")?.parse().ok();
        let mut buckets: Vec<_> = series.filter_map(|s| Some((bound(s)?, s.value))).collect();
        buckets.sort_by(|a: &(f64, f64), b| a.0.total_cmp(&b.0));
        buckets
    }

    /// Returns whether another process answers: the worker has started again, or there are several
    /// behind the address. Counters wouldn't tell, which may have overtaken those of before.
    pub(super) fn is_of_another_process(&self, earlier: &Look) -> bool {
        let started = |look: &Look| look.sum("capvec_start_time_seconds", &[]);
        started(self) != started(earlier)
    }

    fn all<'a>(&'a self, name: &str, labels: &[(&str, &str)]) -> impl Iterator<Item = &'a Series> {
        let holds = move |s: &&Series| {
            s.name == name && labels.iter().all(|(k, v)| s.labels.get(*k).is_some_and(|l| l == v))
        };
        self.series.iter().filter(holds)
    }
}

/// A count is whole and not negative; a gauge may be below 0 for a moment.
fn whole(number: f64) -> u64 {
    number.max(0.0).round() as u64
}

/// Reads `name{label="value",...} number`.
fn series(line: &str) -> Option<Series> {
    let (head, value) = line.trim_end().rsplit_once(' ')?;
    let value = value.parse().ok()?;
    let Some((name, rest)) = head.split_once('{') else {
        return Some(Series { name: head.into(), labels: BTreeMap::new(), value });
    };
    let mut rest = rest.strip_suffix('}')?;
    let mut labels = BTreeMap::new();
    while !rest.is_empty() {
        let (label, after) = rest.split_once("=\"")?;
        let (text, after) = quoted(after)?;
        labels.insert(label.into(), text);
        rest = after.strip_prefix(',').unwrap_or(after);
    }
    Some(Series { name: name.into(), labels, value })
}

/// Reads up to the closing quote; returns the text without escapes, and what comes after.
fn quoted(text: &str) -> Option<(String, &str)> {
    let mut read = String::new();
    let mut characters = text.char_indices();
    loop {
        match characters.next()? {
            (at, '"') => return Some((read, &text[at + 1..])),
            (_, '\\') => read.push(match characters.next()?.1 {
                'n' => '\n',
                other => other,
            }),
            (_, other) => read.push(other),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_taken_with_and_without_what_goes_without_saying() {
        for text in ["localhost:9180", "http://localhost:9180/", "http://localhost:9180/metrics"] {
            assert_eq!(text.parse::<Target>().unwrap().url, "http://localhost:9180/metrics");
        }
        for (text, url) in [
            ("localhost", "http://localhost:9180/metrics"),
            ("http://worker-3/", "http://worker-3:9180/metrics"),
            ("http://localhost/metrics", "http://localhost:9180/metrics"),
            ("[::1]", "http://[::1]:9180/metrics"),
            ("[::1]:80", "http://[::1]:80/metrics"),
        ] {
            assert_eq!(text.parse::<Target>().unwrap().url, url, "{text}");
        }
        let behind_a_path: Target = "http://proxy/worker-3".parse().unwrap();
        assert_eq!(behind_a_path.url, "http://proxy/worker-3/metrics");
        for wrong in ["", "http://", "https://localhost:9180", "a b"] {
            assert!(wrong.parse::<Target>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_port_that_is_none_is_refused_and_no_other_is_asked() {
        for wrong in ["localhost:abc", "localhost:", "host:99999/metrics", "[::1]:x", "h:80?a"] {
            let said = wrong.parse::<Target>().unwrap_err();
            assert!(said.contains("is no port"), "{wrong}: {said}");
        }
    }

    #[test]
    fn a_failure_is_told_once() {
        let address = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let error = address.to_string().parse::<Target>().unwrap().look().unwrap_err();
        let said = format!("{:#}", anyhow::Error::from(error));
        assert_eq!(said.matches("refused").count(), 1, "{said}");
        assert!(
            said.starts_with(&format!("http://{address}/metrics: Connection refused")),
            "{said}"
        );
        let error = LookError::Http {
            url: "http://a".into(),
            reason: ureq::Error::Timeout(ureq::Timeout::Global),
        };
        assert_eq!(error.to_string(), "http://a: no answer within 10s");
    }

    #[test]
    fn the_text_format_is_read() {
        let text = concat!(
            "# HELP m The help, since 1970\n# TYPE m counter\n",
            "m{a=\"x\",b=\"with \\\"quotes\\\", {braces} and \\\\\"} 1\n",
            "m{a=\"y\"} 2.5e1\n",
            "plain 7\nh_bucket{le=\"+Inf\"} 9\nh_bucket{le=\"10\"} 3\nh_bucket{le=\"2\"} 1\n",
            "broken{a=\"x 1\nbroken\n",
        );
        let look = Look::parse(text, Instant::now());
        assert_eq!(look.series.len(), 6);
        assert_eq!(look.sum("m", &[]), 26.0);
        assert_eq!(look.sum("m", &[("a", "y")]), 25.0);
        assert_eq!(look.sum("plain", &[]), 7.0);
        assert_eq!(look.label("m", "b"), Some("with \"quotes\", {braces} and \\"));
        assert_eq!(look.by("m", "a"), BTreeMap::from([("x", 1.0), ("y", 25.0)]));
        assert_eq!(look.buckets("h", &[]), [(2.0, 1.0), (10.0, 3.0), (f64::INFINITY, 9.0)]);
    }

    #[test]
    fn everything_that_the_worker_renders_is_read() {
        let metrics = crate::metrics::Metrics::new();
        metrics.set_model("a\"b\\c@1", 640, "fp32");
        let text = metrics.render();
        let look = Look::parse(&text, Instant::now());
        let samples = text.lines().filter(|line| !line.starts_with('#')).count();
        assert_eq!(look.series.len(), samples);
        assert_eq!(look.label("capvec_model_info", "model"), Some("a\"b\\c@1"));
    }

    #[test]
    fn a_worker_that_started_again_is_noticed_even_if_it_has_done_more_since() {
        let look = |started: f64, messages: u32| {
            let text = format!(
                "capvec_start_time_seconds {started}\ncapvec_messages_consumed_total {messages}\n"
            );
            Look::parse(&text, Instant::now())
        };
        assert!(look(1.7e9 + 0.5, 7).is_of_another_process(&look(1.7e9, 3)));
        assert!(!look(1.7e9, 7).is_of_another_process(&look(1.7e9, 3)));
    }
}

//! Toxiproxy: the network between workers and brokers, which can be cut, slowed and reset.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use capvec::embed::library::cache_folder;
use serde_json::{Value, json};

/// Names the version; it builds the server.
const SCRIPT: &str = include_str!("../../scripts/toxiproxy");

/// How long the server may take to start.
const START_MAX: Duration = Duration::from_secs(30);

/// Longer than any row: data that is held back so long is held back until the toxic is removed.
const FOR_EVER_MS: u64 = 24 * 60 * 60 * 1000;

/// The server with one proxy a broker, stopped when the value is dropped.
pub struct Toxiproxy {
    server: Child,
    control: u16,
    proxies: usize,
}

impl Toxiproxy {
    /// Starts the server and a proxy for each pair of ports: where it listens, where it leads.
    pub fn start(control: u16, pairs: &[(u16, u16)]) -> Toxiproxy {
        let program = program();
        let server = Command::new(&program)
            .args(["-host", "127.0.0.1", "-port", &control.to_string()])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap_or_else(|error| panic!("{}: {error}; run `make faults`", program.display()));
        let toxiproxy = Toxiproxy { server, control, proxies: pairs.len() };
        let deadline = Instant::now() + START_MAX;
        while TcpStream::connect(("127.0.0.1", control)).is_err() {
            assert!(Instant::now() < deadline, "toxiproxy did not start within {START_MAX:?}");
            std::thread::park_timeout(Duration::from_millis(20));
        }
        for (n, (listen, upstream)) in pairs.iter().enumerate() {
            let proxy = json!({
                "name": format!("broker-{n}"),
                "listen": format!("127.0.0.1:{listen}"),
                "upstream": format!("127.0.0.1:{upstream}"),
            });
            toxiproxy.call("POST", "/proxies", &proxy);
        }
        toxiproxy
    }

    /// Cuts the network without a word, as a pulled cable does: nothing that is sent arrives, no
    /// connection is closed. What was sent meanwhile arrives after [`Toxiproxy::heal`], as TCP
    /// sends it again.
    pub fn cut(&self) {
        self.add("latency", &["upstream", "downstream"], &json!({ "latency": FOR_EVER_MS }));
    }

    /// Delays everything, half of it in each direction.
    pub fn delay(&self, round_trip: Duration) {
        let latency = round_trip.as_millis() as u64 / 2;
        self.add("latency", &["upstream", "downstream"], &json!({ "latency": latency }));
    }

    /// Resets every connection, and each new one at once.
    pub fn reset_connections(&self) {
        self.add("reset_peer", &["downstream"], &json!({ "timeout": 0 }));
    }

    /// Takes back what was done to the network.
    pub fn heal(&self) {
        self.call("POST", "/reset", &Value::Null);
    }

    fn add(&self, kind: &str, streams: &[&str], attributes: &Value) {
        for n in 0..self.proxies {
            for stream in streams {
                let toxic = json!({ "type": kind, "stream": stream, "attributes": attributes });
                self.call("POST", &format!("/proxies/broker-{n}/toxics"), &toxic);
            }
        }
    }

    fn call(&self, method: &str, path: &str, body: &Value) {
        // A body that the server doesn't read makes it reset the connection, at times before the
        // answer is read.
        let body = if body.is_null() { String::new() } else { body.to_string() };
        let length = body.len();
        let mut stream = TcpStream::connect(("127.0.0.1", self.control)).unwrap();
        write!(
            stream,
            "{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n\
             Content-Length: {length}\r\nConnection: close\r\n\r\n{body}"
        )
        .unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let status = answer.split(' ').nth(1).unwrap_or_default();
        assert!(status.starts_with('2'), "toxiproxy refused {method} {path} {body}: {answer}");
    }
}

impl Drop for Toxiproxy {
    fn drop(&mut self) {
        // It may have ended already.
        drop(self.server.kill());
        drop(self.server.wait());
    }
}

/// Returns where `scripts/toxiproxy` puts the server.
fn program() -> PathBuf {
    let version = SCRIPT.lines().find_map(|line| line.strip_prefix("version="));
    let version = version.expect("the script names it");
    cache_folder().unwrap_or_default().join("toxiproxy").join(version).join("toxiproxy-server")
}

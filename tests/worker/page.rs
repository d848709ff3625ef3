//! The page of the admin port, in a real browser on a worker under load.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};

use capvec::admin::serve;
use capvec::health::Health;
use capvec::metrics::Metrics;

use crate::promises::read;
use crate::support::load::{Bursts, Load};
use crate::support::{Cluster, PATIENCE, Worker, eventually, metric, skipped};

/// The lines of the page with their colours, as `src/admin/page.css` has them.
const LINES: [(&str, [u8; 3]); 5] = [
    ("throughput", [0x0f, 0x9d, 0x58]),
    ("p50", [0x42, 0x85, 0xf4]),
    ("p99", [0xea, 0x43, 0x35]),
    ("fill", [0xf2, 0x99, 0x00]),
    ("lag", [0xa1, 0x42, 0xf4]),
];

/// Of the page's own time, which stands still while the browser waits for an answer, and else
/// passes at once.
const VIRTUAL_MS: u32 = 28_000;

/// Returns the browser, or how to install it.
fn chromium() -> Result<&'static str, String> {
    let names = ["chromium", "chromium-browser", "google-chrome"];
    let runs = |name: &&str| {
        let mut command = Command::new(name);
        let status = command.arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
        status.is_ok_and(|status| status.success())
    };
    let found = names.into_iter().find(runs);
    found.ok_or_else(|| "no Chromium; on Debian: sudo apt-get install chromium".into())
}

fn browse(chromium: &str, folder: &Path, url: &str, what: &[&str]) -> String {
    let output = Command::new(chromium)
        .args(["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"])
        .args(["--no-first-run", "--disable-dev-shm-usage", "--window-size=1000,900"])
        .arg(format!("--user-data-dir={}", folder.join("profile").display()))
        .arg(format!("--virtual-time-budget={VIRTUAL_MS}"))
        .args(what)
        .arg(url)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "chromium: {}\n{said}", output.status);
    assert!(!said.contains("Content Security Policy"), "{said}");
    String::from_utf8(output.stdout).unwrap()
}

/// Serves each connection on a thread of its own, since a browser opens some that it then doesn't
/// use; returns the address. The threads end with the tests.
fn served(serve: impl Fn(&TcpStream) -> std::io::Result<()> + Send + Sync + 'static) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let serve = Arc::new(serve);
    std::thread::spawn(move || {
        for client in listener.incoming() {
            let (client, serve) = (client.unwrap(), Arc::clone(&serve));
            // The browser may have gone.
            std::thread::spawn(move || drop(serve(&client)));
        }
    });
    address
}

/// A door before a worker that lets a look at the metrics through only when there is something new
/// to see, as in the browser's own time a second has passed since the last. Returns its address.
fn door(worker: &str) -> String {
    let (worker, seen) = (worker.to_owned(), Mutex::new(0.0));
    served(move |client| let_through(client, &worker, &seen))
}

/// Returns the lines of a request up to the empty one.
fn head_of(client: &TcpStream) -> std::io::Result<Vec<String>> {
    client.set_read_timeout(Some(PATIENCE))?;
    let mut head = Vec::new();
    for line in BufReader::new(client).lines() {
        match line? {
            line if line.is_empty() => break,
            line => head.push(line),
        }
    }
    Ok(head)
}

fn let_through(mut client: &TcpStream, worker: &str, seen: &Mutex<f64>) -> std::io::Result<()> {
    let mut head = head_of(client)?;
    // An answer ends with its connection, so that the next request has one of its own.
    head.retain(|line| !line.to_lowercase().starts_with("connection:"));
    let embedded = || metric(worker, "capvec_captions_embedded_total").unwrap_or(0.0);
    if head.first().is_some_and(|line| line.contains(" /metrics ")) {
        let mut seen = seen.lock().unwrap();
        *seen = eventually("more captions", || Some(embedded()).filter(|now| *now > *seen));
    }
    let mut server = TcpStream::connect(worker)?;
    write!(server, "{}\r\nConnection: close\r\n\r\n", head.join("\r\n"))?;
    let mut answer = Vec::new();
    server.read_to_end(&mut answer)?;
    client.write_all(&answer)
}

/// Returns in how many columns of a picture a colour is to be seen.
fn columns_with(picture: &Path, colour: [u8; 3]) -> usize {
    let file = std::io::BufReader::new(std::fs::File::open(picture).unwrap());
    let mut decoder = png::Decoder::new(file);
    decoder.set_transformations(png::Transformations::normalize_to_color8());
    let mut reader = decoder.read_info().unwrap();
    let mut pixels = vec![0; reader.output_buffer_size().unwrap()];
    let frame = reader.next_frame(&mut pixels).unwrap();
    let samples = frame.color_type.samples();
    let mut columns = vec![false; frame.width as usize];
    for row in pixels[..frame.buffer_size()].chunks_exact(frame.line_size) {
        for (column, pixel) in columns.iter_mut().zip(row.chunks_exact(samples)) {
            *column |= pixel.iter().zip(colour).all(|(a, b)| a.abs_diff(b) < 12);
        }
    }
    columns.into_iter().filter(|seen| *seen).count()
}

#[test]
fn the_page_draws_what_the_worker_does() {
    let Ok(chromium) = chromium().map_err(skipped) else { return };
    let cluster = Cluster::shared();
    cluster.create_topics("drawn", 2);
    let worker = Worker::start(&cluster, "drawn", &[]).ready();
    let _load = Load::start(&cluster, "drawn", Bursts::Often);
    eventually("captions come through", || {
        worker.metric("capvec_captions_embedded_total").filter(|captions| *captions > 0.0)
    });
    let folder = tempfile::tempdir().unwrap();
    let url = format!("http://{}/", door(worker.admin()));

    let page = browse(chromium, folder.path(), &url, &["--dump-dom"]);
    assert!(page.contains("2 partitions"), "{page}");
    assert!(!page.contains("no answer"), "{page}");
    for part in ["before the worker", "tokenize", "wait", "embed", "deliver"] {
        assert!(page.contains(&format!("<li><span>{part}</span><meter ")), "{part}: {page}");
    }
    for (line, _) in LINES {
        let (_, rest) = page
            .split_once(&format!("<polyline class=\"{line}\" points=\""))
            .unwrap_or_else(|| panic!("no line for {line}\n{page}"));
        let points = rest.split('"').next().unwrap();
        assert!(points.split(' ').count() >= 5, "{line}: {points}");
        assert!(!points.contains("NaN"), "{line}: {points}");
    }

    let kept = Path::new(env!("CARGO_TARGET_TMPDIR")).join("observe");
    std::fs::create_dir_all(&kept).unwrap();
    let picture = kept.join("page.png");
    browse(chromium, folder.path(), &url, &[&format!("--screenshot={}", picture.display())]);
    for (line, colour) in LINES {
        // A figure above the chart has the colour too, and is narrower.
        let columns = columns_with(&picture, colour);
        assert!(columns > 200, "{line} is in {columns} columns of {}", picture.display());
    }
    worker.stop();
}

/// Serves the page as a worker that takes connections and never answers for its metrics. Virtual
/// time stands still while the browser waits for a server, so the waiting is done by the page
/// itself.
fn worker_that_hangs() -> String {
    const NO_ANSWER: &str = "window.fetch = (_, how) => new Promise((_, no) => \
         how.signal.addEventListener('abort', () => no(how.signal.reason)));\n";
    served(|mut client| {
        let head = head_of(client)?;
        let path = head.first().and_then(|line| line.split(' ').nth(1));
        let (kind, text) = match path {
            Some("/") => ("text/html", read("src/admin/page.html")),
            Some("/page.js") => {
                ("text/javascript", NO_ANSWER.to_owned() + &read("src/admin/page.js"))
            }
            _ => ("text/css", String::new()),
        };
        let length = text.len();
        let head = format!("HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nContent-Length: {length}");
        write!(client, "{head}\r\nConnection: close\r\n\r\n{text}")
    })
}

#[test]
fn a_worker_that_hangs_is_not_shown_as_keeping_up() {
    let Ok(chromium) = chromium().map_err(skipped) else { return };
    let folder = tempfile::tempdir().unwrap();
    let url = format!("http://{}/", worker_that_hangs());
    let page = browse(chromium, folder.path(), &url, &["--dump-dom"]);
    assert!(page.contains("class=\"bad\">no answer"), "{page}");
}

#[test]
fn a_worker_without_a_model_is_not_shown_as_keeping_up() {
    let Ok(chromium) = chromium().map_err(skipped) else { return };
    let folder = tempfile::tempdir().unwrap();
    let health = Health::new(std::time::Duration::from_secs(60));
    let metrics = Metrics::new();
    let address = serve(([127, 0, 0, 1], 0).into(), metrics.clone(), health).unwrap();
    for (brokers_up, due) in [(0, ">waiting for the brokers<"), (1, ">the model is being loaded<")]
    {
        metrics.source.brokers_up.set(brokers_up);
        let page = browse(chromium, folder.path(), &format!("http://{address}/"), &["--dump-dom"]);
        assert!(page.contains(due), "{page}");
    }
}

#[test]
fn a_worker_in_which_a_message_is_stuck_is_not_shown_as_keeping_up() {
    let Ok(chromium) = chromium().map_err(skipped) else { return };
    let page = page_at_work(chromium, |metrics| metrics.source.stalled_seconds.set(90.0));
    let due = "class=\"bad\">nothing has come of the oldest message in the worker for 90.0 s<";
    assert!(page.contains(due), "{page}");
}

#[test]
fn a_partition_that_has_what_waits_is_named() {
    let Ok(chromium) = chromium().map_err(skipped) else { return };
    let page = page_at_work(chromium, |metrics| {
        metrics.source.lag.seconds.set(40.0);
        metrics.source.lag.partition_messages.with_label_values(&["0"]).set(50);
        metrics.source.lag.partition_messages.with_label_values(&["3"]).set(4950);
    });
    let due =
        ">the oldest message that waits is 40.0 s old; 99 % of those that wait are in partition 3<";
    assert!(page.contains(due), "{page}");
}

#[test]
fn a_worker_that_rejects_does_not_only_keep_up() {
    let Ok(chromium) = chromium().map_err(skipped) else { return };
    let page = page_at_work(chromium, |metrics| metrics.sink.rejected_share.set(0.9));
    assert!(page.contains(">keeping up; 90 % of the last messages were rejected<"), "{page}");
}

/// The page of a worker with a model, brokers and a partition, and with what `set` sets.
fn page_at_work(chromium: &str, set: impl FnOnce(&Metrics)) -> String {
    let folder = tempfile::tempdir().unwrap();
    let health = Health::new(std::time::Duration::from_secs(60));
    let metrics = Metrics::new();
    metrics.set_model("m@1", 640, "fp32");
    metrics.source.brokers_up.set(1);
    metrics.source.partitions.set(1);
    set(&metrics);
    let address = serve(([127, 0, 0, 1], 0).into(), metrics, health).unwrap();
    browse(chromium, folder.path(), &format!("http://{address}/"), &["--dump-dom"])
}

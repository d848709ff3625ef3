//! `/metrics`, `/livez`, `/readyz` and a page that draws the metrics, on a thread and a runtime of their
//! own: they answer under full load, and they never ask a broker.
//!
//! `/livez` fails when the source's thread hasn't polled for a while, or nothing has come of the oldest
//! caption in the worker, or of a forward pass, for too long: then only a restart helps. `/readyz` fails until
//! the brokers know the topics, the model has run once and the group has answered, and again from the moment a stop begins.
//!
//! # Invariants
//!
//! - Nothing here changes anything: methods other than GET and HEAD are refused.
//! - The page loads nothing from elsewhere, and its policy forbids the browser to.
//! - Connections are bounded, and one that says nothing is closed.

mod server;

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::Router;
use axum::http::{Method, StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::{MethodRouter, get};

use crate::metrics::Metrics;
use server::Limits;

/// The source polls every few milliseconds; this long without is a hang.
const POLL_AGE_MAX: Duration = Duration::from_secs(30);

/// Probes, scrapes and some pages that are open.
const LIMITS: Limits = Limits { connections: 128, head: Duration::from_secs(10) };

/// What the page may do in the browser: load its own files and ask this port. The policy says so even
/// should a label's value find a way into the page as markup.
const PAGE_POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; \
     connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// What the probes look at. Stages write it, the probes read it.
#[derive(Debug)]
pub struct Health {
    started: Instant,
    brokers_answered: AtomicBool,
    model_loaded: AtomicBool,
    assigned: AtomicBool,
    stopping: AtomicBool,
    /// Milliseconds since `started`, plus 1; 0 for never.
    last_poll: AtomicU64,
    oldest_unsettled: AtomicU64,
    /// When each embedder's pass began; 0 where it has none.
    passes: Mutex<Vec<Arc<AtomicU64>>>,
    stall_timeout: Duration,
}

/// Tells the probes of the passes of one embedder. A pass that hangs outlives its captions: once their
/// partitions are another worker's, no age of theirs tells of it.
#[derive(Debug)]
pub struct PassWatch {
    health: Arc<Health>,
    began: Arc<AtomicU64>,
}

impl PassWatch {
    /// Runs a pass.
    pub fn run<T>(&self, pass: impl FnOnce() -> T) -> T {
        self.began.store(self.health.stamp(Instant::now()), Ordering::Release);
        let result = pass();
        self.began.store(0, Ordering::Release);
        result
    }
}

impl Health {
    /// Returns the health of a worker that has just started.
    pub fn new(stall_timeout: Duration) -> Arc<Health> {
        Arc::new(Health {
            started: Instant::now(),
            brokers_answered: AtomicBool::new(false),
            model_loaded: AtomicBool::new(false),
            assigned: AtomicBool::new(false),
            stopping: AtomicBool::new(false),
            last_poll: AtomicU64::new(0),
            oldest_unsettled: AtomicU64::new(0),
            passes: Mutex::default(),
            stall_timeout,
        })
    }

    /// The brokers have answered for the topics.
    pub fn brokers_answered(&self) {
        self.brokers_answered.store(true, Ordering::Release);
    }

    /// The model has been loaded and has run once.
    pub fn model_loaded(&self) {
        self.model_loaded.store(true, Ordering::Release);
    }

    /// The group has answered with an assignment, if an empty one.
    pub fn assigned(&self) {
        self.assigned.store(true, Ordering::Release);
    }

    /// Returns whether the group has answered.
    pub fn is_assigned(&self) -> bool {
        self.assigned.load(Ordering::Acquire)
    }

    /// A stop has begun.
    pub fn stopping(&self) {
        self.stopping.store(true, Ordering::Release);
    }

    /// The source has polled.
    pub fn polled(&self) {
        self.last_poll.store(self.stamp(Instant::now()), Ordering::Release);
    }

    /// The oldest unsettled message has been the oldest since then.
    pub fn oldest_unsettled(&self, since: Option<Instant>) {
        let stamp = since.map_or(0, |since| self.stamp(since));
        self.oldest_unsettled.store(stamp, Ordering::Release);
    }

    /// Returns what tells of another embedder's passes.
    pub fn watch_passes(self: &Arc<Self>) -> PassWatch {
        let began = Arc::<AtomicU64>::default();
        self.passes.lock().unwrap_or_else(PoisonError::into_inner).push(Arc::clone(&began));
        PassWatch { health: Arc::clone(self), began }
    }

    fn stamp(&self, at: Instant) -> u64 {
        at.saturating_duration_since(self.started).as_millis() as u64 + 1
    }

    fn age(&self, stamp: &AtomicU64) -> Option<Duration> {
        let at = stamp.load(Ordering::Acquire).checked_sub(1)?;
        Some(self.started.elapsed().saturating_sub(Duration::from_millis(at)))
    }

    /// Returns why the worker should be restarted, if it should.
    pub fn sick(&self) -> Option<String> {
        if let Some(age) = self.age(&self.last_poll).filter(|age| *age > POLL_AGE_MAX) {
            return Some(format!("the consumer was last polled {age:.1?} ago"));
        }
        let is_long = |age: &Duration| *age > self.stall_timeout;
        let passes = self.passes.lock().unwrap_or_else(PoisonError::into_inner);
        let longest = passes.iter().filter_map(|began| self.age(began)).max();
        if let Some(age) = longest.filter(is_long) {
            return Some(format!("a forward pass has been under way for {age:.1?}"));
        }
        let age = self.age(&self.oldest_unsettled).filter(is_long)?;
        Some(format!("nothing has come of the oldest caption in the worker for {age:.1?}"))
    }

    /// Returns what the worker still waits for, if anything.
    pub fn not_ready(&self) -> Option<&'static str> {
        if self.stopping.load(Ordering::Acquire) {
            return Some("stopping");
        }
        if !self.brokers_answered.load(Ordering::Acquire) {
            return Some("the brokers haven't answered for the topics yet");
        }
        if !self.model_loaded.load(Ordering::Acquire) {
            return Some("the model is being loaded");
        }
        if !self.assigned.load(Ordering::Acquire) {
            return Some("the group hasn't answered yet");
        }
        None
    }
}

/// Serves the endpoints at `listen` until the process ends; port 0 takes a free one. Returns the
/// address.
///
/// # Errors
///
/// When the address can't be bound.
pub fn serve(
    listen: SocketAddr,
    metrics: Metrics,
    health: Arc<Health>,
) -> std::io::Result<SocketAddr> {
    let listener = std::net::TcpListener::bind(listen)?;
    listener.set_nonblocking(true)?;
    let address = listener.local_addr()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    std::thread::Builder::new().name("capvec-admin".into()).spawn(move || {
        runtime.block_on(async {
            let listener = match tokio::net::TcpListener::from_std(listener) {
                Ok(listener) => listener,
                Err(error) => return tracing::error!(%error, "the admin endpoints are down"),
            };
            server::serve(listener, router(metrics, health), LIMITS).await;
        });
    })?;
    Ok(address)
}

fn router(metrics: Metrics, health: Arc<Health>) -> Router {
    let live = Arc::clone(&health);
    Router::new()
        .route(
            "/metrics",
            get(move || async move {
                let kind = "text/plain; version=0.0.4; charset=utf-8";
                ([(header::CONTENT_TYPE, kind)], metrics.render())
            }),
        )
        .route("/livez", get(move || async move { answer(live.sick()) }))
        .route("/readyz", get(move || async move { answer(health.not_ready()) }))
        .route("/", page("text/html; charset=utf-8", include_str!("admin/page.html")))
        .route("/page.css", page("text/css; charset=utf-8", include_str!("admin/page.css")))
        .route("/page.js", page("text/javascript; charset=utf-8", include_str!("admin/page.js")))
        .fallback(|method: Method| async move {
            match method {
                Method::GET | Method::HEAD => StatusCode::NOT_FOUND,
                _ => StatusCode::METHOD_NOT_ALLOWED,
            }
        })
}

/// A file of the page. `get` answers HEAD too, and refuses other methods.
fn page(kind: &'static str, text: &'static str) -> MethodRouter {
    get(move || async move {
        let headers = [
            (header::CONTENT_TYPE, kind),
            (header::CONTENT_SECURITY_POLICY, PAGE_POLICY),
            (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
            (header::REFERRER_POLICY, "no-referrer"),
            // Another version of the worker has another page.
            (header::CACHE_CONTROL, "no-cache"),
        ];
        (headers, text)
    })
}

fn answer(trouble: Option<impl Into<String>>) -> impl IntoResponse {
    match trouble {
        None => (StatusCode::OK, "ok\n".to_owned()),
        Some(trouble) => (StatusCode::SERVICE_UNAVAILABLE, format!("{}\n", trouble.into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::net::TcpStream;

    #[test]
    fn ready_from_the_first_assignment_to_the_stop() {
        let health = Health::new(Duration::from_secs(1));
        assert!(health.not_ready().is_some_and(|why| why.contains("brokers")));
        health.brokers_answered();
        assert!(health.not_ready().is_some_and(|why| why.contains("model")));
        health.model_loaded();
        assert!(health.not_ready().is_some_and(|why| why.contains("group")));
        health.assigned();
        assert_eq!(health.not_ready(), None);
        health.stopping();
        assert_eq!(health.not_ready(), Some("stopping"));
    }

    /// Sends a request and returns the whole answer.
    fn ask(address: SocketAddr, method: &str, path: &str) -> String {
        let mut stream = TcpStream::connect(address).unwrap();
        let request = format!("{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }

    #[test]
    fn the_port_only_reads() {
        let listen = SocketAddr::from(([127, 0, 0, 1], 0));
        let address = serve(listen, Metrics::new(), Health::new(Duration::from_secs(60))).unwrap();
        for path in ["/", "/page.css", "/page.js", "/metrics", "/livez"] {
            assert!(ask(address, "GET", path).starts_with("HTTP/1.1 200 "), "{path}");
            let head = ask(address, "HEAD", path);
            assert!(head.starts_with("HTTP/1.1 200 ") && head.ends_with("\r\n\r\n"), "{path}");
        }
        assert!(ask(address, "GET", "/readyz").starts_with("HTTP/1.1 503 "), "no model yet");
        assert!(ask(address, "GET", "/elsewhere").starts_with("HTTP/1.1 404 "));
        for path in ["/", "/page.js", "/metrics", "/livez", "/readyz", "/elsewhere"] {
            for method in ["POST", "PUT", "DELETE", "PATCH", "OPTIONS"] {
                let answer = ask(address, method, path);
                assert!(answer.starts_with("HTTP/1.1 405 "), "{method} {path}: {answer}");
            }
        }
    }

    #[test]
    fn a_connection_that_says_nothing_makes_room_for_others() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        std::thread::spawn(move || {
            runtime.block_on(async {
                let listener = tokio::net::TcpListener::from_std(listener).unwrap();
                let router = router(Metrics::new(), Health::new(Duration::from_secs(60)));
                let limits = Limits { connections: 2, head: Duration::from_millis(100) };
                server::serve(listener, router, limits).await;
            });
        });
        let mut silent = TcpStream::connect(address).unwrap();
        let mut half = TcpStream::connect(address).unwrap();
        half.write_all(b"GET /livez HTTP/1.1\r\nHost: ").unwrap();
        // Both have the places that there are.
        assert!(ask(address, "GET", "/livez").starts_with("HTTP/1.1 200 "));
        for stream in [&mut silent, &mut half] {
            stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
            let mut rest = Vec::new();
            stream.read_to_end(&mut rest).expect("it is closed, and not left waiting");
        }
        let mut kept = TcpStream::connect(address).unwrap();
        kept.write_all(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
        kept.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        let mut answer = String::new();
        kept.read_to_string(&mut answer).expect("it is closed after its answer, too");
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    }

    #[test]
    fn the_page_loads_its_own_files_alone() {
        let listen = SocketAddr::from(([127, 0, 0, 1], 0));
        let address = serve(listen, Metrics::new(), Health::new(Duration::from_secs(60))).unwrap();
        let page = ask(address, "GET", "/").to_lowercase();
        assert!(page.contains("\r\ncontent-security-policy: default-src 'none'; "), "{page}");
        for file in ["page.html", "page.css", "page.js"] {
            let path = std::path::Path::new("src/admin").join(file);
            let text = std::fs::read_to_string(&path).unwrap();
            // The one address is the name of SVG's namespace, which nobody fetches.
            let text = text.replace("http://www.w3.org/2000/svg", "");
            for elsewhere in
                ["http://", "https://", "//cdn", "url(", "@import", " style=", "onclick"]
            {
                assert!(!text.contains(elsewhere), "{file} has {elsewhere}");
            }
        }
    }

    #[test]
    fn a_pass_that_hangs_is_a_reason_to_restart_without_captions_too() {
        let health = Health::new(Duration::ZERO);
        let watches = [health.watch_passes(), health.watch_passes()];
        assert_eq!(health.sick(), None);
        watches[1].run(|| {
            let began = Instant::now();
            while began.elapsed() < Duration::from_millis(2) {
                std::thread::yield_now();
            }
            assert!(health.sick().is_some_and(|why| why.contains("a forward pass")));
        });
        assert_eq!(health.sick(), None);
    }

    #[test]
    fn a_caption_that_stays_is_a_reason_to_restart() {
        let health = Health::new(Duration::ZERO);
        assert_eq!(health.sick(), None);
        health.oldest_unsettled(Some(health.started));
        while health.started.elapsed() < Duration::from_millis(2) {
            std::thread::yield_now();
        }
        assert!(health.sick().is_some_and(|why| why.contains("in the worker")));
        health.oldest_unsettled(None);
        assert_eq!(health.sick(), None);
    }
}

//! `/metrics`, `/livez`, `/readyz` and a page that draws the metrics, on a thread and a runtime of
//! their own: they answer under full load, and they never ask a broker.
//!
//! `/livez` fails when the source's thread hasn't polled for a while, or nothing has come of the
//! oldest caption in the worker, or of a forward pass, for too long: then only a restart helps.
//! `/readyz` fails until the brokers know the topics, the model has run once and the group has
//! answered, and again from the moment a stop begins.
//!
//! # Invariants
//!
//! - Nothing here changes anything: methods other than GET and HEAD are refused.
//! - The page loads nothing from elsewhere, and its policy forbids the browser to.
//! - Connections are bounded, and one that says nothing, or reads nothing, is closed.

mod server;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::http::{Method, StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::{MethodRouter, get};

use crate::health::Health;
use crate::metrics::Metrics;
use server::ConnectionLimits;

/// Probes, scrapes and some pages that are open. Should connections that read no answers take all
/// places, these are free again before a liveness probe has failed three times, ten seconds apart.
const LIMITS: ConnectionLimits = ConnectionLimits {
    connections: 128,
    head: Duration::from_secs(10),
    open: Duration::from_secs(10),
    rest: Duration::from_secs(10),
};

/// What the page may do in the browser: load its own files and ask this port. The policy says so
/// even should a label's value find a way into the page as markup.
const PAGE_POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; \
     connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

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
    use std::io::{BufRead, BufReader, Read, Write};
    use std::net::TcpStream;

    /// Sends a request and returns the whole answer.
    fn ask(address: SocketAddr, method: &str, path: &str) -> String {
        let mut stream = TcpStream::connect(address).unwrap();
        let request = format!("{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("it is answered");
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

    /// Serves with limits of its own.
    fn serve_within(limits: ConnectionLimits) -> SocketAddr {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        std::thread::spawn(move || {
            runtime.block_on(async {
                let listener = tokio::net::TcpListener::from_std(listener).unwrap();
                let router = router(Metrics::new(), Health::new(Duration::from_secs(60)));
                server::serve(listener, router, limits).await;
            });
        });
        address
    }

    #[test]
    fn a_connection_that_says_nothing_makes_room_for_others() {
        let head = Duration::from_millis(100);
        let address = serve_within(ConnectionLimits { connections: 2, head, ..LIMITS });
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
    fn a_connection_that_reads_no_answers_makes_room_for_others() {
        let (open, rest) = (Duration::from_millis(500), Duration::from_millis(500));
        let address = serve_within(ConnectionLimits { connections: 1, open, rest, ..LIMITS });
        let mut deaf = TcpStream::connect(address).unwrap();
        deaf.set_write_timeout(Some(Duration::from_millis(100))).unwrap();
        // Until the answers fill what lies between.
        let request = b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n";
        while deaf.write_all(request).is_ok() {}
        assert!(ask(address, "GET", "/livez").starts_with("HTTP/1.1 200 "), "the place is free");
    }

    #[test]
    fn a_connection_that_is_used_for_long_ends_with_an_answer() {
        let open = Duration::from_millis(500);
        let address = serve_within(ConnectionLimits { connections: 1, open, ..LIMITS });
        let mut kept = TcpStream::connect(address).unwrap();
        kept.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        let mut answers = BufReader::new(kept.try_clone().unwrap());
        loop {
            kept.write_all(b"HEAD /livez HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
            let mut head = String::new();
            while !head.ends_with("\r\n\r\n") {
                let read = answers.read_line(&mut head).unwrap();
                assert!(read > 0, "it ends without a word: {head}");
            }
            if head.to_lowercase().contains("\r\nconnection: close\r\n") {
                break;
            }
        }
        assert_eq!(answers.read(&mut [0]).unwrap(), 0, "it is closed");
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
}

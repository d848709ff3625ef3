//! The connections of the admin port: so many at a time, none that says nothing, and none for ever.
//! Each holds a file descriptor of the process, which the clients of the brokers need too.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::http::HeaderValue;
use axum::http::header::CONNECTION;
use axum::middleware::map_response;
use axum::response::Response;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

/// After an error of accepting, such as no file descriptor being left.
const PAUSE: Duration = Duration::from_millis(500);

/// What connections may take.
#[derive(Clone, Copy, Debug)]
pub(super) struct ConnectionLimits {
    /// At a time; others wait to be accepted.
    pub connections: usize,
    /// From the opening of a connection, or the last answer, to the end of a request's head.
    pub head: Duration,
    /// After so long the next answer says that it is the last.
    pub open: Duration,
    /// How long one may then wait for its last request, and for that to be answered. Who reads no
    /// answers is found by this alone.
    pub rest: Duration,
}

/// Answers what comes to the listener, for ever.
pub(super) async fn serve(listener: TcpListener, router: Router, limits: ConnectionLimits) {
    let places = Arc::new(Semaphore::new(limits.connections));
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(limits.head);
    loop {
        let place = Arc::clone(&places).acquire_owned().await.expect("it is never closed");
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "a connection to the admin port can't be accepted");
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        let opened = Instant::now();
        let router = router.clone().layer(map_response(move |mut answer: Response| async move {
            if opened.elapsed() >= limits.open {
                answer.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
            }
            answer
        }));
        let connection =
            http.serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
        tokio::spawn(async move {
            match tokio::time::timeout(limits.open + limits.rest, connection).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::debug!(%error, "a connection to the admin port ended"),
                Err(_) => tracing::debug!("a connection to the admin port was open for too long"),
            }
            drop(place);
        });
    }
}

//! Who may ask, and how much of us they may take.
//!
//! Bounds: connections (one more is hung up on), the head of a request in bytes and time, questions to the instance. An
//! answer costs what `adit status` costs.

use std::convert::Infallible;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam_channel::Sender;
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{CACHE_CONTROL, CONTENT_TYPE, HOST, HeaderMap, HeaderValue, ORIGIN};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};

use crate::control::{Answer, Asked, Verb};

const CONNECTIONS_MAX: usize = 8;
const HEAD_PATIENCE: Duration = Duration::from_secs(5);
const HEAD_BYTES_MAX: usize = 8 * 1024;
const ANSWER_PATIENCE: Duration = Duration::from_secs(5);
/// From the first byte to the last.
const CONNECTION_PATIENCE: Duration = Duration::from_secs(20);
/// How long an address that could not be had is left alone.
const RETRY: Duration = Duration::from_secs(2);

/// The running exporter; it ends when dropped.
#[derive(Debug)]
pub struct Metrics {
    /// Where it answers.
    pub at: SocketAddr,
    open: Option<watch::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Metrics {
    /// Answers at `at` with what the instance behind `instance` says. An address that cannot be had now is tried again until it
    /// can: the tunnel does not wait for it.
    ///
    /// # Errors
    /// The system has no more threads or descriptors.
    pub fn start(at: SocketAddr, instance: Sender<Asked>) -> io::Result<Self> {
        let (open, closed) = watch::channel(());
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().max_blocking_threads(2).build()?;
        let thread = std::thread::Builder::new().name("metrics".into());
        let thread = thread.spawn(move || {
            runtime.block_on(serve_until_closed(at, instance, closed));
            runtime.shutdown_background();
        })?;
        Ok(Self { at, open: Some(open), thread: Some(thread) })
    }
}

impl Drop for Metrics {
    fn drop(&mut self) {
        self.open = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

async fn serve_until_closed(at: SocketAddr, instance: Sender<Asked>, mut closed: watch::Receiver<()>) {
    tokio::select! {
        () = serve(at, instance) => {}
        _ = closed.changed() => {}
    }
}

async fn serve(at: SocketAddr, instance: Sender<Asked>) {
    let listener = listener(at).await;
    tracing::info!("metrics at http://{at}/metrics");
    let seats = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        match listener.accept().await {
            Ok((stream, from)) => match Arc::clone(&seats).try_acquire_owned() {
                Ok(seat) => {
                    let instance = instance.clone();
                    tokio::spawn(async move {
                        talk(stream, at, instance).await;
                        drop(seat);
                    });
                }
                Err(_) => tracing::debug!(%from, "too many ask for metrics at once: one was turned away"),
            },
            Err(error) => {
                tracing::debug!(%error, "a connection for metrics cannot be taken");
                tokio::time::sleep(RETRY).await;
            }
        }
    }
}

async fn listener(at: SocketAddr) -> TcpListener {
    let mut is_told = false;
    loop {
        match TcpListener::bind(at).await {
            Ok(listener) => return listener,
            Err(error) if !is_told => {
                is_told = true;
                tracing::warn!("metrics cannot be had at {at}: {error}; it is tried again");
            }
            Err(_) => {}
        }
        tokio::time::sleep(RETRY).await;
    }
}

async fn talk(stream: TcpStream, at: SocketAddr, instance: Sender<Asked>) {
    let answer = service_fn(move |request| {
        let instance = instance.clone();
        async move { Ok::<_, Infallible>(answer(&request, at, instance).await) }
    });
    let conversation = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_PATIENCE)
        .max_header_size(HEAD_BYTES_MAX)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), answer);
    match tokio::time::timeout(CONNECTION_PATIENCE, conversation).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(%error, "a question for metrics ended early"),
        Err(_) => tracing::debug!("a question for metrics took too long"),
    }
}

async fn answer(
    request: &Request<Incoming>,
    at: SocketAddr,
    instance: Sender<Asked>,
) -> Response<Full<Bytes>> {
    if let Err(reason) = check_sender(request.headers(), at) {
        return page(StatusCode::FORBIDDEN, "text/plain; charset=utf-8", format!("{reason}\n"));
    }
    match (request.method(), request.uri().path()) {
        (&Method::GET, "/metrics") => {}
        (_, "/metrics") => return refusal(StatusCode::METHOD_NOT_ALLOWED, "only GET"),
        _ => return refusal(StatusCode::NOT_FOUND, "there is /metrics"),
    }
    let report = tokio::task::spawn_blocking(move || {
        let (asked, answer) = Asked::new(Verb::Status);
        instance.try_send(asked).ok()?;
        answer.recv_timeout(ANSWER_PATIENCE).ok()
    });
    match report.await {
        Ok(Some(Answer::Status(report))) => {
            page(StatusCode::OK, super::CONTENT_TYPE, super::exposition(&report))
        }
        _ => refusal(StatusCode::SERVICE_UNAVAILABLE, "busy; ask again"),
    }
}

/// A web page in a browser of this machine could ask too, and read the answer when its name leads here (DNS rebinding).
fn check_sender(headers: &HeaderMap, at: SocketAddr) -> Result<(), &'static str> {
    if headers.contains_key(ORIGIN) || headers.contains_key("sec-fetch-site") {
        return Err("this is not for web pages");
    }
    let host = headers.get(HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
    let name = match host.parse::<SocketAddr>() {
        Ok(_) => return Ok(()),
        Err(_) => host.rsplit_once(':').map_or(host, |(name, _)| name),
    };
    let bare = name.trim_start_matches('[').trim_end_matches(']');
    let is_known = bare.parse::<IpAddr>().is_ok() || name == "localhost";
    if at.ip().is_loopback() && !is_known {
        return Err("ask for localhost, or for an address");
    }
    Ok(())
}

fn refusal(status: StatusCode, reason: &str) -> Response<Full<Bytes>> {
    page(status, "text/plain; charset=utf-8", format!("{reason}\n"))
}

fn page(status: StatusCode, kind: &'static str, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::TcpListener;

    use super::*;

    fn ask(at: SocketAddr, head: &str) -> String {
        let mut stream = std::net::TcpStream::connect(at).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        let _ = stream.write_all(head.as_bytes());
        let mut answer = String::new();
        let _ = stream.read_to_string(&mut answer);
        answer
    }

    fn free_address() -> SocketAddr {
        TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
    }

    fn started() -> (Metrics, SocketAddr) {
        let at = free_address();
        let (sender, questions) = crossbeam_channel::bounded::<Asked>(4);
        std::thread::spawn(move || {
            for asked in questions {
                asked.answer(Answer::Stopping);
            }
        });
        let metrics = Metrics::start(at, sender).unwrap();
        while std::net::TcpStream::connect(at).is_err() {
            std::thread::sleep(Duration::from_millis(5));
        }
        (metrics, at)
    }

    #[test]
    fn only_a_question_for_metrics_from_no_web_page_is_answered() {
        let (_metrics, at) = started();
        let head = |request: &str, headers: &str| ask(at, &format!("{request} HTTP/1.1\r\n{headers}\r\n"));
        let host = format!("Host: {at}\r\n");
        // The instance of this test says something else, which is no report.
        assert!(head("GET /metrics", &host).starts_with("HTTP/1.1 503 "));
        assert!(head("GET /metrics", "Host: localhost:9586\r\n").starts_with("HTTP/1.1 503 "));
        assert!(head("GET /", &host).starts_with("HTTP/1.1 404 "));
        assert!(head("POST /metrics", &host).starts_with("HTTP/1.1 405 "));
        assert!(head("GET /metrics", "Host: evil.example:9586\r\n").starts_with("HTTP/1.1 403 "));
        assert!(
            head("GET /metrics", &format!("{host}Origin: http://evil.example\r\n"))
                .starts_with("HTTP/1.1 403 ")
        );
        assert!(
            head("GET /metrics", &format!("{host}X: {}\r\n", "x".repeat(20_000)))
                .starts_with("HTTP/1.1 431 ")
        );
    }

    #[test]
    fn silent_connections_take_no_more_than_their_seats_and_go() {
        let (_metrics, at) = started();
        let silent: Vec<_> =
            (0..CONNECTIONS_MAX * 2).map(|_| std::net::TcpStream::connect(at).unwrap()).collect();
        // Who finds no seat is hung up on at once; the others when their time is over.
        for mut stream in silent {
            stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
            let mut rest = Vec::new();
            let _ = stream.read_to_end(&mut rest);
        }
        assert!(ask(at, &format!("GET / HTTP/1.1\r\nHost: {at}\r\n\r\n")).starts_with("HTTP/1.1 404 "));
    }

    #[test]
    fn an_address_that_is_taken_is_had_when_it_is_free() {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let at = taken.local_addr().unwrap();
        let (sender, _questions) = crossbeam_channel::bounded(1);
        let metrics = Metrics::start(at, sender).unwrap();
        drop(taken);
        let answer = || ask(at, &format!("GET / HTTP/1.1\r\nHost: {at}\r\n\r\n"));
        let deadline = std::time::Instant::now() + Duration::from_secs(60);
        while std::net::TcpStream::connect(at).is_err() && std::time::Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(20));
        }
        assert!(answer().starts_with("HTTP/1.1 404 "));
        drop(metrics);
        assert!(std::net::TcpStream::connect(at).is_err(), "it ends when dropped");
    }
}

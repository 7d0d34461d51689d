use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, HOST, HeaderMap, HeaderValue, ORIGIN};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::{Value, json};
use tokio::net::TcpStream;

use super::caller::{Caller, Callers};
use super::enrolment::{self, Enrolment};
use super::seats::Seats;
use super::transfer::{self, Size};
use crate::limits::LimitsReport;
use crate::wall_clock;

const CONNECTIONS_OF_A_PEER: usize = 16;
const CONNECTIONS_IN_ALL: usize = 256;
const TRANSFERS_OF_A_PEER: usize = 1;
const TRANSFERS_IN_ALL: usize = 8;
const HEAD_PATIENCE: Duration = Duration::from_secs(5);
const HEAD_BYTES_MAX: usize = 8 * 1024;
const HEADERS_MAX: usize = 32;
/// What a connection may buffer; only transfers come near it.
const BUFFER_BYTES_MAX: usize = 128 * 1024;
/// What a request for a transfer has to carry. A page in a peer's browser may send requests here that it cannot read the
/// answers of (`<img src=…>`), and to an address without TLS browsers say neither `Origin` nor `Sec-Fetch-Site`; but a
/// header of one's own they let no page send without asking first, with an `Origin`. An answer that nobody reads does no
/// harm, a transfer does.
pub const TRANSFER_HEADER: &str = "adit-transfer";
/// The longest transfer, and time to end it. One request is all that a connection carries.
const CONNECTION_PATIENCE: Duration = Duration::from_secs(transfer::SECONDS_MAX + 10);

pub(super) type Answer = Response<UnsyncBoxBody<Bytes, Infallible>>;

/// Where requests are answered, whichever address they come to.
#[derive(Debug)]
pub(super) struct Desk {
    connections: Seats,
    transfers: Seats,
    enrolment: Enrolment,
}

impl Desk {
    pub(super) fn new(enrolment: Enrolment) -> Self {
        Self {
            connections: Seats::new(CONNECTIONS_OF_A_PEER, CONNECTIONS_IN_ALL),
            transfers: Seats::new(TRANSFERS_OF_A_PEER, TRANSFERS_IN_ALL),
            enrolment,
        }
    }

    /// Talks with a peer; hangs up on everybody else, and on a peer that talks with us enough already.
    pub(super) fn welcome(
        self: &Arc<Self>,
        stream: TcpStream,
        from: SocketAddr,
        at: SocketAddr,
        callers: &Callers,
    ) {
        let Some(peer) = callers.key_of(from.ip()) else {
            return tracing::debug!(%from, "a call to the inside API from an address of no peer");
        };
        let Some(seat) = self.connections.take(peer) else {
            return tracing::debug!(%from, "too many connections to the inside API");
        };
        let (desk, callers) = (Arc::clone(self), callers.clone());
        tokio::spawn(async move {
            let answer = service_fn(move |request| {
                let (desk, callers) = (Arc::clone(&desk), callers.clone());
                async move { Ok::<_, Infallible>(desk.answer(request, from, at, &callers).await) }
            });
            let conversation = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEAD_PATIENCE)
                .max_header_size(HEAD_BYTES_MAX)
                .max_headers(HEADERS_MAX)
                .max_buf_size(BUFFER_BYTES_MAX)
                .keep_alive(false)
                .serve_connection(TokioIo::new(stream), answer);
            match tokio::time::timeout(CONNECTION_PATIENCE, conversation).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::debug!(%from, %error, "a call to the inside API ended early"),
                Err(_) => tracing::debug!(%from, "a call to the inside API took too long"),
            }
            drop(seat);
        });
    }

    async fn answer(
        &self,
        request: Request<Incoming>,
        from: SocketAddr,
        at: SocketAddr,
        callers: &Callers,
    ) -> Answer {
        if let Err(reason) = check_sender(request.headers(), at) {
            return refusal(StatusCode::FORBIDDEN, reason);
        }
        if let Some(invited) = callers.invited_at(from.ip()) {
            return match (request.method(), request.uri().path()) {
                (&Method::POST, enrolment::PATH) => self.enrolment.answer(request, invited).await,
                _ => refusal(StatusCode::FORBIDDEN, "you are no peer of this gateway yet"),
            };
        }
        // Who was removed since the connection began is nobody now.
        let Some(caller) = callers.at(from.ip()) else {
            return refusal(StatusCode::FORBIDDEN, "you are no peer of this gateway");
        };
        match (request.method(), request.uri().path()) {
            (&Method::GET, "/v1/whoami") => page(StatusCode::OK, &whoami(&caller)),
            (_, "/v1/download" | "/v1/upload") if !request.headers().contains_key(TRANSFER_HEADER) => {
                refusal(StatusCode::FORBIDDEN, "say that you mean it: send the header `Adit-Transfer: 1`")
            }
            (&Method::GET, "/v1/download") => self.download(request.uri().query(), &caller),
            (&Method::POST, "/v1/upload") => self.upload(request.into_body(), &caller).await,
            (_, "/v1/whoami" | "/v1/download") => wrong_method("GET"),
            (_, "/v1/upload") => wrong_method("POST"),
            (_, enrolment::PATH) => refusal(StatusCode::FORBIDDEN, "you are a peer of this gateway already"),
            _ => refusal(StatusCode::NOT_FOUND, "there is /v1/whoami, /v1/download and /v1/upload"),
        }
    }

    fn download(&self, query: Option<&str>, caller: &Caller) -> Answer {
        let size = match Size::parse(query) {
            Ok(size) => size,
            Err(reason) => return refusal(StatusCode::BAD_REQUEST, &reason),
        };
        let Some(seat) = self.transfers.take(caller.key) else { return busy() };
        let mut answer = Response::new(transfer::download(size, seat).boxed_unsync());
        answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
        answer
    }

    async fn upload(&self, body: Incoming, caller: &Caller) -> Answer {
        let Some(_seat) = self.transfers.take(caller.key) else { return busy() };
        match transfer::count(body).await {
            Ok((bytes, took)) => {
                page(StatusCode::OK, &json!({"schema": 1, "bytes": bytes, "seconds": took.as_secs_f64()}))
            }
            Err(error) => refusal(StatusCode::BAD_REQUEST, &format!("the upload broke off: {error}")),
        }
    }
}

/// A page in a peer's browser may send requests here, even read the answers if its own name resolves to our address
/// (DNS rebinding); and an answer tells what the tunnel is there to hide. Such a request names another host, or an
/// origin.
fn check_sender(headers: &HeaderMap, at: SocketAddr) -> Result<(), &'static str> {
    if headers.contains_key(ORIGIN) || headers.contains_key("sec-fetch-site") {
        return Err("this is not for web pages");
    }
    let mut hosts = headers.get_all(HOST).iter();
    let (Some(host), None) = (hosts.next(), hosts.next()) else {
        return Err("say the gateway's address in one Host header");
    };
    let named = host.to_str().ok().and_then(|host| {
        let address = host.parse::<SocketAddr>().ok();
        let bare = || {
            let inner = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(host);
            Some(SocketAddr::new(inner.parse().ok()?, 80))
        };
        address.or_else(bare)
    });
    if named == Some(at) {
        Ok(())
    } else {
        Err("the Host header does not name the gateway's address and port")
    }
}

fn whoami(caller: &Caller) -> Value {
    json!({
        "schema": 1,
        "name": caller.facts.name,
        "inside": caller.facts.inside,
        "outside": caller.outside,
        "carrier": caller.carrier,
        "suite": caller.suite.name(),
        "limits": LimitsReport::of(&caller.facts.limits, &caller.allowance, wall_clock::now()),
    })
}

fn page(status: StatusCode, value: &Value) -> Answer {
    page_of(status, Bytes::from(format!("{value}\n")))
}

pub(super) fn page_of(status: StatusCode, json: Bytes) -> Answer {
    let mut answer = Response::new(Full::new(json).boxed_unsync());
    *answer.status_mut() = status;
    let headers = answer.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    answer
}

pub(super) fn refusal(status: StatusCode, reason: &str) -> Answer {
    page(status, &json!({"schema": 1, "error": reason}))
}

fn busy() -> Answer {
    refusal(
        StatusCode::TOO_MANY_REQUESTS,
        "one transfer of a peer at a time, and few in all; try again later",
    )
}

fn wrong_method(allowed: &'static str) -> Answer {
    let mut answer = refusal(StatusCode::METHOD_NOT_ALLOWED, &format!("use {allowed}"));
    answer.headers_mut().insert(ALLOW, HeaderValue::from_static(allowed));
    answer
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(headers: &[(&'static str, &str)], at: &str) -> bool {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(*name, value.parse().unwrap());
        }
        check_sender(&map, at.parse().unwrap()).is_ok()
    }

    #[test]
    fn a_request_names_the_address_it_came_to() {
        let (v4, v6) = ("10.86.0.1:9585", "[fd86::1]:9585");
        assert!(check(&[("host", v4)], v4));
        assert!(check(&[("host", v6)], v6));
        assert!(check(&[("host", "10.86.0.1")], "10.86.0.1:80"));
        assert!(check(&[("host", "[fd86::1]")], "[fd86::1]:80"));
        for bad in
            ["evil.example:9585", "10.86.0.1", "10.86.0.2:9585", "localhost:9585", "10.86.0.1:9585 ", ""]
        {
            assert!(!check(&[("host", bad)], v4), "{bad:?}");
        }
        assert!(!check(&[], v4));
        assert!(!check(&[("host", v4), ("host", v4)], v4));
    }

    #[test]
    fn a_request_of_a_web_page_is_refused() {
        let host = ("host", "10.86.0.1:9585");
        assert!(check(&[host, ("accept", "*/*")], host.1));
        assert!(!check(&[host, ("origin", "null")], host.1));
        assert!(!check(&[host, ("sec-fetch-site", "cross-site")], host.1));
    }
}

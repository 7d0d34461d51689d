//! HTTP: CONNECT, and requests for `http://` forwarded one by one.
//!
//! What leaves is written anew by `hyper`: two lengths, bare line feeds or folded headers that came in do not go out.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use http_body_util::{Either, Full};
use hyper::body::{Body as _, Bytes, Incoming};
use hyper::client::conn::http1::SendRequest;
use hyper::header::{
    CONNECTION, CONTENT_LENGTH, HOST, HeaderMap, HeaderName, HeaderValue, MAX_FORWARDS, PROXY_AUTHENTICATE,
    PROXY_AUTHORIZATION, TE, TRANSFER_ENCODING, UPGRADE,
};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode, Uri, Version};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpStream;
use tokio::sync::Mutex;
use zeroize::Zeroizing;

use super::auth::Credentials;
use super::dial::{DialError, Dialer, Outcome};
use super::gate::Place;
use super::relay;
use super::target::{Refusal, Target};
use super::upload::{Progress, Upload};

/// How long a client may take for the head of a request, and may stay silent between two.
const HEAD: Duration = Duration::from_secs(15);
/// How long the other end may take for the head of its answer, while nothing of the request goes out.
const ANSWER: Duration = Duration::from_secs(120);
/// The longest head.
const HEAD_BYTES: usize = 64 << 10;

type Body = Either<Incoming, Full<Bytes>>;

/// What one client's connection knows.
struct Session {
    from: SocketAddr,
    dialer: Dialer,
    credentials: Option<Credentials>,
    /// The client's place: whatever outlives the conversation keeps it.
    place: Arc<Place>,
    /// The connection that the last request went over, to be used again for the same host.
    upstream: Mutex<Option<(Target, SendRequest<Upload>)>>,
}

/// Serves one client to the end.
pub(super) async fn serve(
    client: TcpStream,
    from: SocketAddr,
    dialer: Dialer,
    credentials: Option<Credentials>,
    place: Place,
) {
    let place = Arc::new(place);
    let session = Arc::new(Session { from, dialer, credentials, place, upstream: Mutex::new(None) });
    let service = service_fn(move |request| {
        let session = Arc::clone(&session);
        async move { Ok::<_, Infallible>(session.answer(request).await) }
    });
    let _ = client.set_nodelay(true);
    let served = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD)
        .max_buf_size(HEAD_BYTES)
        .preserve_header_case(true)
        .serve_connection(TokioIo::new(client), service)
        .with_upgrades();
    if let Err(error) = served.await {
        tracing::debug!(%from, "HTTP client: {error}");
    }
}

/// Says to who finds every place taken that it is so, as well as that can be said to who has not asked yet.
pub(super) fn turn_away(client: TcpStream) {
    const FULL: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\nRetry-After: 5\r\n\
                          Content-Type: text/plain; charset=utf-8\r\n\r\nadit: there are too many connections\n";
    let _ = client.into_std().and_then(|mut client| std::io::Write::write_all(&mut client, FULL));
}

impl Session {
    async fn answer(&self, request: Request<Incoming>) -> Response<Body> {
        if !self.admits(request.headers()) {
            let mut response =
                text(StatusCode::PROXY_AUTHENTICATION_REQUIRED, "this proxy asks for a user and password");
            let challenge = HeaderValue::from_static("Basic realm=\"adit\", charset=\"UTF-8\"");
            response.headers_mut().insert(PROXY_AUTHENTICATE, challenge);
            return response;
        }
        if !self.place.come_in() {
            return text(StatusCode::SERVICE_UNAVAILABLE, "there are too many connections");
        }
        let result = match *request.method() {
            Method::CONNECT => self.connect(request).await,
            _ => self.forward(request).await,
        };
        result.unwrap_or_else(|failure| {
            tracing::debug!(from = %self.from, "HTTP request failed: {}", failure.text);
            text(failure.status, &failure.text)
        })
    }

    fn admits(&self, headers: &HeaderMap) -> bool {
        let Some(credentials) = &self.credentials else { return true };
        let said = headers.get(PROXY_AUTHORIZATION).and_then(|value| {
            let value = value.as_bytes();
            let (scheme, token) = value.split_at_checked(6)?;
            scheme.eq_ignore_ascii_case(b"basic ").then(|| BASE64.decode(token).ok())?.map(Zeroizing::new)
        });
        let Some(said) = said else { return false };
        let mut halves = said.splitn(2, |byte| *byte == b':');
        let (user, password) = (halves.next().unwrap_or_default(), halves.next().unwrap_or_default());
        credentials.admit(self.from.ip(), user, password)
    }

    async fn connect(&self, request: Request<Incoming>) -> Result<Response<Body>, Failure> {
        let authority = request.uri().authority().ok_or(Failure::bad("CONNECT names no host"))?;
        let port = authority.port_u16().ok_or(Failure::bad("CONNECT names no port"))?;
        if authority.as_str().contains('@') {
            return Err(Failure::bad("CONNECT names a user"));
        }
        check_hosts(&request)?;
        let empty = |value: &HeaderValue| value.as_bytes() == b"0";
        let headers = request.headers();
        if headers.contains_key(TRANSFER_ENCODING) || !headers.get_all(CONTENT_LENGTH).iter().all(empty) {
            return Err(Failure::bad("CONNECT has no body"));
        }
        let target = Target::new(authority.host(), port)?;
        let remote = self.dialer.connect(&target).await?;
        let (from, place) = (self.from, Arc::clone(&self.place));
        tokio::spawn(async move {
            let _place = place;
            let upgraded = match hyper::upgrade::on(request).await {
                Ok(upgraded) => upgraded,
                Err(error) => return tracing::debug!(%from, "CONNECT came to nothing: {error}"),
            };
            let Ok(parts) = upgraded.downcast::<TokioIo<TcpStream>>() else { return };
            // What the client sent along with its request goes first.
            let mut early = &parts.read_buf[..];
            while !early.is_empty() {
                let room = std::future::poll_fn(|context| remote.poll_room(context)).await;
                match room.and_then(|_| remote.try_write(early)) {
                    Ok(written) => early = early.get(written..).unwrap_or_default(),
                    Err(_) => return,
                }
            }
            if let Err(error) = relay::relay(parts.io.into_inner(), remote).await {
                tracing::debug!(%from, %target, "connection broke: {error}");
            }
        });
        Ok(Response::new(Either::Right(Full::default())))
    }

    async fn forward(&self, mut request: Request<Incoming>) -> Result<Response<Body>, Failure> {
        let target = absolute_target(request.uri())?;
        check_framing(request.headers())?;
        check_hosts(&request)?;
        if *request.method() == Method::TRACE {
            // It would show the server's view of the request to whoever made the browser ask.
            return Err(Failure {
                status: StatusCode::METHOD_NOT_ALLOWED,
                text: "TRACE is not passed on".into(),
            });
        }
        if *request.method() == Method::OPTIONS && !count_forward(request.headers_mut())? {
            return Ok(Response::new(Either::Right(Full::default())));
        }
        let wants_upgrade = upgrade_of(request.headers());
        let client_upgrade = wants_upgrade.is_some().then(|| hyper::upgrade::on(&mut request));
        let request = rewrite(request, &target, wants_upgrade.as_ref())?;
        let progress = Progress::default();
        let request = request.map(|body| Upload::new(body, progress.clone()));
        let mut response = tokio::select! {
            sent = self.send(&target, request) => sent?,
            () = progress.stalled(ANSWER) => return Err(Failure {
                status: StatusCode::GATEWAY_TIMEOUT,
                text: format!("{target} did not answer in {} s", ANSWER.as_secs()),
            }),
        };
        if !is_chunked_or_plain(response.headers()) {
            // Passed on without its label it would be taken for the page itself.
            return Err(Failure::upstream("answers in a transfer coding that is not passed on"));
        }
        let upgrade = upgrade_of(response.headers());
        if response.headers().contains_key(TRANSFER_ENCODING) {
            // Of two lengths the chunks are right (RFC 9112 section 6.3); the other would cut the answer off.
            response.headers_mut().remove(CONTENT_LENGTH);
        }
        strip(response.headers_mut());
        // To the client we speak for ourselves (RFC 9110 section 2.5).
        *response.version_mut() = Version::HTTP_11;
        if response.status() == StatusCode::SWITCHING_PROTOCOLS {
            let (Some(client), Some(protocol)) = (client_upgrade, upgrade) else {
                return Err(Failure::upstream("switched to a protocol that nobody asked for"));
            };
            let server = hyper::upgrade::on(&mut response);
            let place = Arc::clone(&self.place);
            tokio::spawn(async move {
                let _place = place;
                if let (Ok(client), Ok(server)) = tokio::join!(client, server) {
                    let (mut client, mut server) = (TokioIo::new(client), TokioIo::new(server));
                    let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
                }
            });
            response.headers_mut().insert(CONNECTION, HeaderValue::from_static("upgrade"));
            response.headers_mut().insert(UPGRADE, protocol);
        }
        Ok(response.map(Either::Left))
    }

    /// Sends over the connection of the request before when it leads to the same host and is still open.
    async fn send(&self, target: &Target, request: Request<Upload>) -> Result<Response<Incoming>, Failure> {
        let broken = |error: &hyper::Error| {
            if error.is_user() {
                return Failure::bad("the body of the request is malformed, or broke off");
            }
            let text = if error.is_parse() { "its answer is not HTTP" } else { "the connection broke" };
            Failure { status: StatusCode::BAD_GATEWAY, text: format!("{target}: {text} ({error})") }
        };
        let kept = self.upstream.lock().await.take().filter(|(kept, _)| kept == target);
        let mut request = request;
        if let Some((_, mut sender)) = kept
            && sender.ready().await.is_ok()
        {
            let again = copy_of_harmless(&request);
            match sender.try_send_request(request).await {
                Ok(response) => {
                    *self.upstream.lock().await = Some((target.clone(), sender));
                    return Ok(response);
                }
                Err(mut error) => match error.take_message() {
                    // It had closed meanwhile; nothing of the request was sent.
                    Some(unsent) => request = unsent,
                    // Or closes in this moment, perhaps without having seen it (RFC 9112 section 9.3.1).
                    None => match again.filter(|_| !error.error().is_parse()) {
                        Some(again) => request = again,
                        None => return Err(broken(error.error())),
                    },
                },
            }
        }
        let stream = self.dialer.connect(target).await?;
        let handshake = hyper::client::conn::http1::Builder::new()
            .preserve_header_case(true)
            .max_buf_size(HEAD_BYTES)
            .handshake(TokioIo::new(stream))
            .await;
        let (mut sender, connection) = handshake.map_err(|error| broken(&error))?;
        tokio::spawn(async move {
            let _ = connection.with_upgrades().await;
        });
        let response = sender.send_request(request).await.map_err(|error| broken(&error))?;
        *self.upstream.lock().await = Some((target.clone(), sender));
        Ok(response)
    }
}

/// What the client is told when it does not get what it asked for.
struct Failure {
    status: StatusCode,
    text: String,
}

impl Failure {
    fn bad(text: &str) -> Self {
        Self { status: StatusCode::BAD_REQUEST, text: text.to_owned() }
    }

    fn upstream(text: &str) -> Self {
        Self { status: StatusCode::BAD_GATEWAY, text: format!("the server {text}") }
    }
}

impl From<Refusal> for Failure {
    fn from(refusal: Refusal) -> Self {
        let status = match refusal {
            Refusal::Malformed => StatusCode::BAD_REQUEST,
            _ => StatusCode::FORBIDDEN,
        };
        Self { status, text: refusal.to_string() }
    }
}

impl From<DialError> for Failure {
    fn from(error: DialError) -> Self {
        let status = match error.outcome() {
            Outcome::Forbidden => StatusCode::FORBIDDEN,
            Outcome::TimedOut | Outcome::TunnelDown => StatusCode::GATEWAY_TIMEOUT,
            Outcome::NoSuchHost | Outcome::HostRefused | Outcome::Unreachable => StatusCode::BAD_GATEWAY,
        };
        Self { status, text: error.to_string() }
    }
}

fn text(status: StatusCode, text: &str) -> Response<Body> {
    let mut response = Response::new(Either::Right(Full::from(format!("adit: {text}\n"))));
    *response.status_mut() = status;
    let plain = HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(hyper::header::CONTENT_TYPE, plain);
    response
}

/// A page in a browser that does not use the proxy can make it ask the proxy's port for `/path`, never for
/// `http://host/path`: only the latter is answered.
fn absolute_target(uri: &Uri) -> Result<Target, Failure> {
    match (uri.scheme_str(), uri.authority()) {
        (Some("http"), Some(authority)) if !authority.as_str().contains('@') => {
            // What is no number is not taken for none.
            let port = match authority.as_str().rsplit_once(':').filter(|(_, port)| !port.ends_with(']')) {
                Some((_, "")) | None => 80,
                Some((_, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => {
                    port.parse().map_err(|_| Failure::bad("the port is no port"))?
                }
                Some(_) => return Err(Failure::bad("the port is no port")),
            };
            Ok(Target::new(authority.host(), port)?)
        }
        (Some("http"), Some(_)) => Err(Failure::bad("a user in the address is not passed on")),
        (Some(_), Some(_)) => Err(Failure::bad("only http:// is forwarded; use CONNECT for the rest")),
        _ => Err(Failure::bad("this is a proxy: ask for http://HOST/PATH, not for a path")),
    }
}

/// A body has one length, and one way to say it.
fn check_framing(headers: &HeaderMap) -> Result<(), Failure> {
    let codings: Vec<_> = headers.get_all(TRANSFER_ENCODING).iter().collect();
    if !is_chunked_or_plain(headers) {
        return Err(Failure::bad("the only transfer coding that is passed on is chunked"));
    }
    if !codings.is_empty() && headers.contains_key(CONTENT_LENGTH) {
        return Err(Failure::bad("a request with both a length and chunks"));
    }
    Ok(())
}

fn is_chunked_or_plain(headers: &HeaderMap) -> bool {
    let mut codings = headers.get_all(TRANSFER_ENCODING).iter();
    let chunked = |it: &HeaderValue| it.as_bytes().trim_ascii().eq_ignore_ascii_case(b"chunked");
    codings.next().is_none_or(chunked) && codings.next().is_none()
}

/// Whoever reads two hosts may take the other one (RFC 9112 section 3.2).
fn check_hosts<B>(request: &Request<B>) -> Result<(), Failure> {
    match request.headers().get_all(HOST).iter().count() {
        0 if request.version() >= Version::HTTP_11 => Err(Failure::bad("a request without Host")),
        0 | 1 => Ok(()),
        _ => Err(Failure::bad("a request with more than one Host")),
    }
}

/// The same request once more, when to ask twice is as good as once and it has no body.
fn copy_of_harmless(request: &Request<Upload>) -> Option<Request<Upload>> {
    let harmless = matches!(*request.method(), Method::GET | Method::HEAD | Method::OPTIONS);
    if !harmless || !request.body().is_end_stream() || request.headers().contains_key(UPGRADE) {
        return None;
    }
    let mut copy = Request::new(Upload::nothing());
    *copy.method_mut() = request.method().clone();
    *copy.uri_mut() = request.uri().clone();
    *copy.version_mut() = request.version();
    *copy.headers_mut() = request.headers().clone();
    Some(copy)
}

/// Counts one proxy on the way of OPTIONS; whether it may go on (RFC 9110 section 7.6.2).
fn count_forward(headers: &mut HeaderMap) -> Result<bool, Failure> {
    let Some(value) = headers.get(MAX_FORWARDS) else { return Ok(true) };
    let left: Option<u32> = value.to_str().ok().and_then(|text| text.parse().ok());
    match left.ok_or(Failure::bad("Max-Forwards is no number"))? {
        0 => Ok(false),
        left => {
            headers.insert(MAX_FORWARDS, HeaderValue::from(left - 1));
            Ok(true)
        }
    }
}

/// The protocol to switch to, when `Connection` says that `Upgrade` is meant for us.
fn upgrade_of(headers: &HeaderMap) -> Option<HeaderValue> {
    let meant = tokens(headers).any(|token| token.eq_ignore_ascii_case(b"upgrade"));
    meant.then(|| headers.get(UPGRADE).cloned()).flatten()
}

/// What `Connection` names. A byte that means nothing spoils its own token and no other.
fn tokens(headers: &HeaderMap) -> impl Iterator<Item = &[u8]> {
    let lists = headers.get_all(CONNECTION).iter().map(HeaderValue::as_bytes);
    lists.flat_map(|list| list.split(|byte| *byte == b',')).map(<[u8]>::trim_ascii)
}

/// Takes out what is for one connection only (RFC 9110 section 7.6.1).
fn strip(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> =
        tokens(headers).filter_map(|token| HeaderName::from_bytes(token).ok()).collect();
    for name in named {
        headers.remove(name);
    }
    for name in [CONNECTION, PROXY_AUTHENTICATE, PROXY_AUTHORIZATION, TE, TRANSFER_ENCODING, UPGRADE] {
        headers.remove(name);
    }
    for name in ["keep-alive", "proxy-connection"] {
        headers.remove(name);
    }
}

/// The request as the server gets it.
fn rewrite(
    request: Request<Incoming>,
    target: &Target,
    upgrade: Option<&HeaderValue>,
) -> Result<Request<Incoming>, Failure> {
    let (mut parts, body) = request.into_parts();
    let chunked = parts.headers.contains_key(TRANSFER_ENCODING);
    strip(&mut parts.headers);
    if chunked {
        // Of a GET with chunks hyper would drop the body if it were not told.
        parts.headers.insert(TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
    }
    if let Some(protocol) = upgrade {
        parts.headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
        parts.headers.insert(UPGRADE, protocol.clone());
    }
    // The address decides (RFC 9112 section 3.2.2); a Host that says something else would confuse the server.
    let host = match target.port {
        80 => target.to_string().trim_end_matches(":80").to_owned(),
        _ => target.to_string(),
    };
    let host = HeaderValue::try_from(host).map_err(|_| Failure::bad("not a host"))?;
    parts.headers.insert(HOST, host);
    let path = match parts.uri.path_and_query().map_or("", |path| path.as_str()) {
        path if path.starts_with('/') => path.to_owned(),
        query => format!("/{query}"),
    };
    parts.uri = path.parse().map_err(|_| Failure::bad("not a path"))?;
    parts.version = Version::HTTP_11;
    Ok(Request::from_parts(parts, body))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(lines: &[(&str, &str)]) -> HeaderMap {
        let pair = |(name, value): &(&str, &str)| -> (HeaderName, HeaderValue) {
            (name.parse().unwrap(), value.parse().unwrap())
        };
        lines.iter().map(pair).collect()
    }

    #[test]
    fn only_absolute_requests_for_http_are_forwarded() {
        let target =
            |uri: &str| absolute_target(&uri.parse().unwrap()).map_err(|failure| failure.status.as_u16());
        assert_eq!(target("http://web.example/x"), Ok(Target::new("web.example", 80).unwrap()));
        assert_eq!(target("http://[2001:db8::1]:81/"), Ok(Target::new("2001:db8::1", 81).unwrap()));
        for bad in ["/x", "*", "https://web.example/", "ftp://web.example/", "http://user@web.example/"] {
            assert_eq!(target(bad), Err(400), "{bad}");
        }
        assert_eq!(target("http://web.example:/"), Ok(Target::new("web.example", 80).unwrap()));
        assert_eq!(target("http://[2001:db8::1]/"), Ok(Target::new("2001:db8::1", 80).unwrap()));
        assert_eq!(target("http://web.example:99999/"), Err(400), "not port 80");
        assert_eq!(target("http://web.example:+8000/"), Err(400));
        for forbidden in ["http://mail.example:25/", "http://localhost/"] {
            assert_eq!(target(forbidden), Err(403), "{forbidden}");
        }
    }

    #[test]
    fn a_body_has_one_length() {
        let verdict = |lines: &[(&str, &str)]| check_framing(&headers(lines)).is_ok();
        assert!(verdict(&[("content-length", "3")]));
        assert!(verdict(&[("transfer-encoding", "Chunked")]));
        assert!(!verdict(&[("transfer-encoding", "chunked"), ("content-length", "3")]));
        assert!(!verdict(&[("transfer-encoding", "gzip, chunked")]));
        assert!(!verdict(&[("transfer-encoding", "chunked"), ("transfer-encoding", "identity")]));
    }

    #[test]
    fn options_are_counted_on_their_way() {
        let after = |count: &str| {
            let mut lines = headers(&[("max-forwards", count)]);
            let verdict = count_forward(&mut lines).map_err(|failure| failure.status.as_u16());
            (verdict, lines.get(MAX_FORWARDS).unwrap().to_str().unwrap().to_owned())
        };
        assert_eq!(after("2"), (Ok(true), "1".to_owned()));
        assert_eq!(after("0").0, Ok(false));
        assert_eq!(after("many").0, Err(400));
        assert_eq!(count_forward(&mut headers(&[])).ok(), Some(true));
    }

    #[test]
    fn what_is_for_one_connection_stays_there() {
        let mut lines = headers(&[
            ("connection", "close, X-Secret"),
            ("x-secret", "1"),
            ("proxy-authorization", "Basic eDp5"),
            ("proxy-connection", "keep-alive"),
            ("accept", "*/*"),
        ]);
        strip(&mut lines);
        assert_eq!(lines, headers(&[("accept", "*/*")]));
        let mut odd = headers(&[("x-secret", "1"), ("accept", "*/*")]);
        odd.insert(CONNECTION, HeaderValue::from_bytes(b"close, x-secret, \xe9").unwrap());
        strip(&mut odd);
        assert_eq!(odd, headers(&[("accept", "*/*")]), "a byte beyond ASCII spoils nothing else");
    }

    #[test]
    fn one_transfer_coding_is_known_and_the_rest_is_not_passed_on_without_its_label() {
        let known = |lines: &[(&str, &str)]| is_chunked_or_plain(&headers(lines));
        assert!(known(&[]) && known(&[("transfer-encoding", "Chunked")]));
        for bad in ["gzip", "gzip, chunked", "identity", ""] {
            assert!(!known(&[("transfer-encoding", bad)]), "{bad:?}");
        }
        assert!(!known(&[("transfer-encoding", "chunked"), ("transfer-encoding", "chunked")]));
    }

    #[test]
    fn a_request_names_one_host_and_the_old_version_may_name_none() {
        let verdict = |version: Version, hosts: &[&str]| {
            let mut request = Request::new(());
            *request.version_mut() = version;
            for host in hosts {
                request.headers_mut().append(HOST, host.parse().unwrap());
            }
            check_hosts(&request).is_ok()
        };
        assert!(verdict(Version::HTTP_11, &["a"]) && verdict(Version::HTTP_10, &[]));
        assert!(!verdict(Version::HTTP_11, &[]) && !verdict(Version::HTTP_11, &["a", "a"]));
    }

    #[test]
    fn only_what_may_be_asked_twice_is_asked_again() {
        let copied = |method: &str, header: &'static str| {
            let mut request = Request::new(Upload::nothing());
            *request.method_mut() = method.parse().unwrap();
            *request.uri_mut() = "/path?query".parse().unwrap();
            request.headers_mut().insert(header, HeaderValue::from_static("1"));
            let copy = copy_of_harmless(&request)?;
            assert_eq!((copy.method(), copy.uri()), (request.method(), request.uri()));
            assert_eq!(copy.headers(), request.headers());
            Some(())
        };
        assert!(copied("GET", "x-a").is_some() && copied("HEAD", "x-a").is_some());
        for (method, header) in [("POST", "x-a"), ("PUT", "x-a"), ("DELETE", "x-a"), ("GET", "upgrade")] {
            assert!(copied(method, header).is_none(), "{method} {header}");
        }
    }
}

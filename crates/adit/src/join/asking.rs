//! The question to the gateway, through the tunnel of the invited.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use adit_proto::key::StaticSecret;
use adit_proto::suite::Suite;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Bytes;
use hyper::header::{ACCEPT, CONNECTION, CONTENT_TYPE, HOST, USER_AGENT};
use hyper::{Request, StatusCode};
use serde_json::Value;

use crate::config::Mtu;
use crate::config::diagnostic::escape;
use crate::config::wgquick::{Interface, PeerSection, WgQuick};
use crate::enrol::Application;
use crate::inside::{ENROL_PATH, enrol_question};
use crate::invite::InviteUrl;
use crate::lease::{self, Lease};
use crate::stream::{Recognition, pin_text};
use crate::tunnel::Tunnel;
use crate::web;

/// Why there is no lease.
#[derive(Debug)]
pub enum AskError {
    /// The gateway did not hear us.
    NoAnswer(String),
    /// It may have heard us, and we did not hear what it said.
    Lost(String),
    /// It heard us and could not take us in, and nothing of us is left there.
    NotNow(String),
    /// It said no.
    Refused(String),
}

/// Each begins with a handshake of its own: a lost packet costs no more than this.
const ATTEMPTS: u32 = 6;
const ANSWER: Duration = Duration::from_millis(2_500);
/// Between attempts: somebody else may use the same invite at this moment.
const PAUSE: Duration = Duration::from_millis(300);
const PATIENCE: Duration = Duration::from_secs(20);
const BODY_BYTES_MAX: usize = 64 * 1024;
const BUFFER_BYTES: usize = 16 * 1024;
/// Every path carries this (RFC 8200 section 5), and the few packets of a question need no more.
const MTU_BYTES: u16 = 1280;

/// Trades the public half of `private_key` for a lease.
///
/// # Errors
/// [`AskError`]; asking again with the same key goes on from where this ended.
pub fn ask(url: &InviteUrl, private_key: &StaticSecret) -> Result<Lease, AskError> {
    let system = |error: std::io::Error| AskError::NoAnswer(format!("cannot start: {error}"));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(system)?;
    let application = Application { public_key: private_key.public_key(), suites: lease::suites_here() };
    let outcome = runtime.block_on(ask_until_answered(url, &application));
    runtime.shutdown_background();
    outcome
}

async fn ask_until_answered(url: &InviteUrl, application: &Application) -> Result<Lease, AskError> {
    let mut was_heard = false;
    let mut last = AskError::NoAnswer(String::new());
    for attempt in 0..ATTEMPTS {
        if attempt > 0 {
            tokio::time::sleep(PAUSE * attempt).await;
        }
        match ask_once(url, application).await {
            Ok(lease) => return Ok(lease),
            Err(AskError::Refused(reason)) => return Err(AskError::Refused(reason)),
            // The first of several questions may have been heard without us knowing.
            Err(AskError::NotNow(reason)) if !was_heard => return Err(AskError::NotNow(reason)),
            Err(error) => {
                was_heard |= matches!(error, AskError::Lost(_));
                last = error;
            }
        }
    }
    match last {
        AskError::NoAnswer(reason) | AskError::NotNow(reason) if was_heard => Err(AskError::Lost(reason)),
        error => Err(error),
    }
}

async fn ask_once(url: &InviteUrl, application: &Application) -> Result<Lease, AskError> {
    let file = file_of_the_invited(url);
    let opened = tokio::task::spawn_blocking(move || Tunnel::open(&file)).await;
    let opened = opened.map_err(|error| AskError::NoAnswer(error.to_string()))?;
    let tunnel = opened.map_err(|error| AskError::NoAnswer(error.to_string()))?;
    let api = SocketAddr::from(url.inside_api);
    let up = tokio::time::timeout(ANSWER, tunnel.wait_until_up()).await;
    if !matches!(up, Ok(Ok(()))) {
        return Err(AskError::NoAnswer(no_answer(url)));
    }
    let connected = tunnel.tcp_connect_any(&[api.ip()], api.port()).await;
    let stream = connected.map_err(|error| {
        AskError::NoAnswer(format!(
            "the gateway {} answers, but not its inside API at {api} ({error}); its firewall must let new connections \
             from the tunnel in (with ufw: `ufw allow in on adit0 to any port {}`)",
            url.endpoint,
            api.port()
        ))
    })?;
    let lost = |reason: String| AskError::Lost(reason);
    let question = enrol_question(application).map_err(|error| lost(error.to_string()))?;
    let request = Request::post(ENROL_PATH)
        .header(HOST, api.to_string())
        .header(USER_AGENT, concat!("adit/", env!("CARGO_PKG_VERSION")))
        .header(CONTENT_TYPE, "application/json")
        .header(ACCEPT, "application/json")
        .header(CONNECTION, "close")
        .body(Full::new(Bytes::from(question)))
        .map_err(|error| lost(error.to_string()))?;
    let conversation = async {
        let answer = web::send(stream, request, BUFFER_BYTES).await.map_err(|error| error.to_string())?;
        let status = answer.status();
        let body = Limited::new(answer.into_body(), BODY_BYTES_MAX).collect().await;
        Ok((status, body.map_err(|error| format!("its answer broke off: {error}"))?.to_bytes()))
    };
    let (status, body) = web::in_time(PATIENCE, conversation).await.map_err(lost)?;
    if status == StatusCode::OK {
        return Lease::from_json(&body)
            .map_err(|error| lost(format!("its answer cannot be read: {error:#}")));
    }
    let said =
        serde_json::from_slice(&body).ok().and_then(|page: Value| Some(page["error"].as_str()?.to_owned()));
    let said = said.map_or_else(|| format!("status {}", status.as_u16()), |text| escape(&text));
    match status {
        StatusCode::GONE | StatusCode::FORBIDDEN | StatusCode::BAD_REQUEST | StatusCode::NOT_FOUND => {
            Err(AskError::Refused(said))
        }
        StatusCode::INSUFFICIENT_STORAGE => Err(AskError::NotNow(said)),
        _ => Err(lost(said)),
    }
}

fn no_answer(url: &InviteUrl) -> String {
    format!(
        "no answer from {}. Either it is not reached (does the gateway run, and is port {} open on the way to it, UDP or TCP?), \
         or it does not know this invite (any more): `adit invite list` on the gateway shows those it knows",
        url.endpoint, url.endpoint.port
    )
}

/// The tunnel through which the invited reaches the inside API, and nothing else.
pub fn file_of_the_invited(url: &InviteUrl) -> WgQuick {
    let keys = url.secret.keys(&url.gateway);
    let mut interface = Interface::new(keys.private_key);
    interface.addresses = vec![IpAddr::from(url.address).into()];
    interface.mtu = Mtu::Bytes(MTU_BYTES);
    let recognition = match &url.tls_pin {
        _ if url.vouched_for => Recognition::Authorities,
        Some(pin) => Recognition::Pin(pin_text(pin)),
        None => Recognition::None,
    };
    interface.settings.extend(recognition.setting());
    let mut gateway = PeerSection::new(url.gateway);
    gateway.suite = Suite::ChaCha20Poly1305;
    gateway.preshared_key = Some(keys.preshared_key);
    gateway.allowed_ips = vec![IpAddr::from(*url.inside_api.ip()).into()];
    gateway.endpoint = Some(url.endpoint.clone());
    WgQuick { interface, peers: vec![gateway] }
}

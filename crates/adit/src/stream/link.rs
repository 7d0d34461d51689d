//! A client's connection to its gateway: TCP, perhaps through a proxy, then the layers.

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use adit_io::carrier::stream::websocket::Side;
use adit_io::carrier::stream::{Layer, Tls, begin_without_bbr, prepare};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::oneshot;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_rustls::rustls::{AlertDescription, Error};

use super::http::{Head, accept_of};
use super::trust::client_config;
use crate::config::stream::{TlsVerify, Via};
use crate::driver::{NewStream, StreamKind};
use crate::endpoint::{HostPort, resolve_beside};
use crate::forwarder::Upstream;

/// What a connection looks like from outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// Messages on TCP.
    Tcp,
    /// Messages on TLS.
    Tls,
    /// Messages in a WebSocket on TLS.
    Wss,
}

impl Way {
    /// The name for people.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Tls => "tls",
            Self::Wss => "wss",
        }
    }
}

/// How a gateway is reached by connections.
#[derive(Clone, Debug)]
pub struct Link {
    /// Where it is, as the profile says it: what a proxy is told, and TLS asks for.
    pub name: HostPort,
    /// Its address.
    pub address: SocketAddr,
    /// The firewall mark of outgoing packets; 0 is none.
    pub fwmark: u32,
    /// A proxy on the way.
    pub via: Option<Proxy>,
    /// The name that TLS asks for, when it is another.
    pub sni: Option<String>,
    /// How the server shows that it is ours.
    pub verify: TlsVerify,
    /// The pin of its certificate.
    pub pin: Option<String>,
    /// Where the WebSocket is.
    pub path: String,
}

/// A proxy on the way, and where it is.
#[derive(Clone, Debug)]
pub struct Proxy {
    /// The proxy, by name.
    pub via: Via,
    /// Whom to ask for its addresses, beside the tunnel.
    pub beside: Upstream,
    /// Its addresses; asked for again when none of them can be connected to.
    known: Arc<Mutex<Vec<SocketAddr>>>,
}

impl Proxy {
    /// A proxy with the addresses `known`.
    pub fn new(via: Via, known: Vec<SocketAddr>) -> Self {
        Self { via, beside: Upstream::default(), known: Arc::new(Mutex::new(known)) }
    }

    /// Its addresses.
    pub fn known(&self) -> Vec<SocketAddr> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Asks for its addresses; those that are new.
    async fn ask_again(&self) -> Vec<SocketAddr> {
        let (sender, answer) = oneshot::channel();
        let (name, beside) = (self.via.proxy.clone(), self.beside.clone());
        // A question cannot be cancelled: its thread is left behind when nobody waits any more.
        let asking = std::thread::Builder::new()
            .name("proxy".into())
            .spawn(move || drop(sender.send(resolve_beside(&name, &beside))));
        let found = match answer.await {
            Ok(Ok(found)) if asking.is_ok() => found,
            Ok(Err(error)) => {
                tracing::debug!("{error}");
                return Vec::new();
            }
            _ => return Vec::new(),
        };
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let new = found.iter().filter(|it| !known.contains(it)).copied().collect();
        *known = found;
        new
    }
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// Nobody there, or nothing gets through.
    #[error("cannot connect to {0}: {1}")]
    Connect(SocketAddr, #[source] io::Error),
    /// The proxy does not let us through.
    #[error("the proxy {0} does not connect us: {1}")]
    Proxy(HostPort, String),
    /// TLS needs a pin, and the profile has none.
    #[error(
        "the profile has no tls_pin to recognise the gateway by; take it from `adit peer export`, or set tls_verify to \
         webpki or off"
    )]
    NoPin,
    /// Authorities are to vouch for the server, and there are none.
    #[error("tls_verify is webpki, and {0}")]
    NoAuthorities(String),
    /// The server cannot be the gateway, or speaks no TLS.
    #[error("no TLS with the gateway: {0}")]
    Tls(#[source] io::Error),
    /// The server has no TLS 1.3.
    #[error(
        "the server speaks no TLS 1.3, and nothing else will do; for an nginx in front of the gateway: \
         `ssl_protocols TLSv1.2 TLSv1.3;`"
    )]
    OldTls,
    /// The web server in front does not lead to the gateway.
    #[error("no WebSocket at {0}: {1}")]
    WebSocket(String, String),
}

/// For each step of a connection.
const STEP: Duration = Duration::from_secs(6);

/// Connects by `way`.
///
/// # Errors
/// [`LinkError`], after some seconds at the latest.
pub async fn connect(link: &Link, way: Way) -> Result<NewStream, LinkError> {
    let stream = match &link.via {
        None => {
            open(link.address, link.fwmark).await.map_err(|error| LinkError::Connect(link.address, error))?
        }
        Some(proxy) => through_proxy(link, proxy).await?,
    };
    let (stream, mut layer) = match way {
        Way::Tcp => (stream, Layer::default()),
        Way::Tls => secure(link, stream, way).await?,
        Way::Wss => secure(link, stream, way).await?,
    };
    let kind = match way {
        Way::Tcp => StreamKind::Tcp,
        Way::Tls => StreamKind::Tls,
        Way::Wss => StreamKind::Wss,
    };
    if way == Way::Wss {
        layer.websocket = Some(Side::Client);
    }
    let lost = |error| LinkError::Connect(link.address, error);
    let socket = stream.into_std().map_err(lost)?;
    prepare(&socket).map_err(lost)?;
    let remote = socket.peer_addr().map_err(lost)?;
    Ok(NewStream { socket, layer, kind, remote, received: Vec::new(), place: None })
}

async fn open(address: SocketAddr, fwmark: u32) -> io::Result<TcpStream> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
    if fwmark != 0 {
        SockRef::from(&socket).set_mark(fwmark)?;
    }
    begin_without_bbr(&socket);
    let socket = TcpSocket::from_std_stream(socket.into());
    timeout(STEP, socket.connect(address)).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

async fn open_any(addresses: &[SocketAddr], fwmark: u32) -> io::Result<TcpStream> {
    let mut failed = io::Error::new(io::ErrorKind::AddrNotAvailable, "its name has no address");
    for address in addresses {
        match open(*address, fwmark).await {
            Ok(stream) => return Ok(stream),
            Err(error) => failed = error,
        }
    }
    Err(failed)
}

async fn through_proxy(link: &Link, proxy: &Proxy) -> Result<TcpStream, LinkError> {
    let failure = |what: String| LinkError::Proxy(proxy.via.proxy.clone(), what);
    let mut opened = open_any(&proxy.known(), link.fwmark).await;
    if opened.is_err() {
        let new = proxy.ask_again().await;
        if !new.is_empty() {
            opened = open_any(&new, link.fwmark).await;
        }
    }
    let mut stream = opened.map_err(|error| failure(error.to_string()))?;
    match timeout(STEP, ask_proxy(&mut stream, link, &proxy.via)).await {
        Ok(Ok(())) => Ok(stream),
        Ok(Err(error)) => Err(failure(error.to_string())),
        Err(_) => Err(failure("no answer".to_owned())),
    }
}

async fn ask_proxy(stream: &mut TcpStream, link: &Link, via: &Via) -> io::Result<()> {
    let target = &link.name;
    let mut request = zeroize::Zeroizing::new(format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n"));
    if let Some(user) = &via.user {
        let password = via.password.as_ref().map_or("", |it| it.as_str());
        let word = zeroize::Zeroizing::new(format!("{user}:{password}"));
        let word = zeroize::Zeroizing::new(BASE64_STANDARD.encode(word.as_bytes()));
        for part in ["Proxy-Authorization: Basic ", word.as_str(), "\r\n"] {
            request.push_str(part);
        }
    }
    request.push_str("\r\n");
    stream.write_all(request.as_bytes()).await?;
    let head = Head::read_answer(stream).await?;
    let refused = |what: &str| Err(io::Error::new(io::ErrorKind::PermissionDenied, what.to_owned()));
    match head.status() {
        Some(200..=299) => Ok(()),
        Some(401 | 407) if via.user.is_some() => refused("it refuses the user or the password"),
        Some(401 | 407) => refused(
            "it asks for a user and a password; write via as http://USER@HOST:PORT, and set via_password",
        ),
        Some(403 | 405) => {
            refused("it forbids connections to that host or port; a gateway on port 443 may be allowed")
        }
        Some(status) => refused(&format!("it answers with status {status}")),
        None => refused("it speaks no HTTP"),
    }
}

async fn secure(link: &Link, stream: TcpStream, way: Way) -> Result<(TcpStream, Layer), LinkError> {
    let config = client_config(link.verify, link.pin.as_deref())?;
    let name = link.sni.as_ref().unwrap_or(&link.name.host).clone();
    let wrong = |_| {
        LinkError::Tls(io::Error::new(io::ErrorKind::InvalidInput, format!("{name:?} is no name for TLS")))
    };
    let server = ServerName::try_from(name.clone()).map_err(wrong)?;
    let late = || io::Error::from(io::ErrorKind::TimedOut);
    let connected = timeout(STEP, TlsConnector::from(Arc::clone(&config)).connect(server, stream)).await;
    let mut tls = connected.unwrap_or_else(|_| Err(late())).map_err(|error| match problem_of(&error) {
        Some(Error::AlertReceived(AlertDescription::ProtocolVersion) | Error::PeerIncompatible(_)) => {
            LinkError::OldTls
        }
        _ => LinkError::Tls(error),
    })?;
    if way == Way::Wss {
        let failed = |what: String| LinkError::WebSocket(format!("https://{name}{}", link.path), what);
        match timeout(STEP, open_websocket(&mut tls, &authority_of(&name, link.name.port), &link.path)).await
        {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return Err(failed(error.to_string())),
            Err(_) => return Err(failed("no answer".to_owned())),
        }
    }
    let (stream, session) = tls.into_inner();
    Ok((stream, Layer { tls: Some(Tls::Client(Box::new(session))), websocket: None }))
}

/// What a web server on this port calls itself.
fn authority_of(host: &str, port: u16) -> String {
    let place = HostPort { host: host.to_owned(), port }.to_string();
    match place.strip_suffix(":443") {
        Some(usual) if port == 443 => usual.to_owned(),
        _ => place,
    }
}

fn problem_of(error: &io::Error) -> Option<&Error> {
    error.get_ref()?.downcast_ref()
}

async fn open_websocket(
    stream: &mut (impl AsyncRead + AsyncWrite + Unpin),
    host: &str,
    path: &str,
) -> io::Result<()> {
    let mut key = [0; 16];
    aws_lc_rs::rand::fill(&mut key).map_err(|_| io::Error::other("no randomness"))?;
    let key = BASE64_STANDARD.encode(key);
    let request = format!(
        "GET {path} HTTP/1.1\r\nHost: {host}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await?;
    stream.flush().await?;
    let head = Head::read_answer(stream).await?;
    let is_ours = head.status() == Some(101) && head.header("sec-websocket-accept") == Some(&accept_of(&key));
    match head.status() {
        _ if is_ours => Ok(()),
        Some(status) => Err(io::Error::other(format!("the web server answers with status {status}"))),
        None => Err(io::Error::other("the server speaks no HTTP")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_web_server_is_called_by_its_port_unless_that_is_the_usual() {
        for (host, port, expected) in [
            ("vpn.example.org", 443, "vpn.example.org"),
            ("vpn.example.org", 8443, "vpn.example.org:8443"),
            ("2001:db8::1", 443, "[2001:db8::1]"),
            ("2001:db8::1", 4443, "[2001:db8::1]:4443"),
        ] {
            assert_eq!(authority_of(host, port), expected);
        }
    }
}

//! The asking side of HTTP: one request on a connection that leaves by a chosen way.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::{Body, Bytes, Incoming};
use hyper::header::{ACCEPT, CONNECTION, HOST, USER_AGENT};
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpSocket, TcpStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::crypto::aws_lc_rs;
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

/// How what we send leaves this host.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Way {
    /// The firewall mark, which the rules of a tunnel let pass by it; 0 is none. Needs `CAP_NET_ADMIN`.
    pub mark: u32,
    /// The only interface to use.
    pub interface: Option<String>,
}

impl Way {
    /// A socket that sends this way, not yet connected.
    ///
    /// # Errors
    /// There is no such interface, or this process may not mark packets.
    pub fn socket(&self, to: SocketAddr, kind: Type, protocol: Protocol) -> io::Result<Socket> {
        let socket = Socket::new(Domain::for_address(to), kind, Some(protocol))?;
        socket.set_nonblocking(true)?;
        if self.mark != 0 {
            socket.set_mark(self.mark)?;
        }
        if let Some(interface) = &self.interface {
            socket.bind_device(Some(interface.as_bytes()))?;
        }
        Ok(socket)
    }

    /// A TCP connection to `to`.
    ///
    /// # Errors
    /// As [`Way::socket`], and what the network says.
    pub async fn connect(&self, to: SocketAddr) -> io::Result<TcpStream> {
        let socket = self.socket(to, Type::STREAM, Protocol::TCP)?;
        TcpSocket::from_std_stream(socket.into()).connect(to).await
    }
}

/// The certificates of those whom this host trusts to vouch for names; never none.
///
/// # Errors
/// There are none; the text is for people.
pub fn authorities_of_host() -> Result<RootCertStore, String> {
    let found = rustls_native_certs::load_native_certs();
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(found.certs);
    if roots.is_empty() {
        let why = found.errors.first().map(|error| format!(" ({error})")).unwrap_or_default();
        return Err(format!(
            "this host has no certificate authorities{why}; install them (`apt install ca-certificates`) or name a \
             file of them in SSL_CERT_FILE"
        ));
    }
    Ok(roots)
}

/// Whom this host trusts to vouch for names (`SSL_CERT_FILE` and `SSL_CERT_DIR` name others).
#[derive(Clone)]
pub struct Trust {
    connector: TlsConnector,
}

impl Trust {
    /// Reads the certificates.
    ///
    /// # Errors
    /// There are none; the text is for people.
    pub fn of_host() -> Result<Self, String> {
        let roots = authorities_of_host()?;
        let config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(|error| error.to_string())?
            .with_root_certificates(roots)
            .with_no_client_auth();
        Ok(Self { connector: TlsConnector::from(Arc::new(config)) })
    }

    /// TLS with the host of that name or address, on `stream`.
    ///
    /// # Errors
    /// It is somebody else, or speaks no TLS.
    pub async fn secure(&self, stream: TcpStream, host: &str) -> io::Result<TlsStream<TcpStream>> {
        let name = ServerName::try_from(host.to_owned()).map_err(io::Error::other)?;
        self.connector.connect(name, stream).await
    }
}

/// A GET request of `target` for the host `authority`.
///
/// # Errors
/// They cannot stand in a request.
pub fn get(authority: &str, target: &str) -> Result<Request<Empty<Bytes>>, hyper::http::Error> {
    Request::get(target)
        .header(HOST, authority)
        .header(USER_AGENT, concat!("adit/", env!("CARGO_PKG_VERSION")))
        .header(ACCEPT, "application/json, text/plain")
        .header(CONNECTION, "close")
        .body(Empty::new())
}

/// Sends `request`, alone, on `stream`. At most `buffer_bytes` of the answer are buffered.
///
/// # Errors
/// What came back is no HTTP, or nothing.
pub async fn send<S, B>(
    stream: S,
    request: Request<B>,
    buffer_bytes: usize,
) -> hyper::Result<Response<Incoming>>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    B: Body + Send + 'static,
    B::Data: Send,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let (mut sender, connection) = hyper::client::conn::http1::Builder::new()
        .max_buf_size(buffer_bytes)
        .handshake(TokioIo::new(stream))
        .await?;
    tokio::spawn(connection);
    sender.send_request(request).await
}

/// The body of an answer with status 200, of `bytes_max` at most.
///
/// # Errors
/// Anything else; the text is for people.
pub async fn small_body(answer: Response<Incoming>, bytes_max: usize) -> Result<Bytes, String> {
    if answer.status() != StatusCode::OK {
        return Err(format!("it answered with status {}", answer.status().as_u16()));
    }
    match Limited::new(answer.into_body(), bytes_max).collect().await {
        Ok(body) => Ok(body.to_bytes()),
        Err(error) if error.is::<http_body_util::LengthLimitError>() => {
            Err(format!("it answered with more than {bytes_max} bytes"))
        }
        Err(error) => Err(format!("its answer broke off: {error}")),
    }
}

/// `result` in time, or words for it not being there.
///
/// # Errors
/// Too late, or the error of `result`.
pub async fn in_time<T>(
    limit: Duration,
    result: impl Future<Output = Result<T, String>>,
) -> Result<T, String> {
    let late = || format!("no answer in {} s", limit.as_secs());
    tokio::time::timeout(limit, result).await.unwrap_or_else(|_| Err(late()))
}

//! From an accepted connection to a proven one, or to a visitor's farewell.
//!
//! What a stranger sends decides what is answered, but not when: whoever shows nothing is let go after the same time,
//! whatever it was that they sent. Within TLS that is with an answer, as a web server gives to what is no request; where
//! a first message would end shows nowhere.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use adit_io::carrier::stream::frame::{FIRST_MESSAGE_MAX, LENGTH_LEN, MESSAGE_MIN};
use adit_io::carrier::stream::websocket::{Decoder, HEADER_MAX, Side};
use adit_io::carrier::stream::{Layer, Tls};
use adit_proto::forward::Forwarding;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep_until, timeout, timeout_at};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;

use super::http::Head;
use super::lobby::Place;
use super::visitor;
use crate::config::stream::Web;
use crate::driver::{self, NewStream, StreamKind, Streams};

/// For the handshakes of the layers, from the moment of the connection.
pub(super) const LAYERS: Duration = Duration::from_secs(5);
/// For the first message, or the whole of a request, after that.
pub(super) const FIRST: Duration = Duration::from_secs(5);
/// For an answer to a visitor.
const ANSWER: Duration = Duration::from_secs(30);
/// A ClientHello with all it brings has a few KiB; what has not come to an end by now is none.
const HANDSHAKE_BYTES: usize = 16 * 1024;
/// Bytes of a stranger that are read and thrown away.
const WASTE: usize = 64 * 1024;

/// The first byte of a TLS record of a handshake, and of a message that may open a connection.
const TLS_HANDSHAKE: u8 = 0x16;
const SHORT_MESSAGE: u8 = 0x00;

/// What greets whoever comes.
#[derive(Debug)]
pub(super) struct Hall {
    pub(super) forwarding: Arc<Forwarding>,
    pub(super) streams: Arc<Streams>,
    pub(super) tls: Arc<ServerConfig>,
    pub(super) web: Web,
    pub(super) path: String,
}

/// Who has come.
#[derive(Debug)]
pub(super) struct Guest {
    pub(super) from: SocketAddr,
    /// Taken along by the connection when a lane takes it over.
    pub(super) place: Place,
}

/// What comes of a request.
enum Visit {
    /// It was for our WebSocket, and this is the first message.
    Message(Vec<u8>),
    /// Answered, as far as it goes.
    Over,
    /// There was no request.
    Nothing,
}

impl Hall {
    /// Deals with a connection to its end, or until it is a lane's.
    pub(super) async fn greet(&self, stream: TcpStream, guest: Guest) {
        let deadline = Instant::now() + LAYERS;
        let mut first = [0];
        let seen = timeout_at(deadline, stream.peek(&mut first)).await;
        match (seen, first) {
            (Ok(Ok(1)), [TLS_HANDSHAKE]) => self.greet_tls(stream, guest, deadline).await,
            (Ok(Ok(1)), [SHORT_MESSAGE]) => {
                let mut stream = stream;
                match timeout_at(deadline, first_message(&mut stream, &[])).await {
                    Ok(Ok(message)) if self.is_acceptable(&message) => {
                        self.adopt(stream, Layer::default(), StreamKind::Tcp, guest, message);
                    }
                    Ok(_) => waste(&mut stream, deadline).await,
                    Err(_) => {}
                }
            }
            (Ok(Ok(1)), [b'A'..=b'Z']) => {
                let mut stream = stream;
                match self.receive_visitor(&mut stream, &[], &guest, deadline).await {
                    Visit::Message(message) => {
                        let layer = Layer { tls: None, websocket: Some(Side::Server) };
                        self.adopt(stream, layer, StreamKind::Ws, guest, message);
                    }
                    Visit::Over => {}
                    Visit::Nothing => sleep_until(deadline).await,
                }
            }
            (Ok(Ok(1)), _) => {
                let mut stream = stream;
                waste(&mut stream, deadline).await;
            }
            _ => {}
        }
    }

    async fn greet_tls(&self, stream: TcpStream, guest: Guest, deadline: Instant) {
        let acceptor = TlsAcceptor::from(Arc::clone(&self.tls));
        let limited = Limited { stream, left: HANDSHAKE_BYTES };
        // Boxed: a connection that shows nothing shall not take the memory of one that does.
        let accepted = Box::pin(timeout_at(deadline, acceptor.accept(limited).into_fallible())).await;
        let mut tls = match accepted {
            Ok(Ok(tls)) => tls,
            Ok(Err((_, mut limited))) => return waste(&mut limited.stream, deadline).await,
            Err(_) => return,
        };
        tls.get_mut().0.left = usize::MAX;
        let deadline = Instant::now() + FIRST;
        let mut first = [0];
        let Ok(Ok(1)) = timeout_at(deadline, tls.read(&mut first)).await else { return };
        let visit = match first {
            [SHORT_MESSAGE] => match timeout_at(deadline, first_message(&mut tls, &first)).await {
                Ok(Ok(message)) if self.is_acceptable(&message) => Visit::Message(message),
                _ => Visit::Nothing,
            },
            [b'A'..=b'Z'] => Box::pin(self.receive_visitor(&mut tls, &first, &guest, deadline)).await,
            _ => Visit::Nothing,
        };
        let message = match visit {
            Visit::Message(message) => message,
            Visit::Over => return,
            Visit::Nothing => {
                waste(&mut tls, deadline).await;
                let _ = timeout(ANSWER, visitor::refuse(&mut tls)).await;
                return;
            }
        };
        let (kind, websocket) = match first {
            [SHORT_MESSAGE] => (StreamKind::Tls, None),
            _ => (StreamKind::Wss, Some(Side::Server)),
        };
        let (limited, session) = tls.into_inner();
        let layer = Layer { tls: Some(Tls::Server(Box::new(session))), websocket };
        self.adopt(limited.stream, layer, kind, guest, message);
    }

    /// Answers a request; takes the first message when it was for our WebSocket and what came is good.
    async fn receive_visitor(
        &self,
        stream: &mut (impl AsyncRead + AsyncWrite + Unpin),
        begun: &[u8],
        guest: &Guest,
        deadline: Instant,
    ) -> Visit {
        let head = match timeout_at(deadline, Head::read(stream, begun)).await {
            Ok(Ok(head)) => head,
            Ok(Err(error)) if error.kind() == io::ErrorKind::InvalidData => {
                let _ = timeout(ANSWER, visitor::refuse(stream)).await;
                return Visit::Over;
            }
            _ => return Visit::Nothing,
        };
        if !visitor::wants_websocket(&head, &self.path) {
            let _ =
                timeout(ANSWER, visitor::answer(stream, &head, &self.web, guest.from.ip().to_canonical()))
                    .await;
            return Visit::Over;
        }
        let message = async {
            visitor::upgrade(stream, &head).await?;
            first_message_in_websocket(stream).await
        };
        if let Ok(Ok(message)) = timeout_at(deadline, message).await
            && self.is_acceptable(&message)
        {
            return Visit::Message(message);
        }
        sleep_until(deadline).await;
        Visit::Over
    }

    fn is_acceptable(&self, message: &[u8]) -> bool {
        message.get(LENGTH_LEN..).is_some_and(|it| self.forwarding.would_accept(driver::now(), it))
    }

    fn adopt(&self, stream: TcpStream, layer: Layer, kind: StreamKind, guest: Guest, received: Vec<u8>) {
        let Guest { from, place } = guest;
        let remote = SocketAddr::new(from.ip().to_canonical(), from.port());
        match stream.into_std() {
            Ok(socket) => {
                let place = Some(place);
                self.streams.adopt(NewStream { socket, layer, kind, remote, received, place });
            }
            Err(error) => tracing::debug!(%error, "a connection could not be taken over"),
        }
    }
}

/// The first message with its length in front. Reads nothing behind it.
async fn first_message(stream: &mut (impl AsyncRead + Unpin), begun: &[u8]) -> io::Result<Vec<u8>> {
    let mut bytes = begun.to_vec();
    while bytes.len() < LENGTH_LEN {
        bytes.push(stream.read_u8().await?);
    }
    let len = usize::from(u16::from_be_bytes([bytes[0], bytes[1]]));
    if !(MESSAGE_MIN..=FIRST_MESSAGE_MAX).contains(&len) {
        return Err(io::ErrorKind::InvalidData.into());
    }
    bytes.resize(LENGTH_LEN + len, 0);
    stream.read_exact(&mut bytes[LENGTH_LEN..]).await?;
    Ok(bytes)
}

/// The same, as a WebSocket message of its own.
async fn first_message_in_websocket(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Vec<u8>> {
    let wrong = || io::Error::from(io::ErrorKind::InvalidData);
    let mut decoder = Decoder::new(Side::Server);
    let mut message = Vec::new();
    for _ in 0..LENGTH_LEN + FIRST_MESSAGE_MAX + HEADER_MAX {
        let mut byte = [stream.read_u8().await?];
        let len = decoder.decode(&mut byte).map_err(|_| wrong())?;
        message.extend_from_slice(&byte[..len]);
        if let Some((length, rest)) = message.split_first_chunk::<LENGTH_LEN>()
            && rest.len() == usize::from(u16::from_be_bytes(*length))
        {
            return if decoder.is_between_messages() { Ok(message) } else { Err(wrong()) };
        }
    }
    Err(wrong())
}

/// Takes what comes, up to a bound, until the time is over.
async fn waste(stream: &mut (impl AsyncRead + Unpin), until: Instant) {
    let mut buffer = [0; 1024];
    let mut taken = 0;
    let take = async {
        while taken < WASTE {
            match stream.read(&mut buffer).await {
                Ok(len @ 1..) => taken += len,
                _ => break,
            }
        }
        sleep_until(until).await;
    };
    let _ = timeout_at(until, take).await;
}

/// A socket that gives no more than so many bytes: rustls alone would take in 64 KiB of a ClientHello.
struct Limited {
    stream: TcpStream,
    left: usize,
}

impl AsyncRead for Limited {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let polled = Pin::new(&mut self.stream).poll_read(context, buffer);
        let read = buffer.filled().len() - before;
        if read > self.left {
            return Poll::Ready(Err(io::ErrorKind::InvalidData.into()));
        }
        if self.left != usize::MAX {
            self.left -= read;
        }
        polled
    }
}

impl AsyncWrite for Limited {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

//! SOCKS5 (RFC 1928) with user and password (RFC 1929): CONNECT and UDP ASSOCIATE.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use zeroize::Zeroizing;

use super::auth::Credentials;
use super::dial::{DialError, Dialer, Outcome};
use super::gate::Place;
use super::target::{Host, Refusal, Target};
use super::{associate, relay};

const VERSION: u8 = 5;
const NO_AUTHENTICATION: u8 = 0;
const USER_AND_PASSWORD: u8 = 2;
const NO_METHOD: u8 = 0xff;
/// How long a client may take to say what it wants.
const PATIENCE: Duration = Duration::from_secs(10);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verb {
    Connect,
    Associate,
}

/// The reply field (RFC 1928 section 6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
enum Reply {
    Succeeded = 0,
    GeneralFailure = 1,
    NotAllowed = 2,
    NetworkUnreachable = 3,
    HostUnreachable = 4,
    ConnectionRefused = 5,
    TtlExpired = 6,
    CommandNotSupported = 7,
    AddressTypeNotSupported = 8,
}

/// Why a conversation ends before anything was connected.
#[derive(Debug, thiserror::Error)]
enum SocksError {
    #[error("it does not speak SOCKS5")]
    Version,
    #[error("it offers no way to authenticate that is accepted here")]
    Method,
    #[error("wrong user or password")]
    Password,
    #[error("it asks for command {0}")]
    Command(u8),
    #[error("it uses address type {0}")]
    AddressType(u8),
    #[error("it asks for what is refused: {0}")]
    Target(#[from] Refusal),
    #[error("{0}")]
    Io(#[from] io::Error),
}

/// Serves one client to the end.
pub(super) async fn serve(
    mut client: TcpStream,
    from: SocketAddr,
    dialer: Dialer,
    credentials: Option<Credentials>,
    place: Place,
) {
    let asked = timeout(PATIENCE, ask(&mut client, from.ip(), credentials.as_ref())).await;
    let (verb, target) = match asked {
        Ok(Ok(asked)) => asked,
        Ok(Err(error)) => {
            tracing::debug!(%from, "SOCKS client turned away: {error}");
            if let Some(reply) = error.reply() {
                let _ = answer(&mut client, reply, None).await;
            }
            return;
        }
        Err(_) => return tracing::debug!(%from, "SOCKS client turned away: it says nothing"),
    };
    if !place.come_in() {
        tracing::debug!(%from, "turned away: there are too many connections");
        let _ = answer(&mut client, Reply::GeneralFailure, None).await;
        return;
    }
    match verb {
        Verb::Connect => connect(client, from, &dialer, &target).await,
        Verb::Associate => {
            if let Err(error) = associate::serve(&mut client, from, dialer, target.port).await {
                tracing::debug!(%from, "UDP association ended: {error}");
            }
        }
    }
}

async fn connect(mut client: TcpStream, from: SocketAddr, dialer: &Dialer, target: &Target) {
    match dialer.connect(target).await {
        Ok(remote) => {
            let local = remote.local_addr();
            tracing::debug!(%from, %target, "connected");
            if answer(&mut client, Reply::Succeeded, local).await.is_ok()
                && let Err(error) = relay::relay(client, remote).await
            {
                tracing::debug!(%from, %target, "connection broke: {error}");
            }
        }
        Err(error) => {
            tracing::debug!(%from, %target, "not connected: {error}");
            let _ = answer(&mut client, Reply::of(&error), None).await;
        }
    }
}

async fn ask(
    client: &mut TcpStream,
    from: IpAddr,
    credentials: Option<&Credentials>,
) -> Result<(Verb, Target), SocksError> {
    greet(client, from, credentials).await?;
    let [version, command, _reserved] = read(client).await?;
    if version != VERSION {
        return Err(SocksError::Version);
    }
    let verb = match command {
        1 => Verb::Connect,
        3 => Verb::Associate,
        other => return Err(SocksError::Command(other)),
    };
    let (host, port) = read_address(client).await?;
    // The address of an association is where the client will send from, and may be none.
    let target = match verb {
        Verb::Connect => Target::new(&host, port)?,
        Verb::Associate => Target { host: Host::Address(Ipv4Addr::UNSPECIFIED.into()), port },
    };
    Ok((verb, target))
}

async fn greet(
    client: &mut TcpStream,
    from: IpAddr,
    credentials: Option<&Credentials>,
) -> Result<(), SocksError> {
    let [version, count] = read(client).await?;
    if version != VERSION {
        return Err(SocksError::Version);
    }
    let mut offered = vec![0; usize::from(count)];
    client.read_exact(&mut offered).await?;
    let wanted = if credentials.is_some() { USER_AND_PASSWORD } else { NO_AUTHENTICATION };
    if !offered.contains(&wanted) {
        client.write_all(&[VERSION, NO_METHOD]).await?;
        return Err(SocksError::Method);
    }
    client.write_all(&[VERSION, wanted]).await?;
    let Some(credentials) = credentials else { return Ok(()) };
    let [version, user_len] = read(client).await?;
    if version != 1 {
        return Err(SocksError::Version);
    }
    let mut user = vec![0; usize::from(user_len)];
    client.read_exact(&mut user).await?;
    let [password_len] = read(client).await?;
    let mut password = Zeroizing::new(vec![0; usize::from(password_len)]);
    client.read_exact(&mut password).await?;
    let admitted = credentials.admit(from, &user, &password);
    client.write_all(&[1, u8::from(!admitted)]).await?;
    if admitted { Ok(()) } else { Err(SocksError::Password) }
}

async fn read<const N: usize>(client: &mut TcpStream) -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    client.read_exact(&mut bytes).await?;
    Ok(bytes)
}

/// Address type, address and port, as text: what it means is decided in one place.
async fn read_address(client: &mut TcpStream) -> Result<(String, u16), SocksError> {
    let [kind] = read(client).await?;
    let host = match kind {
        1 => Ipv4Addr::from(read::<4>(client).await?).to_string(),
        4 => Ipv6Addr::from(read::<16>(client).await?).to_string(),
        3 => {
            let [len] = read(client).await?;
            let mut name = vec![0; usize::from(len)];
            client.read_exact(&mut name).await?;
            String::from_utf8(name).map_err(|_| Refusal::Malformed)?
        }
        other => return Err(SocksError::AddressType(other)),
    };
    Ok((host, u16::from_be_bytes(read(client).await?)))
}

async fn answer(client: &mut TcpStream, reply: Reply, bound: Option<SocketAddr>) -> io::Result<()> {
    let mut message = vec![VERSION, reply as u8, 0];
    push_address(&mut message, bound.unwrap_or_else(|| (Ipv4Addr::UNSPECIFIED, 0).into()));
    client.write_all(&message).await
}

/// Tells the client of an association where to send.
pub(super) async fn answer_associated(client: &mut TcpStream, bound: SocketAddr) -> io::Result<()> {
    answer(client, Reply::Succeeded, Some(bound)).await
}

/// Tells the client of an association that there will be none.
pub(super) async fn answer_failed(client: &mut TcpStream) -> io::Result<()> {
    answer(client, Reply::GeneralFailure, None).await
}

/// The same, when that is because of the tunnel.
pub(super) async fn answer_not_dialled(client: &mut TcpStream, error: &DialError) -> io::Result<()> {
    answer(client, Reply::of(error), None).await
}

/// Address type, address and port.
pub(super) fn push_address(message: &mut Vec<u8>, address: SocketAddr) {
    match address.ip().to_canonical() {
        IpAddr::V4(address) => {
            message.push(1);
            message.extend(address.octets());
        }
        IpAddr::V6(address) => {
            message.push(4);
            message.extend(address.octets());
        }
    }
    message.extend(address.port().to_be_bytes());
}

impl Reply {
    fn of(error: &DialError) -> Self {
        match error.outcome() {
            Outcome::Forbidden => Self::NotAllowed,
            Outcome::TunnelDown => Self::NetworkUnreachable,
            Outcome::NoSuchHost | Outcome::Unreachable => Self::HostUnreachable,
            Outcome::HostRefused => Self::ConnectionRefused,
            Outcome::TimedOut => Self::TtlExpired,
        }
    }
}

impl SocksError {
    /// What to answer; nothing before the client has asked for something.
    fn reply(&self) -> Option<Reply> {
        match self {
            Self::Command(_) => Some(Reply::CommandNotSupported),
            Self::AddressType(_) => Some(Reply::AddressTypeNotSupported),
            Self::Target(_) => Some(Reply::NotAllowed),
            Self::Version | Self::Method | Self::Password | Self::Io(_) => None,
        }
    }
}

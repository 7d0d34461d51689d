//! A tunnel inside the program, for programs: no TUN device, no root, nothing on the host changes.
//!
//! ```no_run
//! use tokio::io::{AsyncReadExt, AsyncWriteExt};
//!
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let tunnel = adit::Tunnel::connect("home.conf").await?;
//! let mut stream = tunnel.tcp_connect("example.org", 80).await?;
//! stream.write_all(b"GET / HTTP/1.0\r\nHost: example.org\r\n\r\n").await?;
//! let mut page = String::new();
//! stream.read_to_string(&mut page).await?;
//! # Ok(())
//! # }
//! ```
//!
//! It works with any WireGuard peer. One key makes one tunnel at a time: the other end sends its answers to
//! whoever used the key last.

mod keeper;
mod question;
mod resolver;

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::timeout;

pub use self::keeper::Link;
pub use self::resolver::NameError;
pub use crate::stack::{TcpListener, TcpStream, UdpSocket};

use self::keeper::Keeper;
use self::resolver::Resolver;
use crate::client;
use crate::config::wgquick::{Hooks, WgQuick};
use crate::config::{ClientSettings, Layers, Mtu, Report};
use crate::dial;
use crate::driver::{Driver, StackConfig};
use crate::endpoint::{Endpoints, ResolveError};
use crate::stack::{self, Network};

/// How long [`Tunnel::connect`] and new connections wait for the gateway.
pub const FIRST_ANSWER: Duration = Duration::from_secs(5);
/// How long the other end has to accept a connection.
const ACCEPT: Duration = Duration::from_secs(30);
/// The next address of a name is tried after so long, while the one before may still answer (RFC 8305).
const HEAD_START: Duration = Duration::from_millis(250);
/// Addresses of one name that are tried.
const TRIED: usize = 6;

/// A tunnel. Cheap to clone; it ends when the last clone is dropped.
#[derive(Clone, Debug)]
pub struct Tunnel(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    network: Network,
    resolver: Resolver,
    gateway: String,
    link: watch::Receiver<Link>,
    _keeper: Keeper,
}

/// Why something did not work.
#[derive(Debug, thiserror::Error)]
pub enum TunnelError {
    /// The profile cannot be read.
    #[error("{0}")]
    Profile(#[from] Report),
    /// The name of the gateway has no address.
    #[error(transparent)]
    Gateway(#[from] ResolveError),
    /// The host refuses what an ordinary user may do.
    #[error("cannot start the tunnel: {0}")]
    Start(#[source] io::Error),
    /// Nobody answers at the gateway's endpoint.
    #[error(
        "no answer from {gateway}. Check that the gateway runs, that its port (UDP, or TCP) is open on the way to it, \
         and that each side has the key of the other"
    )]
    NoAnswer {
        /// The endpoints of the profile.
        gateway: String,
    },
    /// A name inside the tunnel has no address.
    #[error(transparent)]
    Name(#[from] NameError),
    /// The other end, or the network before it, says no; or nobody says anything.
    #[error("cannot connect to {target} through the tunnel: {source}")]
    Connect {
        /// Where to.
        target: String,
        /// What went wrong.
        source: io::Error,
    },
}

impl Tunnel {
    /// Opens the tunnel of a profile (a wg-quick file that others cannot read) and waits for the gateway.
    ///
    /// # Errors
    /// [`TunnelError::Profile`], [`Gateway`](TunnelError::Gateway), [`Start`](TunnelError::Start), or
    /// [`NoAnswer`](TunnelError::NoAnswer) after five seconds.
    pub async fn connect(profile: impl AsRef<Path>) -> Result<Self, TunnelError> {
        let file = WgQuick::load(profile.as_ref(), Hooks::Allowed)?;
        let tunnel = tokio::task::spawn_blocking(move || Self::open(&file))
            .await
            .map_err(|error| TunnelError::Start(io::Error::other(error)))??;
        tunnel.wait_until_up().await?;
        Ok(tunnel)
    }

    /// Opens the tunnel of a file that was read already, and does not wait for the gateway. Blocks while the name
    /// of the gateway is resolved. Hooks, `Table` and `FwMark` mean nothing here.
    ///
    /// # Errors
    /// [`TunnelError::Gateway`] or [`Start`](TunnelError::Start).
    pub fn open(file: &WgQuick) -> Result<Self, TunnelError> {
        Self::open_with(file, &ClientSettings::of_profile(&Layers::default(), file)?)
    }

    /// The same, with settings that come from elsewhere too.
    ///
    /// # Errors
    /// [`TunnelError::Gateway`] or [`Start`](TunnelError::Start).
    pub fn open_with(file: &WgQuick, settings: &ClientSettings) -> Result<Self, TunnelError> {
        let reached = client::resolve_peers(&file.peers, settings)?;
        let targets = dial::targets(file, &reached, settings)?;
        let in_use: Vec<IpAddr> = reached.iter().map(|it| it.current.ip()).collect();
        let mtu_bytes = match file.interface.mtu {
            Mtu::Bytes(bytes) => bytes.into(),
            Mtu::Auto => adit_host::auto_mtu(&in_use, 0).unwrap_or(1_420),
        };
        let mtu_bytes = usize::try_from(mtu_bytes).unwrap_or(1_420).clamp(1_280, 65_535);
        let (stack, network) =
            stack::stack(&file.interface.addresses, mtu_bytes).map_err(TunnelError::Start)?;
        let listen_port = file.interface.listen_port;
        let driver = Driver::start_stack(StackConfig { stack: Box::new(stack), mtu_bytes, listen_port })
            .map_err(|error| match error.kind() {
                io::ErrorKind::AddrInUse => {
                    TunnelError::Start(io::Error::new(error.kind(), crate::device::port_taken(listen_port)))
                }
                _ => TunnelError::Start(error),
            })?;
        let mut endpoints = Endpoints::default();
        for peer in &file.peers {
            let Some(name) = peer.endpoint.clone().filter(|name| name.address().is_none()) else { continue };
            if let Some(it) = reached.iter().find(|it| it.peer == peer.public_key && !it.by_proxy) {
                endpoints.watch(it.peer, name, it.known.clone(), Some(it.current));
            }
        }
        driver.apply(client::introduction(file, dial::by_datagrams(settings, &reached), &[]));
        let dial = dial::begin(&driver, settings, &reached, targets).map_err(TunnelError::Start)?;
        let (keeper, link) = Keeper::start(driver, dial, endpoints).map_err(TunnelError::Start)?;
        let names: Vec<String> =
            file.peers.iter().filter_map(|peer| peer.endpoint.as_ref()).map(ToString::to_string).collect();
        let section = &file.interface;
        Ok(Self(Arc::new(Inner {
            resolver: Resolver::new(section.dns.clone(), section.search_domains.clone(), network.addresses()),
            network,
            gateway: if names.is_empty() { "the peer".to_owned() } else { names.join(", ") },
            link,
            _keeper: keeper,
        })))
    }

    /// Waits until a peer has answered.
    ///
    /// # Errors
    /// [`TunnelError::NoAnswer`] after five seconds.
    pub async fn wait_until_up(&self) -> Result<(), TunnelError> {
        let mut link = self.0.link.clone();
        let answered =
            timeout(FIRST_ANSWER, link.wait_for(|link| !matches!(link, Link::Waiting | Link::Silent)));
        match answered.await {
            Ok(Ok(link)) if *link == Link::Up => Ok(()),
            _ => Err(TunnelError::NoAnswer { gateway: self.0.gateway.clone() }),
        }
    }

    /// Whether it carries anything, and how that changes.
    pub fn link(&self) -> watch::Receiver<Link> {
        self.0.link.clone()
    }

    /// Where the gateway is, as the profile says it.
    pub fn gateway(&self) -> &str {
        &self.0.gateway
    }

    /// Our addresses inside.
    pub fn addresses(&self) -> &[IpAddr] {
        self.0.network.addresses()
    }

    /// Every address of a name, asked of the profile's DNS servers through the tunnel. An address is its own name.
    ///
    /// # Errors
    /// [`NameError`].
    pub async fn resolve(&self, name: &str) -> Result<Vec<IpAddr>, NameError> {
        self.0.resolver.resolve(&self.0.network, name).await
    }

    /// Connects to a host by name or address.
    ///
    /// # Errors
    /// [`TunnelError::Name`], [`NoAnswer`](TunnelError::NoAnswer) or [`Connect`](TunnelError::Connect), at the latest
    /// after 35 seconds; never a connection around the tunnel.
    pub async fn tcp_connect(&self, host: &str, port: u16) -> Result<TcpStream, TunnelError> {
        self.wait_until_up().await?;
        let addresses = self.resolve(host).await?;
        self.tcp_connect_any(&addresses, port).await
    }

    /// Connects to the first of several addresses of one host that accepts.
    ///
    /// # Errors
    /// [`TunnelError::NoAnswer`] or [`Connect`](TunnelError::Connect).
    pub async fn tcp_connect_any(&self, addresses: &[IpAddr], port: u16) -> Result<TcpStream, TunnelError> {
        self.wait_until_up().await?;
        let ordered = in_order(addresses, self.addresses());
        let target =
            ordered.first().map_or_else(String::new, |first| SocketAddr::new(*first, port).to_string());
        let attempt = self.race(&ordered, port);
        match timeout(ACCEPT, attempt).await {
            Ok(Ok(stream)) => Ok(stream),
            Ok(Err(source)) => Err(TunnelError::Connect { target, source }),
            Err(_) => Err(TunnelError::Connect {
                target,
                source: io::Error::new(io::ErrorKind::TimedOut, "no answer in 30 s"),
            }),
        }
    }

    async fn race(&self, addresses: &[IpAddr], port: u16) -> io::Result<TcpStream> {
        let mut left = addresses.iter().take(TRIED);
        let mut attempts = JoinSet::new();
        let mut error = io::Error::new(io::ErrorKind::AddrNotAvailable, "no address the tunnel carries");
        let mut more = true;
        loop {
            if more && let Some(address) = left.next() {
                let (network, remote) = (self.0.network.clone(), SocketAddr::new(*address, port));
                attempts.spawn(async move { network.tcp_connect(remote).await });
            }
            let ended = if left.len() > 0 {
                timeout(HEAD_START, attempts.join_next()).await
            } else {
                Ok(attempts.join_next().await)
            };
            more = true;
            match ended {
                Err(_) => {}
                Ok(None) => return Err(error),
                Ok(Some(Ok(Ok(stream)))) => return Ok(stream),
                Ok(Some(Ok(Err(failed)))) => error = failed,
                Ok(Some(Err(_))) => {}
            }
        }
    }

    /// Accepts connections from inside the tunnel to `port` of our addresses.
    ///
    /// # Errors
    /// The port is taken or 0, or the tunnel has ended.
    pub fn tcp_listen(&self, port: u16) -> io::Result<TcpListener> {
        self.0.network.tcp_listen(port)
    }

    /// A UDP socket for destinations of the IP version of `towards`, on a random port.
    ///
    /// # Errors
    /// The tunnel has no address of that version, or has ended.
    pub fn udp_bind(&self, towards: IpAddr) -> io::Result<UdpSocket> {
        self.0.network.udp_bind(towards)
    }
}

/// Those the tunnel carries, the versions by turns. IPv6 comes first unless our own address there is a private one
/// (RFC 6724 sections 2.1 and 6).
fn in_order(addresses: &[IpAddr], ours: &[IpAddr]) -> Vec<IpAddr> {
    let private = |address: &IpAddr| matches!(address, IpAddr::V6(it) if it.is_unique_local());
    let v6_first = ours.iter().any(|it| it.is_ipv6() && !private(it));
    let of = |v4: bool| {
        let carried = ours.iter().any(|it| it.is_ipv4() == v4);
        addresses.iter().filter(move |it| carried && it.is_ipv4() == v4).copied()
    };
    let (mut v4, mut v6) = (of(true), of(false));
    let mut ordered = Vec::new();
    loop {
        let pair = if v6_first { [v6.next(), v4.next()] } else { [v4.next(), v6.next()] };
        if pair == [None, None] {
            return ordered;
        }
        ordered.extend(pair.into_iter().flatten());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_tried_by_turns_and_only_those_the_tunnel_carries() {
        let list = |text: &str| text.split(' ').map(|it| it.parse().unwrap()).collect::<Vec<IpAddr>>();
        let targets = list("2001:db8::1 2001:db8::2 192.0.2.1 192.0.2.2");
        let private = in_order(&targets, &list("10.0.0.2 fd00::2"));
        assert_eq!(private, list("192.0.2.1 2001:db8::1 192.0.2.2 2001:db8::2"));
        let public = in_order(&targets, &list("10.0.0.2 2001:db8:9::2"));
        assert_eq!(public, list("2001:db8::1 192.0.2.1 2001:db8::2 192.0.2.2"));
        assert_eq!(in_order(&targets, &list("10.0.0.2")), list("192.0.2.1 192.0.2.2"));
    }
}

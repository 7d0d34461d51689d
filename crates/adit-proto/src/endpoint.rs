//! Where a peer is reached: a carrier and an outside address.

use core::net::{IpAddr, SocketAddr};

/// How datagrams travel between two hosts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Carrier {
    /// One message per UDP datagram.
    Udp,
    /// Length-prefixed messages on a TCP connection, by connection number.
    Tcp(u64),
    /// Length-prefixed messages on a TLS connection, by connection number.
    Tls(u64),
    /// The same in a WebSocket on TCP, by connection number.
    Ws(u64),
    /// The same in a WebSocket on TLS, by connection number.
    Wss(u64),
}

impl Carrier {
    /// The name for people and metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Udp => "udp",
            Self::Tcp(_) => "tcp",
            Self::Tls(_) => "tls",
            Self::Ws(_) => "ws",
            Self::Wss(_) => "wss",
        }
    }

    /// The number of the connection, on a stream.
    pub const fn connection(self) -> Option<u64> {
        match self {
            Self::Udp => None,
            Self::Tcp(number) | Self::Tls(number) | Self::Ws(number) | Self::Wss(number) => Some(number),
        }
    }
}

/// The outside address of a peer, and the local address it was last heard on.
///
/// `local` and `interface` make replies leave from the address the peer talks to ("sticky source");
/// they are hints for the carrier, which clears them when the host no longer has that address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Endpoint {
    /// The carrier that reaches the peer.
    pub carrier: Carrier,
    /// The peer's outside address and port.
    pub remote: SocketAddr,
    /// Our address that the peer's last packet was sent to.
    pub local: Option<IpAddr>,
    /// The interface index the peer's last packet arrived on; 0 when unknown.
    pub interface: u32,
}

impl Endpoint {
    /// An endpoint over UDP with no sticky source yet.
    pub const fn udp(remote: SocketAddr) -> Self {
        Self { carrier: Carrier::Udp, remote, local: None, interface: 0 }
    }
}

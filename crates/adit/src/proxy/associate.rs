//! UDP through SOCKS5 (RFC 1928 section 7).
//!
//! ```text
//!   client ── header, payload ──▶ socket of this machine ── payload ──▶ socket inside the tunnel
//!   client ◀─ header, payload ─── socket of this machine ◀─ payload ─── socket inside the tunnel
//! ```

use std::collections::{HashSet, VecDeque};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use tokio::io::AsyncReadExt;
use tokio::net::{TcpStream, UdpSocket as LocalSocket};
use tokio::task::JoinSet;

use super::dial::{DialError, Dialer};
use super::socks;
use super::target::{Host, Refusal, Target};
use crate::tunnel::UdpSocket;

/// The longest UDP payload.
const DATAGRAM: usize = 65_535;
/// Datagrams that wait for the address of a name; what comes for others meanwhile is dropped.
const RESOLVING: usize = 64;
/// Who may answer: those who were written to, the newest so many.
const CORRESPONDENTS: usize = 1_024;

/// A request to send a datagram.
#[derive(Debug, PartialEq, Eq)]
struct Request<'a> {
    target: Target,
    payload: &'a [u8],
}

/// Serves an association until the client closes its connection. `port` is where the client says it will send from, or 0.
pub(super) async fn serve(
    client: &mut TcpStream,
    from: SocketAddr,
    dialer: Dialer,
    port: u16,
) -> io::Result<()> {
    // Later the datagrams of a silent tunnel go into it all the same: they cannot go anywhere else, and may wake it.
    if let Err(error) = dialer.tunnel.wait_until_up().await {
        return socks::answer_not_dialled(client, &error.into()).await;
    }
    let here = client.local_addr()?.ip().to_canonical();
    let socket = match LocalSocket::bind((here, 0)).await {
        Ok(socket) => socket,
        Err(error) => {
            socks::answer_failed(client).await?;
            return Err(error);
        }
    };
    socks::answer_associated(client, socket.local_addr()?).await?;
    let mut association = Association {
        socket,
        client: (port != 0).then(|| SocketAddr::new(from.ip(), port)),
        client_ip: from.ip(),
        v4: None,
        v6: None,
        correspondents: Correspondents::default(),
        resolving: JoinSet::new(),
        dialer,
    };
    let mut datagram = vec![0; DATAGRAM];
    let mut ignored = [0; 64];
    loop {
        tokio::select! {
            read = client.read(&mut ignored) => {
                if read? == 0 {
                    return Ok(());
                }
            }
            received = association.socket.recv_from(&mut datagram) => {
                let (len, sender) = received?;
                association.outbound(sender, datagram.get(..len).unwrap_or_default());
            }
            Some(Ok(found)) = association.resolving.join_next() => association.resolved(found),
            arrived = receive(&association.v4) => association.inbound(arrived?).await,
            arrived = receive(&association.v6) => association.inbound(arrived?).await,
        }
    }
}

struct Association {
    socket: LocalSocket,
    /// Where the client sends from: the first that came, if it did not say.
    client: Option<SocketAddr>,
    client_ip: IpAddr,
    v4: Option<UdpSocket>,
    v6: Option<UdpSocket>,
    correspondents: Correspondents,
    /// A name that is slow holds up nobody else.
    resolving: JoinSet<Found>,
    dialer: Dialer,
}

/// A datagram and the addresses of its target.
struct Found {
    target: Target,
    addresses: Result<Vec<IpAddr>, DialError>,
    payload: Vec<u8>,
}

async fn receive(socket: &Option<UdpSocket>) -> io::Result<(Vec<u8>, SocketAddr)> {
    match socket {
        Some(socket) => socket.recv_from().await,
        None => std::future::pending().await,
    }
}

impl Association {
    fn outbound(&mut self, sender: SocketAddr, datagram: &[u8]) {
        if sender.ip() != self.client_ip || self.client.is_some_and(|client| client != sender) {
            return tracing::debug!(%sender, "a datagram of a stranger was dropped");
        }
        let Some(Request { target, payload }) = Request::parse(datagram) else {
            return tracing::debug!(%sender, "a datagram without a proper header was dropped");
        };
        self.client = Some(sender);
        if let Err(refusal) = target.check_port() {
            return tracing::debug!(%target, "a datagram was dropped: {refusal}");
        }
        if let Host::Address(address) = target.host {
            let addresses = self.dialer.allowed(vec![address], target.port);
            return self.resolved(Found { target, addresses, payload: payload.to_vec() });
        }
        if self.resolving.len() >= RESOLVING {
            return tracing::debug!(%target, "a datagram was dropped: too many names are being resolved");
        }
        let payload = payload.to_vec();
        let dialer = self.dialer.clone();
        self.resolving.spawn(async move {
            let addresses = dialer.resolve(&target).await;
            Found { target, addresses, payload }
        });
    }

    fn resolved(&mut self, found: Found) {
        let addresses = found.addresses.map_err(anyhow::Error::from);
        let sent = addresses.and_then(|it| self.send(&it, found.target.port, &found.payload));
        if let Err(error) = sent {
            tracing::debug!(target = %found.target, "a datagram was dropped: {error}");
        }
    }

    fn send(&mut self, addresses: &[IpAddr], port: u16, payload: &[u8]) -> anyhow::Result<()> {
        let carried = |address: &&IpAddr| {
            self.dialer.tunnel.addresses().iter().any(|ours| ours.is_ipv4() == address.is_ipv4())
        };
        let address = addresses.iter().find(carried).ok_or(io::ErrorKind::AddrNotAvailable);
        let to = SocketAddr::new(*address.map_err(io::Error::from)?, port);
        let socket = match (if to.is_ipv4() { &mut self.v4 } else { &mut self.v6 }, &self.dialer) {
            (Some(socket), _) => socket,
            (none, dialer) => none.insert(dialer.tunnel.udp_bind(to.ip())?),
        };
        self.correspondents.note(to);
        Ok(socket.send_to(payload, to)?)
    }

    async fn inbound(&mut self, (payload, from): (Vec<u8>, SocketAddr)) {
        let Some(client) = self.client else { return };
        if !self.correspondents.known.contains(&from) {
            return tracing::debug!(%from, "a datagram that nobody asked for was dropped");
        }
        let mut datagram = vec![0, 0, 0];
        socks::push_address(&mut datagram, from);
        datagram.extend(payload);
        let _ = self.socket.send_to(&datagram, client).await;
    }
}

/// Who was written to; when there are too many the one that came first is forgotten.
#[derive(Debug, Default)]
struct Correspondents {
    known: HashSet<SocketAddr>,
    in_turn: VecDeque<SocketAddr>,
}

impl Correspondents {
    fn note(&mut self, to: SocketAddr) {
        if !self.known.insert(to) {
            return;
        }
        self.in_turn.push_back(to);
        if self.in_turn.len() > CORRESPONDENTS
            && let Some(oldest) = self.in_turn.pop_front()
        {
            self.known.remove(&oldest);
        }
    }
}

impl<'a> Request<'a> {
    /// `None` for what is malformed, and for fragments, which nobody has to support.
    fn parse(datagram: &'a [u8]) -> Option<Self> {
        let [0, 0, 0, kind, rest @ ..] = datagram else { return None };
        let (host, rest) = match kind {
            1 => {
                let (address, rest) = rest.split_first_chunk::<4>()?;
                (Host::Address(Ipv4Addr::from(*address).into()), rest)
            }
            4 => {
                let (address, rest) = rest.split_first_chunk::<16>()?;
                (Host::Address(Ipv6Addr::from(*address).into()), rest)
            }
            3 => {
                let (len, rest) = rest.split_first()?;
                let (name, rest) = rest.split_at_checked(usize::from(*len))?;
                (Host::parse(std::str::from_utf8(name).ok()?).ok()?, rest)
            }
            _ => return None,
        };
        let (port, payload) = rest.split_first_chunk::<2>()?;
        Some(Self { target: Target { host, port: u16::from_be_bytes(*port) }, payload })
    }
}

impl From<Refusal> for io::Error {
    fn from(refusal: Refusal) -> Self {
        Self::new(io::ErrorKind::PermissionDenied, refusal)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_header_is_read_and_fragments_and_lies_about_lengths_are_dropped() {
        let good = b"\0\0\0\x03\x03foo\0\x35payload";
        let request = Request::parse(good).unwrap();
        assert_eq!(request.target, Target { host: Host::Name("foo".into()), port: 53 });
        assert_eq!(request.payload, b"payload");
        for bad in [
            &b"\0\0\x01\x03\x03foo\0\x35payload"[..],
            b"\0\0\0\x03\xfffoo\0\x35payload",
            b"\0\0\0\x01\x7f\0",
            b"\0\0\0\x02\x03foo\0\x35",
            b"\x01\0\0\x03\x03foo\0\x35",
            b"\0\0\0\x03\x03f\ro\0\x35",
            b"",
        ] {
            assert_eq!(Request::parse(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn of_too_many_correspondents_the_oldest_is_forgotten() {
        let mut correspondents = Correspondents::default();
        let address = |port: usize| SocketAddr::from(([192, 0, 2, 1], port as u16));
        for port in 0..CORRESPONDENTS {
            correspondents.note(address(port));
            correspondents.note(address(port));
        }
        assert!(correspondents.known.contains(&address(0)));
        correspondents.note(address(CORRESPONDENTS));
        assert_eq!(correspondents.known.len(), CORRESPONDENTS);
        assert!(!correspondents.known.contains(&address(0)) && correspondents.known.contains(&address(1)));
    }

    proptest! {
        #[test]
        fn no_datagram_whatever_makes_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            let _ = Request::parse(&bytes);
            let _ = Request::parse(&[&[0, 0, 0], &bytes[..]].concat());
        }
    }
}

//! What the network of the command looks like: what a profile says that is no secret.

use std::io::{self, Read, Write};
use std::net::IpAddr;
use std::os::unix::net::UnixStream;

use adit_host::{Address, Hop, Link, MAIN_TABLE, Route};
use anyhow::Context;
use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::config::wgquick::WgQuick;

/// The TUN device of the command.
pub const INTERFACE: &str = "adit0";

/// Passed from the companion, which reads the file, to the process that becomes the command.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Layout {
    /// The largest inside packet.
    pub mtu_bytes: u32,
    /// Our inside addresses.
    pub addresses: Vec<IpNet>,
    /// What is reached through the tunnel; there is nothing else.
    pub routes: Vec<IpNet>,
    /// Who resolves names.
    pub dns: Vec<IpAddr>,
    /// Where short names are looked for.
    pub search_domains: Vec<String>,
}

/// More than the largest file that is read could fill.
const BYTES_MAX: u32 = 64 << 20;

impl Layout {
    /// What `file` says.
    pub fn of(file: &WgQuick, mtu_bytes: u32) -> Self {
        let mut routes: Vec<IpNet> =
            file.peers.iter().flat_map(|peer| &peer.allowed_ips).map(IpNet::trunc).collect();
        routes.sort();
        routes.dedup();
        Self {
            mtu_bytes,
            addresses: file.interface.addresses.clone(),
            routes,
            dns: file.interface.dns.clone(),
            search_domains: file.interface.search_domains.clone(),
        }
    }

    /// The same without what needs IPv6.
    pub fn without_ipv6(mut self) -> Self {
        self.addresses.retain(|net| net.addr().is_ipv4());
        self.routes.retain(|net| net.addr().is_ipv4());
        self
    }

    /// Whether anything of it needs IPv6.
    pub fn has_ipv6(&self) -> bool {
        self.addresses.iter().chain(&self.routes).any(|net| net.addr().is_ipv6())
    }

    /// The DNS servers that no route leads to.
    pub fn unreachable_dns(&self) -> impl Iterator<Item = &IpAddr> {
        let reached = |server: &IpAddr| self.routes.iter().any(|net| net.contains(server));
        self.dns.iter().filter(move |server| !reached(server))
    }

    /// The loopback device and the tunnel.
    pub fn links(&self) -> [Link; 2] {
        let link = |name: &str, mtu_bytes| Link { name: name.to_owned(), mtu_bytes, up: true };
        [link("lo", None), link(INTERFACE, Some(self.mtu_bytes))]
    }

    /// The addresses of the tunnel.
    pub fn link_addresses(&self) -> Vec<Address> {
        let address = |address: &IpNet| Address { link: INTERFACE.to_owned(), address: *address };
        self.addresses.iter().map(address).collect()
    }

    /// The routes into the tunnel, without those that come with its addresses.
    pub fn link_routes(&self) -> Vec<Route> {
        let by_address = |net: &IpNet| self.addresses.iter().any(|address| address.trunc() == *net);
        let route = |destination: &IpNet| Route {
            destination: *destination,
            hop: Hop::Link(INTERFACE.to_owned()),
            table: MAIN_TABLE,
            metric: None,
        };
        self.routes.iter().filter(|net| !by_address(net)).map(route).collect()
    }

    /// Sends it to the other process.
    ///
    /// # Errors
    /// The other process ended.
    pub fn send(&self, mut socket: &UnixStream) -> anyhow::Result<()> {
        let text = serde_json::to_vec(self)?;
        let length = u32::try_from(text.len()).ok().filter(|length| *length <= BYTES_MAX);
        let length = length.context("the file has too many allowed IPs")?;
        socket.write_all(&length.to_be_bytes())?;
        Ok(socket.write_all(&text)?)
    }

    /// Waits for it; `None` when the other process ended instead.
    ///
    /// # Errors
    /// What came is no layout.
    pub fn receive(socket: &mut UnixStream) -> anyhow::Result<Option<Self>> {
        let mut length = [0; 4];
        match socket.read_exact(&mut length) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
            outcome => outcome.context("cannot hear from the tunnel")?,
        }
        let length = u32::from_be_bytes(length).min(BYTES_MAX);
        let mut text = Vec::new();
        socket.take(length.into()).read_to_end(&mut text).context("cannot hear from the tunnel")?;
        Ok(Some(serde_json::from_slice(&text).context("the tunnel said nonsense")?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout() -> Layout {
        Layout {
            mtu_bytes: 1420,
            addresses: vec!["10.86.0.2/24".parse().unwrap(), "fd86::2/64".parse().unwrap()],
            routes: ["10.86.0.0/24", "192.0.2.0/24", "::/0"].map(|net| net.parse().unwrap()).to_vec(),
            dns: ["192.0.2.53", "203.0.113.53"].map(|server| server.parse().unwrap()).to_vec(),
            search_domains: vec!["example.org".to_owned()],
        }
    }

    #[test]
    fn a_layout_arrives_as_it_was_sent_and_an_end_is_no_layout() {
        let (near, mut far) = UnixStream::pair().unwrap();
        layout().send(&near).unwrap();
        assert_eq!(Layout::receive(&mut far).unwrap(), Some(layout()));
        drop(near);
        assert_eq!(Layout::receive(&mut far).unwrap(), None);
    }

    #[test]
    fn the_network_of_an_address_gets_no_second_route() {
        let routes = layout().link_routes();
        let destinations: Vec<String> = routes.iter().map(|route| route.destination.to_string()).collect();
        assert_eq!(destinations, ["192.0.2.0/24", "::/0"]);
    }

    #[test]
    fn a_resolver_outside_of_the_tunnel_is_noticed() {
        assert_eq!(layout().unreachable_dns().collect::<Vec<_>>(), [&layout().dns[1]]);
    }

    #[test]
    fn without_ipv6_only_ipv4_is_left() {
        assert!(layout().has_ipv6());
        let rest = layout().without_ipv6();
        assert!(!rest.has_ipv6());
        assert_eq!((rest.addresses.len(), rest.routes.len()), (1, 2));
    }
}

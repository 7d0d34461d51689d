//! What others do to the network of this host, as the kernel tells it.
//!
//! ```text
//!   rtnetlink: links, addresses, routes, rules ─┐
//!                                               ├─► HostEvent ─► whoever watches
//!   nfnetlink: nftables ────────────────────────┤
//!   inotify: resolv.conf ───────────────────────┘
//! ```
//!
//! Our own changes are told as well: who acts on an event looks first whether there is anything to do.

use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;
use std::time::Instant;

use ipnet::IpNet;
use netlink_packet_core::{NetlinkBuffer, NetlinkMessage, NetlinkPayload};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::LinkMessage;
use netlink_packet_route::route::RouteMessage;
use netlink_sys::protocols::{NETLINK_NETFILTER, NETLINK_ROUTE};
use netlink_sys::{Socket, SocketAddr};

use crate::error::HostError;
use crate::{address, link, route};

/// Something changed on the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HostEvent {
    /// A link is new, or has other settings; `running` is whether it is up and has a carrier.
    Link {
        name: String,
        running: bool,
    },
    LinkGone {
        name: String,
    },
    Address {
        link_index: u32,
        address: IpNet,
        gone: bool,
    },
    Route {
        table: u32,
        destination: IpNet,
        gateway: Option<IpAddr>,
        gone: bool,
    },
    Rule {
        gone: bool,
    },
    /// A transaction of nftables touched this table, of whatever family.
    Firewall {
        table: String,
        /// The last it did there was to take something away.
        cut: bool,
    },
    /// The file that names the servers of names.
    Resolver {
        since: Instant,
    },
    /// More happened than could be told: look at everything.
    Lost,
}

/// Watches the network namespace of the calling thread, from threads of its own, until `tell` returns `false`.
pub fn watch(tell: impl Fn(HostEvent) -> bool + Send + Clone + 'static) -> Result<(), HostError> {
    let route = open(NETLINK_ROUTE, &ROUTE_GROUPS)?;
    let nftables = open(NETLINK_NETFILTER, &[NFNLGRP_NFTABLES])?;
    let told = tell.clone();
    start("watch-routes", move || {
        follow(&route, |message| read_route(message).into_iter().collect(), &told)
    })?;
    let mut transaction = Transaction::default();
    start("watch-firewall", move || follow(&nftables, |message| transaction.read(message), &tell))
}

/// `RTNLGRP_*` of linux/rtnetlink.h: link, addresses, routes and rules, of IPv4 and of IPv6.
const ROUTE_GROUPS: [u32; 7] = [1, 5, 7, 8, 9, 11, 19];
/// linux/netfilter/nfnetlink.h
const NFNLGRP_NFTABLES: u32 = 7;
const BUFFER_BYTES: u32 = 1 << 20;

fn open(protocol: isize, groups: &[u32]) -> Result<Socket, HostError> {
    let open = || {
        let mut socket = Socket::new(protocol)?;
        socket.bind(&SocketAddr::new(0, 0))?;
        socket.set_rx_buf_sz(BUFFER_BYTES)?;
        groups.iter().try_for_each(|group| socket.add_membership(*group))?;
        Ok(socket)
    };
    open().map_err(|error| HostError::kernel("watch the host's network", error))
}

pub(crate) fn start(name: &str, run: impl FnOnce() + Send + 'static) -> Result<(), HostError> {
    let thread = std::thread::Builder::new().name(name.to_owned()).spawn(run);
    thread.map(drop).map_err(|error| HostError::kernel("watch the host's network", error))
}

fn follow(socket: &Socket, mut read: impl FnMut(&[u8]) -> Vec<HostEvent>, tell: &impl Fn(HostEvent) -> bool) {
    const ENOBUFS: i32 = 105;
    loop {
        let datagram = match socket.recv_from_full() {
            Ok((datagram, _)) => datagram,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) if error.raw_os_error() == Some(ENOBUFS) => match tell(HostEvent::Lost) {
                true => continue,
                false => return,
            },
            Err(error) => {
                tracing::error!("the host's network is no longer watched: {error}");
                return;
            }
        };
        if !messages(&datagram).flat_map(&mut read).all(tell) {
            return;
        }
    }
}

/// The messages of a datagram, each with its header.
fn messages(datagram: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = datagram;
    std::iter::from_fn(move || {
        let length = NetlinkBuffer::new_checked(rest).ok()?.length() as usize;
        let message = rest.get(..length)?;
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(message)
    })
}

fn read_route(message: &[u8]) -> Option<HostEvent> {
    let message = NetlinkMessage::<RouteNetlinkMessage>::deserialize(message).ok()?;
    let NetlinkPayload::InnerMessage(message) = message.payload else { return None };
    match message {
        RouteNetlinkMessage::NewLink(it) => link_event(&it, false),
        RouteNetlinkMessage::DelLink(it) => link_event(&it, true),
        RouteNetlinkMessage::NewAddress(it) => address_event(&address::Found::read(&it)?, false),
        RouteNetlinkMessage::DelAddress(it) => address_event(&address::Found::read(&it)?, true),
        RouteNetlinkMessage::NewRoute(it) => route_event(&it, false),
        RouteNetlinkMessage::DelRoute(it) => route_event(&it, true),
        RouteNetlinkMessage::NewRule(_) => Some(HostEvent::Rule { gone: false }),
        RouteNetlinkMessage::DelRule(_) => Some(HostEvent::Rule { gone: true }),
        _ => None,
    }
}

fn link_event(message: &LinkMessage, gone: bool) -> Option<HostEvent> {
    let found = link::Found::read(message)?;
    Some(match gone {
        true => HostEvent::LinkGone { name: found.name },
        false => HostEvent::Link { name: found.name, running: found.running },
    })
}

fn address_event(found: &address::Found, gone: bool) -> Option<HostEvent> {
    Some(HostEvent::Address { link_index: found.index, address: found.address, gone })
}

fn route_event(message: &RouteMessage, gone: bool) -> Option<HostEvent> {
    let route::Found { table, destination, gateway, .. } = route::Found::read(message)?;
    Some(HostEvent::Route { table, destination, gateway, gone })
}

/// What a transaction of nftables has done so far. The kernel tells it step by step, and then that it is complete.
#[derive(Debug, Default)]
struct Transaction(BTreeMap<String, bool>);

impl Transaction {
    fn read(&mut self, message: &[u8]) -> Vec<HostEvent> {
        match read_nftables(message) {
            Some(Step::Touched { table, cut }) => {
                self.0.insert(table, cut);
                Vec::new()
            }
            Some(Step::Complete) => std::mem::take(&mut self.0)
                .into_iter()
                .map(|(table, cut)| HostEvent::Firewall { table, cut })
                .collect(),
            None => Vec::new(),
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Step {
    Touched { table: String, cut: bool },
    Complete,
}

/// The table that a message of nftables is about: its first attribute, whatever the message is (linux/netfilter/
/// nf_tables.h: `NFTA_TABLE_NAME`, `NFTA_CHAIN_TABLE`, `NFTA_RULE_TABLE`, `NFTA_SET_TABLE` are all 1). Elements of
/// sets come and go by themselves.
fn read_nftables(message: &[u8]) -> Option<Step> {
    const NFNL_SUBSYS_NFTABLES: u8 = 10;
    const NEW_GENERATION: u8 = 15;
    const HEADERS_BYTES: usize = 16 + 4;
    let (kind, subsystem) = (*message.get(4)?, *message.get(5)?);
    if subsystem != NFNL_SUBSYS_NFTABLES {
        return None;
    }
    let cut = match kind {
        NEW_GENERATION => return Some(Step::Complete),
        // NEWTABLE, NEWCHAIN, NEWRULE, NEWSET
        0 | 3 | 6 | 9 => false,
        // DELTABLE, DELCHAIN, DELRULE, DELSET
        2 | 5 | 8 | 11 => true,
        _ => return None,
    };
    let mut attributes = message.get(HEADERS_BYTES..)?;
    while let Some((header, _)) = attributes.split_first_chunk::<4>() {
        let length = usize::from(u16::from_ne_bytes([header[0], header[1]]));
        let number = u16::from_ne_bytes([header[2], header[3]]) & 0x3fff;
        let value = attributes.get(4..length)?;
        if number == 1 {
            let text = value.strip_suffix(&[0]).unwrap_or(value);
            return Some(Step::Touched { table: String::from_utf8_lossy(text).into_owned(), cut });
        }
        attributes = attributes.get(length.max(4).next_multiple_of(4)..)?;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nft_message(kind: u8, attributes: &[u8]) -> Vec<u8> {
        let mut message = vec![0; 20];
        message[4..6].copy_from_slice(&[kind, 10]);
        message.extend(attributes);
        message
    }

    const NAME: [u8; 16] = [8, 0, 3, 0, 1, 2, 3, 4, 6, 0, 1, 0, b'a', 0, 0, 0];

    #[test]
    fn the_table_of_a_message_is_found_and_a_cut_one_is_no_message() {
        let message = nft_message(2, &NAME);
        assert_eq!(read_nftables(&message), Some(Step::Touched { table: "a".into(), cut: true }));
        for cut in 0..message.len() - 2 {
            assert_eq!(read_nftables(&message[..cut]), None, "{cut}");
        }
        assert_eq!(read_nftables(&nft_message(12, &NAME)), None, "what sets learn is no change");
        assert_eq!(read_nftables(&nft_message(2, &[0; 64])), None);
    }

    #[test]
    fn a_transaction_is_told_once_when_it_is_complete_by_what_it_did_last() {
        let mut transaction = Transaction::default();
        let tell = |transaction: &mut Transaction, kinds: &[u8]| {
            let told = kinds.iter().flat_map(|kind| transaction.read(&nft_message(*kind, &NAME)));
            told.collect::<Vec<_>>()
        };
        let event = |cut| [HostEvent::Firewall { table: "a".into(), cut }];
        assert_eq!(tell(&mut transaction, &[8, 5, 2]), []);
        assert_eq!(tell(&mut transaction, &[15]), event(true));
        assert_eq!(tell(&mut transaction, &[15]), [], "a generation is of no table");
        assert_eq!(tell(&mut transaction, &[2, 0, 3, 6, 12, 15]), event(false), "put in its own place");
    }
}

use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;
use netlink_packet_route::AddressFamily;
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::address::{AddressAttribute, AddressHeaderFlags, AddressMessage};
use serde::{Deserialize, Serialize};

use crate::error::HostError;
use crate::guard::Outcome;
use crate::link;
use crate::netlink::Netlink;
use crate::plan::Address;
use crate::sysctl;

/// An address we put on a link.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct MadeAddress {
    #[serde(flatten)]
    address: Address,
    index: u32,
}

impl fmt::Display for MadeAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.address)
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Found {
    pub(crate) index: u32,
    pub(crate) address: IpNet,
    pub(crate) secondary: bool,
}

pub(crate) fn list(netlink: &mut Netlink) -> Result<Vec<Found>, HostError> {
    let items = netlink
        .dump(RouteNetlinkMessage::GetAddress(AddressMessage::default()))
        .map_err(|error| HostError::kernel("list the addresses", error))?;
    let read = |item: &RouteNetlinkMessage| match item {
        RouteNetlinkMessage::NewAddress(address) => Found::read(address),
        _ => None,
    };
    Ok(items.iter().filter_map(read).collect())
}

pub(crate) fn prepare(netlink: &mut Netlink, address: &Address) -> Result<Option<MadeAddress>, HostError> {
    let link = link::need(netlink, &address.link, format!("add the address {address}"))?;
    let there = list(netlink)?.iter().any(|it| it.index == link.index && it.address == address.address);
    Ok((!there).then(|| MadeAddress { address: address.clone(), index: link.index }))
}

pub(crate) fn make(netlink: &mut Netlink, made: &MadeAddress) -> Result<(), HostError> {
    let doing = format!("add the address {}", made.address);
    let Err(error) = netlink.create(RouteNetlinkMessage::NewAddress(message(made))) else { return Ok(()) };
    let key = format!("net/ipv6/conf/{}/disable_ipv6", made.address.link);
    let ipv6_off =
        made.address.address.addr().is_ipv6() && sysctl::read(&key).is_ok_and(|value| value == "1");
    Err(if ipv6_off { HostError::Ipv6Off { doing, key } } else { HostError::kernel(doing, error) })
}

pub(crate) fn undo(netlink: &mut Netlink, made: &MadeAddress) -> Result<Outcome, HostError> {
    let ours = made.address.address;
    let on_link: Vec<Found> = list(netlink)?.into_iter().filter(|it| it.index == made.index).collect();
    if !on_link.iter().any(|it| it.address == ours) {
        return Ok(Outcome::Gone);
    }
    // The kernel deletes the secondaries of a subnet with its primary, and they would be somebody else's.
    let others = on_link.iter().any(|it| it.secondary && ours.contains(&it.address) && it.address != ours);
    let promote = format!("net/ipv4/conf/{}/promote_secondaries", made.address.link);
    let restore = match others {
        true => sysctl::exchange(&promote, "1").ok(),
        false => None,
    };
    let deleted = netlink.set(RouteNetlinkMessage::DelAddress(message(made)));
    if let Some(old) = restore {
        sysctl::write(&promote, &old)?;
    }
    match deleted {
        Ok(()) => Ok(Outcome::Undone),
        Err(error) if is_gone(&error) => Ok(Outcome::Gone),
        Err(error) => Err(HostError::kernel(format!("remove the address {}", made.address), error)),
    }
}

fn is_gone(error: &std::io::Error) -> bool {
    const ENODEV: i32 = 19;
    const EADDRNOTAVAIL: i32 = 99;
    matches!(error.raw_os_error(), Some(ENODEV | EADDRNOTAVAIL))
}

fn message(made: &MadeAddress) -> AddressMessage {
    let address = made.address.address;
    let mut message = AddressMessage::default();
    message.header.family = match address {
        IpNet::V4(_) => AddressFamily::Inet,
        IpNet::V6(_) => AddressFamily::Inet6,
    };
    message.header.prefix_len = address.prefix_len();
    message.header.index = made.index;
    message.attributes =
        vec![AddressAttribute::Local(address.addr()), AddressAttribute::Address(address.addr())];
    message
}

impl Found {
    pub(crate) fn read(message: &AddressMessage) -> Option<Found> {
        let mut local: Option<IpAddr> = None;
        let mut peer: Option<IpAddr> = None;
        for attribute in &message.attributes {
            match attribute {
                AddressAttribute::Local(it) => local = Some(*it),
                AddressAttribute::Address(it) => peer = Some(*it),
                _ => {}
            }
        }
        let address = IpNet::new(local.or(peer)?, message.header.prefix_len).ok()?;
        let secondary =
            address.addr().is_ipv4() && message.header.flags.contains(AddressHeaderFlags::Secondary);
        Some(Found { index: message.header.index, address, secondary })
    }
}

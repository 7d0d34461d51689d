use std::fmt;
use std::io;

use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{LinkAttribute, LinkFlags, LinkMessage};
use serde::{Deserialize, Serialize};

use crate::error::HostError;
use crate::guard::Outcome;
use crate::netlink::Netlink;
use crate::plan::Link;

const ENODEV: i32 = 19;

/// The index of an interface.
pub fn link_index(name: &str) -> Option<u32> {
    find(&mut Netlink::open().ok()?, name).ok()?.map(|it| it.index)
}

/// The name of the interface with this index.
pub fn link_name(index: u32) -> Option<String> {
    list(&mut Netlink::open().ok()?).ok()?.into_iter().find(|it| it.index == index).map(|it| it.name)
}

/// The interfaces that are up and carry Ethernet frames.
pub fn ethernet_links() -> Vec<String> {
    const ARPHRD_ETHER: &str = "1";
    let is_ethernet = |name: &str| {
        let kind = std::fs::read_to_string(format!("/sys/class/net/{name}/type"));
        kind.is_ok_and(|kind| kind.trim() == ARPHRD_ETHER)
    };
    let links = Netlink::open().and_then(|mut netlink| list(&mut netlink)).unwrap_or_default();
    links.into_iter().filter(|it| it.up && is_ethernet(&it.name)).map(|it| it.name).collect()
}

/// Whether an interface of this name is in the current network namespace.
pub fn link_exists(name: &str) -> Result<bool, HostError> {
    Ok(find(&mut Netlink::open()?, name)?.is_some())
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Found {
    pub(crate) index: u32,
    pub(crate) name: String,
    pub(crate) mtu_bytes: u32,
    pub(crate) up: bool,
    /// Up, and with a carrier.
    pub(crate) running: bool,
}

/// What was made of a link, and what it was.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct MadeLink {
    link: Link,
    index: u32,
    old_mtu_bytes: u32,
    was_up: bool,
}

impl MadeLink {
    /// The same link with other settings, to be put back to what it was at first.
    pub(crate) fn again(&self, link: &Link) -> MadeLink {
        MadeLink { link: link.clone(), ..*self }
    }
}

impl fmt::Display for MadeLink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.link)
    }
}

pub(crate) fn find(netlink: &mut Netlink, name: &str) -> Result<Option<Found>, HostError> {
    let mut ask = LinkMessage::default();
    ask.attributes.push(LinkAttribute::IfName(name.to_owned()));
    match netlink.get(RouteNetlinkMessage::GetLink(ask)) {
        Ok(RouteNetlinkMessage::NewLink(found)) => Ok(Found::read(&found)),
        Ok(_) => Ok(None),
        Err(error) if error.raw_os_error() == Some(ENODEV) => Ok(None),
        Err(error) => Err(HostError::kernel(format!("look at the interface {name}"), error)),
    }
}

pub(crate) fn need(netlink: &mut Netlink, name: &str, doing: String) -> Result<Found, HostError> {
    find(netlink, name)?.ok_or_else(|| HostError::LinkMissing { doing, link: name.to_owned() })
}

pub(crate) fn list(netlink: &mut Netlink) -> Result<Vec<Found>, HostError> {
    let items = netlink
        .dump(RouteNetlinkMessage::GetLink(LinkMessage::default()))
        .map_err(|error| HostError::kernel("list the interfaces", error))?;
    let read = |item: &RouteNetlinkMessage| match item {
        RouteNetlinkMessage::NewLink(link) => Found::read(link),
        _ => None,
    };
    Ok(items.iter().filter_map(read).collect())
}

pub(crate) fn prepare(netlink: &mut Netlink, link: &Link) -> Result<Option<MadeLink>, HostError> {
    let found = need(netlink, &link.name, format!("set up {}", link.name))?;
    let as_wanted = link.mtu_bytes.is_none_or(|mtu| mtu == found.mtu_bytes) && (found.up || !link.up);
    Ok((!as_wanted).then(|| MadeLink {
        link: link.clone(),
        index: found.index,
        old_mtu_bytes: found.mtu_bytes,
        was_up: found.up,
    }))
}

pub(crate) fn make(netlink: &mut Netlink, made: &MadeLink) -> Result<(), HostError> {
    let set = |netlink: &mut Netlink| -> io::Result<()> {
        if let Some(mtu) = made.link.mtu_bytes {
            set_mtu(netlink, made.index, mtu)?;
        }
        if made.link.up { set_up(netlink, made.index, true) } else { Ok(()) }
    };
    set(netlink).map_err(|error| HostError::kernel(format!("set up {}", made.link), error))
}

pub(crate) fn undo(netlink: &mut Netlink, made: &MadeLink) -> Result<Outcome, HostError> {
    let name = &made.link.name;
    let found = match find(netlink, name)? {
        Some(found) if found.index == made.index => found,
        _ => return Ok(Outcome::Gone),
    };
    let Link { mtu_bytes, up, .. } = made.link;
    let lower = up && !made.was_up && found.up;
    let restore = mtu_bytes.filter(|mtu| *mtu == found.mtu_bytes && *mtu != made.old_mtu_bytes);
    let set = |netlink: &mut Netlink| -> io::Result<()> {
        if lower {
            set_up(netlink, made.index, false)?;
        }
        match restore {
            Some(_) => set_mtu(netlink, made.index, made.old_mtu_bytes),
            None => Ok(()),
        }
    };
    match set(netlink) {
        Ok(()) => {}
        Err(error) if error.raw_os_error() == Some(ENODEV) => return Ok(Outcome::Gone),
        Err(error) => return Err(HostError::kernel(format!("restore {name}"), error)),
    }
    match mtu_bytes {
        Some(ours) if ours != found.mtu_bytes && found.mtu_bytes != made.old_mtu_bytes => {
            let why = format!("the mtu of {name} is now {}, no longer our {ours}", found.mtu_bytes);
            Ok(Outcome::LeftAlone(why))
        }
        _ if lower || restore.is_some() => Ok(Outcome::Undone),
        _ => Ok(Outcome::Gone),
    }
}

/// Brings a link up that somebody took down.
pub(crate) fn raise(netlink: &mut Netlink, made: &MadeLink) -> Result<(), HostError> {
    let up = set_up(netlink, made.index, true);
    up.map_err(|error| HostError::kernel(format!("bring {} up", made.link.name), error))
}

fn set_mtu(netlink: &mut Netlink, index: u32, mtu_bytes: u32) -> io::Result<()> {
    let mut message = LinkMessage::default();
    message.header.index = index;
    message.attributes.push(LinkAttribute::Mtu(mtu_bytes));
    netlink.set(RouteNetlinkMessage::SetLink(message))
}

fn set_up(netlink: &mut Netlink, index: u32, up: bool) -> io::Result<()> {
    let mut message = LinkMessage::default();
    message.header.index = index;
    message.header.change_mask = LinkFlags::Up;
    message.header.flags = if up { LinkFlags::Up } else { LinkFlags::empty() };
    netlink.set(RouteNetlinkMessage::SetLink(message))
}

impl Found {
    pub(crate) fn read(message: &LinkMessage) -> Option<Found> {
        let mut name = None;
        let mut mtu_bytes = 0;
        for attribute in &message.attributes {
            match attribute {
                LinkAttribute::IfName(it) => name = Some(it.clone()),
                LinkAttribute::Mtu(it) => mtu_bytes = *it,
                _ => {}
            }
        }
        let up = message.header.flags.contains(LinkFlags::Up);
        let running = message.header.flags.contains(LinkFlags::Up | LinkFlags::LowerUp);
        Some(Found { index: message.header.index, name: name?, mtu_bytes, up, running })
    }
}

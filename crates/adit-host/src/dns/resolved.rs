//! systemd-resolved, by its interface on the system bus (org.freedesktop.resolve1(5)): the tunnel's servers belong to
//! its link, and `~.` sends every name to them.

use std::net::IpAddr;

use crate::bus::{Bus, BusError, Object, Value};
use crate::error::HostError;
use crate::guard::Outcome;
use crate::link::link_index;
use crate::plan::Dns;

pub(super) const SERVICE: &str = "org.freedesktop.resolve1";
const MANAGER: Object = Object {
    service: SERVICE,
    path: "/org/freedesktop/resolve1",
    interface: "org.freedesktop.resolve1.Manager",
};

const AF_INET: i32 = 2;
const AF_INET6: i32 = 10;

pub(super) fn make(dns: &Dns) -> Result<(), HostError> {
    let doing = format!("set the DNS servers of {} in systemd-resolved", dns.link);
    let Some(index) = index_of(&dns.link) else {
        return Err(HostError::LinkMissing { doing, link: dns.link.clone() });
    };
    let everything = Value::Struct(vec![Value::from("."), Value::Bool(true)]);
    let searched =
        dns.search.iter().map(|it| Value::Struct(vec![Value::from(it.as_str()), Value::Bool(false)]));
    let domains = Value::Array("(sb)".to_owned(), [everything].into_iter().chain(searched).collect());
    let servers = Value::Array("(iay)".to_owned(), dns.servers.iter().copied().map(server).collect());
    let tell = || -> Result<(), BusError> {
        let mut bus = Bus::open()?;
        bus.call(MANAGER, "SetLinkDNS", &[Value::Int(index), servers.clone()])?;
        bus.call(MANAGER, "SetLinkDomains", &[Value::Int(index), domains.clone()])?;
        bus.call(MANAGER, "SetLinkDefaultRoute", &[Value::Int(index), Value::Bool(true)])?;
        // What others said of a name is not what the tunnel's servers say.
        bus.call(MANAGER, "FlushCaches", &[])?;
        Ok(())
    };
    tell().map_err(|error| HostError::bus(doing, "systemd-resolved", error))
}

pub(super) fn undo(dns: &Dns) -> Result<Outcome, HostError> {
    // systemd-resolved forgets a link's servers with the link.
    let Some(index) = index_of(&dns.link) else { return Ok(Outcome::Gone) };
    let mut bus = match Bus::open() {
        Ok(bus) => bus,
        Err(_) => return Ok(Outcome::Gone),
    };
    if !bus.has(SERVICE) {
        return Ok(Outcome::Gone);
    }
    let doing = "give DNS back to systemd-resolved".to_owned();
    bus.call(MANAGER, "RevertLink", &[Value::Int(index)])
        .and_then(|_| bus.call(MANAGER, "FlushCaches", &[]))
        .map_err(|error| HostError::bus(doing, "systemd-resolved", error))?;
    Ok(Outcome::Undone)
}

fn server(address: IpAddr) -> Value {
    let (family, bytes) = match address {
        IpAddr::V4(it) => (AF_INET, it.octets().to_vec()),
        IpAddr::V6(it) => (AF_INET6, it.octets().to_vec()),
    };
    let bytes = bytes.into_iter().map(Value::Byte).collect();
    Value::Struct(vec![Value::Int(family), Value::Array("y".to_owned(), bytes)])
}

fn index_of(link: &str) -> Option<i32> {
    i32::try_from(link_index(link)?).ok()
}

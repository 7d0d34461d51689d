//! NetworkManager, by its interface on the system bus: its global DNS configuration takes the place of what its
//! connections say. It writes resolv.conf, or tells its own resolver, as it does for those; and it remembers the
//! configuration over a restart, so that taking it back is ours to do.

use crate::bus::{Bus, BusError, Object, Value};
use crate::error::HostError;
use crate::guard::Outcome;
use crate::plan::Dns;

pub(super) const SERVICE: &str = "org.freedesktop.NetworkManager";
const INTERFACE: &str = "org.freedesktop.NetworkManager";
const PROPERTY: &str = "GlobalDnsConfiguration";
const PROPERTIES: Object = Object {
    service: SERVICE,
    path: "/org/freedesktop/NetworkManager",
    interface: "org.freedesktop.DBus.Properties",
};

/// What is configured now.
pub(super) fn settings(dns: &Dns) -> Result<Value, HostError> {
    let now = Bus::open().and_then(|mut bus| get(&mut bus));
    now.map_err(|error| HostError::bus(doing(dns), "NetworkManager", error))
}

pub(super) fn make(dns: &Dns) -> Result<(), HostError> {
    let servers: Vec<String> = dns.servers.iter().map(ToString::to_string).collect();
    let all = Value::dictionary([("servers", Value::texts(&servers))]);
    let ours = Value::dictionary([
        ("searches", Value::texts(&dns.search)),
        ("domains", Value::dictionary([("*", all)])),
    ]);
    let told = Bus::open().and_then(|mut bus| set(&mut bus, ours));
    told.map_err(|error| HostError::bus(doing(dns), "NetworkManager", error))
}

pub(super) fn undo(dns: &Dns, old: &Value) -> Result<Outcome, HostError> {
    let restore = || -> Result<Outcome, BusError> {
        let mut bus = Bus::open()?;
        let now = get(&mut bus)?;
        if now == *old {
            return Ok(Outcome::Gone);
        }
        let servers = dns.servers.iter().map(ToString::to_string).collect();
        if servers_of(&now) != Some(servers) {
            let why = "the global DNS configuration of NetworkManager was changed by somebody else meanwhile";
            return Ok(Outcome::LeftAlone(why.to_owned()));
        }
        set(&mut bus, old.clone()).map(|()| Outcome::Undone)
    };
    restore().map_err(|error| {
        HostError::bus("give DNS back to NetworkManager".to_owned(), "NetworkManager", error)
    })
}

fn doing(dns: &Dns) -> String {
    format!("set the DNS servers of {} in NetworkManager", dns.link)
}

fn get(bus: &mut Bus) -> Result<Value, BusError> {
    let answer = bus.call(PROPERTIES, "Get", &[Value::from(INTERFACE), Value::from(PROPERTY)])?;
    match answer.into_iter().next() {
        Some(Value::Variant(value)) => Ok(*value),
        _ => Err(BusError::Refused { name: String::new(), text: format!("{PROPERTY} has no value") }),
    }
}

fn set(bus: &mut Bus, value: Value) -> Result<(), BusError> {
    let arguments = [Value::from(INTERFACE), Value::from(PROPERTY), Value::Variant(Box::new(value))];
    bus.call(PROPERTIES, "Set", &arguments).map(drop)
}

/// The servers for every name.
fn servers_of(settings: &Value) -> Option<Vec<String>> {
    let Value::Array(_, servers) = settings.entry("domains")?.entry("*")?.entry("servers")? else {
        return None;
    };
    servers.iter().map(|it| it.clone().into_text()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_servers_for_every_name_are_found() {
        let all = Value::dictionary([
            ("options", Value::texts::<&str>(&[])),
            ("servers", Value::texts(&["10.0.0.1"])),
        ]);
        let settings = Value::dictionary([("domains", Value::dictionary([("*", all)]))]);
        assert_eq!(servers_of(&settings), Some(vec!["10.0.0.1".to_owned()]));
        assert_eq!(servers_of(&Value::dictionary([])), None);
    }
}

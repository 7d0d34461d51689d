use std::net::SocketAddr;
use std::time::Duration;

use adit_proto::event::Command;
use adit_proto::key::PublicKey;

use super::Dial;
use crate::client::Reached;
use crate::config::wgquick::WgQuick;
use crate::config::{CarrierChoice, ClientSettings};
use crate::driver::Driver;
use crate::endpoint::{self, HostPort, ResolveError};
use crate::forwarder::Upstream;
use crate::stream::{Link, Proxy, usual_path};

/// A gateway, and how to reach it.
#[derive(Clone, Debug)]
pub struct Target {
    /// Its key.
    pub peer: PublicKey,
    /// Where datagrams go.
    pub udp: SocketAddr,
    /// How connections go.
    pub link: Link,
    /// Whether they go to the host that datagrams go to.
    pub same_host: bool,
}

const RESOLVE_TIMEOUT: Duration = Duration::from_secs(10);

impl Target {
    /// The mark of what goes to the gateway, and whom to ask for names beside the tunnel.
    pub(crate) fn go_beside(&mut self, servers: &Upstream) {
        self.link.fwmark = servers.fwmark;
        if let Some(proxy) = &mut self.link.via {
            proxy.beside.clone_from(servers);
        }
    }

    /// The gateway takes datagrams at another address now; connections follow when they go to the same host.
    pub(super) fn move_to(&mut self, address: SocketAddr) {
        self.udp = address;
        if self.same_host {
            self.link.address.set_ip(address.ip());
        }
    }
}

/// The gateways of a profile that the carrier is to be chosen for. Names are resolved while no route leads elsewhere.
///
/// # Errors
/// A name has no address.
pub(crate) fn targets(
    file: &WgQuick,
    reached: &[Reached],
    settings: &ClientSettings,
) -> Result<Vec<Target>, ResolveError> {
    if settings.carrier == CarrierChoice::Udp {
        return Ok(Vec::new());
    }
    let via = settings.via.clone().map(|mut via| {
        via.password.clone_from(&settings.via_password);
        via
    });
    let elsewhere = match &settings.stream_endpoint {
        Some(name) if via.is_some() => Some((name, Vec::new())),
        Some(name) => Some((name, endpoint::resolve(name, RESOLVE_TIMEOUT)?)),
        None => None,
    };
    let mut targets = Vec::new();
    for it in reached {
        let section = file.peers.iter().find(|peer| peer.public_key == it.peer);
        let Some(name) = section.and_then(|section| section.endpoint.clone()) else { continue };
        let datagrams_to = name.host.clone();
        let (name, address): (HostPort, SocketAddr) = match &elsewhere {
            Some((name, known)) => ((*name).clone(), endpoint::preferred(known).unwrap_or(it.current)),
            None => (name, it.current),
        };
        let same_host = name.host == datagrams_to && !it.by_proxy;
        targets.push(Target {
            peer: it.peer,
            udp: it.current,
            link: Link {
                name,
                address,
                fwmark: 0,
                via: via.clone().map(|via| Proxy::new(via, it.known.clone())),
                sni: settings.sni.clone(),
                verify: settings.tls_verify,
                pin: settings.tls_pin.clone(),
                path: settings.stream_path.clone().unwrap_or_else(|| usual_path(&it.peer)),
            },
            same_host,
        });
    }
    Ok(targets)
}

/// What is in effect of what was said: a proxy carries no datagrams, and whoever names one wants to go through it.
pub(crate) fn choice_of(settings: &ClientSettings) -> CarrierChoice {
    match settings.carrier {
        CarrierChoice::Auto if settings.via.is_some() => CarrierChoice::Tls,
        choice => choice,
    }
}

/// The proxy that connects us, and is told the names of gateways.
pub(crate) fn proxy_of(settings: &ClientSettings) -> Option<&HostPort> {
    let via = settings.via.as_ref().filter(|_| choice_of(settings) != CarrierChoice::Udp);
    via.map(|via| &via.proxy)
}

/// The gateways that may be sent datagrams.
pub(crate) fn by_datagrams<'r>(settings: &ClientSettings, reached: &'r [Reached]) -> &'r [Reached] {
    match choice_of(settings) {
        CarrierChoice::Auto | CarrierChoice::Udp => reached,
        CarrierChoice::Tcp | CarrierChoice::Tls | CarrierChoice::Wss => &[],
    }
}

/// Begins with the handshakes, over UDP or over what the dial finds.
pub(crate) fn begin(
    driver: &Driver,
    settings: &ClientSettings,
    reached: &[Reached],
    targets: Vec<Target>,
) -> std::io::Result<Option<Dial>> {
    let initiate = by_datagrams(settings, reached).iter().map(|it| Command::Initiate(it.peer));
    driver.apply(initiate.collect());
    if targets.is_empty() {
        return Ok(None);
    }
    Dial::start(driver, choice_of(settings), targets).map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::resolve_peers;
    use crate::config::wgquick::Hooks;
    use crate::config::{Layers, Source};

    fn targets_of(settings: &str, endpoint: &str) -> Vec<Target> {
        let text = format!(
            "[Interface]\nPrivateKey = eEBhN6cK2cF1bkjZlMVY4XlZ5LkVbPYMa1xgKPYo1Fk=\n{settings}\n[Peer]\n\
             PublicKey = xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg=\nEndpoint = {endpoint}\n"
        );
        let file = WgQuick::parse(&Source::new("x.conf", &text), Hooks::Refused).unwrap();
        let settings = ClientSettings::of_profile(&Layers::default(), &file).unwrap();
        let reached = resolve_peers(&file.peers, &settings).unwrap();
        targets(&file, &reached, &settings).unwrap()
    }

    #[test]
    fn connections_follow_a_new_address_only_where_they_go_to_the_same_host() {
        let moved = "192.0.2.9:51820".parse().unwrap();
        for (elsewhere, after) in [
            ("", "192.0.2.9:51820"),
            ("# adit: stream_endpoint = 192.0.2.1:443", "192.0.2.9:443"),
            ("# adit: stream_endpoint = 198.51.100.7:443", "198.51.100.7:443"),
        ] {
            let mut target = targets_of(elsewhere, "192.0.2.1:51820").remove(0);
            target.move_to(moved);
            assert_eq!((target.udp, target.link.address.to_string().as_str()), (moved, after), "{elsewhere}");
        }
    }

    #[test]
    fn behind_a_proxy_no_name_but_its_own_is_resolved_here() {
        let via = "# adit: via = http://127.0.0.1:3128";
        let elsewhere = format!("{via}\n# adit: stream_endpoint = web.invalid:443");
        for (settings, told) in [(via, "vpn.invalid:51820"), (&elsewhere, "web.invalid:443")] {
            let target = targets_of(settings, "vpn.invalid:51820").remove(0);
            assert_eq!(target.link.name.to_string(), told);
            assert_eq!(target.link.via.unwrap().known(), ["127.0.0.1:3128".parse().unwrap()]);
            assert_eq!(target.link.address.port(), 3128, "the other end of the connection");
        }
    }
}

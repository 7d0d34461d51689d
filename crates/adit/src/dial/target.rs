use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use adit_proto::event::Command;
use adit_proto::key::PublicKey;

use super::Dial;
use crate::client::Reached;
use crate::config::wgquick::WgQuick;
use crate::config::{CarrierChoice, ClientSettings};
use crate::driver::Driver;
use crate::endpoint::{self, HostPort, ResolveError};
use crate::stream::{Link, usual_path};

/// A gateway, and how to reach it.
#[derive(Clone, Debug)]
pub struct Target {
    /// Its key.
    pub peer: PublicKey,
    /// Where datagrams go.
    pub udp: SocketAddr,
    /// How connections go.
    pub link: Link,
}

const RESOLVE_TIMEOUT: Duration = Duration::from_secs(10);

impl Target {
    /// Every address outside that it may be reached by.
    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> + '_ {
        let proxies = self.link.via.iter().flat_map(|(_, addresses)| addresses).map(SocketAddr::ip);
        [self.udp.ip(), self.link.address.ip()].into_iter().chain(proxies)
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
    let via = match &settings.via {
        Some(via) => {
            let mut via = via.clone();
            via.password.clone_from(&settings.via_password);
            Some((via.clone(), endpoint::resolve(&via.proxy, RESOLVE_TIMEOUT)?))
        }
        None => None,
    };
    let elsewhere = match &settings.stream_endpoint {
        Some(name) => Some((name, endpoint::resolve(name, RESOLVE_TIMEOUT)?)),
        None => None,
    };
    let mut targets = Vec::new();
    for it in reached {
        let section = file.peers.iter().find(|peer| peer.public_key == it.peer);
        let Some(name) = section.and_then(|section| section.endpoint.clone()) else { continue };
        let (name, address): (HostPort, SocketAddr) = match &elsewhere {
            Some((name, known)) => ((*name).clone(), endpoint::preferred(known).unwrap_or(it.current)),
            None => (name, it.current),
        };
        targets.push(Target {
            peer: it.peer,
            udp: it.current,
            link: Link {
                name,
                address,
                fwmark: 0,
                via: via.clone(),
                sni: settings.sni.clone(),
                verify: settings.tls_verify,
                pin: settings.tls_pin.clone(),
                path: settings.stream_path.clone().unwrap_or_else(|| usual_path(&it.peer)),
            },
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

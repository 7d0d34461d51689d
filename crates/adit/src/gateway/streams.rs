//! Where the gateway takes connections, and what a client has to know for that.

use std::net::{Ipv6Addr, SocketAddr};

use adit_host::{Listener, Transport};

use crate::config::Config;
use crate::config::stream::StreamListen;
use crate::home::Home;
use crate::stream::{Certificate, DoorPlan, GivenPin, Recognition, usual_path};

/// The ports that the firewall lets in.
pub(super) fn listeners(config: &Config, port: u16) -> Vec<Listener> {
    let mut listeners = vec![Listener { transport: Transport::Udp, port }];
    for at in stream_addresses(config, port).into_iter().filter(|at| !at.ip().is_loopback()) {
        let listener = Listener { transport: Transport::Tcp, port: at.port() };
        if !listeners.contains(&listener) {
            listeners.push(listener);
        }
    }
    listeners
}

fn stream_addresses(config: &Config, port: u16) -> Vec<SocketAddr> {
    let mut addresses = Vec::new();
    for listen in &config.gateway.stream.listen {
        let at = match listen {
            StreamListen::Same => SocketAddr::from((Ipv6Addr::UNSPECIFIED, port)),
            StreamListen::At(at) => *at,
            StreamListen::Off => return Vec::new(),
        };
        if !addresses.contains(&at) {
            addresses.push(at);
        }
    }
    addresses
}

/// `None` when connections are not taken.
pub(super) fn door_plan(home: &Home, config: &Config, port: u16) -> Option<DoorPlan> {
    let listen = stream_addresses(config, port);
    let usual = || usual_path(&config.gateway.private_key.public_key());
    (!listen.is_empty()).then(|| DoorPlan {
        listen,
        certificate: certificate_of(home, config),
        given_pin: GivenPin::of(home),
        web: config.gateway.stream.web.clone(),
        path: config.gateway.stream.path.clone().unwrap_or_else(usual),
    })
}

fn certificate_of(home: &Home, config: &Config) -> Certificate {
    match config.gateway.stream.certificate.clone() {
        Some((chain, key)) => Certificate::Files { chain, key },
        None => {
            let name =
                config.gateway.endpoint.as_ref().map_or("localhost", |endpoint| endpoint.host.as_str());
            Certificate::SelfMade { file: home.state_dir.join("stream.pem"), name: name.to_owned() }
        }
    }
}

/// What the profile of a client says about the certificate of this gateway, which is noted. One that is not there yet is made.
///
/// # Errors
/// The certificate cannot be read or made.
pub fn stream_offer(home: &Home, config: &Config) -> anyhow::Result<Recognition> {
    let offer = stream_recognition(home, config)?;
    if offer != Recognition::None {
        GivenPin::of(home).note(&offer);
    }
    Ok(offer)
}

/// How clients would recognise this gateway; a certificate that is not there yet is made.
///
/// # Errors
/// The certificate cannot be read or made.
pub fn stream_recognition(home: &Home, config: &Config) -> anyhow::Result<Recognition> {
    if stream_addresses(config, config.gateway.listen_port).is_empty() {
        return Ok(Recognition::None);
    }
    let host = config.gateway.endpoint.as_ref().map(|endpoint| endpoint.host.as_str());
    Recognition::of(&certificate_of(home, config), host)
}

/// What is to be told about the certificate, without making one.
pub fn stream_warning(home: &Home, config: &Config) -> Option<String> {
    if stream_addresses(config, config.gateway.listen_port).is_empty() {
        return None;
    }
    GivenPin::of(home).warning(certificate_of(home, config).pin_if_there().as_deref())
}

//! A wg-quick file of a server as an `adit.toml`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;

use anyhow::bail;
use ipnet::IpNet;
use zeroize::Zeroizing;

use super::Found;
use crate::config::wgquick::{PeerSection, Table, WgQuick};
use crate::config::{Document, InterfaceName, Mtu, Peer};
use crate::home::Home;
use crate::keys;
use crate::state::Lock;

pub(super) fn import(home: &Home, name: &InterfaceName, file: &WgQuick, found: &Found) -> anyhow::Result<()> {
    let path = home.config_file();
    refuse_existing(&path)?;
    if file.interface.table != Table::Auto {
        bail!(
            "a gateway of adit makes its own routes, so `Table` cannot be taken over; remove it from the file"
        );
    }
    let networks = networks_of(&file.interface.addresses, why_gateway(found), &home.flag())?;
    let text = text_of(name, file, &networks, found);
    let mut document = Document::of_text(&path, &text)?;
    for (index, section) in file.peers.iter().enumerate() {
        document.add_peer(&peer_of(section, index, &networks)?)?;
    }
    document.check()?;
    let _lock = Lock::hold(home)?;
    // Another may have made one since.
    refuse_existing(&path)?;
    document.save()?;
    crate::print_line(&format!(
        "imported the gateway as {} with {} peers; `adit gateway{}` runs it. `endpoint` below [gateway] is not known from \
         the file: `adit invite` and `adit peer add` need it",
        path.display(),
        file.peers.len(),
        home.flag()
    ))
}

fn why_gateway(found: &Found) -> &'static str {
    match (found.masquerade, found.forward) {
        (true, _) => "it has MASQUERADE commands",
        (false, true) => "it has FORWARD commands",
        (false, false) => "it has a ListenPort, and no peer has an Endpoint",
    }
}

fn refuse_existing(path: &Path) -> anyhow::Result<()> {
    if path.symlink_metadata().is_ok() {
        bail!(
            "there is a gateway already: {}; move that file away, or choose another --home",
            path.display()
        );
    }
    Ok(())
}

/// One network of each family; the gateway of adit has the first address in it.
fn networks_of(addresses: &[IpNet], why: &str, home_flag: &str) -> anyhow::Result<Vec<IpNet>> {
    let mut networks: Vec<IpNet> = Vec::new();
    for address in addresses {
        let network = address.trunc();
        let first = first_of(&network);
        if address.prefix_len() == address.max_prefix_len() {
            bail!(
                "this file is read as that of a gateway ({why}), but {address} is one address and no network: if it is a \
                 gateway, write its network as {}/24 or the like; if it is a client, take those lines out, or go on with \
                 the file as it is: `adit up FILE.conf --allow-hooks{home_flag}`",
                address.addr()
            );
        }
        if first != address.addr() {
            bail!(
                "a gateway of adit has the first address of its network ({first}), and {address} is not that; give it that \
                 address, or go on with the file as it is: `adit up FILE.conf{home_flag}`"
            );
        }
        if networks.iter().any(|known| known.addr().is_ipv4() == network.addr().is_ipv4()) {
            bail!("a gateway of adit has one network of each family; {network} is one too many");
        }
        networks.push(network);
    }
    if !networks.iter().any(|network| network.addr().is_ipv4()) {
        bail!("a gateway of adit needs an IPv4 network inside, and the file has no such `Address`");
    }
    Ok(networks)
}

fn first_of(network: &IpNet) -> IpAddr {
    match network.network() {
        IpAddr::V4(v4) => Ipv4Addr::from(u32::from(v4).saturating_add(1)).into(),
        IpAddr::V6(v6) => Ipv6Addr::from(u128::from(v6).saturating_add(1)).into(),
    }
}

fn text_of(name: &InterfaceName, file: &WgQuick, networks: &[IpNet], found: &Found) -> Zeroizing<String> {
    let interface = &file.interface;
    let mut lines = Zeroizing::new(String::with_capacity(2048));
    lines.push_str("# Imported from a wg-quick file. `adit check` checks it, `adit gateway` runs it.\n\nconfig_version = 1\n\n[gateway]\n");
    let mut line = |key: &str, value: &str| {
        lines.push_str(key);
        lines.push_str(" = ");
        lines.push_str(value);
        lines.push('\n');
    };
    line("interface", &format!("\"{name}\""));
    line("listen", &interface.listen_port.to_string());
    let key = keys::secret_text(interface.private_key.as_bytes());
    line("private_key", &Zeroizing::new(format!("\"{}\"", key.as_str())));
    for network in networks {
        line(if network.addr().is_ipv4() { "network" } else { "network6" }, &format!("\"{network}\""));
    }
    if let Mtu::Bytes(bytes) = interface.mtu {
        line("mtu", &bytes.to_string());
    }
    if let Some(mark @ 1..) = interface.fwmark {
        line("fwmark", &mark.to_string());
    }
    line("masquerade", if found.masquerade { "true" } else { "false" });
    lines
}

fn peer_of(section: &PeerSection, index: usize, networks: &[IpNet]) -> anyhow::Result<Peer> {
    let name = match &section.name {
        Some(name) => name.clone(),
        None => format!("peer-{}", index + 1).parse()?,
    };
    let (leases, behind): (Vec<IpNet>, Vec<IpNet>) = section.allowed_ips.iter().partition(|net| {
        net.prefix_len() == net.max_prefix_len() && networks.iter().any(|own| own.contains(&net.addr()))
    });
    if leases.is_empty() {
        let networks: Vec<String> = networks.iter().map(ToString::to_string).collect();
        bail!(
            "the peer {} ({name}) has no address in {}; a gateway of adit leases one to each peer",
            keys::public_text(&section.public_key),
            networks.join(" or ")
        );
    }
    let mut peer = Peer::new(name, section.public_key);
    peer.preshared_key = section.preshared_key.clone();
    peer.addresses = leases.iter().map(IpNet::addr).collect();
    peer.extra_allowed_ips = behind;
    peer.suite = section.suite;
    peer.endpoint = section.endpoint.clone();
    peer.persistent_keepalive_secs = section.persistent_keepalive_secs;
    Ok(peer)
}

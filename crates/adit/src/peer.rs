//! `adit peer`: the peers of a gateway, in its `adit.toml`.

use std::fmt::Write as _;
use std::io::{self, Write as _};
use std::net::IpAddr;
use std::process::ExitCode;

use adit_proto::suite::Suite;
use anyhow::{Context, anyhow, bail};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde_json::{Value, json};

use crate::config::diagnostic::did_you_mean;
use crate::config::name::PeerName;
use crate::config::wgquick::{Interface, PeerSection, Table, WgQuick};
use crate::config::{Config, Document, Layers, Mtu, Peer, parse_prefix, parse_suite};
use crate::control;
use crate::endpoint::HostPort;
use crate::home::Home;
use crate::keys;
use crate::private_file;
use crate::state::{Leases, Lock};

/// Keeps the way through a NAT open, so that others reach the client at any time.
const CLIENT_KEEPALIVE_SECS: u16 = 25;

/// What `adit peer add` is told.
#[derive(Clone, Debug, clap::Args)]
pub struct AddArgs {
    /// Name of the new peer: letters, digits or _.-
    pub name: PeerName,
    /// Cipher suite: aes-256-gcm for adit clients, chacha20-poly1305 for any WireGuard app too
    /// [default: aes-256-gcm where this CPU has AES instructions]
    #[arg(long, value_parser = parse_suite)]
    pub suite: Option<Suite>,
    /// Send everything through the tunnel (the default)
    #[arg(long, conflicts_with = "split")]
    pub full_tunnel: bool,
    /// Send only the gateway's networks and these through the tunnel
    #[arg(long, value_name = "CIDR", num_args = 0.., value_delimiter = ',', value_parser = parse_prefix)]
    pub split: Option<Vec<IpNet>>,
    /// DNS servers the client shall use
    #[arg(long, value_name = "IP", value_delimiter = ',')]
    pub dns: Vec<IpAddr>,
}

/// Makes a peer and prints its wg-quick file, alone, on stdout.
///
/// # Errors
/// The name is taken, the network is full, or a file cannot be changed; nothing was changed then.
pub fn add(home: &Home, args: &AddArgs, layers: &Layers) -> anyhow::Result<ExitCode> {
    let lock = Lock::hold(home)?;
    let config = Config::load(home, layers)?;
    if config.peers.iter().any(|peer| peer.name == args.name) {
        return Err(anyhow!(
            "there is a peer `{0}` already; choose another name, or run `adit peer rm {0}{1}` first",
            args.name,
            home.flag()
        ));
    }
    let endpoint = config.gateway.endpoint.clone().with_context(|| {
        let path = home.config_file();
        format!(
            "the client must know where the gateway is: set `endpoint` below [gateway] in {}",
            path.display()
        )
    })?;
    let mut leases = Leases::load(home)?;
    let addresses = leases.next(&config)?;
    let private_key = keys::generate_private()?;
    let preshared_key = keys::generate_preshared()?;
    let suite = args.suite.unwrap_or_else(default_suite);
    let peer = Peer {
        name: args.name.clone(),
        public_key: private_key.public_key(),
        preshared_key: Some(preshared_key.clone()),
        addresses: addresses.clone(),
        extra_allowed_ips: Vec::new(),
        suite,
        endpoint: None,
        persistent_keepalive_secs: 0,
        enabled: true,
    };
    let client = WgQuick {
        interface: Interface {
            private_key,
            addresses: addresses.iter().map(|&address| address.into()).collect(),
            dns: args.dns.clone(),
            search_domains: Vec::new(),
            mtu: Mtu::Auto,
            table: Table::Auto,
            fwmark: None,
            listen_port: 0,
            hooks: Vec::new(),
            save_config: false,
        },
        peers: vec![gateway_section(&config, endpoint, args, suite, preshared_key)?],
    };
    let mut document = Document::open(&home.config_file())?;
    document.add_peer(&peer)?;
    document.check()?;
    private_file::protect_stdout()?;
    leases.save(home)?;
    document.save()?;
    drop(lock);
    let written = io::stdout().write_all(client.to_text().as_bytes()).and_then(|()| io::stdout().flush());
    if let Err(error) = written {
        // The key is lost with the output, so a peer that nobody can be is taken back.
        remove_from_file(home, &args.name)?;
        return Err(error).context("cannot write the client's file to stdout; the peer was not added");
    }
    let list: Vec<String> = addresses.iter().map(ToString::to_string).collect();
    eprintln!("added peer {} with {}; its key is only in this output", args.name, list.join(" and "));
    match suite {
        Suite::Aes256Gcm => eprintln!(
            "it uses aes-256-gcm, which only adit speaks; for a stock WireGuard app add it with --suite chacha20-poly1305"
        ),
        Suite::ChaCha20Poly1305 => {
            eprintln!("it uses chacha20-poly1305, which adit and every WireGuard app speak")
        }
    }
    for failure in tell_gateways(home) {
        eprintln!("warning: {failure}, so {} cannot connect to it yet", args.name);
    }
    Ok(ExitCode::SUCCESS)
}

/// Prints the peers, one per line.
///
/// # Errors
/// The configuration is wrong.
pub fn list(home: &Home, json: bool, layers: &Layers) -> anyhow::Result<ExitCode> {
    let config = Config::load(home, layers)?;
    if json {
        let peers: Vec<Value> = config.peers.iter().map(describe).collect();
        crate::print_line(&json!({"schema": 1, "peers": peers}).to_string())?;
    } else if config.peers.is_empty() {
        eprintln!("there are no peers yet; `adit peer add NAME{}` makes one", home.flag());
    } else {
        crate::print_line(page(&config.peers).trim_end())?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Prints everything about a peer but its secrets.
///
/// # Errors
/// There is no such peer, or the configuration is wrong.
pub fn show(home: &Home, name: &PeerName, json: bool, layers: &Layers) -> anyhow::Result<ExitCode> {
    let config = Config::load(home, layers)?;
    let peer = config.peers.iter().find(|peer| peer.name == *name).ok_or_else(|| unknown(&config, name))?;
    let facts = describe(peer);
    if json {
        let mut page = json!({"schema": 1});
        if let (Value::Object(page), Value::Object(facts)) = (&mut page, facts) {
            page.extend(facts);
        }
        crate::print_line(&page.to_string())?;
    } else {
        let yes_no = |yes: bool| if yes { "yes" } else { "no" };
        let networks: Vec<String> = peer.extra_allowed_ips.iter().map(ToString::to_string).collect();
        let keepalive = match peer.persistent_keepalive_secs {
            0 => "off".to_owned(),
            secs => format!("every {secs} s"),
        };
        let lines = [
            ("name", peer.name.to_string()),
            ("public key", keys::public_text(&peer.public_key)),
            ("preshared key", if peer.preshared_key.is_some() { "(hidden)" } else { "none" }.to_owned()),
            ("addresses", join(&peer.addresses)),
            ("networks", if networks.is_empty() { "none".to_owned() } else { networks.join(", ") }),
            ("suite", peer.suite.to_string()),
            ("endpoint", peer.endpoint.as_ref().map_or("learned".to_owned(), ToString::to_string)),
            ("keepalive", keepalive),
            ("enabled", yes_no(peer.enabled).to_owned()),
        ];
        let mut page = String::new();
        for (label, value) in lines {
            let _ = writeln!(page, "{label:<14} {value}");
        }
        crate::print_line(page.trim_end())?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Removes a peer; a running gateway cuts its sessions.
///
/// # Errors
/// There is no such peer, the file cannot be changed, or a running gateway may still let the peer in.
pub fn remove(home: &Home, name: &PeerName, layers: &Layers) -> anyhow::Result<ExitCode> {
    let config = Config::load(home, layers)?;
    if !config.peers.iter().any(|peer| peer.name == *name) {
        return Err(unknown(&config, name));
    }
    remove_from_file(home, name)?;
    let failures = tell_gateways(home);
    if failures.is_empty() {
        eprintln!("removed peer {name}; its file and key are worth nothing now");
        return Ok(ExitCode::SUCCESS);
    }
    bail!(
        "peer {name} is removed from {}, but it may still connect: {}; restart that gateway",
        home.config_file().display(),
        failures.join("; ")
    )
}

/// The suite for a peer nobody chose one for.
pub fn default_suite() -> Suite {
    if has_aes_instructions() { Suite::Aes256Gcm } else { Suite::ChaCha20Poly1305 }
}

fn has_aes_instructions() -> bool {
    #[cfg(target_arch = "x86_64")]
    return std::arch::is_x86_feature_detected!("aes") && std::arch::is_x86_feature_detected!("pclmulqdq");
    #[cfg(target_arch = "aarch64")]
    return std::arch::is_aarch64_feature_detected!("aes");
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    return false;
}

fn gateway_section(
    config: &Config,
    endpoint: HostPort,
    args: &AddArgs,
    suite: Suite,
    preshared_key: adit_proto::key::PresharedKey,
) -> anyhow::Result<PeerSection> {
    let allowed_ips = match &args.split {
        None => vec![Ipv4Net::default().into(), Ipv6Net::default().into()],
        Some(networks) => {
            let own = config.gateway.addresses();
            let mut all: Vec<IpNet> = own.iter().chain(networks).map(IpNet::trunc).collect();
            all.sort();
            all.dedup();
            all
        }
    };
    Ok(PeerSection {
        name: Some("gateway".parse()?),
        suite,
        public_key: config.gateway.private_key.public_key(),
        preshared_key: Some(preshared_key),
        allowed_ips,
        endpoint: Some(endpoint),
        persistent_keepalive_secs: CLIENT_KEEPALIVE_SECS,
        inside_api: config.gateway.inside_api(),
    })
}

fn remove_from_file(home: &Home, name: &PeerName) -> anyhow::Result<()> {
    let _lock = Lock::hold(home)?;
    let mut document = Document::open(&home.config_file())?;
    if !document.remove_peer(name) {
        let path = home.config_file();
        return Err(anyhow!(
            "peer `{name}` is not a [[peer]] section of {}; remove it there by hand",
            path.display()
        ));
    }
    document.save()?;
    Ok(())
}

/// Lets every running gateway of `home` read its file again, whatever name a flag gave its interface;
/// returns what went wrong.
fn tell_gateways(home: &Home) -> Vec<String> {
    let interfaces = match control::held(home) {
        Ok(interfaces) => interfaces,
        Err(error) => {
            return vec![format!("cannot see in {} which gateways run: {error}", home.run_dir.display())];
        }
    };
    let mut failures = Vec::new();
    for interface in interfaces {
        match control::reload(home, &interface) {
            Ok(Some(changes)) => eprintln!("the running gateway {interface} has it: {changes}"),
            Ok(None) => {}
            Err(error) => failures.push(format!("the running gateway {interface} did not take it: {error}")),
        }
    }
    failures
}

fn unknown(config: &Config, name: &PeerName) -> anyhow::Error {
    let names: Vec<&str> = config.peers.iter().map(|peer| peer.name.as_str()).collect();
    match did_you_mean(name.as_str(), names.iter().copied()) {
        Some(word) => anyhow!("there is no peer `{name}`; did you mean `{word}`?"),
        None => anyhow!("there is no peer `{name}`; `adit peer list` shows them"),
    }
}

fn describe(peer: &Peer) -> Value {
    json!({
        "name": peer.name.as_str(),
        "public_key": keys::public_text(&peer.public_key),
        "has_preshared_key": peer.preshared_key.is_some(),
        "addresses": peer.addresses,
        "allowed_ips": peer.allowed_ips().collect::<Vec<_>>(),
        "suite": peer.suite.name(),
        "endpoint": peer.endpoint.as_ref().map(ToString::to_string),
        "persistent_keepalive_secs": peer.persistent_keepalive_secs,
        "enabled": peer.enabled,
    })
}

fn page(peers: &[Peer]) -> String {
    let rows: Vec<[String; 4]> = peers
        .iter()
        .map(|peer| {
            let state = if peer.enabled { "" } else { " (disabled)" };
            let key = keys::public_text(&peer.public_key);
            [format!("{}{state}", peer.name), join(&peer.addresses), peer.suite.to_string(), key]
        })
        .collect();
    let header = ["NAME", "ADDRESSES", "SUITE", "PUBLIC KEY"].map(str::to_owned);
    let all: Vec<&[String; 4]> = std::iter::once(&header).chain(&rows).collect();
    let width = |column: usize| all.iter().map(|row| row[column].chars().count()).max().unwrap_or_default();
    let widths: [usize; 4] = std::array::from_fn(width);
    let mut page = String::new();
    for row in all {
        let cells: Vec<String> =
            row.iter().zip(widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        let _ = writeln!(page, "{}", cells.join("  ").trim_end());
    }
    page
}

fn join(addresses: &[IpAddr]) -> String {
    addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

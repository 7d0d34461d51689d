//! wg-quick's `.conf` files (`wg-quick(8)`, `wg(8)`), read as they are and written.
//!
//! Keys of our own stand in comments, so that the same file loads in a stock WireGuard app:
//! `# adit: suite = aes-256-gcm`, `# adit: name = home` and `# adit: inside_api = 10.86.0.1:9585` below `[Peer]`, and the
//! keys of a client ([`ClientSettings`](super::ClientSettings)) below `[Interface]`.

mod parse;
#[cfg(test)]
mod tests;

use std::fmt::{self, Write as _};
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::Arc;

use adit_proto::key::{PresharedKey, PublicKey, StaticSecret};
use adit_proto::suite::Suite;
use ipnet::IpNet;
use zeroize::Zeroizing;

use super::{Mtu, PeerName, ProfileSetting, Report, Source};
use crate::endpoint::HostPort;
use crate::keys;

/// A tunnel as a `.conf` file describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WgQuick {
    /// The `[Interface]` section.
    pub interface: Interface,
    /// The `[Peer]` sections; keys are unique, and so is each allowed IP.
    pub peers: Vec<PeerSection>,
}

/// The `[Interface]` section.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    /// Our key.
    pub private_key: StaticSecret,
    /// Our inside addresses with the length of their networks.
    pub addresses: Vec<IpNet>,
    /// DNS servers to use.
    pub dns: Vec<IpAddr>,
    /// DNS search domains.
    pub search_domains: Vec<String>,
    /// The MTU of the interface.
    pub mtu: Mtu,
    /// Where the routes go.
    pub table: Table,
    /// The mark on outside packets. `None` leaves the choice to us (needed for a full tunnel);
    /// `Some(0)` is `off`.
    pub fwmark: Option<u32>,
    /// The UDP port; 0 lets the host choose.
    pub listen_port: u16,
    /// Shell commands to run.
    pub hooks: Vec<Hook>,
    /// wg-quick would write the file again on `down`; adit never does.
    pub save_config: bool,
    /// Settings of the client (our own keys).
    pub settings: Vec<ProfileSetting>,
}

/// A `[Peer]` section.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerSection {
    /// A name for people (our own key).
    pub name: Option<PeerName>,
    /// The suite (our own key); the one of WireGuard unless said otherwise.
    pub suite: Suite,
    /// The peer's key.
    pub public_key: PublicKey,
    /// The second secret; all zeros is none.
    pub preshared_key: Option<PresharedKey>,
    /// What the peer may send from and is sent to, without host bits.
    pub allowed_ips: Vec<IpNet>,
    /// Where the peer is.
    pub endpoint: Option<HostPort>,
    /// Seconds between persistent keepalives; 0 is off.
    pub persistent_keepalive_secs: u16,
    /// Where the peer's inside API answers (our own key).
    pub inside_api: Vec<SocketAddr>,
}

/// Where the routes of the allowed IPs go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Table {
    /// The main table; a default route gets a table and a rule of its own.
    #[default]
    Auto,
    /// Nowhere.
    Off,
    /// This table.
    Number(u32),
}

/// A shell command and when it runs; `%i` in it stands for the interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hook {
    /// When it runs.
    pub when: HookTime,
    /// What `/bin/sh -c` runs.
    pub command: String,
}

/// When a hook runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HookTime {
    /// Before the interface is up.
    PreUp,
    /// After the interface is up.
    PostUp,
    /// Before the interface goes down.
    PreDown,
    /// After the interface is gone.
    PostDown,
}

/// Whether a file may have hooks, which run as root.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hooks {
    /// They are kept, for the caller to run.
    Allowed,
    /// Each is an error.
    Refused,
}

impl Interface {
    /// The section that says nothing but the key.
    pub fn new(private_key: StaticSecret) -> Self {
        Self {
            private_key,
            addresses: Vec::new(),
            dns: Vec::new(),
            search_domains: Vec::new(),
            mtu: Mtu::Auto,
            table: Table::Auto,
            fwmark: None,
            listen_port: 0,
            hooks: Vec::new(),
            save_config: false,
            settings: Vec::new(),
        }
    }
}

impl PeerSection {
    /// The section that says nothing but the key.
    pub fn new(public_key: PublicKey) -> Self {
        Self {
            name: None,
            suite: Suite::default(),
            public_key,
            preshared_key: None,
            allowed_ips: Vec::new(),
            endpoint: None,
            persistent_keepalive_secs: 0,
            inside_api: Vec::new(),
        }
    }
}

impl WgQuick {
    /// Reads the file at `path`, which others must not be able to read.
    ///
    /// # Errors
    /// Every error there is, with its place.
    pub fn load(path: &Path, hooks: Hooks) -> Result<Self, Report> {
        Self::parse(&super::read_source(path)?, hooks)
    }

    /// Takes a text as a `.conf` file. Any text gives a file or a report.
    ///
    /// # Errors
    /// Every error there is, with its place.
    pub fn parse(source: &Arc<Source>, hooks: Hooks) -> Result<Self, Report> {
        parse::parse(source, hooks)
    }

    /// The file as text, erased when dropped. Parsing it gives the same tunnel.
    pub fn to_text(&self) -> Zeroizing<String> {
        // Room for all of it: a string that grows leaves copies of the keys behind.
        let entries =
            self.peers.iter().map(|peer| peer.allowed_ips.len() + peer.inside_api.len() + 16).sum::<usize>();
        let interface = &self.interface;
        let hooks = interface.hooks.iter().map(|hook| hook.command.len() + 16).sum::<usize>();
        let domains = interface.search_domains.iter().map(|domain| domain.len() + 2).sum::<usize>();
        let settings = interface.settings.iter().map(|setting| setting.value.len() + 48).sum::<usize>();
        let lists = interface.addresses.len() + interface.dns.len();
        let mut text =
            Zeroizing::new(String::with_capacity(1024 + 64 * (entries + lists) + hooks + domains + settings));
        // Writing to a string cannot fail.
        let _ = write_interface(&mut text, interface);
        for peer in &self.peers {
            let _ = write_peer(&mut text, peer);
        }
        text
    }
}

impl HookTime {
    /// Every time, in the order in which they come.
    pub const ALL: [Self; 4] = [Self::PreUp, Self::PostUp, Self::PreDown, Self::PostDown];

    /// The key of the file.
    pub const fn key(self) -> &'static str {
        match self {
            Self::PreUp => "PreUp",
            Self::PostUp => "PostUp",
            Self::PreDown => "PreDown",
            Self::PostDown => "PostDown",
        }
    }
}

fn write_interface(out: &mut String, interface: &Interface) -> fmt::Result {
    out.push_str("[Interface]\n");
    for setting in &interface.settings {
        writeln!(out, "# adit: {} = {}", setting.name, setting.value)?;
    }
    writeln!(out, "PrivateKey = {}", keys::secret_text(interface.private_key.as_bytes()).as_str())?;
    write_list(out, "Address", interface.addresses.iter())?;
    let servers = interface.dns.iter().map(ToString::to_string);
    write_list(out, "DNS", servers.chain(interface.search_domains.iter().cloned()))?;
    if let Mtu::Bytes(bytes) = interface.mtu {
        writeln!(out, "MTU = {bytes}")?;
    }
    match interface.table {
        Table::Auto => {}
        Table::Off => out.push_str("Table = off\n"),
        Table::Number(table) => writeln!(out, "Table = {table}")?,
    }
    match interface.fwmark {
        None => {}
        Some(0) => out.push_str("FwMark = off\n"),
        Some(mark) => writeln!(out, "FwMark = 0x{mark:x}")?,
    }
    if interface.listen_port != 0 {
        writeln!(out, "ListenPort = {}", interface.listen_port)?;
    }
    for hook in &interface.hooks {
        writeln!(out, "{} = {}", hook.when.key(), hook.command)?;
    }
    if interface.save_config {
        out.push_str("SaveConfig = true\n");
    }
    Ok(())
}

fn write_peer(out: &mut String, peer: &PeerSection) -> fmt::Result {
    out.push_str("\n[Peer]\n");
    if let Some(name) = &peer.name {
        writeln!(out, "# adit: name = {name}")?;
    }
    if peer.suite != Suite::default() {
        writeln!(out, "# adit: suite = {}", peer.suite)?;
    }
    write_list(out, "# adit: inside_api", peer.inside_api.iter())?;
    writeln!(out, "PublicKey = {}", keys::public_text(&peer.public_key))?;
    if let Some(key) = &peer.preshared_key {
        writeln!(out, "PresharedKey = {}", keys::secret_text(key.as_bytes()).as_str())?;
    }
    write_list(out, "AllowedIPs", peer.allowed_ips.iter())?;
    if let Some(endpoint) = &peer.endpoint {
        writeln!(out, "Endpoint = {endpoint}")?;
    }
    if peer.persistent_keepalive_secs != 0 {
        writeln!(out, "PersistentKeepalive = {}", peer.persistent_keepalive_secs)?;
    }
    Ok(())
}

fn write_list<T: fmt::Display>(out: &mut String, key: &str, items: impl Iterator<Item = T>) -> fmt::Result {
    let mut items = items.peekable();
    if items.peek().is_none() {
        return Ok(());
    }
    write!(out, "{key} = ")?;
    for (index, item) in items.enumerate() {
        let comma = if index == 0 { "" } else { ", " };
        write!(out, "{comma}{item}")?;
    }
    out.push('\n');
    Ok(())
}

//! The configuration: `adit.toml`, flags and `ADIT_…` variables become one [`Config`], or a report
//! that lists every error with its place and what to write instead.
//!
//! ```text
//!   flags ┐
//!   env   ┼─► RawConfig (what was said) ─► Config (what it means) ; no checks after this
//!   file  ┘
//! ```
//!
//! Flags come before the environment, that before the file, that before the default, key by key.

mod client;
mod destination;
pub mod diagnostic;
mod document;
mod host_port;
mod limits;
pub mod name;
mod network;
mod raw;
pub mod reach;
mod reader;
mod service_url;
pub mod stream;
#[cfg(test)]
mod tests;
mod value;
pub mod wgquick;

use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::num::NonZeroU16;
use std::path::Path;
use std::sync::Arc;

use adit_proto::key::{PresharedKey, PublicKey, StaticSecret};
use adit_proto::suite::Suite;
use ipnet::{IpNet, Ipv4Net, Ipv6Net};

pub use self::client::{CarrierChoice, ClientFlags, ClientSettings, KillSwitch, ProfileSetting, client_keys};
pub use self::destination::{Destination, parse_destination};
use self::diagnostic::Place;
pub use self::diagnostic::{Complaint, Report, Source};
pub use self::document::Document;
pub use self::host_port::parse_listen;
pub use self::limits::{BitRate, Hours, Moment, PeerLimits, Volume};
pub use self::name::{InterfaceName, PeerName};
pub(crate) use self::network::{parse_network, parse_network6, parse_prefix};
pub use self::raw::{KEYS, Key, Kind, Layers, Origin, RawConfig};
use self::reach::Reach;
pub(crate) use self::reader::parse_tag;
pub use self::service_url::ServiceUrl;
pub use self::stream::StreamSettings;
pub use self::value::{
    GatewayDns, Lanes, Mtu, Offload, parse_fwmark, parse_keepalive, parse_lanes, parse_log_format,
};
pub use self::value::{
    parse_inside_api, parse_log_level, parse_mtu, parse_offload, parse_suite, parse_switch,
};
use crate::endpoint::HostPort;
use crate::home::Home;
use crate::log::LogOptions;
use crate::private_file::{self, ReadError};

/// The version of the configuration that this program reads and writes.
pub const CONFIG_VERSION: u32 = 1;

/// A gateway and its peers, as they should be.
#[derive(Clone, Debug)]
pub struct Config {
    /// The gateway itself.
    pub gateway: Gateway,
    /// The peers, in the order of the file. Names, keys and addresses are unique.
    pub peers: Vec<Peer>,
    /// What to log, how and where.
    pub log: LogOptions,
    /// The services that `adit ip` asks in turn.
    pub ip_services: Vec<ServiceUrl>,
    /// Every key that is not a peer's, with its value and who decided it.
    pub settings: Vec<Setting>,
}

/// The gateway itself.
#[derive(Clone, Debug)]
pub struct Gateway {
    /// The tunnel interface.
    pub interface: InterfaceName,
    /// The UDP port on every address of the host; 0 lets the host choose.
    pub listen_port: u16,
    /// Where clients reach the gateway; only `peer add` needs it.
    pub endpoint: Option<HostPort>,
    /// The key of the gateway.
    pub private_key: StaticSecret,
    /// The IPv4 network inside, without host bits, /8 to /30.
    pub network: Ipv4Net,
    /// The IPv6 network inside, without host bits, /32 to /126.
    pub network6: Option<Ipv6Net>,
    /// The MTU of the interface.
    pub mtu: Mtu,
    /// The mark on outside packets; 0 is none.
    pub fwmark: u32,
    /// Whether clients reach the internet with the host's address.
    pub masquerade: bool,
    /// Whether clients reach each other.
    pub client_to_client: bool,
    /// What clients reach beyond the two switches above.
    pub reach: Reach,
    /// The resolver at the inside addresses.
    pub dns: GatewayDns,
    /// Whether the tunnel passes forward chains of other programs that drop by default.
    pub pass_firewalls: bool,
    /// Whether the kernel's offloads are used.
    pub offload: Offload,
    /// How many lanes carry packets.
    pub lanes: Lanes,
    /// The port of the inside API; `None` is off.
    pub inside_api: Option<NonZeroU16>,
    /// Where metrics are told; `None` is off.
    pub metrics: Option<SocketAddr>,
    /// What is done with connections.
    pub stream: StreamSettings,
}

/// A peer of the gateway.
#[derive(Clone, Debug)]
pub struct Peer {
    /// Its name.
    pub name: PeerName,
    /// Its key.
    pub public_key: PublicKey,
    /// The second secret shared with it.
    pub preshared_key: Option<PresharedKey>,
    /// Its lease: inside addresses within the networks of the gateway, never empty.
    pub addresses: Vec<IpAddr>,
    /// Further networks behind it.
    pub extra_allowed_ips: Vec<IpNet>,
    /// The pinned suite.
    pub suite: Suite,
    /// Where it is, when it has a fixed place.
    pub endpoint: Option<HostPort>,
    /// Seconds between persistent keepalives; 0 is off.
    pub persistent_keepalive_secs: u16,
    /// Whether it may connect.
    pub enabled: bool,
    /// Words that the operator sorts peers by.
    pub tags: Vec<String>,
    /// What it may use.
    pub limits: PeerLimits,
}

/// The value of a key and who decided it; what `config show --origin` prints.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setting {
    /// `section.name`.
    pub key: String,
    /// The value as it was written; secrets are `(hidden)`, what is not set is empty.
    pub value: String,
    /// Who decided it.
    pub origin: Origin,
}

impl Config {
    /// Reads the configuration of `home` under the flags and variables in `layers`.
    ///
    /// # Errors
    /// Every error there is, with its place.
    pub fn load(home: &Home, layers: &Layers) -> Result<Self, Report> {
        Self::load_file(&home.config_file(), layers)
    }

    /// Reads the configuration file at `path` under the flags and variables in `layers`.
    ///
    /// # Errors
    /// Every error there is, with its place.
    pub fn load_file(path: &Path, layers: &Layers) -> Result<Self, Report> {
        let source = read_source(path)?;
        Self::parse(&source, path.parent().unwrap_or(Path::new(".")), layers)
    }

    /// Takes a text as configuration; relative `file:` paths start from `directory`.
    ///
    /// # Errors
    /// Every error there is, with its place.
    pub fn parse(source: &Arc<Source>, directory: &Path, layers: &Layers) -> Result<Self, Report> {
        Self::try_from(RawConfig::read(source, directory, layers))
    }

    /// The services that `adit ip` asks in turn: those of the flags and variables in `layers`, or of the
    /// configuration of `home` where there is one, or the usual ones. The file needs no gateway in it.
    ///
    /// # Errors
    /// Every error there is, with its place.
    pub fn ip_services(home: &Home, layers: &Layers) -> Result<Vec<ServiceUrl>, Report> {
        let path = home.config_file();
        let is_there = path.try_exists().unwrap_or(false);
        let source = if is_there { read_source(&path)? } else { Source::new("services", "") };
        reader::ip_services(RawConfig::read(&source, Path::new("."), &layers.of_section("ip")))
    }

    /// The logging that flags, variables and `[log]` of the `adit.toml` of `home` ask for, where there is one. The file
    /// needs no gateway in it.
    ///
    /// # Errors
    /// Every error there is, with its place.
    pub fn log(home: &Home, layers: &Layers) -> Result<LogOptions, Report> {
        Self::log_file(&home.config_file(), layers)
    }

    /// The same for the file at `path`.
    ///
    /// # Errors
    /// Every error there is, with its place.
    pub fn log_file(path: &Path, layers: &Layers) -> Result<LogOptions, Report> {
        if !path.try_exists().unwrap_or(false) {
            return Self::log_without_file(layers);
        }
        let directory = path.parent().unwrap_or(Path::new("."));
        reader::log(RawConfig::read(&read_source(path)?, directory, &layers.of_section("log")))
    }

    /// The logging that flags and variables ask for, where there is no configuration file.
    ///
    /// # Errors
    /// Every error there is, with its place.
    pub fn log_without_file(layers: &Layers) -> Result<LogOptions, Report> {
        let source = Source::new("logging", "");
        reader::log(RawConfig::read(&source, Path::new("."), &layers.of_section("log")))
    }
}

impl TryFrom<RawConfig> for Config {
    type Error = Report;

    fn try_from(raw: RawConfig) -> Result<Self, Report> {
        reader::config(raw)
    }
}

impl Gateway {
    /// The gateway's own inside addresses with their networks: the first host of each.
    pub fn addresses(&self) -> Vec<IpNet> {
        let first4 = u32::from(self.network.network()).saturating_add(1);
        let v4 = Ipv4Net::new_assert(first4.into(), self.network.prefix_len());
        let v6 = self.network6.map(|network| {
            let first6 = u128::from(network.network()).saturating_add(1);
            Ipv6Net::new_assert(Ipv6Addr::from(first6), network.prefix_len())
        });
        std::iter::once(IpNet::V4(v4)).chain(v6.map(IpNet::V6)).collect()
    }

    /// Where clients find the resolver; nowhere when it is off.
    pub fn resolver_addresses(&self) -> Vec<IpAddr> {
        match self.dns {
            GatewayDns::Off => Vec::new(),
            GatewayDns::Gateway | GatewayDns::Servers(_) => {
                self.addresses().iter().map(|net| net.addr()).collect()
            }
        }
    }

    /// Where the inside API answers; nowhere when it is off.
    pub fn inside_api(&self) -> Vec<SocketAddr> {
        let Some(port) = self.inside_api else { return Vec::new() };
        self.addresses().iter().map(|net| (net.addr(), port.get()).into()).collect()
    }
}

impl Peer {
    /// A peer that says nothing but who it is.
    pub fn new(name: PeerName, public_key: PublicKey) -> Self {
        Self {
            name,
            public_key,
            preshared_key: None,
            addresses: Vec::new(),
            extra_allowed_ips: Vec::new(),
            suite: Suite::default(),
            endpoint: None,
            persistent_keepalive_secs: 0,
            enabled: true,
            tags: Vec::new(),
            limits: PeerLimits::default(),
        }
    }

    /// The networks behind the peer, beyond its own addresses.
    pub fn networks(&self) -> impl Iterator<Item = IpNet> + '_ {
        self.extra_allowed_ips.iter().copied()
    }

    /// What the peer may send from and is sent to: its addresses, then the networks behind it.
    pub fn allowed_ips(&self) -> impl Iterator<Item = IpNet> + '_ {
        self.addresses.iter().map(|&address| address.into()).chain(self.extra_allowed_ips.iter().copied())
    }
}

/// Whether there is anything in a file that a configuration, or a damaged one, would have.
fn looks_like_ours(path: &Path) -> bool {
    use std::io::Read;
    let mut start = zeroize::Zeroizing::new(Vec::new());
    let read = std::fs::File::open(path).and_then(|file| file.take(64 << 10).read_to_end(&mut start));
    let text = zeroize::Zeroizing::new(String::from_utf8_lossy(&start).to_lowercase());
    read.is_err()
        || ["[interface]", "[peer]", "privatekey", "private_key", "presharedkey", "preshared_key"]
            .iter()
            .chain(&["config_version", "[gateway]", "[client]", "[log]", "[ip]"])
            .any(|word| text.contains(word))
}

/// ` --home DIR` for the home whose configuration this is, or nothing for the one of the system.
fn home_flag(path: &Path) -> String {
    match path.parent().filter(|it| it.is_absolute() && path.ends_with("adit.toml")) {
        Some(directory) if directory != Path::new("/etc/adit") => {
            format!(" --home {}", crate::privilege::quote_path(directory))
        }
        _ => String::new(),
    }
}

/// Reads a file that may hold keys as the source of a configuration.
///
/// # Errors
/// The file cannot be read, is exposed to others, or is not text.
pub fn read_source(path: &Path) -> Result<Arc<Source>, Report> {
    let name = path.display().to_string();
    match private_file::read(path) {
        Ok(bytes) => Source::from_bytes(name, bytes),
        Err(error) => {
            let fix = match &error {
                ReadError::Missing(path) if path.extension().is_some_and(|extension| extension == "toml") => {
                    format!(
                        "run `adit init --endpoint HOST:PORT{}` to make one, or name another with --home DIR",
                        home_flag(path)
                    )
                }
                // Whoever names /etc/passwd is not to close it.
                ReadError::Exposed { path, .. } if !looks_like_ours(path) => {
                    "nothing in it looks like a configuration of adit or WireGuard; name the file that you mean".to_owned()
                }
                error => error.fix(),
            };
            Err(Report::single(&Source::new(name, ""), Place::File, Complaint::new(error.to_string(), fix)))
        }
    }
}

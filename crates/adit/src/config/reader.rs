//! From what was said to what it means: every key parsed, every contradiction found.

use std::collections::HashMap;
use std::hash::Hash;
use std::net::SocketAddr;
use std::path::Path;

use adit_proto::key::{PresharedKey, PublicKey, StaticSecret};
use ipnet::IpNet;
use zeroize::Zeroizing;

use super::client;
use super::diagnostic::{Complaint, Place, Report};
use super::host_port::parse_listen;
use super::network::{parse_allowed_ip, parse_lease, parse_network, parse_network6, parse_route};
use super::raw::{Item, KEYS, Raw, RawConfig, RawPeer, find};
use super::reach::{Exposure, Reach, Transport};
use super::service_url::ServiceUrl;
use super::stream::{self, StreamSettings};
use super::value::{
    GatewayDns, number, parse_event_level, parse_fwmark, parse_inside_api, parse_keepalive, parse_lanes,
    parse_log_format, parse_log_level, parse_metrics, parse_mtu, parse_offload, parse_rotate_keep,
    parse_rotate_mib, parse_suite, parse_switch,
};
use super::{CONFIG_VERSION, Config, Gateway, Kind, Mtu, Origin, Peer, PeerLimits, Setting};
use crate::keys::{self, KeyError};
use crate::log::{LogOptions, LogTarget, Rotation};
use crate::private_file;

pub(super) fn config(raw: RawConfig) -> Result<Config, Report> {
    let mut reader = Reader::new(raw);
    reader.version();
    let gateway = reader.gateway();
    let log = reader.log_options();
    let ip_services = reader.ip_services();
    let client_metrics = reader.place("client.metrics");
    let client = client::take(&mut reader);
    if let Some(client) = &client {
        reader.check_metrics(client.metrics, client.metrics_beyond_loopback, client_metrics);
    }
    let peers = reader.peers(gateway.as_ref());
    let Reader { raw, mut settings } = reader;
    settings.sort_by_key(|setting| KEYS.iter().position(|key| key.path() == setting.key));
    let config = gateway.zip(peers).zip(log.zip(ip_services)).filter(|_| client.is_some());
    raw.report.into_result(config.map(|((gateway, peers), (log, ip_services))| Config {
        gateway,
        peers,
        log,
        ip_services,
        settings,
    }))
}

pub(super) fn ip_services(raw: RawConfig) -> Result<Vec<ServiceUrl>, Report> {
    let mut reader = Reader::new(raw);
    let services = reader.ip_services();
    reader.raw.report.into_result(services)
}

pub(super) fn log(raw: RawConfig) -> Result<LogOptions, Report> {
    let mut reader = Reader::new(raw);
    let log = reader.log_options();
    reader.raw.report.into_result(log)
}

/// Takes key after key; what is wrong with one goes into the report of `raw`.
pub(super) struct Reader {
    raw: RawConfig,
    settings: Vec<Setting>,
}

impl Reader {
    pub(super) fn new(raw: RawConfig) -> Self {
        Self { raw, settings: Vec::new() }
    }

    /// What was wrong, and who decided what.
    pub(super) fn finish(self) -> (Report, Vec<Setting>) {
        (self.raw.report, self.settings)
    }

    pub(super) fn version(&mut self) {
        let Some(raw) = self.raw.version.take() else {
            if self.raw.is_damaged {
                return;
            }
            let complaint = Complaint::new(
                "`config_version` is missing",
                format!("write `config_version = {CONFIG_VERSION}` as the first line"),
            );
            return self.raw.report.push(Place::Span(0..0), complaint);
        };
        let Some(item) = raw.item() else { return };
        if number(&item.text) != Some(CONFIG_VERSION) {
            let complaint = Complaint::new(
                "this configuration is of another version",
                format!(
                    "write `config_version = {CONFIG_VERSION}`, or use the adit that the file was made for"
                ),
            );
            self.raw.report.push(item.place.clone(), complaint);
        }
    }

    fn gateway(&mut self) -> Option<Gateway> {
        let interface = self.setting("gateway.interface", str::parse);
        let listen_port = self.setting("gateway.listen", parse_listen);
        let endpoint = self.optional("gateway.endpoint", str::parse);
        let private_key = self.private_key();
        let network = self.setting("gateway.network", parse_network);
        let network6 = self.optional("gateway.network6", parse_network6);
        let mtu_place = self.place("gateway.mtu");
        let mtu = self.setting("gateway.mtu", parse_mtu);
        let fwmark = self.setting("gateway.fwmark", parse_fwmark);
        let masquerade = self.setting("gateway.masquerade", parse_switch);
        let client_to_client = self.setting("gateway.client_to_client", parse_switch);
        let expose_place = self.place("gateway.expose");
        let reach = self.reach();
        let dns = self.gateway_dns();
        let pass_firewalls = self.setting("gateway.pass_firewalls", parse_switch);
        let offload = self.setting("gateway.offload", parse_offload);
        let lanes = self.setting("gateway.lanes", parse_lanes);
        let inside_place = self.place("gateway.inside_api");
        let inside_api = self.setting("gateway.inside_api", parse_inside_api);
        let metrics_place = self.place("gateway.metrics");
        let metrics = self.setting("gateway.metrics", parse_metrics);
        let beyond = self.setting("gateway.metrics_beyond_loopback", parse_switch);
        self.check_metrics(metrics.flatten(), beyond.unwrap_or_default(), metrics_place);
        let stream = self.stream_settings();
        if let (Some(port), Some(Some(inside))) = (listen_port, inside_api)
            && port == inside.get()
        {
            let fix = "choose another port for one of the two, or write `inside_api = \"off\"`";
            let reason = format!("the inside API cannot have UDP port {port}, peers are listened to there");
            self.raw.report.push(inside_place, Complaint::new(reason, fix));
        }
        let taken = |it: &&Exposure| Some(it.port) == listen_port && it.transport == Transport::Udp;
        if let Some(exposure) = reach.iter().flat_map(|it| &it.expose).find(taken) {
            let reason = format!("UDP port {} is where peers are listened to", exposure.port);
            self.raw.report.push(expose_place, Complaint::new(reason, "expose another port"));
        }
        if let (Some(Mtu::Bytes(..1280)), Some(Some(_))) = (mtu, network6) {
            let complaint = Complaint::new(
                "IPv6 needs an MTU of at least 1280 bytes (RFC 8200 section 5)",
                "raise `mtu`, or remove `network6`",
            );
            self.raw.report.push(mtu_place, complaint);
        }
        Some(Gateway {
            interface: interface?,
            listen_port: listen_port?,
            endpoint: endpoint?,
            private_key: private_key?,
            network: network?,
            network6: network6?,
            mtu: mtu?,
            fwmark: fwmark?,
            masquerade: masquerade?,
            client_to_client: client_to_client?,
            reach: reach?,
            pass_firewalls: pass_firewalls?,
            dns: dns?,
            offload: offload?,
            lanes: lanes?,
            inside_api: inside_api?,
            metrics: metrics?,
            stream: stream?,
        })
    }

    fn stream_settings(&mut self) -> Option<StreamSettings> {
        let listen = self.words("gateway.stream", stream::parse_stream_listen);
        let place = self.place("gateway.stream_certificate");
        let certificate = self.optional("gateway.stream_certificate", stream::parse_file);
        let key = self.optional("gateway.stream_key", stream::parse_file);
        let web = self.setting("gateway.stream_web", stream::parse_web);
        let path = self.optional("gateway.stream_path", stream::parse_stream_path);
        let certificate = match (certificate?, key?) {
            (Some(chain), Some(key)) => Some((chain, key)),
            (None, None) => None,
            _ => {
                let fix = "name both `stream_certificate` and `stream_key`, or neither";
                let complaint = Complaint::new("a certificate is of use only with its key", fix);
                self.raw.report.push(place, complaint);
                return None;
            }
        };
        Some(StreamSettings { listen: listen?, certificate, web: web?, path: path? })
    }

    fn ip_services(&mut self) -> Option<Vec<ServiceUrl>> {
        let path = "ip.services";
        let place = self.raw.settings.get(path).map(|raw| raw.place.clone());
        let services = self.words(path, str::parse)?;
        match place {
            None => Some(ServiceUrl::usual()),
            Some(_) if (1..=ServiceUrl::MOST).contains(&services.len()) => Some(services),
            Some(place) => {
                let reason = format!("these are {} services", services.len());
                let fix = format!("name 1 to {}, or remove the key for the usual ones", ServiceUrl::MOST);
                self.raw.report.push(place, Complaint::new(reason, fix));
                None
            }
        }
    }

    fn log_options(&mut self) -> Option<LogOptions> {
        let directory = self.raw.directory.clone();
        let level = self.setting("log.level", parse_log_level);
        let format = self.setting("log.format", parse_log_format);
        let to = self.setting("log.file", |text| parse_log_file(text, &directory));
        let bytes_max = self.setting("log.rotate_mib", parse_rotate_mib);
        let keep = self.setting("log.rotate_keep", parse_rotate_keep);
        let events = self.setting("log.events", parse_event_level);
        Some(LogOptions {
            level: level?,
            format: format?,
            to: to?,
            rotation: Rotation { bytes_max: bytes_max?, keep: keep? },
            events: events?,
        })
    }

    fn private_key(&mut self) -> Option<StaticSecret> {
        let directory = self.raw.directory.clone();
        match self.optional("gateway.private_key", |text| secret(text, &directory, keys::parse_private))? {
            Some(key) => Some(key),
            None if self.raw.is_damaged => None,
            None => {
                let complaint = Complaint::new(
                    "the gateway has no key",
                    "add `private_key = \"...\"` below [gateway] (`adit genkey` makes one), or run `adit init`",
                );
                self.raw.report.push(Place::File, complaint);
                None
            }
        }
    }

    fn peers(&mut self, gateway: Option<&Gateway>) -> Option<Vec<Peer>> {
        let mut unique = Unique::default();
        if let Some(gateway) = gateway {
            unique.keys.insert(gateway.private_key.public_key(), "the gateway itself".to_owned());
        }
        let raw_peers = std::mem::take(&mut self.raw.peers);
        let count = raw_peers.len();
        let peers: Vec<Peer> =
            raw_peers.into_iter().filter_map(|raw| self.peer(raw, gateway, &mut unique)).collect();
        (peers.len() == count).then_some(peers)
    }

    fn peer(&mut self, mut raw: RawPeer, gateway: Option<&Gateway>, unique: &mut Unique) -> Option<Peer> {
        let directory = self.raw.directory.clone();
        let name = self.required(&mut raw, "name", str::parse::<super::PeerName>);
        let public_key = self.required(&mut raw, "public_key", parse_public_key);
        let preshared_key = self
            .peer_value(&mut raw, "preshared_key", |text| secret(text, &directory, keys::parse_preshared));
        let suite = self.peer_value(&mut raw, "suite", parse_suite);
        let endpoint = self.peer_value(&mut raw, "endpoint", str::parse);
        let keepalive = self.peer_value(&mut raw, "persistent_keepalive_secs", parse_keepalive);
        let enabled = self.peer_value(&mut raw, "enabled", parse_switch);
        let limits = self.limits(&mut raw);
        let addresses = self.list(&mut raw, "addresses", |text| parse_lease(text, gateway));
        let allowed_ips = self.list(&mut raw, "allowed_ips", parse_allowed_ip);
        let tags = self.list(&mut raw, "tags", parse_tag);
        let routes = self.list(&mut raw, "routes", parse_route);

        let label = name.as_ref().map_or("another peer".to_owned(), |(name, _)| format!("peer `{name}`"));
        if let Some((name, place)) = &name {
            let fix = "give each peer a name of its own";
            self.claim(&mut unique.names, name.clone(), &label, "this name", place, fix);
        }
        if let Some((key, place)) = &public_key {
            let fix = "give each peer a key of its own, or remove one of the two";
            self.claim(&mut unique.keys, *key, &label, "this key", place, fix);
        }
        if addresses.as_ref().is_some_and(Vec::is_empty) && !self.raw.is_damaged {
            let fix = "add `addresses = [\"...\"]` with a free address of the gateway's network";
            self.raw.report.push(raw.place.clone(), Complaint::new(format!("{label} has no address"), fix));
        }
        let leases = addresses.iter().flatten().map(|(address, place)| (IpNet::from(*address), place));
        let allowed_ips = allowed_ips.zip(routes).map(|(ips, routes)| [ips, routes].concat());
        let networks = allowed_ips.iter().flatten().map(|(network, place)| (*network, place));
        for (prefix, place) in leases.chain(networks) {
            let what = format!("{prefix}");
            self.claim(&mut unique.prefixes, prefix, &label, &what, place, "give it to one peer only");
        }
        Some(Peer {
            name: name?.0,
            public_key: public_key?.0,
            preshared_key: preshared_key?.filter(PresharedKey::is_set),
            addresses: addresses?.into_iter().map(|(address, _)| address).collect(),
            extra_allowed_ips: allowed_ips?.into_iter().map(|(network, _)| network).collect(),
            suite: suite?.unwrap_or_default(),
            endpoint: endpoint?,
            persistent_keepalive_secs: keepalive?.unwrap_or_default(),
            enabled: enabled?.unwrap_or(true),
            tags: tags?.into_iter().map(|(tag, _)| tag).collect(),
            limits: limits?,
        })
    }

    fn limits(&mut self, raw: &mut RawPeer) -> Option<PeerLimits> {
        let expires = self.peer_value(raw, "expires", str::parse);
        let rate = self.peer_value(raw, "rate", str::parse);
        let rate_up = self.peer_value(raw, "rate_up", str::parse);
        let rate_down = self.peer_value(raw, "rate_down", str::parse);
        let quota = self.peer_value(raw, "quota", str::parse);
        let schedule = self.peer_value(raw, "schedule", str::parse);
        let rate = rate?;
        Some(PeerLimits {
            expires: expires?,
            schedule: schedule?,
            rate_up: rate_up?.or(rate),
            rate_down: rate_down?.or(rate),
            quota: quota?,
        })
    }

    fn claim<T: Eq + Hash>(
        &mut self,
        owners: &mut HashMap<T, String>,
        thing: T,
        label: &str,
        what: &str,
        place: &Place,
        fix: &str,
    ) {
        if let Some(owner) = owners.insert(thing, label.to_owned()) {
            let complaint = Complaint::new(format!("{what} belongs to {owner} already"), fix);
            self.raw.report.push(place.clone(), complaint);
        }
    }

    /// A key that has a default.
    pub(super) fn setting<T>(
        &mut self,
        path: &str,
        parse: impl Fn(&str) -> Result<T, Complaint>,
    ) -> Option<T> {
        self.optional(path, parse)?
    }

    /// A key that may be absent, which an empty text says too: `None` is an error that is in the report now.
    pub(super) fn optional<T>(
        &mut self,
        path: &str,
        parse: impl Fn(&str) -> Result<T, Complaint>,
    ) -> Option<Option<T>> {
        let key = KEYS.iter().find(|key| key.path() == path)?;
        let given = self.raw.settings.remove(path).filter(|raw| key.default.is_some() || !raw.is_empty());
        let default = || key.default.map(|text| Raw::new(text.to_owned(), Place::File, Origin::Default));
        let raw = given.or_else(default);
        let origin = raw.as_ref().map_or(Origin::Default, |raw| raw.origin.clone());
        let item = match &raw {
            None => None,
            Some(raw) => Some(raw.item()?),
        };
        let value = match item {
            Some(_) if key.kind == Kind::Secret => "(hidden)".to_owned(),
            Some(item) => item.text.as_str().to_owned(),
            None => String::new(),
        };
        self.settings.push(Setting { key: key.path(), value, origin });
        match item {
            None => Some(None),
            Some(item) => self.parse(item, parse).map(Some),
        }
    }

    fn gateway_dns(&mut self) -> Option<GatewayDns> {
        let place = self.place("gateway.dns");
        let words = self.words("gateway.dns", |text| Ok(text.to_owned()))?;
        match GatewayDns::from_words(&words) {
            Ok(dns) => Some(dns),
            Err(complaint) => {
                self.raw.report.push(place, complaint);
                None
            }
        }
    }

    fn reach(&mut self) -> Option<Reach> {
        let has_rules = self.raw.settings.contains_key("gateway.allow");
        let lan = self.words("gateway.lan", parse_allowed_ip);
        let allow = self.phrases("gateway.allow", str::parse);
        let expose = self.phrases("gateway.expose", str::parse);
        Some(Reach { lan: lan?, allow: Some(allow?).filter(|_| has_rules), expose: expose? })
    }

    /// A list. Each item may name several, so that a variable and a flag can name as many as the file.
    pub(super) fn words<T>(
        &mut self,
        path: &str,
        parse: impl Fn(&str) -> Result<T, Complaint>,
    ) -> Option<Vec<T>> {
        self.pieces(path, &[' ', ',', '\t', '\n'], parse)
    }

    /// A list of what has spaces in it; commas part those of one item.
    fn phrases<T>(&mut self, path: &str, parse: impl Fn(&str) -> Result<T, Complaint>) -> Option<Vec<T>> {
        self.pieces(path, &[',', '\n'], parse)
    }

    fn pieces<T>(
        &mut self,
        path: &str,
        separators: &[char],
        parse: impl Fn(&str) -> Result<T, Complaint>,
    ) -> Option<Vec<T>> {
        let key = KEYS.iter().find(|key| key.path() == path)?;
        let default = || key.default.map(|text| Raw::new(text.to_owned(), Place::File, Origin::Default));
        let raw = self.raw.settings.remove(path).or_else(default);
        let origin = raw.as_ref().map_or(Origin::Default, |raw| raw.origin.clone());
        let items = raw.map_or_else(|| Some(Vec::new()), |raw| raw.items)?;
        let value = items.iter().map(|item| item.text.as_str()).collect::<Vec<_>>().join(" ");
        self.settings.push(Setting { key: key.path(), value, origin });
        let mut words = Vec::new();
        let mut is_right = true;
        for item in &items {
            let texts = item.text.split(separators).map(str::trim).filter(|text| !text.is_empty());
            for text in texts {
                match parse(text) {
                    Ok(word) => words.push(word),
                    Err(complaint) => {
                        self.raw.report.push(item.place.clone(), complaint);
                        is_right = false;
                    }
                }
            }
        }
        is_right.then_some(words)
    }

    /// Metrics name the peers and tell when they are there.
    pub(super) fn check_metrics(&mut self, at: Option<SocketAddr>, beyond_loopback: bool, place: Place) {
        if let Some(at) = at.filter(|at| !at.ip().is_loopback() && !beyond_loopback) {
            let reason = format!("others could ask for metrics at {at}, which name the peers");
            let fix =
                "write 127.0.0.1 for the address; if others should, set `metrics_beyond_loopback = true`";
            self.raw.report.push(place, Complaint::new(reason, fix));
        }
    }

    pub(super) fn place(&self, path: &str) -> Place {
        self.raw.settings.get(path).map_or(Place::File, |raw| raw.place.clone())
    }

    fn peer_value<T>(
        &mut self,
        raw: &mut RawPeer,
        name: &'static str,
        parse: impl Fn(&str) -> Result<T, Complaint>,
    ) -> Option<Option<T>> {
        debug_assert!(find("peer", name).is_some());
        match raw.values.remove(name) {
            None => Some(None),
            Some(value) => self.parse(value.item()?, parse).map(Some),
        }
    }

    fn required<T>(
        &mut self,
        raw: &mut RawPeer,
        name: &'static str,
        parse: impl Fn(&str) -> Result<T, Complaint>,
    ) -> Option<(T, Place)> {
        let place = raw.values.get(name).map(|value| value.place.clone());
        match (self.peer_value(raw, name, parse)?, place) {
            (Some(value), Some(place)) => Some((value, place)),
            _ if self.raw.is_damaged => None,
            _ => {
                let complaint = Complaint::new(
                    format!("this peer has no `{name}`"),
                    format!("add `{name} = \"...\"` below [[peer]]"),
                );
                self.raw.report.push(raw.place.clone(), complaint);
                None
            }
        }
    }

    fn list<T>(
        &mut self,
        raw: &mut RawPeer,
        name: &'static str,
        parse: impl Fn(&str) -> Result<T, Complaint>,
    ) -> Option<Vec<(T, Place)>> {
        let items = raw.values.remove(name).map_or_else(|| Some(Vec::new()), |value| value.items)?;
        let count = items.len();
        let parsed: Vec<(T, Place)> =
            items.into_iter().filter_map(|item| Some((self.parse(&item, &parse)?, item.place))).collect();
        (parsed.len() == count).then_some(parsed)
    }

    fn parse<T>(&mut self, item: &Item, parse: impl Fn(&str) -> Result<T, Complaint>) -> Option<T> {
        match parse(&item.text) {
            Ok(value) => Some(value),
            Err(complaint) => {
                self.raw.report.push(item.place.clone(), complaint);
                None
            }
        }
    }
}

/// Who owns what only one may own.
#[derive(Default)]
struct Unique {
    names: HashMap<super::PeerName, String>,
    keys: HashMap<PublicKey, String>,
    prefixes: HashMap<IpNet, String>,
}

fn parse_public_key(text: &str) -> Result<PublicKey, Complaint> {
    keys::parse_public(text).map_err(complain_key)
}

fn complain_key(error: KeyError) -> Complaint {
    Complaint::new(
        error.to_string(),
        "copy the whole key as `wg` or `adit pubkey` prints it: 44 characters, ending in =",
    )
}

/// A key written here, or the place where it is: `file:PATH` or `env:NAME`.
fn secret<T>(
    text: &str,
    directory: &Path,
    parse: impl Fn(&str) -> Result<T, KeyError>,
) -> Result<T, Complaint> {
    let key = if let Some(path) = text.strip_prefix("file:") {
        let path = directory.join(path);
        let bytes =
            private_file::read(&path).map_err(|error| Complaint::new(error.to_string(), error.fix()))?;
        Zeroizing::new(String::from_utf8_lossy(&bytes).into_owned())
    } else if let Some(name) = text.strip_prefix("env:") {
        let value = std::env::var(name).map_err(|_| {
            let reason = format!("the environment variable {name} is not set");
            Complaint::new(reason, "set it before starting adit, or write the key or `file:PATH` here")
        })?;
        Zeroizing::new(value)
    } else {
        Zeroizing::new(text.to_owned())
    };
    parse(key.trim()).map_err(complain_key)
}

/// "-" for standard error, "journald", or a path; a relative one starts from the directory of the configuration.
fn parse_log_file(text: &str, directory: &Path) -> Result<LogTarget, Complaint> {
    match text {
        "-" => return Ok(LogTarget::Stderr),
        "journald" => return Ok(LogTarget::Journal),
        _ => {}
    }
    let file = std::path::absolute(directory.join(text)).ok().filter(|_| !text.is_empty());
    file.map(LogTarget::File).ok_or_else(|| {
        let fix = "write a path, \"-\" for standard error or \"journald\" for the journal";
        Complaint::new("the name of the log file is empty", fix)
    })
}

/// A word that peers are sorted by.
pub(crate) fn parse_tag(text: &str) -> Result<String, Complaint> {
    let name: super::PeerName = text.parse().map_err(|complaint: Complaint| {
        Complaint::new(format!("`{}` is no tag", super::diagnostic::escape(text)), complaint.fix)
    })?;
    Ok(name.to_string())
}

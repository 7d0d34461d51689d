//! What was said, by flag, environment or file, before it is understood.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use toml::de::{DeTable, DeValue};
use zeroize::Zeroizing;

use super::diagnostic::{Complaint, Place, Report, Source, did_you_mean, unknown_name};

/// A key of the configuration.
#[derive(Clone, Copy, Debug)]
pub struct Key {
    /// The section: `gateway`, `client`, `log`, `ip`, or `peer` for the keys of each peer.
    pub section: &'static str,
    /// The name in its section.
    pub name: &'static str,
    /// What may be written.
    pub kind: Kind,
    /// What it is when nothing is written.
    pub default: Option<&'static str>,
    /// What it is for.
    pub about: &'static str,
}

/// What may be written for a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A string.
    Text,
    /// A string that is never shown.
    Secret,
    /// A whole number, or a string.
    NumberOrText,
    /// `true` or `false`.
    Switch,
    /// A string, or an array of strings.
    List,
}

const fn key(
    section: &'static str,
    name: &'static str,
    kind: Kind,
    default: Option<&'static str>,
    about: &'static str,
) -> Key {
    Key { section, name, kind, default, about }
}

/// Every key but `config_version`.
pub const KEYS: &[Key] = &[
    key("gateway", "interface", Kind::Text, Some("adit0"), "name of the tunnel interface"),
    key("gateway", "listen", Kind::NumberOrText, Some(":51820"), "UDP port, on every address of this host"),
    key("gateway", "endpoint", Kind::Text, None, "host:port where clients reach the gateway"),
    key("gateway", "private_key", Kind::Secret, None, "key of the gateway: base64, file:PATH or env:NAME"),
    key("gateway", "network", Kind::Text, Some("10.86.0.0/24"), "IPv4 network inside the tunnel"),
    key("gateway", "network6", Kind::Text, None, "IPv6 network inside the tunnel"),
    key("gateway", "mtu", Kind::NumberOrText, Some("auto"), "MTU of the tunnel interface: auto or bytes"),
    key("gateway", "fwmark", Kind::NumberOrText, Some("off"), "mark on outside packets"),
    key(
        "gateway",
        "masquerade",
        Kind::Switch,
        Some("true"),
        "clients reach the internet with this host's address",
    ),
    key("gateway", "client_to_client", Kind::Switch, Some("true"), "clients reach each other"),
    key("gateway", "lan", Kind::List, None, "private networks beside the gateway that clients may reach"),
    key("gateway", "allow", Kind::List, None, "the only connections clients may start: \"phone -> nas:443\""),
    key("gateway", "expose", Kind::List, None, "ports of the gateway that lead to peers: \"443 -> nas:443\""),
    key(
        "gateway",
        "pass_firewalls",
        Kind::Switch,
        Some("true"),
        "let the tunnel pass forward chains of others that drop by default",
    ),
    key(
        "gateway",
        "dns",
        Kind::List,
        Some("off"),
        "resolver at the inside address: off, gateway, or servers to ask",
    ),
    key("gateway", "offload", Kind::Text, Some("auto"), "offloads of the kernel: auto or off"),
    key("gateway", "lanes", Kind::NumberOrText, Some("auto"), "threads that carry packets: auto or a number"),
    key("gateway", "inside_api", Kind::NumberOrText, Some("9585"), "port of the inside API, or off"),
    key("gateway", "metrics", Kind::Text, Some("off"), "address:port where OpenMetrics are told, or off"),
    key(
        "gateway",
        "metrics_beyond_loopback",
        Kind::Switch,
        Some("false"),
        "other machines may ask for metrics, when their address lets them",
    ),
    key(
        "gateway",
        "stream",
        Kind::List,
        Some("same"),
        "TCP ports for clients without UDP: same, off, :443, ADDRESS:PORT",
    ),
    key(
        "gateway",
        "stream_certificate",
        Kind::Text,
        None,
        "PEM file of the TLS certificate; without, one is made",
    ),
    key("gateway", "stream_key", Kind::Text, None, "PEM file of the key of that certificate"),
    key(
        "gateway",
        "stream_web",
        Kind::Text,
        Some("page"),
        "what web visitors get: page, a directory, http://HOST:PORT",
    ),
    key(
        "gateway",
        "stream_path",
        Kind::Text,
        None,
        "path of the WebSocket; without, it follows from the key",
    ),
    key(
        "client",
        "kill_switch",
        Kind::Text,
        Some("auto"),
        "auto, on or off: nothing gets in or out but through the tunnel; auto is on with a full tunnel",
    ),
    key(
        "client",
        "allow_lan",
        Kind::Switch,
        Some("false"),
        "private networks stay within reach beside the kill switch",
    ),
    key("client", "include", Kind::List, None, "only these networks and domains go through the tunnel"),
    key("client", "exclude", Kind::List, None, "these networks and domains go beside the tunnel"),
    key("client", "lockdown", Kind::Switch, Some("false"), "nothing leaves beside the tunnel, from boot on"),
    key("client", "carrier", Kind::Text, Some("auto"), "what carries messages: auto, udp, tcp, tls or wss"),
    key("client", "offload", Kind::Text, Some("auto"), "offloads of the kernel: auto or off"),
    key("client", "metrics", Kind::Text, Some("off"), "address:port where OpenMetrics are told, or off"),
    key(
        "client",
        "metrics_beyond_loopback",
        Kind::Switch,
        Some("false"),
        "other machines may ask for metrics, when their address lets them",
    ),
    key("client", "via", Kind::Text, None, "proxy that connects us: http://[USER@]HOST:PORT"),
    key("client", "via_password", Kind::Secret, None, "password for the proxy: env:NAME or file:PATH"),
    key("client", "sni", Kind::Text, None, "host name that TLS asks for, when not that of the gateway"),
    key(
        "client",
        "tls_verify",
        Kind::Text,
        Some("pinned"),
        "how TLS knows the gateway: pinned, webpki or off",
    ),
    key("client", "tls_pin", Kind::Text, None, "pin of the gateway's certificate: sha256:..."),
    key("client", "stream_endpoint", Kind::Text, None, "host:port for connections, when not that of UDP"),
    key(
        "client",
        "stream_path",
        Kind::Text,
        None,
        "path of the WebSocket, when the gateway has a stream_path",
    ),
    key("ip", "services", Kind::List, None, "URLs that `adit ip` asks in turn"),
    key("log", "level", Kind::Text, Some("info"), "off, error, warn, info, debug or trace"),
    key("log", "format", Kind::Text, Some("text"), "text or json"),
    key(
        "log",
        "file",
        Kind::Text,
        Some("-"),
        "path of the log file; - is standard error, journald the journal",
    ),
    key("log", "rotate_mib", Kind::NumberOrText, Some("10"), "size at which a log file is full"),
    key("log", "rotate_keep", Kind::NumberOrText, Some("1"), "how many full log files are kept"),
    key(
        "log",
        "events",
        Kind::Text,
        Some("events"),
        "events: who connected, left, was enrolled or refused is written down; off: nothing is",
    ),
    key("peer", "name", Kind::Text, None, "name of the peer"),
    key("peer", "public_key", Kind::Text, None, "key of the peer"),
    key("peer", "preshared_key", Kind::Secret, None, "second secret shared with the peer"),
    key("peer", "addresses", Kind::List, None, "inside addresses leased to the peer"),
    key("peer", "allowed_ips", Kind::List, None, "further networks behind the peer"),
    key("peer", "routes", Kind::List, None, "networks of the site behind the peer, which other sites reach"),
    key(
        "peer",
        "suite",
        Kind::Text,
        Some("chacha20-poly1305"),
        "aes-256-gcm (adit only) or chacha20-poly1305",
    ),
    key("peer", "endpoint", Kind::Text, None, "host:port of the peer, when it has a fixed one"),
    key("peer", "persistent_keepalive_secs", Kind::NumberOrText, Some("off"), "seconds between keepalives"),
    key("peer", "enabled", Kind::Switch, Some("true"), "false keeps the peer out"),
    key("peer", "tags", Kind::List, None, "words that you sort peers by"),
    key("peer", "expires", Kind::Text, None, "when its access ends: 2026-12-31 or 2026-12-31T18:00, in UTC"),
    key("peer", "rate", Kind::Text, None, "bits a second it may send, and as many it may be sent: 20M"),
    key("peer", "rate_up", Kind::Text, None, "bits a second it may send, if not those of `rate`"),
    key("peer", "rate_down", Kind::Text, None, "bits a second it may be sent, if not those of `rate`"),
    key("peer", "quota", Kind::Text, None, "bytes in each calendar month (UTC), both ways together: 50GB"),
    key("peer", "schedule", Kind::Text, None, "when it may connect: Mon-Fri 08:00-18:00, in UTC"),
];

/// Who decided a value; the first of these that did so counts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// A flag of the command line.
    Flag(String),
    /// An environment variable.
    Environment(String),
    /// The profile, at this line.
    Profile(usize),
    /// The configuration file, at this line.
    File(usize),
    /// Nobody.
    Default,
}

/// Flags and environment, which come before the file.
#[derive(Clone, Debug, Default)]
pub struct Layers {
    /// `(section.name, flag, value)`.
    pub flags: Vec<(String, String, String)>,
    /// Variables with their values.
    pub environment: Vec<(String, String)>,
}

/// Everything that was said, by key, and what could not even be read.
pub struct RawConfig {
    /// The file.
    pub source: Arc<Source>,
    /// The directory that relative `file:` paths start from.
    pub directory: PathBuf,
    pub(super) report: Report,
    /// Whether the file is no TOML in places, so that what is missing may only be misread.
    pub(super) is_damaged: bool,
    pub(super) version: Option<Raw>,
    pub(super) settings: BTreeMap<String, Raw>,
    pub(super) peers: Vec<RawPeer>,
}

pub(super) struct RawPeer {
    pub(super) place: Place,
    pub(super) values: BTreeMap<&'static str, Raw>,
}

/// A value as it was written.
pub(super) struct Raw {
    /// Lists have several items, all else has one; `None` is in the report already.
    pub(super) items: Option<Vec<Item>>,
    pub(super) place: Place,
    pub(super) origin: Origin,
}

pub(super) struct Item {
    pub(super) text: Zeroizing<String>,
    pub(super) place: Place,
}

impl Layers {
    /// No flags, and the environment of this process.
    pub fn from_environment() -> Self {
        let environment = std::env::vars_os()
            .map(|(name, value)| (name.to_string_lossy().into_owned(), value.to_string_lossy().into_owned()))
            .filter(|(name, _)| sections().any(|section| name.starts_with(&variable(section, ""))))
            .collect();
        Self { flags: Vec::new(), environment }
    }

    /// Whether anything is said about logging.
    pub fn speak_of_log(&self) -> bool {
        self.flags.iter().any(|(key, ..)| key.starts_with("log."))
            || self.environment.iter().any(|(name, _)| name.starts_with("ADIT_LOG_"))
    }

    /// Only what is said about one section.
    pub fn of_section(&self, section: &str) -> Self {
        let (key, name) = (format!("{section}."), variable(section, ""));
        Self {
            flags: self.flags.iter().filter(|(flag, ..)| flag.starts_with(&key)).cloned().collect(),
            environment: self.environment.iter().filter(|(it, _)| it.starts_with(&name)).cloned().collect(),
        }
    }

    /// Adds a flag that sets `key` (`section.name`).
    pub fn flag(&mut self, key: &'static str, flag: &str, value: impl fmt::Display) {
        self.flags.push((key.to_owned(), flag.to_owned(), value.to_string()));
    }
}

impl Key {
    /// `section.name`.
    pub fn path(&self) -> String {
        format!("{}.{}", self.section, self.name)
    }

    /// The environment variable of the key; the keys of peers have none.
    pub fn variable(&self) -> Option<String> {
        (self.section != "peer").then(|| variable(self.section, self.name))
    }
}

impl RawConfig {
    /// Reads `source`, then puts the environment and the flags over it.
    pub fn read(source: &Arc<Source>, directory: &Path, layers: &Layers) -> Self {
        let mut raw = Self {
            source: source.clone(),
            directory: directory.to_owned(),
            report: Report::new(source),
            is_damaged: false,
            version: None,
            settings: BTreeMap::new(),
            peers: Vec::new(),
        };
        let (table, errors) = DeTable::parse_recoverable(source.text());
        raw.is_damaged = !errors.is_empty();
        for error in errors {
            let place = error.span().map_or(Place::File, Place::Span);
            let fix = "correct the TOML here (strings in \"quotes\", one key = value per line)";
            raw.report.push(place, Complaint::new(error.message().replace('\n', ", "), fix));
        }
        raw.read_document(table.get_ref());
        raw.read_environment(layers);
        raw.read_flags(layers);
        raw
    }

    fn read_document(&mut self, table: &DeTable<'_>) {
        const TOP: [&str; 6] = ["config_version", "gateway", "peer", "client", "log", "ip"];
        for (name, value) in table.iter() {
            let span = value.span();
            match (name.get_ref().as_ref(), value.get_ref()) {
                ("config_version", version) => {
                    self.version = Some(self.scalar(version, span, "a number", |value| match value {
                        DeValue::Integer(number) => Some(number.to_string()),
                        _ => None,
                    }));
                }
                (section @ ("gateway" | "client" | "log" | "ip"), DeValue::Table(table)) => {
                    for (key, raw) in self.read_table(section, table) {
                        self.settings.insert(key.path(), raw);
                    }
                }
                ("peer", DeValue::Array(peers)) => {
                    for peer in peers.iter() {
                        let place = Place::Span(peer.span());
                        match peer.get_ref() {
                            DeValue::Table(table) => {
                                let values = self.read_table("peer", table);
                                let values = values.into_iter().map(|(key, raw)| (key.name, raw)).collect();
                                self.peers.push(RawPeer { place, values });
                            }
                            _ => self.report.push(place, complain_section("peer")),
                        }
                    }
                }
                (section @ ("gateway" | "client" | "log" | "peer" | "ip"), _) => {
                    let place = Place::Span(name.span());
                    for key in KEYS.iter().filter(|key| key.section == section) {
                        let raw = Raw { items: None, place: place.clone(), origin: self.origin(&span) };
                        self.settings.insert(key.path(), raw);
                    }
                    self.report.push(place, complain_section(section));
                }
                (unknown, _) => {
                    let in_section = KEYS.iter().find(|key| key.name == unknown);
                    let fix = match (did_you_mean(unknown, TOP), in_section) {
                        (Some("peer"), _) => "did you mean `[[peer]]`?".to_owned(),
                        (Some(word @ ("gateway" | "client" | "log" | "ip")), _) => {
                            format!("did you mean `[{word}]`?")
                        }
                        (Some(word), _) => format!("did you mean `{word}`?"),
                        (None, Some(key)) => format!("move it below `[{}]`", key.section),
                        (None, None) => {
                            "remove it; the sections are [gateway], [[peer]], [client], [log] and [ip]"
                                .to_owned()
                        }
                    };
                    self.report.push(
                        Place::Span(name.span()),
                        Complaint::new(format!("unknown key `{}`", unknown_name(unknown)), fix),
                    );
                }
            }
        }
    }

    fn read_table(&mut self, section: &str, table: &DeTable<'_>) -> Vec<(&'static Key, Raw)> {
        let mut values = Vec::new();
        for (name, value) in table.iter() {
            let Some(key) = find(section, name.get_ref()) else {
                let complaint = unknown_key(section, name.get_ref());
                self.report.push(Place::Span(name.span()), complaint);
                continue;
            };
            values.push((key, self.read_value(key, value.get_ref(), value.span())));
        }
        values
    }

    fn read_value(&mut self, key: &Key, value: &DeValue<'_>, span: Range<usize>) -> Raw {
        match key.kind {
            Kind::Text | Kind::Secret => self.scalar(value, span, "a string in \"quotes\"", text),
            Kind::NumberOrText => {
                self.scalar(value, span, "a number or a string in \"quotes\"", |value| match value {
                    DeValue::Integer(number) => Some(number.to_string()),
                    value => text(value),
                })
            }
            Kind::Switch => self.scalar(value, span, "true or false, without quotes", |value| {
                Some(value.as_bool()?.to_string())
            }),
            Kind::List => {
                let DeValue::Array(array) = value else {
                    return self.scalar(value, span, "an array of strings, like [\"a\", \"b\"]", text);
                };
                let items: Vec<Raw> = array
                    .iter()
                    .map(|item| self.scalar(item.get_ref(), item.span(), "a string in \"quotes\"", text))
                    .collect();
                let origin = self.origin(&span);
                let items: Option<Vec<Vec<Item>>> = items.into_iter().map(|raw| raw.items).collect();
                Raw {
                    items: items.map(|items| items.into_iter().flatten().collect()),
                    place: Place::Span(span),
                    origin,
                }
            }
        }
    }

    fn scalar(
        &mut self,
        value: &DeValue<'_>,
        span: Range<usize>,
        wanted: &str,
        take: impl Fn(&DeValue<'_>) -> Option<String>,
    ) -> Raw {
        let origin = self.origin(&span);
        let place = Place::Span(span);
        let Some(text) = take(value) else {
            let found = value.type_str();
            let complaint = Complaint::new(format!("this is a TOML {found}"), format!("write {wanted}"));
            self.report.push(place.clone(), complaint);
            return Raw { items: None, place, origin };
        };
        Raw::new(text, place, origin)
    }

    fn origin(&self, span: &Range<usize>) -> Origin {
        Origin::File(self.source.line(span.start))
    }

    fn read_environment(&mut self, layers: &Layers) {
        for (name, value) in &layers.environment {
            let place = Place::Outside(format!("environment variable {name}"));
            let key = KEYS.iter().find(|key| key.variable().as_ref() == Some(name));
            match key {
                Some(key) => {
                    let raw = Raw::new(value.clone(), place, Origin::Environment(name.clone()));
                    self.settings.insert(key.path(), raw);
                }
                None => {
                    let variables: Vec<String> = KEYS.iter().filter_map(Key::variable).collect();
                    let fix = match did_you_mean(name, variables.iter().map(String::as_str)) {
                        Some(word) => format!("did you mean {word}?"),
                        None => format!("run `unset {name}`"),
                    };
                    self.report.push(place, Complaint::new("no key has this environment variable", fix));
                }
            }
        }
    }

    fn read_flags(&mut self, layers: &Layers) {
        for (key, flag, value) in &layers.flags {
            let place = Place::Outside(format!("flag {flag}"));
            self.settings.insert(key.clone(), Raw::new(value.clone(), place, Origin::Flag(flag.clone())));
        }
    }
}

impl Raw {
    pub(super) fn new(text: String, place: Place, origin: Origin) -> Self {
        let item = Item { text: Zeroizing::new(text), place: place.clone() };
        Self { items: Some(vec![item]), place, origin }
    }

    /// The only item; `None` is in the report already.
    pub(super) fn item(&self) -> Option<&Item> {
        self.items.as_ref()?.first()
    }

    /// Whether the text of nothing was written.
    pub(super) fn is_empty(&self) -> bool {
        self.item().is_some_and(|item| item.text.is_empty())
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Flag(flag) => write!(f, "flag {flag}"),
            Self::Environment(name) => write!(f, "environment variable {name}"),
            Self::Profile(line) => write!(f, "profile, line {line}"),
            Self::File(line) => write!(f, "file, line {line}"),
            Self::Default => f.write_str("default"),
        }
    }
}

pub(super) fn find(section: &str, name: &str) -> Option<&'static Key> {
    KEYS.iter().find(|key| key.section == section && key.name == name)
}

fn sections() -> impl Iterator<Item = &'static str> {
    ["gateway", "client", "log", "ip"].into_iter()
}

fn variable(section: &str, name: &str) -> String {
    format!("ADIT_{section}_{name}").to_ascii_uppercase()
}

fn text(value: &DeValue<'_>) -> Option<String> {
    value.as_str().map(str::to_owned)
}

fn complain_section(section: &str) -> Complaint {
    let header = if section == "peer" { "[[peer]]" } else { &format!("[{section}]") };
    Complaint::new(
        format!("`{section}` is a section"),
        format!("write the line `{header}` and its keys below"),
    )
}

fn unknown_key(section: &str, name: &str) -> Complaint {
    let here = KEYS.iter().filter(|key| key.section == section);
    let fix = if let Some(word) = did_you_mean(name, here.clone().map(|key| key.name)) {
        format!("did you mean `{word}`?")
    } else if let Some(key) = KEYS.iter().find(|key| key.name == name) {
        format!("move it below `[{}]`", key.section)
    } else {
        let names: Vec<&str> = here.map(|key| key.name).collect();
        format!("remove it; the keys here are {}", names.join(", "))
    };
    Complaint::new(format!("unknown key `{}` in [{section}]", unknown_name(name)), fix)
}

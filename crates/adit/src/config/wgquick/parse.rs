//! The reading half: lines, sections, keys.

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use adit_proto::key::PublicKey;
use adit_proto::suite::Suite;
use ipnet::IpNet;

use super::{Hook, HookTime, Hooks, Interface, PeerSection, Table, WgQuick};
use crate::config::client::{accept, client_keys};
use crate::config::diagnostic::{Complaint, Place, Report, Source, did_you_mean, unknown_name};
use crate::config::host_port::{is_name, port_number};
use crate::config::network::parse_prefix;
use crate::config::value::{parse_fwmark, parse_keepalive, parse_mtu, parse_suite, parse_switch};
use crate::config::{Key, Kind, Mtu, PeerName, ProfileSetting};
use crate::keys::{self, KeyError};

const INTERFACE_KEYS: [&str; 12] = [
    "PrivateKey",
    "Address",
    "DNS",
    "MTU",
    "Table",
    "FwMark",
    "ListenPort",
    "PreUp",
    "PostUp",
    "PreDown",
    "PostDown",
    "SaveConfig",
];
const PEER_KEYS: [&str; 5] = ["PublicKey", "PresharedKey", "AllowedIPs", "Endpoint", "PersistentKeepalive"];
const OWN_KEYS: [&str; 3] = ["name", "suite", "inside_api"];

pub(super) fn parse(source: &Arc<Source>, hooks: Hooks) -> Result<WgQuick, Report> {
    let mut parser = Parser {
        hooks,
        report: Report::new(source),
        section: Section::None,
        interface: None,
        peers: Vec::new(),
    };
    let mut at = 0;
    for line in source.text().split_inclusive('\n') {
        parser.line(Piece { text: line, at });
        at += line.len();
    }
    parser.finish()
}

/// A part of the text that knows where it is.
#[derive(Clone, Copy)]
struct Piece<'a> {
    text: &'a str,
    at: usize,
}

enum Section {
    None,
    Interface,
    Peer,
    Unknown,
}

struct Parser {
    hooks: Hooks,
    report: Report,
    section: Section,
    interface: Option<InterfaceDraft>,
    peers: Vec<PeerDraft>,
}

struct InterfaceDraft {
    header: Place,
    seen: HashSet<&'static str>,
    private_key: Option<adit_proto::key::StaticSecret>,
    rest: InterfaceRest,
}

/// What an interface has without being told.
#[derive(Default)]
struct InterfaceRest {
    addresses: Vec<IpNet>,
    dns: Vec<IpAddr>,
    search_domains: Vec<String>,
    mtu: Mtu,
    table: Table,
    fwmark: Option<u32>,
    listen_port: u16,
    hooks: Vec<Hook>,
    save_config: bool,
    settings: Vec<ProfileSetting>,
}

struct PeerDraft {
    header: Place,
    seen: HashSet<&'static str>,
    public_key: Option<(PublicKey, Place)>,
    preshared_key: Option<adit_proto::key::PresharedKey>,
    name: Option<PeerName>,
    suite: Suite,
    allowed_ips: Vec<(IpNet, Place)>,
    endpoint: Option<crate::endpoint::HostPort>,
    persistent_keepalive_secs: u16,
    inside_api: Vec<SocketAddr>,
}

impl Parser {
    fn line(&mut self, line: Piece<'_>) {
        let (body, comment) = match line.text.find('#') {
            Some(hash) => (line.slice(0, hash), Some(line.slice(hash + 1, line.text.len()))),
            None => (line, None),
        };
        let body = body.trim();
        if let Some(nul) = line.text.find('\0') {
            let fix = "this is not a text file, or a damaged one: copy it again";
            self.error(line.slice(nul, nul + 1), "there is a NUL byte in the file", fix);
        } else if body.text.starts_with('[') {
            self.header(body);
        } else if !body.text.is_empty() {
            self.pair(body);
        }
        if let Some(comment) = comment {
            self.comment(comment.trim());
        }
    }

    fn header(&mut self, header: Piece<'_>) {
        let name = header.text.trim_start_matches('[').trim_end_matches(']').trim();
        if header.text.eq_ignore_ascii_case("[interface]") {
            self.section = Section::Interface;
            if self.interface.is_some() {
                self.error(
                    header,
                    "there is a second [Interface] section",
                    "put its keys into the first one",
                );
            } else {
                self.interface = Some(InterfaceDraft::new(header.place()));
            }
        } else if header.text.eq_ignore_ascii_case("[peer]") {
            self.section = Section::Peer;
            self.peers.push(PeerDraft::new(header.place()));
        } else {
            self.section = Section::Unknown;
            let fix = match did_you_mean(name, ["Interface", "Peer"]) {
                Some(word) => format!("did you mean `[{word}]`?"),
                None => "the sections are [Interface] and [Peer]".to_owned(),
            };
            self.error(header, "unknown section", fix);
        }
    }

    fn pair(&mut self, body: Piece<'_>) {
        let Some(equals) = body.text.find('=') else {
            return self.error(
                body,
                "this is neither a section nor a key",
                "write `Key = value`, or `#` before a comment",
            );
        };
        let key = body.slice(0, equals).trim();
        let value = body.slice(equals + 1, body.text.len()).trim();
        match self.section {
            Section::Interface => self.interface_key(key, value),
            Section::Peer => self.peer_key(key, value),
            Section::Unknown => {}
            Section::None => {
                self.error(key, "this key stands before any section", "write `[Interface]` above it");
            }
        }
    }

    fn interface_key(&mut self, key: Piece<'_>, value: Piece<'_>) {
        let Some(name) = known(key.text, &INTERFACE_KEYS) else {
            return self.unknown_key(key, "[Interface]", &INTERFACE_KEYS, &PEER_KEYS, "[Peer]");
        };
        let Some(mut draft) = self.interface.take() else { return };
        let repeatable =
            matches!(name, "Address" | "DNS") || HookTime::ALL.iter().any(|when| when.key() == name);
        if !draft.seen.insert(name) && !repeatable {
            self.second(key, name);
        }
        let rest = &mut draft.rest;
        match name {
            "PrivateKey" => draft.private_key = self.key(value, keys::parse_private),
            "Address" => rest.addresses.extend(self.list(value, parse_prefix)),
            "DNS" => {
                for entry in self.list(value, parse_dns) {
                    match entry {
                        Dns::Server(address) => rest.dns.push(address),
                        Dns::Domain(domain) => rest.search_domains.push(domain),
                    }
                }
            }
            "MTU" => rest.mtu = self.value(value, parse_mtu).unwrap_or_default(),
            "Table" => rest.table = self.value(value, parse_table).unwrap_or_default(),
            "FwMark" => rest.fwmark = self.value(value, |text| parse_fwmark(&text.to_ascii_lowercase())),
            "ListenPort" => rest.listen_port = self.value(value, parse_listen_port).unwrap_or_default(),
            "SaveConfig" => rest.save_config = self.value(value, parse_switch).unwrap_or_default(),
            _ => {
                let when = HookTime::ALL.into_iter().find(|when| when.key() == name);
                rest.hooks.extend(when.and_then(|when| self.hook(when, key, value)));
            }
        }
        self.interface = Some(draft);
    }

    fn peer_key(&mut self, key: Piece<'_>, value: Piece<'_>) {
        let Some(name) = known(key.text, &PEER_KEYS) else {
            return self.unknown_key(key, "[Peer]", &PEER_KEYS, &INTERFACE_KEYS, "[Interface]");
        };
        let Some(mut draft) = self.peers.pop() else { return };
        if !draft.seen.insert(name) && name != "AllowedIPs" {
            self.second(key, name);
        }
        match name {
            "PublicKey" => {
                draft.public_key = self.key(value, keys::parse_public).map(|key| (key, value.place()))
            }
            "PresharedKey" => {
                draft.preshared_key = self.key(value, keys::parse_preshared).filter(|key| key.is_set())
            }
            "AllowedIPs" => {
                for item in value.items() {
                    if let Some(network) = self.value(item, parse_prefix) {
                        draft.allowed_ips.push((network.trunc(), item.place()));
                    }
                }
            }
            "Endpoint" => draft.endpoint = self.value(value, str::parse),
            _ => draft.persistent_keepalive_secs = self.value(value, parse_keepalive).unwrap_or_default(),
        }
        self.peers.push(draft);
    }

    fn comment(&mut self, comment: Piece<'_>) {
        let Some((prefix, _)) = comment.text.split_once(':') else { return };
        if !prefix.trim_end().eq_ignore_ascii_case("adit") {
            return;
        }
        let setting = comment.slice(prefix.len() + 1, comment.text.len()).trim();
        let Some(equals) = setting.text.find('=') else {
            let fix = "write `# adit: suite = aes-256-gcm`, or begin the comment with another word";
            return self.error(comment, "a comment that begins with `adit:` is a setting", fix);
        };
        let key = setting.slice(0, equals).trim();
        let value = setting.slice(equals + 1, setting.text.len()).trim();
        if let Some(known) = client_keys().find(|known| known.name.eq_ignore_ascii_case(key.text)) {
            return self.client_setting(known, key, value);
        }
        let Some(name) = known(key.text, &OWN_KEYS) else {
            let names = || OWN_KEYS.into_iter().chain(client_keys().map(|key| key.name));
            let fix = match did_you_mean(key.text, names()) {
                Some(word) => format!("did you mean `{word}`?"),
                None => format!("the settings are {}", names().collect::<Vec<_>>().join(", ")),
            };
            return self.error(key, &format!("unknown setting `{}`", unknown_name(key.text)), fix);
        };
        let Section::Peer = self.section else {
            return self.error(key, &format!("`{name}` belongs to a peer"), "move the line below [Peer]");
        };
        let Some(mut draft) = self.peers.pop() else { return };
        if !draft.seen.insert(name) {
            self.second(key, name);
        }
        match name {
            "name" => draft.name = self.value(value, str::parse),
            "inside_api" => draft.inside_api = self.list(value, parse_socket_address),
            _ => draft.suite = self.value(value, parse_suite).unwrap_or_default(),
        }
        self.peers.push(draft);
    }

    fn client_setting(&mut self, known: &'static Key, key: Piece<'_>, value: Piece<'_>) {
        let Section::Interface = self.section else {
            let reason = format!("`{}` belongs to the client", known.name);
            return self.error(key, &reason, "move the line below [Interface]");
        };
        let Some(mut draft) = self.interface.take() else { return };
        if !draft.seen.insert(known.name) && known.kind != Kind::List {
            self.second(key, known.name);
        }
        let is_right = match known.kind {
            Kind::List => self.list(value, |text| accept(known.name, text)).len() == value.items().count(),
            _ => self.value(value, |text| accept(known.name, text)).is_some(),
        };
        if is_right {
            let source = self.report.source();
            let place = (source.name().to_owned(), source.line(key.at));
            draft.rest.settings.push(ProfileSetting {
                name: known.name,
                value: value.text.to_owned(),
                place,
            });
        }
        self.interface = Some(draft);
    }

    fn hook(&mut self, when: HookTime, key: Piece<'_>, value: Piece<'_>) -> Option<Hook> {
        match self.hooks {
            Hooks::Allowed if !value.text.is_empty() => Some(Hook { when, command: value.text.to_owned() }),
            Hooks::Allowed => None,
            Hooks::Refused => {
                let reason = format!("`{}` runs a command as root", when.key());
                let fix = "read the command; if you trust the file add --allow-hooks, else remove the line";
                self.error(key, &reason, fix);
                None
            }
        }
    }

    fn finish(mut self) -> Result<WgQuick, Report> {
        let peers = self.finish_peers();
        let Some(draft) = self.interface.take() else {
            let fix = "begin with `[Interface]` and your `PrivateKey = ...`; is this a wg-quick file?";
            self.report.push(Place::File, Complaint::new("there is no [Interface] section", fix));
            return self.report.into_result(None);
        };
        if draft.private_key.is_none() && !draft.seen.contains("PrivateKey") {
            let fix = "add `PrivateKey = ...` (`adit genkey` makes one)";
            self.report.push(draft.header, Complaint::new("this interface has no key", fix));
        }
        let rest = draft.rest;
        let interface = draft.private_key.map(|private_key| Interface {
            private_key,
            addresses: rest.addresses,
            dns: rest.dns,
            search_domains: rest.search_domains,
            mtu: rest.mtu,
            table: rest.table,
            fwmark: rest.fwmark,
            listen_port: rest.listen_port,
            hooks: rest.hooks,
            save_config: rest.save_config,
            settings: rest.settings,
        });
        let file = interface.zip(peers).map(|(interface, peers)| WgQuick { interface, peers });
        self.report.into_result(file)
    }

    fn finish_peers(&mut self) -> Option<Vec<PeerSection>> {
        let drafts = std::mem::take(&mut self.peers);
        let count = drafts.len();
        let mut keys = HashSet::new();
        let mut owners: HashMap<IpNet, usize> = HashMap::new();
        let mut peers = Vec::with_capacity(count);
        for (index, draft) in drafts.into_iter().enumerate() {
            let mut allowed_ips = Vec::with_capacity(draft.allowed_ips.len());
            for (network, place) in draft.allowed_ips {
                match owners.insert(network, index) {
                    None => allowed_ips.push(network),
                    Some(owner) if owner == index => {}
                    Some(_) => {
                        let reason = format!("{network} belongs to a peer above already");
                        self.report.push(place, Complaint::new(reason, "give each network to one peer only"));
                    }
                }
            }
            let Some((public_key, place)) = draft.public_key else {
                if !draft.seen.contains("PublicKey") {
                    let complaint = Complaint::new("this peer has no key", "add `PublicKey = ...`");
                    self.report.push(draft.header, complaint);
                }
                continue;
            };
            if !keys.insert(public_key) {
                let fix = "put both into one [Peer] section, or correct the key";
                self.report.push(place, Complaint::new("this key belongs to a peer above already", fix));
            }
            peers.push(PeerSection {
                name: draft.name,
                suite: draft.suite,
                public_key,
                preshared_key: draft.preshared_key,
                allowed_ips,
                endpoint: draft.endpoint,
                persistent_keepalive_secs: draft.persistent_keepalive_secs,
                inside_api: draft.inside_api,
            });
        }
        (peers.len() == count).then_some(peers)
    }

    fn list<T>(&mut self, value: Piece<'_>, parse: impl Fn(&str) -> Result<T, Complaint>) -> Vec<T> {
        value.items().filter_map(|item| self.value(item, &parse)).collect()
    }

    fn value<T>(&mut self, value: Piece<'_>, parse: impl Fn(&str) -> Result<T, Complaint>) -> Option<T> {
        parse(value.text).map_err(|complaint| self.report.push(value.place(), complaint)).ok()
    }

    fn key<T>(&mut self, value: Piece<'_>, parse: impl Fn(&str) -> Result<T, KeyError>) -> Option<T> {
        let fix = "copy the whole key as `wg` or `adit` prints it: 44 characters, ending in =";
        self.value(value, |text| parse(text).map_err(|error| Complaint::new(error.to_string(), fix)))
    }

    fn second(&mut self, key: Piece<'_>, name: &str) {
        self.error(key, &format!("`{name}` is there twice"), "keep one of the two");
    }

    fn unknown_key(
        &mut self,
        key: Piece<'_>,
        here: &str,
        keys: &[&str],
        others: &[&'static str],
        there: &str,
    ) {
        let fix = if let Some(name) = known(key.text, others) {
            format!("move `{name}` below {there}")
        } else if let Some(word) = did_you_mean(key.text, keys.iter().copied()) {
            format!("did you mean `{word}`?")
        } else {
            format!("remove it; the keys here are {}", keys.join(", "))
        };
        self.error(key, &format!("unknown key `{}` in {here}", unknown_name(key.text)), fix);
    }

    fn error(&mut self, piece: Piece<'_>, reason: &str, fix: impl Into<String>) {
        self.report.push(piece.place(), Complaint::new(reason, fix));
    }
}

impl<'a> Piece<'a> {
    fn slice(self, from: usize, to: usize) -> Self {
        Self { text: self.text.get(from..to).unwrap_or_default(), at: self.at + from }
    }

    fn trim(self) -> Self {
        let start = self.text.len() - self.text.trim_start().len();
        Self { text: self.text.trim(), at: self.at + start }
    }

    /// The parts between commas; an empty value has none.
    fn items(self) -> impl Iterator<Item = Self> + 'a {
        let mut at = self.at;
        let parts = self.text.split(',').map(move |text| {
            let piece = Piece { text, at }.trim();
            at += text.len() + 1;
            piece
        });
        let empty = self.text.is_empty();
        parts.filter(move |_| !empty)
    }

    fn place(self) -> Place {
        Place::Span(self.at..self.at + self.text.len().max(1))
    }
}

impl InterfaceDraft {
    fn new(header: Place) -> Self {
        Self { header, seen: HashSet::new(), private_key: None, rest: InterfaceRest::default() }
    }
}

impl PeerDraft {
    fn new(header: Place) -> Self {
        Self {
            header,
            seen: HashSet::new(),
            public_key: None,
            preshared_key: None,
            name: None,
            suite: Suite::default(),
            allowed_ips: Vec::new(),
            endpoint: None,
            persistent_keepalive_secs: 0,
            inside_api: Vec::new(),
        }
    }
}

enum Dns {
    Server(IpAddr),
    Domain(String),
}

fn parse_dns(text: &str) -> Result<Dns, Complaint> {
    if let Ok(address) = text.parse() {
        Ok(Dns::Server(address))
    } else if is_name(text) {
        Ok(Dns::Domain(text.to_owned()))
    } else {
        let fix = "write addresses of DNS servers, or search domains, with commas between";
        Err(Complaint::new(format!("`{text}` is neither an address nor a domain"), fix))
    }
}

fn parse_table(text: &str) -> Result<Table, Complaint> {
    match (text, parse_fwmark(text)) {
        ("auto", _) => Ok(Table::Auto),
        ("off", _) => Ok(Table::Off),
        // The names that every `/etc/iproute2/rt_tables` has (`rtnetlink(7)`).
        ("default", _) => Ok(Table::Number(253)),
        ("main", _) => Ok(Table::Number(254)),
        ("local", _) => Ok(Table::Number(255)),
        // Tables are written like marks: decimal, or hexadecimal behind 0x.
        (_, Ok(table @ 1..)) => Ok(Table::Number(table)),
        _ => Err(Complaint::new(
            format!("`{text}` is not a routing table"),
            "write `auto`, `off`, `main` or the number of a table (other names are in /etc/iproute2/rt_tables)",
        )),
    }
}

fn parse_listen_port(text: &str) -> Result<u16, Complaint> {
    port_number(text).ok_or_else(|| {
        Complaint::new(format!("`{text}` is not a port"), "write a number from 0 (any free port) to 65535")
    })
}

fn parse_socket_address(text: &str) -> Result<SocketAddr, Complaint> {
    text.parse().ok().filter(|address: &SocketAddr| address.port() != 0).ok_or_else(|| {
        Complaint::new(
            format!("`{text}` is not an address with a port"),
            "write it as the gateway did, for example 10.86.0.1:9585 or [fd86::1]:9585",
        )
    })
}

fn known(key: &str, keys: &[&'static str]) -> Option<&'static str> {
    keys.iter().find(|name| name.eq_ignore_ascii_case(key)).copied()
}

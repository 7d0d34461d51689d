//! One UAPI request as text, parsed whole before anything is applied.
//!
//! Unlike wireguard-go, which applies a `set` line by line and may stop in the middle, a request
//! with one wrong line changes nothing here.

use std::net::{IpAddr, SocketAddr, SocketAddrV6};

use adit_proto::allowed_ips::Prefix;
use adit_proto::endpoint::Endpoint;
use adit_proto::event::{AllowedIpChange, Command, PeerUpdate};
use adit_proto::key::{PresharedKey, PublicKey, StaticSecret};
use adit_proto::suite::Suite;
use zeroize::Zeroizing;

/// What a client asks for.
#[derive(Debug)]
pub enum Request {
    /// `get=1`: print the device and its peers.
    Get,
    /// `set=1`: change them.
    Set(SetRequest),
}

/// The changes of one `set=1`, in the order of their lines.
#[derive(Debug, Default)]
pub struct SetRequest {
    /// The UDP port to listen on; 0 picks one.
    pub listen_port: Option<u16>,
    /// The mark of outgoing packets; 0 clears it.
    pub fwmark: Option<u32>,
    /// Changes for the engine.
    pub commands: Vec<Command>,
}

/// Why a request was refused; answered as a negative `errno`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    /// A key or a value that the protocol does not know.
    #[error("line {line} has an unknown key or a value that cannot be read")]
    Invalid {
        /// Counted from 1, the operation line included.
        line: usize,
    },
    /// Not a `get=1` or `set=1` that ends with an empty line.
    #[error("the request is no get=1 or set=1 ended by an empty line")]
    Malformed,
}

impl RequestError {
    /// The number after `errno=-`.
    pub fn errno(self) -> i32 {
        match self {
            Self::Invalid { .. } => EINVAL,
            Self::Malformed => EPROTO,
        }
    }
}

pub(super) const EIO: i32 = 5;
pub(super) const E2BIG: i32 = 7;
pub(super) const EINVAL: i32 = 22;
pub(super) const EPROTO: i32 = 71;
pub(super) const EADDRINUSE: i32 = 98;

/// Parses one request, its closing empty line included. Link-local scopes must be numbers.
///
/// # Errors
/// [`RequestError`] with the line that is wrong.
pub fn parse(text: &[u8]) -> Result<Request, RequestError> {
    parse_with(text, &|_| None)
}

/// Like [`parse`]; `scope_index` turns an interface name after `%` into its index.
///
/// # Errors
/// [`RequestError`] with the line that is wrong.
pub fn parse_with(text: &[u8], scope_index: &dyn Fn(&str) -> Option<u32>) -> Result<Request, RequestError> {
    let text = str::from_utf8(text).map_err(|_| RequestError::Malformed)?;
    let body = text.strip_suffix("\n\n").ok_or(RequestError::Malformed)?;
    let mut lines = body.split('\n');
    match lines.next() {
        Some("get=1") if lines.next().is_none() => Ok(Request::Get),
        Some("set=1") => {
            let mut parser = Parser { request: SetRequest::default(), section: None, scope_index };
            for (number, line) in lines.enumerate() {
                parser.line(line).ok_or(RequestError::Invalid { line: number + 2 })?;
            }
            parser.close_section();
            Ok(Request::Set(parser.request))
        }
        _ => Err(RequestError::Malformed),
    }
}

/// Parses the text of a `set=1`, closing empty line included; the entry for fuzzing.
///
/// # Errors
/// [`RequestError`]; a `get=1` is [`RequestError::Malformed`] here.
pub fn parse_set(text: &[u8]) -> Result<SetRequest, RequestError> {
    match parse(text)? {
        Request::Set(request) => Ok(request),
        Request::Get => Err(RequestError::Malformed),
    }
}

struct Parser<'a> {
    request: SetRequest,
    section: Option<Section>,
    scope_index: &'a dyn Fn(&str) -> Option<u32>,
}

struct Section {
    update: PeerUpdate,
    remove: bool,
}

impl Parser<'_> {
    fn line(&mut self, line: &str) -> Option<()> {
        let (key, value) = line.split_once('=')?;
        if key == "public_key" {
            self.close_section();
            let update = PeerUpdate::new(PublicKey(*key_from_hex(value)?));
            self.section = Some(Section { update, remove: false });
            return Some(());
        }
        match &mut self.section {
            Some(section) => section.line(key, value, self.scope_index),
            None => self.device_line(key, value),
        }
    }

    fn device_line(&mut self, key: &str, value: &str) -> Option<()> {
        match key {
            "private_key" => {
                let bytes = key_from_hex(value)?;
                let secret = bytes.iter().any(|byte| *byte != 0).then(|| StaticSecret::from_bytes(*bytes));
                self.request.commands.push(Command::SetPrivateKey(secret));
            }
            "listen_port" => self.request.listen_port = Some(number(value)?.try_into().ok()?),
            "fwmark" => self.request.fwmark = Some(number(value)?),
            "replace_peers" => {
                is_true(value)?;
                self.request.commands.push(Command::RemoveAllPeers);
            }
            _ => return None,
        }
        Some(())
    }

    fn close_section(&mut self) {
        match self.section.take() {
            Some(Section { update, remove: true }) => {
                self.request.commands.push(Command::RemovePeer(update.public_key));
            }
            Some(Section { update, remove: false }) => self.request.commands.push(Command::SetPeer(update)),
            None => {}
        }
    }
}

impl Section {
    fn line(&mut self, key: &str, value: &str, scope_index: &dyn Fn(&str) -> Option<u32>) -> Option<()> {
        let update = &mut self.update;
        match key {
            "remove" => {
                is_true(value)?;
                self.remove = true;
            }
            "update_only" => {
                is_true(value)?;
                update.update_only = true;
            }
            "preshared_key" => update.preshared_key = Some(PresharedKey::from_bytes(*key_from_hex(value)?)),
            "endpoint" => update.endpoint = Some(Endpoint::udp(socket_address(value, scope_index)?)),
            "persistent_keepalive_interval" => {
                update.persistent_keepalive_secs = Some(number(value)?.try_into().ok()?);
            }
            "replace_allowed_ips" => {
                is_true(value)?;
                update.replace_allowed_ips = true;
                update.allowed_ips.clear();
            }
            "allowed_ip" => update.allowed_ips.push(allowed_ip_change(value)?),
            "protocol_version" if value == "1" => {}
            "suite" => update.suite = Some(Suite::from_name(value)?),
            _ => return None,
        }
        Some(())
    }
}

fn is_true(value: &str) -> Option<()> {
    (value == "true").then_some(())
}

fn number(value: &str) -> Option<u32> {
    let digits = !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_digit());
    digits.then(|| value.parse().ok()).flatten()
}

fn key_from_hex(value: &str) -> Option<Zeroizing<[u8; 32]>> {
    let mut key = Zeroizing::new([0; 32]);
    let (pairs, rest) = value.as_bytes().as_chunks::<2>();
    if pairs.len() != key.len() || !rest.is_empty() {
        return None;
    }
    for (byte, pair) in key.iter_mut().zip(pairs) {
        let [high, low] = pair.map(|digit| char::from(digit).to_digit(16));
        *byte = u8::try_from(high? << 4 | low?).ok()?;
    }
    Some(key)
}

fn allowed_ip_change(value: &str) -> Option<AllowedIpChange> {
    match value.strip_prefix('-') {
        Some(prefix) => prefix_of(prefix).map(AllowedIpChange::Remove),
        None => prefix_of(value).map(AllowedIpChange::Add),
    }
}

fn prefix_of(value: &str) -> Option<Prefix> {
    value.parse().ok()
}

fn socket_address(value: &str, scope_index: &dyn Fn(&str) -> Option<u32>) -> Option<SocketAddr> {
    if let Ok(address) = value.parse() {
        return Some(address);
    }
    let (inside, port) = value.strip_prefix('[')?.split_once("]:")?;
    let (address, scope) = inside.split_once('%')?;
    let IpAddr::V6(address) = address.parse().ok()? else { return None };
    let port = number(port)?.try_into().ok()?;
    Some(SocketAddr::V6(SocketAddrV6::new(address, port, 0, scope_index(scope)?)))
}

#[cfg(test)]
mod tests;

//! The URL of an invite: `adit://HOST:PORT/#…`, in which everything after `#` is base64url (`docs/invite.md`).

use std::net::{Ipv4Addr, SocketAddrV4};

use adit_proto::key::PublicKey;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use super::secret::{InviteSecret, SECRET_BYTES};
use crate::endpoint::HostPort;

/// The version of the bytes behind `#`.
const VERSION: u8 = 1;
/// Version, key of the gateway, secret, address of the invited, address and port of the inside API.
const FIXED_BYTES: usize = 1 + 32 + SECRET_BYTES + 4 + 4 + 2;
/// The first bytes of a hash over everything: a URL with a part missing is told from a wrong one.
const CHECK_BYTES: usize = 2;
/// The longest URL that is read.
pub const MAX_BYTES: usize = 4096;

/// A field of this type or above must be understood by whoever reads it.
const MUST_UNDERSTAND: u8 = 0x80;
const FIELD_ENDPOINT: u8 = 0x01;
const FIELD_TLS_PIN: u8 = 0x02;
const FIELD_SERVER_NAME: u8 = 0x03;
const FIELD_VOUCHED_FOR: u8 = 0x04;

/// What an invite URL says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InviteUrl {
    /// Where the gateway listens, by UDP.
    pub endpoint: HostPort,
    /// The key of the gateway.
    pub gateway: PublicKey,
    /// The secret.
    pub secret: InviteSecret,
    /// The inside address of the invited until it has joined.
    pub address: Ipv4Addr,
    /// Where the inside API answers.
    pub inside_api: SocketAddrV4,
    /// Other ways to the gateway, best first.
    pub others: Vec<OtherEndpoint>,
    /// SHA-256 of the public key (`SubjectPublicKeyInfo`) that the gateway's certificate has.
    pub tls_pin: Option<[u8; 32]>,
    /// The name to ask for in TLS, when it is not the host.
    pub server_name: Option<String>,
    /// The certificate is one that the usual authorities vouch for; the key in it may change.
    pub vouched_for: bool,
}

/// Another way to the gateway.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OtherEndpoint {
    /// How.
    pub carrier: CarrierKind,
    /// Where.
    pub at: HostPort,
}

/// What carries messages, by its number in a URL.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CarrierKind {
    /// Datagrams.
    Udp = 0,
    /// A TCP stream.
    Tcp = 1,
    /// A TLS stream.
    Tls = 2,
    /// A WebSocket in a TLS stream.
    Wss = 3,
}

/// Why a text is no invite. It never repeats what is behind `#`, which is a secret.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UrlError {
    /// It does not begin with `adit://`.
    #[error("this is no invite: one begins with adit://; copy the whole line that `adit invite` printed")]
    NotAnInvite,
    /// The host or port is wrong. It is not repeated: with a slip in it, it may be the secret.
    #[error(
        "the invite does not begin with adit://HOST:PORT/; copy the whole line that `adit invite` printed"
    )]
    Endpoint,
    /// There is nothing behind `#`.
    #[error(
        "the part behind # is missing from the invite; put the URL in 'single quotes', and copy the whole line that \
         `adit invite` printed"
    )]
    NoFragment,
    /// A part is missing or wrong.
    #[error("the invite is damaged or incomplete; copy the whole line that `adit invite` printed")]
    Damaged,
    /// It was made by a newer adit.
    #[error("the invite was made by a newer adit (version {0}); update adit here")]
    Newer(u8),
    /// It has a field that must be understood and is not.
    #[error("the invite needs something that this adit does not know (field {0:#04x}); update adit here")]
    Unknown(u8),
}

impl CarrierKind {
    fn from_number(number: u8) -> Option<Self> {
        [Self::Udp, Self::Tcp, Self::Tls, Self::Wss].into_iter().find(|it| *it as u8 == number)
    }
}

impl InviteUrl {
    /// The URL, erased when dropped.
    pub fn to_text(&self) -> Zeroizing<String> {
        let place = self.endpoint.to_string();
        let mut bytes = Zeroizing::new(Vec::with_capacity(MAX_BYTES));
        bytes.push(VERSION);
        bytes.extend_from_slice(&self.gateway.0);
        bytes.extend_from_slice(self.secret.as_bytes());
        bytes.extend_from_slice(&self.address.octets());
        bytes.extend_from_slice(&self.inside_api.ip().octets());
        bytes.extend_from_slice(&self.inside_api.port().to_be_bytes());
        for other in &self.others {
            let host = if other.at.host == self.endpoint.host { "" } else { &other.at.host };
            let port = other.at.port.to_be_bytes();
            push_field(&mut bytes, FIELD_ENDPOINT, &[&[other.carrier as u8], &port[..], host.as_bytes()]);
        }
        if let Some(pin) = &self.tls_pin {
            push_field(&mut bytes, FIELD_TLS_PIN, &[pin]);
        }
        if let Some(name) = &self.server_name {
            push_field(&mut bytes, FIELD_SERVER_NAME, &[name.as_bytes()]);
        }
        if self.vouched_for {
            push_field(&mut bytes, FIELD_VOUCHED_FOR, &[]);
        }
        let check = check(&place, &bytes);
        bytes.extend_from_slice(&check);
        let mut text = Zeroizing::new(String::with_capacity(2 * MAX_BYTES));
        text.push_str("adit://");
        text.push_str(&place);
        text.push_str("/#");
        URL_SAFE_NO_PAD.encode_string(&bytes[..], &mut text);
        text
    }

    /// Reads a URL; spaces and line ends around it are no matter.
    ///
    /// # Errors
    /// [`UrlError`].
    pub fn parse(text: &str) -> Result<Self, UrlError> {
        let text = text.trim();
        let rest = text.strip_prefix("adit://").filter(|_| text.len() <= MAX_BYTES);
        let rest = rest.ok_or(UrlError::NotAnInvite)?;
        let (place, fragment) = match rest.split_once('#') {
            Some((place, fragment)) => (place, fragment),
            None => (rest, ""),
        };
        let place = place.strip_suffix('/').unwrap_or(place);
        let endpoint: HostPort = place.parse().map_err(|_| UrlError::Endpoint)?;
        if fragment.is_empty() {
            return Err(UrlError::NoFragment);
        }
        let mut bytes = Zeroizing::new(Vec::with_capacity(MAX_BYTES));
        URL_SAFE_NO_PAD.decode_vec(fragment, &mut bytes).map_err(|_| UrlError::Damaged)?;
        match bytes.first() {
            Some(&VERSION) => {}
            Some(&version) if version > VERSION => return Err(UrlError::Newer(version)),
            _ => return Err(UrlError::Damaged),
        }
        let (body, sum) = bytes.split_last_chunk::<CHECK_BYTES>().ok_or(UrlError::Damaged)?;
        if *sum != check(&endpoint.to_string(), body) {
            return Err(UrlError::Damaged);
        }
        Self::read(endpoint, body).ok_or(UrlError::Damaged)?
    }

    /// `None` when it is too short somewhere.
    fn read(endpoint: HostPort, body: &[u8]) -> Option<Result<Self, UrlError>> {
        let (fixed, mut rest) = body.split_first_chunk::<FIXED_BYTES>()?;
        let fixed = &fixed[1..];
        let (gateway, fixed) = fixed.split_first_chunk::<32>()?;
        let (secret, fixed) = fixed.split_first_chunk::<SECRET_BYTES>()?;
        let (address, fixed) = fixed.split_first_chunk::<4>()?;
        let (api, port) = fixed.split_first_chunk::<4>()?;
        let port = u16::from_be_bytes(*port.first_chunk()?);
        let mut url = Self {
            gateway: PublicKey(*gateway),
            secret: InviteSecret::from_bytes(*secret),
            address: Ipv4Addr::from(*address),
            inside_api: SocketAddrV4::new(Ipv4Addr::from(*api), port),
            others: Vec::new(),
            tls_pin: None,
            server_name: None,
            vouched_for: false,
            endpoint,
        };
        while let Some((&[kind, length], after)) = rest.split_first_chunk::<2>() {
            let (value, after) = after.split_at_checked(length.into())?;
            rest = after;
            match kind {
                FIELD_ENDPOINT => {
                    let (&[carrier, high, low], host) = value.split_first_chunk::<3>()?;
                    let host = std::str::from_utf8(host).ok()?;
                    let host = if host.is_empty() { url.endpoint.host.clone() } else { host.to_owned() };
                    let at = HostPort { host, port: u16::from_be_bytes([high, low]) };
                    let at: HostPort = at.to_string().parse().ok()?;
                    // A way that this adit does not know is one that it cannot go.
                    url.others.extend(
                        CarrierKind::from_number(carrier).map(|carrier| OtherEndpoint { carrier, at }),
                    );
                }
                FIELD_TLS_PIN => url.tls_pin = Some(value.try_into().ok()?),
                FIELD_SERVER_NAME => {
                    url.server_name = Some(std::str::from_utf8(value).ok()?.to_owned());
                }
                FIELD_VOUCHED_FOR => url.vouched_for = true,
                MUST_UNDERSTAND.. => return Some(Err(UrlError::Unknown(kind))),
                _ => {}
            }
        }
        rest.is_empty().then_some(Ok(url))
    }
}

fn push_field(bytes: &mut Vec<u8>, kind: u8, parts: &[&[u8]]) {
    let length = parts.iter().map(|part| part.len()).sum::<usize>();
    // What is longer than a field can be is left out: each is only one more way to the gateway.
    let Ok(length) = u8::try_from(length) else { return };
    bytes.extend_from_slice(&[kind, length]);
    parts.iter().for_each(|part| bytes.extend_from_slice(part));
}

fn check(place: &str, bytes: &[u8]) -> [u8; CHECK_BYTES] {
    let digest = Sha256::new().chain_update(place).chain_update(bytes).finalize();
    [digest[0], digest[1]]
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn url() -> InviteUrl {
        InviteUrl {
            endpoint: "vpn.example.org:51820".parse().unwrap(),
            gateway: PublicKey([7; 32]),
            secret: InviteSecret::from_bytes([9; 16]),
            address: Ipv4Addr::new(10, 86, 0, 254),
            inside_api: "10.86.0.1:9585".parse().unwrap(),
            others: Vec::new(),
            tls_pin: None,
            server_name: None,
            vouched_for: false,
        }
    }

    /// `bytes` as the fragment of a URL whose check is right.
    fn with(bytes: &[u8]) -> String {
        let place = url().endpoint.to_string();
        let all = [bytes, &check(&place, bytes)].concat();
        format!("adit://{place}/#{}", URL_SAFE_NO_PAD.encode(all))
    }

    fn body() -> Vec<u8> {
        let text = url().to_text();
        let bytes = URL_SAFE_NO_PAD.decode(text.split_once('#').unwrap().1).unwrap();
        bytes[..bytes.len() - CHECK_BYTES].to_vec()
    }

    #[test]
    fn the_url_of_the_document_is_this() {
        assert_eq!(
            url().to_text().as_str(),
            "adit://vpn.example.org:51820/#AQcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHCQkJCQkJCQkJCQkJCQkJCQpWAP4KVgAB\
             JXGt6g"
        );
    }

    #[test]
    fn a_url_survives_its_text_form_with_every_field() {
        let mut full = url();
        full.endpoint = "[2001:db8::1]:443".parse().unwrap();
        full.others = [(CarrierKind::Udp, "192.0.2.1:51820"), (CarrierKind::Tls, "[2001:db8::1]:443")]
            .map(|(carrier, at)| OtherEndpoint { carrier, at: at.parse().unwrap() })
            .to_vec();
        full.tls_pin = Some([3; 32]);
        full.server_name = Some("www.example.org".to_owned());
        full.vouched_for = true;
        for url in [url(), full] {
            let text = url.to_text();
            assert_eq!(InviteUrl::parse(&text), Ok(url.clone()));
            assert_eq!(InviteUrl::parse(&format!("  {}\n", text.as_str())), Ok(url));
        }
    }

    #[test]
    fn a_url_with_a_part_missing_or_changed_is_refused_and_says_so() {
        let text = url().to_text();
        let start = text.find('#').unwrap();
        for end in start + 2..text.len() {
            assert_eq!(InviteUrl::parse(&text[..end]), Err(UrlError::Damaged), "{end}");
        }
        for at in start + 1..text.len() {
            let mut changed = text.as_bytes().to_vec();
            changed[at] = if changed[at] == b'A' { b'B' } else { b'A' };
            let changed = String::from_utf8(changed).unwrap();
            assert!(InviteUrl::parse(&changed).is_err(), "{at}");
        }
        let other_host = text.replace("vpn.", "vpm.");
        assert_eq!(InviteUrl::parse(&other_host), Err(UrlError::Damaged));
        for (text, error) in [
            ("", UrlError::NotAnInvite),
            ("https://vpn.example.org/#x", UrlError::NotAnInvite),
            ("adit://vpn.example.org:51820/", UrlError::NoFragment),
            ("adit://vpn.example.org:51820/#", UrlError::NoFragment),
        ] {
            assert_eq!(InviteUrl::parse(text), Err(error), "{text:?}");
        }
        assert_eq!(InviteUrl::parse("adit://vpn.example.org/#AQ"), Err(UrlError::Endpoint));
    }

    #[test]
    fn what_a_newer_adit_adds_is_passed_over_unless_it_must_be_understood() {
        let add = |field: &[u8]| InviteUrl::parse(&with(&[&body(), field].concat()));
        assert_eq!(add(&[0x7f, 2, 1, 2]), Ok(url()));
        assert_eq!(add(&[FIELD_ENDPOINT, 3, 99, 1, 1]), Ok(url()), "a carrier that is not known");
        assert_eq!(add(&[0x80, 0]), Err(UrlError::Unknown(0x80)));
        assert_eq!(add(&[0x7f, 9, 1]), Err(UrlError::Damaged), "longer than there is");
        let mut newer = body();
        newer[0] = 2;
        assert_eq!(InviteUrl::parse(&with(&newer)), Err(UrlError::Newer(2)));
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic_or_shows_its_secret(
            bytes in proptest::collection::vec(any::<u8>(), 0..200),
            text in "\\PC{0,80}",
        ) {
            for text in [with(&bytes), with(&[&body()[..], &bytes[..]].concat()), text] {
                if let Err(error) = InviteUrl::parse(&text) {
                    let fragment = text.split_once('#').map_or("", |(_, fragment)| fragment);
                    prop_assert!(fragment.len() < 4 || !error.to_string().contains(fragment));
                }
            }
        }
    }
}

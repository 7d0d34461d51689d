//! What a gateway gives a peer, and what becomes of it on the peer's side: a wg-quick file.

use std::net::{IpAddr, SocketAddr};

use adit_proto::key::{PresharedKey, PublicKey, StaticSecret};
use adit_proto::suite::Suite;
use anyhow::{Context, bail};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::config::stream::parse_tls_pin;
use crate::config::wgquick::{Interface, PeerSection, WgQuick};
use crate::config::{Config, Peer, PeerName, parse_suite};
use crate::endpoint::HostPort;
use crate::gateway::stream_offer;
use crate::home::Home;
use crate::invite::Terms;
use crate::keys::{self, SecretText};
use crate::stream::Recognition;

/// Keeps the way through a NAT open, so that others reach the client at any time.
const CLIENT_KEEPALIVE_SECS: u16 = 25;

const SCHEMA: u32 = 1;

/// Everything a client needs but its own key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lease {
    /// The name of the client at the gateway.
    pub name: PeerName,
    /// Its inside addresses.
    pub addresses: Vec<IpAddr>,
    /// The suite that the gateway has pinned for it.
    pub suite: Suite,
    /// The second secret of the two.
    pub preshared_key: Option<PresharedKey>,
    /// The key of the gateway.
    pub gateway: PublicKey,
    /// Where the gateway is.
    pub endpoint: HostPort,
    /// What goes through the tunnel.
    pub allowed_ips: Vec<IpNet>,
    /// DNS servers to use.
    pub dns: Vec<IpAddr>,
    /// Seconds between keepalives.
    pub persistent_keepalive_secs: u16,
    /// Where the inside API of the gateway answers.
    pub inside_api: Vec<SocketAddr>,
    /// What its certificate is recognised by.
    pub recognition: Recognition,
}

impl Lease {
    /// What `peer` has at the gateway of `home`.
    ///
    /// # Errors
    /// The configuration does not say where the gateway is.
    pub fn of(home: &Home, config: &Config, peer: &Peer, terms: &Terms) -> anyhow::Result<Self> {
        let allowed_ips = match &terms.split {
            None => vec![Ipv4Net::default().into(), Ipv6Net::default().into()],
            Some(networks) => {
                let own = config.gateway.addresses();
                let mut all: Vec<IpNet> = own.iter().chain(networks).map(IpNet::trunc).collect();
                all.sort();
                all.dedup();
                all
            }
        };
        Ok(Self {
            name: peer.name.clone(),
            addresses: peer.addresses.clone(),
            suite: peer.suite,
            preshared_key: peer.preshared_key.clone(),
            gateway: config.gateway.private_key.public_key(),
            endpoint: endpoint_of(home, config)?,
            allowed_ips,
            dns: if terms.dns.is_empty() && terms.split.is_none() {
                config.gateway.resolver_addresses()
            } else {
                terms.dns.clone()
            },
            persistent_keepalive_secs: CLIENT_KEEPALIVE_SECS,
            inside_api: config.gateway.inside_api(),
            recognition: recognition_of(home, config),
        })
    }

    /// The file of the client that has `private_key`.
    pub fn client_file(&self, private_key: StaticSecret) -> anyhow::Result<WgQuick> {
        let mut interface = Interface::new(private_key);
        interface.addresses = self.addresses.iter().map(|&address| address.into()).collect();
        interface.dns.clone_from(&self.dns);
        interface.settings.extend(self.recognition.setting());
        let mut gateway = PeerSection::new(self.gateway);
        gateway.name = Some("gateway".parse()?);
        gateway.suite = self.suite;
        gateway.preshared_key.clone_from(&self.preshared_key);
        gateway.allowed_ips.clone_from(&self.allowed_ips);
        gateway.endpoint = Some(self.endpoint.clone());
        gateway.persistent_keepalive_secs = self.persistent_keepalive_secs;
        gateway.inside_api.clone_from(&self.inside_api);
        Ok(WgQuick { interface, peers: vec![gateway] })
    }

    /// The lease as the inside API sends it, erased when dropped.
    pub fn to_json(&self) -> anyhow::Result<Zeroizing<Vec<u8>>> {
        let page = Page {
            schema: SCHEMA,
            name: self.name.to_string(),
            addresses: self.addresses.clone(),
            suite: self.suite.name().to_owned(),
            preshared_key: self
                .preshared_key
                .as_ref()
                .map(|key| SecretText(keys::secret_text(key.as_bytes()))),
            public_key: keys::public_text(&self.gateway),
            endpoint: self.endpoint.to_string(),
            allowed_ips: self.allowed_ips.clone(),
            dns: self.dns.clone(),
            persistent_keepalive_secs: self.persistent_keepalive_secs,
            inside_api: self.inside_api.clone(),
            tls_pin: match &self.recognition {
                Recognition::Pin(pin) => Some(pin.clone()),
                _ => None,
            },
            tls_verify: (self.recognition == Recognition::Authorities).then(|| WEBPKI.to_owned()),
        };
        let entries = self.allowed_ips.len() + self.dns.len() + 16;
        let mut text = Zeroizing::new(Vec::with_capacity(1024 + 64 * entries));
        serde_json::to_writer(&mut *text, &page)?;
        text.push(b'\n');
        Ok(text)
    }

    /// Reads what the inside API sent.
    ///
    /// # Errors
    /// It is no lease that this adit understands.
    pub fn from_json(text: &[u8]) -> anyhow::Result<Self> {
        let page: Page = serde_json::from_slice(text)?;
        if page.schema != SCHEMA {
            bail!("it has schema {}, not {SCHEMA}", page.schema);
        }
        if page.addresses.is_empty() {
            bail!("it has no address");
        }
        let preshared_key = page.preshared_key.map(|key| keys::parse_preshared(&key.0)).transpose()?;
        Ok(Self {
            name: page.name.parse()?,
            addresses: page.addresses,
            suite: parse_suite(&page.suite)?,
            preshared_key,
            gateway: keys::parse_public(&page.public_key)?,
            endpoint: page.endpoint.parse()?,
            allowed_ips: page.allowed_ips.iter().map(IpNet::trunc).collect(),
            dns: page.dns,
            persistent_keepalive_secs: page.persistent_keepalive_secs,
            inside_api: page.inside_api,
            recognition: match (page.tls_pin, page.tls_verify.as_deref()) {
                (_, Some(WEBPKI)) => Recognition::Authorities,
                (Some(pin), _) => Recognition::Pin(parse_tls_pin(&pin)?),
                (None, _) => Recognition::None,
            },
        })
    }
}

/// Where clients reach the gateway of `home`.
///
/// # Errors
/// The configuration does not say.
pub fn endpoint_of(home: &Home, config: &Config) -> anyhow::Result<HostPort> {
    config.gateway.endpoint.clone().with_context(|| {
        let path = home.config_file();
        format!(
            "the client must know where the gateway is: set `endpoint` below [gateway] in {}",
            path.display()
        )
    })
}

/// A peer gets on without: it is reached over UDP and TCP.
fn recognition_of(home: &Home, config: &Config) -> Recognition {
    stream_offer(home, config).unwrap_or_else(|error| {
        tracing::warn!("the profile has no pin for TLS: {error:#}");
        Recognition::None
    })
}

/// The suites that this host speaks well, the best first.
pub fn suites_here() -> Vec<Suite> {
    if has_aes_instructions() {
        vec![Suite::Aes256Gcm, Suite::ChaCha20Poly1305]
    } else {
        vec![Suite::ChaCha20Poly1305]
    }
}

/// The suite for a peer whose host speaks `theirs` well: AES where both have its instructions.
pub fn suite_for(theirs: &[Suite]) -> Suite {
    suites_here().into_iter().find(|suite| theirs.contains(suite)).unwrap_or_default()
}

fn has_aes_instructions() -> bool {
    #[cfg(target_arch = "x86_64")]
    return std::arch::is_x86_feature_detected!("aes") && std::arch::is_x86_feature_detected!("pclmulqdq");
    #[cfg(target_arch = "aarch64")]
    return std::arch::is_aarch64_feature_detected!("aes");
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    return false;
}

#[derive(Serialize, Deserialize)]
struct Page {
    schema: u32,
    name: String,
    addresses: Vec<IpAddr>,
    suite: String,
    preshared_key: Option<SecretText>,
    public_key: String,
    endpoint: String,
    allowed_ips: Vec<IpNet>,
    #[serde(default)]
    dns: Vec<IpAddr>,
    #[serde(default)]
    persistent_keepalive_secs: u16,
    #[serde(default)]
    inside_api: Vec<SocketAddr>,
    #[serde(default)]
    tls_pin: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    tls_verify: Option<String>,
}

/// The certificate is one that the authorities of the client's host vouch for.
const WEBPKI: &str = "webpki";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::wgquick::Hooks;
    use crate::config::{Layers, Source};

    fn home() -> Home {
        Home::new(Some("/nowhere".as_ref())).unwrap()
    }

    fn config(endpoint: &str) -> Config {
        let key = keys::secret_text(&[1; 32]);
        let text = format!(
            "config_version = 1\n[gateway]\nprivate_key = \"{}\"\nnetwork = \"10.9.0.0/24\"\n{endpoint}\n\
             [[peer]]\nname = \"laptop\"\naddresses = [\"10.9.0.2\"]\nsuite = \"aes-256-gcm\"\n\
             public_key = \"xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg=\"\n\
             preshared_key = \"xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg=\"\n",
            key.as_str()
        );
        Config::parse(&Source::new("test", text), "/".as_ref(), &Layers::default()).unwrap()
    }

    fn lease(split: Option<&str>) -> Lease {
        let config = config("endpoint = \"vpn.example.org:51820\"");
        let split = split.map(|net| vec![net.parse().unwrap()]);
        let terms = Terms { split, dns: vec!["10.9.0.1".parse().unwrap()], tags: Vec::new() };
        Lease::of(&home(), &config, &config.peers[0], &terms).unwrap()
    }

    #[test]
    fn a_lease_survives_its_way_through_the_tunnel() {
        let with = |recognition| Lease { recognition, ..lease(None) };
        let pin = "sha256:47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=";
        for lease in [
            with(Recognition::None),
            with(Recognition::Pin(pin.to_owned())),
            with(Recognition::Authorities),
            lease(Some("192.168.7.0/24")),
        ] {
            assert_eq!(Lease::from_json(&lease.to_json().unwrap()).unwrap(), lease);
        }
        let text = String::from_utf8(lease(None).to_json().unwrap().to_vec()).unwrap();
        for (from, to) in [
            ("\"schema\":1", "\"schema\":2"),
            ("[\"10.9.0.2\"]", "[]"),
            ("aes-256-gcm", "rot13"),
            ("\"laptop\"", "\"../x\""),
            ("vpn.example.org:51820", "vpn.example.org"),
        ] {
            let changed = text.replacen(from, to, 1);
            assert_ne!(changed, text);
            assert!(Lease::from_json(changed.as_bytes()).is_err(), "{changed}");
        }
    }

    #[test]
    fn a_split_tunnel_carries_the_gateways_networks_and_those_named() {
        let all: Vec<String> = lease(None).allowed_ips.iter().map(ToString::to_string).collect();
        assert_eq!(all, ["0.0.0.0/0", "::/0"]);
        let some: Vec<String> =
            lease(Some("192.168.7.9/24")).allowed_ips.iter().map(ToString::to_string).collect();
        assert_eq!(some, ["10.9.0.0/24", "192.168.7.0/24"]);
    }

    #[test]
    fn the_file_of_a_client_is_one_that_adit_reads() {
        let key = StaticSecret::from_bytes([5; 32]);
        let file = lease(None).client_file(key).unwrap();
        let source = Source::new("x.conf", file.to_text().as_str());
        assert_eq!(WgQuick::parse(&source, Hooks::Refused).unwrap(), file);
        assert!(file.to_text().contains("# adit: suite = aes-256-gcm"));
        let vouched = Lease { recognition: Recognition::Authorities, ..lease(None) };
        let file = vouched.client_file(StaticSecret::from_bytes([5; 32])).unwrap();
        assert!(file.to_text().contains("# adit: tls_verify = webpki"));
        let source = Source::new("x.conf", file.to_text().as_str());
        assert_eq!(WgQuick::parse(&source, Hooks::Refused).unwrap(), file);
    }

    #[test]
    fn without_an_endpoint_nobody_can_be_told_where_the_gateway_is() {
        let config = config("");
        let error = Lease::of(&home(), &config, &config.peers[0], &Terms::default()).unwrap_err();
        assert!(error.to_string().contains("set `endpoint` below [gateway]"), "{error}");
    }

    #[test]
    fn aes_is_for_two_that_both_have_it() {
        let best = suites_here()[0];
        assert_eq!(suite_for(&suites_here()), best);
        assert_eq!(suite_for(&[Suite::ChaCha20Poly1305]), Suite::ChaCha20Poly1305);
        assert_eq!(suite_for(&[]), Suite::ChaCha20Poly1305);
    }
}

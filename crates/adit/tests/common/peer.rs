use std::net::SocketAddr;

use adit::keys;
use adit_proto::key::{PresharedKey, PublicKey, StaticSecret};
use adit_proto::suite::Suite;

use super::{Family, inside, outside};

/// The port of every tunnel of these tests.
pub const PORT: u16 = 5001;

/// Our side of a tunnel.
pub struct Interface {
    pub secret: StaticSecret,
    /// The host number, which gives the inside addresses.
    pub number: u8,
    pub mtu_bytes: u32,
    pub peers: Vec<Peer>,
}

/// A peer, as a `[Peer]` section says it.
#[derive(Clone)]
pub struct Peer {
    pub public: PublicKey,
    pub suite: Suite,
    pub preshared: Option<PresharedKey>,
    pub endpoint: Option<SocketAddr>,
    pub allowed_ips: String,
    pub keepalive_secs: u16,
}

pub fn secret() -> StaticSecret {
    keys::generate_private().unwrap()
}

/// Where the tunnel of host `number` listens.
pub fn place(family: Family, number: u8) -> SocketAddr {
    SocketAddr::new(outside(family, number), PORT)
}

impl Interface {
    pub fn new(secret: &StaticSecret, number: u8, peers: impl Into<Vec<Peer>>) -> Self {
        Self { secret: secret.clone(), number, mtu_bytes: 1420, peers: peers.into() }
    }

    /// ADDRESS/LENGTH of both families.
    pub fn addresses(&self) -> [String; 2] {
        [(Family::V4, 24), (Family::V6, 64)]
            .map(|(family, length)| format!("{}/{length}", inside(family, self.number)))
    }

    /// The file for `wg setconf`, or with more lines for wg-quick.
    pub fn file(&self, more: &str) -> String {
        let key = keys::secret_text(self.secret.as_bytes());
        let mut text = format!("[Interface]\nPrivateKey = {}\nListenPort = {PORT}\n{more}", *key);
        self.peers.iter().for_each(|peer| text += &peer.section());
        text
    }
}

impl Peer {
    /// The owner of `secret` with the inside addresses of host `number`; where it is, is not known.
    pub fn new(secret: &StaticSecret, number: u8) -> Self {
        Self {
            public: secret.public_key(),
            suite: Suite::ChaCha20Poly1305,
            preshared: None,
            endpoint: None,
            allowed_ips: format!("{}/32, {}/128", inside(Family::V4, number), inside(Family::V6, number)),
            keepalive_secs: 0,
        }
    }

    pub fn at(mut self, endpoint: SocketAddr) -> Self {
        self.endpoint = Some(endpoint);
        self
    }

    pub fn suite(mut self, suite: Suite) -> Self {
        self.suite = suite;
        self
    }

    pub fn preshared(mut self, key: Option<&PresharedKey>) -> Self {
        self.preshared = key.cloned();
        self
    }

    pub fn keepalive(mut self, secs: u16) -> Self {
        self.keepalive_secs = secs;
        self
    }

    fn section(&self) -> String {
        let mut text = format!("[Peer]\nPublicKey = {}\n", keys::public_text(&self.public));
        if self.suite != Suite::default() {
            text += &format!("# adit: suite = {}\n", self.suite);
        }
        if let Some(key) = &self.preshared {
            text += &format!("PresharedKey = {}\n", *keys::secret_text(key.as_bytes()));
        }
        if let Some(endpoint) = self.endpoint {
            text += &format!("Endpoint = {endpoint}\n");
        }
        if self.keepalive_secs > 0 {
            text += &format!("PersistentKeepalive = {}\n", self.keepalive_secs);
        }
        text + &format!("AllowedIPs = {}\n", self.allowed_ips)
    }
}

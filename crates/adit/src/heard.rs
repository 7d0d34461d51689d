//! Where peers were last heard, kept over a restart so that both sides recover at once.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use adit_proto::event::{PeerStatus, Timestamps};
use adit_proto::key::PublicKey;
use adit_proto::time::Tai64n;
use serde::{Deserialize, Serialize};

use crate::{keys, private_file};

/// A peer, where it was, and when its last session began.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Heard {
    /// The peer.
    pub peer: PublicKey,
    /// Where it was.
    pub endpoint: SocketAddr,
    /// The wall clock, in seconds since 1970.
    pub at_unix_secs: u64,
    /// The newest initiations, so that a recorded one is worthless after a restart too.
    pub timestamps: Timestamps,
}

/// The file of a gateway or client with every peer that was heard. It holds no secret.
#[derive(Debug)]
pub struct HeardFile {
    path: PathBuf,
    saved: Vec<Heard>,
    not_before: Instant,
}

/// Sessions are renewed every two minutes and end after three: a peer heard longer ago has none.
pub const SESSION_SECS: u64 = 180;

const PAUSE: Duration = Duration::from_secs(5);
const SCHEMA: u32 = 1;

#[derive(Serialize, Deserialize)]
struct Page {
    schema: u32,
    peers: Vec<Line>,
}

#[derive(Serialize, Deserialize)]
struct Line {
    public_key: String,
    endpoint: SocketAddr,
    at_unix_secs: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    sent: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    received: Option<String>,
}

impl HeardFile {
    /// The file at `path`, and what is in it. A file that cannot be read is as good as none.
    pub fn load(path: PathBuf) -> (Self, Vec<Heard>) {
        let heard = match std::fs::read(&path) {
            Ok(bytes) => parse(&bytes).unwrap_or_else(|reason| {
                tracing::warn!("{} is passed over: {reason}", path.display());
                Vec::new()
            }),
            Err(error) => {
                tracing::debug!(%error, "no peers remembered");
                Vec::new()
            }
        };
        (Self { path, saved: heard.clone(), not_before: Instant::now() }, heard)
    }

    /// Writes `peers` down unless nothing changed or the last write was a moment ago; whether it is
    /// up to date now.
    pub fn save(&mut self, peers: &[PeerStatus], at_once: bool) -> bool {
        let heard: Vec<_> = peers.iter().filter_map(heard).collect();
        if heard == self.saved {
            return true;
        }
        let now = Instant::now();
        if now < self.not_before && !at_once {
            return false;
        }
        self.not_before = now + PAUSE;
        match private_file::write(&self.path, &print(&heard)) {
            Ok(()) => {
                self.saved = heard;
                true
            }
            Err(error) => {
                tracing::warn!("where peers are could not be written down: {error:#}");
                false
            }
        }
    }
}

fn heard(peer: &PeerStatus) -> Option<Heard> {
    let (endpoint, at) = (peer.endpoint?, peer.last_handshake?);
    let timestamps = peer.timestamps;
    Some(Heard { peer: peer.public_key, endpoint: endpoint.remote, at_unix_secs: at.secs, timestamps })
}

fn parse(bytes: &[u8]) -> Result<Vec<Heard>, String> {
    let page: Page = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
    if page.schema != SCHEMA {
        return Err(format!("it has schema {}, not {SCHEMA}", page.schema));
    }
    page.peers
        .into_iter()
        .map(|Line { public_key, endpoint, at_unix_secs, sent, received }| {
            let peer = keys::parse_public(&public_key).map_err(|error| error.to_string())?;
            let timestamps =
                Timestamps { sent: parse_timestamp(sent)?, received: parse_timestamp(received)? };
            Ok(Heard { peer, endpoint, at_unix_secs, timestamps })
        })
        .collect()
}

fn print(heard: &[Heard]) -> Vec<u8> {
    let line = |Heard { peer, endpoint, at_unix_secs, timestamps }: &Heard| Line {
        public_key: keys::public_text(peer),
        endpoint: *endpoint,
        at_unix_secs: *at_unix_secs,
        sent: timestamps.sent.map(print_timestamp),
        received: timestamps.received.map(print_timestamp),
    };
    let page = Page { schema: SCHEMA, peers: heard.iter().map(line).collect() };
    let mut text = serde_json::to_vec_pretty(&page).unwrap_or_default();
    text.push(b'\n');
    text
}

/// 24 hexadecimal digits, which sort like time.
fn print_timestamp(timestamp: Tai64n) -> String {
    timestamp.as_bytes().iter().map(|byte| format!("{byte:02x}")).collect()
}

fn parse_timestamp(text: Option<String>) -> Result<Option<Tai64n>, String> {
    let Some(text) = text else { return Ok(None) };
    let mut bytes = [0; 12];
    let wrong = || format!("{text:?} is no timestamp of 24 hexadecimal digits");
    if text.len() != 24 || !text.is_ascii() {
        return Err(wrong());
    }
    for (byte, digits) in bytes.iter_mut().zip(text.as_bytes().chunks(2)) {
        let digits = std::str::from_utf8(digits).map_err(|_| wrong())?;
        *byte = u8::from_str_radix(digits, 16).map_err(|_| wrong())?;
    }
    Ok(Some(Tai64n::from_bytes(bytes)))
}

#[cfg(test)]
mod tests {
    use adit_proto::endpoint::Endpoint;
    use adit_proto::key::PresharedKey;
    use adit_proto::suite::Suite;
    use adit_proto::time::UnixTime;

    use super::*;

    fn peer(number: u8, heard: bool) -> PeerStatus {
        PeerStatus {
            public_key: PublicKey([number; 32]),
            suite: Suite::Aes256Gcm,
            preshared_key: PresharedKey::from_bytes([0x5a; 32]),
            endpoint: Some(Endpoint::udp(([192, 0, 2, number], 51820).into())),
            heard_at: None,
            persistent_keepalive_secs: 0,
            allowed_ips: Vec::new(),
            last_handshake: heard.then_some(UnixTime { secs: 1_700_000_000, nanos: 0 }),
            last_handshake_at: None,
            timestamps: Timestamps { sent: None, received: Some(Tai64n::from_bytes([0x40; 12])) },
            rx_bytes: 0,
            tx_bytes: 0,
            rx_packets: 0,
            tx_packets: 0,
            numbered: None,
            has_session: heard,
            handshake_rtt: None,
            staged: 0,
            path_mtu: None,
            allowance: Default::default(),
        }
    }

    #[test]
    fn peers_that_were_heard_are_remembered_without_their_secrets() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("endpoints.json");
        let (mut file, before) = HeardFile::load(path.clone());
        assert_eq!(before, []);
        assert!(file.save(&[peer(1, true), peer(2, false)], false));
        let (_, after) = HeardFile::load(path.clone());
        let expected = Heard {
            peer: PublicKey([1; 32]),
            endpoint: "192.0.2.1:51820".parse().unwrap(),
            at_unix_secs: 1_700_000_000,
            timestamps: Timestamps { sent: None, received: Some(Tai64n::from_bytes([0x40; 12])) },
        };
        assert_eq!(after, [expected]);
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(!text.contains(&*keys::secret_text(&[0x5a; 32])), "{text}");
    }

    #[test]
    fn writes_are_rare_unless_it_is_the_last() {
        let directory = tempfile::tempdir().unwrap();
        let (mut file, _) = HeardFile::load(directory.path().join("endpoints.json"));
        assert!(file.save(&[peer(1, true)], false));
        assert!(file.save(&[peer(1, true)], false), "nothing new is nothing to write");
        assert!(!file.save(&[peer(3, true)], false));
        assert!(file.save(&[peer(3, true)], true));
    }

    #[test]
    fn a_broken_file_is_as_good_as_none() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("endpoints.json");
        for broken in
            ["", "{", "{\"schema\":9,\"peers\":[]}", "{\"schema\":1,\"peers\":[{\"public_key\":\"x\"}]}"]
        {
            std::fs::write(&path, broken).unwrap();
            let (mut file, heard) = HeardFile::load(path.clone());
            assert_eq!(heard, [], "{broken}");
            assert!(file.save(&[peer(1, true)], true));
        }
    }
}

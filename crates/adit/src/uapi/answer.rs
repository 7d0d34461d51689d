//! The answer to `get=1`: the device, then each peer.

use std::fmt::Write;

use adit_proto::event::PeerStatus;
use adit_proto::suite::Suite;
use zeroize::Zeroizing;

use crate::driver::Snapshot;

/// The device and its peers in UAPI text, `errno=0` and the closing empty line included.
///
/// The text holds the private key: it is erased when dropped, and is sized up front so that growing
/// leaves no copy behind.
pub fn describe(device: &Snapshot) -> Zeroizing<String> {
    let prefixes: usize = device.peers.iter().map(|peer| peer.allowed_ips.len()).sum();
    let capacity = 256 + device.peers.len() * BYTES_PER_PEER + prefixes * BYTES_PER_PREFIX;
    let mut text = Zeroizing::new(String::with_capacity(capacity));
    if let Some(secret) = &device.private_key {
        key_line(&mut text, "private_key", secret.as_bytes());
    }
    if device.listen_port != 0 {
        line(&mut text, format_args!("listen_port={}", device.listen_port));
    }
    if device.fwmark != 0 {
        line(&mut text, format_args!("fwmark={}", device.fwmark));
    }
    for peer in &device.peers {
        peer_lines(&mut text, peer);
    }
    text.push_str("errno=0\n\n");
    debug_assert!(text.len() <= capacity, "the answer outgrew its buffer");
    text
}

const BYTES_PER_PEER: usize = 640;
const BYTES_PER_PREFIX: usize = 64;

fn peer_lines(text: &mut String, peer: &PeerStatus) {
    key_line(text, "public_key", &peer.public_key.0);
    key_line(text, "preshared_key", peer.preshared_key.as_bytes());
    line(text, format_args!("protocol_version=1"));
    if peer.suite != Suite::default() {
        line(text, format_args!("suite={}", peer.suite));
    }
    if let Some(endpoint) = peer.endpoint {
        line(text, format_args!("endpoint={}", endpoint.remote));
    }
    let (secs, nanos) = peer.last_handshake.map_or((0, 0), |at| (at.secs, at.nanos));
    line(text, format_args!("last_handshake_time_sec={secs}"));
    line(text, format_args!("last_handshake_time_nsec={nanos}"));
    line(text, format_args!("tx_bytes={}", peer.tx_bytes));
    line(text, format_args!("rx_bytes={}", peer.rx_bytes));
    line(text, format_args!("persistent_keepalive_interval={}", peer.persistent_keepalive_secs));
    for prefix in &peer.allowed_ips {
        line(text, format_args!("allowed_ip={prefix}"));
    }
}

fn line(text: &mut String, content: std::fmt::Arguments<'_>) {
    let _ = writeln!(text, "{content}");
}

fn key_line(text: &mut String, key: &str, bytes: &[u8; 32]) {
    text.push_str(key);
    text.push('=');
    for byte in bytes {
        for nibble in [byte >> 4, byte & 15] {
            text.push(char::from_digit(u32::from(nibble), 16).unwrap_or('0'));
        }
    }
    text.push('\n');
}

#[cfg(test)]
mod tests {
    use adit_proto::endpoint::Endpoint;
    use adit_proto::event::Timestamps;
    use adit_proto::key::{PresharedKey, PublicKey, StaticSecret};
    use adit_proto::time::UnixTime;

    use super::*;

    fn device(peers: Vec<PeerStatus>) -> Snapshot {
        Snapshot {
            private_key: Some(StaticSecret::from_bytes([0x11; 32])),
            listen_port: 51820,
            fwmark: 0,
            peers,
            drops: Vec::new(),
            lanes: 1,
            offload: String::new(),
            queues: Vec::new(),
        }
    }

    fn peer(suite: Suite) -> PeerStatus {
        PeerStatus {
            public_key: PublicKey([0xab; 32]),
            suite,
            preshared_key: PresharedKey::default(),
            endpoint: Some(Endpoint::udp("[fe80::1%3]:9".parse().unwrap())),
            heard_at: None,
            persistent_keepalive_secs: 25,
            allowed_ips: vec!["10.0.0.0/8".parse().unwrap(), "::/0".parse().unwrap()],
            last_handshake: Some(UnixTime { secs: 1_700_000_000, nanos: 5 }),
            last_handshake_at: None,
            timestamps: Timestamps::default(),
            rx_bytes: 7,
            tx_bytes: 8,
            rx_packets: 0,
            tx_packets: 0,
            numbered: None,
            has_session: true,
            handshake_rtt: None,
            staged: 0,
            path_mtu: None,
            allowance: Default::default(),
        }
    }

    #[test]
    fn a_device_is_described_key_by_key() {
        let expected = format!(
            "private_key=10{}51\nlisten_port=51820\npublic_key={}\npreshared_key={}\nprotocol_version=1\n\
             endpoint=[fe80::1%3]:9\nlast_handshake_time_sec=1700000000\nlast_handshake_time_nsec=5\n\
             tx_bytes=8\nrx_bytes=7\npersistent_keepalive_interval=25\nallowed_ip=10.0.0.0/8\n\
             allowed_ip=::/0\nerrno=0\n\n",
            "11".repeat(30),
            "ab".repeat(32),
            "00".repeat(32)
        );
        assert_eq!(*describe(&device(vec![peer(Suite::ChaCha20Poly1305)])), expected);
    }

    #[test]
    fn only_a_suite_that_wireguard_does_not_have_is_named() {
        assert!(!describe(&device(vec![peer(Suite::ChaCha20Poly1305)])).contains("suite="));
        assert!(describe(&device(vec![peer(Suite::Aes256Gcm)])).contains("\nsuite=aes-256-gcm\n"));
    }

    #[test]
    fn the_longest_peer_fits_the_buffer() {
        let mut longest = peer(Suite::Aes256Gcm);
        longest.endpoint = Some(Endpoint::udp(
            "[ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff%4294967295]:65535".parse().unwrap(),
        ));
        longest.persistent_keepalive_secs = u16::MAX;
        longest.last_handshake = Some(UnixTime { secs: u64::MAX, nanos: u32::MAX });
        longest.rx_bytes = u64::MAX;
        longest.tx_bytes = u64::MAX;
        longest.allowed_ips = vec!["ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff/128".parse().unwrap(); 100];
        let mut snapshot = device(vec![longest; 50]);
        snapshot.fwmark = u32::MAX;
        let text = describe(&snapshot);
        assert!(text.ends_with("errno=0\n\n"));
    }
}

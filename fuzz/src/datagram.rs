//! Datagrams: the message parser against the byte offsets of the specification, and against the writers.

use adit_proto::reason::DropReason;
use adit_proto::suite::Suite;
use adit_proto::wire::{self, Message};

/// Any datagram, as it comes from the network.
pub fn run(data: &[u8]) {
    let (suite, message) = match Message::parse(data) {
        Ok(parsed) => parsed,
        Err(reason) => {
            assert!(matches!(reason, DropReason::MalformedDatagram | DropReason::UnknownType));
            assert!(!is_valid(data), "a valid message was refused: {reason:?}");
            return;
        }
    };
    assert!(is_valid(data), "an invalid message was accepted");
    let base = if suite == Suite::Aes256Gcm { 0x20 } else { 0 };
    let u32_at = |at: usize| u32::from_le_bytes(data[at..at + 4].try_into().unwrap());
    match message {
        Message::Initiation(m) => {
            assert_eq!(data[0], base + 1);
            assert_eq!((m.sender, &m.ephemeral[..]), (u32_at(4), &data[8..40]));
            assert_eq!(
                (&m.encrypted_static[..], &m.encrypted_timestamp[..]),
                (&data[40..88], &data[88..116])
            );
            assert_eq!((&m.mac1[..], &m.mac2[..], &m.bytes[..]), (&data[116..132], &data[132..], data));
            let written =
                wire::initiation(suite, m.sender, m.ephemeral, m.encrypted_static, m.encrypted_timestamp);
            assert_eq!(written[..116], data[..116]);
        }
        Message::Response(m) => {
            assert_eq!(data[0], base + 2);
            assert_eq!((m.sender, m.receiver, &m.ephemeral[..]), (u32_at(4), u32_at(8), &data[12..44]));
            assert_eq!(m.encrypted_nothing[..], data[44..60]);
            assert_eq!((&m.mac1[..], &m.mac2[..], &m.bytes[..]), (&data[60..76], &data[76..], data));
            let written = wire::response(suite, m.sender, m.receiver, m.ephemeral, m.encrypted_nothing);
            assert_eq!(written[..60], data[..60]);
        }
        Message::CookieReply(m) => {
            assert_eq!(data[0], base + 3);
            assert_eq!(m.receiver, u32_at(4));
            assert_eq!((&m.nonce[..], &m.encrypted_cookie[..]), (&data[8..32], &data[32..]));
            assert_eq!(wire::cookie_reply(suite, m.receiver, m.nonce, m.encrypted_cookie)[..], *data);
        }
        Message::Transport(m) => {
            assert_eq!(data[0], base + 4);
            assert_eq!(m.receiver, u32_at(4));
            assert_eq!(m.counter.to_le_bytes(), data[8..16]);
            assert_eq!(wire::transport_header(suite, m.receiver, m.counter)[..], data[..16]);
        }
    }
}

/// The sizes of `docs/protocol.md` section 2, once more.
fn is_valid(data: &[u8]) -> bool {
    let [kind, 0, 0, 0, ..] = *data else { return false };
    match kind {
        0x01 | 0x21 => data.len() == 148,
        0x02 | 0x22 => data.len() == 92,
        0x03 | 0x23 => data.len() == 64,
        0x04 | 0x24 => data.len() >= 32,
        _ => false,
    }
}

//! Transport messages that hold no honest packet.

use adit_proto::keypair::REJECT_AFTER_MESSAGES;
use adit_proto::reason::DropReason;
use adit_proto::suite::Suite;

use crate::common::*;

#[test]
fn p18_transport_messages_that_no_session_opens_are_dropped() {
    for suite in Suite::ALL {
        let mut pair = Pair::new(suite);
        pair.establish();
        let honest = pair.seal(0, &packet(0, b"honest"));
        for bit in 32..honest.len() * 8 {
            let mut changed = honest.clone();
            changed[bit / 8] ^= 1 << (bit % 8);
            let reason = if bit < 64 { DropReason::UnknownIndex } else { DropReason::BadTag };
            assert_eq!(pair.assert_ignored(1, elsewhere(), &changed, reason), 0);
        }
        for counter in [REJECT_AFTER_MESSAGES, u64::MAX] {
            let mut at_limit = honest.clone();
            at_limit[8..16].copy_from_slice(&counter.to_le_bytes());
            pair.assert_ignored(1, elsewhere(), &at_limit, DropReason::ExpiredKeypair);
        }
        for len in 0..honest.len() {
            let reason = if len < 32 { DropReason::MalformedDatagram } else { DropReason::BadTag };
            pair.assert_ignored(1, elsewhere(), &honest[..len], reason);
        }
        pair.receive(1, pair.hosts[0].endpoint, &honest);
        assert_eq!(pair.hosts[1].delivered, [packet(0, b"honest")]);
        pair.assert_ignored(1, elsewhere(), &honest, DropReason::Replay);
        assert_eq!(pair.believed_endpoint(1), pair.hosts[0].endpoint, "no forgery moved the endpoint");

        let late = pair.seal(0, &packet(0, b"late"));
        pair.skip(secs(180));
        pair.assert_ignored(1, elsewhere(), &late, DropReason::ExpiredKeypair);
    }
}

#[test]
fn p19_an_authentic_message_must_hold_an_honest_packet() {
    let v4 = packet(0, b"some payload");
    let mut v6 = vec![0x60, 0, 0, 0, 0, 8, 17, 64];
    v6.extend("fd00::1".parse::<core::net::Ipv6Addr>().unwrap().octets());
    v6.extend("fd00::2".parse::<core::net::Ipv6Addr>().unwrap().octets());
    v6.extend([0; 8]);
    let with = |packet: &[u8], at: usize, byte: u8| {
        let mut packet = packet.to_vec();
        packet[at] = byte;
        packet
    };
    let mut dishonest = vec![vec![0x45], vec![0x60], vec![0], vec![0; 16], vec![0x45; 19], vec![0x60; 39]];
    dishonest.extend([0, 1, 2, 3, 5, 7, 8, 15].map(|version: u8| with(&v4, 0, (version << 4) | 5)));
    dishonest.extend([0, 1, 4].map(|header_words: u8| with(&v4, 0, 0x40 | header_words)));
    dishonest.push(with(&v4, 3, v4.len() as u8 + 1));
    dishonest.push(with(&v4, 2, 0xff));
    dishonest.push(with(&v4, 3, 19));
    dishonest.push(with(&v6, 5, 9));
    dishonest.push(with(&v6, 4, 0xff));

    for suite in Suite::ALL {
        let mut pair = Pair::new(suite);
        pair.establish();
        let sent = pair.seen.len();
        for (n, plaintext) in (1..).zip(&dishonest) {
            let message = pair.seal(0, plaintext);
            pair.receive(1, pair.hosts[0].endpoint, &message);
            assert_eq!(pair.dropped(1, DropReason::MalformedInside), n, "{plaintext:02x?}");
        }
        let keepalive = pair.seal(0, b"");
        pair.receive(1, pair.hosts[0].endpoint, &keepalive);
        assert_eq!(pair.dropped(1, DropReason::MalformedInside), dishonest.len() as u64);
        assert!(pair.hosts[1].delivered.is_empty());
        assert_eq!(pair.seen.len(), sent, "nothing is answered");
        for honest in [&v4, &v6] {
            let message = pair.seal(0, honest);
            pair.receive(1, pair.hosts[0].endpoint, &message);
            assert_eq!(pair.hosts[1].delivered.last().unwrap(), honest);
        }
    }
}

#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::panic)]

use core::net::Ipv4Addr;

use proptest::prelude::*;
use zeroize::Zeroizing;

use super::*;
use crate::allowed_ips::AllowedIps;
use crate::cookie::CookieJar;
use crate::event::PeerId;
use crate::handshake::SessionKeys;
use crate::index::IndexWriter;
use crate::key::PublicKey;
use crate::keypair::blocks_of;
use crate::timers::{REJECT_AFTER_TIME, REKEY_AFTER_TIME, REKEY_BEFORE_REJECT};
use crate::wire::{self, COOKIE_REPLY_LEN, INITIATION_LEN, RESPONSE_LEN};

mod batch;
mod departure;
mod stream;

const US: PublicKey = PublicKey([0x0a; 32]);
const OUR_INDEX: u32 = 0x0102_0304;
const AWAITED_INDEX: u32 = 0x0506_0708;
const OTHER_INDEX: u32 = 0x0102_0305;
const NOW: Instant = Instant::from_millis(50_000);

/// A forwarding half published to by hand: one peer with the inside address 10.0.0.2, a second with
/// 10.0.0.64/26 and no endpoint.
struct Lane {
    forwarding: Forwarding,
    path: Arc<Path>,
    other: Arc<Path>,
    keypair: Arc<Keypair>,
    /// The same session at the peer.
    remote: Keypair,
    /// The session of the second peer, at that peer.
    other_remote: Keypair,
}

impl Lane {
    fn new(suite: Suite, initiator: bool) -> Self {
        let (mut keypairs, mut handshakes) = (IndexWriter::default(), IndexWriter::default());
        let forwarding = Forwarding::new(Arc::clone(keypairs.table()), Arc::clone(handshakes.table()));
        forwarding.mac1_keys.store(Some(Arc::new(Mac1Keys::new(&US))));
        let [path, other] =
            [0, 1].map(|n| Arc::new(Path::new(PeerId(n), PublicKey([n as u8 + 1; 32]), suite)));
        path.set_endpoint(Some(home()));
        let mut allowed_ips = AllowedIps::default();
        for (prefix, peer) in [("10.0.0.0/24", 0), ("10.0.0.64/26", 1)] {
            allowed_ips.insert(prefix.parse().unwrap(), peer);
        }
        let paths = vec![Some(Arc::clone(&path)), Some(Arc::clone(&other))];
        forwarding.table.store(Arc::new(RouteTable { routes: allowed_ips.publish(), paths }));

        let keypair = Arc::new(session(suite, initiator, &path));
        keypairs.reserve(&mut || OUR_INDEX);
        keypairs.publish(OUR_INDEX, Arc::clone(&keypair));
        handshakes.reserve(&mut || AWAITED_INDEX);
        handshakes.publish(AWAITED_INDEX, Arc::clone(&path));
        let remote = session(suite, !initiator, &path);
        keypairs.reserve(&mut || OTHER_INDEX);
        keypairs.publish(OTHER_INDEX, Arc::new(session_with(suite, initiator, &other, 5, OTHER_INDEX)));
        let other_remote = session_with(suite, !initiator, &other, 5, OTHER_INDEX);
        Self { forwarding, path, other, keypair, remote, other_remote }
    }

    /// Lets the session send.
    fn open(self) -> Self {
        assert!(self.path.take_staged_or_publish(&self.keypair, false).is_empty());
        self
    }

    fn depart(&self, now: Instant, to: u8) -> Departure {
        self.forwarding.depart(now, &InsideHeader::parse(&packet([10, 0, 9, 9], [10, 0, 0, to], 0)).unwrap())
    }

    /// A message of the peer.
    fn sealed(&self, plaintext: &[u8]) -> Vec<u8> {
        sealed_with(&self.remote, plaintext)
    }

    fn arrive(&self, message: &[u8]) -> (Option<Vec<u8>>, Vec<Notice>) {
        self.arrive_as(NOW, &home(), Ecn::NotEct, message)
    }

    fn arrive_as(
        &self,
        now: Instant,
        from: &Endpoint,
        ecn: Ecn,
        message: &[u8],
    ) -> (Option<Vec<u8>>, Vec<Notice>) {
        let (mut buffer, mut notices) = (message.to_vec(), Vec::new());
        let inside = self.forwarding.arrive(now, from, ecn, &mut buffer, &mut notices);
        (inside.map(|inside| buffer[inside].to_vec()), notices)
    }

    fn dropped(&self, reason: DropReason) -> u64 {
        self.forwarding.drops.count_of(reason)
    }

    fn dropped_in_all(&self) -> u64 {
        self.forwarding.drops.iter().map(|(_, count)| count).sum()
    }
}

fn sealed_with(remote: &Keypair, plaintext: &[u8]) -> Vec<u8> {
    let counter = remote.reserve(1, blocks_of(plaintext.len())).unwrap();
    let mut message = [&[0; 16][..], plaintext, &[0; 16]].concat();
    remote.seal(counter, &mut message).unwrap();
    message
}

fn session(suite: Suite, initiator: bool, path: &Arc<Path>) -> Keypair {
    session_with(suite, initiator, path, 3, OUR_INDEX)
}

/// Either half of a session that is made from `seed`. The peer's half sends to our index.
fn session_with(suite: Suite, initiator: bool, path: &Arc<Path>, seed: u8, remote_index: u32) -> Keypair {
    let [a, b] = [Zeroizing::new([seed; 32]), Zeroizing::new([seed + 1; 32])];
    let (sending, receiving) = if initiator { (a, b) } else { (b, a) };
    let local_index = 0;
    let keys = SessionKeys { suite, initiator, local_index, remote_index, sending, receiving };
    Keypair::new(&keys, Arc::clone(path), NOW).unwrap()
}

fn home() -> Endpoint {
    Endpoint::udp("192.0.2.2:51820".parse().unwrap())
}

fn elsewhere() -> Endpoint {
    Endpoint::udp("203.0.113.66:666".parse().unwrap())
}

fn later(by: core::time::Duration) -> Instant {
    NOW.saturating_add(by)
}

fn packet(source: [u8; 4], destination: [u8; 4], payload_len: usize) -> Vec<u8> {
    let [hi, lo] = u16::try_from(20 + payload_len).unwrap().to_be_bytes();
    let mut packet = vec![0x45, 0, hi, lo, 0, 0, 0, 0, 64, 17, 0, 0];
    packet.extend(source);
    packet.extend(destination);
    packet.extend(vec![0x99; payload_len]);
    packet
}

fn from_peer(host: u8) -> Vec<u8> {
    packet([10, 0, 0, host], [10, 0, 9, 9], 12)
}

/// What kind of notice each is, in order.
fn kinds(notices: &[Notice]) -> Vec<&'static str> {
    let kind = |notice: &Notice| match notice {
        Notice::NeedKeypair(_) => "need keypair",
        Notice::KeyConfirmed(_) => "key confirmed",
        Notice::Roamed(..) => "roamed",
        Notice::AwaitingReply(_) => "awaiting reply",
        Notice::OwingReply(_) => "owing reply",
        Notice::Rekey(_) => "rekey",
        Notice::LargeSent(_) => "large sent",
        Notice::Probe(..) => "probe",
        Notice::Refused(..) => "refused",
        Notice::Handshake(_) => "handshake",
        Notice::Challenged(..) => "challenged",
        Notice::WayAnswered(..) => "way answered",
    };
    notices.iter().map(kind).collect()
}

#[test]
fn a_message_arrives_as_the_packet_inside_it_without_padding() {
    for suite in Suite::ALL {
        let lane = Lane::new(suite, true).open();
        let packet = from_peer(2);
        let mut padded = packet.clone();
        padded.resize(48, 0);
        let message = lane.sealed(&padded);
        let (inside, notices) = lane.arrive(&message);
        assert_eq!(inside, Some(packet));
        assert_eq!(kinds(&notices), ["owing reply"]);
        assert_eq!(lane.path.traffic.bytes(), (message.len() as u64, 0));
        let (inside, notices) = lane.arrive(&lane.sealed(&from_peer(3)));
        assert!(inside.is_some() && notices.is_empty(), "the reply is owed already");
        assert_eq!(lane.dropped_in_all(), 0);
    }
}

#[test]
fn a_lost_notice_of_owing_a_reply_is_due_again() {
    let lane = Lane::new(Suite::ChaCha20Poly1305, true).open();
    let (_, notices) = lane.arrive(&lane.sealed(&from_peer(2)));
    lane.forwarding.notice_lost(&notices[0]);
    let (_, notices) = lane.arrive(&lane.sealed(&from_peer(2)));
    assert_eq!(kinds(&notices), ["owing reply"]);
}

#[test]
fn a_keepalive_is_no_packet_and_owes_nothing() {
    for suite in Suite::ALL {
        let lane = Lane::new(suite, true).open();
        let (inside, notices) = lane.arrive(&lane.sealed(b""));
        assert!(inside.is_none() && notices.is_empty());
        assert_eq!(lane.path.activity.last_received(), Some(NOW));
        assert_eq!(lane.path.traffic.packets(), (1, 0));
        assert_eq!(lane.dropped_in_all(), 0);
    }
}

#[test]
fn the_first_message_confirms_a_session_we_answered() {
    for suite in Suite::ALL {
        let lane = Lane::new(suite, false);
        let (_, notices) = lane.arrive(&lane.sealed(b""));
        assert_eq!(kinds(&notices), ["key confirmed"]);
        let (_, none) = lane.arrive(&lane.sealed(b""));
        assert!(none.is_empty());
        lane.forwarding.notice_lost(&notices[0]);
        let (_, notices) = lane.arrive(&lane.sealed(b""));
        assert_eq!(kinds(&notices), ["key confirmed"], "the first got lost");

        let initiator = Lane::new(suite, true).open();
        assert!(initiator.arrive(&initiator.sealed(b"")).1.is_empty());
    }
}

#[test]
fn an_initiator_that_receives_asks_for_a_rekey_before_the_session_ends() {
    let lane = Lane::new(Suite::ChaCha20Poly1305, true).open();
    let at = |now, message: &[u8]| kinds(&lane.arrive_as(now, &home(), Ecn::NotEct, message).1);
    assert!(at(later(REKEY_AFTER_TIME), &lane.sealed(b"")).is_empty());
    assert_eq!(at(later(REKEY_BEFORE_REJECT), &lane.sealed(b"")), ["rekey"]);
    assert!(at(later(REKEY_BEFORE_REJECT), &lane.sealed(b"")).is_empty());
}

#[test]
fn a_message_from_elsewhere_moves_the_endpoint_before_anything_can_answer_it_and_is_news_once() {
    let lane = Lane::new(Suite::ChaCha20Poly1305, true).open();
    let (_, notices) = lane.arrive_as(NOW, &elsewhere(), Ecn::NotEct, &lane.sealed(b""));
    let [Notice::Roamed(path, endpoint)] = &notices[..] else { panic!("{notices:?}") };
    assert!(Arc::ptr_eq(path, &lane.path) && *endpoint == elsewhere());
    assert_eq!(lane.path.endpoint(), Some(elsewhere()));
    assert!(lane.arrive_as(NOW, &elsewhere(), Ecn::NotEct, &lane.sealed(b"")).1.is_empty());
    assert_eq!(lane.arrive_as(NOW, &home(), Ecn::NotEct, &lane.sealed(b"")).1.len(), 1);
    assert_eq!(lane.path.endpoint(), Some(home()));
}

#[test]
fn a_forged_message_from_elsewhere_moves_nothing() {
    let lane = Lane::new(Suite::ChaCha20Poly1305, true).open();
    let mut forged = lane.sealed(b"");
    *forged.last_mut().unwrap() ^= 1;
    assert!(lane.arrive_as(NOW, &elsewhere(), Ecn::NotEct, &forged).1.is_empty());
    assert_eq!(lane.path.endpoint(), Some(home()));
}

#[test]
fn another_address_of_ours_is_answered_from_and_is_no_news() {
    let lane = Lane::new(Suite::ChaCha20Poly1305, true).open();
    let called = Endpoint { local: Some([192, 0, 2, 9].into()), interface: 3, ..home() };
    assert!(lane.arrive_as(NOW, &called, Ecn::NotEct, &lane.sealed(b"")).1.is_empty());
    assert_eq!(lane.path.endpoint(), Some(called));
    lane.path.forget_source(&elsewhere());
    assert_eq!(lane.path.endpoint(), Some(called), "that was about another place");
    lane.path.forget_source(&called);
    assert_eq!(lane.path.endpoint(), Some(home()));
}

#[test]
fn a_source_of_another_peer_is_refused() {
    let lane = Lane::new(Suite::ChaCha20Poly1305, true).open();
    for (host, own) in [(2, true), (63, true), (64, false), (127, false), (128, true), (255, true)] {
        let spoofed = lane.dropped(DropReason::SpoofedSource);
        let (inside, _) = lane.arrive(&lane.sealed(&from_peer(host)));
        assert_eq!(inside.is_some(), own, "10.0.0.{host}");
        assert_eq!(lane.dropped(DropReason::SpoofedSource) - spoofed, u64::from(!own));
    }
    let (inside, _) = lane.arrive(&lane.sealed(&packet([192, 168, 0, 1], [10, 0, 9, 9], 0)));
    assert!(inside.is_none(), "a source of nobody");
    assert_eq!(lane.dropped(DropReason::SpoofedSource), 3);
}

#[test]
fn a_removed_peers_session_delivers_nothing() {
    let lane = Lane::new(Suite::ChaCha20Poly1305, true).open();
    assert!(lane.arrive(&lane.sealed(&from_peer(2))).0.is_some());
    lane.forwarding.table.store(Arc::default());
    assert!(lane.arrive(&lane.sealed(&from_peer(2))).0.is_none());
    assert_eq!(lane.dropped(DropReason::SpoofedSource), 1);
    assert!(matches!(lane.depart(NOW, 2), Departure::Drop(DropReason::NoRoute)));
}

#[test]
fn congestion_outside_is_marked_inside_or_costs_the_packet() {
    let lane = Lane::new(Suite::ChaCha20Poly1305, true).open();
    let with_ecn = |ecn: Ecn| {
        let mut packet = from_peer(2);
        packet[1] = ecn as u8;
        packet
    };
    let (inside, _) = lane.arrive_as(NOW, &home(), Ecn::Ce, &lane.sealed(&with_ecn(Ecn::Ect0)));
    assert_eq!(inside.unwrap()[1], Ecn::Ce as u8);
    let (inside, _) = lane.arrive_as(NOW, &home(), Ecn::Ce, &lane.sealed(&with_ecn(Ecn::NotEct)));
    assert!(inside.is_none());
    assert_eq!(lane.dropped(DropReason::EcnNotCapable), 1);
    let (inside, _) = lane.arrive_as(NOW, &home(), Ecn::Ect0, &lane.sealed(&with_ecn(Ecn::NotEct)));
    assert_eq!(inside.unwrap()[1], Ecn::NotEct as u8);
}

/// A handshake message to us with a right mac1.
fn stamped<const N: usize>(suite: Suite, mut message: [u8; N]) -> [u8; N] {
    CookieJar::new(suite, &US).stamp(&mut message, NOW);
    message
}

#[test]
fn a_handshake_message_reaches_the_engine_as_it_came() {
    for suite in Suite::ALL {
        let lane = Lane::new(suite, true).open();
        let initiation = stamped(suite, wire::initiation(suite, 9, &[1; 32], &[2; 48], &[3; 28]));
        let response = stamped(suite, wire::response(suite, 9, AWAITED_INDEX, &[1; 32], &[2; 16]));
        let cookie = |index| wire::cookie_reply(suite, index, &[1; 24], &[2; 32]);
        let (to_handshake, to_session) = (cookie(AWAITED_INDEX), cookie(OUR_INDEX));
        for message in [&initiation[..], &response, &to_handshake, &to_session] {
            let (inside, notices) = lane.arrive_as(NOW, &elsewhere(), Ecn::NotEct, message);
            let [Notice::Handshake(datagram)] = &notices[..] else { panic!("{notices:?}") };
            assert_eq!(&datagram.bytes[..usize::from(datagram.len)], message);
            assert_eq!((datagram.from, inside), (elsewhere(), None));
        }
        assert_eq!(lane.dropped_in_all(), 0);
        assert_eq!(lane.path.traffic.packets(), (0, 0), "nothing is authenticated yet");
        assert_eq!(lane.path.activity.last_received(), None);
    }
}

#[test]
fn a_handshake_message_that_is_not_for_us_stops_here() {
    for suite in Suite::ALL {
        let lane = Lane::new(suite, true).open();
        let response = |index| wire::response(suite, 9, index, &[1; 32], &[2; 16]);
        let unstamped = wire::initiation(suite, 9, &[1; 32], &[2; 48], &[3; 28]);
        assert_eq!([unstamped.len(), response(0).len()], [INITIATION_LEN, RESPONSE_LEN]);
        let cookie: [u8; COOKIE_REPLY_LEN] = wire::cookie_reply(suite, 77, &[1; 24], &[2; 32]);
        for (message, reason) in [
            (&unstamped[..], DropReason::BadMac1),
            (&response(AWAITED_INDEX), DropReason::BadMac1),
            (&stamped(suite, response(OUR_INDEX)), DropReason::UnexpectedReply),
            (&stamped(suite, response(77)), DropReason::UnexpectedReply),
            (&cookie, DropReason::UnexpectedReply),
        ] {
            let before = lane.dropped(reason);
            let (inside, notices) = lane.arrive(message);
            assert!(inside.is_none() && notices.is_empty());
            assert_eq!(lane.dropped(reason), before + 1);
        }
        lane.forwarding.mac1_keys.store(None);
        assert!(lane.arrive(&stamped(suite, unstamped)).1.is_empty(), "without a key nothing is for us");
        assert_eq!(lane.dropped_in_all(), 6);
    }
}

#[test]
fn a_lost_handshake_message_is_only_counted() {
    let lane = Lane::new(Suite::ChaCha20Poly1305, true).open();
    let initiation =
        stamped(Suite::ChaCha20Poly1305, wire::initiation(lane.path.suite, 9, &[1; 32], &[2; 48], &[3; 28]));
    let (_, notices) = lane.arrive(&initiation);
    lane.forwarding.notice_lost(&notices[0]);
    assert_eq!((lane.dropped(DropReason::QueueFull), lane.dropped_in_all()), (1, 1));
    assert_eq!(kinds(&lane.arrive(&initiation).1), ["handshake"], "the sender repeats it");
}

#[test]
fn padding_goes_up_to_16_but_not_above_the_mtu() {
    let lane = Lane::new(Suite::ChaCha20Poly1305, true);
    let padded = |mtu_bytes: usize, len: usize| {
        lane.forwarding.set_mtu(mtu_bytes);
        lane.forwarding.padding().padded_len(len)
    };
    assert_eq!(
        [0, 1, 15, 16, 17, 1_404, 1_408, 1_409, 1_420].map(|len| padded(1_420, len)),
        [0, 16, 16, 16, 32, 1_408, 1_408, 1_420, 1_420]
    );
    assert_eq!(padded(1_420, 1_500), 1_500, "a packet is never cut");
    assert_eq!(padded(usize::MAX, usize::MAX), usize::MAX);
    assert_eq!(padded(0, 40), 40);
}

#[test]
fn a_checksum_that_is_left_to_the_receiver_is_finished_unless_a_device_does_it() {
    let lane = Lane::new(Suite::Aes256Gcm, true).open();
    let mut udp = packet([10, 0, 0, 2], [10, 0, 9, 9], 8 + 3);
    udp[20..28].copy_from_slice(&[0, 7, 0, 9, 0, 11, 0xab, 0xcd]);
    let mut finished = udp.clone();
    unfinished::finish(&mut finished).unwrap();
    assert_ne!(finished, udp);
    let mut marked = udp.clone();
    unfinished::mark(&mut marked);
    let left = |packet: &[u8]| {
        let (mut message, mut notices) = (lane.sealed(packet), Vec::new());
        let inbound =
            lane.forwarding.batch(NOW).arrive(&home(), Ecn::NotEct, &mut message, &mut notices).unwrap();
        (message[inbound.packet].to_vec(), inbound.checksum)
    };

    assert_eq!(lane.arrive(&lane.sealed(&marked)).0, Some(finished));
    assert_eq!(left(&marked), (udp.clone(), Checksum::Unfinished));
    assert_eq!(left(&udp), (udp.clone(), Checksum::Finished), "the control");
    assert_eq!(lane.dropped_in_all(), 0);
}

#[test]
fn a_mark_is_malformed_where_no_checksum_can_be_finished_and_in_messages_of_wireguard() {
    let udp = packet([10, 0, 0, 2], [10, 0, 9, 9], 8);
    let changed = |at: usize, to: u8| {
        let mut packet = udp.clone();
        packet[at] = to;
        packet
    };
    for (what, suite, mut packet, reason) in [
        ("ICMP", Suite::Aes256Gcm, changed(9, 1), Some(DropReason::MalformedInside)),
        ("a fragment", Suite::Aes256Gcm, changed(6, 0x20), Some(DropReason::MalformedInside)),
        ("cut off", Suite::Aes256Gcm, changed(3, 27), Some(DropReason::MalformedInside)),
        ("spoofed", Suite::Aes256Gcm, changed(12, 11), Some(DropReason::SpoofedSource)),
        ("WireGuard", Suite::ChaCha20Poly1305, udp.clone(), Some(DropReason::MalformedInside)),
        ("the control", Suite::Aes256Gcm, udp.clone(), None),
    ] {
        let lane = Lane::new(suite, true).open();
        unfinished::mark(&mut packet);
        assert_eq!(lane.arrive(&lane.sealed(&packet)).0.is_none(), reason.is_some(), "{what}");
        assert_eq!(reason.map_or(0, |reason| lane.dropped(reason)), u64::from(reason.is_some()), "{what}");
    }
}

proptest! {
    #[test]
    fn padding_is_the_least_that_hides_the_length(len in 0..70_000_usize, mtu_bytes in 0..70_000_usize) {
        let lane = Lane::new(Suite::ChaCha20Poly1305, true);
        lane.forwarding.set_mtu(mtu_bytes);
        let padded = lane.forwarding.padding().padded_len(len);
        prop_assert!(padded >= len && padded < len + 16);
        prop_assert!(padded.is_multiple_of(16) || padded == len.max(mtu_bytes));
        prop_assert!(padded <= len.max(mtu_bytes));
    }

    #[test]
    fn whatever_arrives_is_dropped_once_or_noticed_once(
        bytes in prop::collection::vec(any::<u8>(), 0..300),
        kind in prop::sample::select(vec![None, Some(1), Some(2), Some(3), Some(4), Some(0x21), Some(0x22), Some(0x23), Some(0x24)]),
        len in prop::sample::select(vec![None, Some(148), Some(92), Some(64), Some(32), Some(48)]),
        index in prop::sample::select(vec![None, Some(OUR_INDEX), Some(AWAITED_INDEX)]),
        index_at in prop::sample::select(vec![4, 8]),
        with_mac1: bool,
        aes: bool,
    ) {
        let suite = if aes { Suite::Aes256Gcm } else { Suite::ChaCha20Poly1305 };
        let lane = Lane::new(suite, true).open();
        let mut message = bytes;
        message.resize(len.unwrap_or(message.len()), 0x5c);
        if let (Some(kind), true) = (kind, message.len() >= 12) {
            message[..4].copy_from_slice(&[kind, 0, 0, 0]);
            if let Some(index) = index {
                message[index_at..index_at + 4].copy_from_slice(&u32::to_le_bytes(index));
            }
        }
        if with_mac1 {
            if let Ok(whole) = <[u8; INITIATION_LEN]>::try_from(&message[..]) {
                message = stamped(suite, whole).to_vec();
            } else if let Ok(whole) = <[u8; RESPONSE_LEN]>::try_from(&message[..]) {
                message = stamped(suite, whole).to_vec();
            }
        }
        let (inside, notices) = lane.arrive_as(NOW, &elsewhere(), Ecn::Ce, &message);
        prop_assert_eq!(inside, None, "nobody sealed this");
        prop_assert_eq!(lane.dropped_in_all() + notices.len() as u64, 1);
        prop_assert!(notices.iter().all(|notice| matches!(notice, Notice::Handshake(_))));
        prop_assert_eq!(lane.path.traffic.packets(), (0, 0));
        prop_assert_eq!(lane.path.activity.last_received(), None);
    }

    #[test]
    fn whatever_is_sealed_inside_the_packet_found_lies_inside_the_message(
        mut plaintext in prop::collection::vec(any::<u8>(), 0..200),
        header in prop::option::of((prop::sample::select(vec![4_u8, 6, 0, 15]), 0..16_u8, 0..250_u16, 0..=255_u8)),
        ecn in prop::sample::select(vec![Ecn::NotEct, Ecn::Ect0, Ecn::Ect1, Ecn::Ce]),
        aes: bool,
    ) {
        let lane = Lane::new(if aes { Suite::Aes256Gcm } else { Suite::ChaCha20Poly1305 }, true).open();
        if let (Some((version, ihl, total_len, host)), true) = (header, plaintext.len() >= 20) {
            plaintext[0] = (version << 4) | ihl;
            plaintext[2..4].copy_from_slice(&total_len.to_be_bytes());
            plaintext[12..16].copy_from_slice(&Ipv4Addr::new(10, 0, 0, host).octets());
        }
        let mut message = lane.sealed(&plaintext);
        let message_len = message.len();
        let mut notices = Vec::new();
        let inside = lane.forwarding.arrive(NOW, &home(), ecn, &mut message, &mut notices);
        prop_assert!(notices.len() <= 3);
        match inside {
            Some(inside) => {
                prop_assert!(inside.start == 16 && inside.end <= message_len - 16);
                let found = InsideHeader::parse(&message[inside.clone()]).unwrap();
                prop_assert_eq!(found.total_len, inside.len());
                prop_assert_eq!(lane.dropped_in_all(), 0);
            }
            None => prop_assert_eq!(lane.dropped_in_all(), u64::from(!plaintext.is_empty())),
        }
    }

    #[test]
    fn a_message_changed_anywhere_is_not_delivered(
        payload_len in 0..100_usize, at in 0..1_000_usize, change in 1..=255_u8, aes: bool,
    ) {
        let suite = if aes { Suite::Aes256Gcm } else { Suite::ChaCha20Poly1305 };
        let lane = Lane::new(suite, true).open();
        let packet = packet([10, 0, 0, 2], [10, 0, 9, 9], payload_len);
        let honest = lane.sealed(&packet);
        let mut changed = honest.clone();
        let at = at % changed.len();
        changed[at] ^= change;
        let (inside, notices) = lane.arrive_as(NOW, &elsewhere(), Ecn::NotEct, &changed);
        prop_assert!(inside.is_none() && notices.is_empty());
        prop_assert_eq!(lane.dropped_in_all(), 1);
        prop_assert_eq!(lane.arrive(&honest).0, Some(packet));
    }
}

#![allow(clippy::unwrap_used, clippy::arithmetic_side_effects, clippy::indexing_slicing, clippy::panic)]

use core::net::SocketAddr;

use proptest::prelude::*;
use rand_chacha::ChaCha8Rng;
use rand_core::{RngCore, SeedableRng};

use super::*;
use crate::wire::{INITIATION_LEN, Message};

const RESPONDER: PublicKey = PublicKey([0x42; 32]);
const OTHER: PublicKey = PublicKey([0x43; 32]);
const SENDER: u32 = 0x0102_0304;

fn hex(text: &str) -> Vec<u8> {
    (0..text.len()).step_by(2).map(|i| u8::from_str_radix(&text[i..i + 2], 16).unwrap()).collect()
}

fn udp(remote: &str) -> Endpoint {
    Endpoint::udp(remote.parse::<SocketAddr>().unwrap())
}

fn at_secs(secs: u64) -> Instant {
    Instant::from_millis(secs * 1_000)
}

fn initiation(suite: Suite) -> [u8; INITIATION_LEN] {
    wire::initiation(suite, SENDER, &[1; 32], &[2; 48], &[3; 28])
}

/// A responder under load, one initiator, and the path between them.
struct Pair {
    suite: Suite,
    checker: CookieChecker,
    jar: CookieJar,
    rng: ChaCha8Rng,
}

impl Pair {
    fn new(suite: Suite) -> Self {
        Self {
            suite,
            checker: CookieChecker::new(&RESPONDER),
            jar: CookieJar::new(suite, &RESPONDER),
            rng: ChaCha8Rng::seed_from_u64(9),
        }
    }

    fn stamped(&mut self, now: Instant) -> [u8; INITIATION_LEN] {
        let mut message = initiation(self.suite);
        self.jar.stamp(&mut message, now);
        message
    }

    fn reply_to(&mut self, message: &[u8], from: &Endpoint, now: Instant) -> [u8; COOKIE_REPLY_LEN] {
        let (suite, Message::Initiation(initiation)) = Message::parse(message).unwrap() else { panic!() };
        let mut random = |bytes: &mut [u8]| self.rng.fill_bytes(bytes);
        self.checker.create_reply(suite, initiation.sender, initiation.mac1, from, now, &mut random)
    }

    fn consume(&mut self, reply: &[u8], now: Instant) -> Result<(), DropReason> {
        let (suite, Message::CookieReply(reply)) = Message::parse(reply).unwrap() else { panic!() };
        assert_eq!((suite, reply.receiver), (self.suite, SENDER));
        self.jar.consume_reply(&reply, now)
    }

    /// One round trip, after which the jar holds a cookie for `from`.
    fn give_cookie(&mut self, from: &Endpoint, now: Instant) {
        let message = self.stamped(now);
        let reply = self.reply_to(&message, from, now);
        assert_eq!(self.consume(&reply, now), Ok(()));
    }
}

#[test]
fn the_hashes_are_blake2s_as_other_implementations_compute_it() {
    // Python: blake2s(b"mac1----" + b"\x42" * 32), and blake2s(..., digest_size=16, key=...) below.
    assert_eq!(
        derive(b"mac1----", &RESPONDER)[..],
        hex("172c34d6807bd7acef1a2471f20e928626c23ce0b9f90b326cf5f82d12480a4e")
    );
    assert_eq!(mac(&[7; 32], &[b"some ", b"text"])[..], hex("4ff8acaa95ffd742bc94e86685d0f7e0"));
    assert_eq!(mac(&[7; 16], &[b"some text"])[..], hex("3c48a18e8137bf8cabe7941c6a459df4"));
}

#[test]
fn a_cookie_is_the_mac_of_address_port_and_carrier() {
    let secret = CookieSecret { bytes: [9; 32], born: Instant::ZERO };
    let cookie = |from: &Endpoint| secret.cookie(from).0;
    assert_eq!(cookie(&udp("192.0.2.7:51820")), mac(&[9; 32], &[&[192, 0, 2, 7, 0x6c, 0xca, 0]]));
    let v6 = [[0x20, 0x01, 0x0d, 0xb8].as_slice(), &[0; 11], &[5], &[0x6c, 0xca], &[2]].concat();
    let tls = Endpoint { carrier: Carrier::Tls(77), ..udp("[2001:db8::5]:51820") };
    assert_eq!(cookie(&tls), mac(&[9; 32], &[&v6]));
    assert_eq!(cookie(&udp("[::ffff:192.0.2.7]:51820")), cookie(&udp("192.0.2.7:51820")));
}

#[test]
fn mac1_proves_knowledge_of_the_right_key_in_the_right_suite() {
    let keys = Mac1Keys::new(&RESPONDER);
    for suite in Suite::ALL {
        let message = Pair::new(suite).stamped(at_secs(0));
        assert!(keys.verify(suite, &message));
        assert!(!Mac1Keys::new(&OTHER).verify(suite, &message));
        let [other] = Suite::ALL.into_iter().filter(|&s| s != suite).collect::<Vec<_>>()[..] else {
            panic!()
        };
        assert!(!keys.verify(other, &message));
        assert!(!keys.verify(suite, &initiation(suite)), "without a mac1");
    }
}

#[test]
fn mac1_covers_every_bit_before_mac2() {
    let keys = Mac1Keys::new(&RESPONDER);
    let message = Pair::new(Suite::ChaCha20Poly1305).stamped(at_secs(0));
    for bit in 0..INITIATION_LEN * 8 {
        let mut flipped = message;
        flipped[bit / 8] ^= 1 << (bit % 8);
        let in_mac2 = bit / 8 >= INITIATION_LEN - 16;
        assert_eq!(keys.verify(Suite::ChaCha20Poly1305, &flipped), in_mac2, "bit {bit}");
    }
}

#[test]
fn messages_too_short_for_macs_verify_as_nothing() {
    let keys = Mac1Keys::new(&RESPONDER);
    for len in 0..32 {
        assert!(!keys.verify(Suite::ChaCha20Poly1305, &[0; 32][..len]));
    }
}

#[test]
fn a_cookie_lets_its_holder_prove_its_address() {
    for suite in Suite::ALL {
        let mut pair = Pair::new(suite);
        let from = udp("192.0.2.7:4000");
        let before = pair.stamped(at_secs(0));
        assert_eq!(before[INITIATION_LEN - 16..], [0; 16]);
        assert!(!pair.checker.verify_mac2(&before, &from, at_secs(0)));
        pair.give_cookie(&from, at_secs(1));
        let after = pair.stamped(at_secs(2));
        assert!(pair.checker.mac1_keys().verify(suite, &after));
        assert!(pair.checker.verify_mac2(&after, &from, at_secs(2)));
        for bit in 0..INITIATION_LEN * 8 {
            let mut flipped = after;
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(!pair.checker.verify_mac2(&flipped, &from, at_secs(2)), "bit {bit}");
        }
    }
}

#[test]
fn a_cookie_is_bound_to_address_port_and_carrier() {
    let mut pair = Pair::new(Suite::ChaCha20Poly1305);
    let from = udp("192.0.2.7:4000");
    pair.give_cookie(&from, at_secs(0));
    let message = pair.stamped(at_secs(1));
    let stolen_by = [
        udp("192.0.2.8:4000"),
        udp("192.0.2.7:4001"),
        udp("[2001:db8::7]:4000"),
        Endpoint { carrier: Carrier::Tcp(1), ..from },
        Endpoint { carrier: Carrier::Tls(1), ..from },
        Endpoint { carrier: Carrier::Ws(1), ..from },
        Endpoint { carrier: Carrier::Wss(1), ..from },
    ];
    for thief in stolen_by {
        assert!(!pair.checker.verify_mac2(&message, &thief, at_secs(1)), "{thief:?}");
    }
    assert!(pair.checker.verify_mac2(&message, &from, at_secs(1)));
}

#[test]
fn a_checker_without_a_secret_believes_nobody() {
    let mut pair = Pair::new(Suite::ChaCha20Poly1305);
    let from = udp("192.0.2.7:4000");
    pair.give_cookie(&from, at_secs(0));
    let message = pair.stamped(at_secs(1));
    assert!(pair.checker.verify_mac2(&message, &from, at_secs(1)));
    assert!(!CookieChecker::new(&RESPONDER).verify_mac2(&message, &from, at_secs(1)));
}

#[test]
fn no_cookie_is_accepted_after_120_seconds() {
    let from = udp("192.0.2.7:4000");
    for handed_out_at in [0, 60, 119] {
        let mut pair = Pair::new(Suite::ChaCha20Poly1305);
        pair.give_cookie(&from, at_secs(0));
        pair.give_cookie(&from, at_secs(handed_out_at));
        let message = pair.stamped(at_secs(handed_out_at));
        assert!(pair.checker.verify_mac2(&message, &from, at_secs(120)));
        assert!(!pair.checker.verify_mac2(&message, &from, at_secs(121)));
        let other = udp("192.0.2.9:1");
        pair.reply_to(&message, &other, at_secs(121));
        assert!(!pair.checker.verify_mac2(&message, &from, at_secs(121)), "nor with the next secret");
    }
}

#[test]
fn the_secret_changes_every_120_seconds_and_not_before() {
    let from = udp("192.0.2.7:4000");
    let mut pair = Pair::new(Suite::ChaCha20Poly1305);
    let secret = |pair: &Pair| pair.checker.secret.as_ref().map(|secret| secret.bytes);
    pair.give_cookie(&from, at_secs(0));
    let first = secret(&pair);
    pair.give_cookie(&from, at_secs(120));
    assert_eq!(secret(&pair), first);
    pair.give_cookie(&from, at_secs(121));
    assert_ne!(secret(&pair), first);
}

#[test]
fn the_initiator_stops_using_a_cookie_after_120_seconds() {
    let mut pair = Pair::new(Suite::ChaCha20Poly1305);
    pair.give_cookie(&udp("192.0.2.7:4000"), at_secs(10));
    assert_ne!(pair.stamped(at_secs(130))[INITIATION_LEN - 16..], [0; 16]);
    assert!(pair.jar.has_cookie(at_secs(130)));
    assert!(!pair.jar.has_cookie(at_secs(131)));
    assert_eq!(pair.stamped(at_secs(131))[INITIATION_LEN - 16..], [0; 16]);
}

#[test]
fn a_reply_to_another_message_is_refused_and_the_right_one_still_counts() {
    let mut pair = Pair::new(Suite::ChaCha20Poly1305);
    let from = udp("192.0.2.7:4000");
    let message = pair.stamped(at_secs(0));
    let mut another = message;
    another[116] ^= 1;
    let wrong = pair.reply_to(&another, &from, at_secs(0));
    let right = pair.reply_to(&message, &from, at_secs(0));
    assert_eq!(pair.consume(&wrong, at_secs(0)), Err(DropReason::BadCookie));
    assert!(!pair.jar.has_cookie(at_secs(0)));
    assert_eq!(pair.consume(&right, at_secs(0)), Ok(()));
    assert!(pair.jar.has_cookie(at_secs(0)));
}

#[test]
fn a_reply_counts_once_and_only_while_a_message_awaits_it() {
    let mut pair = Pair::new(Suite::ChaCha20Poly1305);
    let from = udp("192.0.2.7:4000");
    let message = initiation(Suite::ChaCha20Poly1305);
    let unasked = pair.reply_to(&message, &from, at_secs(0));
    assert_eq!(pair.consume(&unasked, at_secs(0)), Err(DropReason::UnexpectedReply));
    let message = pair.stamped(at_secs(0));
    let reply = pair.reply_to(&message, &from, at_secs(0));
    let second = pair.reply_to(&message, &from, at_secs(0));
    assert_eq!(pair.consume(&reply, at_secs(0)), Ok(()));
    for late in [reply, second] {
        assert_eq!(pair.consume(&late, at_secs(60)), Err(DropReason::UnexpectedReply));
    }
    assert!(!pair.jar.has_cookie(at_secs(121)), "a late reply does not renew the cookie");
}

#[test]
fn a_reply_to_an_earlier_message_is_too_late() {
    let mut pair = Pair::new(Suite::ChaCha20Poly1305);
    let from = udp("192.0.2.7:4000");
    let first = pair.stamped(at_secs(0));
    let reply = pair.reply_to(&first, &from, at_secs(0));
    let mut second = wire::initiation(pair.suite, SENDER, &[9; 32], &[2; 48], &[3; 28]);
    pair.jar.stamp(&mut second, at_secs(5));
    assert_eq!(pair.consume(&reply, at_secs(5)), Err(DropReason::BadCookie));
    let reply = pair.reply_to(&second, &from, at_secs(5));
    assert_eq!(pair.consume(&reply, at_secs(5)), Ok(()));
}

#[test]
fn only_the_responder_can_make_a_cookie_reply_in_its_suite() {
    for suite in Suite::ALL {
        let mut pair = Pair::new(suite);
        let from = udp("192.0.2.7:4000");
        let message = pair.stamped(at_secs(0));
        let right = pair.reply_to(&message, &from, at_secs(0));
        pair.checker = CookieChecker::new(&OTHER);
        let wrong = pair.reply_to(&message, &from, at_secs(0));
        assert_eq!(pair.consume(&wrong, at_secs(0)), Err(DropReason::BadCookie));
        assert_eq!(pair.consume(&right, at_secs(0)), Ok(()));
    }
}

#[test]
fn every_bit_of_a_reply_is_protected() {
    let mut pair = Pair::new(Suite::Aes256Gcm);
    let message = pair.stamped(at_secs(0));
    let reply = pair.reply_to(&message, &udp("192.0.2.7:4000"), at_secs(0));
    for bit in 8 * 8..COOKIE_REPLY_LEN * 8 {
        let mut flipped = reply;
        flipped[bit / 8] ^= 1 << (bit % 8);
        assert_eq!(pair.consume(&flipped, at_secs(0)), Err(DropReason::BadCookie), "bit {bit}");
    }
    assert_eq!(pair.consume(&reply, at_secs(0)), Ok(()));
}

#[test]
fn two_replies_to_the_same_message_look_unrelated() {
    let mut pair = Pair::new(Suite::ChaCha20Poly1305);
    let from = udp("192.0.2.7:4000");
    let message = pair.stamped(at_secs(0));
    let (a, b) = (pair.reply_to(&message, &from, at_secs(0)), pair.reply_to(&message, &from, at_secs(0)));
    assert_ne!(a[8..32], b[8..32]);
    assert_ne!(a[32..], b[32..]);
}

#[test]
fn secrets_do_not_show_in_debug_output() {
    let mut pair = Pair::new(Suite::ChaCha20Poly1305);
    pair.give_cookie(&udp("192.0.2.7:4000"), at_secs(0));
    let shown = format!("{:?} {:?} {:?}", pair.checker, pair.jar, pair.checker.mac1_keys());
    assert_eq!(shown, "CookieChecker(hidden) CookieJar(hidden) Mac1Keys");
}

proptest! {
    #[test]
    fn any_source_can_prove_itself_and_only_itself(
        a in any::<(u32, u16)>(), b in any::<(u32, u16)>(), waited in 0..=120u64, seed in any::<u64>(),
    ) {
        let endpoint = |(host, port): (u32, u16)| {
            Endpoint::udp(SocketAddr::new(core::net::Ipv4Addr::from_bits(host).into(), port))
        };
        let mut pair = Pair::new(Suite::Aes256Gcm);
        pair.rng = ChaCha8Rng::seed_from_u64(seed);
        pair.give_cookie(&endpoint(a), at_secs(5));
        let message = pair.stamped(at_secs(5 + waited));
        prop_assert!(pair.checker.verify_mac2(&message, &endpoint(a), at_secs(5 + waited)));
        prop_assert_eq!(pair.checker.verify_mac2(&message, &endpoint(b), at_secs(5 + waited)), a == b);
    }

    #[test]
    fn random_replies_never_make_a_cookie(nonce: [u8; 24], encrypted_cookie: [u8; 32]) {
        let mut pair = Pair::new(Suite::ChaCha20Poly1305);
        pair.stamped(at_secs(0));
        let reply = CookieReply { receiver: SENDER, nonce: &nonce, encrypted_cookie: &encrypted_cookie };
        prop_assert_eq!(pair.jar.consume_reply(&reply, at_secs(0)), Err(DropReason::BadCookie));
    }
}

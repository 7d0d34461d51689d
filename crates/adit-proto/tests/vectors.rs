//! Recorded messages of both suites, and two sessions with another implementation of WireGuard.
//!
//! A file holds inputs (keys, indices, timestamp, …) and every message made from them; numbers are
//! hexadecimal bytes in the order of the wire. Our messages are compared with what the code makes today,
//! and with what a second, straight-line reading of the protocol makes of the same inputs.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::panic)]

mod common;

use std::collections::BTreeMap;
use std::sync::Arc;

use adit_proto::cookie::{CookieChecker, CookieJar, Mac1Keys};
use adit_proto::event::PeerId;
use adit_proto::handshake::{AwaitingResponse, Identity, OpenedInitiation, SessionKeys};
use adit_proto::key::{PresharedKey, PublicKey, StaticSecret};
use adit_proto::keypair::Keypair;
use adit_proto::packet::InsideHeader;
use adit_proto::path::Path;
use adit_proto::suite::Suite;
use adit_proto::time::{Instant, Tai64n};
use adit_proto::wire::Message;
use aws_lc_rs::{aead, agreement};
use blake2::digest::{Mac, consts::U16};
use blake2::{Blake2s256, Blake2sMac, Digest};
use chacha20poly1305::aead::{Aead, KeyInit, Payload};
use chacha20poly1305::{ChaCha20Poly1305, XChaCha20Poly1305};
use common::{hex, udp, unhex};

const INITIATOR_ADDRESS: &str = "192.0.2.7:51821";
const RESPONDER_ADDRESS: &str = "192.0.2.8:51820";

const MESSAGES: [&str; 10] = [
    "initiation",
    "cookie_reply_to_initiation",
    "initiation_with_mac2",
    "response",
    "cookie_reply_to_response",
    "response_with_mac2",
    "transport_counter_0",
    "transport_counter_high",
    "keepalive_of_initiator",
    "keepalive_of_responder",
];

/// A recording: names and bytes.
struct Recording(BTreeMap<&'static str, Vec<u8>>);

impl Recording {
    fn of(suite: Suite) -> Self {
        Self::parse(match suite {
            Suite::ChaCha20Poly1305 => include_str!("vectors/chacha20-poly1305.txt"),
            Suite::Aes256Gcm => include_str!("vectors/aes-256-gcm.txt"),
        })
    }

    fn parse(text: &'static str) -> Self {
        let lines = text.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
        Self(
            lines
                .map(|line| line.split_once(' ').unwrap())
                .map(|(name, value)| (name, unhex(value)))
                .collect(),
        )
    }

    fn get<const N: usize>(&self, name: &str) -> [u8; N] {
        self.0[name].as_slice().try_into().unwrap()
    }

    fn secret(&self, name: &str) -> StaticSecret {
        StaticSecret::from_bytes(self.get(name))
    }

    fn index(&self, name: &str) -> u32 {
        u32::from_le_bytes(self.get(name))
    }

    fn counter(&self) -> u64 {
        u64::from_le_bytes(self.get("high_counter"))
    }

    /// Hands out the nonce and the cookie secret, as a checker without a secret asks for them.
    fn random(&self, nonce: &str) -> impl FnMut(&mut [u8]) {
        let mut drawn = vec![self.0["cookie_secret"].clone(), self.0[nonce].clone()];
        move |bytes| bytes.copy_from_slice(&drawn.pop().unwrap())
    }
}

/// Every message as the code makes it from the inputs.
fn made_by_the_code(suite: Suite, input: &Recording) -> BTreeMap<&'static str, Vec<u8>> {
    let [initiator, responder] =
        ["initiator_private", "responder_private"].map(|name| Identity::new(input.secret(name)));
    let psk = PresharedKey::from_bytes(input.get("preshared_key"));
    let ss = initiator.secret.diffie_hellman(&responder.public).unwrap();
    let now = Instant::ZERO;
    let mut made = BTreeMap::new();

    let (awaiting, mut initiation) = AwaitingResponse::create_initiation(
        suite,
        &initiator,
        &responder.public,
        &ss,
        input.secret("initiator_ephemeral"),
        input.index("initiator_index"),
        Tai64n::from_bytes(input.get("timestamp")),
    )
    .unwrap();
    let mut jar = CookieJar::new(suite, &responder.public);
    jar.stamp(&mut initiation, now);
    made.insert("initiation", initiation.to_vec());

    let Message::Initiation(parsed) = Message::parse(&initiation).unwrap().1 else { panic!() };
    let source = udp(INITIATOR_ADDRESS);
    let mut random = input.random("nonce_of_cookie_reply_to_initiation");
    let mut checker = CookieChecker::new(&responder.public);
    let reply = checker.create_reply(suite, parsed.sender, parsed.mac1, &source, now, &mut random);
    made.insert("cookie_reply_to_initiation", reply.to_vec());
    let Message::CookieReply(reply) = Message::parse(&reply).unwrap().1 else { panic!() };
    jar.consume_reply(&reply, now).unwrap();
    let mut with_mac2 = initiation;
    jar.stamp(&mut with_mac2, now);
    assert!(checker.verify_mac2(&with_mac2, &source, now));
    made.insert("initiation_with_mac2", with_mac2.to_vec());

    let opened = OpenedInitiation::open(suite, &responder, &parsed).unwrap();
    let authentic = opened.authenticate(&ss).unwrap();
    let (responder_keys, mut response) =
        authentic.respond(&psk, input.secret("responder_ephemeral"), input.index("responder_index")).unwrap();
    let mut jar = CookieJar::new(suite, &initiator.public);
    jar.stamp(&mut response, now);
    made.insert("response", response.to_vec());

    let Message::Response(parsed) = Message::parse(&response).unwrap().1 else { panic!() };
    let source = udp(RESPONDER_ADDRESS);
    let mut random = input.random("nonce_of_cookie_reply_to_response");
    let mut checker = CookieChecker::new(&initiator.public);
    let reply = checker.create_reply(suite, parsed.sender, parsed.mac1, &source, now, &mut random);
    made.insert("cookie_reply_to_response", reply.to_vec());
    let Message::CookieReply(reply) = Message::parse(&reply).unwrap().1 else { panic!() };
    jar.consume_reply(&reply, now).unwrap();
    let mut with_mac2 = response;
    jar.stamp(&mut with_mac2, now);
    assert!(checker.verify_mac2(&with_mac2, &source, now));
    made.insert("response_with_mac2", with_mac2.to_vec());

    let initiator_keys = awaiting.consume_response(&initiator, &psk, &parsed).unwrap();
    let keypair = |keys, peer: &Identity| {
        Keypair::new(keys, Arc::new(Path::new(PeerId(0), peer.public, suite)), now).unwrap()
    };
    let [to_responder, to_initiator] =
        [keypair(&initiator_keys, &responder), keypair(&responder_keys, &initiator)];
    let seal = |keypair: &Keypair, counter: u64, plaintext: &[u8]| {
        let mut message = [&[0; 16][..], plaintext, &[0; 16]].concat();
        keypair.seal(counter, &mut message).unwrap();
        message
    };
    let packet = &input.0["padded_packet"];
    made.insert("transport_counter_0", seal(&to_responder, 0, packet));
    made.insert("transport_counter_high", seal(&to_initiator, input.counter(), packet));
    made.insert("keepalive_of_initiator", seal(&to_responder, 1, &[]));
    made.insert("keepalive_of_responder", seal(&to_initiator, 0, &[]));
    made
}

/// The protocol once more, straight down the page of its specification, with other libraries where
/// there are any.
mod second_reading {
    use super::*;

    struct Labels {
        construction: &'static [u8],
        identifier: &'static [u8],
        mac1: &'static [u8],
        cookie: &'static [u8],
        first_type: u8,
    }

    const WIREGUARD: Labels = Labels {
        construction: b"Noise_IKpsk2_25519_ChaChaPoly_BLAKE2s",
        identifier: b"WireGuard v1 zx2c4 Jason@zx2c4.com",
        mac1: b"mac1----",
        cookie: b"cookie--",
        first_type: 0x01,
    };

    const AES: Labels = Labels {
        construction: b"Noise_IKpsk2_25519_AESGCM_BLAKE2s",
        identifier: b"adit v1 aes-256-gcm",
        mac1: b"adit-m1-",
        cookie: b"adit-ck-",
        first_type: 0x21,
    };

    fn hash(parts: &[&[u8]]) -> [u8; 32] {
        Blake2s256::digest(parts.concat()).into()
    }

    /// RFC 2104, with the block of BLAKE2s.
    fn hmac(key: &[u8], text: &[u8]) -> [u8; 32] {
        let mut block = [0; 64];
        block[..key.len()].copy_from_slice(key);
        let [inner, outer] = [0x36, 0x5c].map(|pad| block.map(|byte| byte ^ pad));
        hash(&[&outer, &hash(&[&inner, text])])
    }

    fn kdf<const N: usize>(key: &[u8], input: &[u8]) -> [[u8; 32]; N] {
        let secret = hmac(key, input);
        let mut last = Vec::new();
        core::array::from_fn(|n| {
            last.push(n as u8 + 1);
            let output = hmac(&secret, &last);
            last = output.to_vec();
            output
        })
    }

    fn mac(key: &[u8], text: &[u8]) -> [u8; 16] {
        let mut mac = <Blake2sMac<U16> as blake2::digest::KeyInit>::new_from_slice(key).unwrap();
        Mac::update(&mut mac, text);
        mac.finalize().into_bytes().into()
    }

    #[expect(clippy::disallowed_methods, reason = "the recorded keys are honest")]
    fn dh(private: &[u8], public: &[u8]) -> [u8; 32] {
        let private = agreement::PrivateKey::from_private_key(&agreement::X25519, private).unwrap();
        let public = agreement::UnparsedPublicKey::new(&agreement::X25519, public);
        agreement::agree(&private, public, (), |shared| Ok(shared.try_into().unwrap())).unwrap()
    }

    fn public_of(private: &[u8]) -> [u8; 32] {
        let private = agreement::PrivateKey::from_private_key(&agreement::X25519, private).unwrap();
        private.compute_public_key().unwrap().as_ref().try_into().unwrap()
    }

    fn seal(suite: Suite, key: &[u8; 32], counter: u64, plaintext: &[u8], aad: &[u8]) -> Vec<u8> {
        let mut nonce = [0; 12];
        match suite {
            Suite::ChaCha20Poly1305 => {
                nonce[4..].copy_from_slice(&counter.to_le_bytes());
                let cipher = ChaCha20Poly1305::new(key.into());
                cipher.encrypt(&nonce.into(), Payload { msg: plaintext, aad }).unwrap()
            }
            Suite::Aes256Gcm => {
                nonce[4..].copy_from_slice(&counter.to_be_bytes());
                let key = aead::UnboundKey::new(&aead::AES_256_GCM, key).unwrap();
                let nonce = aead::Nonce::assume_unique_for_key(nonce);
                let mut sealed = plaintext.to_vec();
                aead::LessSafeKey::new(key)
                    .seal_in_place_append_tag(nonce, aead::Aad::from(aad), &mut sealed)
                    .unwrap();
                sealed
            }
        }
    }

    fn clamp(private: &[u8]) -> Vec<u8> {
        let mut clamped = private.to_vec();
        clamped[0] &= 248;
        clamped[31] = (clamped[31] & 127) | 64;
        clamped
    }

    /// `message` without MACs, then with mac1 and mac2 (zeros without a cookie).
    fn with_macs(labels: &Labels, receiver: &[u8], message: &[u8], cookie: Option<&[u8]>) -> Vec<u8> {
        let mut message = message.to_vec();
        message.extend(mac(&hash(&[labels.mac1, receiver]), &message));
        let mac2 = cookie.map_or([0; 16], |cookie| mac(cookie, &message));
        message.extend(mac2);
        message
    }

    fn cookie_reply(labels: &Labels, replier: &[u8], nonce: &[u8], cookie: &[u8], message: &[u8]) -> Vec<u8> {
        let mac1 = &message[message.len() - 32..message.len() - 16];
        let key = hash(&[labels.cookie, replier]);
        let sealed = XChaCha20Poly1305::new(&key.into())
            .encrypt(nonce.into(), Payload { msg: cookie, aad: mac1 })
            .unwrap();
        [&[labels.first_type + 2, 0, 0, 0], &message[4..8], nonce, &sealed].concat()
    }

    pub fn made(suite: Suite, input: &Recording) -> BTreeMap<&'static str, Vec<u8>> {
        let labels = if suite == Suite::Aes256Gcm { AES } else { WIREGUARD };
        let [s_i, s_r, e_i, e_r] =
            ["initiator_private", "responder_private", "initiator_ephemeral", "responder_ephemeral"]
                .map(|name| clamp(&input.0[name]));
        let [s_i_pub, s_r_pub, e_i_pub, e_r_pub] = [&s_i, &s_r, &e_i, &e_r].map(|key| public_of(key));
        let [i_i, i_r] = ["initiator_index", "responder_index"].map(|name| &input.0[name]);
        let mut made = BTreeMap::new();

        let c = hash(&[labels.construction]);
        let h = hash(&[&c, labels.identifier]);
        let h = hash(&[&h, &s_r_pub]);
        let [c] = kdf(&c, &e_i_pub);
        let h = hash(&[&h, &e_i_pub]);
        let [c, k] = kdf(&c, &dh(&e_i, &s_r_pub));
        let sealed_static = seal(suite, &k, 0, &s_i_pub, &h);
        let h = hash(&[&h, &sealed_static]);
        let [c, k] = kdf(&c, &dh(&s_i, &s_r_pub));
        let sealed_timestamp = seal(suite, &k, 0, &input.0["timestamp"], &h);
        let h = hash(&[&h, &sealed_timestamp]);
        let message =
            [&[labels.first_type, 0, 0, 0], &i_i[..], &e_i_pub, &sealed_static, &sealed_timestamp].concat();
        let initiation = with_macs(&labels, &s_r_pub, &message, None);

        let cookie_of = |source: &str| {
            let source: core::net::SocketAddrV4 = source.parse().unwrap();
            let text = [&source.ip().octets()[..], &source.port().to_le_bytes(), &[0]].concat();
            mac(&input.0["cookie_secret"], &text)
        };
        let cookie = cookie_of(INITIATOR_ADDRESS);
        let nonce = &input.0["nonce_of_cookie_reply_to_initiation"];
        made.insert(
            "cookie_reply_to_initiation",
            cookie_reply(&labels, &s_r_pub, nonce, &cookie, &initiation),
        );
        made.insert("initiation_with_mac2", with_macs(&labels, &s_r_pub, &message, Some(&cookie)));
        made.insert("initiation", initiation);

        let [c] = kdf(&c, &e_r_pub);
        let h = hash(&[&h, &e_r_pub]);
        let [c] = kdf(&c, &dh(&e_r, &e_i_pub));
        let [c] = kdf(&c, &dh(&e_r, &s_i_pub));
        let [c, t, k] = kdf(&c, &input.0["preshared_key"]);
        let h = hash(&[&h, &t]);
        let sealed_nothing = seal(suite, &k, 0, &[], &h);
        let message = [&[labels.first_type + 1, 0, 0, 0], &i_r[..], i_i, &e_r_pub, &sealed_nothing].concat();
        let response = with_macs(&labels, &s_i_pub, &message, None);
        let cookie = cookie_of(RESPONDER_ADDRESS);
        let nonce = &input.0["nonce_of_cookie_reply_to_response"];
        made.insert("cookie_reply_to_response", cookie_reply(&labels, &s_i_pub, nonce, &cookie, &response));
        made.insert("response_with_mac2", with_macs(&labels, &s_i_pub, &message, Some(&cookie)));
        made.insert("response", response);

        let [to_responder, to_initiator] = kdf(&c, &[]);
        let transport = |key: &[u8; 32], receiver: &[u8], counter: u64, plaintext: &[u8]| {
            let header = [&[labels.first_type + 3, 0, 0, 0], receiver, &counter.to_le_bytes()].concat();
            let aad = if suite == Suite::Aes256Gcm { &header[..] } else { &[] };
            let sealed = seal(suite, key, counter, plaintext, aad);
            [header.clone(), sealed].concat()
        };
        let packet = &input.0["padded_packet"];
        made.insert("transport_counter_0", transport(&to_responder, i_r, 0, packet));
        made.insert("transport_counter_high", transport(&to_initiator, i_i, input.counter(), packet));
        made.insert("keepalive_of_initiator", transport(&to_responder, i_r, 1, &[]));
        made.insert("keepalive_of_responder", transport(&to_initiator, i_i, 0, &[]));
        made
    }
}

/// On failure the text is what the file would have to say.
fn assert_recorded(suite: Suite, made: &BTreeMap<&'static str, Vec<u8>>, recorded: &Recording) {
    assert_eq!(made.len(), MESSAGES.len());
    let text: String = MESSAGES.iter().map(|name| format!("{name} {}\n", hex(&made[name]))).collect();
    let same = MESSAGES.iter().all(|name| recorded.0.get(name) == Some(&made[name]));
    assert!(same, "{suite} differs from its recording:\n{text}");
}

#[test]
fn the_code_makes_the_recorded_messages() {
    for suite in Suite::ALL {
        let recorded = Recording::of(suite);
        assert_recorded(suite, &made_by_the_code(suite, &recorded), &recorded);
    }
}

#[test]
fn a_second_reading_of_the_protocol_makes_the_recorded_messages() {
    for suite in Suite::ALL {
        let recorded = Recording::of(suite);
        assert_recorded(suite, &second_reading::made(suite, &recorded), &recorded);
    }
}

#[test]
fn every_input_matters_to_the_recording() {
    for suite in Suite::ALL {
        let inputs: Vec<_> =
            Recording::of(suite).0.into_keys().filter(|name| !MESSAGES.contains(name)).collect();
        assert_eq!(inputs.len(), 13, "{inputs:?}");
        for name in inputs {
            let recorded = Recording::of(suite);
            let mut changed = Recording::of(suite);
            let value = changed.0.get_mut(name).unwrap();
            let middle = value.len() / 2;
            value[middle] ^= 0x10;
            let made = made_by_the_code(suite, &changed);
            assert_eq!(made, second_reading::made(suite, &changed), "{name}");
            assert!(MESSAGES.iter().any(|message| made[message] != recorded.0[message]), "{name}");
        }
    }
}

/// These two values stand as constants in several implementations of WireGuard.
#[test]
fn the_chaining_key_and_hash_start_where_every_wireguard_starts() {
    let suite = Suite::ChaCha20Poly1305;
    let chaining_key = adit_proto::noise::hash(&[suite.noise_name()]);
    let hash = adit_proto::noise::hash(&[&chaining_key, suite.prologue()]);
    assert_eq!(hex(&chaining_key), "60e26daef327efc02ec335e2a025d2d016eb4206f87277f52d38d1988b78cd36");
    assert_eq!(hex(&hash), "2211b361081ac566691243db458ad5322d9c6c662293e8b70ee19c65ba079ef3");
}

/// The packet inside a recorded transport message, opened under `keys`.
fn open_recorded(keys: &SessionKeys, message: &[u8]) -> Vec<u8> {
    let path = Path::new(PeerId(0), PublicKey([0; 32]), keys.suite);
    let keypair = Keypair::new(keys, Arc::new(path), Instant::ZERO).unwrap();
    let Message::Transport(header) = Message::parse(message).unwrap().1 else { panic!() };
    assert_eq!(header.receiver, keys.local_index);
    let mut buffer = message.to_vec();
    let packet = keypair.open(Instant::ZERO, header.counter, &mut buffer).unwrap().to_vec();
    buffer.copy_from_slice(message);
    buffer[16] ^= 1;
    assert!(keypair.open(Instant::ZERO, header.counter, &mut buffer).is_err());
    packet
}

/// Whether `packet` is an ICMP echo message of this type between the two inside addresses.
fn assert_echo(packet: &[u8], icmp_type: u8, source: &str, destination: &str) {
    let header = InsideHeader::parse(packet).unwrap();
    assert_eq!((packet[9], packet[20]), (1, icmp_type));
    assert_eq!((header.source, header.destination), (source.parse().unwrap(), destination.parse().unwrap()));
}

#[test]
fn wireguard_go_answers_our_initiation() {
    let suite = Suite::ChaCha20Poly1305;
    let recorded = Recording::parse(include_str!("vectors/wireguard-go.txt"));
    let [us, them] = ["our_private", "their_private"].map(|name| Identity::new(recorded.secret(name)));
    let psk = PresharedKey::from_bytes(recorded.get("preshared_key"));
    let ss = us.secret.diffie_hellman(&them.public).unwrap();
    let (awaiting, mut initiation) = AwaitingResponse::create_initiation(
        suite,
        &us,
        &them.public,
        &ss,
        recorded.secret("our_ephemeral"),
        recorded.index("our_index"),
        Tai64n::from_bytes(recorded.get("our_timestamp")),
    )
    .unwrap();
    CookieJar::new(suite, &them.public).stamp(&mut initiation, Instant::ZERO);
    assert_eq!(initiation.to_vec(), recorded.0["our_initiation"]);

    let response = &recorded.0["their_response"];
    assert!(Mac1Keys::new(&us.public).verify(suite, response));
    let Message::Response(response) = Message::parse(response).unwrap().1 else { panic!() };
    assert!(awaiting.consume_response(&us, &PresharedKey::default(), &response).is_err(), "the psk counts");
    let keys = awaiting.consume_response(&us, &psk, &response).unwrap();
    assert_echo(&open_recorded(&keys, &recorded.0["their_echo_reply"]), 0, "10.0.0.2", "10.0.0.1");

    let path = Arc::new(Path::new(PeerId(0), them.public, suite));
    let keypair = Keypair::new(&keys, path, Instant::ZERO).unwrap();
    let mut request = recorded.0["our_echo_request"].clone();
    let swapped = SessionKeys {
        suite,
        initiator: false,
        local_index: keys.remote_index,
        remote_index: keys.local_index,
        sending: keys.receiving.clone(),
        receiving: keys.sending.clone(),
    };
    let packet = open_recorded(&swapped, &request);
    assert_echo(&packet, 8, "10.0.0.1", "10.0.0.2");
    request[16..16 + packet.len()].copy_from_slice(&packet);
    keypair.seal(0, &mut request).unwrap();
    assert_eq!(request, recorded.0["our_echo_request"], "what it answered is what we seal today");
}

#[test]
fn we_answer_the_initiation_of_wireguard_go() {
    let suite = Suite::ChaCha20Poly1305;
    let recorded = Recording::parse(include_str!("vectors/wireguard-go.txt"));
    let [us, them] = ["our_private", "their_private"].map(|name| Identity::new(recorded.secret(name)));
    let psk = PresharedKey::from_bytes(recorded.get("preshared_key"));
    let initiation = &recorded.0["their_initiation"];
    assert!(Mac1Keys::new(&us.public).verify(suite, initiation));
    let Message::Initiation(initiation) = Message::parse(initiation).unwrap().1 else { panic!() };
    let opened = OpenedInitiation::open(suite, &us, &initiation).unwrap();
    assert_eq!(opened.remote, them.public);
    let ss = us.secret.diffie_hellman(&them.public).unwrap();
    let authentic = opened.authenticate(&ss).unwrap();
    assert!(authentic.timestamp > Tai64n::from_bytes(recorded.get("our_timestamp")), "recorded later");
    let (keys, mut response) = authentic
        .respond(&psk, recorded.secret("our_second_ephemeral"), recorded.index("our_second_index"))
        .unwrap();
    CookieJar::new(suite, &them.public).stamp(&mut response, Instant::ZERO);
    assert_eq!(response.to_vec(), recorded.0["our_response"], "it accepted this");
    assert_echo(&open_recorded(&keys, &recorded.0["their_echo_request"]), 8, "10.0.0.2", "10.0.0.1");
}

#[test]
fn recorded_messages_parse_as_what_they_are() {
    for suite in Suite::ALL {
        let recorded = Recording::of(suite);
        for name in MESSAGES {
            let (parsed_suite, message) = Message::parse(&recorded.0[name]).unwrap();
            assert_eq!(parsed_suite, suite);
            let kind = match message {
                Message::Initiation(_) => "initiation",
                Message::Response(_) => "response",
                Message::CookieReply(_) => "cookie_reply",
                Message::Transport(_) if recorded.0[name].len() == 32 => "keepalive",
                Message::Transport(_) => "transport",
            };
            assert!(name.starts_with(kind), "{name} is a {kind}");
        }
    }
}

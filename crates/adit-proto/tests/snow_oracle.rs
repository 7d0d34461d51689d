//! The handshake of both suites against an independent Noise implementation, byte for byte.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

use adit_proto::handshake::{AwaitingResponse, Identity, OpenedInitiation};
use adit_proto::key::{PresharedKey, StaticSecret};
use adit_proto::suite::Suite;
use adit_proto::time::Tai64n;
use adit_proto::wire::Message;
use rand_chacha::ChaCha20Rng;
use rand_core::{RngCore, SeedableRng};

const SESSIONS: u64 = 10_000;

#[test]
fn ten_thousand_wireguard_sessions_equal_those_of_snow() {
    compare_sessions(Suite::ChaCha20Poly1305);
}

#[test]
fn ten_thousand_aes_sessions_equal_those_of_snow() {
    compare_sessions(Suite::Aes256Gcm);
}

/// One of four threads' share of the sessions each.
fn compare_sessions(suite: Suite) {
    std::thread::scope(|scope| {
        for thread in 0..4 {
            scope.spawn(move || {
                for seed in (thread..SESSIONS).step_by(4) {
                    compare_session(suite, seed);
                }
            });
        }
    });
}

fn compare_session(suite: Suite, seed: u64) {
    let mut rng = ChaCha20Rng::seed_from_u64(seed);
    let mut bytes = || {
        let mut bytes = [0u8; 32];
        rng.fill_bytes(&mut bytes);
        bytes
    };
    let secrets = [bytes(), bytes(), bytes(), bytes()].map(StaticSecret::from_bytes);
    let [alice, bob, alice_ephemeral, bob_ephemeral] = secrets;
    let psk = if seed.is_multiple_of(3) { [0; 32] } else { bytes() };
    let timestamp = Tai64n::from_bytes(*bytes().first_chunk().unwrap());
    let [alice_index, bob_index, ..] = bytes().map(u32::from);
    let (alice, bob) = (Identity::new(alice), Identity::new(bob));
    let psk_key = PresharedKey::from_bytes(psk);

    let params = || std::str::from_utf8(suite.noise_name()).unwrap().parse().unwrap();
    let mut snow_alice = snow::Builder::new(params())
        .prologue(suite.prologue())
        .unwrap()
        .local_private_key(alice.secret.as_bytes())
        .unwrap()
        .remote_public_key(&bob.public.0)
        .unwrap()
        .psk(2, &psk)
        .unwrap()
        .fixed_ephemeral_key_for_testing_only(alice_ephemeral.as_bytes())
        .build_initiator()
        .unwrap();
    let mut snow_bob = snow::Builder::new(params())
        .prologue(suite.prologue())
        .unwrap()
        .local_private_key(bob.secret.as_bytes())
        .unwrap()
        .psk(2, &psk)
        .unwrap()
        .fixed_ephemeral_key_for_testing_only(bob_ephemeral.as_bytes())
        .build_responder()
        .unwrap();
    let mut buffer = [0u8; 256];
    let mut payload = [0u8; 64];

    let ss = alice.secret.diffie_hellman(&bob.public).unwrap();
    let (awaiting, initiation) = AwaitingResponse::create_initiation(
        suite,
        &alice,
        &bob.public,
        &ss,
        alice_ephemeral,
        alice_index,
        timestamp,
    )
    .unwrap();
    let len = snow_alice.write_message(timestamp.as_bytes(), &mut buffer).unwrap();
    assert_eq!(&initiation[8..116], &buffer[..len], "initiation of session {seed}");
    let len = snow_bob.read_message(&initiation[8..116], &mut payload).unwrap();
    assert_eq!(&payload[..len], timestamp.as_bytes());

    let Ok((parsed_suite, Message::Initiation(message))) = Message::parse(&initiation) else {
        panic!("our initiation does not parse")
    };
    assert_eq!(parsed_suite, suite);
    let opened = OpenedInitiation::open(suite, &bob, &message).unwrap();
    assert_eq!(opened.remote, alice.public);
    let authentic = opened.authenticate(&bob.secret.diffie_hellman(&alice.public).unwrap()).unwrap();
    assert_eq!(authentic.timestamp, timestamp);
    let (bob_keys, response) = authentic.respond(&psk_key, bob_ephemeral, bob_index).unwrap();
    let len = snow_bob.write_message(&[], &mut buffer).unwrap();
    assert_eq!(&response[12..60], &buffer[..len], "response of session {seed}");
    snow_alice.read_message(&response[12..60], &mut payload).unwrap();

    let Ok((_, Message::Response(message))) = Message::parse(&response) else {
        panic!("our response does not parse")
    };
    let alice_keys = awaiting.consume_response(&alice, &psk_key, &message).unwrap();
    let (to_bob, to_alice) = snow_alice.dangerously_get_raw_split();
    assert_eq!((*alice_keys.sending, *alice_keys.receiving), (to_bob, to_alice), "keys of session {seed}");
    assert_eq!((*bob_keys.receiving, *bob_keys.sending), (to_bob, to_alice));
    assert_eq!(snow_bob.dangerously_get_raw_split(), (to_bob, to_alice));
    assert_eq!((alice_keys.remote_index, bob_keys.remote_index), (bob_index, alice_index));
}

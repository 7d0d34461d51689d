//! What a lane does with keys: seal and open transport messages of the sizes that occur.

#![allow(clippy::expect_used, clippy::unwrap_used, clippy::arithmetic_side_effects, clippy::indexing_slicing)]

use std::sync::Arc;

use adit_proto::aead::TAG_LEN;
use adit_proto::event::PeerId;
use adit_proto::handshake::SessionKeys;
use adit_proto::key::PublicKey;
use adit_proto::keypair::{Keypair, blocks_of};
use adit_proto::path::Path;
use adit_proto::suite::Suite;
use adit_proto::time::Instant;
use adit_proto::wire::TRANSPORT_HEADER_LEN;
use divan::counter::BytesCount;
use divan::{Bencher, black_box};
use zeroize::Zeroizing;

const SIZES: [usize; 4] = [64, 1_300, 1_420, 16_384];

fn main() {
    divan::main();
}

/// Two ends of one session.
fn pair(suite: Suite) -> [Keypair; 2] {
    let path = Arc::new(Path::new(PeerId(0), PublicKey([1; 32]), suite));
    [true, false].map(|initiator| {
        let [a, b] = [Zeroizing::new([3; 32]), Zeroizing::new([4; 32])];
        let (sending, receiving) = if initiator { (a, b) } else { (b, a) };
        let (local_index, remote_index) = if initiator { (7, 8) } else { (8, 7) };
        let keys = SessionKeys { suite, initiator, local_index, remote_index, sending, receiving };
        Keypair::new(&keys, Arc::clone(&path), Instant::ZERO).expect("a key of 32 bytes")
    })
}

fn message(len: usize) -> Vec<u8> {
    vec![0x5a; TRANSPORT_HEADER_LEN + len + TAG_LEN]
}

fn seal(bencher: Bencher<'_, '_>, suite: Suite, len: usize) {
    let [alice, _] = pair(suite);
    let mut message = message(len);
    bencher.counter(BytesCount::new(len)).bench_local(|| {
        let counter = alice.reserve(1, 0).expect("counters enough");
        alice.seal(counter, black_box(&mut message)).expect("room for the tag");
    });
}

/// A message opens once, so each turn gets one of its own, sealed beforehand.
fn open(bencher: Bencher<'_, '_>, suite: Suite, len: usize) {
    let [alice, bob] = pair(suite);
    bencher
        .counter(BytesCount::new(len))
        .with_inputs(|| {
            let counter = alice.reserve(1, blocks_of(len)).expect("counters enough");
            let mut message = message(len);
            alice.seal(counter, &mut message).expect("room for the tag");
            (counter, message)
        })
        .bench_local_refs(|(counter, message)| {
            bob.open(Instant::ZERO, *counter, black_box(message)).expect("a fresh message").len()
        });
}

#[divan::bench(args = SIZES)]
fn seal_aes_256_gcm(bencher: Bencher<'_, '_>, len: usize) {
    seal(bencher, Suite::Aes256Gcm, len);
}

#[divan::bench(args = SIZES)]
fn seal_chacha20_poly1305(bencher: Bencher<'_, '_>, len: usize) {
    seal(bencher, Suite::ChaCha20Poly1305, len);
}

#[divan::bench(args = SIZES)]
fn open_aes_256_gcm(bencher: Bencher<'_, '_>, len: usize) {
    open(bencher, Suite::Aes256Gcm, len);
}

#[divan::bench(args = SIZES)]
fn open_chacha20_poly1305(bencher: Bencher<'_, '_>, len: usize) {
    open(bencher, Suite::ChaCha20Poly1305, len);
}

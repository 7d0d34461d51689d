#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use zeroize::Zeroizing;

use super::*;
use crate::event::PeerId;
use crate::key::PublicKey;

fn pair(suite: Suite) -> [Keypair; 2] {
    let path = Arc::new(Path::new(PeerId(0), PublicKey([1; 32]), suite));
    [true, false].map(|initiator| {
        let [a, b] = [Zeroizing::new([3; 32]), Zeroizing::new([4; 32])];
        let (sending, receiving) = if initiator { (a, b) } else { (b, a) };
        let (local_index, remote_index) = if initiator { (7, 8) } else { (8, 7) };
        let keys = SessionKeys { suite, initiator, local_index, remote_index, sending, receiving };
        Keypair::new(&keys, Arc::clone(&path), Instant::ZERO).unwrap()
    })
}

fn sealed(keypair: &Keypair, counter: u64, text: &[u8; 16]) -> [u8; 48] {
    let mut message = [0; 48];
    message[16..32].copy_from_slice(text);
    keypair.seal(counter, &mut message).unwrap();
    message
}

#[test]
fn a_message_opens_once_at_the_other_end() {
    for suite in Suite::ALL {
        let [alice, bob] = pair(suite);
        let mut message = sealed(&alice, 5, b"sixteen bytes ok");
        let mut again = message;
        assert_eq!(bob.open(Instant::ZERO, 5, &mut message).unwrap(), b"sixteen bytes ok");
        assert_eq!(bob.open(Instant::ZERO, 5, &mut again), Err(DropReason::Replay));
    }
}

#[test]
fn a_forged_counter_does_not_move_the_replay_window() {
    let [alice, bob] = pair(Suite::Aes256Gcm);
    let mut forged = sealed(&alice, 1, b"sixteen bytes ok");
    forged[8..16].copy_from_slice(&(1u64 << 63).to_le_bytes());
    assert_eq!(bob.open(Instant::ZERO, 1 << 63, &mut forged), Err(DropReason::BadTag));
    let mut honest = sealed(&alice, 0, b"sixteen bytes ok");
    assert!(bob.open(Instant::ZERO, 0, &mut honest).is_ok());
}

#[test]
fn only_the_aes_suite_binds_the_header() {
    for suite in Suite::ALL {
        let [alice, bob] = pair(suite);
        let mut message = sealed(&alice, 0, b"sixteen bytes ok");
        message[4] ^= 1;
        assert_eq!(bob.open(Instant::ZERO, 0, &mut message).is_ok(), suite == Suite::ChaCha20Poly1305);
    }
}

#[test]
fn keys_end_at_180_seconds_and_renew_at_120_by_their_initiator() {
    let [alice, bob] = pair(Suite::Aes256Gcm);
    let at = |secs: u64| Instant::from_millis(secs * 1_000);
    assert!(alice.is_usable(Instant::from_millis(179_999)));
    assert!(!alice.is_usable(at(180)));
    assert!(!alice.rekey_after_sending(at(119)));
    assert!(alice.rekey_after_sending(at(120)));
    assert!(!alice.rekey_after_sending(at(121)), "it asks once");
    assert!(!bob.rekey_after_sending(at(150)), "the responder does not ask for its age");
    let [alice, bob] = pair(Suite::Aes256Gcm);
    assert!(!alice.rekey_after_receiving(at(164)));
    assert!(alice.rekey_after_receiving(at(165)));
    assert!(!bob.rekey_after_receiving(at(170)));
}

#[test]
fn the_message_limit_is_never_passed() {
    let [alice, bob] = pair(Suite::ChaCha20Poly1305);
    alice.skip_ahead(REJECT_AFTER_MESSAGES - 2, 0);
    assert_eq!(alice.reserve(2, 2), Some(REJECT_AFTER_MESSAGES - 2));
    assert_eq!(alice.reserve(1, 1), None);
    assert_eq!(alice.reserve(u64::MAX, 1), None);
    let last = REJECT_AFTER_MESSAGES - 1;
    assert!(bob.open(Instant::ZERO, last, &mut sealed(&alice, last, b"sixteen bytes ok")).is_ok());
    let over = REJECT_AFTER_MESSAGES;
    let refused = bob.open(Instant::ZERO, over, &mut sealed(&alice, over, b"sixteen bytes ok")).map(|_| ());
    assert_eq!(refused, Err(DropReason::ExpiredKeypair));
}

#[test]
fn aes_blocks_ask_for_a_rekey_from_either_side_and_then_stop_the_key() {
    for keypair in pair(Suite::Aes256Gcm) {
        keypair.skip_ahead(0, REKEY_AFTER_BLOCKS - 1);
        assert!(!keypair.rekey_after_sending(Instant::ZERO));
        assert!(keypair.reserve(1, 1).is_some());
        assert!(keypair.rekey_after_sending(Instant::ZERO));
        keypair.skip_ahead(0, REJECT_AFTER_BLOCKS - 3);
        assert!(keypair.reserve(1, 3).is_some());
        assert_eq!(keypair.reserve(1, 1), None);
    }
    let [wireguard, _] = pair(Suite::ChaCha20Poly1305);
    wireguard.skip_ahead(0, REJECT_AFTER_BLOCKS);
    assert!(wireguard.reserve(1, 90).is_some(), "the limit is AES-GCM's alone");
}

#[test]
fn blocks_count_the_packet_and_the_tag() {
    assert_eq!([0, 1, 16, 17, 1420].map(blocks_of), [1, 2, 2, 3, 90]);
}

#[test]
fn counters_reserved_by_many_threads_never_repeat() {
    let [alice, _] = pair(Suite::Aes256Gcm);
    let mut taken: Vec<u64> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..4)
            .map(|_| {
                scope.spawn(|| {
                    let blocks = (0..2_000).map(|n| (alice.reserve(n % 7 + 1, 1).unwrap(), n % 7 + 1));
                    blocks.flat_map(|(first, n)| first..first + n).collect::<Vec<_>>()
                })
            })
            .collect();
        threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    });
    let count = taken.len();
    taken.sort_unstable();
    taken.dedup();
    assert_eq!(taken.len(), count);
    assert_eq!(taken.last().copied(), Some(count as u64 - 1));
}

#[test]
fn a_retired_keypair_opens_nothing() {
    let [alice, bob] = pair(Suite::Aes256Gcm);
    let mut message = sealed(&alice, 0, b"sixteen bytes ok");
    bob.retire();
    assert_eq!(bob.open(Instant::ZERO, 0, &mut message), Err(DropReason::ExpiredKeypair));
}

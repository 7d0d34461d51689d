//! What ten thousand peers cost a gateway: memory of an idle peer, and the time of one change.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant as WallClock};

use adit_proto::allowed_ips::Prefix;
use adit_proto::engine::{Engine, EngineConfig};
use adit_proto::event::{AllowedIpChange, Command, PeerUpdate};
use adit_proto::forward::Forwarding;
use adit_proto::key::{PublicKey, StaticSecret};
use adit_proto::time::Clock;

const PEERS: u32 = 10_000;
/// Public key, pre-shared key, and what is computed once from the two static keys.
const KEYS_BYTES: usize = 3 * 32;
const IDLE_PEER_BYTES: usize = 2_048;

struct Counting;

/// Bytes allocated now. One test in this file, so nobody else allocates meanwhile.
static BYTES: AtomicUsize = AtomicUsize::new(0);

// SAFETY: hands every call on to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        BYTES.fetch_add(layout.size(), Relaxed);
        // SAFETY: the caller keeps the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        BYTES.fetch_sub(layout.size(), Relaxed);
        // SAFETY: the caller keeps the contract of `dealloc`.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn gateway() -> (Engine, Arc<Forwarding>) {
    let mut state = 1_u64;
    let random = move |bytes: &mut [u8]| {
        bytes.fill_with(|| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 56) as u8
        });
    };
    let (mut engine, forwarding) = Engine::new(EngineConfig::default(), Box::new(random));
    let secret = StaticSecret::from_bytes([7; 32]);
    engine.handle_command(Clock::default(), Command::SetPrivateKey(Some(secret)));
    (engine, forwarding)
}

/// Peer `n` with an address of each IP version.
fn peer(n: u32) -> PeerUpdate {
    let key = std::array::from_fn(|at| n.to_be_bytes()[at % 4] ^ at as u8);
    let mut update = PeerUpdate::new(PublicKey(key));
    let v4 = std::net::Ipv4Addr::from_bits(0x0a00_0000 + n);
    let v6 = std::net::Ipv6Addr::from_bits((0xfd00_u128 << 112) + u128::from(n));
    update.allowed_ips =
        [v4.into(), v6.into()].map(|address| AllowedIpChange::Add(Prefix::host(address))).to_vec();
    update
}

/// How long one call takes, and the polls after it.
fn timed(engine: &mut Engine, commands: impl Iterator<Item = Command>) -> Duration {
    let start = WallClock::now();
    commands.for_each(|command| engine.handle_command(Clock::default(), command));
    while engine.poll_output(Clock::default().now).is_some() {}
    start.elapsed()
}

#[test]
fn ten_thousand_idle_peers_take_less_than_2_kib_each_and_one_change_a_few_milliseconds() {
    let (mut engine, forwarding) = gateway();
    let before = BYTES.load(Relaxed);
    let all = timed(&mut engine, (0..PEERS).map(|n| Command::SetPeer(peer(n))));
    let bytes = (BYTES.load(Relaxed) - before) / PEERS as usize;
    let additions = (0..15).map(|n| Command::SetPeer(peer(PEERS + n)));
    let removals = (0..15).map(|n| Command::RemovePeer(peer(n).public_key));
    let mut changes: Vec<_> =
        additions.chain(removals).map(|change| timed(&mut engine, std::iter::once(change))).collect();
    changes.sort();
    let none = timed(&mut engine, std::iter::empty());
    println!("{bytes} bytes a peer; all {all:?}; one change {:?}; no change {none:?}", changes[15]);
    assert!(bytes > KEYS_BYTES, "the allocator counts");
    assert!(bytes <= IDLE_PEER_BYTES + KEYS_BYTES, "{bytes} bytes a peer");
    assert!(changes[15] < Duration::from_millis(50), "one change took {:?}", changes[15]);
    assert!(all < 200 * changes[15].max(Duration::from_millis(1)), "the table was made once: {all:?}");
    assert_eq!(engine.peers(Clock::default().now).len(), PEERS as usize);
    assert_eq!(engine.next_timeout(), None, "idle peers have no timer");
    drop(engine);
    drop(forwarding);
    let left = BYTES.load(Relaxed).saturating_sub(before);
    assert!(left < 1 << 16, "{left} bytes are left when the gateway is gone");
}

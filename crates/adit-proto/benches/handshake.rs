//! What a handshake costs the engine of a gateway, from initiation to response.

#![allow(clippy::expect_used)]

use std::sync::Arc;

use adit_proto::cookie::CookieJar;
use adit_proto::endpoint::Endpoint;
use adit_proto::engine::{Engine, EngineConfig};
use adit_proto::event::{Command, Output, PeerUpdate};
use adit_proto::forward::Forwarding;
use adit_proto::handshake::{AwaitingResponse, Identity};
use adit_proto::key::StaticSecret;
use adit_proto::limit::{LimitConfig, Rate};
use adit_proto::packet::Ecn;
use adit_proto::suite::Suite;
use adit_proto::time::{Clock, Instant, Tai64n, UnixTime};
use divan::Bencher;

/// As many as there are peers: each starts one handshake, as after a restart of the gateway.
const PEERS: u32 = 2_000;
const UNLIMITED: Rate = Rate { per_sec: 1_000_000, burst: 1_000_000 };

fn main() {
    divan::main();
}

struct Gateway {
    engine: Engine,
    forwarding: Arc<Forwarding>,
    initiations: Vec<Vec<u8>>,
    clock: Clock,
}

impl Gateway {
    fn new(suite: Suite, unverified: Rate) -> Self {
        let limiter = LimitConfig { unverified, ..LimitConfig::default() };
        let config = EngineConfig { default_suite: suite, limiter };
        let mut state = 1_u64;
        let random = move |bytes: &mut [u8]| {
            bytes.fill_with(|| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                (state >> 56) as u8
            });
        };
        let (mut engine, forwarding) = Engine::new(config, Box::new(random));
        let clock =
            Clock { now: Instant::from_millis(1_000), wall: UnixTime { secs: 1_700_000_000, nanos: 0 } };
        let ours = Identity::new(StaticSecret::from_bytes([7; 32]));
        engine.handle_command(clock, Command::SetPrivateKey(Some(ours.secret.clone())));
        let initiations = (1..=PEERS).map(|n| {
            let mut secret = [0x40; 32];
            secret[8..12].copy_from_slice(&n.to_le_bytes());
            let peer = Identity::new(StaticSecret::from_bytes(secret));
            engine.handle_command(clock, Command::SetPeer(PeerUpdate::new(peer.public)));
            initiation(suite, &peer, &ours, n, clock)
        });
        let initiations = initiations.collect();
        while engine.poll_output(clock.now).is_some() {}
        Self { engine, forwarding, initiations, clock }
    }

    /// Takes in one initiation as lane and engine do; the length of the answer.
    fn answer(&mut self) -> usize {
        let mut initiation = self.initiations.pop().expect("an initiation for each turn");
        let from = Endpoint::udp(([192, 0, 2, 2], 51820).into());
        let mut notices = Vec::new();
        self.forwarding.arrive(self.clock.now, &from, Ecn::NotEct, &mut initiation, &mut notices);
        for notice in notices {
            self.engine.handle_notice(self.clock, notice);
        }
        let mut len = 0;
        while let Some(output) = self.engine.poll_output(self.clock.now) {
            if let Output::Transmit(transmit) = output {
                len = transmit.contents.len();
            }
        }
        len
    }
}

fn initiation(suite: Suite, peer: &Identity, ours: &Identity, index: u32, clock: Clock) -> Vec<u8> {
    let ss = peer.secret.diffie_hellman(&ours.public).expect("a proper key");
    let ephemeral = StaticSecret::from_bytes([0x77; 32]);
    let timestamp = Tai64n::from_unix(clock.wall);
    let created =
        AwaitingResponse::create_initiation(suite, peer, &ours.public, &ss, ephemeral, index, timestamp);
    let (_, mut message) = created.expect("a proper key");
    CookieJar::new(suite, &ours.public).stamp(&mut message, clock.now);
    message.to_vec()
}

fn answers(bencher: Bencher<'_, '_>, suite: Suite, unverified: Rate, expected_len: usize) {
    let mut gateway = Gateway::new(suite, unverified);
    bencher.bench_local(|| assert_eq!(gateway.answer(), expected_len));
}

#[divan::bench(args = Suite::ALL, sample_count = 100, sample_size = 10)]
fn response(bencher: Bencher<'_, '_>, suite: Suite) {
    answers(bencher, suite, UNLIMITED, adit_proto::wire::RESPONSE_LEN);
}

#[divan::bench(args = Suite::ALL, sample_count = 100, sample_size = 10)]
fn cookie_reply(bencher: Bencher<'_, '_>, suite: Suite) {
    let none = Rate { per_sec: 0, burst: 0 };
    answers(bencher, suite, none, adit_proto::wire::COOKIE_REPLY_LEN);
}

//! Which peer an address belongs to, in tables small and large.

#![allow(clippy::expect_used, clippy::unwrap_used, clippy::arithmetic_side_effects, clippy::indexing_slicing)]

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use adit_proto::allowed_ips::{AllowedIps, Prefix, Routes};
use divan::{Bencher, black_box};

const COUNTS: [u32; 2] = [10, 10_000];
const QUESTIONS: usize = 1_024;

fn main() {
    divan::main();
}

/// The addresses of `count` peers, in no order that a branch predictor could learn.
fn addresses(count: u32, of: fn(u32) -> IpAddr) -> Vec<IpAddr> {
    let mut number = 12_345_u32;
    let mut next = || {
        number = number.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        of((number >> 8) % count)
    };
    (0..QUESTIONS).map(|_| next()).collect()
}

fn routes(count: u32, of: fn(u32) -> IpAddr) -> Routes {
    let mut table = AllowedIps::default();
    for peer in 0..count {
        table.insert(Prefix::host(of(peer)), peer);
    }
    table.publish()
}

fn lookup(bencher: Bencher<'_, '_>, count: u32, of: fn(u32) -> IpAddr) {
    let (routes, questions) = (routes(count, of), addresses(count, of));
    let mut turn = questions.iter().cycle();
    bencher.bench_local(|| {
        let address = *turn.next().expect("a cycle has no end");
        routes.lookup(black_box(address)).expect("a peer's address")
    });
}

fn v4_of(peer: u32) -> IpAddr {
    Ipv4Addr::from_bits((10 << 24) + peer * 4 + 1).into()
}

fn v6_of(peer: u32) -> IpAddr {
    Ipv6Addr::from_bits((0xfd00 << 112) + (u128::from(peer) << 64) + 1).into()
}

#[divan::bench(args = COUNTS)]
fn v4(bencher: Bencher<'_, '_>, prefixes: u32) {
    lookup(bencher, prefixes, v4_of);
}

#[divan::bench(args = COUNTS)]
fn v6(bencher: Bencher<'_, '_>, prefixes: u32) {
    lookup(bencher, prefixes, v6_of);
}

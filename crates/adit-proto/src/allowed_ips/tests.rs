#![allow(clippy::unwrap_used, clippy::arithmetic_side_effects, clippy::indexing_slicing)]

use proptest::prelude::*;
use rand_chacha::ChaCha8Rng;
use rand_core::{RngCore, SeedableRng};

use super::*;

fn prefix(text: &str) -> Prefix {
    text.parse().unwrap()
}

fn address(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn table(entries: &[(&str, u32)]) -> AllowedIps {
    let mut table = AllowedIps::default();
    for (text, peer) in entries {
        table.insert(prefix(text), *peer);
    }
    table
}

fn expect(routes: &Routes, cases: &[(&str, Option<u32>)]) {
    for (text, peer) in cases {
        assert_eq!(routes.lookup(address(text)), *peer, "{text}");
    }
}

/// The obvious slow longest-prefix match.
fn naive_lookup(entries: &[(Prefix, u32)], address: IpAddr) -> Option<u32> {
    let matches = entries.iter().filter(|(prefix, _)| prefix.contains(address));
    matches.max_by_key(|(prefix, _)| prefix.prefix_len()).map(|(_, peer)| *peer)
}

/// Addresses at and around the edges of a prefix, where a range search goes wrong if it does.
fn edges(prefix: Prefix) -> [IpAddr; 4] {
    match prefix.address() {
        IpAddr::V4(v4) => {
            let (first, last) = (v4.to_bits(), v4.to_bits() | host_mask_v4(prefix.prefix_len()));
            [first, last, first.wrapping_sub(1), last.wrapping_add(1)]
                .map(|bits| Ipv4Addr::from_bits(bits).into())
        }
        IpAddr::V6(v6) => {
            let (first, last) = (v6.to_bits(), v6.to_bits() | host_mask_v6(prefix.prefix_len()));
            [first, last, first.wrapping_sub(1), last.wrapping_add(1)]
                .map(|bits| Ipv6Addr::from_bits(bits).into())
        }
    }
}

#[test]
fn a_prefix_reads_and_writes_canonically() {
    for (text, canonical) in [
        ("10.0.0.0/8", "10.0.0.0/8"),
        ("10.1.2.3/8", "10.0.0.0/8"),
        ("192.168.7.9", "192.168.7.9/32"),
        ("255.255.255.255/0", "0.0.0.0/0"),
        ("fd00::1:2", "fd00::1:2/128"),
        ("FD00:0:0:0:ffff::1/64", "fd00::/64"),
        ("::1/0", "::/0"),
        ("::ffff:10.0.0.1/96", "::ffff:0.0.0.0/96"),
        ("10.0.0.1/032", "10.0.0.1/32"),
    ] {
        assert_eq!(prefix(text).to_string(), canonical);
        assert_eq!(prefix(&prefix(text).to_string()), prefix(text));
    }
}

#[test]
fn what_is_no_prefix_is_refused_with_the_reason() {
    for text in
        ["", "/", "/8", "10.0.0/8", "10.0.0.256", "host/8", " 10.0.0.0/8", "fe80::1%eth0/64", "1.2.3.4 /8"]
    {
        assert_eq!(text.parse::<Prefix>(), Err(PrefixError::BadAddress), "{text:?}");
    }
    for text in
        ["10.0.0.0/", "10.0.0.0/33", "::/129", "::/256", "::/+1", "::/-1", "::/ 1", "::/1/1", "::/0001"]
    {
        assert_eq!(text.parse::<Prefix>(), Err(PrefixError::BadLength), "{text:?}");
    }
}

#[test]
fn the_longest_prefix_wins_however_deep_they_nest() {
    let routes = table(&[
        ("0.0.0.0/0", 1),
        ("10.0.0.0/8", 2),
        ("10.64.0.0/10", 3),
        ("10.64.0.0/16", 4),
        ("10.64.3.7/32", 5),
        ("10.127.255.0/24", 6),
    ])
    .publish();
    expect(
        &routes,
        &[
            ("0.0.0.0", Some(1)),
            ("9.255.255.255", Some(1)),
            ("10.0.0.0", Some(2)),
            ("10.63.255.255", Some(2)),
            ("10.64.0.0", Some(4)),
            ("10.64.3.6", Some(4)),
            ("10.64.3.7", Some(5)),
            ("10.64.3.8", Some(4)),
            ("10.65.0.0", Some(3)),
            ("10.127.254.255", Some(3)),
            ("10.127.255.0", Some(6)),
            ("10.127.255.255", Some(6)),
            ("10.128.0.0", Some(2)),
            ("11.0.0.0", Some(1)),
            ("255.255.255.255", Some(1)),
            ("::", None),
        ],
    );
}

#[test]
fn an_empty_table_routes_nothing() {
    let routes = AllowedIps::default().publish();
    expect(&routes, &[("0.0.0.0", None), ("255.255.255.255", None), ("::", None), ("10.1.1.1", None)]);
    expect(
        &table(&[("::/0", 4)]).publish(),
        &[("255.255.255.255", None), ("0.0.0.0", None), ("::", Some(4))],
    );
}

#[test]
fn the_ends_of_the_address_space_are_addresses_like_any_other() {
    let last = "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff";
    let routes = table(&[("255.255.255.255", 1), ("0.0.0.0", 2), (last, 3), ("::", 4)]).publish();
    expect(
        &routes,
        &[
            ("255.255.255.255", Some(1)),
            ("255.255.255.254", None),
            ("0.0.0.0", Some(2)),
            ("0.0.0.1", None),
            (last, Some(3)),
            ("ffff:ffff:ffff:ffff:ffff:ffff:ffff:fffe", None),
            ("::", Some(4)),
            ("::1", None),
        ],
    );
}

#[test]
fn an_ipv4_mapped_address_is_ipv6() {
    let routes = table(&[("10.0.0.0/8", 1), ("::ffff:10.0.0.0/104", 2)]).publish();
    expect(&routes, &[("10.0.0.1", Some(1)), ("::ffff:10.0.0.1", Some(2))]);
    let only_v4 = table(&[("0.0.0.0/0", 1)]).publish();
    expect(&only_v4, &[("10.0.0.1", Some(1)), ("::ffff:10.0.0.1", None), ("::10.0.0.1", None)]);
    assert!(!prefix("0.0.0.0/0").contains(address("::ffff:1.2.3.4")));
    assert!(!prefix("::/0").contains(address("1.2.3.4")));
}

#[test]
fn a_prefix_moves_to_the_peer_it_is_given_to() {
    let mut table = table(&[("10.0.0.0/8", 1), ("fd00::/8", 1)]);
    assert_eq!(table.insert(prefix("10.9.9.9/8"), 2), Some(1));
    assert_eq!(table.insert(prefix("10.0.0.0/8"), 2), None);
    assert_eq!(table.prefixes_of(1).collect::<Vec<_>>(), [prefix("fd00::/8")]);
    assert_eq!(table.prefixes_of(2).collect::<Vec<_>>(), [prefix("10.0.0.0/8")]);
    expect(&table.publish(), &[("10.0.0.1", Some(2)), ("fd00::1", Some(1))]);
}

#[test]
fn only_the_owner_loses_a_prefix() {
    let mut table = table(&[("10.0.0.0/8", 1), ("10.0.0.0/24", 2)]);
    assert!(!table.remove(prefix("10.0.0.0/8"), 2));
    assert!(!table.remove(prefix("10.0.0.0/16"), 1));
    expect(&table.publish(), &[("10.0.0.1", Some(2)), ("10.1.0.1", Some(1))]);
    assert!(table.remove(prefix("10.0.0.0/24"), 2));
    assert!(!table.remove(prefix("10.0.0.0/24"), 2));
    expect(&table.publish(), &[("10.0.0.1", Some(1)), ("10.1.0.1", Some(1))]);
}

#[test]
fn a_removed_peer_leaves_nothing_behind() {
    let mut table = table(&[("10.0.0.0/8", 1), ("10.2.0.0/16", 2), ("fd00::/8", 2), ("10.2.3.4", 1)]);
    table.remove_peer(2);
    table.remove_peer(2);
    assert_eq!(table.prefixes_of(2).count(), 0);
    assert_eq!(table.count(), 2);
    expect(&table.publish(), &[("10.2.0.1", Some(1)), ("fd00::1", None)]);
    table.remove_peer(1);
    assert!(table.owners.is_empty() && table.by_peer.is_empty());
}

#[test]
fn prefixes_are_listed_ipv4_first_by_address_then_short_first() {
    let table = table(&[
        ("fd00::/64", 7),
        ("10.0.0.0/24", 7),
        ("::/0", 7),
        ("9.0.0.0/32", 7),
        ("10.0.0.0/8", 7),
        ("1.1.1.1", 8),
    ]);
    let listed: Vec<String> = table.prefixes_of(7).map(|prefix| prefix.to_string()).collect();
    assert_eq!(listed, ["9.0.0.0/32", "10.0.0.0/8", "10.0.0.0/24", "::/0", "fd00::/64"]);
}

#[test]
fn neighbours_of_the_same_peer_become_one_range() {
    let mut table = AllowedIps::default();
    for last in 0..=255 {
        table.insert(Prefix::host(Ipv4Addr::new(10, 0, 0, last).into()), 3);
    }
    assert_eq!(table.publish().v4.peers, [None, Some(3), None]);
}

#[test]
fn published_routes_do_not_change_with_the_table() {
    let mut table = table(&[("10.0.0.0/8", 1)]);
    let routes = table.publish();
    table.remove_peer(1);
    expect(&routes, &[("10.0.0.1", Some(1))]);
    expect(&table.publish(), &[("10.0.0.1", None)]);
}

/// A prefix that often nests in another: few distinct leading bits, all lengths.
fn random_prefix(rng: &mut ChaCha8Rng) -> Prefix {
    let spread = rng.next_u32() % 4;
    if rng.next_u32().is_multiple_of(2) {
        let bits = rng.next_u32() & [u32::MAX, 0xff00_ffff, 0x0f0f_0000, 0x0000_00ff][spread as usize];
        Prefix::new(Ipv4Addr::from_bits(bits).into(), (rng.next_u32() % 33) as u8).unwrap()
    } else {
        let bits = u128::from(rng.next_u64()) << 64 | u128::from(rng.next_u64());
        let bits = bits & [u128::MAX, 0xff << 64, 0x0f0f << 100 | 0xff, u128::MAX << 120][spread as usize];
        Prefix::new(Ipv6Addr::from_bits(bits).into(), (rng.next_u32() % 129) as u8).unwrap()
    }
}

#[test]
fn twenty_thousand_random_prefixes_match_the_naive_list() {
    let mut rng = ChaCha8Rng::seed_from_u64(0x5eed);
    let mut table = AllowedIps::default();
    for _ in 0..20_000 {
        table.insert(random_prefix(&mut rng), rng.next_u32() % 1_000);
    }
    for _ in 0..50 {
        table.remove_peer(rng.next_u32() % 1_000);
    }
    let entries: Vec<(Prefix, u32)> = table.iter().collect();
    let routes = table.publish();
    let mut found = 0;
    for round in 0..600 {
        let probe = entries[rng.next_u32() as usize % entries.len()].0;
        let random = match random_prefix(&mut rng).address() {
            IpAddr::V4(_) => Ipv4Addr::from_bits(rng.next_u32()).into(),
            IpAddr::V6(v6) => Ipv6Addr::from_bits(v6.to_bits() | u128::from(rng.next_u64())).into(),
        };
        for address in edges(probe).into_iter().chain([random]) {
            let wanted = naive_lookup(&entries, address);
            assert_eq!(routes.lookup(address), wanted, "{address} in round {round}");
            found += usize::from(wanted.is_some());
        }
    }
    assert!(found > 300, "the table answers only {found} probes");
}

fn any_prefix() -> impl Strategy<Value = Prefix> {
    any::<u64>().prop_map(|seed| random_prefix(&mut ChaCha8Rng::seed_from_u64(seed)))
}

proptest! {
    #[test]
    fn every_edge_of_a_small_table_matches_the_naive_list(
        inserts in prop::collection::vec((any_prefix(), 0..6u32), 0..60), removed in 0..6u32,
    ) {
        let mut table = AllowedIps::default();
        for (prefix, peer) in &inserts {
            table.insert(*prefix, *peer);
        }
        table.remove_peer(removed);
        let entries: Vec<(Prefix, u32)> = table.iter().collect();
        let routes = table.publish();
        for address in inserts.iter().flat_map(|(prefix, _)| edges(*prefix)) {
            prop_assert_eq!(routes.lookup(address), naive_lookup(&entries, address), "{}", address);
        }
        let by_peer: usize = (0..6).map(|peer| table.prefixes_of(peer).count()).sum();
        prop_assert_eq!(by_peer, table.count());
    }

    #[test]
    fn a_prefix_survives_its_text(prefix in any_prefix()) {
        prop_assert_eq!(prefix.to_string().parse(), Ok(prefix));
        prop_assert!(prefix.contains(prefix.address()));
    }
}

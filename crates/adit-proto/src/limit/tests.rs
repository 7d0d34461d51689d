#![allow(clippy::unwrap_used, clippy::arithmetic_side_effects)]

use core::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

use proptest::prelude::*;

use super::*;

const LIMITED: Verdict = Verdict::Drop(DropReason::RateLimited);

fn v4(host: u32) -> Endpoint {
    Endpoint::udp(SocketAddr::new(Ipv4Addr::from_bits(host).into(), 51820))
}

fn v6(network: u64, host: u64) -> Endpoint {
    let address = Ipv6Addr::from_bits(u128::from(network) << 64 | u128::from(host));
    Endpoint::udp(SocketAddr::new(address.into(), 51820))
}

fn at_millis(millis: u64) -> Instant {
    Instant::from_millis(1_000_000 + millis)
}

/// A limiter that is under load at [`at_millis`] 0 and until 1000.
fn loaded(config: LimitConfig) -> Limiter {
    let mut limiter = Limiter::new(config);
    for host in 0..=config.unverified.burst {
        limiter.decide(&v4(host), at_millis(0), || false);
    }
    assert!(limiter.is_under_load(at_millis(0)));
    limiter
}

fn count(verdicts: &[Verdict], wanted: Verdict) -> usize {
    verdicts.iter().filter(|&&verdict| verdict == wanted).count()
}

#[test]
fn without_load_nobody_needs_a_cookie_and_mac2_is_not_even_checked() {
    let mut limiter = Limiter::new(LimitConfig::default());
    for millis in 0..5_000 {
        let verdict = limiter.decide(&v4(7), at_millis(millis), || unreachable!("mac2 was checked"));
        assert_eq!(verdict, Verdict::Admit);
    }
    assert_eq!(limiter.source_count(), 0);
}

#[test]
fn the_budget_spent_means_load_until_a_second_after() {
    let config = LimitConfig::default();
    let mut limiter = Limiter::new(config);
    for host in 0..1_000 {
        assert_eq!(limiter.decide(&v4(host), at_millis(0), || false), Verdict::Admit);
    }
    assert!(!limiter.is_under_load(at_millis(0)));
    assert_eq!(limiter.decide(&v4(1_000), at_millis(0), || false), Verdict::RequireCookie);
    assert!(limiter.is_under_load(at_millis(999)));
    assert_eq!(limiter.decide(&v4(1_001), at_millis(999), || false), Verdict::RequireCookie);
    assert!(!limiter.is_under_load(at_millis(1_000)));
    assert_eq!(limiter.decide(&v4(1_002), at_millis(1_000), || false), Verdict::Admit);
}

#[test]
fn a_steady_flood_gets_one_burst_and_then_only_cookie_replies() {
    let mut limiter = Limiter::new(LimitConfig::default());
    let verdicts: Vec<Verdict> =
        (0..40_000).map(|n| limiter.decide(&v4(n), at_millis(u64::from(n) / 4), || false)).collect();
    let admitted = count(&verdicts, Verdict::Admit);
    assert!((1_000..1_400).contains(&admitted), "{admitted} admitted in ten seconds");
    assert_eq!(count(&verdicts, Verdict::RequireCookie), 40_000 - admitted);
}

#[test]
fn cookie_replies_have_a_budget_too() {
    let config = LimitConfig { cookie_replies: Rate { per_sec: 100, burst: 10 }, ..LimitConfig::default() };
    let mut limiter = loaded(config);
    let verdicts: Vec<Verdict> =
        (0..5_000).map(|n| limiter.decide(&v4(n), at_millis(u64::from(n) / 5), || false)).collect();
    let replies = count(&verdicts, Verdict::RequireCookie);
    assert!((105..=110).contains(&replies), "{replies} replies in a second");
    assert_eq!(count(&verdicts, LIMITED), 5_000 - replies);
}

// D-04
#[test]
fn a_million_spoofed_sources_cost_no_memory() {
    let mut limiter = Limiter::new(LimitConfig::default());
    for n in 0..1_u32 << 20 {
        let from = if n % 2 == 0 { v4(n.wrapping_mul(0x9e37_79b9)) } else { v6(u64::from(n) << 20, 1) };
        limiter.decide(&from, at_millis(u64::from(n) / 200), || false);
        assert_eq!(limiter.source_count(), 0);
    }
    assert!(limiter.is_under_load(at_millis((1 << 20) / 200)));
}

#[test]
fn a_million_proven_sources_fill_the_table_and_no_more() {
    let plenty = Rate { per_sec: 10_000_000, burst: 10_000_000 };
    let config = LimitConfig { verified: plenty, max_sources: 1_000, ..LimitConfig::default() };
    let mut limiter = loaded(config);
    let verdicts: Vec<Verdict> =
        (0..1 << 20).map(|n| limiter.decide(&v4(n), at_millis(1), || true)).collect();
    assert_eq!(limiter.source_count(), 1_000);
    assert_eq!(count(&verdicts, Verdict::Admit), 1_000);
    assert_eq!(limiter.decide(&v4(3), at_millis(1), || true), Verdict::Admit, "a known source goes on");
    assert_eq!(limiter.decide(&v4(1 << 21), at_millis(1), || true), LIMITED);
}

#[test]
fn the_table_is_not_filled_faster_than_the_budget_admits() {
    let config = LimitConfig { verified: Rate { per_sec: 1_000, burst: 1_000 }, ..LimitConfig::default() };
    let mut limiter = loaded(config);
    for n in 0..1_u32 << 18 {
        limiter.decide(&v6(u64::from(n), 1), at_millis(u64::from(n) / 300), || true);
        assert!(limiter.source_count() <= 2_100, "{} sources", limiter.source_count());
    }
}

#[test]
fn sources_are_forgotten_when_their_buckets_are_full_again() {
    let mut limiter = loaded(LimitConfig::default());
    for n in 0..500 {
        assert_eq!(limiter.decide(&v4(n), at_millis(1), || true), Verdict::Admit);
    }
    assert_eq!(limiter.source_count(), 500);
    limiter.decide(&v4(0), at_millis(2_000), || true);
    assert!(limiter.source_count() <= 1);
}

// D-05
#[test]
fn a_whole_slash_64_is_one_source() {
    let mut limiter = loaded(LimitConfig::default());
    let network = 0x2001_0db8_0000_0001;
    let verdicts: Vec<Verdict> =
        (0..100).map(|host| limiter.decide(&v6(network, host << 32), at_millis(1), || true)).collect();
    assert_eq!(count(&verdicts, Verdict::Admit), 5);
    assert_eq!(count(&verdicts, LIMITED), 95);
    assert_eq!(limiter.source_count(), 1);
    assert_eq!(limiter.decide(&v6(network + 1, 0), at_millis(1), || true), Verdict::Admit);
}

#[test]
fn ipv4_hosts_are_sources_each_also_when_mapped_into_ipv6() {
    let mut limiter = loaded(LimitConfig::default());
    for host in 0..100 {
        let mapped = Ipv4Addr::from_bits(host).to_ipv6_mapped();
        let from = Endpoint::udp(SocketAddr::new(mapped.into(), 1));
        assert_eq!(limiter.decide(&from, at_millis(1), || true), Verdict::Admit);
    }
    for _ in 0..4 {
        assert_eq!(limiter.decide(&v4(7), at_millis(1), || true), Verdict::Admit);
    }
    assert_eq!(limiter.decide(&v4(7), at_millis(1), || true), LIMITED);
    assert_eq!(limiter.source_count(), 100);
}

#[test]
fn a_proven_source_gets_a_burst_of_five_and_twenty_a_second() {
    let mut limiter = loaded(LimitConfig::default());
    let mut admitted = 0;
    for millis in 0..10_000 {
        limiter.hold_load(at_millis(millis));
        admitted += usize::from(limiter.decide(&v4(9), at_millis(millis), || true) == Verdict::Admit);
    }
    assert!((203..=205).contains(&admitted), "{admitted} in ten seconds");
}

/// How many of ten thousand proven messages from one address are admitted under load within ten seconds.
fn admitted_from_one_address(are_peers: bool) -> usize {
    let mut limiter = loaded(LimitConfig::default());
    let admitted = |millis: u64| {
        limiter.hold_load(at_millis(millis));
        let verdict = limiter.decide(&v4(9), at_millis(millis), || true);
        if are_peers && verdict == Verdict::Admit {
            limiter.was_from_peer(&v4(9));
        }
        verdict == Verdict::Admit
    };
    (0..10_000).map(admitted).filter(|&admitted| admitted).count()
}

#[test]
fn ten_thousand_peers_may_share_one_address_and_strangers_there_may_not_flood() {
    assert_eq!(admitted_from_one_address(true), 10_000);
    assert!((203..=205).contains(&admitted_from_one_address(false)));
}

#[test]
fn what_a_peer_gets_back_is_no_more_than_it_spent() {
    let mut limiter = loaded(LimitConfig::default());
    assert_eq!(limiter.decide(&v4(9), at_millis(1), || true), Verdict::Admit);
    for _ in 0..100 {
        limiter.was_from_peer(&v4(9));
    }
    let verdicts: Vec<Verdict> = (0..100).map(|_| limiter.decide(&v4(9), at_millis(1), || true)).collect();
    assert_eq!(count(&verdicts, Verdict::Admit), 5, "a bucket holds its burst and no more");
    limiter.was_from_peer(&v4(10));
    assert_eq!(limiter.source_count(), 1, "a source without a bucket gets none for it");
}

#[test]
fn a_source_over_its_own_limit_does_not_spend_the_budget_of_the_others() {
    let config = LimitConfig { verified: Rate { per_sec: 1, burst: 10 }, ..LimitConfig::default() };
    let mut limiter = loaded(config);
    let greedy: Vec<Verdict> = (0..1_000).map(|_| limiter.decide(&v4(1), at_millis(1), || true)).collect();
    assert_eq!(count(&greedy, Verdict::Admit), 5);
    let others: Vec<Verdict> = (2..12).map(|n| limiter.decide(&v4(n), at_millis(1), || true)).collect();
    assert_eq!(count(&others, Verdict::Admit), 5, "what is left of ten");
}

/// Legitimate clients that start a handshake every 50 ms and retry once, 5 s later, with the cookie
/// they got. Returns how many there were and how many were admitted, within an attack of ten seconds
/// at `attack_per_sec` spoofed messages.
fn clients_during_attack(attack_per_sec: u32) -> (usize, usize) {
    let mut limiter = Limiter::new(LimitConfig::default());
    let (mut clients, mut admitted, mut spoofed, mut waiting) = (0, 0, 0_u32, Vec::new());
    for millis in 0..20_000_u64 {
        let now = at_millis(millis);
        while u64::from(spoofed) < u64::from(attack_per_sec) * millis / 1_000 {
            spoofed += 1;
            limiter.decide(&v4(spoofed.wrapping_mul(0x9e37_79b9)), now, || false);
        }
        if millis % 50 == 0 && millis < 15_000 {
            clients += 1;
            let client = v6(0x2001_0db8 << 32 | millis, 1);
            match limiter.decide(&client, now, || false) {
                Verdict::Admit => admitted += 1,
                Verdict::RequireCookie => waiting.push((millis + 5_000, client)),
                Verdict::Drop(_) => {}
            }
        }
        waiting.retain(|(due, client)| {
            let is_due = *due == millis;
            admitted += usize::from(is_due && limiter.decide(client, now, || true) == Verdict::Admit);
            !is_due
        });
    }
    (clients, admitted)
}

// D-04 and D-06
#[test]
fn cookie_holders_get_through_at_every_rate_of_attack() {
    for attack_per_sec in [0, 500, 950, 980, 999, 1_000, 1_010, 1_100, 5_000, 9_000] {
        let (clients, admitted) = clients_during_attack(attack_per_sec);
        assert_eq!(admitted, clients, "at {attack_per_sec} a second");
    }
}

#[test]
fn the_message_that_begins_the_load_is_admitted_if_its_source_is_proven() {
    let drained = || {
        let mut limiter = Limiter::new(LimitConfig::default());
        for host in 0..1_000 {
            assert_eq!(limiter.decide(&v4(host), at_millis(0), || false), Verdict::Admit);
        }
        limiter
    };
    assert_eq!(drained().decide(&v4(5), at_millis(0), || true), Verdict::Admit);
    assert_eq!(drained().decide(&v4(5), at_millis(0), || false), Verdict::RequireCookie);
}

#[test]
fn a_connection_proves_its_source_but_is_limited_like_any_other() {
    let mut limiter = loaded(LimitConfig::default());
    for carrier in [Carrier::Tcp(1), Carrier::Tls(2), Carrier::Ws(3), Carrier::Wss(4)] {
        let from = Endpoint { carrier, ..v4(carrier.number()) };
        let verdicts: Vec<Verdict> = (0..8)
            .map(|_| limiter.decide(&from, at_millis(1), || unreachable!("no cookie needed")))
            .collect();
        assert_eq!((count(&verdicts, Verdict::Admit), count(&verdicts, LIMITED)), (5, 3));
    }
}

trait Number {
    fn number(self) -> u32;
}

impl Number for Carrier {
    fn number(self) -> u32 {
        match self {
            Self::Udp => 0,
            Self::Tcp(n) | Self::Tls(n) | Self::Ws(n) | Self::Wss(n) => n as u32,
        }
    }
}

#[test]
fn a_rate_of_zero_admits_nothing() {
    let none = Rate { per_sec: 0, burst: 100 };
    assert!(!Bucket::default().spend(none, at_millis(0)));
    assert!(!Bucket::default().spend(Rate { per_sec: 100, burst: 0 }, at_millis(0)));
    assert!(Bucket::default().spend(Rate { per_sec: 1, burst: 1 }, at_millis(0)));
}

/// The obvious bucket: a number of tokens that grows with time.
struct NaiveBucket {
    tokens: f64,
    at: Instant,
}

proptest! {
    #[test]
    fn a_bucket_agrees_with_one_that_counts_tokens(
        per_sec in 1..50u32, burst in 1..20u32, gaps in prop::collection::vec(0..400u64, 1..200),
    ) {
        let rate = Rate { per_sec, burst };
        let mut bucket = Bucket::default();
        let mut naive = NaiveBucket { tokens: f64::from(burst), at: at_millis(0) };
        let mut millis = 0;
        for gap in gaps {
            millis += gap;
            let now = at_millis(millis);
            let grown = now.since(naive.at).as_secs_f64() * f64::from(per_sec);
            naive = NaiveBucket { tokens: f64::from(burst).min(naive.tokens + grown), at: now };
            // Too close to call: the exact bucket rounds a token down to whole nanoseconds.
            if (naive.tokens - 1.0).abs() < 1e-4 {
                break;
            }
            let wanted = naive.tokens >= 1.0;
            naive.tokens -= f64::from(u8::from(wanted));
            prop_assert_eq!(bucket.spend(rate, now), wanted, "at {} ms", millis);
        }
    }

    #[test]
    fn whatever_arrives_memory_and_admissions_stay_within_the_budgets(
        arrivals in prop::collection::vec((0..40u32, any::<bool>(), 0..30u64), 1..600),
    ) {
        let rate = |per_sec, burst| Rate { per_sec, burst };
        let config = LimitConfig {
            unverified: rate(10, 5),
            cookie_replies: rate(50, 20),
            verified: rate(20, 10),
            per_source: rate(4, 2),
            max_sources: 8,
            ..LimitConfig::default()
        };
        let mut limiter = Limiter::new(config);
        let (mut millis, mut unproven, mut proven) = (0, 0, 0);
        for (host, has_cookie, gap) in arrivals {
            millis += gap;
            let mut asked = false;
            let verdict = limiter.decide(&v4(host), at_millis(millis), || { asked = true; has_cookie });
            if verdict == Verdict::Admit {
                if asked { proven += 1 } else { unproven += 1 }
                prop_assert!(!asked || has_cookie);
            }
            prop_assert!(verdict != Verdict::RequireCookie || !has_cookie);
            prop_assert!(limiter.source_count() <= 8);
            prop_assert!(unproven <= 6 + millis * 10 / 1_000, "{} unproven in {} ms", unproven, millis);
            prop_assert!(proven <= 11 + millis * 20 / 1_000, "{} proven in {} ms", proven, millis);
        }
    }
}

#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use proptest::prelude::*;

use super::*;

const NOW: Instant = Instant::from_millis(50_000);

fn rate(bytes: u64) -> Option<NonZeroU64> {
    NonZeroU64::new(bytes)
}

fn with(limits: &Limits) -> Allowance {
    let allowance = Allowance::default();
    allowance.set(limits, None, 0);
    allowance
}

/// The obvious version: tokens that come with time, in billionths.
struct Tokens {
    per_sec: u128,
    most: u128,
    there: u128,
    at: u64,
}

impl Tokens {
    fn new(per_sec: u64) -> Self {
        let most = u128::from(MIN_BURST_BYTES).max(u128::from(per_sec) / 4) * 1_000_000_000;
        Self { per_sec: per_sec.into(), most, there: most, at: 0 }
    }

    fn spend(&mut self, now: u64, bytes: u64) -> bool {
        self.there = self.most.min(self.there + u128::from(now - self.at) * self.per_sec);
        self.at = now;
        let cost = u128::from(bytes) * 1_000_000_000;
        let enough = self.there >= cost;
        if enough {
            self.there -= cost;
        }
        enough
    }
}

proptest! {
    /// The two may differ by what one nanosecond brings for each packet: the time is in whole nanoseconds.
    #[test]
    fn a_bucket_gives_what_counted_tokens_give(
        per_sec in 1_000..2_000_000_000u64,
        packets in proptest::collection::vec((0..20_000_000u64, 40..65_536u64), 1..200),
    ) {
        let allowance = with(&Limits { inbound: rate(per_sec), ..Limits::default() });
        let mut tokens = Tokens::new(per_sec);
        let (mut now, mut given, mut expected) = (1u64, 0u64, 0u64);
        for &(pause, len) in &packets {
            now += pause;
            let admitted = allowance.admit(Instant(now), Direction::Inbound, len, 0, false).is_ok();
            given += u64::from(admitted) * len;
            expected += u64::from(tokens.spend(now, len)) * len;
        }
        let slack = 65_536 + packets.len() as u64 * per_sec.div_ceil(1_000_000_000);
        prop_assert!(given.abs_diff(expected) <= slack, "{given} instead of {expected}");
    }

    #[test]
    fn lanes_together_get_no_more_than_one_alone(per_sec in 10_000..100_000_000u64) {
        let allowance = with(&Limits { outbound: rate(per_sec), ..Limits::default() });
        let given = AtomicU64::new(0);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for packet in 0..500u64 {
                        let now = Instant(NOW.0 + packet * 1_000_000);
                        if allowance.admit(now, Direction::Outbound, 1_400, 0, false).is_ok() {
                            given.fetch_add(1_400, Relaxed);
                        }
                    }
                });
            }
        });
        let burst = MIN_BURST_BYTES.max(per_sec / 4);
        let most = burst + per_sec / 2 + per_sec.div_ceil(1_000_000_000) * 2_000;
        prop_assert!(given.into_inner() <= most, "{most}");
    }
}

#[test]
fn without_limits_the_gate_is_open_and_with_any_it_is_not() {
    assert!(with(&Limits::default()).is_open());
    for limits in [
        Limits { inbound: rate(1), ..Limits::default() },
        Limits { outbound: rate(1), ..Limits::default() },
        Limits { left_bytes: Some(0), ..Limits::default() },
    ] {
        let allowance = with(&limits);
        assert!(!allowance.is_open(), "{limits:?}");
        allowance.set(&Limits::default(), None, 0);
        assert!(allowance.is_open(), "and again without");
    }
}

#[test]
fn each_direction_has_its_own_bucket() {
    let allowance = with(&Limits { inbound: rate(1_000), outbound: rate(1_000), ..Limits::default() });
    let fill =
        |direction| (0..1_000).filter(|_| allowance.admit(NOW, direction, 1_024, 0, false).is_ok()).count();
    assert_eq!(fill(Direction::Inbound), 128);
    assert_eq!(fill(Direction::Outbound), 128, "the other is still full");
    assert_eq!(allowance.admit(NOW, Direction::Inbound, 1, 0, true), Err(DropReason::OverRate));
    assert_eq!(allowance.status(0).refused, [872 * 2 + 1, 0, 0, 0]);
}

#[test]
fn only_one_direction_may_be_limited() {
    let allowance = with(&Limits { inbound: rate(1), ..Limits::default() });
    assert!((0..100_000).all(|_| allowance.admit(NOW, Direction::Outbound, 65_535, 0, false).is_ok()));
    assert!(!(0..100).all(|_| allowance.admit(NOW, Direction::Inbound, 65_535, 0, false).is_ok()));
}

#[test]
fn a_bucket_holds_a_quarter_of_a_second_or_two_superpackets() {
    for (per_sec, burst) in [(1_000, MIN_BURST_BYTES), (80_000_000, 20_000_000)] {
        let allowance = with(&Limits { inbound: rate(per_sec), ..Limits::default() });
        let given =
            (0..1 << 20).filter(|_| allowance.admit(NOW, Direction::Inbound, 1_000, 0, false).is_ok());
        let given = given.count() as u64 * 1_000;
        assert!(given <= burst && burst - given < 1_000, "{per_sec}: {given}");
    }
}

#[test]
fn a_spent_quota_stops_all_but_words_with_the_gateway() {
    let allowance = with(&Limits { left_bytes: Some(10_000), ..Limits::default() });
    for direction in [Direction::Inbound, Direction::Outbound] {
        assert_eq!(allowance.admit(NOW, direction, 1_000, 9_999, false), Ok(()));
        assert_eq!(allowance.admit(NOW, direction, 1_000, 10_000, false), Err(DropReason::OverQuota));
        assert_eq!(allowance.admit(NOW, direction, 1_000, 10_000, true), Ok(()));
    }
    let words = (0..1_000).filter(|_| allowance.admit(NOW, Direction::Inbound, 1_024, 10_000, true).is_ok());
    assert!(words.count() < 128, "and of those not many");
    let later = NOW.saturating_add(Duration::from_secs(1));
    let words =
        (0..1_000).filter(|_| allowance.admit(later, Direction::Inbound, 1_024, 10_000, true).is_ok());
    assert_eq!(words.count(), 16);
    assert_eq!((allowance.left_bytes(9_999), allowance.left_bytes(10_001)), (Some(1), Some(0)));
    allowance.set(&Limits { left_bytes: Some(5_000), ..Limits::default() }, None, 10_000);
    assert_eq!(allowance.admit(NOW, Direction::Inbound, 1_000, 14_999, false), Ok(()), "a new month");
}

#[test]
fn a_shut_gate_lets_nothing_through_and_says_why() {
    for (shut, count) in [(DropReason::AccessExpired, 2), (DropReason::OutsideSchedule, 3)] {
        let allowance = Allowance::default();
        allowance.set(&Limits::default(), Some(shut), 0);
        assert_eq!(allowance.admit(NOW, Direction::Outbound, 40, 0, true), Err(shut));
        let status = allowance.status(0);
        assert_eq!((status.shut, status.refused[count]), (Some(shut), 1));
        allowance.set_gate(&Limits::default(), None);
        assert_eq!(allowance.admit(NOW, Direction::Outbound, 40, 0, true), Ok(()));
    }
}

#[test]
fn expiry_comes_before_the_hours_and_both_say_when_to_look_again() {
    let wall = |secs| UnixTime { secs, nanos: 500_000_000 };
    let monday = 1_795_392_000;
    let limits = Limits {
        expires_secs: Some(monday + 10 * 3_600),
        schedule: Some(Schedule::new([(8 * 60, 60)])),
        ..Limits::default()
    };
    assert_eq!(limits.shut_at(wall(monday)), Some(DropReason::OutsideSchedule));
    assert_eq!(limits.shut_at(wall(monday + 8 * 3_600)), None);
    assert_eq!(limits.until_change(wall(monday + 8 * 3_600)), Some(Duration::from_millis(3_599_500)));
    assert_eq!(limits.until_change(wall(monday + 9 * 3_600)), Some(Duration::from_millis(3_599_500)));
    assert_eq!(limits.shut_at(wall(monday + 10 * 3_600)), Some(DropReason::AccessExpired));
    assert_eq!(Limits::default().until_change(wall(monday)), None);
    let ended = Limits { expires_secs: Some(5), ..Limits::default() };
    assert_eq!(
        (ended.shut_at(wall(5)), ended.until_change(wall(5))),
        (Some(DropReason::AccessExpired), None)
    );
}

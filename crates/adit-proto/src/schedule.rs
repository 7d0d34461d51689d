//! The hours of the week in which a peer may connect.

use core::time::Duration;

use crate::time::UnixTime;

/// Minutes in a week.
pub const WEEK_MINUTES: u16 = 7 * 24 * 60;

const WEEK_SECS: u64 = WEEK_MINUTES as u64 * 60;
/// 1970-01-01 was a Thursday: three days after a Monday.
const EPOCH_SECS: u64 = 3 * 24 * 60 * 60;

/// Stretches of the week, from Monday 00:00 UTC on: in order, apart from each other, none empty.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Schedule(Vec<Stretch>);

/// From a minute of the week to before another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Stretch {
    start: u16,
    end: u16,
}

impl Schedule {
    /// The minutes of `stretches`, each its first minute of the week and how many follow. One that goes beyond the end
    /// of the week goes on at its start.
    pub fn new(stretches: impl IntoIterator<Item = (u16, u16)>) -> Self {
        let mut all = Vec::new();
        for (start, len) in stretches {
            let start = start.checked_rem(WEEK_MINUTES).unwrap_or(0);
            let end = start.saturating_add(len.min(WEEK_MINUTES));
            all.push(Stretch { start, end: end.min(WEEK_MINUTES) });
            all.push(Stretch { start: 0, end: end.saturating_sub(WEEK_MINUTES) });
        }
        all.retain(|stretch| stretch.start < stretch.end);
        all.sort_unstable();
        let mut merged: Vec<Stretch> = Vec::new();
        for stretch in all {
            match merged.last_mut().filter(|last| last.end >= stretch.start) {
                Some(last) => last.end = last.end.max(stretch.end),
                None => merged.push(stretch),
            }
        }
        Self(merged)
    }

    /// Whether a peer may be connected at `wall`.
    pub fn is_open(&self, wall: UnixTime) -> bool {
        let minute = (second_of_week(wall) / 60) as u16;
        self.0.iter().any(|stretch| (stretch.start..stretch.end).contains(&minute))
    }

    /// How long after `wall` the answer of [`Self::is_open`] is another; `None` if it always stays.
    pub fn until_change(&self, wall: UnixTime) -> Option<Duration> {
        let second = second_of_week(wall);
        let open = self.is_open(wall);
        let after = |minute: u16| {
            let at = u64::from(minute).saturating_mul(60);
            if at > second {
                at.saturating_sub(second)
            } else {
                at.saturating_add(WEEK_SECS).saturating_sub(second)
            }
        };
        let changes = self.0.iter().flat_map(|stretch| [stretch.start, stretch.end]);
        let wait = changes
            .map(after)
            .filter(|&secs| {
                let then = UnixTime { secs: wall.secs.saturating_add(secs), nanos: 0 };
                self.is_open(then) != open
            })
            .min()?;
        Some(Duration::from_secs(wait).saturating_sub(Duration::from_nanos(wall.nanos.into())))
    }
}

fn second_of_week(wall: UnixTime) -> u64 {
    wall.secs.saturating_add(EPOCH_SECS).checked_rem(WEEK_SECS).unwrap_or(0)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::arithmetic_side_effects)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The obvious version: one answer for each minute of the week.
    struct Minutes(Vec<bool>);

    impl Minutes {
        fn new(stretches: &[(u16, u16)]) -> Self {
            let mut minutes = vec![false; usize::from(WEEK_MINUTES)];
            for &(start, len) in stretches {
                for minute in 0..u32::from(len.min(WEEK_MINUTES)) {
                    minutes[(u32::from(start) + minute) as usize % usize::from(WEEK_MINUTES)] = true;
                }
            }
            Self(minutes)
        }

        fn is_open(&self, secs: u64) -> bool {
            self.0[((secs + EPOCH_SECS) % WEEK_SECS) as usize / 60]
        }
    }

    fn at(secs: u64) -> UnixTime {
        UnixTime { secs, nanos: 0 }
    }

    #[test]
    fn the_week_begins_on_a_monday() {
        // 2026-11-23 was a Monday.
        let monday = 1_795_392_000;
        let schedule = Schedule::new([(8 * 60, 60)]);
        assert!(!schedule.is_open(at(monday + 8 * 3600 - 1)));
        assert!(schedule.is_open(at(monday + 8 * 3600)));
        assert!(schedule.is_open(at(monday + 9 * 3600 - 1)));
        assert!(!schedule.is_open(at(monday + 9 * 3600)));
        assert!(!schedule.is_open(at(monday + 86_400 + 8 * 3600)), "not on the day after");
        assert_eq!(schedule.until_change(at(monday)), Some(Duration::from_secs(8 * 3600)));
    }

    #[test]
    fn no_hours_are_never_and_a_whole_week_is_always() {
        let never = Schedule::new([]);
        assert!(!never.is_open(at(0)) && never.until_change(at(0)).is_none());
        let always = Schedule::new([(5000, WEEK_MINUTES)]);
        assert!(always.is_open(at(12_345)) && always.until_change(at(12_345)).is_none());
    }

    #[test]
    fn a_change_is_due_at_its_very_nanosecond() {
        let schedule = Schedule::new([(0, 60)]);
        let before = UnixTime { secs: 4 * 86_400 - 1, nanos: 250_000_000 };
        assert_eq!(schedule.until_change(before), Some(Duration::from_millis(750)));
    }

    proptest! {
        #[test]
        fn every_minute_is_as_in_a_table_of_minutes(
            stretches in proptest::collection::vec((0..WEEK_MINUTES, 0..2_000u16), 0..6), secs in 0..1u64 << 33,
        ) {
            let (schedule, minutes) = (Schedule::new(stretches.iter().copied()), Minutes::new(&stretches));
            prop_assert_eq!(schedule.is_open(at(secs)), minutes.is_open(secs));
            match schedule.until_change(at(secs)) {
                Some(wait) => {
                    let change = secs + wait.as_secs();
                    prop_assert_ne!(minutes.is_open(change), minutes.is_open(secs));
                    prop_assert_eq!(minutes.is_open(change - 1), minutes.is_open(secs));
                    let mut between = secs;
                    while between < change {
                        prop_assert_eq!(minutes.is_open(between), minutes.is_open(secs));
                        between += 60;
                    }
                }
                None => prop_assert!(minutes.0.iter().all(|open| *open == minutes.0[0])),
            }
        }
    }
}

#![allow(clippy::unwrap_used, clippy::arithmetic_side_effects)]

use std::collections::HashSet;

use proptest::prelude::*;

use super::*;

/// The obvious slow window.
#[derive(Default)]
struct NaiveWindow {
    seen: HashSet<u64>,
    newest: Option<u64>,
}

impl NaiveWindow {
    fn commit(&mut self, counter: u64) -> bool {
        let too_old = self.newest.is_some_and(|newest| newest.saturating_sub(counter) > WINDOW);
        if counter >= REJECT_AFTER_MESSAGES || too_old {
            return false;
        }
        self.newest = self.newest.max(Some(counter));
        self.seen.insert(counter)
    }
}

/// Commits every counter, checking that the preview agrees each time.
fn commit_all(window: &mut ReplayWindow, counters: &[u64]) -> Vec<bool> {
    counters
        .iter()
        .map(|&counter| {
            let preview = window.would_accept(counter);
            let accepted = window.commit(counter);
            assert_eq!(preview, accepted, "preview of {counter}");
            accepted
        })
        .collect()
}

fn expect(cases: &[(u64, bool)]) {
    let counters: Vec<u64> = cases.iter().map(|case| case.0).collect();
    let wanted: Vec<bool> = cases.iter().map(|case| case.1).collect();
    assert_eq!(commit_all(&mut ReplayWindow::default(), &counters), wanted, "{counters:?}");
}

#[test]
fn the_window_is_as_large_as_the_kernels() {
    assert_eq!(WINDOW, 8128);
}

#[test]
fn each_counter_is_accepted_once_whatever_the_order() {
    expect(&[
        (0, true),
        (1, true),
        (1, false),
        (9, true),
        (8, true),
        (7, true),
        (7, false),
        (0, false),
        (WINDOW, true),
        (WINDOW - 1, true),
        (WINDOW - 1, false),
        (WINDOW - 2, true),
        (2, true),
        (2, false),
    ]);
}

#[test]
fn a_window_starts_anywhere() {
    expect(&[(WINDOW + 16, true), (3, false), (15, false), (16, true), (16, false), (17, true)]);
}

#[test]
fn the_oldest_counter_of_the_window_is_in_and_the_next_older_is_out() {
    for newest in [WINDOW, WINDOW + 1, WINDOW + 63, WINDOW + 64, WINDOW + 65, 3 * WINDOW + 7, 1 << 40] {
        expect(&[(newest, true), (newest - WINDOW, true), (newest - WINDOW, false)]);
        if let Some(older) = (newest - WINDOW).checked_sub(1) {
            expect(&[(newest, true), (older, false)]);
        }
    }
}

#[test]
fn a_jump_forgets_every_bit_of_the_old_window() {
    for jump in [1, 63, 64, 65, WINDOW - 1, WINDOW, WINDOW + 64, 8192, 8193, 100_000, 1 << 50] {
        let mut window = ReplayWindow::default();
        for counter in 0..8192 {
            assert!(window.commit(counter));
        }
        let newest = 8191 + jump;
        assert!(window.commit(newest));
        for counter in (8192..newest).rev().take(9_000) {
            assert_eq!(window.commit(counter), newest - counter <= WINDOW, "{counter} below {newest}");
        }
        for counter in (0..8192).chain([newest]) {
            assert!(!window.commit(counter), "{counter} again below {newest}");
        }
    }
}

#[test]
fn a_refused_counter_changes_nothing() {
    let mut window = ReplayWindow::default();
    assert!(window.commit(1 << 20));
    let before = window.clone();
    for refused in [1 << 20, 0, (1 << 20) - WINDOW - 1, REJECT_AFTER_MESSAGES, u64::MAX] {
        assert!(!window.commit(refused));
        assert_eq!((window.words, window.next), (before.words, before.next));
    }
    assert!(window.commit((1 << 20) + 1));
}

#[test]
fn a_preview_changes_nothing() {
    let window = ReplayWindow::default();
    for counter in [0, 5, 1 << 63, REJECT_AFTER_MESSAGES - 1] {
        assert!(window.would_accept(counter));
    }
    assert!(window.would_accept(0));
}

#[test]
fn counters_end_one_below_the_message_limit() {
    assert_eq!(REJECT_AFTER_MESSAGES, u64::MAX - 8192);
    expect(&[
        (REJECT_AFTER_MESSAGES, false),
        (REJECT_AFTER_MESSAGES + 1, false),
        (u64::MAX, false),
        (REJECT_AFTER_MESSAGES - 2, true),
        (REJECT_AFTER_MESSAGES, false),
        (REJECT_AFTER_MESSAGES - 1, true),
        (REJECT_AFTER_MESSAGES - 1, false),
        (REJECT_AFTER_MESSAGES, false),
        (REJECT_AFTER_MESSAGES + 1, false),
        (REJECT_AFTER_MESSAGES - 1 - WINDOW, true),
        (REJECT_AFTER_MESSAGES - 2 - WINDOW, false),
        (0, false),
    ]);
}

#[test]
fn bulk_arrivals_in_order_reversed_and_interleaved_lose_nothing() {
    let forward: Vec<u64> = (0..=WINDOW).collect();
    let backward: Vec<u64> = (0..=WINDOW).rev().collect();
    let interleaved: Vec<u64> =
        (0..=WINDOW).filter(|c| c % 2 == 0).chain((0..=WINDOW).filter(|c| c % 2 == 1)).collect();
    for order in [forward, backward, interleaved] {
        let mut window = ReplayWindow::default();
        assert!(commit_all(&mut window, &order).iter().all(|&accepted| accepted));
        assert!(commit_all(&mut window, &order).iter().all(|&accepted| !accepted));
    }
}

fn counters() -> impl Strategy<Value = Vec<u64>> {
    let step = prop_oneof![
        6 => -70i64..70,
        3 => -9_000i64..9_000,
        1 => -20_000i64..20_000,
        1 => Just(WINDOW as i64),
        1 => Just(-(WINDOW as i64)),
        1 => Just(-(WINDOW as i64) - 1),
    ];
    let start = prop_oneof![Just(0), Just(1 << 32), Just(REJECT_AFTER_MESSAGES - 5_000), any::<u64>()];
    (start, prop::collection::vec(step, 1..600)).prop_map(|(start, steps)| {
        let mut at = start;
        steps
            .into_iter()
            .map(|step| {
                at = at.saturating_add_signed(step);
                at
            })
            .collect()
    })
}

proptest! {
    #[test]
    fn the_window_agrees_with_a_set_of_every_counter_seen(counters in counters()) {
        let mut window = ReplayWindow::default();
        let mut naive = NaiveWindow::default();
        for counter in counters {
            prop_assert_eq!(window.would_accept(counter), window.clone().commit(counter));
            prop_assert_eq!(window.commit(counter), naive.commit(counter), "counter {}", counter);
        }
    }
}

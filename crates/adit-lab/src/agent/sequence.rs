use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

/// What became of a run of numbered packets.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct SequenceReport {
    pub sent: u64,
    /// Each number counted once.
    pub received: u64,
    pub lost: u64,
    /// Came after a higher number.
    pub reordered: u64,
    pub duplicated: u64,
    /// The longest time between two arrivals.
    pub longest_gap_ms: f64,
    /// From sending to the echo's return; 0 when nothing was echoed.
    pub rtt_median_ms: f64,
    pub rtt_max_ms: f64,
}

/// Watches numbered packets arrive.
#[derive(Debug, Default)]
pub(super) struct Sequence {
    seen: Vec<bool>,
    reordered: u64,
    duplicated: u64,
    last: Option<Instant>,
    longest_gap: Duration,
    rtts: Vec<Duration>,
}

impl Sequence {
    /// The largest run it keeps account of.
    pub(super) const LENGTH_MAX: u64 = 1 << 24;

    pub(super) fn arrived(&mut self, number: u64, now: Instant, rtt: Option<Duration>) {
        if number >= Self::LENGTH_MAX {
            return;
        }
        let index = number as usize;
        let newest = index >= self.seen.len();
        if newest {
            self.seen.resize(index + 1, false);
        }
        match std::mem::replace(&mut self.seen[index], true) {
            true => self.duplicated += 1,
            false if !newest => self.reordered += 1,
            false => {}
        }
        let gap = self.last.replace(now).map(|last| now.saturating_duration_since(last));
        self.longest_gap = self.longest_gap.max(gap.unwrap_or_default());
        self.rtts.extend(rtt);
    }

    pub(super) fn received(&self) -> u64 {
        self.seen.iter().filter(|seen| **seen).count() as u64
    }

    /// The balance, when `sent` packets are known to have left (else the highest number counts).
    pub(super) fn report(mut self, sent: Option<u64>) -> SequenceReport {
        let milliseconds = |duration: Duration| (duration.as_secs_f64() * 1e6).round() / 1e3;
        let sent = sent.unwrap_or(self.seen.len() as u64);
        let received = self.received();
        self.rtts.sort();
        SequenceReport {
            sent,
            received,
            lost: sent.saturating_sub(received),
            reordered: self.reordered,
            duplicated: self.duplicated,
            longest_gap_ms: milliseconds(self.longest_gap),
            rtt_median_ms: milliseconds(self.rtts.get(self.rtts.len() / 2).copied().unwrap_or_default()),
            rtt_max_ms: milliseconds(self.rtts.last().copied().unwrap_or_default()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(numbers: &[u64], sent: Option<u64>) -> SequenceReport {
        let mut sequence = Sequence::default();
        numbers.iter().for_each(|number| sequence.arrived(*number, Instant::now(), None));
        sequence.report(sent)
    }

    #[test]
    fn loss_reordering_and_duplicates_are_told_apart() {
        let it = report(&[0, 1, 4, 3, 3, 7], Some(10));
        assert_eq!((it.received, it.lost, it.reordered, it.duplicated), (5, 5, 1, 1));
        let it = report(&[0, 1, 2], Some(3));
        assert_eq!((it.received, it.lost, it.reordered, it.duplicated), (3, 0, 0, 0));
    }

    #[test]
    fn without_a_count_the_highest_number_is_taken_for_the_last() {
        assert_eq!(report(&[0, 5], None).lost, 4);
        assert_eq!(report(&[], None), SequenceReport::default());
    }

    #[test]
    fn a_number_from_nowhere_costs_no_memory() {
        let mut sequence = Sequence::default();
        sequence.arrived(u64::MAX, Instant::now(), None);
        assert_eq!(sequence.received(), 0);
    }

    #[test]
    fn the_longest_gap_is_between_two_arrivals() {
        let mut sequence = Sequence::default();
        let start = Instant::now();
        for (number, millis) in [(0, 0), (1, 10), (2, 510), (3, 520)] {
            sequence.arrived(
                number,
                start + Duration::from_millis(millis),
                Some(Duration::from_millis(number)),
            );
        }
        let it = sequence.report(None);
        assert_eq!((it.longest_gap_ms, it.rtt_median_ms, it.rtt_max_ms), (500.0, 2.0, 3.0));
    }
}

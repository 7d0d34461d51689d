//! How much may be under way and how fast it leaves, by a model of the way as in BBR: the highest rate at which things
//! arrived lately, and the shortest round trip. A loss alone says nothing about either; many losses in a round do.

use std::collections::VecDeque;

use super::board::{Rate, Report};

/// 2 / ln 2: the least that doubles the rate each round trip.
const STARTUP: f64 = 2.885;
/// Faster to see whether there is more, slower to drain what that left in queues, then as measured.
const CYCLE: [f64; 8] = [1.25, 0.75, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0];
/// The highest rate is that of so many round trips.
const ROUNDS: u64 = 10;
/// The startup is over when the rate has not grown by a quarter for so many round trips.
const FULL_ROUNDS: u32 = 3;
/// A shortest round trip older than this is measured anew.
const SHORTEST_FOR_MICROS: u64 = 10_000_000;
/// How long little is under way for that.
const MEASURE_MICROS: u64 = 200_000;
/// Timers, batches and merged acknowledgements add so much to a round trip.
const SLACK_MICROS: u64 = 3_000;
/// Time to send that was missed and is made up for.
const CREDIT_MICROS: u64 = 4_000;
/// The share of a round that may be lost before less is put under way.
const TOLERATED_LOSS: f64 = 0.05;
/// The least losses in a round that count.
const FEW: usize = 8;
const FIRST_SEGMENTS: usize = 10;
const LEAST_SEGMENTS: usize = 4;
/// The most bytes at once.
const BURST: usize = 60_000;

#[derive(Clone, Copy, Debug, PartialEq)]
enum Phase {
    Startup,
    Drain,
    Cruise { step: usize, since: u64 },
    Measure { until: u64 },
}

#[derive(Debug)]
pub(super) struct Pace {
    segment_bytes: usize,
    phase: Phase,
    /// Rates and their rounds, falling.
    rates: VecDeque<(u64, u64)>,
    round: u64,
    /// What has to have arrived for the round to end.
    round_ends: u64,
    round_delivered: usize,
    round_lost: usize,
    shortest: Option<(u64, u64)>,
    full_rate: u64,
    full_rounds: u32,
    filled: bool,
    window: usize,
    /// A bound that many losses have set.
    ceiling: Option<usize>,
    release_at: u64,
}

impl Pace {
    pub(super) fn new(segment_bytes: usize) -> Self {
        Self {
            segment_bytes,
            phase: Phase::Startup,
            rates: VecDeque::new(),
            round: 0,
            round_ends: 0,
            round_delivered: 0,
            round_lost: 0,
            shortest: None,
            full_rate: 0,
            full_rounds: 0,
            filled: false,
            window: FIRST_SEGMENTS * segment_bytes,
            ceiling: None,
            release_at: 0,
        }
    }

    /// The shortest round trip.
    pub(super) fn shortest_micros(&self) -> u64 {
        self.shortest.map_or(0, |(micros, _)| micros)
    }

    /// How much more may be under way.
    pub(super) fn room(&self, flying: usize) -> usize {
        self.window().saturating_sub(flying)
    }

    pub(super) fn segment_bytes(&self) -> usize {
        self.segment_bytes
    }

    /// When the next may leave.
    pub(super) fn release_at(&self) -> u64 {
        self.release_at
    }

    /// The most that leaves at once.
    pub(super) fn burst(&self) -> usize {
        let millisecond = self.rate().map_or(BURST, |rate| usize::try_from(rate / 1_000).unwrap_or(BURST));
        millisecond.clamp(2 * self.segment_bytes, BURST.max(2 * self.segment_bytes))
    }

    pub(super) fn sent(&mut self, now: u64, bytes: usize) {
        let from = self.release_at.max(now.saturating_sub(CREDIT_MICROS));
        let takes = self.rate().map_or(0, |rate| (bytes as u64).saturating_mul(1_000_000) / rate.max(1));
        self.release_at = from + takes;
    }

    /// Nothing was heard for long.
    pub(super) fn timed_out(&mut self) {
        self.window = self.segment_bytes;
        self.release_at = 0;
    }

    pub(super) fn heard(&mut self, now: u64, report: &Report, flying: usize, delivered: u64) {
        self.round_delivered += report.delivered_bytes;
        self.round_lost += report.lost_bytes;
        let round_ended = report.rate.is_some_and(|rate| rate.delivered_before >= self.round_ends);
        if round_ended {
            self.round += 1;
            self.round_ends = delivered;
            self.weigh_losses();
        }
        let expired = self.follow_round_trip(now, report.round_trip_micros);
        if let Some(rate) = report.rate.filter(|rate| rate.interval_micros >= self.shortest_micros()) {
            self.follow_rate(rate);
        }
        if round_ended && !report.rate.is_some_and(|rate| rate.limited) {
            self.see_whether_full();
        }
        self.change_phase(now, report, flying, expired);
        self.grow(report.delivered_bytes);
    }

    fn follow_round_trip(&mut self, now: u64, sample: Option<u64>) -> bool {
        let Some(sample) = sample else { return false };
        match self.shortest {
            Some((shortest, since)) if sample > shortest && now < since + SHORTEST_FOR_MICROS => false,
            Some((shortest, _)) => {
                self.shortest = Some((sample, now));
                sample > shortest
            }
            None => {
                self.shortest = Some((sample, now));
                false
            }
        }
    }

    fn follow_rate(&mut self, rate: Rate) {
        if rate.limited && rate.bytes_per_second < self.highest_rate().unwrap_or(0) {
            return;
        }
        while self.rates.back().is_some_and(|(_, it)| *it <= rate.bytes_per_second) {
            self.rates.pop_back();
        }
        self.rates.push_back((self.round, rate.bytes_per_second));
        while self.rates.front().is_some_and(|(round, _)| round + ROUNDS < self.round) {
            self.rates.pop_front();
        }
    }

    fn highest_rate(&self) -> Option<u64> {
        self.rates.front().map(|(_, rate)| *rate)
    }

    fn see_whether_full(&mut self) {
        let rate = self.highest_rate().unwrap_or(0);
        if rate >= self.full_rate + self.full_rate / 4 {
            (self.full_rate, self.full_rounds) = (rate, 0);
        } else {
            self.full_rounds += 1;
            self.filled |= self.full_rounds >= FULL_ROUNDS;
        }
    }

    fn weigh_losses(&mut self) {
        let (lost, arrived) = (self.round_lost as f64, self.round_delivered as f64);
        let many = self.round_lost >= FEW * self.segment_bytes && lost > TOLERATED_LOSS * (lost + arrived);
        (self.round_lost, self.round_delivered) = (0, 0);
        if many {
            self.filled = true;
            self.ceiling = Some((self.window() / 10 * 7).max(LEAST_SEGMENTS * self.segment_bytes));
        } else if let Some(ceiling) = self.ceiling {
            let ceiling = ceiling + (ceiling / 8).max(self.segment_bytes);
            self.ceiling = (ceiling < self.target()).then_some(ceiling);
        }
    }

    fn change_phase(&mut self, now: u64, report: &Report, flying: usize, expired: bool) {
        let cruise = |step| Phase::Cruise { step, since: now };
        match self.phase {
            Phase::Startup if self.filled => self.phase = Phase::Drain,
            Phase::Startup => {}
            Phase::Drain if flying <= self.product(1.0) => self.phase = cruise(2),
            Phase::Drain => {}
            Phase::Cruise { step, since } => {
                let elapsed = now.saturating_sub(since) > self.shortest_micros() + SLACK_MICROS;
                let over = match step {
                    0 => elapsed && (report.lost_bytes > 0 || flying >= self.product(1.25)),
                    1 => elapsed || flying <= self.product(1.0),
                    _ => elapsed,
                };
                // One that cannot fill the way does not try for ever.
                let long = now.saturating_sub(since) > 4 * (self.shortest_micros() + SLACK_MICROS);
                if over || long {
                    self.phase = cruise((step + 1) % CYCLE.len());
                }
            }
            Phase::Measure { until } if now >= until => {
                if let Some((_, since)) = &mut self.shortest {
                    *since = now;
                }
                self.phase = if self.filled { cruise(2) } else { Phase::Startup };
            }
            Phase::Measure { .. } => {}
        }
        if expired && !matches!(self.phase, Phase::Measure { .. }) {
            self.phase = Phase::Measure { until: now + MEASURE_MICROS };
        }
    }

    fn grow(&mut self, delivered_bytes: usize) {
        let grown = self.window + delivered_bytes;
        self.window = if self.filled { grown.min(self.target()) } else { grown };
        self.window = self.window.max(LEAST_SEGMENTS * self.segment_bytes);
    }

    /// What may be under way.
    fn window(&self) -> usize {
        let window = match self.phase {
            Phase::Measure { .. } => self.window.min(self.product(0.5)),
            _ => self.window,
        };
        window.min(self.ceiling.unwrap_or(usize::MAX)).max(self.segment_bytes)
    }

    fn target(&self) -> usize {
        let gain = match self.phase {
            Phase::Startup | Phase::Drain => STARTUP,
            Phase::Cruise { .. } | Phase::Measure { .. } => 2.0,
        };
        self.product(gain) + 3 * self.burst()
    }

    /// So many times what fills the way.
    fn product(&self, gain: f64) -> usize {
        let Some(rate) = self.highest_rate() else { return FIRST_SEGMENTS * self.segment_bytes };
        let seconds = (self.shortest_micros() + SLACK_MICROS) as f64 / 1e6;
        ((gain * rate as f64 * seconds) as usize).max(LEAST_SEGMENTS * self.segment_bytes)
    }

    /// Bytes a second; `None` before anything was measured.
    fn rate(&self) -> Option<u64> {
        let highest = self.highest_rate()? as f64;
        let (shortest, _) = self.shortest?;
        Some(match self.phase {
            Phase::Startup => {
                let first = (FIRST_SEGMENTS * self.segment_bytes) as f64 * 1e6 / shortest.max(1) as f64;
                (STARTUP * highest.max(first)) as u64
            }
            Phase::Drain => (highest / STARTUP) as u64,
            Phase::Cruise { step, .. } => (CYCLE.get(step).unwrap_or(&1.0) * highest) as u64,
            Phase::Measure { .. } => highest as u64,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SEGMENT: usize = 1_000;

    /// A way of `rate` bytes a second and 20 ms, that loses a part of what is sent, for so many round trips.
    fn travel(pace: &mut Pace, rate: u64, lost: f64, rounds: u64) {
        let mut delivered = pace.round_ends;
        for round in 0..rounds {
            let now = (pace.round + round) * 20_000;
            let bytes = pace.window().min((rate / 50) as usize);
            let lost = (bytes as f64 * lost) as usize;
            let before = delivered;
            delivered += (bytes - lost) as u64;
            let measured = Rate {
                bytes_per_second: (bytes - lost) as u64 * 50,
                limited: false,
                interval_micros: 20_000,
                delivered_before: before,
            };
            let report = Report {
                delivered_bytes: bytes - lost,
                lost_bytes: lost,
                round_trip_micros: Some(20_000),
                rate: Some(measured),
            };
            pace.heard(now, &report, 0, delivered);
        }
    }

    #[test]
    fn the_window_grows_to_twice_what_fills_the_way_and_a_little_loss_takes_nothing_from_it() {
        let fills = 10_000_000 / 50;
        for lost in [0.0, 0.02] {
            let mut pace = Pace::new(SEGMENT);
            travel(&mut pace, 10_000_000, lost, 30);
            assert!(pace.filled);
            let window = pace.window();
            assert!((fills * 3 / 2..fills * 4).contains(&window), "{window} at {lost}");
        }
    }

    #[test]
    fn many_losses_take_the_window_down_and_a_clean_way_gives_it_back() {
        let mut pace = Pace::new(SEGMENT);
        travel(&mut pace, 10_000_000, 0.0, 30);
        let before = pace.window();
        travel(&mut pace, 10_000_000, 0.2, 5);
        let during = pace.window();
        assert!(during < before / 2, "{before} and then {during}");
        travel(&mut pace, 10_000_000, 0.0, 40);
        assert!(pace.window() > before * 9 / 10, "{before} and then {}", pace.window());
    }

    #[test]
    fn what_leaves_is_spread_over_time() {
        let mut pace = Pace::new(SEGMENT);
        travel(&mut pace, 10_000_000, 0.0, 40);
        let (mut now, mut sent) = (10_000_000, 0);
        while now < 11_000_000 {
            if pace.release_at() <= now {
                pace.sent(now, pace.burst());
                sent += pace.burst();
            } else {
                now += 1_000;
            }
        }
        assert!((7_000_000..13_000_000).contains(&sent), "{sent} in a second");
    }

    #[test]
    fn silence_starts_it_over_from_one_segment() {
        let mut pace = Pace::new(SEGMENT);
        travel(&mut pace, 10_000_000, 0.0, 30);
        pace.timed_out();
        assert_eq!(pace.room(0), SEGMENT);
        travel(&mut pace, 10_000_000, 0.0, 30);
        assert!(pace.room(0) > 100 * SEGMENT);
    }
}

//! What an instance looks at by itself, every few seconds: how fast packets go, how many get lost, who is turned away.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use adit_proto::key::PublicKey;
use adit_proto::keypair::Numbered;
use adit_proto::reason::DropReason;

use crate::driver::{Driver, Snapshot};
use crate::events::{Event, EventLog};
use crate::status::Rate;

const BEAT: Duration = Duration::from_secs(5);
/// Of many peers a picture takes the engine some milliseconds.
const SLOW_BEAT: Duration = Duration::from_secs(60);
const MANY_PEERS: usize = 1_000;
/// A stranger who knocks all day fills no disk: one line for each reason in this time.
const REFUSALS: Duration = Duration::from_secs(60);
/// With fewer messages, the loss of one says nothing.
const MESSAGES_MIN: u64 = 50;

/// Why a stranger, or somebody who is no longer a peer, is turned away.
const TURNED_AWAY: [DropReason; 4] = [
    DropReason::UnknownPeer,
    DropReason::BadHandshake,
    DropReason::StaleTimestamp,
    DropReason::SuiteMismatch,
];

#[derive(Debug, Default)]
pub(super) struct Pulse {
    next: Option<Instant>,
    pictures: HashMap<PublicKey, Picture>,
    taken: Option<Instant>,
    refusals: HashMap<DropReason, Told>,
}

#[derive(Debug, Default)]
struct Picture {
    rx_bytes: u64,
    tx_bytes: u64,
    numbered: Option<Numbered>,
    rate: Option<Rate>,
}

#[derive(Debug)]
struct Told {
    count: u64,
    at: Instant,
}

impl Pulse {
    /// Looks, when it is time to.
    pub(super) fn beat(&mut self, driver: &Driver, events: &EventLog) {
        let now = Instant::now();
        if self.next.is_some_and(|next| now < next) {
            return;
        }
        let Some(snapshot) = driver.try_snapshot() else { return };
        let pause = if snapshot.peers.len() > MANY_PEERS { SLOW_BEAT } else { BEAT };
        self.next = Some(now + pause);
        self.take_picture(now, &snapshot);
        for (reason, count) in self.turned_away(now, &snapshot.drops) {
            events.record(&Event::Refused { reason: reason.label().to_owned(), count, who: None });
        }
    }

    pub(super) fn rate_of(&self, peer: &PublicKey) -> Option<Rate> {
        self.pictures.get(peer)?.rate
    }

    fn take_picture(&mut self, now: Instant, snapshot: &Snapshot) {
        let over = self.taken.map(|taken| now.duration_since(taken)).filter(|over| !over.is_zero());
        self.taken = Some(now);
        let before = std::mem::take(&mut self.pictures);
        for peer in &snapshot.peers {
            let mut picture = Picture {
                rx_bytes: peer.rx_bytes,
                tx_bytes: peer.tx_bytes,
                numbered: peer.numbered,
                rate: None,
            };
            if let (Some(over), Some(before)) = (over, before.get(&peer.public_key)) {
                picture.rate = Some(picture.since(before, over));
            }
            self.pictures.insert(peer.public_key, picture);
        }
    }

    /// What to tell: each reason whose count grew, at most once in a while.
    fn turned_away(&mut self, now: Instant, drops: &[(DropReason, u64)]) -> Vec<(DropReason, u64)> {
        let mut news = Vec::new();
        for &(reason, count) in drops.iter().filter(|(reason, _)| TURNED_AWAY.contains(reason)) {
            let told = self.refusals.get(&reason);
            let before = told.map_or(0, |told| told.count);
            let may = told.is_none_or(|told| now.duration_since(told.at) >= REFUSALS);
            if count > before && may {
                self.refusals.insert(reason, Told { count, at: now });
                news.push((reason, count - before));
            }
        }
        news
    }
}

impl Picture {
    fn since(&self, before: &Self, over: Duration) -> Rate {
        let over_millis = u64::try_from(over.as_millis()).unwrap_or(u64::MAX).max(1);
        let per_sec = |now: u64, before: u64| now.saturating_sub(before).saturating_mul(1_000) / over_millis;
        Rate {
            over_millis,
            rx_bytes_per_sec: per_sec(self.rx_bytes, before.rx_bytes),
            tx_bytes_per_sec: per_sec(self.tx_bytes, before.tx_bytes),
            rx_lost_ppm: self.lost_ppm(before),
        }
    }

    /// Messages are numbered: what was numbered and did not come is lost, or comes late.
    fn lost_ppm(&self, before: &Self) -> Option<u32> {
        let (now, before) = (self.numbered?, before.numbered?);
        let sent = now.sent.checked_sub(before.sent)?;
        if now.session != before.session || sent < MESSAGES_MIN {
            return None;
        }
        let lost = sent.saturating_sub(now.received.saturating_sub(before.received));
        u32::try_from(lost.saturating_mul(1_000_000) / sent).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn picture(received: u64, session: u32, sent: u64) -> Picture {
        let numbered = Some(Numbered { session, sent, received });
        Picture { rx_bytes: received * 100, tx_bytes: 0, numbered, rate: None }
    }

    #[test]
    fn rates_are_of_a_second_and_loss_of_what_was_numbered() {
        let (before, now) = (picture(1_000, 1, 1_000), picture(1_900, 1, 2_000));
        let rate = now.since(&before, Duration::from_secs(5));
        assert_eq!((rate.rx_bytes_per_sec, rate.tx_bytes_per_sec), (18_000, 0));
        assert_eq!(rate.rx_lost_ppm, Some(100_000));
        assert_eq!(picture(2_000, 1, 2_000).lost_ppm(&before), Some(0));
        assert_eq!(picture(2_003, 1, 2_000).lost_ppm(&before), Some(0), "late ones are no gain");
        assert_eq!(picture(1_900, 2, 900).lost_ppm(&before), None, "another session counts anew");
        assert_eq!(picture(1_009, 1, 1_010).lost_ppm(&before), None, "too few to tell");
    }

    #[test]
    fn a_stranger_who_knocks_all_day_is_told_of_once_a_minute() {
        let mut pulse = Pulse::default();
        let start = Instant::now();
        let mut lines = 0;
        let mut told = 0;
        for second in 0..3_600 {
            let drops = [(DropReason::UnknownPeer, second * 1_000 + 1), (DropReason::NoRoute, second)];
            for (reason, count) in pulse.turned_away(start + Duration::from_secs(second), &drops) {
                assert_eq!(reason, DropReason::UnknownPeer);
                lines += 1;
                told += count;
            }
        }
        assert_eq!((lines, told), (60, 59 * 60 * 1_000 + 1));
    }
}

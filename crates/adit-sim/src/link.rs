//! One direction of a host's access to the network, and what it does to datagrams.

use core::time::Duration;
use std::collections::VecDeque;
use std::net::SocketAddr;

use rand_chacha::ChaCha8Rng;
use rand_core::RngCore;

/// A datagram under way.
#[derive(Clone, Debug)]
pub struct Datagram {
    /// The source address as the network sees it.
    pub from: SocketAddr,
    /// The destination address.
    pub to: SocketAddr,
    /// The message.
    pub bytes: Vec<u8>,
    /// Who made it.
    pub origin: Origin,
}

/// Who put a datagram on the network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Origin {
    /// A host; the datagram carries no inside packet.
    Control,
    /// A host; the datagram carries an inside packet.
    Data,
    /// An attacker.
    Attacker,
}

/// Why a datagram did not arrive.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Loss {
    /// The link loses some.
    Chance,
    /// The link carries nothing now.
    Blackhole,
    /// Larger than the link takes.
    TooBig,
    /// The NAT has no mapping, or does not let this sender use it.
    Nat,
    /// Nobody has the address.
    Nobody,
    /// The host sleeps.
    Asleep,
}

/// What a link does to the datagrams on it. Chances are in millionths.
#[derive(Clone, Copy, Debug)]
pub struct Conditions {
    /// How long each datagram takes.
    pub latency: Duration,
    /// The most that chance adds to it; jitter above the distance of datagrams reorders them.
    pub jitter: Duration,
    /// Lost.
    pub loss_ppm: u32,
    /// Carried twice.
    pub duplicate_ppm: u32,
    /// One bit flipped.
    pub corrupt_ppm: u32,
    /// Held back until [`Self::reorder_depth`] later ones have passed.
    pub reorder_ppm: u32,
    /// How many later datagrams pass one that is held back.
    pub reorder_depth: u64,
    /// The longest datagram that passes, in bytes.
    pub mtu_bytes: usize,
    /// Carry nothing at all.
    pub blackhole: bool,
}

impl Default for Conditions {
    fn default() -> Self {
        Self {
            latency: Duration::from_millis(5),
            jitter: Duration::ZERO,
            loss_ppm: 0,
            duplicate_ppm: 0,
            corrupt_ppm: 0,
            reorder_ppm: 0,
            reorder_depth: 0,
            mtu_bytes: 65_507,
            blackhole: false,
        }
    }
}

/// A link in one direction, with the datagrams it holds back.
#[derive(Debug, Default)]
pub struct Link {
    /// What it does from now on.
    pub conditions: Conditions,
    passed: u64,
    held: VecDeque<(u64, Datagram)>,
}

/// What a link made of one datagram.
#[derive(Debug, Default)]
pub struct Passage {
    /// What comes out at the other end, each with its delay.
    pub out: Vec<(Duration, Datagram)>,
    /// Why nothing came of the datagram, if so.
    pub loss: Option<Loss>,
    /// Copies the link made.
    pub copies: u64,
    /// Copies with a flipped bit.
    pub corrupted: u64,
}

impl Link {
    /// Carries one datagram; ones held back may come out behind it.
    pub fn pass(&mut self, rng: &mut ChaCha8Rng, datagram: Datagram) -> Passage {
        let Conditions { loss_ppm, duplicate_ppm, corrupt_ppm, reorder_ppm, reorder_depth, .. } =
            self.conditions;
        let mut passage = Passage { loss: self.refusal(rng, &datagram, loss_ppm), ..Default::default() };
        if passage.loss.is_some() {
            return passage;
        }
        self.passed += 1;
        let mut datagram = datagram;
        if chance(rng, duplicate_ppm) {
            passage.copies += 1;
            let delay = self.delay(rng);
            passage.out.push((delay, datagram.clone()));
        }
        if chance(rng, corrupt_ppm) && !datagram.bytes.is_empty() {
            passage.corrupted += 1;
            let bit = below(rng, datagram.bytes.len() as u64 * 8) as usize;
            datagram.bytes[bit / 8] ^= 1 << (bit % 8);
        }
        if chance(rng, reorder_ppm) {
            self.held.push_back((self.passed + reorder_depth, datagram));
        } else {
            let delay = self.delay(rng);
            passage.out.push((delay, datagram));
        }
        while self.held.front().is_some_and(|(due, _)| *due <= self.passed) {
            let delay = self.delay(rng);
            passage.out.extend(self.held.pop_front().map(|(_, datagram)| (delay, datagram)));
        }
        passage
    }

    /// Lets go of everything held back.
    pub fn release(&mut self, rng: &mut ChaCha8Rng) -> Vec<(Duration, Datagram)> {
        let held = core::mem::take(&mut self.held);
        held.into_iter().map(|(_, datagram)| (self.delay(rng), datagram)).collect()
    }

    /// The datagrams held back.
    pub fn held(&self) -> impl Iterator<Item = &Datagram> {
        self.held.iter().map(|(_, datagram)| datagram)
    }

    fn refusal(&self, rng: &mut ChaCha8Rng, datagram: &Datagram, loss_ppm: u32) -> Option<Loss> {
        if self.conditions.blackhole {
            Some(Loss::Blackhole)
        } else if datagram.bytes.len() > self.conditions.mtu_bytes {
            Some(Loss::TooBig)
        } else {
            chance(rng, loss_ppm).then_some(Loss::Chance)
        }
    }

    fn delay(&self, rng: &mut ChaCha8Rng) -> Duration {
        let jitter = self.conditions.jitter.as_nanos() as u64;
        let extra = if jitter == 0 { 0 } else { below(rng, jitter) };
        self.conditions.latency + Duration::from_nanos(extra)
    }
}

/// A number below `bound`.
pub fn below(rng: &mut ChaCha8Rng, bound: u64) -> u64 {
    rng.next_u64() % bound
}

fn chance(rng: &mut ChaCha8Rng, ppm: u32) -> bool {
    ppm > 0 && below(rng, 1_000_000) < u64::from(ppm)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand_core::SeedableRng;

    fn datagram(n: u8) -> Datagram {
        let at = SocketAddr::from(([192, 0, 2, 1], 1));
        Datagram { from: at, to: at, bytes: vec![n], origin: Origin::Data }
    }

    #[test]
    fn a_held_datagram_comes_after_exactly_so_many_later_ones() {
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let mut link = Link::default();
        link.conditions.reorder_ppm = 1_000_000;
        link.conditions.reorder_depth = 3;
        assert!(link.pass(&mut rng, datagram(0)).out.is_empty());
        link.conditions.reorder_ppm = 0;
        let order: Vec<u8> =
            (1..6).flat_map(|n| link.pass(&mut rng, datagram(n)).out).map(|(_, d)| d.bytes[0]).collect();
        assert_eq!(order, [1, 2, 3, 0, 4, 5]);
    }

    #[test]
    fn losses_copies_and_flipped_bits_come_as_often_as_asked() {
        let mut rng = ChaCha8Rng::seed_from_u64(2);
        let mut link = Link::default();
        link.conditions =
            Conditions { loss_ppm: 200_000, duplicate_ppm: 100_000, corrupt_ppm: 50_000, ..link.conditions };
        let (mut lost, mut copies, mut corrupted) = (0, 0, 0);
        for n in 0..10_000u32 {
            let passage = link.pass(&mut rng, datagram(n as u8));
            lost += u64::from(passage.loss.is_some());
            copies += passage.copies;
            corrupted += passage.corrupted;
            assert_eq!(passage.out.len() as u64, u64::from(passage.loss.is_none()) + passage.copies);
        }
        assert!((1_850..2_150).contains(&lost), "{lost}");
        assert!((700..900).contains(&copies), "{copies}");
        assert!((330..470).contains(&corrupted), "{corrupted}");
    }

    #[test]
    fn too_long_datagrams_and_black_holes_lose_everything() {
        let mut rng = ChaCha8Rng::seed_from_u64(3);
        let mut link = Link::default();
        assert_eq!(link.pass(&mut rng, datagram(0)).loss, None);
        link.conditions.mtu_bytes = 0;
        assert_eq!(link.pass(&mut rng, datagram(0)).loss, Some(Loss::TooBig));
        link.conditions.blackhole = true;
        assert_eq!(link.pass(&mut rng, datagram(0)).loss, Some(Loss::Blackhole));
    }
}

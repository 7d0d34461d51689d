//! Acknowledgements of many segments at once, taken in one segment at a time.
//!
//! The other end's kernel merges segments and acknowledges dozens by one packet. `smoltcp` lets its congestion window
//! grow by one segment for each acknowledgement, whatever it covers, and would need minutes to fill a long way. Linux counts
//! what is covered (RFC 3465); so do we, by showing `smoltcp` the acknowledgements that were merged.
//!
//! Nor does it look at the blocks of a selective acknowledgement: after the first of several losses, or one among
//! few segments, it would wait a second for its timer. The acknowledgement that first shows a hole is repeated to it, so that
//! it fills that at once.

/// Most steps that one acknowledgement is taken in.
const STEPS: u32 = 64;
/// The longest headers: IPv6, TCP and all its options.
const HEADERS: usize = 40 + 60;

/// What was acknowledged so far.
#[derive(Debug, Default)]
pub(super) struct Stretch {
    acknowledged: Option<u32>,
    /// The hole that was last shown.
    hole: Option<u32>,
}

/// A copy of a segment without payload that acknowledges less.
pub(super) struct Step {
    bytes: [u8; HEADERS],
    len: usize,
}

impl Step {
    pub(super) fn packet(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or_default()
    }
}

impl Stretch {
    /// Whether `packet`, which is TCP without IP options, says for the first time that what comes next is missing while
    /// later segments have arrived (RFC 2018). One such is enough, where others wait for three: the tunnel keeps packets
    /// in order. To be asked before [`steps`](Self::steps).
    pub(super) fn shows_hole(&mut self, packet: &[u8]) -> bool {
        let hole = self.hole(packet);
        if hole.is_some() {
            self.hole = hole;
        }
        hole.is_some()
    }

    /// Where the hole begins.
    fn hole(&self, packet: &[u8]) -> Option<u32> {
        let at = if packet.first()? >> 4 == 4 { 20 } else { 40 };
        let tcp = packet.get(at..)?;
        let acknowledged = u32::from_be_bytes(*tcp.get(8..)?.first_chunk()?);
        let advance = acknowledged.wrapping_sub(self.acknowledged?);
        let known = self.hole == Some(acknowledged);
        let headers = usize::from(tcp.get(12)? >> 4) * 4;
        if *tcp.get(13)? & 0x17 != 0x10 || tcp.len() != headers || known || advance > u32::MAX / 2 {
            return None;
        }
        let mut options = tcp.get(20..headers)?;
        loop {
            options = match options {
                [1, rest @ ..] => rest,
                [5, len, ..] if *len >= 10 => {
                    let left = u32::from_be_bytes(*options.get(2..)?.first_chunk()?);
                    // A block below the acknowledgement reports a duplicate (RFC 2883).
                    let beyond = (1..u32::MAX / 2).contains(&left.wrapping_sub(acknowledged));
                    return beyond.then_some(acknowledged);
                }
                [_, len, ..] if *len >= 2 => options.get(usize::from(*len)..)?,
                _ => return None,
            };
        }
    }

    /// The steps to take before `packet` itself, which is TCP without IP options.
    pub(super) fn steps(
        &mut self,
        packet: &[u8],
        segment_bytes: usize,
    ) -> impl Iterator<Item = Step> + use<> {
        let found = self.found(packet, segment_bytes);
        found.into_iter().flat_map(|(template, at, from, covered, step)| {
            let count = covered.saturating_sub(1) / step;
            (1..=count).map(move |number| template.acknowledging(at, from.wrapping_add(number * step)))
        })
    }

    fn found(&mut self, packet: &[u8], segment_bytes: usize) -> Option<(Template, usize, u32, u32, u32)> {
        let at = match packet.first()? >> 4 {
            4 if packet.first()? & 0x0f == 5 => 20,
            6 => 40,
            _ => return None,
        };
        let tcp = packet.get(at..)?;
        let acknowledged = u32::from_be_bytes(*tcp.get(8..)?.first_chunk()?);
        let headers = usize::from(tcp.get(12)? >> 4) * 4;
        let flags = tcp.get(13)?;
        // ACK, perhaps with PSH or URG, and nothing else.
        if flags & 0x17 != 0x10 {
            return None;
        }
        let from = self.acknowledged.replace(acknowledged)?;
        let covered = acknowledged.wrapping_sub(from);
        let segment = u32::try_from(segment_bytes).ok()?;
        if tcp.len() != headers || covered <= segment || covered > u32::MAX / 2 {
            return None;
        }
        let mut bytes = [0; HEADERS];
        bytes.get_mut(..packet.len())?.copy_from_slice(packet);
        let step = segment.max(covered / STEPS);
        Some((Template { bytes, len: packet.len() }, at, from, covered, step))
    }
}

#[derive(Clone, Copy)]
struct Template {
    bytes: [u8; HEADERS],
    len: usize,
}

impl Template {
    /// The checksum follows the number (RFC 1624).
    fn acknowledging(mut self, at: usize, number: u32) -> Step {
        let word = |bytes: &[u8], at: usize| {
            u32::from(u16::from_be_bytes([*bytes.get(at).unwrap_or(&0), *bytes.get(at + 1).unwrap_or(&0)]))
        };
        let (high, low) = (number >> 16, number & 0xffff);
        let before = [word(&self.bytes, at + 8), word(&self.bytes, at + 10)];
        let mut sum = !word(&self.bytes, at + 16) & 0xffff;
        for (old, new) in before.into_iter().zip([high, low]) {
            sum += (!old & 0xffff) + new;
        }
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        let put = |bytes: &mut [u8], at: usize, value: &[u8]| {
            if let Some(place) = bytes.get_mut(at..at + value.len()) {
                place.copy_from_slice(value);
            }
        };
        put(&mut self.bytes, at + 8, &number.to_be_bytes());
        put(&mut self.bytes, at + 16, &(!(sum as u16)).to_be_bytes());
        Step { bytes: self.bytes, len: self.len }
    }
}

#[cfg(test)]
mod tests {
    use adit_io::tun::checksum::Checksum;

    use super::*;

    /// An IPv4 segment with a right TCP checksum.
    fn segment(acknowledged: u32, flags: u8, payload: usize) -> Vec<u8> {
        let mut packet = vec![0; 40 + payload];
        packet[0] = 0x45;
        packet[9] = 6;
        packet[12..20].copy_from_slice(&[10, 0, 0, 2, 10, 0, 0, 1]);
        packet[28..32].copy_from_slice(&acknowledged.to_be_bytes());
        packet[32] = 5 << 4;
        packet[33] = flags;
        let sum = sum(&packet).complement();
        packet[36..38].copy_from_slice(&sum);
        packet
    }

    fn sum(packet: &[u8]) -> Checksum {
        Checksum::new()
            .add_bytes(&packet[12..20])
            .add_u16(6)
            .add_u16((packet.len() - 20) as u16)
            .add_bytes(&packet[20..])
    }

    #[test]
    fn an_acknowledgement_of_many_segments_is_taken_one_by_one_with_right_checksums() {
        let mut stretch = Stretch::default();
        let start = u32::MAX - 2_000;
        assert_eq!(stretch.steps(&segment(start, 0x10, 0), 1_000).count(), 0, "the first");
        let packet = segment(start.wrapping_add(5_500), 0x10, 0);
        let steps: Vec<_> = stretch.steps(&packet, 1_000).collect();
        let numbers: Vec<u32> = steps
            .iter()
            .map(|step| u32::from_be_bytes(*step.packet()[28..].first_chunk().unwrap()).wrapping_sub(start))
            .collect();
        assert_eq!(numbers, [1_000, 2_000, 3_000, 4_000, 5_000]);
        assert!(
            steps.iter().all(|step| sum(step.packet()).is_valid() && step.packet().len() == packet.len())
        );
        assert!(stretch.steps(&segment(start.wrapping_add(2_000_000), 0x10, 0), 1_000).count() <= 64);
    }

    #[test]
    fn a_hole_is_seen_once_in_selective_acknowledgements() {
        let with_block = |acknowledged: u32, left: u32| {
            let mut packet = segment(acknowledged, 0x10, 12);
            packet[32] = 8 << 4;
            packet[40..44].copy_from_slice(&[1, 1, 5, 10]);
            packet[44..48].copy_from_slice(&left.to_be_bytes());
            packet[48..52].copy_from_slice(&left.wrapping_add(1_000).to_be_bytes());
            packet
        };
        let mut stretch = Stretch::default();
        let _ = stretch.steps(&segment(1_000, 0x10, 0), 1_000).count();
        assert!(!stretch.shows_hole(&with_block(1_000, 500)), "a duplicate");
        assert!(!stretch.shows_hole(&with_block(500, 3_000)), "an old one");
        assert!(stretch.shows_hole(&with_block(1_000, 3_000)));
        assert!(!stretch.shows_hole(&with_block(1_000, 3_000)), "known");
        assert!(stretch.shows_hole(&with_block(2_000, 3_000)), "the next");
        assert!(!stretch.shows_hole(&segment(2_000, 0x10, 0)), "no block");
        for cut in 0..52 {
            let _ = stretch.shows_hole(&with_block(2_000, 3_000)[..cut]);
        }
        for kind in 0..=255 {
            let mut odd = with_block(2_000, 3_000);
            odd[42] = kind;
            odd[43] = kind;
            let _ = stretch.shows_hole(&odd);
        }
    }

    #[test]
    fn other_segments_are_left_as_they_are() {
        for (flags, payload) in [(0x11, 0), (0x12, 0), (0x14, 0), (0x10, 10)] {
            let mut stretch = Stretch::default();
            let _ = stretch.steps(&segment(0, 0x10, 0), 1_000).count();
            assert_eq!(stretch.steps(&segment(9_000, flags, payload), 1_000).count(), 0, "{flags} {payload}");
            let mut control = Stretch::default();
            let _ = control.steps(&segment(0, 0x10, 0), 1_000).count();
            assert_eq!(control.steps(&segment(9_000, 0x10, 0), 1_000).count(), 8);
        }
        let mut stretch = Stretch::default();
        let _ = stretch.steps(&segment(9_000, 0x10, 0), 1_000).count();
        assert_eq!(stretch.steps(&segment(0, 0x10, 0), 1_000).count(), 0, "an old one");
        for cut in 0..40 {
            let _ = stretch.steps(&segment(99_000, 0x10, 0)[..cut], 1_000).count();
        }
    }
}

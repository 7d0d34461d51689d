//! What a transport message of adit may hold in place of an inside packet (docs/protocol.md section 5.1).
//!
//! An inside packet begins with 4 or 6 in the high half of its first byte; everything here with 15.

/// The kind of a content, its first byte.
const SUPERPACKET: u8 = 0xf1;
const CHALLENGE: u8 = 0xf2;
const ANSWER: u8 = 0xf3;
const ASIDE: u8 = 0xf4;

/// What precedes a superpacket: its kind, a zero byte, the size of a segment (little-endian).
pub const SUPERPACKET_HEADER_LEN: usize = 4;
/// What precedes a packet that goes aside: its kind, three zero bytes.
pub const ASIDE_HEADER_LEN: usize = 4;
/// The whole of what precedes it.
pub const ASIDE_HEADER: [u8; ASIDE_HEADER_LEN] = [ASIDE, 0, 0, 0];
/// A kind, seven zero bytes, eight bytes that the challenger chose.
pub const PROBE_LEN: usize = 16;
/// A smaller segment would let few bytes become many packets at the receiver.
pub const SEGMENT_MIN: u16 = 256;

/// The content of an opened message that is no inside packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    /// A superpacket follows, to be cut into segments of so many payload bytes.
    Superpacket {
        /// Payload bytes of every segment but the last.
        segment_size: u16,
    },
    /// The sender wants to know whether this way to us and back works.
    Challenge([u8; 8]),
    /// The way of a challenge of ours works.
    Answer([u8; 8]),
    /// An inside packet follows, or nothing; the peer stays where it is.
    Aside,
}

impl Content {
    /// Whether an opened message holds something else than an inside packet.
    pub fn is_one(opened: &[u8]) -> bool {
        opened.first().is_some_and(|first| *first >= 0xf0)
    }

    /// Reads the content of an opened message. `None` when there is no such content.
    pub fn parse(opened: &[u8]) -> Option<Self> {
        match opened {
            [SUPERPACKET, 0, low, high, ..] => {
                let segment_size = u16::from_le_bytes([*low, *high]);
                (segment_size >= SEGMENT_MIN).then_some(Self::Superpacket { segment_size })
            }
            [ASIDE, 0, 0, 0, ..] => Some(Self::Aside),
            [kind @ (CHALLENGE | ANSWER), 0, 0, 0, 0, 0, 0, 0, rest @ ..] => {
                let chosen: [u8; 8] = rest.try_into().ok()?;
                Some(if *kind == CHALLENGE { Self::Challenge(chosen) } else { Self::Answer(chosen) })
            }
            _ => None,
        }
    }

    /// What precedes a superpacket with segments of this size.
    pub const fn superpacket_header(segment_size: u16) -> [u8; SUPERPACKET_HEADER_LEN] {
        let [low, high] = segment_size.to_le_bytes();
        [SUPERPACKET, 0, low, high]
    }

    /// The whole content of a challenge.
    pub fn challenge(chosen: [u8; 8]) -> [u8; PROBE_LEN] {
        Self::probe(CHALLENGE, chosen)
    }

    /// The whole content of an answer.
    pub fn answer(chosen: [u8; 8]) -> [u8; PROBE_LEN] {
        Self::probe(ANSWER, chosen)
    }

    fn probe(kind: u8, chosen: [u8; 8]) -> [u8; PROBE_LEN] {
        let [a, b, c, d, e, f, g, h] = chosen;
        [kind, 0, 0, 0, 0, 0, 0, 0, a, b, c, d, e, f, g, h]
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
mod tests {
    use super::*;

    #[test]
    fn contents_survive_the_round_trip() {
        for segment_size in [SEGMENT_MIN, 1_380, u16::MAX] {
            let mut message = Content::superpacket_header(segment_size).to_vec();
            message.extend_from_slice(&[0x45, 0, 0, 20]);
            assert_eq!(Content::parse(&message), Some(Content::Superpacket { segment_size }));
            assert!(Content::is_one(&message));
        }
        for packet in [&[][..], &[0x45, 0, 0, 20]] {
            assert_eq!(Content::parse(&[&ASIDE_HEADER, packet].concat()), Some(Content::Aside));
        }
        let chosen = *b"chosen!!";
        assert_eq!(Content::parse(&Content::challenge(chosen)), Some(Content::Challenge(chosen)));
        assert_eq!(Content::parse(&Content::answer(chosen)), Some(Content::Answer(chosen)));
    }

    #[test]
    fn anything_else_is_none() {
        let good = Content::challenge([7; 8]);
        for cut in 0..good.len() {
            assert_eq!(Content::parse(good.get(..cut).unwrap()), None, "cut at {cut}");
        }
        let mut reserved = good;
        *reserved.get_mut(3).unwrap() = 1;
        assert_eq!(Content::parse(&reserved), None);
        assert_eq!(Content::parse(&[good.as_slice(), &[0]].concat()), None, "a byte too many");
        assert_eq!(Content::parse(&Content::superpacket_header(SEGMENT_MIN - 1)), None);
        assert_eq!(Content::parse(&[0xf1, 1, 0, 5]), None);
        assert_eq!(Content::parse(&[0xf4, 0, 0]), None);
        assert_eq!(Content::parse(&[0xf4, 0, 1, 0]), None);
        assert_eq!(Content::parse(&[0xf5, 0, 0, 0]), None);
        for packet in [&[0x45_u8, 0][..], &[0x60, 0], &[]] {
            assert!(!Content::is_one(packet) && Content::parse(packet).is_none());
        }
    }
}

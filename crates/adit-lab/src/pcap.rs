//! The classic capture file format, as tcpdump and Wireshark write and read it (draft-ietf-opsawg-pcap).

use std::io::{self, Write};
use std::time::Duration;

use crate::{LabError, Result};

/// What the bytes of a frame start with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LinkType {
    Ethernet,
    /// An IP packet without any link header, as on a TUN device.
    Raw,
}

/// One captured frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// Since the epoch.
    pub time: Duration,
    pub bytes: Vec<u8>,
}

impl Frame {
    /// True when `needle` occurs in the frame.
    pub fn contains(&self, needle: &[u8]) -> bool {
        !needle.is_empty() && self.bytes.windows(needle.len()).any(|window| window == needle)
    }
}

const MICROSECONDS: u32 = 0xa1b2_c3d4;
const NANOSECONDS: u32 = 0xa1b2_3c4d;
const SNAP_BYTES: u32 = 262_144;

/// Writes the header of a capture file.
pub fn write_header(file: &mut impl Write, link: LinkType) -> io::Result<()> {
    let link: u32 = match link {
        LinkType::Ethernet => 1,
        LinkType::Raw => 101,
    };
    let version = (4 << 16) | 2u32;
    let words = [NANOSECONDS, version, 0, 0, SNAP_BYTES, link];
    file.write_all(&words.map(u32::to_le_bytes).concat())
}

/// Writes one frame, in a single write so that a killed writer leaves whole frames.
pub fn write_frame(file: &mut impl Write, time: Duration, bytes: &[u8]) -> io::Result<()> {
    let length = bytes.len() as u32;
    let mut record =
        [time.as_secs() as u32, time.subsec_nanos(), length, length].map(u32::to_le_bytes).concat();
    record.extend_from_slice(bytes);
    file.write_all(&record)
}

/// All whole frames of a capture file, in order; a frame cut off at the end is left out.
pub fn parse(file: &[u8]) -> Result<Vec<Frame>> {
    let malformed = |why: &str| LabError::malformed("the capture file", why);
    let (magic, _) = file.split_first_chunk::<4>().ok_or_else(|| malformed("shorter than a header"))?;
    let (read, fraction): (fn([u8; 4]) -> u32, u32) =
        match (u32::from_le_bytes(*magic), u32::from_be_bytes(*magic)) {
            (NANOSECONDS, _) => (u32::from_le_bytes, 1),
            (MICROSECONDS, _) => (u32::from_le_bytes, 1_000),
            (_, NANOSECONDS) => (u32::from_be_bytes, 1),
            (_, MICROSECONDS) => (u32::from_be_bytes, 1_000),
            _ => return Err(malformed("unknown magic number")),
        };
    let mut rest = file.get(24..).ok_or_else(|| malformed("shorter than a header"))?;
    let mut frames = Vec::new();
    while let Some((header, after)) = rest.split_at_checked(16) {
        let word = |at: usize| read([header[at], header[at + 1], header[at + 2], header[at + 3]]);
        let length = word(8) as usize;
        let Some((bytes, next)) = after.split_at_checked(length) else { break };
        let time = Duration::from_secs(word(0).into())
            + Duration::from_nanos(u64::from(word(4)) * u64::from(fraction));
        frames.push(Frame { time, bytes: bytes.to_vec() });
        rest = next;
    }
    Ok(frames)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(frames: &[Frame]) -> Vec<u8> {
        let mut file = Vec::new();
        write_header(&mut file, LinkType::Ethernet).unwrap();
        for frame in frames {
            write_frame(&mut file, frame.time, &frame.bytes).unwrap();
        }
        file
    }

    fn two_frames() -> Vec<Frame> {
        let time = Duration::new(1_700_000_000, 123_456_789);
        vec![Frame { time, bytes: b"one".to_vec() }, Frame { time: time * 1, bytes: vec![0; 70_000] }]
    }

    #[test]
    fn what_is_written_is_read_back() {
        assert_eq!(parse(&written(&two_frames())).unwrap(), two_frames());
    }

    #[test]
    fn a_frame_cut_off_by_a_crash_is_left_out_and_the_ones_before_it_are_kept() {
        let file = written(&two_frames());
        assert_eq!(parse(&file[..file.len() - 1]).unwrap(), two_frames()[..1]);
    }

    #[test]
    fn a_microsecond_file_in_network_order_is_understood() {
        let words = [MICROSECONDS, 0x0002_0004, 0, 0, SNAP_BYTES, 1, 7, 5, 2, 2];
        let mut file = words.map(u32::to_be_bytes).concat();
        file.extend_from_slice(b"hi");
        let expected = Frame { time: Duration::new(7, 5_000), bytes: b"hi".to_vec() };
        assert_eq!(parse(&file).unwrap(), [expected]);
    }

    #[test]
    fn other_files_are_refused() {
        assert!(parse(b"GIF89a, and more than twenty-four bytes").is_err());
        assert!(parse(b"").is_err());
    }

    #[test]
    fn a_frame_contains_its_own_bytes_and_no_others() {
        let frame = &two_frames()[0];
        assert!(frame.contains(b"ne") && !frame.contains(b"no") && !frame.contains(b""));
    }
}

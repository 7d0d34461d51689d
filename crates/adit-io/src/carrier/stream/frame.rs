//! Messages on a stream: two bytes of length, most significant first, then the message.

use std::ops::Range;

/// Bytes of a length.
pub const LENGTH_LEN: usize = 2;
/// The shortest message there is, a keepalive.
pub const MESSAGE_MIN: usize = 32;
/// The longest message that a length can state.
pub const MESSAGE_MAX: usize = u16::MAX as usize;
/// The longest message that may open a connection: a handshake initiation.
pub const FIRST_MESSAGE_MAX: usize = 148;

/// What a buffer begins with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frame {
    /// A whole message, at this place in the buffer.
    Whole(Range<usize>),
    /// The beginning of a message, or nothing: at least so many bytes more are to come.
    Partial {
        /// Bytes that are missing, as far as known.
        missing: usize,
    },
    /// A length that no message has. There is no way to find the next one.
    Wrong,
}

impl Frame {
    /// Reads what `buffer` begins with.
    pub fn at_start_of(buffer: &[u8]) -> Self {
        let Some((length, rest)) = buffer.split_first_chunk::<LENGTH_LEN>() else {
            return Self::Partial { missing: LENGTH_LEN - buffer.len() };
        };
        let len = usize::from(u16::from_be_bytes(*length));
        match rest.len().checked_sub(len) {
            _ if len < MESSAGE_MIN => Self::Wrong,
            Some(_) => Self::Whole(LENGTH_LEN..LENGTH_LEN + len),
            None => Self::Partial { missing: len - rest.len() },
        }
    }
}

/// The length in front of a message, or nothing when it is too long for a stream.
pub fn length_of(message: usize) -> Option<[u8; LENGTH_LEN]> {
    u16::try_from(message).ok().map(u16::to_be_bytes)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn framed(message: &[u8]) -> Vec<u8> {
        [&length_of(message.len()).unwrap()[..], message].concat()
    }

    /// Takes a stream in as a lane does: pieces are appended, whole messages leave.
    fn messages(pieces: impl IntoIterator<Item = Vec<u8>>) -> Result<(Vec<Vec<u8>>, usize), ()> {
        let (mut buffer, mut found) = (Vec::new(), Vec::new());
        for piece in pieces {
            buffer.extend_from_slice(&piece);
            loop {
                match Frame::at_start_of(&buffer) {
                    Frame::Whole(range) => {
                        let end = range.end;
                        found.push(buffer[range].to_vec());
                        buffer.drain(..end);
                    }
                    Frame::Partial { missing } => {
                        assert!(missing > 0);
                        break;
                    }
                    Frame::Wrong => return Err(()),
                }
            }
        }
        Ok((found, buffer.len()))
    }

    #[test]
    fn a_stream_cut_at_any_byte_holds_the_same_messages() {
        let first: Vec<u8> = (0..148).collect();
        let second = vec![9; 32];
        let stream = [framed(&first), framed(&second)].concat();
        for cut in 0..=stream.len() {
            let pieces = [stream[..cut].to_vec(), stream[cut..].to_vec()];
            assert_eq!(messages(pieces), Ok((vec![first.clone(), second.clone()], 0)), "cut at {cut}");
        }
        let single_bytes = stream.iter().map(|byte| vec![*byte]);
        assert_eq!(messages(single_bytes), Ok((vec![first.clone(), second], 0)));
        let half = [stream[..stream.len() - 1].to_vec()];
        assert_eq!(messages(half), Ok((vec![first], 33)), "the tail is no message");
    }

    #[test]
    fn lengths_that_no_message_has_end_the_stream() {
        for len in 0..MESSAGE_MIN as u16 {
            let stream = [&len.to_be_bytes()[..], &[0; 64]].concat();
            assert_eq!(Frame::at_start_of(&stream), Frame::Wrong, "{len}");
        }
        for len in [MESSAGE_MIN, MESSAGE_MAX] {
            assert_eq!(Frame::at_start_of(&framed(&vec![1; len])), Frame::Whole(2..2 + len));
        }
        assert_eq!(length_of(MESSAGE_MAX + 1), None);
    }

    proptest! {
        #[test]
        fn any_cutting_of_any_messages_gives_them_back(
            lens in prop::collection::vec(MESSAGE_MIN..3_000, 1..8),
            cuts in prop::collection::vec(1_usize..700, 1..64),
        ) {
            let sent: Vec<Vec<u8>> = lens.iter().map(|len| (0..*len).map(|at| (at ^ len) as u8).collect()).collect();
            let stream: Vec<u8> = sent.iter().flat_map(|message| framed(message)).collect();
            let (mut pieces, mut rest) = (Vec::new(), &stream[..]);
            for cut in cuts.iter().cycle() {
                if rest.is_empty() { break }
                let (piece, left) = rest.split_at((*cut).min(rest.len()));
                pieces.push(piece.to_vec());
                rest = left;
            }
            prop_assert_eq!(messages(pieces), Ok((sent, 0)));
        }

        #[test]
        fn no_bytes_make_a_decoder_panic_or_point_outside(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            if let Frame::Whole(range) = Frame::at_start_of(&bytes) {
                prop_assert!(range.end <= bytes.len() && range.len() >= MESSAGE_MIN);
            }
        }
    }
}

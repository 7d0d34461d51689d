//! The data framing of WebSocket (RFC 6455 section 5), as far as a tunnel needs it: binary messages are pieces of one
//! stream, pings are answered, and everything else ends the connection.

/// The longest header: two bytes, an extended length of eight, a mask of four.
pub const HEADER_MAX: usize = 14;
/// A control frame holds no more (section 5.5).
const CONTROL_MAX: u64 = 125;

const CONTINUATION: u8 = 0;
const BINARY: u8 = 2;
const CLOSE: u8 = 8;
const PING: u8 = 9;
const PONG: u8 = 10;
const FINAL: u8 = 0x80;
const MASKED: u8 = 0x80;

/// Which side we are: what a client sends is masked, and what a server sends is not (section 5.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// We opened the connection.
    Client,
    /// The other side did.
    Server,
}

/// Why a connection cannot go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WebSocketError {
    /// The other side says goodbye.
    #[error("the other side closed the WebSocket")]
    Closed,
    /// The other side breaks the rules.
    #[error("the other side sent a WebSocket frame that is not allowed")]
    Wrong,
}

/// Takes frames apart.
#[derive(Debug)]
pub struct Decoder {
    side: Side,
    header: Vec<u8>,
    payload: Option<Payload>,
    control: Vec<u8>,
    pings: Vec<Vec<u8>>,
}

/// The payload that is being received.
#[derive(Clone, Copy, Debug)]
struct Payload {
    opcode: u8,
    left: u64,
    mask: [u8; 4],
    at: usize,
}

impl Decoder {
    /// A decoder for what the other side sends.
    pub fn new(side: Side) -> Self {
        Self { side, header: Vec::new(), payload: None, control: Vec::new(), pings: Vec::new() }
    }

    /// Moves the data in `bytes` to their front and returns how long they are. What else there was is dealt with.
    ///
    /// # Errors
    /// The connection has to end.
    pub fn decode(&mut self, bytes: &mut [u8]) -> Result<usize, WebSocketError> {
        let (mut from, mut to) = (0, 0);
        while from < bytes.len() {
            let Some(payload) = &mut self.payload else {
                self.header.push(bytes[from]);
                from += 1;
                self.payload = read_header(self.side, &self.header)?;
                if self.payload.is_some() {
                    self.header.clear();
                    self.finish_if_complete()?;
                }
                continue;
            };
            let len = usize::try_from(payload.left).unwrap_or(usize::MAX).min(bytes.len() - from);
            let piece = &mut bytes[from..from + len];
            unmask(piece, payload.mask, payload.at);
            payload.at = (payload.at + len) % 4;
            payload.left -= len as u64;
            if payload.opcode >= CLOSE {
                self.control.extend_from_slice(piece);
            } else {
                bytes.copy_within(from..from + len, to);
                to += len;
            }
            from += len;
            self.finish_if_complete()?;
        }
        Ok(to)
    }

    /// Whether nothing of a message is missing.
    pub fn is_between_messages(&self) -> bool {
        self.payload.is_none() && self.header.is_empty()
    }

    /// The pings to answer, each by [`pong`].
    pub fn take_pings(&mut self) -> Vec<Vec<u8>> {
        std::mem::take(&mut self.pings)
    }

    fn finish_if_complete(&mut self) -> Result<(), WebSocketError> {
        let Some(payload) = self.payload.take_if(|payload| payload.left == 0) else { return Ok(()) };
        let control = std::mem::take(&mut self.control);
        match payload.opcode {
            CLOSE => Err(WebSocketError::Closed),
            // Only the last ping needs an answer (section 5.5.3).
            PING => {
                self.pings = vec![control];
                Ok(())
            }
            _ => Ok(()),
        }
    }
}

/// The payload that a header announces, when the header is complete.
fn read_header(side: Side, header: &[u8]) -> Result<Option<Payload>, WebSocketError> {
    const WRONG: WebSocketError = WebSocketError::Wrong;
    let [first, second, rest @ ..] = header else { return Ok(None) };
    let opcode = first & 0x0f;
    let reserved = first & 0x70 != 0;
    let masked = second & MASKED != 0;
    let known = matches!(opcode, CONTINUATION | BINARY | CLOSE | PING | PONG);
    if reserved || !known || masked != (side == Side::Server) {
        return Err(WRONG);
    }
    let (left, rest) = match second & 0x7f {
        126 => match rest.split_first_chunk() {
            Some((length, rest)) => (u64::from(u16::from_be_bytes(*length)), rest),
            None => return Ok(None),
        },
        127 => match rest.split_first_chunk() {
            Some((length, rest)) => (u64::from_be_bytes(*length), rest),
            None => return Ok(None),
        },
        short => (u64::from(short), rest),
    };
    if opcode >= CLOSE && (left > CONTROL_MAX || first & FINAL == 0) || left >> 63 != 0 {
        return Err(WRONG);
    }
    let mask = if masked {
        let Some(mask) = rest.first_chunk() else { return Ok(None) };
        *mask
    } else {
        [0; 4]
    };
    Ok(Some(Payload { opcode, left, mask, at: 0 }))
}

/// The header of a binary message of `len` bytes; a client masks the bytes with `mask`.
pub fn header(side: Side, len: usize, mask: [u8; 4]) -> ([u8; HEADER_MAX], usize) {
    frame_header(BINARY, side, len, mask)
}

/// The whole answer to a ping.
pub fn pong(side: Side, payload: &[u8], mask: [u8; 4]) -> Vec<u8> {
    let (header, len) = frame_header(PONG, side, payload.len(), mask);
    let mut frame = [&header[..len], payload].concat();
    if side == Side::Client {
        unmask(&mut frame[len..], mask, 0);
    }
    frame
}

fn frame_header(opcode: u8, side: Side, len: usize, mask: [u8; 4]) -> ([u8; HEADER_MAX], usize) {
    let mut header = [0; HEADER_MAX];
    header[0] = FINAL | opcode;
    let masked = if side == Side::Client { MASKED } else { 0 };
    let mut end = match len {
        0..=125 => {
            header[1] = masked | len as u8;
            2
        }
        126..=0xffff => {
            header[1] = masked | 126;
            header[2..4].copy_from_slice(&(len as u16).to_be_bytes());
            4
        }
        _ => {
            header[1] = masked | 127;
            header[2..10].copy_from_slice(&(len as u64).to_be_bytes());
            10
        }
    };
    if side == Side::Client {
        header[end..end + 4].copy_from_slice(&mask);
        end += 4;
    }
    (header, end)
}

/// Masks or unmasks bytes, the first of them with the byte `at` of the mask.
pub fn unmask(bytes: &mut [u8], mask: [u8; 4], at: usize) {
    if mask == [0; 4] {
        return;
    }
    let mut turned = mask;
    turned.rotate_left(at % 4);
    let word = u64::from(u32::from_ne_bytes(turned));
    let word = (word | word << 32).to_ne_bytes();
    let (words, rest) = bytes.as_chunks_mut::<8>();
    for chunk in words {
        *chunk = (u64::from_ne_bytes(*chunk) ^ u64::from_ne_bytes(word)).to_ne_bytes();
    }
    for (byte, key) in rest.iter_mut().zip(word) {
        *byte ^= key;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn frame(side: Side, payload: &[u8], mask: [u8; 4]) -> Vec<u8> {
        let (head, len) = header(side, payload.len(), mask);
        let mut frame = [&head[..len], payload].concat();
        if side == Side::Client {
            unmask(&mut frame[len..], mask, 0);
        }
        frame
    }

    fn other(side: Side) -> Side {
        if side == Side::Client { Side::Server } else { Side::Client }
    }

    /// RFC 6455 section 5.7.
    #[test]
    fn the_examples_of_the_standard() {
        let unmasked = frame(Side::Server, &[1; 256], [0; 4]);
        assert_eq!(unmasked[..4], [0x82, 0x7e, 0x01, 0x00]);
        let large = frame(Side::Server, &vec![1; 65_536], [0; 4]);
        assert_eq!(large[..10], [0x82, 0x7f, 0, 0, 0, 0, 0, 1, 0, 0]);
        let pong = pong(Side::Client, b"Hello", [0x37, 0xfa, 0x21, 0x3d]);
        assert_eq!(pong, [0x8a, 0x85, 0x37, 0xfa, 0x21, 0x3d, 0x7f, 0x9f, 0x4d, 0x51, 0x58]);
        let mut ping = *b"\x89\x05Hello";
        let mut decoder = Decoder::new(Side::Client);
        assert_eq!(decoder.decode(&mut ping), Ok(0));
        assert_eq!(decoder.take_pings(), [b"Hello"]);
    }

    #[test]
    fn what_the_standard_forbids_ends_the_connection() {
        let wrong: &[(Side, &[u8])] = &[
            (Side::Server, b"\x82\x01a"),                  // not masked by the client
            (Side::Client, b"\x82\x81\0\0\0\0a"),          // masked by the server
            (Side::Client, b"\x81\x01a"),                  // text
            (Side::Client, b"\xc2\x01a"),                  // a reserved bit
            (Side::Client, b"\x09\x01a"),                  // a ping in pieces
            (Side::Client, b"\x89\x7e\x00\x7e"),           // a ping too long
            (Side::Client, b"\x82\x7f\x80\0\0\0\0\0\0\0"), // a length with its highest bit
            (Side::Client, b"\x83\x01a"),                  // an unknown kind
        ];
        for (side, bytes) in wrong {
            assert_eq!(
                Decoder::new(*side).decode(&mut bytes.to_vec()),
                Err(WebSocketError::Wrong),
                "{bytes:?}"
            );
        }
        let mut close = *b"\x88\x02\x03\xe8";
        assert_eq!(Decoder::new(Side::Client).decode(&mut close), Err(WebSocketError::Closed));
        assert_eq!(
            Decoder::new(Side::Client).decode(&mut b"\x82\x01a".to_vec()),
            Ok(1),
            "and a good one does not"
        );
    }

    proptest! {
        #[test]
        fn any_cutting_gives_the_same_data(
            client in any::<bool>(),
            payloads in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..400), 1..6),
            mask in any::<[u8; 4]>(),
            cuts in prop::collection::vec(1_usize..90, 1..16),
        ) {
            let side = if client { Side::Client } else { Side::Server };
            let mut stream = Vec::new();
            for payload in &payloads {
                stream.extend(frame(side, payload, mask));
                stream.extend(pong(side, b"between", mask));
            }
            let mut decoder = Decoder::new(other(side));
            let (mut got, mut rest) = (Vec::new(), &mut stream[..]);
            for cut in cuts.iter().cycle() {
                if rest.is_empty() { break }
                let (piece, left) = rest.split_at_mut((*cut).min(rest.len()));
                let len = decoder.decode(piece).unwrap();
                got.extend_from_slice(&piece[..len]);
                rest = left;
            }
            prop_assert_eq!(got, payloads.concat());
        }

        #[test]
        fn no_bytes_make_a_decoder_panic(server in any::<bool>(), mut bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let side = if server { Side::Server } else { Side::Client };
            let _ = Decoder::new(side).decode(&mut bytes);
        }
    }
}

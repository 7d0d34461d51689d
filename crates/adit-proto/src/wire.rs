//! The messages on the wire, bit by bit (WireGuard paper section 5.4). Both suites share the layout and
//! differ in the type byte; numbers are little-endian.
//!
//! ```text
//! initiation    type 000 | sender 4 | ephemeral 32 | static 32+16 | timestamp 12+16 | mac1 16 | mac2 16
//! response      type 000 | sender 4 | receiver 4 | ephemeral 32 | nothing 0+16 | mac1 16 | mac2 16
//! cookie reply  type 000 | receiver 4 | nonce 24 | cookie 16+16
//! transport     type 000 | receiver 4 | counter 8 | packet n+16
//! ```

use crate::reason::DropReason;
use crate::suite::Suite;

/// The length of a handshake initiation in bytes.
pub const INITIATION_LEN: usize = 148;
/// The length of a handshake response in bytes.
pub const RESPONSE_LEN: usize = 92;
/// The length of a cookie reply in bytes.
pub const COOKIE_REPLY_LEN: usize = 64;
/// The length of the header of a transport message in bytes.
pub const TRANSPORT_HEADER_LEN: usize = 16;
/// The length of the shortest transport message, a keepalive, in bytes.
pub const TRANSPORT_MIN_LEN: usize = 32;

/// A message of the right size for its type. Nothing in it is authenticated yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Message<'a> {
    /// The first message of a handshake.
    Initiation(Initiation<'a>),
    /// The answer to an initiation.
    Response(Response<'a>),
    /// The answer to a handshake message under load.
    CookieReply(CookieReply<'a>),
    /// A sealed packet, which follows the header.
    Transport(TransportHeader),
}

/// A handshake initiation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Initiation<'a> {
    /// The initiator's index.
    pub sender: u32,
    /// The initiator's ephemeral public key.
    pub ephemeral: &'a [u8; 32],
    /// The initiator's static public key, sealed.
    pub encrypted_static: &'a [u8; 48],
    /// A TAI64N timestamp, sealed.
    pub encrypted_timestamp: &'a [u8; 28],
    /// Proof that the sender knows the responder's public key.
    pub mac1: &'a [u8; 16],
    /// Proof that the sender holds a cookie; zeros without one.
    pub mac2: &'a [u8; 16],
    /// The whole message.
    pub bytes: &'a [u8; INITIATION_LEN],
}

/// A handshake response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Response<'a> {
    /// The responder's index.
    pub sender: u32,
    /// The index from the initiation.
    pub receiver: u32,
    /// The responder's ephemeral public key.
    pub ephemeral: &'a [u8; 32],
    /// The empty text, sealed.
    pub encrypted_nothing: &'a [u8; 16],
    /// Proof that the sender knows the initiator's public key.
    pub mac1: &'a [u8; 16],
    /// Proof that the sender holds a cookie; zeros without one.
    pub mac2: &'a [u8; 16],
    /// The whole message.
    pub bytes: &'a [u8; RESPONSE_LEN],
}

/// A cookie reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CookieReply<'a> {
    /// The sender index of the message that is answered.
    pub receiver: u32,
    /// A random nonce.
    pub nonce: &'a [u8; 24],
    /// The cookie, sealed.
    pub encrypted_cookie: &'a [u8; 32],
}

/// The header of a transport message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TransportHeader {
    /// The receiver's index.
    pub receiver: u32,
    /// The counter of the message, which is its nonce.
    pub counter: u64,
}

impl<'a> Message<'a> {
    /// Reads one datagram.
    ///
    /// # Errors
    /// [`DropReason::UnknownType`] when the first four bytes name no message,
    /// [`DropReason::MalformedDatagram`] when the length is wrong for the message they name.
    pub fn parse(datagram: &'a [u8]) -> Result<(Suite, Self), DropReason> {
        let (header, mut rest) = datagram.split_first_chunk().ok_or(DropReason::MalformedDatagram)?;
        let (suite, kind) = Kind::of(*header).ok_or(DropReason::UnknownType)?;
        let message = match kind {
            Kind::Transport => TransportHeader::read(&mut rest, datagram).map(Self::Transport),
            Kind::Initiation => Initiation::read(&mut rest, datagram).map(Self::Initiation),
            Kind::Response => Response::read(&mut rest, datagram).map(Self::Response),
            Kind::CookieReply => CookieReply::read(&mut rest, datagram).map(Self::CookieReply),
        };
        Ok((suite, message.ok_or(DropReason::MalformedDatagram)?))
    }
}

/// Writes an initiation; both MACs are left zero.
pub fn initiation(
    suite: Suite,
    sender: u32,
    ephemeral: &[u8; 32],
    encrypted_static: &[u8; 48],
    encrypted_timestamp: &[u8; 28],
) -> [u8; INITIATION_LEN] {
    let parts: [&[u8]; _] = [
        &[suite.message_types().initiation, 0, 0, 0],
        &sender.to_le_bytes(),
        ephemeral,
        encrypted_static,
        encrypted_timestamp,
    ];
    concat(&parts)
}

/// Writes a response; both MACs are left zero.
pub fn response(
    suite: Suite,
    sender: u32,
    receiver: u32,
    ephemeral: &[u8; 32],
    encrypted_nothing: &[u8; 16],
) -> [u8; RESPONSE_LEN] {
    let parts: [&[u8]; _] = [
        &[suite.message_types().response, 0, 0, 0],
        &sender.to_le_bytes(),
        &receiver.to_le_bytes(),
        ephemeral,
        encrypted_nothing,
    ];
    concat(&parts)
}

/// Writes a cookie reply.
pub fn cookie_reply(
    suite: Suite,
    receiver: u32,
    nonce: &[u8; 24],
    encrypted_cookie: &[u8; 32],
) -> [u8; COOKIE_REPLY_LEN] {
    let parts: [&[u8]; _] =
        [&[suite.message_types().cookie, 0, 0, 0], &receiver.to_le_bytes(), nonce, encrypted_cookie];
    concat(&parts)
}

/// Writes the header of a transport message.
#[inline]
pub fn transport_header(suite: Suite, receiver: u32, counter: u64) -> [u8; TRANSPORT_HEADER_LEN] {
    let [r0, r1, r2, r3] = receiver.to_le_bytes();
    let [c0, c1, c2, c3, c4, c5, c6, c7] = counter.to_le_bytes();
    [suite.message_types().transport, 0, 0, 0, r0, r1, r2, r3, c0, c1, c2, c3, c4, c5, c6, c7]
}

/// What the first four bytes of a message say.
#[derive(Clone, Copy)]
enum Kind {
    Initiation,
    Response,
    CookieReply,
    Transport,
}

impl Kind {
    fn of(header: [u8; 4]) -> Option<(Suite, Self)> {
        let [kind, 0, 0, 0] = header else { return None };
        Suite::ALL.into_iter().find_map(|suite| {
            let types = suite.message_types();
            [
                (types.transport, Self::Transport),
                (types.initiation, Self::Initiation),
                (types.response, Self::Response),
                (types.cookie, Self::CookieReply),
            ]
            .into_iter()
            .find_map(|(byte, found)| (byte == kind).then_some((suite, found)))
        })
    }
}

impl<'a> Initiation<'a> {
    fn read(rest: &mut &'a [u8], bytes: &'a [u8]) -> Option<Self> {
        Some(Self {
            bytes: bytes.try_into().ok()?,
            sender: u32::from_le_bytes(*take(rest)?),
            ephemeral: take(rest)?,
            encrypted_static: take(rest)?,
            encrypted_timestamp: take(rest)?,
            mac1: take(rest)?,
            mac2: take(rest)?,
        })
    }
}

impl<'a> Response<'a> {
    fn read(rest: &mut &'a [u8], bytes: &'a [u8]) -> Option<Self> {
        Some(Self {
            bytes: bytes.try_into().ok()?,
            sender: u32::from_le_bytes(*take(rest)?),
            receiver: u32::from_le_bytes(*take(rest)?),
            ephemeral: take(rest)?,
            encrypted_nothing: take(rest)?,
            mac1: take(rest)?,
            mac2: take(rest)?,
        })
    }
}

impl<'a> CookieReply<'a> {
    fn read(rest: &mut &'a [u8], bytes: &'a [u8]) -> Option<Self> {
        if bytes.len() != COOKIE_REPLY_LEN {
            return None;
        }
        Some(Self {
            receiver: u32::from_le_bytes(*take(rest)?),
            nonce: take(rest)?,
            encrypted_cookie: take(rest)?,
        })
    }
}

impl TransportHeader {
    fn read(rest: &mut &[u8], bytes: &[u8]) -> Option<Self> {
        if bytes.len() < TRANSPORT_MIN_LEN {
            return None;
        }
        Some(Self { receiver: u32::from_le_bytes(*take(rest)?), counter: u64::from_le_bytes(*take(rest)?) })
    }
}

fn take<'a, const N: usize>(rest: &mut &'a [u8]) -> Option<&'a [u8; N]> {
    let (head, tail) = rest.split_first_chunk()?;
    *rest = tail;
    Some(head)
}

/// The parts one after the other; what they do not fill stays zero.
fn concat<const N: usize>(parts: &[&[u8]]) -> [u8; N] {
    let mut out = [0; N];
    out.iter_mut().zip(parts.iter().copied().flatten()).for_each(|(to, from)| *to = *from);
    out
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::panic)]
mod tests {
    use super::*;
    use proptest::array::{uniform16, uniform24, uniform32};
    use proptest::prelude::*;

    /// The type bytes, written out once more.
    const TYPES: [(u8, Suite); 8] = [
        (1, Suite::ChaCha20Poly1305),
        (2, Suite::ChaCha20Poly1305),
        (3, Suite::ChaCha20Poly1305),
        (4, Suite::ChaCha20Poly1305),
        (0x21, Suite::Aes256Gcm),
        (0x22, Suite::Aes256Gcm),
        (0x23, Suite::Aes256Gcm),
        (0x24, Suite::Aes256Gcm),
    ];

    fn expected(first: u8, len: usize) -> Result<Suite, DropReason> {
        if len < 4 {
            return Err(DropReason::MalformedDatagram);
        }
        let suite = TYPES.iter().find(|(byte, _)| *byte == first).ok_or(DropReason::UnknownType)?.1;
        let right_len = match first & 0x0f {
            1 => len == 148,
            2 => len == 92,
            3 => len == 64,
            _ => len >= 32,
        };
        if right_len { Ok(suite) } else { Err(DropReason::MalformedDatagram) }
    }

    #[test]
    fn every_type_byte_with_every_length_is_read_or_refused_for_the_right_reason() {
        let datagram = vec![0; 65_507];
        for first in 0..=255 {
            for len in (0..=200).chain([1_280, 65_507]) {
                let mut datagram = datagram[..len].to_vec();
                datagram.first_mut().into_iter().for_each(|byte| *byte = first);
                let suite = Message::parse(&datagram).map(|(suite, _)| suite);
                assert_eq!(suite, expected(first, len), "type {first:#x}, {len} bytes");
            }
        }
    }

    #[test]
    fn reserved_bytes_that_are_not_zero_make_an_unknown_type() {
        for (kind, _) in TYPES {
            let len = [148, 92, 64, 32][usize::from(kind & 0x0f) - 1];
            let mut datagram = vec![0; len];
            datagram[0] = kind;
            assert!(Message::parse(&datagram).is_ok());
            for reserved in 1..4 {
                for bit in 0..8 {
                    let mut datagram = datagram.clone();
                    datagram[reserved] = 1 << bit;
                    assert_eq!(Message::parse(&datagram), Err(DropReason::UnknownType));
                }
            }
        }
    }

    #[test]
    fn the_fields_lie_where_wireguard_puts_them() {
        let numbered = |first: u8, len: usize| -> Vec<u8> {
            [first, 0, 0, 0].into_iter().chain(4..).take(len).collect()
        };
        let span = |range: core::ops::Range<u8>| range.collect::<Vec<u8>>();

        let datagram = numbered(1, 148);
        let (_, Message::Initiation(message)) = Message::parse(&datagram).unwrap() else { panic!() };
        assert_eq!(message.sender, 0x0706_0504);
        assert_eq!(message.ephemeral[..], span(8..40));
        assert_eq!(message.encrypted_static[..], span(40..88));
        assert_eq!(message.encrypted_timestamp[..], span(88..116));
        assert_eq!(message.mac1[..], span(116..132));
        assert_eq!(message.mac2[..], span(132..148));
        assert_eq!(message.bytes[..], datagram);

        let datagram = numbered(2, 92);
        let (_, Message::Response(message)) = Message::parse(&datagram).unwrap() else { panic!() };
        assert_eq!((message.sender, message.receiver), (0x0706_0504, 0x0b0a_0908));
        assert_eq!(message.ephemeral[..], span(12..44));
        assert_eq!(message.encrypted_nothing[..], span(44..60));
        assert_eq!(message.mac1[..], span(60..76));
        assert_eq!(message.mac2[..], span(76..92));
        assert_eq!(message.bytes[..], datagram);

        let datagram = numbered(3, 64);
        let (_, Message::CookieReply(message)) = Message::parse(&datagram).unwrap() else { panic!() };
        assert_eq!(message.receiver, 0x0706_0504);
        assert_eq!(message.nonce[..], span(8..32));
        assert_eq!(message.encrypted_cookie[..], span(32..64));

        let datagram = numbered(4, 48);
        let (_, Message::Transport(header)) = Message::parse(&datagram).unwrap() else { panic!() };
        assert_eq!(header, TransportHeader { receiver: 0x0706_0504, counter: 0x0f0e_0d0c_0b0a_0908 });
    }

    fn any_suite() -> impl Strategy<Value = Suite> {
        prop::sample::select(&Suite::ALL[..])
    }

    proptest! {
        #[test]
        fn an_initiation_reads_as_it_was_written(
            suite in any_suite(), sender: u32, ephemeral in uniform32(any::<u8>()),
            sealed in uniform32(any::<u8>()), stamp in uniform24(any::<u8>()),
        ) {
            let (mut encrypted_static, mut encrypted_timestamp) = ([0xee; 48], [0xdd; 28]);
            encrypted_static[..32].copy_from_slice(&sealed);
            encrypted_timestamp[..24].copy_from_slice(&stamp);
            let bytes = initiation(suite, sender, &ephemeral, &encrypted_static, &encrypted_timestamp);
            let wanted = Initiation {
                sender,
                ephemeral: &ephemeral,
                encrypted_static: &encrypted_static,
                encrypted_timestamp: &encrypted_timestamp,
                mac1: &[0; 16],
                mac2: &[0; 16],
                bytes: &bytes,
            };
            prop_assert_eq!(Message::parse(&bytes), Ok((suite, Message::Initiation(wanted))));
        }

        #[test]
        fn a_response_reads_as_it_was_written(
            suite in any_suite(), sender: u32, receiver: u32,
            ephemeral in uniform32(any::<u8>()), encrypted_nothing in uniform16(any::<u8>()),
        ) {
            let bytes = response(suite, sender, receiver, &ephemeral, &encrypted_nothing);
            let wanted = Response {
                sender,
                receiver,
                ephemeral: &ephemeral,
                encrypted_nothing: &encrypted_nothing,
                mac1: &[0; 16],
                mac2: &[0; 16],
                bytes: &bytes,
            };
            prop_assert_eq!(Message::parse(&bytes), Ok((suite, Message::Response(wanted))));
        }

        #[test]
        fn a_cookie_reply_reads_as_it_was_written(
            suite in any_suite(), receiver: u32,
            nonce in uniform24(any::<u8>()), encrypted_cookie in uniform32(any::<u8>()),
        ) {
            let bytes = cookie_reply(suite, receiver, &nonce, &encrypted_cookie);
            let wanted = CookieReply { receiver, nonce: &nonce, encrypted_cookie: &encrypted_cookie };
            prop_assert_eq!(Message::parse(&bytes), Ok((suite, Message::CookieReply(wanted))));
        }

        #[test]
        fn a_transport_header_reads_as_it_was_written(
            suite in any_suite(), receiver: u32, counter: u64,
            sealed in prop::collection::vec(any::<u8>(), 16..200),
        ) {
            let mut bytes = transport_header(suite, receiver, counter).to_vec();
            bytes.extend(sealed);
            let wanted = TransportHeader { receiver, counter };
            prop_assert_eq!(Message::parse(&bytes), Ok((suite, Message::Transport(wanted))));
        }

        #[test]
        fn no_datagram_panics(datagram in prop::collection::vec(any::<u8>(), 0..300)) {
            let kind = datagram.first().copied().unwrap_or(0);
            match Message::parse(&datagram) {
                Ok((suite, _)) => prop_assert!(TYPES.contains(&(kind, suite))),
                Err(reason) => prop_assert!(
                    matches!(reason, DropReason::MalformedDatagram | DropReason::UnknownType)
                ),
            }
        }
    }
}

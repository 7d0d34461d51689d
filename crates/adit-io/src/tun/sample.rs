//! Packets for tests, built slowly and obviously.

use proptest::prelude::*;

/// A TCP or UDP packet; every field that a rule looks at can be set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Sample {
    pub(super) v6: bool,
    pub(super) udp: bool,
    pub(super) source: u8,
    pub(super) source_port: u16,
    pub(super) destination: u8,
    pub(super) destination_port: u16,
    pub(super) tos: u8,
    pub(super) ttl: u8,
    pub(super) id: u16,
    pub(super) dont_fragment: bool,
    pub(super) flow_label: u16,
    pub(super) sequence: u32,
    pub(super) acknowledgement: u32,
    pub(super) flags: u8,
    pub(super) window: u16,
    pub(super) urgent: u16,
    /// TCP options; a multiple of four bytes.
    pub(super) options: Vec<u8>,
    pub(super) payload: Vec<u8>,
}

pub(super) const PROTOCOL_TCP: u8 = 6;
pub(super) const PROTOCOL_UDP: u8 = 17;

impl Sample {
    pub(super) fn tcp(v6: bool, payload: &[u8]) -> Self {
        Self {
            v6,
            udp: false,
            source: 1,
            source_port: 4000,
            destination: 200,
            destination_port: 443,
            tos: 0,
            ttl: 64,
            id: 7,
            dont_fragment: true,
            flow_label: 0x1234,
            sequence: 1000,
            acknowledgement: 99,
            flags: 0x10,
            window: 500,
            urgent: 0,
            options: vec![1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2],
            payload: payload.to_vec(),
        }
    }

    pub(super) fn udp(v6: bool, payload: &[u8]) -> Self {
        Self { udp: true, ..Self::tcp(v6, payload) }
    }

    pub(super) fn ip_header_len(&self) -> usize {
        if self.v6 { 40 } else { 20 }
    }

    pub(super) fn headers_len(&self) -> usize {
        self.ip_header_len() + if self.udp { 8 } else { 20 + self.options.len() }
    }

    /// Where the checksum of the transport header is in the packet.
    pub(super) fn checksum_at(&self) -> usize {
        self.ip_header_len() + if self.udp { 6 } else { 16 }
    }

    /// The packet that follows this one in a transfer.
    pub(super) fn next(&self, payload: &[u8]) -> Self {
        Self {
            id: self.id.wrapping_add(1),
            sequence: self.sequence.wrapping_add(self.payload.len() as u32),
            payload: payload.to_vec(),
            ..self.clone()
        }
    }

    /// The complete packet.
    pub(super) fn bytes(&self) -> Vec<u8> {
        let mut transport = Vec::new();
        transport.extend(self.source_port.to_be_bytes());
        transport.extend(self.destination_port.to_be_bytes());
        if self.udp {
            transport.extend((8 + self.payload.len() as u16).to_be_bytes());
            transport.extend([0, 0]);
        } else {
            transport.extend(self.sequence.to_be_bytes());
            transport.extend(self.acknowledgement.to_be_bytes());
            transport.push(((20 + self.options.len()) * 4) as u8);
            transport.push(self.flags);
            transport.extend(self.window.to_be_bytes());
            transport.extend([0, 0]);
            transport.extend(self.urgent.to_be_bytes());
            transport.extend(&self.options);
        }
        transport.extend(&self.payload);

        let protocol = if self.udp { PROTOCOL_UDP } else { PROTOCOL_TCP };
        let mut ip = Vec::new();
        let addresses = if self.v6 {
            ip.extend([0x60 | self.tos >> 4, self.tos << 4]);
            ip.extend(self.flow_label.to_be_bytes());
            ip.extend((transport.len() as u16).to_be_bytes());
            ip.extend([protocol, self.ttl]);
            let host = |number| [0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, number];
            ip.extend(host(self.source));
            ip.extend(host(self.destination));
            ip[8..40].to_vec()
        } else {
            ip.extend([0x45, self.tos]);
            ip.extend((20 + transport.len() as u16).to_be_bytes());
            ip.extend(self.id.to_be_bytes());
            ip.extend(if self.dont_fragment { [0x40, 0] } else { [0, 0] });
            ip.extend([self.ttl, protocol, 0, 0]);
            ip.extend([10, 0, 0, self.source]);
            ip.extend([10, 0, 0, self.destination]);
            let sum = slow_checksum(&ip);
            ip[10..12].copy_from_slice(&sum.to_be_bytes());
            ip[12..20].to_vec()
        };
        let pseudo = [&addresses[..], &[0, protocol], &(transport.len() as u16).to_be_bytes()].concat();
        let sum = slow_checksum(&[&pseudo[..], &transport].concat());
        let at = self.checksum_at() - self.ip_header_len();
        // RFC 768: zero would mean "none".
        let sum = if sum == 0 { 0xffff } else { sum };
        transport[at..at + 2].copy_from_slice(&sum.to_be_bytes());
        [ip, transport].concat()
    }

    /// What a superpacket of this header and payload is made of, according to the books.
    pub(super) fn cut(&self, size: usize) -> Vec<Self> {
        let chunks: Vec<&[u8]> =
            if self.payload.is_empty() { vec![&[]] } else { self.payload.chunks(size).collect() };
        let last = chunks.len() - 1;
        let piece = |(number, chunk): (usize, &&[u8])| {
            let mut flags = self.flags;
            if number != 0 {
                flags &= !0x80;
            }
            if number != last {
                flags &= !0x09;
            }
            Self {
                id: self.id.wrapping_add(number as u16),
                sequence: self.sequence.wrapping_add((number * size) as u32),
                flags,
                payload: chunk.to_vec(),
                ..self.clone()
            }
        };
        chunks.iter().enumerate().map(piece).collect()
    }
}

/// RFC 1071, word by word.
pub(super) fn slow_checksum(bytes: &[u8]) -> u16 {
    let mut sum = 0u32;
    for word in bytes.chunks(2) {
        sum += u32::from(u16::from_be_bytes([word[0], *word.get(1).unwrap_or(&0)]));
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

/// Any packet whose payload has a length in `payload`.
pub(super) fn samples(payload: std::ops::Range<usize>) -> impl Strategy<Value = Sample> {
    let header =
        (any::<(bool, bool, u8, u16)>(), any::<(u8, u8, u16, bool)>(), any::<(u16, u32, u32, u8, u16)>());
    let options = prop::collection::vec(any::<u8>(), 0..=40).prop_map(|mut options| {
        options.truncate(options.len() & !3);
        options
    });
    (header, options, prop::collection::vec(any::<u8>(), payload)).prop_map(|(header, options, payload)| {
        let ((v6, udp, source, source_port), (tos, ttl, id, dont_fragment), rest) = header;
        let (flow_label, sequence, acknowledgement, flags, window) = rest;
        Sample {
            v6,
            udp,
            source,
            source_port,
            destination: 200,
            destination_port: 443,
            tos,
            ttl,
            id,
            dont_fragment,
            flow_label,
            sequence,
            acknowledgement,
            flags,
            window,
            urgent: 0,
            options,
            payload,
        }
    })
}

//! The stack's view of the tunnel: one packet in, any number out.

use std::num::NonZeroUsize;

use smoltcp::phy::{Checksum, DeviceCapabilities, Medium, PacketMeta, RxToken, TxToken};
use smoltcp::time::Instant;

/// Where the packets of a stack go.
pub trait Sink {
    /// Whether more can be taken now. Answers to a packet that just came may exceed it a little.
    fn has_room(&self) -> bool;

    /// Takes a packet. With `segment` it is TCP whose checksum is to be computed, and which is to be cut into
    /// packets of so many payload bytes.
    fn send(&mut self, packet: &[u8], segment: Option<u16>);
}

/// What the tunnel can carry.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    pub(super) mtu_bytes: usize,
}

impl Limits {
    /// Most datagrams that a UDP socket takes in one call.
    const SEGMENTS: usize = 64;
    /// Most bytes that it takes in one call.
    const RUN_BYTES: usize = 65_507;
    /// Header and tag of a message, and padding.
    const OVERHEAD: usize = 48;

    /// The longest packet to make at once, so that its segments leave in one call.
    fn superpacket(self) -> usize {
        let segments = (Self::RUN_BYTES / (self.mtu_bytes + Self::OVERHEAD)).clamp(1, Self::SEGMENTS);
        // Segments are the MTU without 40 bytes of headers, or 60 over IPv6.
        (segments * self.mtu_bytes.saturating_sub(60)).max(self.mtu_bytes).min(65_535)
    }

    pub(super) fn capabilities(self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ip;
        capabilities.max_transmission_unit = self.mtu_bytes;
        capabilities.checksum.tcp = Checksum::Rx;
        capabilities.segmentation.tcpv4 = NonZeroUsize::new(self.superpacket());
        // Not over IPv6: smoltcp 0.14 drops its own superpackets there as too large.
        capabilities
    }
}

pub(super) struct Device<'a, S> {
    pub(super) limits: Limits,
    pub(super) packet: Option<&'a [u8]>,
    pub(super) buffer: &'a mut [u8],
    pub(super) sink: &'a mut S,
}

impl<S: Sink> smoltcp::phy::Device for Device<'_, S> {
    type RxToken<'t>
        = Rx<'t>
    where
        Self: 't;
    type TxToken<'t>
        = Tx<'t, S>
    where
        Self: 't;

    fn receive(&mut self, _: Instant) -> Option<(Rx<'_>, Tx<'_, S>)> {
        let packet = self.packet.take()?;
        Some((Rx(packet), Tx { buffer: self.buffer, sink: self.sink, segment: None }))
    }

    fn transmit(&mut self, _: Instant) -> Option<Tx<'_, S>> {
        self.sink.has_room().then_some(Tx { buffer: self.buffer, sink: self.sink, segment: None })
    }

    fn capabilities(&self) -> DeviceCapabilities {
        self.limits.capabilities()
    }
}

pub(super) struct Rx<'t>(&'t [u8]);

impl RxToken for Rx<'_> {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(self.0)
    }
}

pub(super) struct Tx<'t, S> {
    buffer: &'t mut [u8],
    sink: &'t mut S,
    segment: Option<u16>,
}

impl<S: Sink> TxToken for Tx<'_, S> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        let Some(packet) = self.buffer.get_mut(..len) else {
            // Longer than any packet: the stack makes none, and the closure has to be given something.
            return f(&mut vec![0; len]);
        };
        let result = f(packet);
        let segment = is_tcp(packet).then(|| self.segment.unwrap_or_else(|| payload_len(packet)));
        self.sink.send(packet, segment);
        result
    }

    fn set_meta(&mut self, meta: PacketMeta) {
        self.segment = meta.segmentation_offload_size.map(Into::into);
    }
}

/// The stack writes neither IP options nor extension headers.
fn is_tcp(packet: &[u8]) -> bool {
    let protocol = match packet.first() {
        Some(first) if first >> 4 == 4 => packet.get(9),
        _ => packet.get(6),
    };
    protocol == Some(&6)
}

/// Bytes after the headers, at least 1, as a segment cannot be empty.
fn payload_len(packet: &[u8]) -> u16 {
    let at = if packet.first().is_some_and(|first| first >> 4 == 4) { 20 } else { 40 };
    let headers = packet.get(at + 12).map_or(20, |offset| usize::from(offset >> 4) * 4);
    u16::try_from(packet.len().saturating_sub(at + headers)).unwrap_or(u16::MAX - 1).clamp(1, u16::MAX - 1)
}

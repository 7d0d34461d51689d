//! Memory for received datagrams.

use std::ops::Range;

use adit_proto::endpoint::Endpoint;
use adit_proto::packet::Ecn;

use crate::sys::socket::{Control, RawAddress, empty_header, receive_messages};

/// The largest datagram, or run of datagrams that the kernel received as one, in bytes.
pub(super) const SLOT: usize = 65_536;

/// One datagram, or a run of datagrams from one sender that the kernel merged (UDP GRO).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Received {
    /// The sender, and the local address and interface it reached.
    pub endpoint: Endpoint,
    /// The ECN field of the outside packets.
    pub ecn: Ecn,
    /// The length in bytes of every datagram but the last, which may be shorter.
    pub stride: usize,
    start: usize,
    len: usize,
}

impl Received {
    /// Where each datagram lies in the [`memory`](ReceiveBatch::memory) of its batch.
    pub fn datagrams(&self) -> impl Iterator<Item = Range<usize>> + use<> {
        let (end, stride) = (self.start + self.len, self.stride);
        // One without contents is a datagram too, to be counted like any other.
        (self.start..end.max(self.start + 1)).step_by(stride).map(move |start| start..end.min(start + stride))
    }

    /// The length of all datagrams together, in bytes.
    pub const fn len(&self) -> usize {
        self.len
    }

    /// Whether it is a datagram without contents.
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }
}

/// Slots of 64 KiB for received datagrams, allocated once. Pages that no datagram touched cost nothing.
///
/// Datagrams are opened where they lie: walk `received()`, open [`datagram_mut`](Self::datagram_mut) of each range of
/// [`Received::datagrams`], and give ranges of [`memory`](Self::memory) to the coalescer.
pub struct ReceiveBatch {
    memory: Vec<u8>,
    received: Vec<Received>,
    slots: usize,
    truncated: u64,
    overflow: u32,
    wires: Wires,
}

/// What the kernel reads and fills in one call. The pointers are written anew before every call and never used after.
struct Wires {
    headers: Vec<libc::mmsghdr>,
    buffers: Vec<libc::iovec>,
    names: Vec<RawAddress>,
    controls: Vec<Control>,
}

// SAFETY: the raw pointers inside are dead between calls: `ReceiveBatch::fill_from` overwrites all of them before it uses any.
unsafe impl Send for Wires {}

impl ReceiveBatch {
    /// Room for `slots` datagrams or runs; 16 are enough for GRO at high speed.
    ///
    /// # Panics
    /// When `slots` is 0.
    pub fn new(slots: usize) -> Self {
        assert!(slots > 0, "a batch without slots receives nothing");
        let buffer = libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 };
        Self {
            memory: vec![0; slots * SLOT],
            received: Vec::with_capacity(slots),
            slots,
            truncated: 0,
            overflow: 0,
            wires: Wires {
                headers: vec![empty_header(); slots],
                buffers: vec![buffer; slots],
                names: vec![RawAddress::unset(); slots],
                controls: vec![Control::new(); slots],
            },
        }
    }

    /// What the last receive brought.
    pub fn received(&self) -> &[Received] {
        &self.received
    }

    /// How many slots are filled.
    pub fn len(&self) -> usize {
        self.received.len()
    }

    /// Whether no slot is filled.
    pub fn is_empty(&self) -> bool {
        self.received.is_empty()
    }

    /// Whether every slot is filled: there may be more to receive.
    pub fn is_full(&self) -> bool {
        self.received.len() == self.slots
    }

    /// All bytes of the batch.
    pub fn memory(&self) -> &[u8] {
        &self.memory
    }

    /// The bytes at one of the ranges of [`Received::datagrams`].
    ///
    /// # Panics
    /// When the range lies outside of the memory.
    pub fn datagram_mut(&mut self, range: Range<usize>) -> &mut [u8] {
        &mut self.memory[range]
    }

    /// The datagrams of slot `number` with what is known about them.
    ///
    /// # Panics
    /// When the slot is not filled.
    pub fn datagrams_mut(&mut self, number: usize) -> (Received, impl Iterator<Item = &mut [u8]>) {
        let received = self.received[number];
        let bytes = &mut self.memory[received.start..received.start + received.len];
        let without_contents: Option<&mut [u8]> = received.is_empty().then_some(&mut []);
        (received, bytes.chunks_mut(received.stride).chain(without_contents))
    }

    /// Datagrams dropped because they did not fit a slot, since the batch was made.
    pub const fn truncated(&self) -> u64 {
        self.truncated
    }

    /// Datagrams that the kernel dropped because the buffer of the socket last received from was full, since it was made
    /// (`SO_RXQ_OVFL`; wraps). 0 when the socket said nothing about it.
    pub const fn overflow(&self) -> u32 {
        self.overflow
    }

    pub(crate) fn clear(&mut self) {
        self.received.clear();
    }

    /// Copies a run into the next slot; a run that does not fit is cut off and counted.
    pub(crate) fn fill(&mut self, endpoint: Endpoint, ecn: Ecn, stride: usize, contents: &[u8]) {
        let start = self.received.len() * SLOT;
        let Some(slot) = self.memory.get_mut(start..start + contents.len().min(SLOT)) else { return };
        if contents.len() > SLOT {
            self.truncated += 1;
            return;
        }
        slot.copy_from_slice(contents);
        self.received.push(Received { endpoint, ecn, stride: stride.max(1), start, len: contents.len() });
    }

    /// Receives from a socket. `parse` reads the control messages of one slot.
    pub(super) fn fill_from(
        &mut self,
        fd: std::os::fd::BorrowedFd<'_>,
        parse: impl Fn(&Control) -> Details,
    ) -> std::io::Result<usize> {
        self.received.clear();
        self.overflow = 0;
        let Wires { headers, buffers, names, controls } = &mut self.wires;
        let slots = self.memory.chunks_exact_mut(SLOT);
        for ((((header, buffer), name), control), slot) in headers
            .iter_mut()
            .zip(buffers.iter_mut())
            .zip(names.iter_mut())
            .zip(controls.iter_mut())
            .zip(slots)
        {
            *buffer = libc::iovec { iov_base: slot.as_mut_ptr().cast(), iov_len: slot.len() };
            let (space, space_len) = control.space();
            header.msg_len = 0;
            header.msg_hdr.msg_name = std::ptr::from_mut(name).cast();
            header.msg_hdr.msg_namelen = RawAddress::LEN;
            header.msg_hdr.msg_iov = buffer;
            header.msg_hdr.msg_iovlen = 1;
            header.msg_hdr.msg_control = space;
            header.msg_hdr.msg_controllen = space_len as _;
            header.msg_hdr.msg_flags = 0;
        }
        let count = receive_messages(fd, headers)?;
        for (number, header) in headers.iter().take(count).enumerate() {
            let control = &mut controls[number];
            control.set_len(header.msg_hdr.msg_controllen as _);
            let details = parse(control);
            if let Some(overflow) = details.overflow {
                self.overflow = overflow;
            }
            if header.msg_hdr.msg_flags & libc::MSG_TRUNC != 0 {
                self.truncated += 1;
                continue;
            }
            let Some(remote) = names[number].get() else { continue };
            let len = (header.msg_len as usize).min(SLOT);
            let endpoint =
                Endpoint { local: details.local, interface: details.interface, ..Endpoint::udp(remote) };
            let stride = details.stride.unwrap_or(len).clamp(1, SLOT);
            self.received.push(Received { endpoint, ecn: details.ecn, stride, start: number * SLOT, len });
        }
        Ok(count)
    }
}

impl std::fmt::Debug for ReceiveBatch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ReceiveBatch").field("slots", &self.slots).field("received", &self.received).finish()
    }
}

/// What control messages say about a slot.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Details {
    pub(super) local: Option<std::net::IpAddr>,
    pub(super) interface: u32,
    pub(super) ecn: Ecn,
    pub(super) stride: Option<usize>,
    pub(super) overflow: Option<u32>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_datagram_of_a_slot_is_found_also_one_without_contents() {
        let endpoint = Endpoint::udp("192.0.2.1:1".parse().unwrap());
        let mut batch = ReceiveBatch::new(3);
        for (stride, contents) in [(4, &b"abcdefghij"[..]), (0, b""), (3, b"xyz")] {
            batch.fill(endpoint, Ecn::NotEct, stride, contents);
        }
        let expected: [&[&[u8]]; 3] = [&[b"abcd", b"efgh", b"ij"], &[b""], &[b"xyz"]];
        for (number, expected) in expected.into_iter().enumerate() {
            let ranges = batch.received()[number].datagrams();
            let by_range: Vec<_> = ranges.map(|range| batch.memory()[range].to_vec()).collect();
            assert_eq!(by_range, expected);
            let (_, contents) = batch.datagrams_mut(number);
            assert_eq!(contents.map(|datagram| datagram.to_vec()).collect::<Vec<_>>(), expected);
        }
    }
}

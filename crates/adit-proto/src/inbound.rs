//! Where the inside packet lies in what arrived, and what is left to do with it.

use core::ops::Range;
use std::sync::Arc;

use crate::path::Path;

/// Whether the TCP or UDP checksum of an inside packet is finished.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Checksum {
    /// It is.
    Finished,
    /// It is left to the receiver.
    Unfinished,
}

/// Where the inside packet lies in a datagram.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inbound {
    /// The bytes of the packet in the datagram.
    pub packet: Range<usize>,
    /// What is left to do.
    pub checksum: Checksum,
}

/// What a message that came over a stream was.
#[derive(Clone, Debug, Default)]
pub struct FromStream {
    /// Whose it is, when it authenticated.
    pub owner: Option<Arc<Path>>,
    /// Whether the peer uses the connection beside another one, for what should not wait behind other packets.
    pub is_aside: bool,
    /// The inside packet.
    pub arrived: Option<Arrived>,
}

/// Where the inside packet lies in a message that came over a stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Arrived {
    /// The bytes of the packet in the message.
    pub packet: Range<usize>,
    /// When it is a superpacket: payload bytes of every segment but the last.
    pub segment_size: Option<u16>,
}

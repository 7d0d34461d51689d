//! The header that travels in front of a packet on an offloading TUN queue (virtio 1.2 section 5.1.6, legacy 10 bytes).

/// `struct virtio_net_hdr`, in host byte order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct VnetHeader {
    /// [`VnetHeader::NEEDS_CSUM`] and others.
    pub flags: u8,
    /// One of the `GSO_` constants, perhaps with [`VnetHeader::GSO_ECN`].
    pub gso_type: u8,
    /// The length of all headers in bytes; a hint that the reader does not trust.
    pub hdr_len: u16,
    /// Payload bytes of every segment but the last.
    pub gso_size: u16,
    /// Where the checksum starts to sum, in bytes.
    pub csum_start: u16,
    /// Where the checksum goes, in bytes after `csum_start`.
    pub csum_offset: u16,
}

impl VnetHeader {
    /// Bytes on the wire.
    pub const LEN: usize = 10;
    /// The checksum is unfinished.
    pub const NEEDS_CSUM: u8 = 1;
    /// No superpacket.
    pub const GSO_NONE: u8 = 0;
    /// TCP over IPv4.
    pub const GSO_TCPV4: u8 = 1;
    /// TCP over IPv6.
    pub const GSO_TCPV6: u8 = 4;
    /// UDP datagrams over either.
    pub const GSO_UDP_L4: u8 = 5;
    /// The first segment of a TCP superpacket carries CWR.
    pub const GSO_ECN: u8 = 0x80;

    /// A complete packet.
    pub const NONE: Self =
        Self { flags: 0, gso_type: Self::GSO_NONE, hdr_len: 0, gso_size: 0, csum_start: 0, csum_offset: 0 };

    /// Reads the wire form.
    pub const fn from_bytes(bytes: &[u8; Self::LEN]) -> Self {
        let [flags, gso_type, h0, h1, g0, g1, s0, s1, o0, o1] = *bytes;
        Self {
            flags,
            gso_type,
            hdr_len: u16::from_ne_bytes([h0, h1]),
            gso_size: u16::from_ne_bytes([g0, g1]),
            csum_start: u16::from_ne_bytes([s0, s1]),
            csum_offset: u16::from_ne_bytes([o0, o1]),
        }
    }

    /// The wire form.
    pub const fn to_bytes(&self) -> [u8; Self::LEN] {
        let [h0, h1] = self.hdr_len.to_ne_bytes();
        let [g0, g1] = self.gso_size.to_ne_bytes();
        let [s0, s1] = self.csum_start.to_ne_bytes();
        let [o0, o1] = self.csum_offset.to_ne_bytes();
        [self.flags, self.gso_type, h0, h1, g0, g1, s0, s1, o0, o1]
    }
}

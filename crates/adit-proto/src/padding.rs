//! How long a packet is in a message.

/// How packets are padded while the MTU stays what it is.
#[derive(Clone, Copy, Debug)]
pub struct Padding {
    mtu_bytes: usize,
}

impl Padding {
    /// The padding at an MTU of the device.
    pub(crate) const fn new(mtu_bytes: usize) -> Self {
        Self { mtu_bytes }
    }

    /// The MTU of the device.
    pub fn mtu_bytes(self) -> usize {
        self.mtu_bytes
    }

    /// Bytes that an inside packet of `len` bytes takes in a message: padded to 16, but never above the MTU.
    pub fn padded_len(self, len: usize) -> usize {
        let aligned = len.checked_next_multiple_of(16).unwrap_or(len);
        aligned.min(self.mtu_bytes).max(len)
    }
}

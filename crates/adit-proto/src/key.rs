//! Long-term keys: X25519 key pairs and pre-shared keys.

use aws_lc_rs::agreement;
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

/// A Curve25519 public key; it names a peer.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PublicKey(pub [u8; 32]);

impl core::fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        let [a, b, c, d, ..] = self.0;
        write!(f, "PublicKey({a:02x}{b:02x}{c:02x}{d:02x}…)")
    }
}

/// A Curve25519 private key, clamped (RFC 7748 section 5), erased when dropped.
#[derive(Clone, PartialEq, Eq, Zeroize, ZeroizeOnDrop)]
pub struct StaticSecret([u8; 32]);

/// A pre-shared key mixed into every handshake with a peer; all zeros means none, as in WireGuard.
#[derive(Clone, PartialEq, Eq, Default, Zeroize, ZeroizeOnDrop)]
pub struct PresharedKey([u8; 32]);

/// A Diffie-Hellman result of all zeros, or a key that is no point: the peer sent a low-order point.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LowOrderPoint;

impl StaticSecret {
    /// Takes 32 bytes as a private key, clamping them as `wg` does.
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        let mut clamped = Self(bytes);
        let [first, .., last] = &mut clamped.0;
        *first &= 0b1111_1000;
        *last = (*last & 0b0111_1111) | 0b0100_0000;
        clamped
    }

    /// The clamped bytes.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// The public half.
    pub fn public_key(&self) -> PublicKey {
        let mut public = [0; 32];
        let computed = agreement::PrivateKey::from_private_key(&agreement::X25519, &self.0)
            .and_then(|key| Ok(key.compute_public_key()?));
        if let Ok(key) = computed
            && let Some(bytes) = key.as_ref().first_chunk()
        {
            public = *bytes;
        }
        PublicKey(public)
    }

    /// X25519 with `peer` (RFC 7748 section 6.1).
    ///
    /// # Errors
    /// [`LowOrderPoint`] when the result is all zeros.
    #[expect(clippy::disallowed_methods, reason = "the one place that checks the result")]
    pub fn diffie_hellman(&self, peer: &PublicKey) -> Result<Zeroizing<[u8; 32]>, LowOrderPoint> {
        let key = agreement::PrivateKey::from_private_key(&agreement::X25519, &self.0)
            .map_err(|_| LowOrderPoint)?;
        let peer = agreement::UnparsedPublicKey::new(&agreement::X25519, &peer.0);
        let shared = agreement::agree(&key, peer, LowOrderPoint, |secret| {
            secret.first_chunk().map(|bytes| Zeroizing::new(*bytes)).ok_or(LowOrderPoint)
        })?;
        if subtle::ConstantTimeEq::ct_eq(&shared[..], &[0; 32][..]).into() {
            return Err(LowOrderPoint);
        }
        Ok(shared)
    }
}

impl core::fmt::Debug for StaticSecret {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("StaticSecret(hidden)")
    }
}

impl PresharedKey {
    /// Takes 32 bytes as a pre-shared key.
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The bytes.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// Whether this is a real key, not the all-zero default.
    pub fn is_set(&self) -> bool {
        !bool::from(subtle::ConstantTimeEq::ct_eq(&self.0[..], &[0; 32][..]))
    }
}

impl core::fmt::Debug for PresharedKey {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("PresharedKey(hidden)")
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::arithmetic_side_effects)]
mod tests {
    use super::*;

    fn hex(text: &str) -> [u8; 32] {
        core::array::from_fn(|i| u8::from_str_radix(text.get(i * 2..i * 2 + 2).unwrap(), 16).unwrap())
    }

    #[test]
    fn agreement_follows_rfc_7748_section_6_1() {
        let bob =
            StaticSecret::from_bytes(hex("5dab087e624a8a4b79e17f8b83800ee66f3bb1292618b6fd1c2f8b27ff88e0eb"));
        let alice = PublicKey(hex("8520f0098930a754748b7ddcb43ef75a0dbf3a0d26381af4eba4a98eaa9b4e6a"));
        assert_eq!(
            bob.public_key().0,
            hex("de9edb7d7b7dc1b4d35b61c2ece435373f8343c85b78674dadfc7e146f882b4f")
        );
        assert_eq!(
            *bob.diffie_hellman(&alice).unwrap(),
            hex("4a5d9d5ba4ce2de1728e3bf480350f25e07e21c947d19e3376f09b3c1e161742")
        );
    }

    #[test]
    fn keys_never_show_their_bytes() {
        let text = format!("{:?} {:?}", StaticSecret::from_bytes([7; 32]), PresharedKey::from_bytes([7; 32]));
        assert_eq!(text, "StaticSecret(hidden) PresharedKey(hidden)");
    }
}

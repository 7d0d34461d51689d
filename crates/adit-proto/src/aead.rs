//! The AEADs of both suites behind one key type, with the nonce layout of each.

use aws_lc_rs::aead::{self, Aad, LessSafeKey, Nonce, UnboundKey};

use crate::suite::Suite;

/// Bytes an AEAD adds to a message.
pub const TAG_LEN: usize = 16;

/// A prepared AEAD key. The AWS-LC context erases its key schedule when dropped.
#[derive(Debug)]
pub struct AeadKey {
    suite: Suite,
    key: LessSafeKey,
}

/// A message that did not authenticate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unauthentic;

impl AeadKey {
    /// Prepares `key` for `suite`. `None` only if the library refuses a 32-byte key.
    pub fn new(suite: Suite, key: &[u8; 32]) -> Option<Self> {
        let algorithm = match suite {
            Suite::ChaCha20Poly1305 => &aead::CHACHA20_POLY1305,
            Suite::Aes256Gcm => &aead::AES_256_GCM,
        };
        let key = LessSafeKey::new(UnboundKey::new(algorithm, key).ok()?);
        Some(Self { suite, key })
    }

    /// Seals `message` in place and returns its tag.
    ///
    /// # Errors
    /// [`Unauthentic`] when the library refuses the message (longer than the AEAD allows).
    pub fn seal(&self, counter: u64, aad: &[u8], message: &mut [u8]) -> Result<[u8; TAG_LEN], Unauthentic> {
        let tag = self
            .key
            .seal_in_place_separate_tag(nonce(self.suite, counter), Aad::from(aad), message)
            .map_err(|_| Unauthentic)?;
        tag.as_ref().first_chunk().copied().ok_or(Unauthentic)
    }

    /// Opens ciphertext and tag in place and returns the plaintext at the start of `message`.
    ///
    /// On failure the buffer holds nothing of use and must not be read.
    ///
    /// # Errors
    /// [`Unauthentic`] when the tag does not verify.
    pub fn open<'m>(
        &self,
        counter: u64,
        aad: &[u8],
        message: &'m mut [u8],
    ) -> Result<&'m mut [u8], Unauthentic> {
        self.key.open_in_place(nonce(self.suite, counter), Aad::from(aad), message).map_err(|_| Unauthentic)
    }
}

/// 4 zero bytes, then the counter: little-endian for ChaCha20-Poly1305, big-endian for AES-GCM
/// (Noise section 12.3 and 12.4).
fn nonce(suite: Suite, counter: u64) -> Nonce {
    let counter = match suite {
        Suite::ChaCha20Poly1305 => counter.to_le_bytes(),
        Suite::Aes256Gcm => counter.to_be_bytes(),
    };
    let mut bytes = [0; 12];
    if let Some(tail) = bytes.last_chunk_mut() {
        *tail = counter;
    }
    Nonce::assume_unique_for_key(bytes)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
mod tests {
    use super::*;

    #[test]
    fn a_sealed_message_opens_and_a_changed_one_does_not() {
        for suite in Suite::ALL {
            let key = AeadKey::new(suite, &[7; 32]).unwrap();
            let mut message = b"forty-two".to_vec();
            let tag = key.seal(9, b"aad", &mut message).unwrap();
            message.extend(tag);
            assert_eq!(key.open(9, b"aad", &mut message.clone()).unwrap(), b"forty-two");
            assert_eq!(key.open(10, b"aad", &mut message.clone()), Err(Unauthentic));
            assert_eq!(key.open(9, b"aae", &mut message.clone()), Err(Unauthentic));
            message[3] ^= 1;
            assert_eq!(key.open(9, b"aad", &mut message), Err(Unauthentic));
        }
    }
}

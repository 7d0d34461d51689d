//! The symmetric half of Noise_IKpsk2 (Noise section 5.2) over BLAKE2s, as WireGuard uses it
//! (WireGuard paper section 5.4).

use blake2::{Blake2s256, Digest};
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

use crate::aead::{AeadKey, TAG_LEN, Unauthentic};
use crate::key::PublicKey;
use crate::suite::Suite;

/// Chaining key and transcript hash of a handshake under way.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct SymmetricState {
    #[zeroize(skip)]
    suite: Suite,
    chaining_key: [u8; 32],
    hash: [u8; 32],
}

impl SymmetricState {
    /// The state before the first message to `responder`.
    pub fn new(suite: Suite, responder: &PublicKey) -> Self {
        let chaining_key = hash(&[suite.noise_name()]);
        let mut state = Self { suite, chaining_key, hash: chaining_key };
        state.mix_hash(suite.prologue());
        state.mix_hash(&responder.0);
        state
    }

    /// The suite of this handshake.
    pub fn suite(&self) -> Suite {
        self.suite
    }

    /// `h = HASH(h || data)`.
    pub fn mix_hash(&mut self, data: &[u8]) {
        self.hash = hash(&[&self.hash, data]);
    }

    /// `ck = KDF1(ck, input)`: for WireGuard's extra mixing of each ephemeral key.
    pub fn mix_chaining_key(&mut self, input: &[u8]) {
        let mut secret = hmac(&self.chaining_key, &[input]);
        self.chaining_key = *hmac(&secret, &[&[1]]);
        secret.zeroize();
    }

    /// `(ck, k) = KDF2(ck, input)`.
    pub fn mix_key(&mut self, input: &[u8]) -> Zeroizing<[u8; 32]> {
        let [chaining_key, key, _] = kdf3(&self.chaining_key, input);
        self.chaining_key = *chaining_key;
        key
    }

    /// `(ck, t, k) = KDF3(ck, psk)`, then `h = HASH(h || t)`.
    pub fn mix_key_and_hash(&mut self, psk: &[u8; 32]) -> Zeroizing<[u8; 32]> {
        let [chaining_key, temp, key] = kdf3(&self.chaining_key, psk);
        self.chaining_key = *chaining_key;
        self.mix_hash(&temp[..]);
        key
    }

    /// Encrypts `plaintext` with the transcript as associated data into `out` (plaintext + 16 bytes)
    /// and mixes the ciphertext into the transcript. `None` when `out` has the wrong size.
    pub fn encrypt_and_hash(&mut self, key: &[u8; 32], plaintext: &[u8], out: &mut [u8]) -> Option<()> {
        let (body, tag) = out.split_last_chunk_mut::<TAG_LEN>()?;
        if body.len() != plaintext.len() {
            return None;
        }
        body.copy_from_slice(plaintext);
        *tag = AeadKey::new(self.suite, key)?.seal(0, &self.hash, body).ok()?;
        self.mix_hash(out);
        Some(())
    }

    /// Decrypts `ciphertext` of `N + 16` bytes, then mixes it into the transcript.
    ///
    /// # Errors
    /// [`Unauthentic`] when it does not authenticate; the state must then be discarded.
    pub fn decrypt_and_hash<const N: usize>(
        &mut self,
        key: &[u8; 32],
        ciphertext: &[u8],
    ) -> Result<Zeroizing<[u8; N]>, Unauthentic> {
        let mut buffer = Zeroizing::new([0u8; 64]);
        let message = buffer.get_mut(..ciphertext.len()).ok_or(Unauthentic)?;
        message.copy_from_slice(ciphertext);
        let key = AeadKey::new(self.suite, key).ok_or(Unauthentic)?;
        let plaintext: &[u8] = key.open(0, &self.hash, message)?;
        let plaintext = Zeroizing::new(plaintext.try_into().map_err(|_| Unauthentic)?);
        self.mix_hash(ciphertext);
        Ok(plaintext)
    }

    /// The two transport keys: initiator to responder, then responder to initiator.
    pub fn split(&self) -> [Zeroizing<[u8; 32]>; 2] {
        let [first, second, _] = kdf3(&self.chaining_key, &[]);
        [first, second]
    }
}

impl core::fmt::Debug for SymmetricState {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "SymmetricState({}, hidden)", self.suite)
    }
}

/// BLAKE2s-256 over the concatenation of `parts`.
pub fn hash(parts: &[&[u8]]) -> [u8; 32] {
    let mut hasher = Blake2s256::new();
    for part in parts {
        hasher.update(part);
    }
    hasher.finalize().into()
}

/// HMAC-BLAKE2s (RFC 2104) over the concatenation of `parts`.
fn hmac(key: &[u8; 32], parts: &[&[u8]]) -> Zeroizing<[u8; 32]> {
    let mut inner_pad = Zeroizing::new([0x36u8; 64]);
    let mut outer_pad = Zeroizing::new([0x5cu8; 64]);
    for ((i, o), k) in inner_pad.iter_mut().zip(outer_pad.iter_mut()).zip(key) {
        *i ^= k;
        *o ^= k;
    }
    let mut inner = Blake2s256::new();
    inner.update(&inner_pad[..]);
    for part in parts {
        inner.update(part);
    }
    let mut digest = Zeroizing::new([0u8; 32]);
    inner.finalize_into((&mut *digest).into());
    Zeroizing::new(hash(&[&outer_pad[..], &digest[..]]))
}

/// HKDF with three outputs (RFC 5869 with an empty info string).
fn kdf3(key: &[u8; 32], input: &[u8]) -> [Zeroizing<[u8; 32]>; 3] {
    let secret = hmac(key, &[input]);
    let first = hmac(&secret, &[&[1]]);
    let second = hmac(&secret, &[&first[..], &[2]]);
    let third = hmac(&secret, &[&second[..], &[3]]);
    [first, second, third]
}

//! A cipher that does nothing, for the benchmark: what lanes could carry if sealing and opening were free. It takes
//! the place of `crates/adit-proto/src/aead.rs` in a copy of the sources, never in the product.

use std::sync::Once;

use crate::suite::Suite;

/// Bytes an AEAD adds to a message.
pub const TAG_LEN: usize = 16;

/// No key.
#[derive(Debug)]
pub struct AeadKey;

/// A message that did not authenticate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unauthentic;

const TAG: [u8; TAG_LEN] = *b"NO TAG, NO TRUST";

impl AeadKey {
    /// Takes a key and forgets it.
    pub fn new(_suite: Suite, _key: &[u8; 32]) -> Option<Self> {
        static WARNED: Once = Once::new();
        WARNED.call_once(|| eprintln!("adit without a cipher, for measuring: NOTHING IS ENCRYPTED"));
        Some(Self)
    }

    /// Leaves the message as it is.
    ///
    /// # Errors
    /// None.
    pub fn seal(
        &self,
        _counter: u64,
        _aad: &[u8],
        _message: &mut [u8],
    ) -> Result<[u8; TAG_LEN], Unauthentic> {
        Ok(TAG)
    }

    /// Takes off the tag.
    ///
    /// # Errors
    /// [`Unauthentic`] when that is not the tag of [`seal`](Self::seal).
    pub fn open<'m>(
        &self,
        _counter: u64,
        _aad: &[u8],
        message: &'m mut [u8],
    ) -> Result<&'m mut [u8], Unauthentic> {
        match message.split_last_chunk_mut::<TAG_LEN>() {
            Some((text, tag)) if *tag == TAG => Ok(text),
            _ => Err(Unauthentic),
        }
    }
}

//! The secret of an invite, and the keys that both sides make of it (`docs/invite.md`).

use adit_proto::key::{PresharedKey, PublicKey, StaticSecret};
use aws_lc_rs::hkdf::{HKDF_SHA256, KeyType, Prk, Salt};
use zeroize::Zeroizing;

/// The length of the secret.
pub const SECRET_BYTES: usize = 16;

const SALT: &[u8] = b"adit invite v1";

/// What only the URL of an invite says. The gateway forgets it as soon as it has printed it.
#[derive(Clone, PartialEq, Eq)]
pub struct InviteSecret(Zeroizing<[u8; SECRET_BYTES]>);

/// The keys of whoever is invited, until it has joined with its own.
#[derive(Clone, Debug)]
pub struct InviteKeys {
    /// The key of the invited; the gateway keeps its public half.
    pub private_key: StaticSecret,
    /// Makes the first session as strong as the secret, whatever becomes of X25519.
    pub preshared_key: PresharedKey,
}

struct Length32;

impl KeyType for Length32 {
    fn len(&self) -> usize {
        32
    }
}

impl InviteSecret {
    /// Takes 16 bytes for the secret.
    pub fn from_bytes(bytes: [u8; SECRET_BYTES]) -> Self {
        Self(Zeroizing::new(bytes))
    }

    /// A new secret.
    ///
    /// # Errors
    /// The system has no randomness to give.
    pub fn generate() -> anyhow::Result<Self> {
        let mut bytes = Zeroizing::new([0; SECRET_BYTES]);
        aws_lc_rs::rand::fill(&mut bytes[..])
            .map_err(|_| anyhow::anyhow!("the system gave no randomness"))?;
        Ok(Self(bytes))
    }

    /// The bytes.
    pub fn as_bytes(&self) -> &[u8; SECRET_BYTES] {
        &self.0
    }

    /// The keys for the gateway with that public key.
    pub fn keys(&self, gateway: &PublicKey) -> InviteKeys {
        let extracted = Salt::new(HKDF_SHA256, SALT).extract(&self.0[..]);
        InviteKeys {
            private_key: StaticSecret::from_bytes(*expand(&extracted, b"private key", gateway)),
            preshared_key: PresharedKey::from_bytes(*expand(&extracted, b"preshared key", gateway)),
        }
    }
}

fn expand(extracted: &Prk, label: &[u8], gateway: &PublicKey) -> Zeroizing<[u8; 32]> {
    let mut bytes = Zeroizing::new([0; 32]);
    let info = [label, &gateway.0[..]];
    // 32 bytes are less than the 255 blocks that HKDF gives at most (RFC 5869 section 2.3).
    let filled = extracted.expand(&info, Length32).and_then(|okm| okm.fill(&mut bytes[..]));
    assert!(filled.is_ok(), "HKDF-SHA256 gives 32 bytes");
    bytes
}

impl std::fmt::Debug for InviteSecret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("InviteSecret(hidden)")
    }
}

#[cfg(test)]
mod tests {
    use aws_lc_rs::hmac;

    use super::*;

    const GATEWAY: PublicKey = PublicKey([7; 32]);

    /// RFC 5869 sections 2.2 and 2.3 written out, for an output of one block.
    fn hkdf_slowly(secret: &[u8], info: &[u8]) -> Vec<u8> {
        let tag = |key: &[u8], text: &[u8]| {
            hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), text).as_ref().to_vec()
        };
        tag(&tag(SALT, secret), &[info, &[1]].concat())
    }

    #[test]
    fn the_keys_are_what_the_document_says() {
        let keys = InviteSecret::from_bytes([1; SECRET_BYTES]).keys(&GATEWAY);
        let slowly = |label: &[u8]| hkdf_slowly(&[1; SECRET_BYTES], &[label, &GATEWAY.0].concat());
        let private = StaticSecret::from_bytes(slowly(b"private key").try_into().unwrap());
        assert_eq!(keys.private_key, private);
        assert_eq!(keys.preshared_key.as_bytes().to_vec(), slowly(b"preshared key"));
    }

    #[test]
    fn another_secret_or_gateway_makes_other_keys() {
        let keys = |byte, gateway| {
            let keys = InviteSecret::from_bytes([byte; SECRET_BYTES]).keys(&PublicKey([gateway; 32]));
            (keys.private_key.public_key(), *keys.preshared_key.as_bytes())
        };
        assert_eq!(keys(1, 7), keys(1, 7));
        assert_ne!(keys(1, 7), keys(2, 7));
        assert_ne!(keys(1, 7), keys(1, 8));
        assert_ne!(InviteSecret::generate().unwrap(), InviteSecret::generate().unwrap());
    }

    #[test]
    fn a_secret_never_shows_its_bytes() {
        assert_eq!(format!("{:?}", InviteSecret::from_bytes([7; 16])), "InviteSecret(hidden)");
    }
}

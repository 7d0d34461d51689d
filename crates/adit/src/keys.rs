//! WireGuard's text form of keys, and the verbs that make them: `genkey`, `pubkey`, `genpsk`.

use std::io::{self, Read, Write};
use std::process::ExitCode;

use adit_proto::key::{PresharedKey, PublicKey, StaticSecret};
use anyhow::Context;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use zeroize::Zeroizing;

use crate::private_file;

/// The length of a key as text.
pub const TEXT_BYTES: usize = 44;

/// Why a text is no key. It never repeats the text, which may be a secret with a slip in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// A key has 44 characters.
    #[error("a key has 44 characters, this has {0}")]
    Length(usize),
    /// Not base64, or bits set where a key has none.
    #[error("this is not the base64 of 32 bytes")]
    Encoding,
    /// The all-zero public key belongs to nobody.
    #[error("the key is all zeros")]
    Zero,
}

/// A secret as text in a file or message of ours, erased when dropped.
pub struct SecretText(pub Zeroizing<String>);

impl serde::Serialize for SecretText {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> serde::Deserialize<'de> for SecretText {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text: String = serde::Deserialize::deserialize(deserializer)?;
        Ok(Self(Zeroizing::new(text)))
    }
}

/// A public key from its 44 characters of canonical base64.
///
/// # Errors
/// Anything else, and the all-zero key.
pub fn parse_public(text: &str) -> Result<PublicKey, KeyError> {
    let bytes = decode(text)?;
    if *bytes == [0; 32] { Err(KeyError::Zero) } else { Ok(PublicKey(*bytes)) }
}

/// A private key from its 44 characters of canonical base64, clamped as `wg` does.
///
/// # Errors
/// Anything else.
pub fn parse_private(text: &str) -> Result<StaticSecret, KeyError> {
    Ok(StaticSecret::from_bytes(*decode(text)?))
}

/// A pre-shared key from its 44 characters of canonical base64; all zeros is no key.
///
/// # Errors
/// Anything else.
pub fn parse_preshared(text: &str) -> Result<PresharedKey, KeyError> {
    Ok(PresharedKey::from_bytes(*decode(text)?))
}

/// A public key as 44 characters.
pub fn public_text(key: &PublicKey) -> String {
    STANDARD.encode(key.0)
}

/// A private or pre-shared key as 44 characters, erased when dropped.
pub fn secret_text(bytes: &[u8; 32]) -> Zeroizing<String> {
    Zeroizing::new(STANDARD.encode(bytes))
}

/// A new private key.
///
/// # Errors
/// The system has no randomness to give.
pub fn generate_private() -> anyhow::Result<StaticSecret> {
    Ok(StaticSecret::from_bytes(*random()?))
}

/// A new pre-shared key.
///
/// # Errors
/// The system has no randomness to give.
pub fn generate_preshared() -> anyhow::Result<PresharedKey> {
    Ok(PresharedKey::from_bytes(*random()?))
}

/// `adit genkey`: a new private key on stdout.
pub fn genkey() -> anyhow::Result<ExitCode> {
    print_secret(&secret_text(generate_private()?.as_bytes()))
}

/// `adit genpsk`: a new pre-shared key on stdout.
pub fn genpsk() -> anyhow::Result<ExitCode> {
    print_secret(&secret_text(generate_preshared()?.as_bytes()))
}

/// `adit pubkey`: the public key of the private key on stdin.
pub fn pubkey() -> anyhow::Result<ExitCode> {
    const MOST_BYTES: u64 = 4096;
    let mut text = Zeroizing::new(String::with_capacity(MOST_BYTES as usize));
    io::stdin().take(MOST_BYTES).read_to_string(&mut text).context("cannot read a private key from stdin")?;
    let key =
        parse_private(text.trim()).context("stdin holds no private key; try `adit genkey | adit pubkey`")?;
    crate::print_line(&public_text(&key.public_key()))?;
    Ok(ExitCode::SUCCESS)
}

fn print_secret(text: &str) -> anyhow::Result<ExitCode> {
    private_file::protect_stdout()?;
    let mut line = Zeroizing::new(String::with_capacity(text.len() + 1));
    line.push_str(text);
    line.push('\n');
    let mut stdout = io::stdout();
    stdout
        .write_all(line.as_bytes())
        .and_then(|()| stdout.flush())
        .context("cannot write the key to stdout")?;
    Ok(ExitCode::SUCCESS)
}

fn decode(text: &str) -> Result<Zeroizing<[u8; 32]>, KeyError> {
    if text.len() != TEXT_BYTES {
        return Err(KeyError::Length(text.chars().count()));
    }
    let mut decoded = Zeroizing::new([0; 33]);
    match STANDARD.decode_slice(text, &mut decoded[..]) {
        Ok(32) => {
            let mut key = Zeroizing::new([0; 32]);
            key.copy_from_slice(&decoded[..32]);
            Ok(key)
        }
        _ => Err(KeyError::Encoding),
    }
}

fn random() -> anyhow::Result<Zeroizing<[u8; 32]>> {
    let mut bytes = Zeroizing::new([0; 32]);
    aws_lc_rs::rand::fill(&mut bytes[..]).map_err(|_| anyhow::anyhow!("the system gave no randomness"))?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg=";

    #[test]
    fn keys_survive_their_text_form() {
        let key = parse_public(TEXT).unwrap();
        assert_eq!(public_text(&key), TEXT);
        let private = generate_private().unwrap();
        assert_eq!(parse_private(&secret_text(private.as_bytes())).unwrap(), private);
    }

    #[test]
    fn only_the_canonical_base64_of_32_bytes_is_a_key() {
        assert!(parse_preshared(TEXT).is_ok());
        for (bad, error) in [
            ("", KeyError::Length(0)),
            (&TEXT[..43], KeyError::Length(43)),
            (&format!("{TEXT} "), KeyError::Length(45)),
            ("xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dh=", KeyError::Encoding),
            ("xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8D==", KeyError::Encoding),
            ("xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8DgA", KeyError::Encoding),
            ("xTIBA5rboUvnH4htodjb6e697QjL-Rt1NAB4mZqp8Dg=", KeyError::Encoding),
        ] {
            assert_eq!(parse_preshared(bad).unwrap_err(), error, "{bad:?}");
        }
    }

    #[test]
    fn the_all_zero_public_key_is_refused_and_the_all_zero_preshared_key_is_none() {
        let zero = STANDARD.encode([0; 32]);
        assert_eq!(parse_public(&zero), Err(KeyError::Zero));
        assert!(!parse_preshared(&zero).unwrap().is_set());
    }
}

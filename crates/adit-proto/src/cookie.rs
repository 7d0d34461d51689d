//! Proof of work already done, cheap to check: mac1 (the sender knows our public key), and under load
//! mac2 (the sender receives at the address it sends from). WireGuard paper sections 5.4.4 and 5.4.7.
//!
//! ```text
//! sender                                        receiver under load
//! CookieJar::stamp ── message, mac1 ──────────▶ Mac1Keys::verify
//! CookieJar::consume_reply ◀── cookie reply ─── CookieChecker::create_reply
//! CookieJar::stamp ── message, mac1, mac2 ────▶ CookieChecker::verify_mac2
//! ```

use core::fmt;
use core::net::IpAddr;
use core::time::Duration;
use std::sync::Arc;

use blake2::digest::consts::U16;
use blake2::digest::{Digest, FixedOutput, KeyInit, Update};
use blake2::{Blake2s256, Blake2sMac};
use chacha20poly1305::{AeadInPlace, XChaCha20Poly1305};
use subtle::ConstantTimeEq;
use zeroize::{Zeroize, ZeroizeOnDrop};

use crate::endpoint::{Carrier, Endpoint};
use crate::key::PublicKey;
use crate::reason::DropReason;
use crate::suite::Suite;
use crate::time::Instant;
use crate::wire::{self, COOKIE_REPLY_LEN, CookieReply};

/// How long a cookie, and the secret it is made from, is good for.
pub const COOKIE_LIFETIME: Duration = Duration::from_secs(120);

/// The keys that check mac1 of messages to us, one for each suite. Made from public values only.
#[derive(Clone)]
pub struct Mac1Keys {
    chacha20_poly1305: [u8; 32],
    aes_256_gcm: [u8; 32],
}

impl Mac1Keys {
    /// The keys for messages to the owner of `receiver`.
    pub fn new(receiver: &PublicKey) -> Self {
        let key = |suite: Suite| derive(suite.mac1_label(), receiver);
        Self { chacha20_poly1305: key(Suite::ChaCha20Poly1305), aes_256_gcm: key(Suite::Aes256Gcm) }
    }

    /// Whether mac1 of an initiation or response is right, in constant time. False for a message too
    /// short to have one.
    pub fn verify(&self, suite: Suite, message: &[u8]) -> bool {
        split_macs(message).is_some_and(|(text, mac1, _)| {
            let key = match suite {
                Suite::ChaCha20Poly1305 => &self.chacha20_poly1305,
                Suite::Aes256Gcm => &self.aes_256_gcm,
            };
            mac(key, &[text]).ct_eq(mac1).into()
        })
    }
}

impl fmt::Debug for Mac1Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Mac1Keys")
    }
}

/// The receiver's side: makes cookies that it need not remember, and knows its own again.
///
/// A cookie is a MAC of the source under a secret that lives 120 seconds; so no cookie lives longer,
/// and one handed out late in the life of the secret lives shorter. Its holder then gets another.
pub struct CookieChecker {
    mac1: Mac1Keys,
    chacha20_poly1305: [u8; 32],
    aes_256_gcm: [u8; 32],
    secret: Option<Arc<CookieSecret>>,
}

/// What cookies are made from, and mac2 is checked with.
#[derive(Zeroize, ZeroizeOnDrop)]
pub(crate) struct CookieSecret {
    bytes: [u8; 32],
    #[zeroize(skip)]
    born: Instant,
}

impl CookieChecker {
    /// The checker of the owner of `receiver`, which is our public key.
    pub fn new(receiver: &PublicKey) -> Self {
        let key = |suite: Suite| derive(suite.cookie_label(), receiver);
        Self {
            mac1: Mac1Keys::new(receiver),
            chacha20_poly1305: key(Suite::ChaCha20Poly1305),
            aes_256_gcm: key(Suite::Aes256Gcm),
            secret: None,
        }
    }

    /// The keys that check mac1, to share with the lanes.
    pub fn mac1_keys(&self) -> &Mac1Keys {
        &self.mac1
    }

    /// The secret of the cookies given away last, to share with the lanes.
    pub(crate) fn secret(&self) -> Option<&Arc<CookieSecret>> {
        self.secret.as_ref()
    }

    /// Whether mac2 of an initiation or response was made with a cookie that we gave to `from` at most
    /// 120 seconds ago, in constant time.
    pub fn verify_mac2(&self, message: &[u8], from: &Endpoint, now: Instant) -> bool {
        self.secret.as_ref().is_some_and(|secret| secret.verify_mac2(message, from, now))
    }

    /// Writes the cookie reply to an initiation or response that came from `from`, where `sender` and
    /// `mac1` are that message's. `random` fills its argument with secret random bytes.
    pub fn create_reply(
        &mut self,
        suite: Suite,
        sender: u32,
        mac1: &[u8; 16],
        from: &Endpoint,
        now: Instant,
        random: &mut dyn FnMut(&mut [u8]),
    ) -> [u8; COOKIE_REPLY_LEN] {
        let mut nonce = [0; 24];
        random(&mut nonce);
        let secret = match self.secret.take().filter(|secret| secret.is_fresh(now)) {
            Some(secret) => secret,
            None => Arc::new(CookieSecret::new(now, random)),
        };
        let cookie = self.secret.insert(secret).cookie(from);
        let key = match suite {
            Suite::ChaCha20Poly1305 => &self.chacha20_poly1305,
            Suite::Aes256Gcm => &self.aes_256_gcm,
        };
        wire::cookie_reply(suite, sender, &nonce, &seal_cookie(key, &nonce, mac1, &cookie))
    }
}

impl fmt::Debug for CookieChecker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("CookieChecker(hidden)")
    }
}

impl fmt::Debug for CookieSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("CookieSecret(hidden)")
    }
}

impl CookieSecret {
    fn new(now: Instant, random: &mut dyn FnMut(&mut [u8])) -> Self {
        let mut secret = Self { bytes: [0; 32], born: now };
        random(&mut secret.bytes);
        secret
    }

    /// As [`CookieChecker::verify_mac2`], for lanes.
    pub(crate) fn verify_mac2(&self, message: &[u8], from: &Endpoint, now: Instant) -> bool {
        self.is_fresh(now)
            && split_macs(message).is_some_and(|(text, mac1, mac2)| {
                let cookie = self.cookie(from);
                mac(&cookie.0, &[text, mac1]).ct_eq(mac2).into()
            })
    }

    fn is_fresh(&self, now: Instant) -> bool {
        now.since(self.born) <= COOKIE_LIFETIME
    }

    /// The MAC of: the address (4 or 16 bytes; an IPv4-mapped one as IPv4), the port (2, little-endian),
    /// the carrier (1: 0 UDP, 1 TCP, 2 TLS, 3 and 4 WebSockets on these). The address fixes the length, so no two sources collide.
    fn cookie(&self, from: &Endpoint) -> Cookie {
        let (v4, v6);
        let address: &[u8] = match from.remote.ip().to_canonical() {
            IpAddr::V4(address) => {
                v4 = address.octets();
                &v4
            }
            IpAddr::V6(address) => {
                v6 = address.octets();
                &v6
            }
        };
        let carrier: u8 = match from.carrier {
            Carrier::Udp => 0,
            Carrier::Tcp(_) => 1,
            Carrier::Tls(_) => 2,
            Carrier::Ws(_) => 3,
            Carrier::Wss(_) => 4,
        };
        Cookie(mac(&self.bytes, &[address, &from.remote.port().to_le_bytes(), &[carrier]]))
    }
}

#[derive(Zeroize, ZeroizeOnDrop)]
struct Cookie([u8; 16]);

/// The sender's side, one for each peer: signs our handshake messages and keeps the peer's cookie.
pub struct CookieJar {
    mac1_key: [u8; 32],
    cookie_key: [u8; 32],
    pending_mac1: Option<[u8; 16]>,
    cookie: Option<(Cookie, Instant)>,
}

impl CookieJar {
    /// An empty jar for the peer with the public key `receiver`.
    pub fn new(suite: Suite, receiver: &PublicKey) -> Self {
        Self {
            mac1_key: derive(suite.mac1_label(), receiver),
            cookie_key: derive(suite.cookie_label(), receiver),
            pending_mac1: None,
            cookie: None,
        }
    }

    /// Writes mac1 into the end of an initiation or response, and mac2 if we hold a fresh cookie.
    /// The message becomes the one a cookie reply may answer.
    pub fn stamp<const N: usize>(&mut self, message: &mut [u8; N], now: Instant) {
        const { assert!(N >= 32, "the message has both MACs") };
        let Some((rest, mac2)) = message.split_last_chunk_mut::<16>() else { return };
        let Some((text, mac1)) = rest.split_last_chunk_mut::<16>() else { return };
        *mac1 = mac(&self.mac1_key, &[text]);
        self.pending_mac1 = Some(*mac1);
        self.cookie = self.cookie.take().filter(|(_, received)| now.since(*received) <= COOKIE_LIFETIME);
        *mac2 = match &self.cookie {
            Some((cookie, _)) => mac(&cookie.0, &[rest]),
            None => [0; 16],
        };
    }

    /// Keeps the cookie of a reply to the last message stamped, of which only the first counts.
    /// After an error nothing has changed.
    ///
    /// # Errors
    /// [`DropReason::UnexpectedReply`] when no message awaits a reply, [`DropReason::BadCookie`] when
    /// the reply was not made for that message by the peer.
    pub fn consume_reply(&mut self, reply: &CookieReply<'_>, now: Instant) -> Result<(), DropReason> {
        let mac1 = self.pending_mac1.as_ref().ok_or(DropReason::UnexpectedReply)?;
        let cookie = open_cookie(&self.cookie_key, reply.nonce, mac1, reply.encrypted_cookie)
            .ok_or(DropReason::BadCookie)?;
        self.cookie = Some((cookie, now));
        self.pending_mac1 = None;
        Ok(())
    }

    /// Whether the next message will carry mac2.
    pub fn has_cookie(&self, now: Instant) -> bool {
        self.cookie.as_ref().is_some_and(|(_, received)| now.since(*received) <= COOKIE_LIFETIME)
    }
}

impl fmt::Debug for CookieJar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("CookieJar(hidden)")
    }
}

/// A message as what mac1 covers, mac1, and mac2.
fn split_macs(message: &[u8]) -> Option<(&[u8], &[u8; 16], &[u8; 16])> {
    let (rest, mac2) = message.split_last_chunk()?;
    let (text, mac1) = rest.split_last_chunk()?;
    Some((text, mac1, mac2))
}

/// BLAKE2s-256 of a label and a public key.
fn derive(label: &[u8; 8], receiver: &PublicKey) -> [u8; 32] {
    Blake2s256::new().chain_update(label).chain_update(receiver.0).finalize().into()
}

/// Keyed BLAKE2s-128 (RFC 7693) of the parts one after the other.
#[expect(clippy::expect_used, reason = "a key of at most 32 bytes is always accepted")]
fn mac<const N: usize>(key: &[u8; N], parts: &[&[u8]]) -> [u8; 16] {
    const { assert!(N <= 32, "BLAKE2s takes keys of up to 32 bytes") };
    let mut mac = Blake2sMac::<U16>::new_from_slice(key).expect("the key is short enough");
    parts.iter().for_each(|part| mac.update(part));
    mac.finalize_fixed().into()
}

#[expect(clippy::expect_used, reason = "16 bytes are far below the limit of the cipher")]
fn seal_cookie(key: &[u8; 32], nonce: &[u8; 24], mac1: &[u8; 16], cookie: &Cookie) -> [u8; 32] {
    let mut sealed = [0; 32];
    let (text, tag) = sealed.split_at_mut(16);
    text.copy_from_slice(&cookie.0);
    let computed = XChaCha20Poly1305::new(key.into())
        .encrypt_in_place_detached(nonce.into(), mac1, text)
        .expect("the cookie is short enough");
    tag.copy_from_slice(&computed);
    sealed
}

fn open_cookie(key: &[u8; 32], nonce: &[u8; 24], mac1: &[u8; 16], sealed: &[u8; 32]) -> Option<Cookie> {
    let (text, tag) = sealed.split_first_chunk::<16>()?;
    let mut cookie = Cookie(*text);
    XChaCha20Poly1305::new(key.into())
        .decrypt_in_place_detached(nonce.into(), mac1, &mut cookie.0, tag.into())
        .ok()?;
    Some(cookie)
}

#[cfg(test)]
mod tests;

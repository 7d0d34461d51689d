//! A session's keys: what a lane needs to seal and open transport messages.
//!
//! Shared by every lane through an `Arc`:
//! - atomic: the send counter and block count (lanes reserve), the flags, the forgery count
//! - locked: the replay window, once per authenticated message
//! - everything else is immutable; the engine retires a keypair, nobody revives it

use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crate::aead::{AeadKey, TAG_LEN};
use crate::handshake::SessionKeys;
use crate::path::Path;
use crate::reason::DropReason;
use crate::replay::ReplayWindow;
use crate::suite::Suite;
use crate::time::Instant;
use crate::timers::{REJECT_AFTER_TIME, REKEY_AFTER_TIME};
use crate::wire::{self, TRANSPORT_HEADER_LEN};

/// Messages after which the initiator of a session starts a new one (WireGuard paper section 6.1).
pub const REKEY_AFTER_MESSAGES: u64 = 1 << 60;
/// Messages after which a key must not be used (WireGuard paper section 6.1, with the kernel's window).
pub const REJECT_AFTER_MESSAGES: u64 = u64::MAX - (1 << 13);
/// AES blocks of 16 bytes under one sending key after which either side starts a new session: 64 GiB.
pub const REKEY_AFTER_BLOCKS: u64 = 1 << 32;
/// AES blocks after which a sending key must not be used: 256 GiB.
pub const REJECT_AFTER_BLOCKS: u64 = 1 << 34;

/// What a peer has sent in a session, and what came of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Numbered {
    /// The index that finds the session in messages to us.
    pub session: u32,
    /// Messages that the peer has numbered.
    pub sent: u64,
    /// Messages that came.
    pub received: u64,
}

/// The keys of one session with a peer.
#[derive(Debug)]
pub struct Keypair {
    /// The peer this session is with.
    pub path: Arc<Path>,
    /// The suite of the session.
    pub suite: Suite,
    /// Whether we sent the initiation.
    pub initiator: bool,
    /// The index that finds this keypair in messages to us.
    pub local_index: u32,
    /// When the keys were derived.
    pub created: Instant,
    remote_index: u32,
    sealing: AeadKey,
    opening: AeadKey,
    next_counter: AtomicU64,
    blocks: AtomicU64,
    replay: Mutex<ReplayWindow>,
    confirmed: AtomicBool,
    retired: AtomicBool,
    rekey_noticed: AtomicBool,
}

impl Keypair {
    /// Prepares the keys of a new session. `None` only if the crypto library refuses a 32-byte key.
    pub fn new(keys: &SessionKeys, path: Arc<Path>, now: Instant) -> Option<Self> {
        Some(Self {
            path,
            suite: keys.suite,
            initiator: keys.initiator,
            local_index: keys.local_index,
            created: now,
            remote_index: keys.remote_index,
            sealing: AeadKey::new(keys.suite, &keys.sending)?,
            opening: AeadKey::new(keys.suite, &keys.receiving)?,
            next_counter: AtomicU64::new(0),
            blocks: AtomicU64::new(0),
            replay: Mutex::new(ReplayWindow::default()),
            confirmed: AtomicBool::new(keys.initiator),
            retired: AtomicBool::new(false),
            rekey_noticed: AtomicBool::new(false),
        })
    }

    /// Whether this keypair may still seal and open at `now`.
    pub fn is_usable(&self, now: Instant) -> bool {
        !self.retired.load(Ordering::Acquire) && now.since(self.created) < REJECT_AFTER_TIME
    }

    /// Takes `messages` consecutive counters for messages of together `blocks` AEAD blocks
    /// (see [`blocks_of`]) and returns the first. `None` when the key is used up.
    pub fn reserve(&self, messages: u64, blocks: u64) -> Option<u64> {
        if self.suite == Suite::Aes256Gcm {
            let within = |used: u64| used.checked_add(blocks).filter(|&used| used <= REJECT_AFTER_BLOCKS);
            self.blocks.fetch_update(Ordering::Relaxed, Ordering::Relaxed, within).ok()?;
        }
        let within = |next: u64| next.checked_add(messages).filter(|&next| next <= REJECT_AFTER_MESSAGES);
        self.next_counter.fetch_update(Ordering::Relaxed, Ordering::Relaxed, within).ok()
    }

    /// Seals `message`, laid out as header (16 bytes) | padded packet | tag (16 bytes), under a reserved
    /// `counter`. Writes header, ciphertext and tag; `None` when the buffer is too short.
    pub fn seal(&self, counter: u64, message: &mut [u8]) -> Option<()> {
        let (header, rest) = message.split_first_chunk_mut::<TRANSPORT_HEADER_LEN>()?;
        let (packet, tag) = rest.split_last_chunk_mut::<TAG_LEN>()?;
        *header = wire::transport_header(self.suite, self.remote_index, counter);
        *tag = self.sealing.seal(counter, associated_data(self.suite, header), packet).ok()?;
        Some(())
    }

    /// Opens a transport message in place and returns the (padded) packet inside it.
    ///
    /// # Errors
    /// [`DropReason::ExpiredKeypair`], [`DropReason::BadTag`] or [`DropReason::Replay`]; after an error
    /// the buffer holds nothing of use.
    pub fn open<'m>(
        &self,
        now: Instant,
        counter: u64,
        message: &'m mut [u8],
    ) -> Result<&'m mut [u8], DropReason> {
        if !self.is_usable(now) || counter >= REJECT_AFTER_MESSAGES {
            return Err(DropReason::ExpiredKeypair);
        }
        let (header, rest) =
            message.split_first_chunk_mut::<TRANSPORT_HEADER_LEN>().ok_or(DropReason::MalformedDatagram)?;
        let packet = self
            .opening
            .open(counter, associated_data(self.suite, header), rest)
            .map_err(|_| DropReason::BadTag)?;
        if !self.replay.lock().unwrap_or_else(PoisonError::into_inner).commit(counter) {
            return Err(DropReason::Replay);
        }
        Ok(packet)
    }

    /// Whether a message with this counter was opened before, as far as the replay window knows.
    pub fn has_seen(&self, counter: u64) -> bool {
        self.replay.lock().unwrap_or_else(PoisonError::into_inner).has_seen(counter)
    }

    /// How many messages the peer has numbered so far, by the newest that authenticated, and how many of them came.
    pub fn numbered(&self) -> Numbered {
        let replay = self.replay.lock().unwrap_or_else(PoisonError::into_inner);
        Numbered { session: self.local_index, sent: replay.numbered(), received: replay.accepted() }
    }

    /// Whether [`Self::open`] would accept a message, as far as can be told without changing anything.
    pub fn would_open(&self, now: Instant, counter: u64, message: &[u8]) -> bool {
        if !self.is_usable(now) || counter >= REJECT_AFTER_MESSAGES {
            return false;
        }
        let mut copy = message.to_vec();
        let Some((header, rest)) = copy.split_first_chunk_mut::<TRANSPORT_HEADER_LEN>() else { return false };
        let opens = self.opening.open(counter, associated_data(self.suite, header), rest).is_ok();
        opens && self.replay.lock().unwrap_or_else(PoisonError::into_inner).would_accept(counter)
    }

    /// Whether sending under this key calls for a new session (WireGuard paper section 6.2;
    /// the block limit holds for either role). True once, until [`Self::rekey_lost`].
    pub fn rekey_after_sending(&self, now: Instant) -> bool {
        let due = self.next_counter.load(Ordering::Relaxed) >= REKEY_AFTER_MESSAGES
            || self.blocks.load(Ordering::Relaxed) >= REKEY_AFTER_BLOCKS
            || (self.initiator && now.since(self.created) >= REKEY_AFTER_TIME);
        due && !self.rekey_noticed.load(Ordering::Relaxed)
            && !self.rekey_noticed.swap(true, Ordering::Relaxed)
    }

    /// Whether receiving under this key calls for a new session: only its initiator asks, in time
    /// for one that is all receiving. True once, until [`Self::rekey_lost`].
    pub fn rekey_after_receiving(&self, now: Instant) -> bool {
        let due = self.initiator && now.since(self.created) >= crate::timers::REKEY_BEFORE_REJECT;
        due && !self.rekey_noticed.load(Ordering::Relaxed)
            && !self.rekey_noticed.swap(true, Ordering::Relaxed)
    }

    /// Forgets that a rekey was asked for, because the notice was lost or the handshake gave up.
    pub fn rekey_lost(&self) {
        self.rekey_noticed.store(false, Ordering::Relaxed);
    }

    /// Marks the session as confirmed by its initiator's first message; true the first time.
    pub fn confirm(&self) -> bool {
        !self.confirmed.load(Ordering::Relaxed) && !self.confirmed.swap(true, Ordering::AcqRel)
    }

    /// Whether the initiator is known to have the session: as the initiator, from the start.
    pub fn is_confirmed(&self) -> bool {
        self.confirmed.load(Ordering::Acquire)
    }

    /// Takes back [`Self::confirm`], because its notice was lost.
    pub fn confirm_lost(&self) {
        self.confirmed.store(false, Ordering::Relaxed);
    }

    /// Ends the use of this keypair by every lane.
    pub fn retire(&self) {
        self.retired.store(true, Ordering::Release);
    }

    /// How many messages were sealed, and how many AEAD blocks (AES suite only).
    pub fn used(&self) -> (u64, u64) {
        (self.next_counter.load(Ordering::Relaxed), self.blocks.load(Ordering::Relaxed))
    }

    /// Moves the send counters forward, to reach the limits in tests and simulations.
    pub fn skip_ahead(&self, counter: u64, blocks: u64) {
        self.next_counter.fetch_max(counter, Ordering::Relaxed);
        self.blocks.fetch_max(blocks, Ordering::Relaxed);
    }
}

/// The AEAD blocks that a message of `len` plaintext bytes uses: 16 bytes each, and one for the tag.
pub const fn blocks_of(len: usize) -> u64 {
    (len.div_ceil(16) as u64).saturating_add(1)
}

/// WireGuard authenticates no associated data; the AES suite binds the 16-byte header.
fn associated_data(suite: Suite, header: &[u8; TRANSPORT_HEADER_LEN]) -> &[u8] {
    match suite {
        Suite::ChaCha20Poly1305 => &[],
        Suite::Aes256Gcm => header,
    }
}

const _: () = assert!(size_of::<AtomicU64>() == 8, "the counter is 64 bits wide on every target");

#[cfg(test)]
mod tests;

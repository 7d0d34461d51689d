//! The control half of a peer: keys, handshake under way, keypair slots, timers.

use core::time::Duration;
use std::sync::Arc;

use zeroize::Zeroizing;

use crate::allowance::Limits;
use crate::cookie::CookieJar;
use crate::event::{PeerStatus, Timestamps};
use crate::handshake::{AwaitingResponse, Identity};
use crate::key::PresharedKey;
use crate::keypair::Keypair;
use crate::path::Path;
use crate::pmtu::Search;
use crate::reason::DropReason;
use crate::time::{Instant, UnixTime};
use crate::timers::Timers;

/// What the engine knows of a peer beyond its [`Path`].
#[derive(Debug)]
pub(crate) struct Peer {
    pub(crate) path: Arc<Path>,
    pub(crate) preshared_key: PresharedKey,
    pub(crate) cookies: CookieJar,
    pub(crate) awaiting: Option<AwaitingResponse>,
    pub(crate) keypairs: Keypairs,
    pub(crate) timers: Timers,
    /// The deadline this peer is queued under.
    pub(crate) queued: Option<Instant>,
    /// Initiations sent in this attempt without an answer.
    pub(crate) attempts: u32,
    pub(crate) attempt_started: Option<Instant>,
    pub(crate) last_initiation_sent: Option<Instant>,
    pub(crate) last_initiation_consumed: Option<Instant>,
    pub(crate) timestamps: Timestamps,
    pub(crate) persistent_keepalive_secs: u16,
    pub(crate) last_handshake: Option<(Instant, UnixTime)>,
    pub(crate) handshake_rtt: Option<Duration>,
    pub(crate) search: Search,
    pub(crate) limits: Limits,
    /// Why the peer may not connect now.
    pub(crate) shut: Option<DropReason>,
    static_static: Option<Zeroizing<[u8; 32]>>,
}

impl Peer {
    pub(crate) fn new(path: Arc<Path>) -> Self {
        let cookies = CookieJar::new(path.suite, &path.public_key);
        Self {
            path,
            preshared_key: PresharedKey::default(),
            cookies,
            awaiting: None,
            keypairs: Keypairs::default(),
            timers: Timers::default(),
            queued: None,
            attempts: 0,
            attempt_started: None,
            last_initiation_sent: None,
            last_initiation_consumed: None,
            timestamps: Timestamps::default(),
            persistent_keepalive_secs: 0,
            last_handshake: None,
            handshake_rtt: None,
            search: Search::default(),
            limits: Limits::default(),
            shut: None,
            static_static: None,
        }
    }

    /// The Diffie-Hellman result of the two static keys, computed once per key of ours.
    /// `None` when the peer's key is a low-order point.
    pub(crate) fn static_static(&mut self, identity: &Identity) -> Option<Zeroizing<[u8; 32]>> {
        if self.static_static.is_none() {
            self.static_static = identity.secret.diffie_hellman(&self.path.public_key).ok();
        }
        self.static_static.clone()
    }

    /// Our private key changed.
    pub(crate) fn forget_static_static(&mut self) {
        self.static_static = None;
    }

    pub(crate) fn persistent_keepalive(&self) -> Option<Duration> {
        (self.persistent_keepalive_secs > 0)
            .then(|| Duration::from_secs(u64::from(self.persistent_keepalive_secs)))
    }

    pub(crate) fn status(&self, now: Instant) -> PeerStatus {
        let (rx_bytes, tx_bytes) = self.path.traffic.bytes();
        let (rx_packets, tx_packets) = self.path.traffic.packets();
        PeerStatus {
            public_key: self.path.public_key,
            suite: self.path.suite,
            preshared_key: self.preshared_key.clone(),
            endpoint: self.path.endpoint(),
            heard_at: self.path.heard_at(),
            persistent_keepalive_secs: self.persistent_keepalive_secs,
            allowed_ips: Vec::new(),
            last_handshake: self.last_handshake.map(|(_, wall)| wall),
            last_handshake_at: self.last_handshake.map(|(at, _)| at),
            timestamps: self.timestamps,
            rx_bytes,
            tx_bytes,
            rx_packets,
            tx_packets,
            numbered: self.path.current().map(|keypair| keypair.numbered()),
            has_session: self.path.current().is_some_and(|keypair| keypair.is_usable(now)),
            handshake_rtt: self.handshake_rtt,
            staged: self.path.staged_len(),
            path_mtu: self.path.mtu.limit(),
            allowance: self.path.allowance.status(self.path.traffic.carried()),
        }
    }
}

/// The sessions of a peer, by their part in the rotation (WireGuard paper section 6.3).
#[derive(Debug, Default)]
pub(crate) struct Keypairs {
    /// Sends, and receives.
    pub(crate) current: Option<Arc<Keypair>>,
    /// Receives what is still under way.
    pub(crate) previous: Option<Arc<Keypair>>,
    /// Made as responder; sends once the initiator has confirmed it.
    pub(crate) next: Option<Arc<Keypair>>,
}

impl Keypairs {
    /// Takes a keypair made as initiator into use; returns the ones that end.
    ///
    /// When initiations crossed, both give a session. One side must `yield_to_next`, so that the two
    /// agree on one initiator and do not both renew from then on.
    pub(crate) fn adopt(&mut self, new: Arc<Keypair>, yield_to_next: bool) -> [Option<Arc<Keypair>>; 2] {
        let old_current = self.current.replace(new);
        match self.next.take_if(|_| !yield_to_next) {
            Some(next) => [self.previous.replace(next), old_current],
            None => [core::mem::replace(&mut self.previous, old_current), None],
        }
    }

    /// Keeps a keypair made as responder until it is confirmed; returns the ones that end.
    pub(crate) fn expect(&mut self, new: Arc<Keypair>) -> [Option<Arc<Keypair>>; 2] {
        [self.next.replace(new), self.previous.take()]
    }

    /// Makes the confirmed `keypair` current if it was next; returns whether it was, and what ends.
    pub(crate) fn confirm(&mut self, keypair: &Arc<Keypair>) -> Option<Option<Arc<Keypair>>> {
        let next = self.next.take_if(|next| Arc::ptr_eq(next, keypair))?;
        let old_current = self.current.replace(next);
        Some(core::mem::replace(&mut self.previous, old_current))
    }

    pub(crate) fn take_all(&mut self) -> [Option<Arc<Keypair>>; 3] {
        [self.current.take(), self.previous.take(), self.next.take()]
    }
}

//! What peers may use: limits are taken in here, and access ends and begins by the wall clock.

use core::time::Duration;
use std::sync::Arc;

use super::Engine;
use crate::allowance::Limits;
use crate::event::{Event, PeerId};
use crate::path::Path;
use crate::time::Clock;
use crate::timers::Timer;

/// The wall clock may be set: what depends on it is looked at again after this at the latest.
const REVIEW_INTERVAL: Duration = Duration::from_secs(30);

impl Engine {
    pub(super) fn set_limits(&mut self, clock: Clock, id: PeerId, limits: Limits) {
        let Some(peer) = self.peer_mut(id) else { return };
        peer.path.allowance.set(&limits, peer.shut, peer.path.traffic.carried());
        peer.limits = limits;
        self.review_access(clock, id);
    }

    /// Ends the access of a peer whose time is over: its keys are erased, and no handshake gives new ones.
    pub(super) fn review_access(&mut self, clock: Clock, id: PeerId) {
        let Some(peer) = self.peer_mut(id) else { return };
        let shut = peer.limits.shut_at(clock.wall);
        let depends_on_time = peer.limits.expires_secs.is_some() || peer.limits.schedule.is_some();
        let wait =
            peer.limits.until_change(clock.wall).map_or(REVIEW_INTERVAL, |wait| wait.min(REVIEW_INTERVAL));
        let before = core::mem::replace(&mut peer.shut, shut);
        if depends_on_time {
            peer.timers.set(Timer::Access, clock.now.saturating_add(wait));
        } else {
            peer.timers.stop(Timer::Access);
        }
        if before != shut {
            peer.path.allowance.set_gate(&peer.limits, shut);
            let path = Arc::clone(&peer.path);
            path.keypair_needed_again();
            if shut.is_some() {
                self.end_sessions(id);
                self.drop_staged(&path);
            } else if path.staged_len() > 0 {
                self.need_keypair(clock, &path);
            }
            self.tell(Event::AccessChanged { peer: path.public_key, shut });
        }
        self.requeue(id);
    }

    /// A limit refused what the peer sent: it is told, if it can be without a handshake.
    pub(super) fn tell_refused(&mut self, clock: Clock, path: &Arc<Path>, error: &[u8]) {
        let current = self.id_of(path).and_then(|id| self.peer(id)?.keypairs.current.clone());
        if let Some(keypair) = current.filter(|keypair| keypair.is_usable(clock.now)) {
            self.seal_and_transmit(clock.now, &keypair, error);
        }
    }
}

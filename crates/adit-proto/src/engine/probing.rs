//! The engine's part in finding how large packets may be ([`crate::pmtu`]).

use std::sync::Arc;

use super::Engine;
use crate::event::PeerId;
use crate::path::Path;
use crate::pmtu::{Probe, Search};
use crate::time::{Clock, Instant};
use crate::timers::Timer;

impl Engine {
    pub(super) fn watch_mtu(&mut self, clock: Clock, path: &Arc<Path>) {
        if let Some(id) = self.id_of(path) {
            self.probe_mtu(clock.now, id);
            self.requeue(id);
        }
    }

    /// Asks what there is to ask; every question is a message of the size it asks for.
    pub(super) fn probe_mtu(&mut self, now: Instant, id: PeerId) {
        let top = self.forwarding.padding().mtu_bytes();
        let Some(peer) = self.peer_mut(id) else { return };
        let (path, rtt) = (Arc::clone(&peer.path), peer.handshake_rtt);
        let current = peer.keypairs.current.clone().filter(|keypair| keypair.is_usable(now));
        let Some(keypair) = current else { return path.mtu.notice_lost() };
        let round = peer.search.tick(now, top, rtt, || path.mtu.take_large_sent());
        path.mtu.set_limit(peer.search.limit());
        let Some(round) = round else { return };
        for size in round.sizes {
            self.seal_and_transmit(now, &keypair, &Probe::Ask(size).packet());
        }
        self.set_timer(id, Timer::ProbeMtu, now.saturating_add(round.next));
    }

    pub(super) fn take_probe(&mut self, now: Instant, path: &Arc<Path>, probe: Probe) {
        let top = self.forwarding.padding().mtu_bytes();
        let Some(id) = self.id_of(path) else { return };
        let Some(peer) = self.peer_mut(id) else { return };
        match probe {
            Probe::Ask(len) => {
                let current = peer.keypairs.current.clone().filter(|keypair| keypair.is_usable(now));
                if let Some(keypair) = current {
                    self.seal_and_transmit(now, &keypair, &Probe::Arrived(len).packet());
                }
            }
            Probe::Arrived(len) => {
                if peer.search.arrived(len, top) {
                    path.mtu.set_limit(peer.search.limit());
                }
            }
        }
    }

    /// What was found holds for the way it was found on.
    pub(super) fn forget_mtu(&mut self, id: PeerId) {
        let Some(peer) = self.peer_mut(id) else { return };
        peer.search = Search::default();
        peer.timers.stop(Timer::ProbeMtu);
        peer.path.mtu.set_limit(None);
        peer.path.mtu.notice_lost();
    }
}

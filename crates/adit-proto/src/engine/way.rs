//! Ways to a peer beside its endpoint: trying one, and moving to it with the session.

use std::sync::Arc;

use super::{Attempt, Engine};
use crate::content::{ASIDE_HEADER, Content};
use crate::endpoint::Endpoint;
use crate::event::PeerId;
use crate::keypair::Keypair;
use crate::packet::Ecn;
use crate::time::{Clock, Instant};

impl Engine {
    /// What is sent from here on goes there, where the peer has answered. The peer follows the keepalive; what is under way still arrives.
    pub(super) fn move_peer(&mut self, clock: Clock, id: PeerId, endpoint: Endpoint) {
        let Some(peer) = self.peer_mut(id) else { return };
        peer.path.set_heard(endpoint);
        peer.attempts = 0;
        if peer.keypairs.current.as_ref().is_some_and(|keypair| keypair.is_usable(clock.now)) {
            self.send_keepalive(clock, id);
        } else {
            self.send_initiation(clock, id, Attempt::Elsewhere);
        }
        self.requeue(id);
    }

    /// The same, for a peer that has not answered there, or may know nothing of a session of ours.
    pub(super) fn restart_peer(&mut self, clock: Clock, id: PeerId, endpoint: Endpoint) {
        let Some(peer) = self.peer_mut(id) else { return };
        peer.path.set_endpoint(Some(endpoint));
        peer.attempts = 0;
        self.send_initiation(clock, id, Attempt::Elsewhere);
        self.requeue(id);
    }

    pub(super) fn send_challenge(&mut self, now: Instant, id: PeerId, endpoint: Endpoint, chosen: [u8; 8]) {
        let current = self.peer(id).and_then(|peer| peer.keypairs.current.clone());
        if let Some(keypair) = current.filter(|keypair| keypair.is_usable(now)) {
            self.send_probe(&keypair, endpoint, &Content::challenge(chosen));
        }
    }

    /// A packet aside without a packet: the peer learns what the connection is for.
    pub(super) fn send_word_of_aside(&mut self, now: Instant, id: PeerId, endpoint: Endpoint) {
        let current = self.peer(id).and_then(|peer| peer.keypairs.current.clone());
        if let Some(keypair) = current.filter(|keypair| keypair.is_usable(now)) {
            self.send_probe(&keypair, endpoint, &ASIDE_HEADER);
        }
    }

    pub(super) fn answer_challenge(&mut self, keypair: &Arc<Keypair>, from: Endpoint, chosen: [u8; 8]) {
        if self.id_of(&keypair.path).is_some() {
            self.send_probe(keypair, from, &Content::answer(chosen));
        }
    }

    /// Neither the endpoint nor a timer of the peer takes notice.
    fn send_probe(&mut self, keypair: &Keypair, endpoint: Endpoint, content: &[u8]) {
        let Ok(message) = self.forwarding.seal(keypair, content) else { return };
        keypair.path.traffic.sent(1, message.len() as u64);
        self.transmit(endpoint, Ecn::NotEct, None, message);
    }
}

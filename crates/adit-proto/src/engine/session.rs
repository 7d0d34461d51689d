//! Sessions over their life: taking keypairs into use, keepalives, timers, erasure.

use core::time::Duration;
use std::sync::Arc;

use super::{Attempt, Engine, Queued};
use crate::event::{Event, PeerId};
use crate::handshake::SessionKeys;
use crate::keypair::Keypair;
use crate::packet::{Ecn, InsideHeader};
use crate::path::{Path, Staged};
use crate::reason::DropReason;
use crate::time::{Clock, Instant};
use crate::timers::{
    ERASE_AFTER_TIME, KEEPALIVE_TIMEOUT, MAX_HANDSHAKE_ATTEMPTS, MAX_JITTER, NEW_HANDSHAKE_TIMEOUT, Timer,
};

/// Rounds of sending staged packets before lanes may send beside them.
const MAX_PUBLISH_ROUNDS: u8 = 8;

impl Engine {
    /// A session we initiated: it sends at once, and its first message confirms it to the peer.
    pub(super) fn adopt_session(&mut self, clock: Clock, id: PeerId, keys: &SessionKeys) {
        let Some(keypair) = self.prepare_keypair(clock, id, keys) else { return };
        let ours = self.identity.as_ref().map(|identity| identity.public);
        let Some(peer) = self.peer_mut(id) else { return };
        let yield_to_next = ours.is_some_and(|ours| ours > peer.path.public_key);
        let ended = peer.keypairs.adopt(Arc::clone(&keypair), yield_to_next);
        let path = Arc::clone(&peer.path);
        self.retire(ended);
        self.session_derived(clock.now, id);
        self.handshake_complete(clock, id);
        if path.staged_len() == 0 {
            self.seal_and_transmit(clock.now, &keypair, &[]);
        }
        self.outputs.push_back(Queued::Publish(id, keypair, 0));
    }

    /// A session the peer initiated: it receives now and sends once confirmed.
    pub(super) fn expect_session(&mut self, clock: Clock, id: PeerId, keys: &SessionKeys) {
        let Some(keypair) = self.prepare_keypair(clock, id, keys) else { return };
        let Some(peer) = self.peer_mut(id) else { return };
        peer.path.set_next(Some(Arc::clone(&keypair)));
        let ended = peer.keypairs.expect(keypair);
        self.retire(ended);
        self.session_derived(clock.now, id);
    }

    /// The first message under a keypair made as responder has come.
    pub(super) fn confirm_session(&mut self, clock: Clock, keypair: &Arc<Keypair>) {
        let Some(id) = self.id_of(&keypair.path) else { return };
        let Some(peer) = self.peer_mut(id) else { return };
        let Some(ended) = peer.keypairs.confirm(keypair) else { return };
        self.retire([ended]);
        self.handshake_complete(clock, id);
        if let Some(endpoint) = keypair.path.endpoint() {
            let peer = keypair.path.public_key;
            self.tell(Event::SessionEstablished { peer, endpoint, handshake_time: None });
        }
        self.outputs.push_back(Queued::Publish(id, Arc::clone(keypair), 0));
    }

    /// Sends what waits for `keypair`; when nothing does any more, the lanes may use it.
    /// A lane that stages faster than we send is let through after some rounds.
    pub(super) fn publish_keypair(&mut self, now: Instant, id: PeerId, keypair: &Arc<Keypair>, round: u8) {
        let is_current = self
            .peer(id)
            .and_then(|peer| peer.keypairs.current.as_ref())
            .is_some_and(|current| Arc::ptr_eq(current, keypair));
        if !is_current {
            return;
        }
        let path = &keypair.path;
        let staged = path.take_staged_or_publish(keypair, round >= MAX_PUBLISH_ROUNDS);
        path.set_next(self.peer(id).and_then(|peer| peer.keypairs.next.clone()));
        path.keypair_needed_again();
        if staged.is_empty() {
            return;
        }
        let later = core::mem::take(&mut self.outputs);
        for packet in staged {
            self.seal_and_transmit(now, keypair, &packet);
        }
        if round < MAX_PUBLISH_ROUNDS {
            self.outputs.push_back(Queued::Publish(id, Arc::clone(keypair), round.saturating_add(1)));
        }
        self.outputs.extend(later);
    }

    pub(super) fn need_keypair(&mut self, clock: Clock, path: &Arc<Path>) {
        path.keypair_needed_again();
        let Some(id) = self.id_of(path) else { return };
        let current = self.peer(id).and_then(|peer| peer.keypairs.current.clone());
        match current.filter(|keypair| keypair.is_usable(clock.now)) {
            Some(keypair) => self.outputs.push_back(Queued::Publish(id, keypair, 0)),
            None => {
                path.notice_need_keypair();
                self.send_initiation(clock, id, Attempt::First);
            }
        }
    }

    pub(super) fn expect_reply(&mut self, now: Instant, path: &Arc<Path>) {
        let Some(id) = self.id_of(path) else { return };
        let jitter = self.jitter();
        path.activity.awaiting_timer_runs_on();
        self.set_timer(
            id,
            Timer::NewHandshake,
            now.saturating_add(NEW_HANDSHAKE_TIMEOUT).saturating_add(jitter),
        );
    }

    pub(super) fn owe_reply(&mut self, now: Instant, path: &Arc<Path>) {
        let Some(id) = self.id_of(path) else { return };
        path.activity.owing_timer_runs_on();
        self.set_timer(id, Timer::SendKeepalive, now.saturating_add(KEEPALIVE_TIMEOUT));
    }

    pub(super) fn fire(&mut self, clock: Clock, id: PeerId, timer: Timer) {
        match timer {
            Timer::RetransmitHandshake => self.retransmit_handshake(clock, id),
            Timer::SendKeepalive => self.answer_with_keepalive(clock, id),
            Timer::NewHandshake => self.handshake_for_lack_of_reply(clock, id),
            Timer::EraseKeys => self.erase_keys(id),
            Timer::PersistentKeepalive => self.persistent_keepalive_due(clock, id),
            Timer::ProbeMtu => self.probe_mtu(clock.now, id),
            Timer::Access => self.review_access(clock, id),
        }
    }

    fn retransmit_handshake(&mut self, clock: Clock, id: PeerId) {
        let Some(peer) = self.peer_mut(id) else { return };
        let path = Arc::clone(&peer.path);
        peer.attempts = peer.attempts.saturating_add(1);
        let attempts = peer.attempts;
        if attempts < MAX_HANDSHAKE_ATTEMPTS {
            forget_sticky_source(&path);
            self.send_initiation(clock, id, Attempt::Retry);
            if attempts > 1 {
                self.tell(Event::EndpointSilent { peer: path.public_key, attempts });
            }
            return;
        }
        peer.attempt_started = None;
        peer.timers.stop(Timer::SendKeepalive);
        path.activity.stop_owing();
        if !peer.timers.is_set(Timer::EraseKeys) {
            peer.timers.set(Timer::EraseKeys, clock.now.saturating_add(ERASE_AFTER_TIME));
        }
        let rearm = peer.persistent_keepalive();
        self.drop_awaiting(id);
        path.keypair_needed_again();
        self.drop_staged(&path);
        if let Some(keypair) = path.current() {
            keypair.rekey_lost();
        }
        if let Some(interval) = rearm {
            self.set_timer(id, Timer::PersistentKeepalive, clock.now.saturating_add(interval));
        }
        self.tell(Event::HandshakeGaveUp { peer: path.public_key });
    }

    fn answer_with_keepalive(&mut self, clock: Clock, id: PeerId) {
        let Some(path) = self.peer(id).map(|peer| Arc::clone(&peer.path)) else { return };
        let Some(since) = path.activity.owing_timer_ended() else { return };
        let due = since.saturating_add(KEEPALIVE_TIMEOUT);
        if due > clock.now {
            path.activity.owing_timer_runs_on();
            self.set_timer(id, Timer::SendKeepalive, due);
            return;
        }
        path.activity.stop_owing();
        self.send_keepalive(clock, id);
        if path.activity.take_owing_another() {
            path.activity.owe_since(clock.now);
            path.activity.owing_timer_runs_on();
            self.set_timer(id, Timer::SendKeepalive, clock.now.saturating_add(KEEPALIVE_TIMEOUT));
        }
    }

    fn handshake_for_lack_of_reply(&mut self, clock: Clock, id: PeerId) {
        let Some(path) = self.peer(id).map(|peer| Arc::clone(&peer.path)) else { return };
        let Some(since) = path.activity.awaiting_timer_ended() else { return };
        let due = since.saturating_add(NEW_HANDSHAKE_TIMEOUT);
        if due > clock.now {
            path.activity.awaiting_timer_runs_on();
            let jitter = self.jitter();
            self.set_timer(id, Timer::NewHandshake, due.saturating_add(jitter));
            return;
        }
        path.activity.stop_awaiting();
        forget_sticky_source(&path);
        self.send_initiation(clock, id, Attempt::First);
    }

    /// A handshake under way is younger than every key erased here, and packets may wait for it.
    fn erase_keys(&mut self, id: PeerId) {
        if self.peer(id).is_some_and(|peer| peer.timers.is_set(Timer::RetransmitHandshake)) {
            self.end_keypairs(id);
        } else {
            self.end_sessions(id);
        }
        if let Some(peer) = self.peer(id).map(|peer| peer.path.public_key) {
            self.tell(Event::KeysErased { peer });
        }
    }

    fn persistent_keepalive_due(&mut self, clock: Clock, id: PeerId) {
        let Some(peer) = self.peer(id) else { return };
        let Some(interval) = peer.persistent_keepalive() else { return };
        let quiet_until = peer.path.activity.last_traversal().map(|last| last.saturating_add(interval));
        match quiet_until.filter(|&until| until > clock.now) {
            Some(until) => self.set_timer(id, Timer::PersistentKeepalive, until),
            None => self.send_persistent_keepalive(clock, id),
        }
    }

    pub(super) fn send_persistent_keepalive(&mut self, clock: Clock, id: PeerId) {
        self.send_keepalive(clock, id);
        self.arm_persistent_keepalive(clock.now, id);
    }

    pub(super) fn arm_persistent_keepalive(&mut self, now: Instant, id: PeerId) {
        if let Some(interval) = self.peer(id).and_then(|peer| peer.persistent_keepalive()) {
            self.set_timer(id, Timer::PersistentKeepalive, now.saturating_add(interval));
        }
    }

    /// Our address or the way changed: the peer hears from us at once, under the old keys where they still count, and by
    /// a handshake where it has lost them.
    pub(super) fn reconnect(&mut self, clock: Clock, id: PeerId) {
        let Some(path) = self.peer(id).map(|peer| Arc::clone(&peer.path)) else { return };
        forget_sticky_source(&path);
        self.forget_mtu(id);
        self.send_keepalive(clock, id);
        self.send_initiation(clock, id, Attempt::First);
        self.requeue(id);
    }

    /// Sends an empty message, or starts a handshake that will.
    pub(super) fn send_keepalive(&mut self, clock: Clock, id: PeerId) {
        let Some(peer) = self.peer(id) else { return };
        let path = Arc::clone(&peer.path);
        if path.endpoint().is_none() || self.identity.is_none() || peer.shut.is_some() {
            return;
        }
        match peer.keypairs.current.clone().filter(|keypair| keypair.is_usable(clock.now)) {
            Some(keypair) => {
                self.seal_and_transmit(clock.now, &keypair, &[]);
                if keypair.rekey_after_sending(clock.now) {
                    self.send_initiation(clock, id, Attempt::First);
                }
            }
            None => {
                if path.stage(clock.now, &[]) == Staged::OldestDropped {
                    self.forwarding.drops.count(DropReason::StagedOverflow);
                }
                self.need_keypair(clock, &path);
            }
        }
    }

    /// Seals one inside packet (or keepalive) and queues the datagram.
    pub(super) fn seal_and_transmit(&mut self, now: Instant, keypair: &Arc<Keypair>, packet: &[u8]) {
        let path = &keypair.path;
        let Some(endpoint) = path.endpoint() else {
            self.forwarding.drops.count(DropReason::NoEndpoint);
            return;
        };
        let Ok(message) = self.forwarding.seal(keypair, packet) else { return };
        path.traffic.sent(1, message.len() as u64);
        let inside = InsideHeader::parse(packet).ok();
        let ecn = inside.map_or(Ecn::NotEct, |header| header.ecn);
        let hop_limit = inside.and_then(|header| header.outside_hop_limit()).flatten();
        if inside.is_none() {
            path.activity.packet_sent(now);
        } else if path.activity.data_sent(now) {
            let path = Arc::clone(path);
            self.expect_reply(now, &path);
        }
        self.transmit(endpoint, ecn, hop_limit, message);
    }

    fn session_derived(&mut self, now: Instant, id: PeerId) {
        self.set_timer(id, Timer::EraseKeys, now.saturating_add(ERASE_AFTER_TIME));
        let Some(peer) = self.peer(id) else { return };
        if peer.persistent_keepalive_secs > 0 && !peer.timers.is_set(Timer::PersistentKeepalive) {
            self.arm_persistent_keepalive(now, id);
        }
    }

    fn handshake_complete(&mut self, clock: Clock, id: PeerId) {
        let Some(peer) = self.peer_mut(id) else { return };
        peer.timers.stop(Timer::RetransmitHandshake);
        peer.attempts = 0;
        peer.attempt_started = None;
        peer.last_handshake = Some((clock.now, clock.wall));
        self.requeue(id);
    }

    /// Ends every session of a peer and the handshake under way.
    pub(super) fn end_sessions(&mut self, id: PeerId) {
        self.drop_awaiting(id);
        if let Some(peer) = self.peer_mut(id) {
            peer.path.keypair_needed_again();
            peer.timers.stop(Timer::RetransmitHandshake);
            peer.attempts = 0;
            peer.attempt_started = None;
        }
        self.end_keypairs(id);
    }

    fn end_keypairs(&mut self, id: PeerId) {
        let Some(peer) = self.peer_mut(id) else { return };
        let ended = peer.keypairs.take_all();
        peer.path.clear_keypairs();
        peer.timers.stop(Timer::EraseKeys);
        self.requeue(id);
        self.retire(ended);
    }

    /// Drops the packets that wait for a session which will not come.
    pub(super) fn drop_staged(&mut self, path: &Path) {
        self.forwarding.drops.add(DropReason::HandshakeTimeout, path.purge_staged() as u64);
    }

    /// Ends keypairs: no lane finds them any more, and lanes that hold one refuse it.
    fn retire<const N: usize>(&mut self, ended: [Option<Arc<Keypair>>; N]) {
        for keypair in ended.into_iter().flatten() {
            keypair.retire();
            self.receivers.release(keypair.local_index);
        }
    }

    pub(super) fn jitter(&mut self) -> Duration {
        let random = u64::from_le_bytes(self.random_bytes());
        let millis = random.checked_rem(MAX_JITTER.as_millis() as u64).unwrap_or(0);
        Duration::from_millis(millis)
    }
}

/// Lets the host choose the source address anew: the old choice may be why nobody answers.
fn forget_sticky_source(path: &Path) {
    if let Some(endpoint) = path.endpoint() {
        path.forget_source(&endpoint);
    }
}

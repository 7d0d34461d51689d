//! Handshake messages: creating and consuming initiations, responses and cookie replies.

use std::sync::Arc;

use super::{Attempt, Engine};
use crate::endpoint::Endpoint;
use crate::event::{Event, HandshakeDatagram, PeerId};
use crate::handshake::{AwaitingResponse, OpenedInitiation, SessionKeys};
use crate::key::StaticSecret;
use crate::keypair::Keypair;
use crate::limit::Verdict;
use crate::packet::Ecn;
use crate::reason::DropReason;
use crate::suite::Suite;
use crate::time::{Clock, Tai64n};
use crate::timers::{INITIATION_INTERVAL, REKEY_TIMEOUT, Timer};
use crate::wire::{CookieReply, Initiation, Message, Response};

impl Engine {
    /// Sends an initiation, unless an attempt is under way or one went out less than [`REKEY_TIMEOUT`] ago:
    /// then the retransmit timer sees to it. Whoever asks again does not prolong an attempt.
    pub(super) fn send_initiation(&mut self, clock: Clock, id: PeerId, attempt: Attempt) {
        let Some(identity) = self.identity.clone() else { return };
        let Some(peer) = self.peer_mut(id) else { return };
        let Some(endpoint) = peer.path.endpoint() else { return };
        if peer.shut.is_some() {
            return;
        }
        let retransmit = peer.timers.deadline(Timer::RetransmitHandshake);
        if attempt == Attempt::First && retransmit.is_some_and(|deadline| deadline > clock.now) {
            return;
        }
        if attempt != Attempt::Retry && peer.attempt_started.is_none() {
            peer.attempts = 0;
        }
        let recent = |sent: &_| clock.now.since(*sent) < REKEY_TIMEOUT && attempt != Attempt::Elsewhere;
        if let Some(sent) = peer.last_initiation_sent.filter(recent) {
            peer.attempt_started.get_or_insert(clock.now);
            self.set_timer(id, Timer::RetransmitHandshake, sent.saturating_add(REKEY_TIMEOUT));
            return;
        }
        peer.attempt_started.get_or_insert(clock.now);
        let Some(ss) = peer.static_static(&identity) else { return };
        let (suite, remote) = (peer.path.suite, peer.path.public_key);
        let last = peer.timestamps.sent.unwrap_or(Tai64n::ZERO);
        self.drop_awaiting(id);
        let timestamp = Tai64n::from_unix(clock.wall).next_after(last);
        let ephemeral = StaticSecret::from_bytes(self.random_bytes());
        let index = self.reserve_index(id);
        let created =
            AwaitingResponse::create_initiation(suite, &identity, &remote, &ss, ephemeral, index, timestamp);
        let Ok((awaiting, mut message)) = created else {
            self.receivers.release(index);
            return;
        };
        let jitter = self.jitter();
        let Some(peer) = self.peers.get_mut(id.0 as usize).and_then(Option::as_mut) else { return };
        self.receivers.await_reply(index, Arc::clone(&peer.path));
        peer.cookies.stamp(&mut message, clock.now);
        peer.awaiting = Some(awaiting);
        peer.last_initiation_sent = Some(clock.now);
        peer.timestamps.sent = Some(timestamp);
        peer.path.traffic.sent(1, message.len() as u64);
        peer.path.activity.packet_sent(clock.now);
        peer.timers
            .set(Timer::RetransmitHandshake, clock.now.saturating_add(REKEY_TIMEOUT).saturating_add(jitter));
        self.requeue(id);
        self.transmit(endpoint, Ecn::NotEct, None, message.to_vec());
    }

    /// Takes in a handshake message that a lane let through.
    pub(super) fn consume(&mut self, clock: Clock, datagram: &HandshakeDatagram) {
        let bytes = datagram.bytes.get(..usize::from(datagram.len)).unwrap_or_default();
        let consumed = Message::parse(bytes).and_then(|(suite, message)| match message {
            Message::Initiation(initiation) => {
                self.admit(clock, suite, &datagram.from, initiation.sender, initiation.mac1, bytes)?;
                self.consume_initiation(clock, suite, &datagram.from, &initiation)
            }
            Message::Response(response) => {
                self.admit(clock, suite, &datagram.from, response.sender, response.mac1, bytes)?;
                self.consume_response(clock, suite, &datagram.from, &response)
            }
            Message::CookieReply(reply) => self.consume_cookie(clock, suite, &reply),
            Message::Transport(_) => Ok(()),
        });
        if let Err(reason) = consumed {
            self.forwarding.drops.count(reason);
        }
    }

    /// Spends from the budgets, before any Diffie-Hellman; under load asks for a cookie.
    fn admit(
        &mut self,
        clock: Clock,
        suite: Suite,
        from: &Endpoint,
        sender: u32,
        mac1: &[u8; 16],
        message: &[u8],
    ) -> Result<(), DropReason> {
        let Some(cookies) = &mut self.cookies else { return Err(DropReason::BadMac1) };
        match self.limiter.decide(from, clock.now, || cookies.verify_mac2(message, from, clock.now)) {
            Verdict::Admit => Ok(()),
            Verdict::Drop(reason) => Err(reason),
            Verdict::RequireCookie => {
                let reply = cookies.create_reply(suite, sender, mac1, from, clock.now, &mut self.random);
                let published = self.forwarding.cookie_secret.load();
                if published.as_ref().map(Arc::as_ptr) != cookies.secret().map(Arc::as_ptr) {
                    self.forwarding.cookie_secret.store(cookies.secret().cloned());
                }
                self.transmit(*from, Ecn::NotEct, None, reply.to_vec());
                Err(DropReason::CookieRequired)
            }
        }
    }

    fn consume_initiation(
        &mut self,
        clock: Clock,
        suite: Suite,
        from: &Endpoint,
        message: &Initiation<'_>,
    ) -> Result<(), DropReason> {
        let identity = self.identity.clone().ok_or(DropReason::BadMac1)?;
        let opened =
            OpenedInitiation::open(suite, &identity, message).map_err(|_| DropReason::BadHandshake)?;
        let id = *self.by_key.get(&opened.remote).ok_or(DropReason::UnknownPeer)?;
        self.review_access(clock, id);
        let peer = self.peer_mut(id).ok_or(DropReason::UnknownPeer)?;
        if peer.path.suite != suite {
            return Err(DropReason::SuiteMismatch);
        }
        if let Some(reason) = peer.shut {
            return Err(reason);
        }
        let ss = peer.static_static(&identity).ok_or(DropReason::BadHandshake)?;
        let initiation = opened.authenticate(&ss).map_err(|_| DropReason::BadHandshake)?;
        if peer.timestamps.received.is_some_and(|latest| initiation.timestamp <= latest) {
            return Err(DropReason::StaleTimestamp);
        }
        if peer.last_initiation_consumed.is_some_and(|last| clock.now.since(last) < INITIATION_INTERVAL) {
            return Err(DropReason::InitiationFlood);
        }
        peer.timestamps.received = Some(initiation.timestamp);
        peer.last_initiation_consumed = Some(clock.now);
        self.limiter.was_from_peer(from);
        let peer = self.peer_mut(id).ok_or(DropReason::UnknownPeer)?;
        let psk = peer.preshared_key.clone();
        let path = Arc::clone(&peer.path);
        path.traffic.received(1, crate::wire::INITIATION_LEN as u64);
        path.activity.packet_received(clock.now);
        self.roam(&path, *from);

        let ephemeral = StaticSecret::from_bytes(self.random_bytes());
        let index = self.reserve_index(id);
        let Ok((keys, mut response)) = initiation.respond(&psk, ephemeral, index) else {
            self.receivers.release(index);
            return Err(DropReason::BadHandshake);
        };
        self.expect_session(clock, id, &keys);
        if let Some(peer) = self.peer_mut(id) {
            peer.cookies.stamp(&mut response, clock.now);
        }
        path.traffic.sent(1, response.len() as u64);
        path.activity.packet_sent(clock.now);
        self.transmit(*from, Ecn::NotEct, None, response.to_vec());
        Ok(())
    }

    fn consume_response(
        &mut self,
        clock: Clock,
        suite: Suite,
        from: &Endpoint,
        message: &Response<'_>,
    ) -> Result<(), DropReason> {
        let identity = self.identity.clone().ok_or(DropReason::BadMac1)?;
        let id = self.receivers.owner(message.receiver).ok_or(DropReason::UnexpectedReply)?;
        let peer = self.peer_mut(id).ok_or(DropReason::UnexpectedReply)?;
        if peer.path.suite != suite {
            return Err(DropReason::SuiteMismatch);
        }
        let awaiting = peer
            .awaiting
            .as_ref()
            .filter(|awaiting| awaiting.local_index() == message.receiver)
            .ok_or(DropReason::UnexpectedReply)?;
        let keys = awaiting
            .consume_response(&identity, &peer.preshared_key, message)
            .map_err(|_| DropReason::BadHandshake)?;
        peer.awaiting = None;
        self.limiter.was_from_peer(from);
        let peer = self.peer_mut(id).ok_or(DropReason::UnexpectedReply)?;
        let rtt = peer.last_initiation_sent.map(|sent| clock.now.since(sent));
        let handshake_time = peer.attempt_started.take().map(|start| clock.now.since(start));
        peer.handshake_rtt = rtt;
        let path = Arc::clone(&peer.path);
        self.receivers.stop_awaiting(message.receiver);
        path.traffic.received(1, crate::wire::RESPONSE_LEN as u64);
        path.activity.packet_received(clock.now);
        self.roam(&path, *from);
        self.adopt_session(clock, id, &keys);
        self.tell(Event::SessionEstablished { peer: path.public_key, endpoint: *from, handshake_time });
        Ok(())
    }

    /// A cookie reply proves nothing about its sender: it moves no endpoint and no timer.
    fn consume_cookie(
        &mut self,
        clock: Clock,
        suite: Suite,
        message: &CookieReply<'_>,
    ) -> Result<(), DropReason> {
        let id = self.receivers.owner(message.receiver).ok_or(DropReason::UnexpectedReply)?;
        let peer = self.peer_mut(id).ok_or(DropReason::UnexpectedReply)?;
        if peer.path.suite != suite {
            return Err(DropReason::SuiteMismatch);
        }
        peer.cookies.consume_reply(message, clock.now)
    }

    /// Forgets the initiation under way and frees its index.
    pub(super) fn drop_awaiting(&mut self, id: PeerId) {
        let Some(awaiting) = self.peer_mut(id).and_then(|peer| peer.awaiting.take()) else { return };
        self.receivers.release(awaiting.local_index());
    }

    /// Prepares the lanes' half of a session. On failure its index is free again.
    pub(super) fn prepare_keypair(
        &mut self,
        clock: Clock,
        id: PeerId,
        keys: &SessionKeys,
    ) -> Option<Arc<Keypair>> {
        let path = self.peer(id).map(|peer| Arc::clone(&peer.path));
        let keypair = path.and_then(|path| Keypair::new(keys, path, clock.now));
        let Some(keypair) = keypair.map(Arc::new) else {
            self.receivers.release(keys.local_index);
            return None;
        };
        self.receivers.open_session(&keypair);
        Some(keypair)
    }
}

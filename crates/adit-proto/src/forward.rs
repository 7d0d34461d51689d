//! The data half: what a lane asks for each packet.
//!
//! ```text
//! outbound   inside packet ─ depart: route ▸ path ▸ keypair ─ reserve ─ seal ─▶ datagram ─ sent
//!                                     └─ no session ─ stage ─▶ Notice::NeedKeypair
//! inbound    datagram ─ arrive: type ▸ index ▸ keypair ▸ open ▸ replay ▸ source ─▶ inside packet
//!                         └─ handshake with valid mac1 ─▶ Notice::Handshake
//! ```
//!
//! Everything here takes `&self` and is shared by every lane. The engine is the only writer of the
//! published state: routes and paths, receiver indices, mac1 keys; but for a peer's endpoint, which follows the
//! packet that the lane has just opened ([`crate::path`]).

mod batch;
mod stream;

use core::net::IpAddr;
use core::ops::Range;
use core::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::Arc;

use arc_swap::{ArcSwap, ArcSwapOption};

use crate::allowance::Direction;
use crate::allowed_ips::Routes;
use crate::content::Content;
use crate::cookie::{CookieSecret, Mac1Keys};
use crate::endpoint::{Carrier, Endpoint};
use crate::event::{HandshakeDatagram, Notice};
use crate::icmp;
use crate::index::IndexTable;
use crate::key::PublicKey;
use crate::keypair::{Keypair, blocks_of};
use crate::packet::{Ecn, InsideHeader};
use crate::path::{Path, Staged};
use crate::pmtu::{self, Probe};
use crate::reason::{DropCounters, DropReason};
use crate::suite::Suite;
use crate::time::Instant;
use crate::unfinished::{self, Place};
use crate::wire::{Message, TRANSPORT_HEADER_LEN, TRANSPORT_MIN_LEN, TransportHeader};

pub use self::batch::Batch;
pub use crate::inbound::{Arrived, Checksum, FromStream, Inbound};
pub use crate::padding::Padding;

const DEFAULT_MTU_BYTES: usize = 1420;

/// What the engine publishes and the lanes read.
#[derive(Debug)]
pub struct Forwarding {
    /// Packets dropped, by reason.
    pub drops: DropCounters,
    pub(crate) table: ArcSwap<RouteTable>,
    keypairs: Arc<IndexTable<Keypair>>,
    handshakes: Arc<IndexTable<Path>>,
    pub(crate) mac1_keys: ArcSwapOption<Mac1Keys>,
    pub(crate) cookie_secret: ArcSwapOption<CookieSecret>,
    mtu_bytes: AtomicUsize,
    own_addresses: ArcSwap<Vec<IpAddr>>,
}

/// Cryptokey routing: the longest prefix names a slot, the slot names a path.
#[derive(Debug, Default)]
pub(crate) struct RouteTable {
    pub(crate) routes: Routes,
    pub(crate) paths: Vec<Option<Arc<Path>>>,
}

impl RouteTable {
    fn path(&self, address: IpAddr) -> Option<&Arc<Path>> {
        self.paths.get(self.routes.lookup(address)? as usize)?.as_ref()
    }
}

/// What an opened message holds.
enum Opened<'m> {
    /// An inside packet, with its padding; or, without a header, what may be a superpacket.
    Packet(&'m mut [u8], Option<InsideHeader>, Checksum),
    /// An inside packet, with its padding, that came beside the others; or nothing.
    Aside(&'m mut [u8]),
    /// Nothing for the inside.
    Nothing,
}

/// What to do with an inside packet.
#[derive(Debug)]
pub enum Departure {
    /// Seal it with this keypair and send it to this endpoint.
    Seal(Arc<Keypair>, Endpoint),
    /// There is no session: [`Forwarding::stage`] each packet.
    Stage(Arc<Path>),
    /// Drop it; already counted. The sender may be told by ICMP.
    Drop(DropReason),
}

impl Forwarding {
    pub(crate) fn new(keypairs: Arc<IndexTable<Keypair>>, handshakes: Arc<IndexTable<Path>>) -> Self {
        Self {
            drops: DropCounters::default(),
            table: ArcSwap::default(),
            keypairs,
            handshakes,
            mac1_keys: ArcSwapOption::empty(),
            cookie_secret: ArcSwapOption::empty(),
            mtu_bytes: AtomicUsize::new(DEFAULT_MTU_BYTES),
            own_addresses: ArcSwap::default(),
        }
    }

    /// The peer whose allowed IPs hold `address`: only it may send from there.
    pub fn path_of(&self, address: IpAddr) -> Option<Arc<Path>> {
        self.table.load().path(address).cloned()
    }

    /// The path of a peer. It looks at every peer: for those that have few.
    pub fn path_of_peer(&self, peer: &PublicKey) -> Option<Arc<Path>> {
        self.table.load().paths.iter().flatten().find(|path| path.public_key == *peer).cloned()
    }

    /// The route of an inside packet or superpacket.
    pub fn depart(&self, now: Instant, header: &InsideHeader) -> Departure {
        let table = self.table.load();
        let Some(path) = table.path(header.destination) else {
            return self.refuse(DropReason::NoRoute);
        };
        if !path.allowance.is_open()
            && let Err(reason) = self.admit(now, path, Direction::Outbound, header)
        {
            return self.refuse(reason);
        }
        let Some(endpoint) = path.endpoint() else {
            return self.refuse(DropReason::NoEndpoint);
        };
        if header.outside_hop_limit().is_none() {
            return self.refuse(DropReason::TooNested);
        }
        match path.current() {
            Some(keypair) if keypair.is_usable(now) => {
                Departure::Seal(path.confirmed_next(now).unwrap_or(keypair), endpoint)
            }
            _ => Departure::Stage(Arc::clone(path)),
        }
    }

    /// Keeps `packet` for a peer without session and asks the engine for one.
    /// False when a session came in the meantime: ask [`Self::depart`] again.
    pub fn stage(&self, now: Instant, path: &Arc<Path>, packet: &[u8], notices: &mut Vec<Notice>) -> bool {
        match path.stage(now, packet) {
            Staged::SessionReady => return false,
            Staged::OldestDropped => self.drops.count(DropReason::StagedOverflow),
            Staged::Waiting => {}
        }
        if path.notice_need_keypair() {
            notices.push(Notice::NeedKeypair(Arc::clone(path)));
        }
        true
    }

    /// Seals one inside packet, or the nothing of a keepalive, as a message of its own. For whoever sends one at a time;
    /// a lane seals to the place on the wire.
    ///
    /// # Errors
    /// [`DropReason::KeyExhausted`], already counted.
    pub fn seal(&self, keypair: &Keypair, packet: &[u8]) -> Result<Vec<u8>, DropReason> {
        let padded_len = self.padding().padded_len(packet.len());
        let mut message = Vec::with_capacity(padded_len.saturating_add(TRANSPORT_MIN_LEN));
        message.resize(TRANSPORT_HEADER_LEN, 0);
        message.extend_from_slice(packet);
        message.resize(padded_len.saturating_add(TRANSPORT_MIN_LEN), 0);
        let counter = keypair.reserve(1, blocks_of(padded_len));
        match counter.and_then(|counter| keypair.seal(counter, &mut message)) {
            Some(()) => Ok(message),
            None => {
                self.drops.count(DropReason::KeyExhausted);
                Err(DropReason::KeyExhausted)
            }
        }
    }

    /// What the largest packet may be, when one of `len` bytes is too large for the way to the peer of `keypair`.
    pub fn too_large(&self, keypair: &Keypair, len: usize, notices: &mut Vec<Notice>) -> Option<usize> {
        let path = &keypair.path;
        if len <= pmtu::SMALLEST || keypair.suite != Suite::Aes256Gcm {
            return None;
        }
        if path.mtu.large_sent() {
            notices.push(Notice::LargeSent(Arc::clone(path)));
        }
        if !path.mtu.is_too_large(len) {
            return None;
        }
        self.drops.count(DropReason::TooBig);
        path.mtu.limit()
    }

    /// Accounts for `messages` sealed data messages of together `bytes`.
    pub fn sent(
        &self,
        now: Instant,
        keypair: &Arc<Keypair>,
        messages: u64,
        bytes: u64,
        notices: &mut Vec<Notice>,
    ) {
        let path = &keypair.path;
        path.traffic.sent(messages, bytes);
        if path.activity.data_sent(now) {
            notices.push(Notice::AwaitingReply(Arc::clone(path)));
        }
        if keypair.rekey_after_sending(now) {
            notices.push(Notice::Rekey(Arc::clone(keypair)));
        }
    }

    /// Handles one datagram in place. Returns where in `datagram` the inside packet lies, complete, if there is one.
    /// For whoever has one at a time; a lane has a [`Batch`].
    pub fn arrive(
        &self,
        now: Instant,
        from: &Endpoint,
        ecn: Ecn,
        datagram: &mut [u8],
        notices: &mut Vec<Notice>,
    ) -> Option<Range<usize>> {
        let Inbound { packet, checksum } = self.batch(now).arrive(from, ecn, datagram, notices)?;
        if checksum == Checksum::Unfinished {
            unfinished::finish(datagram.get_mut(packet.clone())?)?;
        }
        Some(packet)
    }

    /// A notice that could not be delivered to the engine: what it asked for is due again at the next packet.
    pub fn notice_lost(&self, notice: &Notice) {
        self.drops.count(DropReason::QueueFull);
        match notice {
            Notice::NeedKeypair(path) => path.keypair_needed_again(),
            Notice::KeyConfirmed(keypair) => keypair.confirm_lost(),
            Notice::AwaitingReply(path) => path.activity.stop_awaiting(),
            Notice::OwingReply(path) => path.activity.stop_owing(),
            Notice::Rekey(keypair) => keypair.rekey_lost(),
            Notice::LargeSent(path) => path.mtu.notice_lost(),
            Notice::Roamed(..)
            | Notice::Probe(..)
            | Notice::Refused(..)
            | Notice::Handshake(_)
            | Notice::Challenged(..)
            | Notice::WayAnswered(..) => {}
        }
    }

    /// How packets are padded now.
    pub fn padding(&self) -> Padding {
        Padding::new(self.mtu_bytes.load(Relaxed))
    }

    /// Sets the MTU of the TUN device, which bounds padding.
    pub fn set_mtu(&self, mtu_bytes: usize) {
        self.mtu_bytes.store(mtu_bytes, Relaxed);
    }

    /// Our own inside addresses: a peer over its quota may still exchange a few words with them, and errors for what
    /// peers send come from them.
    pub fn set_own_addresses(&self, addresses: Vec<IpAddr>) {
        self.own_addresses.store(Arc::new(addresses));
    }

    /// Opens a transport message, and does what an authenticated one calls for.
    #[inline]
    fn open_transport<'m>(
        &self,
        now: Instant,
        from: &Endpoint,
        suite: Suite,
        header: &TransportHeader,
        message: &'m mut [u8],
        notices: &mut Vec<Notice>,
    ) -> Result<(Arc<Keypair>, Opened<'m>), DropReason> {
        let keypair = self.keypairs.get(header.receiver).ok_or(DropReason::UnknownIndex)?;
        if keypair.suite != suite {
            return Err(DropReason::SuiteMismatch);
        }
        let message_len = message.len() as u64;
        let packet = keypair.open(now, header.counter, message)?;
        keypair.path.traffic.received(1, message_len);
        let checksum = take_mark(suite, packet);
        let opened = self.opened(now, from, &keypair, packet, checksum, notices)?;
        Ok((keypair, opened))
    }

    /// Does what an authenticated message calls for.
    fn opened<'m>(
        &self,
        now: Instant,
        from: &Endpoint,
        keypair: &Arc<Keypair>,
        packet: &'m mut [u8],
        checksum: Checksum,
        notices: &mut Vec<Notice>,
    ) -> Result<Opened<'m>, DropReason> {
        let path = &keypair.path;
        if Content::is_one(packet) {
            match Content::parse(packet) {
                Some(Content::Challenge(chosen)) => {
                    notices.push(Notice::Challenged(Arc::clone(keypair), *from, chosen));
                    return Ok(Opened::Nothing);
                }
                Some(Content::Answer(chosen)) => {
                    notices.push(Notice::WayAnswered(Arc::clone(path), *from, chosen));
                    return Ok(Opened::Nothing);
                }
                // Over datagrams there is nothing to wait behind.
                Some(Content::Aside) if from.carrier != Carrier::Udp => {
                    self.used(now, keypair, notices);
                    return Ok(Opened::Aside(packet));
                }
                Some(Content::Superpacket { .. } | Content::Aside) | None => {}
            }
        }
        if path.heard_from(from) {
            notices.push(Notice::Roamed(Arc::clone(path), *from));
        }
        self.used(now, keypair, notices);
        if packet.is_empty() {
            path.activity.packet_received(now);
            return Ok(Opened::Nothing);
        }
        let inside = match InsideHeader::parse(packet) {
            Ok(inside) => {
                if !is_whole(checksum, &inside, packet) {
                    return Err(DropReason::MalformedInside);
                }
                Some(inside)
            }
            Err(_) if Content::is_one(packet) => None,
            Err(reason) => {
                path.activity.packet_received(now);
                let probe = Probe::parse(keypair.suite, packet).ok_or(reason)?;
                notices.push(Notice::Probe(Arc::clone(path), probe));
                return Ok(Opened::Nothing);
            }
        };
        if path.activity.data_received(now) {
            notices.push(Notice::OwingReply(Arc::clone(path)));
        }
        Ok(Opened::Packet(packet, inside, checksum))
    }

    /// Cryptokey routing: the source of a packet must belong to the peer that it comes from; and its limits.
    #[inline]
    fn admit_inside(
        &self,
        now: Instant,
        path: &Arc<Path>,
        inside: InsideHeader,
        packet: &[u8],
        notices: &mut Vec<Notice>,
    ) -> Result<InsideHeader, DropReason> {
        let table = self.table.load();
        if !table.path(inside.source).is_some_and(|owner| Arc::ptr_eq(owner, path)) {
            return Err(DropReason::SpoofedSource);
        }
        if !path.allowance.is_open()
            && let Err(reason) = self.admit(now, path, Direction::Inbound, &inside)
        {
            notices.extend(self.refusal(now, path, reason, &inside, packet));
            return Err(reason);
        }
        Ok(inside)
    }

    /// Asks the limits of a peer that has some.
    #[inline(never)]
    fn admit(
        &self,
        now: Instant,
        path: &Path,
        direction: Direction,
        header: &InsideHeader,
    ) -> Result<(), DropReason> {
        let other_end = match direction {
            Direction::Inbound => header.destination,
            Direction::Outbound => header.source,
        };
        let with_us = self.own_addresses.load().contains(&other_end);
        path.allowance.admit(now, direction, header.total_len as u64, path.traffic.carried(), with_us)
    }

    /// What tells a peer why its packet went no further.
    #[cold]
    fn refusal(
        &self,
        now: Instant,
        path: &Arc<Path>,
        reason: DropReason,
        header: &InsideHeader,
        packet: &[u8],
    ) -> Option<Notice> {
        let what = icmp::Unreachable::of_drop(reason, packet)?;
        if !path.allowance.may_tell(now) {
            return None;
        }
        let own = self.own_addresses.load();
        let own = own.iter().find(|own| own.is_ipv4() == header.source.is_ipv4());
        let mut error = [0; icmp::MAX_LEN];
        let len = icmp::unreachable_from(own.copied(), what, packet, &mut error)?;
        Some(Notice::Refused(Arc::clone(path), error.get(..len)?.into()))
    }

    /// What every message but a challenge and its answer does to its keypair.
    fn used(&self, now: Instant, keypair: &Arc<Keypair>, notices: &mut Vec<Notice>) {
        if keypair.confirm() {
            notices.push(Notice::KeyConfirmed(Arc::clone(keypair)));
        }
        if keypair.rekey_after_receiving(now) {
            notices.push(Notice::Rekey(Arc::clone(keypair)));
        }
    }

    /// Lets a handshake message through to the engine only if it is for us and, for a reply, answers
    /// something of ours.
    fn arrive_handshake(
        &self,
        now: Instant,
        from: &Endpoint,
        suite: Suite,
        message: &Message<'_>,
        datagram: &[u8],
        notices: &mut Vec<Notice>,
    ) -> Result<(), DropReason> {
        let mac1_keys = self.mac1_keys.load();
        let verify_mac1 = || match mac1_keys.as_ref() {
            Some(keys) if keys.verify(suite, datagram) => Ok(()),
            _ => Err(DropReason::BadMac1),
        };
        let proven = match message {
            Message::Initiation(_) => {
                verify_mac1()?;
                from.carrier != Carrier::Udp || self.verify_mac2(now, from, datagram)
            }
            Message::Response(response) => {
                verify_mac1()?;
                self.handshakes.get(response.receiver).ok_or(DropReason::UnexpectedReply)?;
                true
            }
            Message::CookieReply(reply) => {
                let known = self.handshakes.get(reply.receiver).is_some()
                    || self.keypairs.get(reply.receiver).is_some();
                if !known {
                    return Err(DropReason::UnexpectedReply);
                }
                true
            }
            Message::Transport(_) => return Ok(()),
        };
        let mut bytes = [0; 148];
        bytes.get_mut(..datagram.len()).ok_or(DropReason::MalformedDatagram)?.copy_from_slice(datagram);
        let len = datagram.len() as u8;
        notices.push(Notice::Handshake(HandshakeDatagram { from: *from, bytes, len, proven }));
        Ok(())
    }

    /// A message without mac2 has zeros there, and most have none.
    fn verify_mac2(&self, now: Instant, from: &Endpoint, datagram: &[u8]) -> bool {
        let has_mac2 = datagram.last_chunk().is_some_and(|mac2| *mac2 != [0; 16]);
        has_mac2
            && self
                .cookie_secret
                .load()
                .as_ref()
                .is_some_and(|secret| secret.verify_mac2(datagram, from, now))
    }

    fn refuse(&self, reason: DropReason) -> Departure {
        self.drops.count(reason);
        Departure::Drop(reason)
    }
}

/// Takes the mark from an opened packet that says what is left of its checksum. Only adit speaks the suite that has one.
#[inline]
fn take_mark(suite: Suite, packet: &mut [u8]) -> Checksum {
    match suite == Suite::Aes256Gcm && unfinished::take_mark(packet) {
        true => Checksum::Unfinished,
        false => Checksum::Finished,
    }
}

/// Whether an inside packet has the checksum that is left of it.
#[inline]
fn is_whole(checksum: Checksum, inside: &InsideHeader, packet: &[u8]) -> bool {
    checksum == Checksum::Finished || Place::of(packet.get(..inside.total_len).unwrap_or_default()).is_some()
}

#[cfg(test)]
mod tests;

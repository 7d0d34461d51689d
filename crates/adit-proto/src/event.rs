//! What crosses the seam: commands and events with the program, notices from the lanes.

use core::time::Duration;
use std::sync::Arc;

use crate::allowance::{AllowanceStatus, Limits};
use crate::allowed_ips::Prefix;
use crate::endpoint::Endpoint;
use crate::key::{PresharedKey, PublicKey, StaticSecret};
use crate::keypair::{Keypair, Numbered};
use crate::packet::Ecn;
use crate::path::Path;
use crate::pmtu::Probe;
use crate::reason::DropReason;
use crate::suite::Suite;
use crate::time::{Instant, Tai64n, UnixTime};

/// A change of configuration, from the program to the engine.
#[derive(Clone, Debug)]
pub enum Command {
    /// Sets or clears our private key. Sessions under the old key end at once.
    SetPrivateKey(Option<StaticSecret>),
    /// Adds or changes a peer.
    SetPeer(PeerUpdate),
    /// Removes a peer and cuts its sessions at once.
    RemovePeer(PublicKey),
    /// Removes every peer.
    RemoveAllPeers,
    /// Starts a handshake with a peer now, if it has an endpoint and none is under way.
    Initiate(PublicKey),
    /// Our way to a peer is another now: says so to the peer at once, from wherever we are.
    Reconnect(PublicKey),
    /// From now on reaches a peer there, where it has answered: the session goes on, by a keepalive that makes the peer
    /// follow. Without one a handshake starts at once.
    Move(PublicKey, Endpoint),
    /// From now on reaches a peer there, beginning with a handshake.
    Restart(PublicKey, Endpoint),
    /// Asks a peer with a session to answer at an endpoint that is not its own. Neither side moves for that.
    Challenge(PublicKey, Endpoint, [u8; 8]),
    /// Tells a peer with a session that the connection of this endpoint, which is not its own, may be used beside its own
    /// for what should not wait, and asks it to answer there.
    Accompany(PublicKey, Endpoint, [u8; 8]),
}

/// What to change of a peer; `None` leaves a value as it is.
#[derive(Clone, Debug)]
pub struct PeerUpdate {
    /// The peer.
    pub public_key: PublicKey,
    /// Do nothing when the peer does not exist yet.
    pub update_only: bool,
    /// Pin this suite; a change ends the sessions of the peer.
    pub suite: Option<Suite>,
    /// Set the pre-shared key; all zeros clears it.
    pub preshared_key: Option<PresharedKey>,
    /// Where to reach the peer.
    pub endpoint: Option<Endpoint>,
    /// Whether what comes by another carrier leaves the endpoint where it is: somebody chooses the carrier.
    pub carrier_chosen: Option<bool>,
    /// Send a keepalive after so many seconds without sending; 0 turns it off.
    pub persistent_keepalive_secs: Option<u16>,
    /// Continue after these, from an earlier run; older ones change nothing.
    pub timestamps: Timestamps,
    /// Drop every allowed IP of the peer first.
    pub replace_allowed_ips: bool,
    /// Then add or remove these, in order.
    pub allowed_ips: Vec<AllowedIpChange>,
    /// What the peer may use from now on.
    pub limits: Option<Box<Limits>>,
}

/// One change of a peer's allowed IPs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AllowedIpChange {
    /// Give the prefix to the peer, taking it from any other.
    Add(Prefix),
    /// Take the prefix from the peer, if it is the peer's.
    Remove(Prefix),
}

impl PeerUpdate {
    /// An update of `public_key` that changes nothing yet.
    pub fn new(public_key: PublicKey) -> Self {
        Self {
            public_key,
            update_only: false,
            suite: None,
            preshared_key: None,
            endpoint: None,
            carrier_chosen: None,
            persistent_keepalive_secs: None,
            timestamps: Timestamps::default(),
            replace_allowed_ips: false,
            allowed_ips: Vec::new(),
            limits: None,
        }
    }
}

/// The newest initiations between us and a peer. Kept over a restart, they make a recorded initiation worthless, and
/// ours acceptable although the wall clock went back meanwhile.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Timestamps {
    /// In the last initiation we sent.
    pub sent: Option<Tai64n>,
    /// In the last initiation we accepted.
    pub received: Option<Tai64n>,
}

/// A peer's slot in the engine; it says nothing about who the peer is and may be reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PeerId(pub u32);

/// An edge that a lane saw, for the engine to act on. Losing one only delays what it asks for.
#[derive(Clone, Debug)]
pub enum Notice {
    /// A packet was staged for a peer that has no usable keypair.
    NeedKeypair(Arc<Path>),
    /// The first transport message under a keypair we made as responder.
    KeyConfirmed(Arc<Keypair>),
    /// A peer's authenticated packet came from a new endpoint, where what is sent to it goes since.
    Roamed(Arc<Path>, Endpoint),
    /// Data was sent and nothing has been received since.
    AwaitingReply(Arc<Path>),
    /// Data was received and nothing has been sent since.
    OwingReply(Arc<Path>),
    /// A keypair should be replaced soon.
    Rekey(Arc<Keypair>),
    /// A large packet was sent: whether such arrive is to be watched.
    LargeSent(Arc<Path>),
    /// A peer's question or answer about the size of packets.
    Probe(Arc<Path>, Probe),
    /// A limit refused what a peer sent; this ICMP error tells the peer.
    Refused(Arc<Path>, Box<[u8]>),
    /// A handshake message with a valid mac1.
    Handshake(HandshakeDatagram),
    /// The peer wants to know whether the way to us and back that it came by works: answer there.
    Challenged(Arc<Keypair>, Endpoint, [u8; 8]),
    /// The peer answered a challenge of ours, by this way.
    WayAnswered(Arc<Path>, Endpoint, [u8; 8]),
}

/// A handshake message as it arrived. The longest, an initiation, has 148 bytes.
#[derive(Clone, Debug)]
pub struct HandshakeDatagram {
    /// Where it came from.
    pub from: Endpoint,
    /// The message in the first `len` bytes.
    pub bytes: [u8; 148],
    /// The length of the message.
    pub len: u8,
    /// Whether the sender has shown that it receives at the address it sends from: by mac2, by a connection, or by an
    /// index that only a message to there has named. A flood from invented addresses must not push these out.
    pub proven: bool,
}

/// What the engine wants done, in order.
#[derive(Debug)]
pub enum Output {
    /// Send a datagram.
    Transmit(Transmit),
    /// Something the program may want to log, persist or act on.
    Event(Event),
}

/// A datagram of the engine: a handshake message, a keepalive or a staged packet.
#[derive(Debug)]
pub struct Transmit {
    /// Where to send it.
    pub endpoint: Endpoint,
    /// The ECN field of the outside packet.
    pub ecn: Ecn,
    /// The hop limit of the outside packet, where the host may not choose it.
    pub hop_limit: Option<u8>,
    /// The whole message.
    pub contents: Vec<u8>,
}

/// News for the program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A new session with a peer is usable.
    SessionEstablished {
        /// The peer.
        peer: PublicKey,
        /// Where the peer is.
        endpoint: Endpoint,
        /// From the first initiation to here, when we were the initiator.
        handshake_time: Option<Duration>,
    },
    /// A peer answered a challenge.
    WayAnswered {
        /// The peer.
        peer: PublicKey,
        /// The way that works.
        endpoint: Endpoint,
        /// What the challenge was.
        chosen: [u8; 8],
    },
    /// A handshake got no answer for 90 seconds; packets that waited for it were dropped.
    HandshakeGaveUp {
        /// The peer.
        peer: PublicKey,
    },
    /// Every key of an idle peer was erased.
    KeysErased {
        /// The peer.
        peer: PublicKey,
    },
    /// A peer's access ended or began.
    AccessChanged {
        /// The peer.
        peer: PublicKey,
        /// Why it ended: it expired, or the hours are over. `None` when it began.
        shut: Option<DropReason>,
    },
    /// A peer moved to another endpoint.
    Roamed {
        /// The peer.
        peer: PublicKey,
        /// Where it is now.
        endpoint: Endpoint,
    },
    /// A handshake with a peer has been tried several times without an answer: its name may
    /// resolve to another address by now.
    EndpointSilent {
        /// The peer.
        peer: PublicKey,
        /// How many initiations went unanswered.
        attempts: u32,
    },
}

/// A peer as `status`, the UAPI and the metrics show it.
#[derive(Clone, Debug)]
pub struct PeerStatus {
    /// The peer.
    pub public_key: PublicKey,
    /// The pinned suite.
    pub suite: Suite,
    /// The pre-shared key.
    pub preshared_key: PresharedKey,
    /// Where the peer is.
    pub endpoint: Option<Endpoint>,
    /// Where it was last heard, when it has not answered at `endpoint` yet the place before; `None` before it was heard at all.
    pub heard_at: Option<Endpoint>,
    /// Seconds between persistent keepalives; 0 is off.
    pub persistent_keepalive_secs: u16,
    /// The peer's allowed IPs in canonical order.
    pub allowed_ips: Vec<Prefix>,
    /// When the last session was established, by the wall clock.
    pub last_handshake: Option<UnixTime>,
    /// The same, by the monotonic clock.
    pub last_handshake_at: Option<Instant>,
    /// The newest initiations, to keep over a restart.
    pub timestamps: Timestamps,
    /// Bytes received from the peer, as `wg show transfer` counts them.
    pub rx_bytes: u64,
    /// Bytes sent to the peer.
    pub tx_bytes: u64,
    /// Messages received from the peer.
    pub rx_packets: u64,
    /// Messages sent to the peer.
    pub tx_packets: u64,
    /// What the peer has sent in the session in use, and what came of it.
    pub numbered: Option<Numbered>,
    /// Whether the peer has a keypair that can send now.
    pub has_session: bool,
    /// The round trip of the last handshake we started.
    pub handshake_rtt: Option<Duration>,
    /// Inside packets staged now.
    pub staged: usize,
    /// The largest inside packet that arrives, where the way is narrower than our device.
    pub path_mtu: Option<usize>,
    /// How what the peer may use stands.
    pub allowance: AllowanceStatus,
}

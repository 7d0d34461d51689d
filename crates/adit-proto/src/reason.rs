//! Why a packet was dropped: one enum for the counters, the metrics and `status`.

use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

macro_rules! drop_reasons {
    ($($(#[doc = $doc:literal])* $name:ident => $label:literal,)*) => {
        /// Why a packet went no further. The label is the metric label.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[repr(u8)]
        pub enum DropReason { $($(#[doc = $doc])* $name,)* }

        impl DropReason {
            /// Every reason, in the order of the enum.
            pub const ALL: &[Self] = &[$(Self::$name,)*];

            /// What it means, in a sentence.
            pub const fn about(self) -> &'static str {
                match self { $(Self::$name => concat!($($doc),*).trim_ascii(),)* }
            }

            /// The label used in metrics and in `status --json`.
            pub const fn label(self) -> &'static str {
                match self { $(Self::$name => $label,)* }
            }
        }
    };
}

drop_reasons! {
    /// A datagram too short or too long for any message, or of the wrong size for its type.
    MalformedDatagram => "malformed_datagram",
    /// An unknown message type, or reserved bytes that are not zero.
    UnknownType => "unknown_type",
    /// The first MAC of a handshake message does not verify.
    BadMac1 => "bad_mac1",
    /// Under load, and the handshake message carries no valid cookie: a cookie reply was sent.
    CookieRequired => "cookie_required",
    /// Under load, and the budget for this source or for all sources is spent.
    RateLimited => "rate_limited",
    /// A handshake message that did not decrypt or authenticate.
    BadHandshake => "bad_handshake",
    /// A handshake initiation from a static key that is no peer.
    UnknownPeer => "unknown_peer",
    /// A handshake initiation whose timestamp is not newer than the last one.
    StaleTimestamp => "stale_timestamp",
    /// A peer sends handshake initiations too quickly.
    InitiationFlood => "initiation_flood",
    /// A handshake response or cookie reply that answers nothing we sent.
    UnexpectedReply => "unexpected_reply",
    /// A cookie reply that does not decrypt.
    BadCookie => "bad_cookie",
    /// A message of a suite that is not the one pinned for the peer.
    SuiteMismatch => "suite_mismatch",
    /// A transport message for a receiver index we do not have.
    UnknownIndex => "unknown_index",
    /// A transport message under a keypair that is too old.
    ExpiredKeypair => "expired_keypair",
    /// A transport message that does not authenticate.
    BadTag => "bad_tag",
    /// A transport message whose counter was seen, or is older than the replay window.
    Replay => "replay",
    /// An inside packet that is no valid IPv4 or IPv6 packet.
    MalformedInside => "malformed_inside",
    /// An inside packet whose source address does not belong to the peer it came from.
    SpoofedSource => "spoofed_source",
    /// Congestion was marked outside on an inside packet that cannot carry the mark (RFC 6040).
    EcnNotCapable => "ecn_not_capable",
    /// An inside packet to an address that belongs to no peer.
    NoRoute => "no_route",
    /// A peer whose endpoint is not known yet.
    NoEndpoint => "no_endpoint",
    /// A tunnel's message to be sent inside another for the fourth time: the route leads into itself.
    TooNested => "too_nested",
    /// More packets waited for a session than a peer may stage.
    StagedOverflow => "staged_overflow",
    /// Packets waited for a session that never came.
    HandshakeTimeout => "handshake_timeout",
    /// The sending key is used up (message or AES block limit).
    KeyExhausted => "key_exhausted",
    /// A queue between lanes and the engine was full.
    QueueFull => "queue_full",
    /// The socket's receive buffer was full: the host dropped the datagram before we saw it.
    ReceiveOverflow => "receive_overflow",
    /// What waited for a slow connection was more than may wait, and the oldest went.
    StreamFull => "stream_full",
    /// A packet waited longer for a slow connection than it would be of use.
    StreamLate => "stream_late",
    /// A message on a connection that had come before: on a way that loses packets small flows go by two connections.
    StreamCopy => "stream_copy",
    /// The connection that led to the peer is gone.
    StreamGone => "stream_gone",
    /// The host refused to send the datagram.
    SendFailed => "send_failed",
    /// The TUN device refused the packet.
    TunFailed => "tun_failed",
    /// A peer's rate is used up for the moment.
    OverRate => "over_rate",
    /// A peer's quota of the month is used up.
    OverQuota => "over_quota",
    /// A peer's access has expired.
    AccessExpired => "access_expired",
    /// A peer may not connect at this hour.
    OutsideSchedule => "outside_schedule",
    /// A packet larger than the path or the device takes.
    TooBig => "too_big",
}

/// One counter per [`DropReason`]; shared by every lane, updated with relaxed atomics.
#[derive(Debug)]
pub struct DropCounters([AtomicU64; DropReason::ALL.len()]);

impl Default for DropCounters {
    fn default() -> Self {
        Self([const { AtomicU64::new(0) }; DropReason::ALL.len()])
    }
}

impl DropCounters {
    /// Counts one packet dropped for `reason`.
    pub fn count(&self, reason: DropReason) {
        self.add(reason, 1);
    }

    /// Counts `packets` dropped for `reason`.
    pub fn add(&self, reason: DropReason, packets: u64) {
        if let Some(counter) = self.0.get(reason as usize) {
            counter.fetch_add(packets, Relaxed);
        }
    }

    /// How many packets were dropped for `reason`.
    pub fn count_of(&self, reason: DropReason) -> u64 {
        self.0.get(reason as usize).map_or(0, |counter| counter.load(Relaxed))
    }

    /// Every reason with its count.
    pub fn iter(&self) -> impl Iterator<Item = (DropReason, u64)> + '_ {
        DropReason::ALL.iter().map(|&reason| (reason, self.count_of(reason)))
    }
}

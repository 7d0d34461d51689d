//! `metrics = "127.0.0.1:9586"`: how an instance is, as OpenMetrics, for a Prometheus that asks now and then.
//! `docs/metrics.md` is the table below for people.

mod door;
mod text;

pub use self::door::Metrics;
pub use self::text::{exposition, table};

/// The media type of what is answered.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// What a metric is (OpenMetrics 1.0 section 5.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// It goes up and down.
    Gauge,
    /// It only goes up, until the instance starts anew.
    Counter,
    /// Its labels are what it says.
    Info,
}

/// A metric. Each sample has also the label `interface`.
#[derive(Clone, Copy, Debug)]
pub struct Family {
    /// Its name; samples of a counter end in `_total`, those of an info in `_info`.
    pub name: &'static str,
    /// What it is.
    pub kind: Kind,
    /// Its unit, which is also the end of the name; empty when it has none.
    pub unit: &'static str,
    /// Its labels beside `interface`.
    pub labels: &'static str,
    /// What it means.
    pub help: &'static str,
}

const fn family(
    name: &'static str,
    kind: Kind,
    unit: &'static str,
    labels: &'static str,
    help: &'static str,
) -> Family {
    Family { name, kind, unit, labels, help }
}

/// Every metric, in the order in which they are told.
pub const FAMILIES: &[Family] = &[
    family("adit_instance", Kind::Info, "", "role, version, public_key", "The instance."),
    family("adit_start_time_seconds", Kind::Gauge, "seconds", "", "When it started, in seconds since 1970."),
    family("adit_lanes", Kind::Gauge, "", "", "Threads that carry packets."),
    family("adit_mtu_bytes", Kind::Gauge, "bytes", "", "The largest packet inside the tunnel."),
    family("adit_queue_length", Kind::Gauge, "", "queue", "What waits for the engine."),
    family(
        "adit_queue_capacity",
        Kind::Gauge,
        "",
        "queue",
        "How many may wait; one more is dropped and counted.",
    ),
    family(
        "adit_dropped_packets",
        Kind::Counter,
        "",
        "reason",
        "Packets and messages that went no further, by reason; `adit status` has the same names.",
    ),
    family("adit_peers", Kind::Gauge, "", "", "Peers that may connect."),
    family("adit_peers_connected", Kind::Gauge, "", "", "Peers with a session."),
    family(
        "adit_peer",
        Kind::Info,
        "",
        "peer, public_key, suite, carrier",
        "A peer; `peer` is its name, or its key, and `carrier` is empty before it has answered.",
    ),
    family("adit_peer_connected", Kind::Gauge, "", "peer", "1 when the peer has a session, else 0."),
    family(
        "adit_peer_received_bytes",
        Kind::Counter,
        "bytes",
        "peer",
        "Bytes of messages received from the peer, as `wg show` counts them.",
    ),
    family("adit_peer_sent_bytes", Kind::Counter, "bytes", "peer", "Bytes of messages sent to the peer."),
    family("adit_peer_received_packets", Kind::Counter, "", "peer", "Messages received from the peer."),
    family("adit_peer_sent_packets", Kind::Counter, "", "peer", "Messages sent to the peer."),
    family("adit_peer_staged_packets", Kind::Gauge, "", "peer", "Packets that wait for a session."),
    family(
        "adit_peer_handshake_age_seconds",
        Kind::Gauge,
        "seconds",
        "peer",
        "Since the last handshake; absent when there was none.",
    ),
    family(
        "adit_peer_handshake_rtt_seconds",
        Kind::Gauge,
        "seconds",
        "peer",
        "The round trip of the last handshake that was begun here; absent when there was none.",
    ),
    family(
        "adit_peer_receive_loss_ratio",
        Kind::Gauge,
        "ratio",
        "peer",
        "Messages of the peer that got lost on their way here, of those it sent in the last seconds; absent when it \
         sent too few to tell.",
    ),
    family(
        "adit_peer_within_limits",
        Kind::Gauge,
        "",
        "peer",
        "1 while no limit keeps the peer out, else 0; absent without limits.",
    ),
    family(
        "adit_peer_refused_packets",
        Kind::Counter,
        "",
        "peer, reason",
        "Packets that a limit of the peer dropped, by reason.",
    ),
    family(
        "adit_peer_quota_bytes",
        Kind::Gauge,
        "bytes",
        "peer",
        "Bytes a month that the peer may use; absent without a quota.",
    ),
    family(
        "adit_peer_quota_used_bytes",
        Kind::Gauge,
        "bytes",
        "peer",
        "Those of this month so far; absent without a quota.",
    ),
    family(
        "adit_peer_access_ends_seconds",
        Kind::Gauge,
        "seconds",
        "peer",
        "When access ends, in seconds since 1970; absent when it does not.",
    ),
];

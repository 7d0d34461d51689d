//! An eavesdropper in the core of the network: what was sent, counted by message type. She knows no keys.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;

use adit_proto::suite::Suite;
use adit_proto::time::Instant;
use adit_proto::wire::{Message, TRANSPORT_MIN_LEN};

use crate::host::HostId;
use crate::link::Datagram;

/// What an eavesdropper can tell a message to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// A handshake initiation.
    Initiation,
    /// A handshake response.
    Response,
    /// A cookie reply.
    CookieReply,
    /// A transport message without a packet.
    Keepalive,
    /// A transport message with a packet.
    Data,
    /// No message of any suite.
    Other,
}

impl Kind {
    /// The kind and suite of a datagram.
    pub fn of(bytes: &[u8]) -> (Self, Option<Suite>) {
        match Message::parse(bytes) {
            Ok((suite, message)) => {
                let kind = match message {
                    Message::Initiation(_) => Self::Initiation,
                    Message::Response(_) => Self::Response,
                    Message::CookieReply(_) => Self::CookieReply,
                    Message::Transport(_) if bytes.len() == TRANSPORT_MIN_LEN => Self::Keepalive,
                    Message::Transport(_) => Self::Data,
                };
                (kind, Some(suite))
            }
            Err(_) => (Self::Other, None),
        }
    }
}

/// One message that went by; data is counted only.
#[derive(Clone, Copy, Debug)]
pub struct Sighting {
    /// When it was sent.
    pub at: Instant,
    /// Who sent it.
    pub from: HostId,
    /// Where to.
    pub to: SocketAddr,
    /// What it is.
    pub kind: Kind,
    /// Its suite.
    pub suite: Option<Suite>,
}

/// What she saw of the messages that hosts sent.
#[derive(Debug, Default)]
pub struct Eve {
    /// Keep whole messages from now on, to replay them.
    pub recording: bool,
    /// Everything but data, in order.
    pub sightings: Vec<Sighting>,
    /// The whole messages kept.
    pub recorded: Vec<Datagram>,
    counts: BTreeMap<(HostId, Kind), u64>,
    suites: BTreeMap<Suite, u64>,
    counters: HashMap<(HostId, u32), u64>,
}

impl Eve {
    /// Looks at a datagram that `from` sends.
    ///
    /// # Panics
    /// When a host uses a nonce again.
    pub fn look(&mut self, at: Instant, from: HostId, datagram: &Datagram) -> Kind {
        let (kind, suite) = Kind::of(&datagram.bytes);
        *self.counts.entry((from, kind)).or_default() += 1;
        if let Some(suite) = suite {
            *self.suites.entry(suite).or_default() += 1;
        }
        if let Ok((_, Message::Transport(header))) = Message::parse(&datagram.bytes) {
            let next = self.counters.entry((from, header.receiver)).or_default();
            assert!(header.counter >= *next, "{from:?} used nonce {} of a key again", header.counter);
            *next = header.counter + 1;
        }
        if kind != Kind::Data {
            self.sightings.push(Sighting { at, from, to: datagram.to, kind, suite });
        }
        if self.recording {
            self.recorded.push(datagram.clone());
        }
        kind
    }

    /// How many messages of a kind a host sent.
    pub fn count(&self, from: HostId, kind: Kind) -> u64 {
        self.counts.get(&(from, kind)).copied().unwrap_or(0)
    }

    /// How many messages of a kind all hosts sent.
    pub fn total(&self, kind: Kind) -> u64 {
        self.counts.iter().filter(|((_, seen), _)| *seen == kind).map(|(_, count)| count).sum()
    }

    /// How many messages of a suite all hosts sent.
    pub fn of_suite(&self, suite: Suite) -> u64 {
        self.suites.get(&suite).copied().unwrap_or(0)
    }

    /// Every message sent, of whatever kind.
    pub fn all(&self) -> u64 {
        self.counts.values().sum()
    }

    /// When a host sent messages of a kind.
    pub fn times(&self, from: HostId, kind: Kind) -> Vec<Instant> {
        let wanted = |sighting: &&Sighting| sighting.from == from && sighting.kind == kind;
        self.sightings.iter().filter(wanted).map(|sighting| sighting.at).collect()
    }
}

//! The event log: who connected, left, was enrolled or refused, on lines that each carry the hash of those before.
//!
//! ```text
//!   gateway, up ──┐                      HOME/state/events.log      {"schema":1,"seq":7,…,"hash":"…"}
//!   peer add, … ──┴─► lock ─► append ──► HOME/state/events.log.1    hash = SHA-256(hash of the line before ‖ this line)
//! ```
//!
//! `off` writes nothing. It is for the operator alone (0600), and never stands in the way: what cannot be written is told in
//! the log, and the work goes on.

mod chain;
mod clock;
mod show;
mod verify;

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use crate::config::Peer;
use crate::home::Home;
use crate::keys;

pub use self::show::{EventsArgs, run};

/// How much is written down.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum EventLevel {
    /// Nothing.
    Off,
    /// Connects, disconnects, enrolments and refusals.
    #[default]
    Events,
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Event {
    /// The first line of a file, or of what follows damage.
    Begun {
        /// The hash of the line before, in the file before; absent at the very beginning and after damage.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        follows: Option<String>,
        /// Bytes of a line that was not finished when its writer was killed; they were cut off.
        #[serde(default, skip_serializing_if = "is_zero")]
        cut_bytes: u64,
    },
    /// An instance is ready.
    Started {
        /// Its device.
        interface: String,
        /// `gateway` or `client`.
        role: String,
        /// The version of the program.
        version: String,
    },
    /// An instance ends.
    Stopped {
        /// Its device.
        interface: String,
    },
    /// A peer has a session.
    Connected {
        /// Our device.
        interface: String,
        /// Its name, or its key.
        peer: String,
        /// Its key.
        public_key: String,
        /// Where it is.
        endpoint: String,
        /// The carrier of its messages.
        carrier: String,
    },
    /// A session ended.
    Disconnected {
        /// Our device.
        interface: String,
        /// Its name, or its key.
        peer: String,
        /// Its key.
        public_key: String,
        /// Why.
        why: Leaving,
    },
    /// A peer was added.
    Enrolled {
        /// Its name.
        peer: String,
        /// Its key.
        public_key: String,
        /// Its inside addresses.
        addresses: Vec<String>,
        /// By which way: `peer add`, or an invite.
        by: String,
    },
    /// A peer was taken out.
    Removed {
        /// Its name.
        peer: String,
        /// Its key.
        public_key: String,
    },
    /// Somebody was turned away.
    Refused {
        /// The drop reason, or why an enrolment was refused.
        reason: String,
        /// How often since the last such line.
        count: u64,
        /// Who, as far as known.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        who: Option<String>,
    },
}

/// Why a peer has no session any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Leaving {
    /// Neither side had anything to say.
    Idle,
    /// It did not answer.
    NoAnswer,
    /// It was removed, disabled or has another key.
    Removed,
    /// Its access has expired, or its hours are over.
    NoAccess,
}

/// Where events are written down.
#[derive(Debug)]
pub struct EventLog {
    path: Option<PathBuf>,
    is_failing: AtomicBool,
}

impl Event {
    /// That `peer` was added, by the way of that name.
    pub fn enrolled(peer: &Peer, by: &str) -> Self {
        Self::Enrolled {
            peer: peer.name.to_string(),
            public_key: keys::public_text(&peer.public_key),
            addresses: peer.addresses.iter().map(ToString::to_string).collect(),
            by: by.to_owned(),
        }
    }
}

impl EventLog {
    /// The event log of `home`.
    pub fn new(home: &Home, level: EventLevel) -> Self {
        let path = (level == EventLevel::Events).then(|| chain::path(home));
        Self { path, is_failing: AtomicBool::new(false) }
    }

    /// One that writes nothing down.
    pub fn off() -> Self {
        Self { path: None, is_failing: AtomicBool::new(false) }
    }

    /// Writes an event down. That it cannot be done is told once, and does not stop the caller.
    pub fn record(&self, event: &Event) {
        let Some(path) = &self.path else { return };
        let outcome = chain::append(path, event, SystemTime::now());
        let was_failing = self.is_failing.swap(outcome.is_err(), Relaxed);
        if let (Err(error), false) = (outcome, was_failing) {
            tracing::warn!("the event log {} cannot be written: {error}; events are lost", path.display());
        }
    }
}

fn is_zero(number: &u64) -> bool {
    *number == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn off_writes_nothing_and_a_log_that_cannot_be_written_stops_nobody() {
        let directory = tempfile::tempdir().unwrap();
        let home = Home::new(Some(directory.path())).unwrap();
        home.create().unwrap();
        let event = Event::Stopped { interface: "adit0".into() };
        EventLog::new(&home, EventLevel::Off).record(&event);
        assert!(!chain::path(&home).exists());
        EventLog::new(&home, EventLevel::Events).record(&event);
        assert!(chain::path(&home).exists());
        std::fs::remove_file(chain::path(&home)).unwrap();
        std::fs::create_dir(chain::path(&home)).unwrap();
        EventLog::new(&home, EventLevel::Events).record(&event);
    }
}

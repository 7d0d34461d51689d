//! A digest of everything that happened, and its last steps in words for when a rule breaks.

use std::collections::VecDeque;
use std::hash::{DefaultHasher, Hash, Hasher};

use adit_proto::reason::DropReason;
use adit_proto::time::Instant;

use crate::eve::Kind;
use crate::host::HostId;
use crate::link::Loss;
use crate::probe::Probe;

const REMEMBERED_STEPS: usize = 60;

/// One thing that happened.
#[derive(Clone, Debug, Hash)]
pub enum Step {
    /// A host or the scenario did something of note.
    Did(HostId, String),
    /// A host sent a datagram.
    Sent(HostId, Kind, usize),
    /// A datagram was lost.
    Lost(Kind, Loss),
    /// An attacker put a datagram on the network.
    Injected(Kind, usize),
    /// A probe came out of the tunnel.
    Delivered(Probe),
    /// A host dropped a packet or datagram.
    Dropped(HostId, DropReason),
}

/// Everything that happened, as one number.
#[derive(Clone, Debug, Default)]
pub struct Trace {
    digest: DefaultHasher,
    steps: u64,
    recent: VecDeque<(Instant, Step)>,
}

impl Trace {
    /// Adds a step.
    pub fn add(&mut self, now: Instant, step: Step) {
        (now, &step).hash(&mut self.digest);
        self.steps += 1;
        if self.recent.len() == REMEMBERED_STEPS {
            self.recent.pop_front();
        }
        self.recent.push_back((now, step));
    }

    /// Adds the contents of a datagram to the digest.
    pub fn add_bytes(&mut self, bytes: &[u8]) {
        self.digest.write(bytes);
    }

    /// The same for two runs in which the same happened.
    pub fn digest(&self) -> u64 {
        self.digest.finish()
    }

    /// How many steps there were.
    pub fn steps(&self) -> u64 {
        self.steps
    }

    /// The last steps, one a line.
    pub fn recent(&self) -> String {
        let line = |(at, step): &(Instant, Step)| format!("{:12.6} {step:?}\n", at.0 as f64 / 1e9);
        self.recent.iter().map(line).collect()
    }
}

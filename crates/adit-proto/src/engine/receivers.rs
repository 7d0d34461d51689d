//! The receiver indices in use, over handshakes and sessions alike.

use std::collections::HashMap;
use std::sync::Arc;

use crate::event::PeerId;
use crate::index::IndexWriter;
use crate::keypair::Keypair;
use crate::path::Path;

/// Which peer each index belongs to, and what lanes see of it. An index goes from its handshake to its
/// session, and is released once.
#[derive(Debug, Default)]
pub(super) struct Receivers {
    pub(super) sessions: IndexWriter<Keypair>,
    pub(super) handshakes: IndexWriter<Path>,
    owners: HashMap<u32, PeerId>,
}

impl Receivers {
    pub(super) fn reserve(&mut self, owner: PeerId, random: &mut dyn FnMut() -> u32) -> u32 {
        let index = self.sessions.reserve(random);
        self.owners.insert(index, owner);
        index
    }

    pub(super) fn owner(&self, index: u32) -> Option<PeerId> {
        self.owners.get(&index).copied()
    }

    pub(super) fn await_reply(&mut self, index: u32, path: Arc<Path>) {
        self.handshakes.reserve(&mut || index);
        self.handshakes.publish(index, path);
    }

    pub(super) fn stop_awaiting(&mut self, index: u32) {
        self.handshakes.remove(index);
    }

    pub(super) fn open_session(&mut self, keypair: &Arc<Keypair>) {
        self.sessions.publish(keypair.local_index, Arc::clone(keypair));
    }

    pub(super) fn release(&mut self, index: u32) {
        self.handshakes.remove(index);
        self.sessions.remove(index);
        self.owners.remove(&index);
    }

    pub(super) fn len(&self) -> usize {
        self.owners.len()
    }
}

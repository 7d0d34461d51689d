use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use adit_proto::allowance::AllowanceStatus;
use adit_proto::forward::Forwarding;
use adit_proto::key::PublicKey;
use adit_proto::suite::Suite;
use tokio::sync::watch;

use super::Wanted;
use crate::config::PeerLimits;

/// What the configuration says about a peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    /// Its name.
    pub name: String,
    /// Its lease.
    pub inside: Vec<IpAddr>,
    /// What it may use.
    pub limits: PeerLimits,
}

/// Who calls from which inside address.
#[derive(Clone)]
pub(super) struct Callers {
    forwarding: Arc<Forwarding>,
    wanted: watch::Receiver<Wanted>,
}

/// A peer that calls.
#[derive(Clone, Debug)]
pub(super) struct Caller {
    pub(super) key: PublicKey,
    pub(super) facts: Facts,
    pub(super) suite: Suite,
    pub(super) outside: Option<SocketAddr>,
    pub(super) carrier: Option<&'static str>,
    pub(super) allowance: AllowanceStatus,
}

impl Callers {
    pub(super) fn new(forwarding: Arc<Forwarding>, wanted: watch::Receiver<Wanted>) -> Self {
        Self { forwarding, wanted }
    }

    /// The key of the peer that alone may send from `address`.
    pub(super) fn key_of(&self, address: IpAddr) -> Option<PublicKey> {
        self.forwarding.path_of(address.to_canonical()).map(|path| path.public_key)
    }

    /// The key of the invited that alone may send from `address`; it is no peer yet.
    pub(super) fn invited_at(&self, address: IpAddr) -> Option<PublicKey> {
        let key = self.key_of(address)?;
        self.wanted.borrow().invited.contains(&key).then_some(key)
    }

    /// The peer that alone may send from `address`, and where it is now.
    pub(super) fn at(&self, address: IpAddr) -> Option<Caller> {
        let path = self.forwarding.path_of(address.to_canonical())?;
        let facts = self.wanted.borrow().peers.get(&path.public_key)?.clone();
        let endpoint = path.endpoint();
        Some(Caller {
            key: path.public_key,
            facts,
            suite: path.suite,
            allowance: path.allowance.status(path.traffic.carried()),
            outside: endpoint.map(|it| SocketAddr::new(it.remote.ip().to_canonical(), it.remote.port())),
            carrier: endpoint.map(|it| it.carrier.name()),
        })
    }
}

//! Where the peers of a profile are, as far as this host has to know it.

use std::net::SocketAddr;
use std::time::Duration;

use adit_proto::key::PublicKey;

use crate::config::ClientSettings;
use crate::config::wgquick::PeerSection;
use crate::dial;
use crate::endpoint::{self, ResolveError};

/// A peer and the addresses that its packets go to.
pub(crate) struct Reached {
    pub(crate) peer: PublicKey,
    pub(crate) known: Vec<SocketAddr>,
    pub(crate) current: SocketAddr,
    /// The addresses are those of the proxy that connects us; only it knows where the peer is.
    pub(crate) by_proxy: bool,
}

const RESOLVE_TIMEOUT: Duration = Duration::from_secs(10);

/// Names are resolved while the routes still lead to the resolver. Behind a proxy only its own is: it is told the names of
/// the peers, and where nothing but the proxy leads out nobody else may know them.
///
/// # Errors
/// A name has no address.
pub(crate) fn resolve_peers(
    peers: &[PeerSection],
    settings: &ClientSettings,
) -> Result<Vec<Reached>, ResolveError> {
    let proxy =
        dial::proxy_of(settings).map(|proxy| endpoint::resolve(proxy, RESOLVE_TIMEOUT)).transpose()?;
    let mut reached = Vec::new();
    for peer in peers {
        let Some(name) = &peer.endpoint else { continue };
        let known = match &proxy {
            Some(addresses) => addresses.clone(),
            None => endpoint::resolve(name, RESOLVE_TIMEOUT)?,
        };
        if let Some(current) = endpoint::preferred(&known) {
            reached.push(Reached { peer: peer.public_key, known, current, by_proxy: proxy.is_some() });
        }
    }
    Ok(reached)
}

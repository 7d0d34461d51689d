//! Connecting for a client of the proxy: through the tunnel or not at all.

use std::io;
use std::net::IpAddr;
use std::sync::Arc;

use super::target::{Host, Refusal, Target, check};
use crate::tunnel::{NameError, TcpStream, Tunnel, TunnelError};

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub(super) enum DialError {
    #[error("refused: {0}")]
    Refused(#[from] Refusal),
    #[error(transparent)]
    Tunnel(#[from] TunnelError),
}

/// What became of it, in the terms of both protocols.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    Forbidden,
    TunnelDown,
    NoSuchHost,
    HostRefused,
    Unreachable,
    TimedOut,
}

impl DialError {
    pub(super) fn outcome(&self) -> Outcome {
        match self {
            Self::Refused(_) => Outcome::Forbidden,
            Self::Tunnel(TunnelError::Name(NameError::NoAnswer { .. })) => Outcome::TimedOut,
            Self::Tunnel(TunnelError::Name(_)) => Outcome::NoSuchHost,
            Self::Tunnel(TunnelError::Connect { source, .. }) => match source.kind() {
                io::ErrorKind::ConnectionRefused => Outcome::HostRefused,
                io::ErrorKind::TimedOut => Outcome::TimedOut,
                io::ErrorKind::NetworkDown => Outcome::TunnelDown,
                _ => Outcome::Unreachable,
            },
            Self::Tunnel(_) => Outcome::TunnelDown,
        }
    }
}

/// Dials through one tunnel.
#[derive(Clone, Debug)]
pub(super) struct Dialer {
    pub(super) tunnel: Tunnel,
    ours: Arc<[IpAddr]>,
}

impl Dialer {
    pub(super) fn new(tunnel: Tunnel) -> Self {
        let ours = tunnel.addresses().into();
        Self { tunnel, ours }
    }

    /// The addresses of a host that may be connected to, never none. What is checked is what is connected to: a name
    /// that changes its address in between gains nothing.
    pub(super) async fn resolve(&self, host: &Host) -> Result<Vec<IpAddr>, DialError> {
        let addresses = match host {
            Host::Address(address) => vec![*address],
            Host::Name(name) => {
                self.tunnel.wait_until_up().await?;
                self.tunnel.resolve(name).await.map_err(TunnelError::Name)?
            }
        };
        self.allowed(addresses)
    }

    /// Those of several addresses of one host that may be connected to, never none.
    pub(super) fn allowed(&self, addresses: Vec<IpAddr>) -> Result<Vec<IpAddr>, DialError> {
        let mut refusal = Refusal::Malformed;
        let mut allowed = Vec::new();
        for address in addresses {
            match check(address, &self.ours) {
                Ok(()) => allowed.push(address),
                Err(reason) => refusal = reason,
            }
        }
        if allowed.is_empty() { Err(refusal.into()) } else { Ok(allowed) }
    }

    pub(super) async fn connect(&self, target: &Target) -> Result<TcpStream, DialError> {
        target.check_port()?;
        self.connect_any_port(target).await
    }

    /// The same for a target that the user of this machine has named, whatever its port.
    pub(super) async fn connect_any_port(&self, target: &Target) -> Result<TcpStream, DialError> {
        let addresses = self.resolve(&target.host).await?;
        Ok(self.tunnel.tcp_connect_any(&addresses, target.port).await?)
    }
}

//! Connecting for a client of the proxy: through the tunnel or not at all.

use std::io;
use std::net::{IpAddr, SocketAddr};
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
    inside_api: Arc<[SocketAddr]>,
}

impl Dialer {
    pub(super) fn new(tunnel: Tunnel) -> Self {
        let ours = tunnel.addresses().into();
        Self { tunnel, ours, inside_api: Arc::default() }
    }

    /// Keeps clients off the inside API of gateways: a page in a browser that uses the proxy is one of them.
    pub(super) fn keep_off(self, inside_api: impl Iterator<Item = SocketAddr>) -> Self {
        Self { inside_api: inside_api.collect(), ..self }
    }

    /// The addresses of a target that may be connected to, never none. What is checked is what is connected to: a name
    /// that changes its address in between gains nothing.
    pub(super) async fn resolve(&self, target: &Target) -> Result<Vec<IpAddr>, DialError> {
        let addresses = self.addresses(&target.host).await?;
        self.allowed(addresses, target.port)
    }

    async fn addresses(&self, host: &Host) -> Result<Vec<IpAddr>, DialError> {
        Ok(match host {
            Host::Address(address) => vec![*address],
            Host::Name(name) => {
                self.tunnel.wait_until_up().await?;
                self.tunnel.resolve(name).await.map_err(TunnelError::Name)?
            }
        })
    }

    /// Those of several addresses of one host that may be connected to, never none.
    pub(super) fn allowed(&self, addresses: Vec<IpAddr>, port: u16) -> Result<Vec<IpAddr>, DialError> {
        let is_api = |address: IpAddr| {
            self.inside_api.iter().any(|api| api.port() == port && api.ip() == address.to_canonical())
        };
        self.sieve(addresses, |address| if is_api(address) { Err(Refusal::InsideApi) } else { Ok(()) })
    }

    fn sieve(
        &self,
        addresses: Vec<IpAddr>,
        more: impl Fn(IpAddr) -> Result<(), Refusal>,
    ) -> Result<Vec<IpAddr>, DialError> {
        let mut refusal = Refusal::Malformed;
        let mut allowed = Vec::new();
        for address in addresses {
            match check(address, &self.ours).and_then(|()| more(address)) {
                Ok(()) => allowed.push(address),
                Err(reason) => refusal = reason,
            }
        }
        if allowed.is_empty() { Err(refusal.into()) } else { Ok(allowed) }
    }

    pub(super) async fn connect(&self, target: &Target) -> Result<TcpStream, DialError> {
        target.check_port()?;
        let addresses = self.resolve(target).await?;
        Ok(self.tunnel.tcp_connect_any(&addresses, target.port).await?)
    }

    /// The same for a target that the user of this machine has named, whatever its port.
    pub(super) async fn connect_any_port(&self, target: &Target) -> Result<TcpStream, DialError> {
        let addresses = self.sieve(self.addresses(&target.host).await?, |_| Ok(()))?;
        Ok(self.tunnel.tcp_connect_any(&addresses, target.port).await?)
    }
}

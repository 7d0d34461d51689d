//! Names resolved inside the tunnel, by the servers of the profile. Never by the host: it would tell the network around
//! it which names are asked for.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

use super::question::{Answer, Family, Question};
use crate::stack::Network;

/// Each server is asked so often, and has so long to answer.
const ROUNDS: usize = 2;
const PATIENCE: Duration = Duration::from_secs(3);
/// Names remembered at a time, for no longer than this.
const REMEMBERED: usize = 1_024;
const REMEMBERED_SECS: u32 = 300;

/// Why a name has no address.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// The profile names no server.
    #[error(
        "cannot resolve {name}: the profile names no DNS server; add `DNS = ADDRESS` below [Interface], with a \
         server that is reached through the tunnel"
    )]
    NoServer {
        /// The name.
        name: String,
    },
    /// It cannot be one.
    #[error("`{name}` is no DNS name")]
    Malformed {
        /// What was to be one.
        name: String,
    },
    /// There is no such name, or it has no address of a kind that the tunnel carries.
    #[error("{name} has no address, says the DNS server inside the tunnel; check the name")]
    Unknown {
        /// The name.
        name: String,
    },
    /// No server gave an answer.
    #[error("cannot resolve {name}: no DNS server of the profile answers through the tunnel")]
    NoAnswer {
        /// The name.
        name: String,
    },
}

#[derive(Debug)]
pub(super) struct Resolver {
    servers: Vec<IpAddr>,
    search: Vec<String>,
    families: Vec<Family>,
    remembered: Mutex<HashMap<String, (Vec<IpAddr>, Instant)>>,
}

impl Resolver {
    pub(super) fn new(servers: Vec<IpAddr>, search: Vec<String>, addresses: &[IpAddr]) -> Self {
        let mut families = Vec::new();
        if addresses.iter().any(IpAddr::is_ipv4) {
            families.push(Family::V4);
        }
        if addresses.iter().any(IpAddr::is_ipv6) {
            families.push(Family::V6);
        }
        Self { servers, search, families, remembered: Mutex::default() }
    }

    /// Every address of `name`, never none.
    pub(super) async fn resolve(&self, network: &Network, name: &str) -> Result<Vec<IpAddr>, NameError> {
        if let Ok(address) = name.parse() {
            return Ok(vec![address]);
        }
        if self.servers.is_empty() {
            return Err(NameError::NoServer { name: name.to_owned() });
        }
        let searched = self.search.iter().filter(|_| !name.contains('.'));
        let candidates = searched.map(|domain| format!("{name}.{domain}")).chain([name.to_owned()]);
        let mut error = NameError::Unknown { name: name.to_owned() };
        for candidate in candidates {
            match self.look_up(network, &candidate).await {
                Ok(addresses) => return Ok(addresses),
                Err(NameError::Unknown { .. }) => {}
                Err(other) => error = other,
            }
        }
        Err(error)
    }

    async fn look_up(&self, network: &Network, name: &str) -> Result<Vec<IpAddr>, NameError> {
        let key = name.trim_end_matches('.').to_ascii_lowercase();
        if let Some(addresses) = self.recall(&key) {
            return Ok(addresses);
        }
        let (v4, v6) =
            tokio::join!(self.ask_all(network, name, Family::V4), self.ask_all(network, name, Family::V6));
        let mut addresses = Vec::new();
        let mut ttl_secs = REMEMBERED_SECS;
        let mut error = NameError::Unknown { name: name.to_owned() };
        for outcome in [v4, v6] {
            match outcome {
                Ok((found, ttl)) => {
                    addresses.extend(found);
                    ttl_secs = ttl_secs.min(ttl);
                }
                Err(NameError::Unknown { .. }) => {}
                Err(other) => error = other,
            }
        }
        if addresses.is_empty() {
            return Err(error);
        }
        self.remember(key, addresses.clone(), ttl_secs);
        Ok(addresses)
    }

    async fn ask_all(
        &self,
        network: &Network,
        name: &str,
        family: Family,
    ) -> Result<(Vec<IpAddr>, u32), NameError> {
        if !self.families.contains(&family) {
            return Ok((Vec::new(), u32::MAX));
        }
        for server in self.servers.iter().cycle().take(self.servers.len() * ROUNDS) {
            // A new question each time: another number, another port.
            let question =
                Question::new(name, family).ok_or_else(|| NameError::Malformed { name: name.to_owned() })?;
            let server = SocketAddr::new(*server, 53);
            let answer = match timeout(PATIENCE, by_datagram(network, server, &question)).await {
                Ok(Ok(Answer::Truncated)) => timeout(PATIENCE, by_stream(network, server, &question)).await,
                other => other,
            };
            match answer {
                Ok(Ok(Answer::Addresses(addresses, ttl))) => return Ok((addresses, ttl)),
                Ok(Ok(Answer::NoSuchName)) => return Err(NameError::Unknown { name: name.to_owned() }),
                Ok(Ok(Answer::Failed | Answer::Truncated)) => {}
                Ok(Err(error)) => tracing::debug!(%server, name, %error, "a DNS server was not reached"),
                Err(_) => tracing::debug!(%server, name, "a DNS server did not answer"),
            }
        }
        Err(NameError::NoAnswer { name: name.to_owned() })
    }

    fn recall(&self, name: &str) -> Option<Vec<IpAddr>> {
        let remembered = self.remembered.lock().unwrap_or_else(PoisonError::into_inner);
        let (addresses, until) = remembered.get(name)?;
        (*until > Instant::now()).then(|| addresses.clone())
    }

    fn remember(&self, name: String, addresses: Vec<IpAddr>, ttl_secs: u32) {
        let now = Instant::now();
        let mut remembered = self.remembered.lock().unwrap_or_else(PoisonError::into_inner);
        if remembered.len() >= REMEMBERED {
            remembered.retain(|_, (_, until)| *until > now);
        }
        if remembered.len() >= REMEMBERED {
            remembered.clear();
        }
        remembered.insert(name, (addresses, now + Duration::from_secs(ttl_secs.into())));
    }
}

async fn by_datagram(network: &Network, server: SocketAddr, question: &Question) -> io::Result<Answer> {
    let socket = network.udp_bind(server.ip())?;
    socket.send_to(&question.message, server)?;
    loop {
        let (message, from) = socket.recv_from().await?;
        if from == server
            && let Some(answer) = question.read(&message)
        {
            return Ok(answer);
        }
    }
}

async fn by_stream(network: &Network, server: SocketAddr, question: &Question) -> io::Result<Answer> {
    let mut stream = network.tcp_connect(server).await?;
    let len = u16::try_from(question.message.len()).map_err(io::Error::other)?;
    stream.write_all(&[&len.to_be_bytes()[..], &question.message].concat()).await?;
    let len = stream.read_u16().await?;
    let mut message = vec![0; usize::from(len)];
    stream.read_exact(&mut message).await?;
    question.read(&message).ok_or_else(|| io::Error::other("the server answered another question"))
}

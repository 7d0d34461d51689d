//! `-L` and `-R`: one port here or inside the tunnel, one destination on the other side.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::str::FromStr;
use std::time::Duration;

use tokio::net::TcpStream as LocalStream;
use tokio::time::timeout;

use super::dial::Dialer;
use super::gate::{Gate, Place};
use super::relay;
use super::target::{Host, Refusal, Target, check};
use crate::tunnel::{TcpListener, TcpStream};

/// How long a destination on this side has to accept.
const ACCEPT: Duration = Duration::from_secs(10);

/// `[BIND:]PORT:HOST:PORT`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Forward {
    bind: Option<IpAddr>,
    port: u16,
    host: String,
    host_port: u16,
}

impl FromStr for Forward {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        const FORM: &str =
            "write [BIND:]PORT:HOST:PORT, for example 8080:web.example:80 or [::1]:8080:[fd86::1]:80";
        let parts = split(text).ok_or(FORM)?;
        let (bind, port, host, host_port) = match parts.as_slice() {
            [port, host, host_port] => (None, port, host, host_port),
            [bind, port, host, host_port] => {
                let bind = if *bind == "localhost" { "127.0.0.1" } else { bind };
                (
                    Some(bind.parse().map_err(|_| format!("`{bind}` is not an address; {FORM}"))?),
                    port,
                    host,
                    host_port,
                )
            }
            _ => return Err(FORM.to_owned()),
        };
        let number = |port: &str| {
            port.parse().ok().filter(|&port| port != 0).ok_or(format!("`{port}` is no port; {FORM}"))
        };
        let (port, host_port) = (number(port)?, number(host_port)?);
        if host.is_empty() {
            return Err(FORM.to_owned());
        }
        Ok(Self { bind, port, host: (*host).to_owned(), host_port })
    }
}

/// Splits at colons outside of brackets, and takes the brackets off.
fn split(text: &str) -> Option<Vec<&str>> {
    let mut parts = Vec::new();
    let mut rest = text;
    loop {
        let (part, after) = match rest.strip_prefix('[') {
            Some(inside) => {
                let (part, after) = inside.split_once(']')?;
                (
                    part,
                    after
                        .strip_prefix(':')
                        .or(after.is_empty().then_some(""))
                        .map(|it| (it, after.is_empty()))?,
                )
            }
            None => match rest.split_once(':') {
                Some((part, after)) => (part, (after, false)),
                None => (rest, ("", true)),
            },
        };
        parts.push(part);
        match after {
            (_, true) => return Some(parts),
            (after, false) => rest = after,
        }
    }
}

impl fmt::Display for Forward {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let host = if self.host.contains(':') { format!("[{}]", self.host) } else { self.host.clone() };
        write!(f, "port {} to {host}:{}", self.port, self.host_port)
    }
}

impl Forward {
    /// Where `-L` listens.
    pub(super) fn local_listen(&self) -> SocketAddr {
        SocketAddr::new(self.bind.unwrap_or(Ipv4Addr::LOCALHOST.into()), self.port)
    }

    /// The port inside the tunnel where `-R` listens, and on which of our addresses if not on all.
    pub(super) fn inside_listen(&self) -> (u16, Option<IpAddr>) {
        (self.port, self.bind)
    }

    /// Where `-L` leads to. An address that no connection will be made to is refused before there is any.
    pub(super) fn inside_target(&self, ours: &[IpAddr]) -> Result<Target, Refusal> {
        let host = Host::parse(&self.host)?;
        if let Host::Address(address) = host {
            check(address, ours)?;
        }
        Ok(Target { host, port: self.host_port })
    }
}

/// Serves a connection to the local port of `-L`.
pub(super) async fn outward(
    client: LocalStream,
    from: SocketAddr,
    dialer: Dialer,
    target: Target,
    _place: Place,
) {
    let outcome = match dialer.connect_any_port(&target).await {
        Ok(remote) => {
            relay::relay(client, remote).await.map_err(|error| format!("connection broke: {error}"))
        }
        Err(error) => {
            // A closed connection would look like an empty answer.
            let _ = client.set_zero_linger();
            Err(error.to_string())
        }
    };
    if let Err(error) = outcome {
        tracing::info!(%from, %target, "{error}");
    }
}

/// Serves the port inside the tunnel of `-R` until the tunnel ends.
pub(super) async fn inward(listener: TcpListener, forward: Forward, gate: Gate) {
    while let Ok(remote) = listener.accept().await {
        let wrong_address =
            forward.bind.is_some_and(|bind| remote.local_addr().is_none_or(|it| it.ip() != bind));
        let Some(pass) = gate.enter().filter(|_| !wrong_address) else {
            remote.abort();
            continue;
        };
        let forward = forward.clone();
        tokio::spawn(async move {
            if let Err(error) = hand_over(&remote_name(&remote), remote, &forward).await {
                tracing::info!("{error}");
            }
            drop(pass);
        });
    }
}

fn remote_name(remote: &TcpStream) -> String {
    remote.peer_addr().map_or_else(String::new, |address| address.to_string())
}

async fn hand_over(from: &str, remote: TcpStream, forward: &Forward) -> anyhow::Result<()> {
    let connecting = LocalStream::connect((forward.host.as_str(), forward.host_port));
    match timeout(ACCEPT, connecting).await {
        Ok(Ok(local)) => Ok(relay::relay(local, remote).await?),
        Ok(Err(error)) => {
            remote.abort();
            anyhow::bail!("{from} came to {forward}, which cannot be reached: {error}")
        }
        Err(_) => {
            remote.abort();
            anyhow::bail!("{from} came to {forward}, which does not answer")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forwards_are_read_as_ssh_writes_them() {
        let parse = |text: &str| text.parse::<Forward>();
        let plain = parse("8080:web.example:80").unwrap();
        assert_eq!(plain.local_listen(), "127.0.0.1:8080".parse().unwrap());
        assert_eq!(
            plain.inside_target(&[]).unwrap(),
            Target { host: Host::Name("web.example".into()), port: 80 }
        );
        let bound = parse("[::1]:8080:[fd86::1]:25").unwrap();
        assert_eq!(bound.local_listen(), "[::1]:8080".parse().unwrap());
        assert_eq!(bound.to_string(), "port 8080 to [fd86::1]:25");
        let refused = |text: &str, ours: &[IpAddr]| parse(text).unwrap().inside_target(ours).err();
        assert_eq!(refused("1:127.0.0.1:80", &[]), Some(Refusal::Local));
        assert_eq!(refused("1:[::1]:80", &[]), Some(Refusal::Local));
        let ours = ["10.86.0.2".parse().unwrap()];
        assert_eq!(refused("1:10.86.0.2:80", &ours), Some(Refusal::Own));
        assert_eq!(refused("1:10.86.0.1:80", &ours), None);
        assert_eq!(parse("localhost:1:a:2").unwrap().local_listen(), "127.0.0.1:1".parse().unwrap());
        for bad in [
            "",
            "8080",
            "8080:web",
            "0:web:80",
            "8080:web:0",
            "8080::80",
            "x:8080:web:80",
            "[::1:80:a:1",
            "1:2:3:4:5",
            "[::1]x:1:a:2",
        ] {
            assert!(parse(bad).is_err(), "{bad:?}");
        }
    }
}

use std::collections::HashSet;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::{TcpListener, UdpSocket};
use tokio::sync::watch;
use tokio::task::AbortHandle;

use super::caller::Callers;
use super::request::Desk;
use super::{Wanted, echo};

/// How long an address that could not be had is left alone.
const RETRY: Duration = Duration::from_secs(2);
/// How long no connection is taken when the process has no descriptor for one.
const PAUSE: Duration = Duration::from_millis(100);
/// Connections that wait to be taken; the kernel refuses more.
const BACKLOG: i32 = 64;

/// What is behind the doors.
pub(super) enum Kind {
    Http(Arc<Desk>),
    Echo,
}

/// An open address; closed when dropped.
struct Door {
    at: SocketAddr,
    interface: String,
    task: AbortHandle,
}

impl Drop for Door {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Has exactly the wanted addresses open until the sender of `wanted` is gone.
pub(super) async fn keep_open(kind: Kind, callers: Callers, mut wanted: watch::Receiver<Wanted>) {
    let mut doors: Vec<Door> = Vec::new();
    let mut told = HashSet::new();
    loop {
        let now = wanted.borrow_and_update().clone();
        doors.retain(|door| {
            now.interface == door.interface && now.addresses.contains(&door.at) && !door.task.is_finished()
        });
        let missing: Vec<SocketAddr> =
            now.addresses.iter().filter(|at| doors.iter().all(|door| door.at != **at)).copied().collect();
        let mut failed = false;
        for at in missing {
            match open(&kind, at, &now.interface, &callers) {
                Ok(task) => doors.push(Door { at, interface: now.interface.clone(), task }),
                Err(error) => {
                    failed = true;
                    let reason = format!("{at}: {error}");
                    if told.insert(reason.clone()) {
                        tracing::warn!(
                            "the inside API cannot have {reason}; it is tried again. Another port: `inside_api` below \
                             [gateway]"
                        );
                    }
                }
            }
        }
        if !failed {
            told.clear();
        }
        let changed = match failed {
            true => tokio::time::timeout(RETRY, wanted.changed()).await.unwrap_or(Ok(())),
            false => wanted.changed().await,
        };
        if changed.is_err() {
            return;
        }
    }
}

fn open(kind: &Kind, at: SocketAddr, interface: &str, callers: &Callers) -> io::Result<AbortHandle> {
    let callers = callers.clone();
    let task = match kind {
        Kind::Http(desk) => {
            let socket = bound(at, interface, Type::STREAM, Protocol::TCP)?;
            socket.listen(BACKLOG)?;
            let listener = TcpListener::from_std(socket.into())?;
            tokio::spawn(receive(listener, at, callers, Arc::clone(desk)))
        }
        Kind::Echo => {
            let socket = UdpSocket::from_std(bound(at, interface, Type::DGRAM, Protocol::UDP)?.into())?;
            tokio::spawn(echo::answer(socket, callers))
        }
    };
    Ok(task.abort_handle())
}

/// Only what came in through the interface reaches the socket; the address may come later.
fn bound(at: SocketAddr, interface: &str, kind: Type, protocol: Protocol) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(at), kind, Some(protocol))?;
    socket.set_nonblocking(true)?;
    match at {
        SocketAddr::V4(_) => socket.set_freebind_v4(true)?,
        SocketAddr::V6(_) => {
            socket.set_only_v6(true)?;
            socket.set_freebind_v6(true)?;
        }
    }
    if kind == Type::STREAM {
        socket.set_reuse_address(true)?;
    }
    socket.bind_device(Some(interface.as_bytes()))?;
    socket.bind(&at.into())?;
    Ok(socket)
}

async fn receive(listener: TcpListener, at: SocketAddr, callers: Callers, desk: Arc<Desk>) {
    loop {
        match listener.accept().await {
            Ok((stream, from)) => desk.welcome(stream, from, at, &callers),
            Err(error) => {
                tracing::debug!(%error, "the inside API cannot take a connection");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

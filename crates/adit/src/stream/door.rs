//! The gateway's TCP ports, and who comes in by them.

use std::collections::HashSet;
use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use adit_io::carrier::stream;
use adit_proto::forward::Forwarding;
use anyhow::Context;
use socket2::{Domain, Protocol, SockAddr, Socket, Type};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::AbortHandle;

use super::certificate::{Certificate, Shown};
use super::greeting::{Guest, Hall};
use super::lobby::Lobby;
use super::recognition::GivenPin;
use crate::config::stream::Web;
use crate::daemon;
use crate::driver::Streams;

/// What a door is like.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DoorPlan {
    /// Where connections are taken.
    pub listen: Vec<SocketAddr>,
    /// What TLS shows.
    pub certificate: Certificate,
    /// What the profiles of clients recognise it by.
    pub given_pin: GivenPin,
    /// What visitors find.
    pub web: Web,
    /// Where the WebSocket is.
    pub path: String,
}

/// Takes connections until it is dropped.
#[derive(Debug)]
pub struct Door {
    plan: Option<watch::Sender<DoorPlan>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

/// How often the files of a certificate are looked at, and a port that could not be had is tried again.
const LOOK: Duration = Duration::from_secs(2);
/// How long no connection is taken when there is no descriptor for one. UDP goes on.
const PAUSE: Duration = Duration::from_millis(250);
/// Connections that wait to be taken; beyond them the kernel answers with cookies.
const BACKLOG: i32 = 1_024;

impl Door {
    /// Opens the ports.
    ///
    /// # Errors
    /// The certificate cannot be read. A port that cannot be had is tried again, and told about.
    pub fn open(plan: DoorPlan, forwarding: Arc<Forwarding>, streams: Arc<Streams>) -> anyhow::Result<Self> {
        let shown = plan.certificate.load()?;
        warn_of_new_key(&plan, &shown);
        let mut listeners = Vec::new();
        for at in &plan.listen {
            match bound(*at) {
                Ok(socket) => listeners.push((*at, socket)),
                Err(error) => tracing::warn!("{}: {error}", taken(*at)),
            }
        }
        let (sender, receiver) = watch::channel(plan);
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .max_blocking_threads(4)
            .build()
            .context("cannot start the thread that takes connections")?;
        let lobby = Lobby::new(daemon::raise_descriptor_limit());
        let keeper = Keeper { forwarding, streams, lobby, shown, open: Vec::new() };
        let thread = std::thread::Builder::new()
            .name("door".to_owned())
            .spawn(move || runtime.block_on(keeper.run(listeners, receiver)))?;
        Ok(Self { plan: Some(sender), thread: Some(thread) })
    }

    /// Changes what it is like; connections that are proven stay.
    pub fn change(&self, plan: DoorPlan) {
        if let Some(sender) = &self.plan {
            sender.send_if_modified(|now| {
                let changes = *now != plan;
                *now = plan;
                changes
            });
        }
    }
}

impl Drop for Door {
    fn drop(&mut self) {
        drop(self.plan.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn warn_of_new_key(plan: &DoorPlan, shown: &Shown) {
    if let Some(warning) = plan.given_pin.warning(shown.pin.as_deref()) {
        tracing::warn!("{warning}");
    }
}

struct Keeper {
    forwarding: Arc<Forwarding>,
    streams: Arc<Streams>,
    lobby: Lobby,
    shown: Shown,
    open: Vec<(SocketAddr, AbortHandle)>,
}

impl Keeper {
    async fn run(mut self, listeners: Vec<(SocketAddr, Socket)>, mut plan: watch::Receiver<DoorPlan>) {
        let mut told = HashSet::new();
        let (halls, hall) = watch::channel(self.hall(&plan.borrow_and_update()));
        for (at, socket) in listeners {
            self.listen(at, socket, &hall);
        }
        loop {
            let changed = match tokio::time::timeout(LOOK, plan.changed()).await {
                Ok(Err(_)) => break,
                Ok(Ok(())) => true,
                Err(_) => false,
            };
            let now = plan.borrow_and_update().clone();
            if changed || now.certificate.stamps() != self.shown.files {
                match now.certificate.load() {
                    Ok(shown) => {
                        warn_of_new_key(&now, &shown);
                        self.shown = shown;
                        told.clear();
                        tracing::info!("connections see the certificate as it is now");
                    }
                    Err(error) => {
                        let problem = format!("{error:#}");
                        if told.insert(problem.clone()) {
                            tracing::warn!("the certificate stays as it was: {problem}");
                        }
                    }
                }
                halls.send_replace(self.hall(&now));
            }
            self.open.retain(|(at, task)| {
                let stays = now.listen.contains(at) && !task.is_finished();
                if !stays {
                    task.abort();
                }
                stays
            });
            for at in &now.listen {
                if self.open.iter().any(|(open, _)| open == at) {
                    continue;
                }
                match bound(*at) {
                    Ok(socket) => self.listen(*at, socket, &hall),
                    Err(error) => {
                        let problem = format!("{}: {error}", taken(*at));
                        if told.insert(problem.clone()) {
                            tracing::warn!("{problem}; it is tried again");
                        }
                    }
                }
            }
        }
        for (_, task) in &self.open {
            task.abort();
        }
    }

    fn hall(&self, plan: &DoorPlan) -> Arc<Hall> {
        Arc::new(Hall {
            forwarding: Arc::clone(&self.forwarding),
            streams: Arc::clone(&self.streams),
            tls: Arc::clone(&self.shown.config),
            web: plan.web.clone(),
            path: plan.path.clone(),
        })
    }

    fn listen(&mut self, at: SocketAddr, socket: Socket, hall: &watch::Receiver<Arc<Hall>>) {
        match TcpListener::from_std(socket.into()) {
            Ok(listener) => {
                let task = tokio::spawn(receive(listener, hall.clone(), self.lobby.clone()));
                self.open.push((at, task.abort_handle()));
            }
            Err(error) => tracing::warn!("{}: {error}", taken(at)),
        }
    }
}

async fn receive(listener: TcpListener, hall: watch::Receiver<Arc<Hall>>, lobby: Lobby) {
    // With it given back for a moment, a connection that there is no descriptor for is refused and not left hanging.
    let mut reserve = std::fs::File::open("/dev/null").ok();
    loop {
        match listener.accept().await {
            Ok((stream, from)) => {
                reserve = reserve.or_else(|| std::fs::File::open("/dev/null").ok());
                if stream::prepare(&stream).is_err() {
                    continue;
                }
                let place = lobby.enter(from.ip());
                let number = place.number();
                let hall = Arc::clone(&hall.borrow());
                let task = tokio::spawn(async move { hall.greet(stream, Guest { from, place }).await });
                let task = task.abort_handle();
                // Not even begun: this thread is the one that runs it.
                lobby.set_exit(number, move || task.abort());
            }
            Err(error) if is_shortage(&error) => {
                if reserve.take().is_some()
                    && let Ok(Ok((stream, _))) = tokio::time::timeout(PAUSE, listener.accept()).await
                {
                    drop(stream);
                    reserve = std::fs::File::open("/dev/null").ok();
                }
                tracing::debug!(%error, "no descriptor for a connection");
                tokio::time::sleep(PAUSE).await;
            }
            Err(error) => tracing::debug!(%error, "a connection ended before it was taken"),
        }
    }
}

fn is_shortage(error: &io::Error) -> bool {
    // EMFILE, ENFILE, ENOBUFS, ENOMEM
    matches!(error.raw_os_error(), Some(24 | 23 | 105 | 12))
}

fn bound(at: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(at), Type::STREAM, Some(Protocol::TCP));
    let (socket, at) = match socket {
        // All addresses of a host without IPv6 are those of IPv4.
        Err(_) if at.ip() == IpAddr::from(Ipv6Addr::UNSPECIFIED) => {
            let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP))?;
            (socket, SocketAddr::from(([0, 0, 0, 0], at.port())))
        }
        socket => (socket?, at),
    };
    if at.is_ipv6() {
        socket.set_only_v6(at.ip() != IpAddr::from(Ipv6Addr::UNSPECIFIED))?;
    }
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    match socket.bind(&SockAddr::from(at)) {
        // IPv6 is switched off.
        Err(error) if error.raw_os_error() == Some(99) && at.ip() == IpAddr::from(Ipv6Addr::UNSPECIFIED) => {
            return bound(SocketAddr::from(([0, 0, 0, 0], at.port())));
        }
        outcome => outcome?,
    }
    stream::begin_without_bbr(&socket);
    socket.listen(BACKLOG)?;
    Ok(socket)
}

fn taken(at: SocketAddr) -> String {
    format!(
        "cannot take connections on TCP {at}; another program may use the port (`ss -ltnp`): name another by `stream` \
         below [gateway], or write `stream = \"off\"`"
    )
}

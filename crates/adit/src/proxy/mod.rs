//! `adit proxy`: a browser, a command or a port through the tunnel, as an ordinary user.
//!
//! ```text
//!   SOCKS5 ─┐                        ┌─ names resolved inside
//!   HTTP   ─┼─ who? ─ where to? ─ dial ─ address checked ─ connected through the tunnel, or refused
//!   -L     ─┘                                                        ◀── relay ──▶
//! ```
//!
//! Bounds: clients by the gate (turned away at once); negotiations by time; bytes under way by the buffers of the
//! stack and the sockets.

mod associate;
mod auth;
mod dial;
mod forward;
mod gate;
mod http;
mod relay;
mod socks;
mod target;
mod upload;

use std::future::Future;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use clap::Args;
use tokio::net::{TcpListener, TcpStream};
use tokio::signal::unix::{SignalKind, signal};

pub use self::auth::AuthSource;
pub use self::forward::Forward;

use self::auth::Credentials;
use self::dial::Dialer;
use self::gate::{Gate, Place};
use crate::config::wgquick::{Hooks, WgQuick};
use crate::config::{ClientFlags, ClientSettings, Layers};
use crate::daemon;
use crate::home::Home;
use crate::log::LogOptions;
use crate::profile::{self, ForVerb};
use crate::tunnel::{Link, Tunnel};

/// What `adit proxy` is told.
#[derive(Clone, Debug, Args)]
pub struct ProxyArgs {
    /// A wg-quick file, or the NAME of one beside the configuration [default: the only one there]
    #[arg(value_name = "FILE.conf|NAME")]
    profile: Option<PathBuf>,
    /// Serve SOCKS5 here [default: 127.0.0.1:1080 when nothing else is asked for]
    #[arg(long, value_name = "[ADDR:]PORT", num_args = 0..=1, default_missing_value = "1080", value_parser = listen_address)]
    socks5: Option<SocketAddr>,
    /// Serve HTTP and HTTPS (CONNECT) here
    #[arg(long, value_name = "[ADDR:]PORT", num_args = 0..=1, default_missing_value = "8118", value_parser = listen_address)]
    http: Option<SocketAddr>,
    /// Lead a port of this machine to a host inside
    #[arg(short = 'L', long = "local", value_name = "[BIND:]PORT:HOST:PORT")]
    local: Vec<Forward>,
    /// Lead a port inside to a host of this side
    #[arg(short = 'R', long = "remote", value_name = "[BIND:]PORT:HOST:PORT")]
    remote: Vec<Forward>,
    /// Ask clients for a user and the password in a file; needed to listen beyond loopback
    #[arg(long, value_name = "USER:file:PATH")]
    auth: Option<AuthSource>,
    #[command(flatten)]
    settings: ClientFlags<false>,
}

/// Where to listen; a port alone is one of loopback.
fn listen_address(text: &str) -> Result<SocketAddr, String> {
    let (host, port) = text.rsplit_once(':').unwrap_or(("127.0.0.1", text));
    let host = if host == "localhost" { "127.0.0.1" } else { host };
    format!("{host}:{port}")
        .parse()
        .map_err(|_| "write [ADDR:]PORT, for example 1080, 127.0.0.1:1080 or [::1]:1080".to_owned())
}

/// Serves until it is told to stop.
///
/// # Errors
/// The profile is wrong, an address is taken or would make an open proxy, or the tunnel breaks for good.
pub fn run(home: &Home, args: &ProxyArgs, log: &LogOptions, layers: Layers) -> anyhow::Result<ExitCode> {
    let mut args = args.clone();
    if args.socks5.is_none() && args.http.is_none() && args.local.is_empty() && args.remote.is_empty() {
        args.socks5 = Some(SocketAddr::from(([127, 0, 0, 1], 1080)));
    }
    args.refuse_open_doors()?;
    args.refuse_shared_doors()?;
    let credentials = args.auth.as_ref().map(Credentials::load).transpose()?;
    let file =
        WgQuick::load(&profile::find(home, args.profile.as_deref(), ForVerb("proxy", ""))?, Hooks::Allowed)?;
    let settings = ClientSettings::load(home, &args.settings.clone().over(layers), Some(&file))?;
    crate::log::start(log)?;
    adit_io::sys::keep_large_blocks_apart();
    let descriptors = adit_io::sys::raise_descriptor_limit().context("cannot ask for more descriptors")?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(serve(&args, &file, &settings, credentials, Gate::new(descriptors)))?;
    // Whoever still talks is cut off; nothing is left to wait for.
    runtime.shutdown_timeout(Duration::from_millis(100));
    Ok(ExitCode::SUCCESS)
}

impl ProxyArgs {
    /// Whoever can reach a listener can use the tunnel.
    fn refuse_open_doors(&self) -> anyhow::Result<()> {
        let beyond = |address: &SocketAddr| !address.ip().is_loopback();
        let door = [("--socks5", self.socks5), ("--http", self.http)]
            .into_iter()
            .find_map(|(flag, address)| Some((flag, address.filter(beyond)?)));
        if let Some((flag, address)) = door
            && self.auth.is_none()
        {
            bail!(
                "{flag} {address} would let anybody who reaches this machine use the tunnel; bind 127.0.0.1, or ask \
                 for a password with --auth USER:file:PATH"
            );
        }
        if let Some(forward) = self.local.iter().find(|forward| beyond(&forward.local_listen())) {
            bail!("-L {forward} would be open to others, and cannot ask for a password; bind 127.0.0.1");
        }
        Ok(())
    }

    /// One address leads to one place.
    fn refuse_shared_doors(&self) -> anyhow::Result<()> {
        let mut asked: Vec<(SocketAddr, String)> = Vec::new();
        let doors = [("--socks5", self.socks5), ("--http", self.http)];
        let doors = doors.into_iter().filter_map(|(flag, address)| Some((address?, flag.to_owned())));
        let forwards = self.local.iter().map(|forward| (forward.local_listen(), format!("-L {forward}")));
        for (address, flag) in doors.chain(forwards) {
            if let Some((_, other)) = asked.iter().find(|(taken, _)| *taken == address) {
                bail!("{other} and {flag} both ask for {address}; give each a port of its own");
            }
            asked.push((address, flag));
        }
        Ok(())
    }
}

async fn serve(
    args: &ProxyArgs,
    file: &WgQuick,
    settings: &ClientSettings,
    credentials: Option<Credentials>,
    gate: Gate,
) -> anyhow::Result<()> {
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let mut doors = Vec::new();
    if let Some(address) = args.socks5 {
        doors.push((bind(address, "--socks5").await?, Door::Socks));
    }
    if let Some(address) = args.http {
        doors.push((bind(address, "--http").await?, Door::Http));
    }
    for forward in &args.local {
        let ours: Vec<_> = file.interface.addresses.iter().map(|it| it.addr()).collect();
        let target = forward.inside_target(&ours).map_err(|error| anyhow!("-L {forward}: {error}"))?;
        doors.push((bind(forward.local_listen(), "-L").await?, Door::Port(target)));
    }
    let tunnel = Tunnel::open_with(file, settings)?;
    let dialer = Dialer::new(tunnel.clone());
    for forward in &args.remote {
        let (port, address) = forward.inside_listen();
        if let Some(address) = address
            && !tunnel.addresses().contains(&address)
        {
            bail!("-R {forward}: {address} is not our address inside the tunnel");
        }
        let listener = tunnel.tcp_listen(port).map_err(|error| anyhow!("-R {forward}: {error}"))?;
        tracing::info!("inside: {forward}");
        tokio::spawn(forward::inward(listener, forward.clone(), gate.clone()));
    }
    let dialer = dialer.keep_off(file.peers.iter().flat_map(|peer| &peer.inside_api).copied());
    for (listener, door) in doors {
        let address = listener.local_addr()?;
        match &door {
            Door::Port(target) => tracing::info!("-L {address} leads to {target}"),
            door => tracing::info!("{} on {address}", door.name()),
        }
        tokio::spawn(attend(listener, door, dialer.clone(), credentials.clone(), gate.clone()));
    }
    if tunnel.wait_until_up().await.is_err() {
        match file.peers.iter().any(|peer| peer.endpoint.is_some()) {
            true => tracing::warn!(
                "no answer from {} so far; connections are refused until there is one",
                tunnel.gateway()
            ),
            false => tracing::warn!(
                "the profile names no `Endpoint`, so only the other side can begin; connections are refused until it does"
            ),
        }
    }
    daemon::notify_service_manager("READY=1");
    tracing::info!(connections = gate.places(), "proxy ready");
    let mut link = tunnel.link();
    let ended = async {
        match link.wait_for(|link| matches!(link, Link::Ended(_))).await.as_deref() {
            Ok(Link::Ended(reason)) => reason.clone(),
            _ => "it stopped".to_owned(),
        }
    };
    tokio::select! {
        _ = terminate.recv() => Ok(()),
        _ = interrupt.recv() => Ok(()),
        reason = ended => Err(anyhow!("the tunnel ended: {reason}")),
    }
}

/// What is behind a listener.
#[derive(Clone, Debug)]
enum Door {
    Socks,
    Http,
    Port(target::Target),
}

impl Door {
    fn name(&self) -> &'static str {
        match self {
            Self::Socks => "SOCKS5",
            Self::Http => "HTTP",
            Self::Port(_) => "-L",
        }
    }
}

async fn bind(address: SocketAddr, flag: &str) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address).await.map_err(|error| match error.kind() {
        std::io::ErrorKind::AddrInUse => anyhow!(
            "{address} is taken by another program (`ss -ltnp sport = :{}` shows which); choose another with {flag}",
            address.port()
        ),
        std::io::ErrorKind::PermissionDenied => {
            anyhow!("cannot listen on {address}: {error}; ports below 1024 are for root, choose another with {flag}")
        }
        std::io::ErrorKind::AddrNotAvailable => {
            anyhow!("cannot listen on {address}: it is no address of this machine (`ip address` shows them)")
        }
        _ => anyhow!("cannot listen on {address}: {error}"),
    })
}

async fn attend(
    listener: TcpListener,
    door: Door,
    dialer: Dialer,
    credentials: Option<Credentials>,
    gate: Gate,
) {
    loop {
        let (client, from) = match listener.accept().await {
            // A listener for both versions writes IPv4 in a way of its own.
            Ok((client, from)) => (client, SocketAddr::new(from.ip().to_canonical(), from.port())),
            Err(error) => {
                tracing::warn!("cannot accept: {error}");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        // `-L` asks for no password.
        let asks = credentials.is_some() && !matches!(door, Door::Port(_));
        let place = if asks { None } else { gate.place_inside() };
        if !asks && place.is_none() {
            tracing::debug!(%from, "turned away: there are too many connections");
            if matches!(door, Door::Http) {
                http::turn_away(client);
            }
            continue;
        }
        let (door, dialer, credentials) = (door.clone(), dialer.clone(), credentials.clone());
        let serve = |place| one(client, from, door, dialer, credentials, place);
        match place {
            Some(place) => drop(tokio::spawn(serve(place))),
            None => gate.receive(from.ip(), serve),
        }
    }
}

fn one(
    client: TcpStream,
    from: SocketAddr,
    door: Door,
    dialer: Dialer,
    credentials: Option<Credentials>,
    place: Place,
) -> std::pin::Pin<Box<dyn Future<Output = ()> + Send>> {
    match door {
        Door::Socks => Box::pin(socks::serve(client, from, dialer, credentials, place)),
        Door::Http => Box::pin(http::serve(client, from, dialer, credentials, place)),
        Door::Port(target) => Box::pin(forward::outward(client, from, dialer, target, place)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_alone_is_one_of_loopback() {
        let read = |text: &str| listen_address(text).map(|it| it.to_string());
        assert_eq!(read("1080"), Ok("127.0.0.1:1080".to_owned()));
        assert_eq!(read("localhost:1080"), Ok("127.0.0.1:1080".to_owned()));
        assert_eq!(read("[::1]:1080"), Ok("[::1]:1080".to_owned()));
        assert_eq!(read("192.0.2.1:80"), Ok("192.0.2.1:80".to_owned()));
        for bad in ["", "web.example:80", "::1:80x", "99999", "127.0.0.1", "1080:"] {
            assert!(read(bad).unwrap_err().contains("[ADDR:]PORT"), "{bad:?}");
        }
    }
}

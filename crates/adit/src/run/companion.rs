//! The process beside the command: it has the keys and the network of the host, and ends with the command.

use std::io::Write;
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use adit_io::sys::Beside;
use adit_io::tun::Tun;
use anyhow::{Context, anyhow, bail};
use crossbeam_channel::{Receiver, bounded};

use super::layout::{INTERFACE, Layout};
use super::{RunOptions, warn};
use crate::client::{introduction, no_answer, resolve_peers};
use crate::config::wgquick::{Hooks, WgQuick};
use crate::config::{ClientSettings, Mtu};
use crate::daemon::{self, Signal};
use crate::device;
use crate::dial;
use crate::driver::DriverConfig;
use crate::forwarder::Upstream;
use crate::instance::{Instance, Wake};
use crate::privilege;
use crate::status::Role;

const FIRST_ANSWER: Duration = Duration::from_secs(5);
const IDLE: Duration = Duration::from_secs(5);

/// Carries the packets of the command until it ends.
pub fn serve(beside: Beside, options: &RunOptions) -> ExitCode {
    daemon::forbid_core_dumps();
    // The caller ends when this is closed, and what went wrong is to be read by then.
    let _until_it_is_said = beside.caller.try_clone();
    match carry(beside, options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("adit run: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn carry(beside: Beside, options: &RunOptions) -> anyhow::Result<()> {
    let beside = Arc::new(beside);
    let file = WgQuick::load(&options.file, Hooks::Allowed)?;
    let settings = ClientSettings::load(&options.home, &options.layers, Some(&file))?;
    crate::log::start(&options.log)?;
    if !file.interface.hooks.is_empty() {
        warn("PreUp, PostUp, PreDown and PostDown are passed over: `adit run` changes nothing on the host");
    }
    let reached = resolve_peers(&file.peers, &settings)?;
    let mut targets = dial::targets(&file, &reached, &settings)?;
    let fwmark = fwmark_of(&file);
    targets.iter_mut().for_each(|target| target.go_beside(&Upstream { servers: Vec::new(), fwmark }));
    let in_use: Vec<IpAddr> = reached.iter().map(|it| it.current.ip()).collect();
    let mtu_bytes = match file.interface.mtu {
        Mtu::Bytes(bytes) => bytes.into(),
        Mtu::Auto => adit_host::auto_mtu(&in_use, fwmark)?,
    };
    let layout = Layout::of(&file, mtu_bytes);
    warn_about_dns(&layout);
    layout.send(&beside.caller)?;

    // The process that becomes the command ended, and has said why.
    let Ok(descriptors) = adit_io::sys::receive_descriptors(&beside.caller) else { return Ok(()) };
    let listen_port = file.interface.listen_port;
    let driver =
        device::start(DriverConfig { tun: queues(descriptors)?, listen_port, fwmark, offload: true })?;
    driver.apply(introduction(&file, dial::by_datagrams(&settings, &reached), &[]));
    let questions = crossbeam_channel::never();
    let mut instance = Instance::new(Role::Client, INTERFACE.to_owned(), driver, end_of(&beside)?, questions);
    let names = file.peers.iter().map(|peer| (peer.public_key, peer.name.as_ref().map(ToString::to_string)));
    instance.name_peers(names);
    for it in reached.iter().filter(|it| !it.by_proxy) {
        let peer = file.peers.iter().find(|peer| peer.public_key == it.peer);
        let name = peer.and_then(|peer| peer.endpoint.clone()).filter(|name| name.address().is_none());
        if let Some(name) = name {
            instance.endpoints.watch(it.peer, name, it.known.clone(), Some(it.current));
        }
    }
    instance.dial = dial::begin(&instance.driver, &settings, &reached, targets)?;
    if wait_for_an_answer(&mut instance, &file, &settings)? {
        (&beside.caller).write_all(&[1])?;
        run_until_the_end(&mut instance)?;
    }
    instance.driver.stop();
    Ok(())
}

/// A mark on packets needs a privilege, and without one it would mean little.
fn fwmark_of(file: &WgQuick) -> u32 {
    match file.interface.fwmark.unwrap_or(0) {
        0 => 0,
        mark if privilege::may_configure_network() => mark,
        _ => {
            warn("FwMark is passed over: only root may mark packets");
            0
        }
    }
}

fn warn_about_dns(layout: &Layout) {
    if layout.dns.is_empty() {
        warn(
            "the profile names no DNS server, so the command can use addresses only: the resolver of this machine \
             would tell others which names it asks for. Add `DNS = ADDRESS` below [Interface]",
        );
    }
    for server in layout.unreachable_dns() {
        warn(&format!("no allowed IPs lead to the DNS server {server}; names it resolves will not be found"));
    }
}

/// A queue is two descriptors.
fn queues(descriptors: Vec<OwnedFd>) -> anyhow::Result<Vec<Tun>> {
    let mut tun = Vec::new();
    let mut descriptors = descriptors.into_iter();
    while let (Some(queue), Some(control)) = (descriptors.next(), descriptors.next()) {
        tun.push(Tun::from_descriptors([queue, control], true).context("cannot take over the TUN device")?);
    }
    if tun.is_empty() {
        bail!("no TUN device came");
    }
    Ok(tun)
}

/// Says [`Signal::Stop`] when the command ended, or when this process is asked to end.
fn end_of(beside: &Arc<Beside>) -> anyhow::Result<Receiver<Signal>> {
    let (sender, receiver) = bounded(2);
    let (signals, from_signals, beside) = (daemon::signals()?, sender.clone(), Arc::clone(beside));
    let thread = |name: &str| std::thread::Builder::new().name(name.to_owned());
    thread("command").spawn(move || {
        if let Err(error) = beside.wait_for_its_end() {
            tracing::warn!(%error, "the end of the command cannot be seen");
        }
        let _ = sender.send(Signal::Stop);
    })?;
    thread("stop").spawn(move || {
        while let Ok(signal) = signals.recv() {
            if signal == Signal::Stop {
                let _ = from_signals.send(signal);
            }
        }
    })?;
    Ok(receiver)
}

/// Whether to go on. Without an answer the command starts all the same: it has no network until one comes.
fn wait_for_an_answer(
    instance: &mut Instance,
    file: &WgQuick,
    settings: &ClientSettings,
) -> anyhow::Result<bool> {
    let Some(peer) = file.peers.iter().find(|peer| peer.endpoint.is_some()) else { return Ok(true) };
    let deadline = Instant::now() + FIRST_ANSWER;
    loop {
        match instance.wait(deadline.saturating_duration_since(Instant::now())) {
            Wake::Heard => return Ok(true),
            Wake::Tick => {
                warn(&no_answer(peer, settings));
                return Ok(true);
            }
            Wake::Stop => return Ok(false),
            Wake::Failed(reason) => return Err(anyhow!("the tunnel ends: {reason}")),
            Wake::Reload(_) | Wake::Host(_) | Wake::Exclude(_) => {}
        }
    }
}

fn run_until_the_end(instance: &mut Instance) -> anyhow::Result<()> {
    loop {
        match instance.wait(IDLE) {
            Wake::Stop => return Ok(()),
            // Without processes in it, the namespace takes the device along before we hear of their end.
            Wake::Failed(reason) => {
                return match instance.wait(Duration::from_millis(500)) {
                    Wake::Stop => Ok(()),
                    _ => Err(anyhow!("the tunnel ends, and with it the network of the command: {reason}")),
                };
            }
            Wake::Tick => instance.endpoints.ask_for_missing(),
            Wake::Heard | Wake::Reload(_) | Wake::Host(_) | Wake::Exclude(_) => {}
        }
    }
}

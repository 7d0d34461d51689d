//! `adit wg IFNAME`, or `adit-wg IFNAME`: a userspace WireGuard device, to be configured by `wg`.
//!
//! It may stand where `wireguard-go` does: it takes the same environment (`LOG_LEVEL`,
//! `WG_PROCESS_FOREGROUND`) and ends for the same reasons: the device is deleted, its socket is
//! deleted, or SIGTERM. It takes over no descriptors (`WG_TUN_FD`, `WG_UAPI_FD`) and says so.

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use adit_io::tun::{Tun, TunConfig};
use anyhow::{Context, anyhow, bail};
use crossbeam_channel::select;
use tracing::Level;

use crate::config::name::InterfaceName;
use crate::daemon::{self, Readiness, Signal, Start};
use crate::device;
use crate::driver::{Driver, DriverConfig, DriverEvent};
use crate::log::LogOptions;
use crate::socket::PrivateSocket;
use crate::uapi;

/// What the command line and the environment ask for.
#[derive(Clone, Debug)]
pub struct Options {
    /// The device; `%d` in it takes the first free number.
    pub interface: String,
    /// Stay in the foreground.
    pub foreground: bool,
    /// The log: errors only by default. What goes to stderr ends when a background device is ready.
    pub log: LogOptions,
}

impl Options {
    /// The options of a call in the manner of wireguard-go.
    ///
    /// # Errors
    /// A name that no interface may have, or a variable that is no number.
    pub fn from_environment(interface: &str, foreground: bool) -> anyhow::Result<Self> {
        Self::new(interface, foreground, &|name| std::env::var(name).ok().filter(|value| !value.is_empty()))
    }

    fn new(
        interface: &str,
        foreground: bool,
        variable: &dyn Fn(&str) -> Option<String>,
    ) -> anyhow::Result<Self> {
        for name in ["WG_TUN_FD", "WG_UAPI_FD"] {
            if variable(name).is_some() {
                bail!(
                    "{name} is set, but adit takes over no open descriptors; unset it, and adit opens its own"
                );
            }
        }
        check_name(interface)?;
        let level = match variable("LOG_LEVEL").as_deref() {
            Some("verbose" | "debug") => Some(Level::DEBUG),
            Some("trace") => Some(Level::TRACE),
            Some("info") => Some(Level::INFO),
            Some("silent") => None,
            _ => Some(Level::ERROR),
        };
        Ok(Self {
            interface: interface.to_owned(),
            foreground: foreground || variable("WG_PROCESS_FOREGROUND").as_deref() == Some("1"),
            log: LogOptions { level, ..LogOptions::default() },
        })
    }
}

fn check_name(interface: &str) -> anyhow::Result<()> {
    interface
        .replacen("%d", "0", 1)
        .parse::<InterfaceName>()
        .map(drop)
        .map_err(|complaint| anyhow!("{interface:?} cannot name the device: {complaint}"))
}

/// Runs the device until it ends; without `foreground` in a background process, and this returns when
/// that is ready.
///
/// # Errors
/// The device, its port or its socket could not be opened.
pub fn run(options: &Options) -> anyhow::Result<ExitCode> {
    let log = options.log.clone().rooted();
    match daemon::start(options.foreground)? {
        Start::Launched(code) => Ok(code),
        Start::Run(readiness) => {
            crate::log::start(&log)?;
            serve(options, readiness)
        }
    }
}

fn serve(options: &Options, readiness: Readiness) -> anyhow::Result<ExitCode> {
    let device = Device::open(options)?;
    readiness.ready()?;
    let outcome = device.run_until_it_ends();
    device.close();
    outcome.map(|()| ExitCode::SUCCESS)
}

struct Device {
    name: String,
    driver: Arc<Driver>,
    socket: PrivateSocket,
    signals: crossbeam_channel::Receiver<Signal>,
}

impl Device {
    fn open(options: &Options) -> anyhow::Result<Self> {
        let signals = daemon::signals()?;
        let tun = open_tun(options)?;
        let name = tun.first().map(Tun::name).context("the device has no queue")?;
        let driver = device::start(DriverConfig { tun, listen_port: 0, fwmark: 0, offload: true })?;
        let driver = Arc::new(driver);
        let socket = PrivateSocket::bind(&uapi::socket_path(&name))?;
        uapi::serve(&socket, driver.clone()).context("cannot start answering on the UAPI socket")?;
        tracing::info!(interface = name, "device ready");
        Ok(Self { name, driver, socket, signals })
    }

    fn run_until_it_ends(&self) -> anyhow::Result<()> {
        let events = self.driver.events();
        loop {
            select! {
                recv(self.signals) -> signal => match signal {
                    Ok(Signal::Reload) => {}
                    Ok(Signal::Stop) | Err(_) => return Ok(()),
                },
                recv(events) -> event => match event {
                    Ok(DriverEvent::Protocol(event)) => tracing::debug!(?event),
                    Ok(DriverEvent::StreamEnded(_)) => {}
                    Ok(DriverEvent::DeviceGone) => {
                        tracing::info!(interface = self.name, "the device was removed");
                        return Ok(());
                    }
                    Ok(DriverEvent::Failed(reason)) => bail!("{}: {reason}", self.name),
                    Err(_) => bail!("{}: the packet engine ended", self.name),
                },
                default(SOCKET_CHECK) => {}
            }
            if !self.socket.is_intact() {
                tracing::info!(interface = self.name, "the UAPI socket was removed");
                return Ok(());
            }
        }
    }

    fn close(self) {
        drop(self.socket);
        // The UAPI's threads hold the driver until the process ends, which is now.
        drop(self.driver);
    }
}

/// What WireGuard devices start with everywhere: 1500 less the worst overhead.
const MTU_BYTES: usize = 1420;

/// How soon a deleted socket ends the device, at the latest.
const SOCKET_CHECK: Duration = Duration::from_secs(1);

fn open_tun(options: &Options) -> anyhow::Result<Vec<Tun>> {
    let config = TunConfig {
        name: Some(options.interface.clone()),
        queues: crate::driver::lanes_auto(),
        offload: true,
    };
    let mut tun = Tun::create(&config)?;
    if let Some(queue) = tun.first_mut() {
        queue.set_mtu(MTU_BYTES)?;
    }
    Ok(tun)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(interface: &str, variables: &[(&str, &str)]) -> anyhow::Result<Options> {
        Options::new(interface, false, &|name| {
            variables.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned())
        })
    }

    #[test]
    fn the_environment_of_wireguard_go_is_understood() {
        let plain = options("wg0", &[]).unwrap();
        assert_eq!((plain.foreground, plain.log.level), (false, Some(Level::ERROR)));
        let full = options("wg0", &[("LOG_LEVEL", "verbose"), ("WG_PROCESS_FOREGROUND", "1")]).unwrap();
        assert_eq!((full.foreground, full.log.level), (true, Some(Level::DEBUG)));
        assert_eq!(options("wg0", &[("LOG_LEVEL", "silent")]).unwrap().log.level, None);
        assert!(options("wg0", &[("WG_TUN_FD", "3")]).is_err());
    }

    #[test]
    fn a_name_that_leaves_the_directory_or_is_no_interface_is_refused() {
        for good in ["wg0", "wg%d", "a.b-c_d=e+f"] {
            assert!(options(good, &[]).is_ok(), "{good}");
        }
        for bad in ["", "a/b", "../x", ".", "sixteen-letters-x", "wg%d%d", "%s", "a b"] {
            assert!(options(bad, &[]).is_err(), "{bad}");
        }
    }
}

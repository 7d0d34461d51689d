//! The namespaces of the command, made by the process that becomes it.

use std::os::fd::BorrowedFd;
use std::os::unix::net::UnixStream;

use adit_io::sys::Owner;
use adit_io::tun::{Tun, TunConfig};
use anyhow::Context;

use super::layout::{INTERFACE, Layout};
use super::{obstacle, resolver, warn};
use crate::driver;
use crate::gateway::IPV6_OFF;
use crate::privilege;

/// What root keeps (capabilities(7)): rights over files and users, and 0 to 1023 for ports. Not kept is what leads out
/// of the room or changes it.
const KEPT_BY_ROOT: [u32; 12] = [
    0,  // CAP_CHOWN
    1,  // CAP_DAC_OVERRIDE
    2,  // CAP_DAC_READ_SEARCH
    3,  // CAP_FOWNER
    4,  // CAP_FSETID
    5,  // CAP_KILL
    6,  // CAP_SETGID
    7,  // CAP_SETUID
    8,  // CAP_SETPCAP
    10, // CAP_NET_BIND_SERVICE
    13, // CAP_NET_RAW
    31, // CAP_SETFCAP
];

/// The bit that lets a process make namespaces without a user namespace of its own.
const CAP_SYS_ADMIN: u32 = 21;

/// Namespaces in which there is nothing but loopback and the tunnel.
pub struct Room {
    owner: Owner,
    tun: Vec<Tun>,
}

impl Room {
    /// Moves this process into a room as `layout` says.
    ///
    /// # Errors
    /// The system refused, with the setting that has to change.
    pub fn enter(layout: &Layout) -> anyhow::Result<Self> {
        let is_privileged = privilege::may_configure_network() && privilege::has_capability(CAP_SYS_ADMIN);
        let owner = if is_privileged { Owner::Ours } else { Owner::New };
        adit_io::sys::enter_room(owner).map_err(|error| obstacle::of_namespaces(&error))?;
        let queues = driver::lanes_auto();
        let config = TunConfig { name: Some(INTERFACE.to_owned()), queues, offload: true };
        let tun = Tun::create(&config).map_err(|error| obstacle::of_tun(&error))?;
        let mut layout = layout.clone();
        if layout.has_ipv6() && !adit_host::ipv6_enabled() {
            warn(&format!("{IPV6_OFF}; the tunnel carries IPv4 only"));
            layout = layout.without_ipv6();
        }
        adit_host::furnish(&layout.links(), &layout.link_addresses(), &layout.link_routes())?;
        allow_ping();
        resolver::install(&layout).context("cannot give the command its own DNS")?;
        Ok(Self { owner, tun })
    }

    /// Passes the TUN queues on.
    ///
    /// # Errors
    /// The receiver ended.
    pub fn hand_over(&mut self, companion: &UnixStream) -> std::io::Result<()> {
        let tun = std::mem::take(&mut self.tun);
        let descriptors: Vec<BorrowedFd<'_>> = tun.iter().filter_map(Tun::descriptors).flatten().collect();
        adit_io::sys::send_descriptors(companion, &descriptors)
    }

    /// Gives up every right over the room: what is in it now stays as it is.
    ///
    /// # Errors
    /// The kernel refused.
    pub fn lock(self) -> anyhow::Result<()> {
        let keep = match self.owner {
            Owner::Ours => KEPT_BY_ROOT.iter().fold(0, |mask, number| mask | 1u64 << number),
            Owner::New => 0,
        };
        adit_io::sys::give_up_capabilities(keep)
            .context("cannot give up the rights over the command's network")
    }
}

/// Distributions let everybody ping; in a new namespace nobody may. Where this cannot be set, ping says so itself.
fn allow_ping() {
    let group = privilege::group_id().unwrap_or(0);
    if let Err(error) = std::fs::write("/proc/sys/net/ipv4/ping_group_range", format!("{group} {group}")) {
        tracing::debug!(%error, "ping cannot be allowed");
    }
}

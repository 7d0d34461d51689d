use std::time::Duration;
use std::{fs, thread};

use adit_host::{Firewall, Guard, Hop, MAIN_TABLE, OutageFirewall, Plan, Route};
use anyhow::{Context, bail};
use ipnet::IpNet;

use super::traffic::{Class, Outside};
use crate::control;
use crate::home::Home;
use crate::status::Report;

/// A way in which a tunnel stops carrying, that can be mended afterwards.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    /// The process of the tunnel stands still.
    Frozen,
    /// The gateway is out of reach: the tunnel's packets are dropped on their way out.
    Unreachable,
    /// The network around gives a route that is more special than the tunnel's, as a rogue DHCP server may
    /// (TunnelVision, CVE-2024-3661).
    RogueRoute,
}

/// A cut that was made.
#[derive(Debug)]
pub enum Made {
    Frozen(u32),
    Unreachable(Guard),
    RogueRoute(Guard),
}

impl Cut {
    pub const ALL: [Self; 3] = [Self::Frozen, Self::Unreachable, Self::RogueRoute];

    pub const fn name(self) -> &'static str {
        match self {
            Self::Frozen => "the process of the tunnel stands still",
            Self::Unreachable => "the gateway is out of reach",
            Self::RogueRoute => "the network gives a route of its own (TunnelVision)",
        }
    }

    pub fn make(self, home: &Home, report: &Report, outside: &Outside) -> anyhow::Result<Made> {
        // A test that is killed leaves its journal, and `adit down adit_verify` undoes it.
        let journal = control::journal_path(home, "adit_verify");
        match self {
            Self::Frozen => {
                adit_io::sys::freeze(report.pid, true).context("cannot stop the process of the tunnel")?;
                wait_until_stopped(report.pid);
                Ok(Made::Frozen(report.pid))
            }
            Self::Unreachable => match report.fwmark {
                0 => bail!("the tunnel's packets bear no mark, so they cannot be told from others"),
                fwmark => {
                    let firewalls = vec![Firewall::Outage(OutageFirewall { fwmark })];
                    let plan = Plan { firewalls, ..Plan::default() };
                    Ok(Made::Unreachable(adit_host::apply(&plan, &journal)?))
                }
            },
            Self::RogueRoute => {
                let (via, interface) = outside.gateway.zip(Some(&outside.interface)).context(
                    "the gateway is on this host's own network, so there is no router to lead a route to",
                )?;
                let destination = IpNet::new(Class::Udp4.target(), 24)?.trunc();
                let hop = Hop::Gateway { via, link: Some(interface.clone()) };
                let route = Route { destination, hop, table: MAIN_TABLE, metric: None };
                let plan = Plan { routes: vec![route], ..Plan::default() };
                Ok(Made::RogueRoute(adit_host::apply(&plan, &journal)?))
            }
        }
    }
}

impl Made {
    /// As before the cut; what adit has mended by itself meanwhile stays.
    pub fn mend(self) {
        match self {
            Self::Frozen(pid) => {
                let _ = adit_io::sys::freeze(pid, false);
            }
            Self::Unreachable(guard) | Self::RogueRoute(guard) => drop(guard),
        }
        thread::sleep(Duration::from_millis(300));
    }
}

fn wait_until_stopped(pid: u32) {
    for _ in 0..50 {
        let state = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        if state.rsplit_once(')').is_some_and(|(_, rest)| rest.trim_start().starts_with('T')) {
            return;
        }
        thread::sleep(Duration::from_millis(10));
    }
}

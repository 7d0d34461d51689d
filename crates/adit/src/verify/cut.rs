use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use std::{io, thread};

use adit_host::{Firewall, Guard, Hop, MAIN_TABLE, OutageFirewall, Plan, Route};
use anyhow::{Context, bail};
use ipnet::IpNet;

use super::traffic::{Class, Outside};
use crate::control;
use crate::daemon;
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
enum Made {
    Frozen { pid: u32, lifeline: Child },
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

    fn make(self, journal: &Path, report: &Report, outside: &Outside) -> anyhow::Result<Made> {
        match self {
            Self::Frozen => {
                let pid = report.pid;
                let lifeline = lifeline(pid).context("cannot start what would let the process go on")?;
                let made = Made::Frozen { pid, lifeline };
                if let Err(error) = adit_io::sys::freeze(pid, true) {
                    made.mend();
                    return Err(error).context("cannot stop the process of the tunnel");
                }
                wait_until_stopped(pid);
                Ok(made)
            }
            Self::Unreachable => match report.fwmark {
                0 => bail!("the tunnel's packets bear no mark, so they cannot be told from others"),
                fwmark => {
                    let firewalls = vec![Firewall::Outage(OutageFirewall { fwmark })];
                    let plan = Plan { firewalls, ..Plan::default() };
                    Ok(Made::Unreachable(adit_host::apply(&plan, journal)?))
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
                Ok(Made::RogueRoute(adit_host::apply(&plan, journal)?))
            }
        }
    }
}

impl Made {
    /// As before the cut; what adit has mended by itself meanwhile stays.
    fn mend(self) {
        match self {
            Self::Frozen { pid, mut lifeline } => {
                let _ = adit_io::sys::freeze(pid, false);
                drop(lifeline.stdin.take());
                let _ = lifeline.wait();
            }
            Self::Unreachable(guard) | Self::RogueRoute(guard) => drop(guard),
        }
    }
}

/// Lets the process go on once this one is gone, however it ends: it waits for the end of a pipe that only we hold.
fn lifeline(pid: u32) -> io::Result<Child> {
    Command::new("/bin/sh")
        .args(["-c", "read -r _; kill -CONT \"$0\"", &pid.to_string()])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        // What a terminal sends to us is not for it.
        .process_group(0)
        .spawn()
}

/// Makes cuts, one at a time, and mends the one there is when the test is ended early.
pub struct Cuts {
    journal: PathBuf,
    made: Arc<Mutex<Option<Made>>>,
}

const INTERRUPTED: i32 = 130;

impl Cuts {
    /// Undoes what a test left that was killed, and from now on listens for signals.
    ///
    /// # Errors
    /// The host refuses.
    pub fn begin(home: &Home) -> anyhow::Result<Self> {
        let journal = control::journal_path(home, NAME);
        for journal in [&journal, &device_journal(home)] {
            adit_host::undo_journal(journal).context("cannot put back what a test that was killed left")?;
        }
        let made = Arc::<Mutex<Option<Made>>>::default();
        let held = Arc::clone(&made);
        let signals = daemon::signals()?;
        thread::Builder::new().name("verify-end".to_owned()).spawn(move || {
            if signals.recv().is_err() {
                return;
            }
            // Nothing is made any more while this is held.
            let mut made = held.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(made) = made.take() {
                made.mend();
            }
            eprintln!("the test was ended early; the tunnel is as it was");
            std::process::exit(INTERRUPTED);
        })?;
        Ok(Self { journal, made })
    }

    /// Cuts.
    ///
    /// # Errors
    /// It is not possible here.
    pub fn make(&self, cut: Cut, report: &Report, outside: &Outside) -> anyhow::Result<()> {
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        *made = Some(cut.make(&self.journal, report, outside)?);
        Ok(())
    }

    /// Mends the cut that was made, and waits until traffic may go its way again.
    pub fn mend(&self) {
        if let Some(made) = self.made.lock().unwrap_or_else(PoisonError::into_inner).take() {
            made.mend();
        }
        thread::sleep(Duration::from_millis(300));
    }
}

/// What the journal of a cut is called, as if it were an interface.
const NAME: &str = "adit_verify";

/// No journal that `status` and `down` look for: with our process the device is gone, and so is all of it.
pub fn device_journal(home: &Home) -> PathBuf {
    home.state_dir.join(format!("{NAME}.device"))
}

/// Undoes what a test left that was killed; one that runs does so itself.
pub fn mend_leftovers(home: &Home) {
    if let Err(error) = adit_host::undo_journal(&control::journal_path(home, NAME)) {
        tracing::debug!("{error}");
    }
}

fn wait_until_stopped(pid: u32) {
    for _ in 0..50 {
        if daemon::stands_still(pid) {
            return;
        }
        thread::sleep(Duration::from_millis(10));
    }
}

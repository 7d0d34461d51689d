//! `adit service`: the gateway, or a tunnel, as a service of systemd.

mod unit;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, anyhow, bail};

use self::unit::{Role, Unit};
use crate::config::{Config, InterfaceName, Layers};
use crate::home::Home;
use crate::log::LogTarget;
use crate::private_file;
use crate::privilege;
use crate::profile::{self, ForVerb};

const UNIT_DIRECTORY: &str = "/etc/systemd/system";

/// What `adit service` is told.
#[derive(Clone, Debug, clap::Subcommand)]
pub enum ServiceVerb {
    /// Write a unit, and have systemd start it with the machine
    Install {
        #[command(flatten)]
        which: Which,
        /// Print the unit and change nothing
        #[arg(long)]
        print: bool,
        /// Write the unit into DIR, and leave systemd alone
        #[arg(long, value_name = "DIR", conflicts_with = "print")]
        into: Option<PathBuf>,
    },
    /// Stop the service, and take its unit away
    Uninstall(Which),
    /// Start the service, and wait until it is ready
    Start(Which),
    /// Stop the service, which puts the host back as it was
    Stop(Which),
}

/// Which service.
#[derive(Clone, Debug, clap::Args)]
pub struct Which {
    /// A profile, for the tunnel of it [default: the gateway]
    #[arg(value_name = "PROFILE")]
    profile: Option<InterfaceName>,
    /// What puts back at boot, once, what a tunnel that was up when the machine was switched off left
    #[arg(long, conflicts_with = "profile")]
    restore: bool,
}

impl Which {
    fn role(&self) -> Role<'_> {
        match &self.profile {
            Some(name) => Role::Tunnel(name),
            None if self.restore => Role::Restore,
            None => Role::Gateway,
        }
    }
}

/// Does what is asked.
///
/// # Errors
/// There is nothing to run as a service, no systemd, or it refuses.
pub fn run(home: &Home, verb: &ServiceVerb, layers: &Layers) -> anyhow::Result<ExitCode> {
    match verb {
        ServiceVerb::Install { which, print: true, .. } => {
            crate::print_line(unit_for(home, which, layers)?.text().trim_end())?;
        }
        ServiceVerb::Install { which, into, .. } => install(home, which, into.as_deref(), layers)?,
        ServiceVerb::Uninstall(which) => uninstall(home, which)?,
        ServiceVerb::Start(which) => control(home, which, "start", "runs")?,
        ServiceVerb::Stop(which) => control(home, which, "stop", "is stopped")?,
    }
    Ok(ExitCode::SUCCESS)
}

fn unit_for(home: &Home, which: &Which, layers: &Layers) -> anyhow::Result<Unit> {
    let program = std::env::current_exe().context("cannot find this program")?;
    let log = match which.role() {
        Role::Restore => None,
        Role::Gateway | Role::Tunnel(_) => match Config::log(home, layers)?.to {
            LogTarget::File(path) => Some(path),
            LogTarget::Stderr | LogTarget::Journal => None,
        },
    };
    Unit::new(home, which.role(), &program, log.as_deref())
}

/// Its name does not depend on what is configured, which may be wrong by now.
fn unit_named(home: &Home, which: &Which) -> anyhow::Result<Unit> {
    let program = std::env::current_exe().context("cannot find this program")?;
    Unit::new(home, which.role(), &program, None)
}

fn install(home: &Home, which: &Which, into: Option<&Path>, layers: &Layers) -> anyhow::Result<()> {
    let unit = unit_for(home, which, layers)?;
    // A service that fails at every boot helps nobody.
    match which.role() {
        Role::Restore => {}
        Role::Gateway => drop(Config::load(home, layers)?),
        Role::Tunnel(name) => {
            let path = profile::find(home, Some(Path::new(name.as_str())), ForVerb("service install", ""))?;
            drop(crate::config::read_source(&path)?);
        }
    }
    if let Some(directory) = into {
        let path = write(&unit, directory)?;
        eprintln!("wrote {}", path.display());
        return Ok(());
    }
    require_root("install")?;
    let systemctl = systemctl(home)?;
    home.create()?;
    let path = write(&unit, Path::new(UNIT_DIRECTORY))?;
    ask(&systemctl, &["daemon-reload"])?;
    ask(&systemctl, &["enable", unit.name()])?;
    let (word, flag) = (argument(which), home.flag());
    eprintln!(
        "wrote {}; systemd starts it with the machine\nnext: `sudo adit service start{word}{flag}` starts it now",
        path.display()
    );
    Ok(())
}

fn write(unit: &Unit, directory: &Path) -> anyhow::Result<PathBuf> {
    let path = directory.join(unit.name());
    match fs::read_to_string(&path) {
        Ok(there) if !unit.replaces(&there) => bail!(
            "{} is the unit of another home or program; remove it first, or choose a home of another name",
            path.display()
        ),
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(error).with_context(|| format!("cannot read {}", path.display()));
        }
        _ => {}
    }
    private_file::write_public(&path, unit.text().as_bytes())?;
    Ok(path)
}

fn uninstall(home: &Home, which: &Which) -> anyhow::Result<()> {
    require_root("uninstall")?;
    let unit = unit_named(home, which)?;
    let path = Path::new(UNIT_DIRECTORY).join(unit.name());
    let there = fs::read_to_string(&path).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => anyhow!("there is no {}; nothing was changed", path.display()),
        _ => anyhow!("cannot read {}: {error}", path.display()),
    })?;
    if !unit.replaces(&there) {
        bail!("{} is the unit of another home or program; nothing was changed", path.display());
    }
    let systemctl = systemctl(home)?;
    ask(&systemctl, &["disable", "--now", unit.name()])?;
    fs::remove_file(&path).with_context(|| format!("cannot remove {}", path.display()))?;
    ask(&systemctl, &["daemon-reload"])?;
    eprintln!("removed {}; configuration, keys and state stay", path.display());
    Ok(())
}

fn control(home: &Home, which: &Which, verb: &str, done: &str) -> anyhow::Result<()> {
    require_root(verb)?;
    let unit = unit_named(home, which)?;
    if !Path::new(UNIT_DIRECTORY).join(unit.name()).exists() {
        bail!(
            "there is no service {}; `sudo adit service install{}{}` makes it",
            unit.name(),
            argument(which),
            home.flag()
        );
    }
    ask(&systemctl(home)?, &[verb, unit.name()])
        .with_context(|| format!("`journalctl -u {}` tells more", unit.name()))?;
    eprintln!("{} {done}", unit.name());
    Ok(())
}

fn argument(which: &Which) -> String {
    match which.role() {
        Role::Gateway => String::new(),
        Role::Tunnel(name) => format!(" {name}"),
        Role::Restore => " --restore".to_owned(),
    }
}

fn require_root(verb: &str) -> anyhow::Result<()> {
    match privilege::user_id() {
        Some(0) => Ok(()),
        _ => bail!(
            "`adit service {verb}` changes the services of this machine, which only root may do; run it with sudo"
        ),
    }
}

/// An absolute path: a program of this name elsewhere in PATH is not asked.
fn systemctl(home: &Home) -> anyhow::Result<PathBuf> {
    let places = ["/usr/bin/systemctl", "/bin/systemctl"];
    let runs = Path::new("/run/systemd/system").is_dir();
    places.into_iter().map(PathBuf::from).find(|path| runs && path.exists()).with_context(|| {
        let flag = home.flag();
        format!(
            "systemd does not run this machine; let its service manager run `adit gateway{flag}` (or `adit up \
             --foreground NAME{flag}`), which stays in the foreground; `adit service install --print{flag}` shows a \
             unit to go by"
        )
    })
}

fn ask(systemctl: &Path, words: &[&str]) -> anyhow::Result<()> {
    let output = Command::new(systemctl)
        .args(words)
        .output()
        .with_context(|| format!("cannot run {}", systemctl.display()))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    bail!("`systemctl {}` failed: {}", words.join(" "), said.trim())
}

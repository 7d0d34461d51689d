//! `adit peer`: the peers of a gateway, in its `adit.toml`.

mod add;
mod export;
mod page;
mod set;

use std::process::ExitCode;

use anyhow::{anyhow, bail};

use crate::config::diagnostic::did_you_mean;
use crate::config::{Config, Document, Layers, Peer, PeerName};
use crate::control::{self, Changes};
use crate::events::{Event, EventLog};
use crate::home::Home;
use crate::invite::Invites;
use crate::keys;
use crate::state::Lock;
use crate::wall_clock;

pub use self::add::{AddArgs, add};
pub use self::export::{ExportArgs, export};
pub use self::page::{list, show};
pub use self::set::{SetArgs, enable, rename, set};

/// Removes a peer; a running gateway cuts its sessions.
///
/// # Errors
/// There is no such peer, the file cannot be changed, or a running gateway may still let the peer in.
pub fn remove(home: &Home, name: &PeerName, layers: &Layers) -> anyhow::Result<ExitCode> {
    for invite in remove_from_file(home, name, layers)? {
        eprintln!("revoked the invite for {invite}: {name} joined with it, and could have again");
    }
    let told = tell_gateways(home);
    told.print();
    if told.failures.is_empty() {
        eprintln!("removed peer {name}; its file and key are worth nothing now");
        return Ok(ExitCode::SUCCESS);
    }
    bail!(
        "peer {name} is removed from {}, but it may still connect: {}; restart that gateway",
        home.config_file().display(),
        told.failures.join("; ")
    )
}

/// Removes a peer, and says which invites were taken back for it.
fn remove_from_file(home: &Home, name: &PeerName, layers: &Layers) -> anyhow::Result<Vec<PeerName>> {
    let _lock = Lock::hold(home)?;
    let config = Config::load(home, layers)?;
    let key = peer_of(home, &config, name)?.public_key;
    let public_key = keys::public_text(&key);
    let mut document = Document::open(&home.config_file())?;
    if !document.remove_peer(name) {
        let path = home.config_file();
        return Err(anyhow!(
            "peer `{name}` is not a [[peer]] section of {}; remove it there by hand",
            path.display()
        ));
    }
    let mut invites = Invites::load(home, wall_clock::now())?;
    let revoked = invites.revoke_used_by(&key, wall_clock::now());
    if !revoked.is_empty() {
        invites.save()?;
    }
    document.save()?;
    let removed = Event::Removed { peer: name.to_string(), public_key };
    EventLog::new(home, config.log.events).record(&removed);
    Ok(revoked)
}

/// What became of a change at the gateways that run.
#[derive(Debug, Default)]
pub struct Told {
    /// The interfaces that have it, and what they changed.
    pub heard: Vec<(String, Changes)>,
    /// What went wrong with others, for people.
    pub failures: Vec<String>,
}

impl Told {
    /// Says on stderr which gateways have it.
    pub fn print(&self) {
        for (interface, changes) in &self.heard {
            eprintln!("the running gateway {interface} has it: {changes}");
        }
    }
}

/// Lets every running gateway of `home` read its file again, whatever name a flag gave its interface.
pub fn tell_gateways(home: &Home) -> Told {
    let mut told = Told::default();
    let interfaces = match control::held(home) {
        Ok(interfaces) => interfaces,
        Err(error) => {
            let reason = format!("cannot see in {} which gateways run: {error}", home.run_dir.display());
            told.failures.push(reason);
            return told;
        }
    };
    for interface in interfaces {
        match control::reload(home, &interface) {
            Ok(Some(changes)) => told.heard.push((interface, changes)),
            Ok(None) => {}
            Err(error) => {
                told.failures.push(format!("the running gateway {interface} did not take it: {error}"));
            }
        }
    }
    told
}

/// The peer of that name.
///
/// # Errors
/// There is none; the text says which there are.
fn peer_of<'a>(home: &Home, config: &'a Config, name: &PeerName) -> anyhow::Result<&'a Peer> {
    config.peers.iter().find(|peer| peer.name == *name).ok_or_else(|| {
        let names = config.peers.iter().map(|peer| peer.name.as_str());
        match did_you_mean(name.as_str(), names) {
            Some(word) => anyhow!("there is no peer `{name}`; did you mean `{word}`?"),
            None => anyhow!("there is no peer `{name}`; `adit peer list{}` shows them", home.flag()),
        }
    })
}

//! What a changed profile means for a tunnel that is up: what can be had without dropping a session is had at once, the
//! rest is named.

use std::path::PathBuf;

use adit_proto::event::{Command, PeerUpdate};

use super::Client;
use crate::config::wgquick::{Hooks, Interface, PeerSection, WgQuick};
use crate::config::{ClientSettings, Config, Layers};
use crate::control::{Asked, Changes};
use crate::gateway::start_metrics;
use crate::home::Home;
use crate::keys;
use crate::reload;

/// Where a tunnel has its settings from.
#[derive(Debug)]
pub(super) struct Sources {
    pub(super) home: Home,
    pub(super) file: PathBuf,
    pub(super) hooks: Hooks,
    pub(super) layers: Layers,
}

/// Settings that a reload puts in effect; the others need `down` and `up`.
const LIVE: &[&str] = &["client.metrics", "client.metrics_beyond_loopback"];

impl Client {
    /// Reads the profile again, and answers whoever asked for it.
    pub(super) fn reload(&mut self, asked: Option<Asked>) {
        let outcome = self.read_again();
        reload::tell(asked, outcome);
    }

    fn read_again(&mut self) -> anyhow::Result<Changes> {
        let Sources { home, file, hooks, layers } = &self.sources;
        let new = WgQuick::load(file, *hooks)?;
        let settings = ClientSettings::load(home, layers, Some(&new))?;
        let log = Config::log(home, layers)?;
        let mut changes = Changes {
            needs_restart: interface_changes(&self.file.interface, &new.interface),
            ..Changes::default()
        };
        let differs = |key: &str, value: &str| {
            !self.settings.settings.iter().any(|old| old.key == key && old.value == value)
        };
        let late = settings
            .settings
            .iter()
            .filter(|it| !LIVE.contains(&it.key.as_str()) && differs(&it.key, &it.value));
        changes.needs_restart.extend(late.map(|it| it.key.clone()));

        let (mut commands, mut settled) = (Vec::new(), Vec::new());
        for old in &self.file.peers {
            let Some(new) = new.peers.iter().find(|new| new.public_key == old.public_key) else {
                changes.needs_restart.push(format!("without {}", name_of(old)));
                settled.push(old.clone());
                continue;
            };
            changes.needs_restart.extend(host_changes(old, new));
            if let Some(update) = peer_update(old, new) {
                commands.push(Command::SetPeer(update));
                changes.changed.push(name_of(new));
            }
            settled.push(PeerSection {
                suite: old.suite,
                endpoint: old.endpoint.clone(),
                allowed_ips: old.allowed_ips.clone(),
                ..new.clone()
            });
        }
        let is_new =
            |peer: &&PeerSection| self.file.peers.iter().all(|old| old.public_key != peer.public_key);
        changes
            .needs_restart
            .extend(new.peers.iter().filter(is_new).map(|new| format!("with {}", name_of(new))));

        self.instance.driver.apply(commands);
        self.file.peers = settled;
        let names =
            self.file.peers.iter().map(|it| (it.public_key, it.name.as_ref().map(ToString::to_string)));
        self.instance.name_peers(names.collect::<Vec<_>>());
        self.instance.inside_apis =
            self.file.peers.iter().map(|peer| (peer.public_key, peer.inside_api.clone())).collect();
        crate::log::set_level(log.level);
        if settings.metrics != self.metrics.as_ref().map(|metrics| metrics.at) {
            // The old one has to let go of its address first.
            self.metrics = None;
            match start_metrics(&self.instance, settings.metrics) {
                Ok(metrics) => self.metrics = metrics,
                Err(error) => tracing::error!("{error:#}"),
            }
        }
        Ok(changes)
    }
}

/// What of `[Interface]` differs, in the words of the file.
fn interface_changes(old: &Interface, new: &Interface) -> Vec<String> {
    let differences = [
        ("PrivateKey", old.private_key != new.private_key),
        ("Address", old.addresses != new.addresses),
        ("DNS", (&old.dns, &old.search_domains) != (&new.dns, &new.search_domains)),
        ("MTU", old.mtu != new.mtu),
        ("Table", old.table != new.table),
        ("FwMark", old.fwmark != new.fwmark),
        ("ListenPort", old.listen_port != new.listen_port),
        ("hooks", old.hooks != new.hooks),
    ];
    differences.into_iter().filter(|(_, differs)| *differs).map(|(key, _)| key.to_owned()).collect()
}

/// What of a peer changes the way to it, routes, rules or the firewall, or ends its session.
fn host_changes(old: &PeerSection, new: &PeerSection) -> Vec<String> {
    let differences = [
        ("AllowedIPs", old.allowed_ips != new.allowed_ips),
        ("suite", old.suite != new.suite),
        ("Endpoint", old.endpoint != new.endpoint),
    ];
    let of = |(key, _): (&str, bool)| format!("{key} of {}", name_of(new));
    differences.into_iter().filter(|(_, differs)| *differs).map(of).collect()
}

/// What the engine has to be told; `None` when nothing.
fn peer_update(old: &PeerSection, new: &PeerSection) -> Option<PeerUpdate> {
    let mut update = PeerUpdate::new(new.public_key);
    update.update_only = true;
    if old.preshared_key != new.preshared_key {
        // All zeros is none.
        update.preshared_key = Some(new.preshared_key.clone().unwrap_or_default());
    }
    if old.persistent_keepalive_secs != new.persistent_keepalive_secs {
        update.persistent_keepalive_secs = Some(new.persistent_keepalive_secs);
    }
    let changed = update.preshared_key.is_some() || update.persistent_keepalive_secs.is_some();
    changed.then_some(update)
}

fn name_of(peer: &PeerSection) -> String {
    peer.name.as_ref().map_or_else(|| keys::public_text(&peer.public_key), ToString::to_string)
}

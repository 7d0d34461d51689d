//! The peers of a configuration as commands, and the difference between two configurations.

use std::collections::{HashMap, HashSet};

use adit_proto::allowed_ips::Prefix;
use adit_proto::endpoint::Endpoint;
use adit_proto::event::{AllowedIpChange, Command, PeerUpdate};
use adit_proto::key::{PresharedKey, PublicKey};
use ipnet::IpNet;

use crate::config::Peer;
use crate::control::Changes;

/// Everything about `peer`, for a device that does not know it. Names of endpoints are resolved elsewhere. `used_bytes`
/// of its quota are used.
pub fn introduce(peer: &Peer, used_bytes: u64) -> PeerUpdate {
    let mut update = PeerUpdate::new(peer.public_key);
    update.suite = Some(peer.suite);
    update.preshared_key = Some(peer.preshared_key.clone().unwrap_or_default());
    update.endpoint = fixed_endpoint(peer);
    update.persistent_keepalive_secs = Some(peer.persistent_keepalive_secs);
    update.replace_allowed_ips = true;
    update.allowed_ips = allowed_ips(peer);
    update.limits = Some(Box::new(peer.limits.to_proto(used_bytes)));
    update
}

/// The limits of `peer` alone.
pub fn limit(peer: &Peer, used_bytes: u64) -> PeerUpdate {
    let mut update = PeerUpdate::new(peer.public_key);
    update.update_only = true;
    update.limits = Some(Box::new(peer.limits.to_proto(used_bytes)));
    update
}

/// What leads from the peers `old` to the peers `new`, and what to tell about it. Only what differs is
/// set, so that other sessions, and other settings of the same peer, stay as they are.
pub fn difference(
    old: &[Peer],
    new: &[Peer],
    used_bytes: impl Fn(&PublicKey) -> u64,
) -> (Vec<Command>, Changes) {
    let mut commands = Vec::new();
    let mut changes = Changes::default();
    let new_keys: HashSet<_> = new.iter().filter(|peer| peer.enabled).map(|peer| peer.public_key).collect();
    for peer in old.iter().filter(|peer| peer.enabled && !new_keys.contains(&peer.public_key)) {
        commands.push(Command::RemovePeer(peer.public_key));
        changes.removed.push(peer.name.to_string());
    }
    let old_by_key: HashMap<_, _> =
        old.iter().filter(|peer| peer.enabled).map(|peer| (peer.public_key, peer)).collect();
    for peer in new.iter().filter(|peer| peer.enabled) {
        match old_by_key.get(&peer.public_key) {
            None => {
                commands.push(Command::SetPeer(introduce(peer, used_bytes(&peer.public_key))));
                changes.added.push(peer.name.to_string());
            }
            Some(before) => {
                let update = change(before, peer, used_bytes(&peer.public_key));
                if let Some(update) = &update {
                    commands.push(Command::SetPeer(update.clone()));
                }
                if update.is_some() || before.name != peer.name || before.endpoint != peer.endpoint {
                    changes.changed.push(peer.name.to_string());
                }
            }
        }
    }
    (commands, changes)
}

fn change(old: &Peer, new: &Peer, used_bytes: u64) -> Option<PeerUpdate> {
    let mut update = PeerUpdate::new(new.public_key);
    update.update_only = true;
    update.suite = (new.suite != old.suite).then_some(new.suite);
    let key = |peer: &Peer| -> PresharedKey { peer.preshared_key.clone().unwrap_or_default() };
    update.preshared_key = (key(new) != key(old)).then(|| key(new));
    update.endpoint = fixed_endpoint(new).filter(|_| new.endpoint != old.endpoint);
    update.persistent_keepalive_secs = (new.persistent_keepalive_secs != old.persistent_keepalive_secs)
        .then_some(new.persistent_keepalive_secs);
    if !new.allowed_ips().eq(old.allowed_ips()) {
        update.replace_allowed_ips = true;
        update.allowed_ips = allowed_ips(new);
    }
    update.limits = (new.limits != old.limits).then(|| Box::new(new.limits.to_proto(used_bytes)));
    let changed = update.suite.is_some()
        || update.preshared_key.is_some()
        || update.endpoint.is_some()
        || update.persistent_keepalive_secs.is_some()
        || update.replace_allowed_ips
        || update.limits.is_some();
    changed.then_some(update)
}

fn fixed_endpoint(peer: &Peer) -> Option<Endpoint> {
    peer.endpoint.as_ref().and_then(|endpoint| endpoint.address()).map(Endpoint::udp)
}

fn allowed_ips(peer: &Peer) -> Vec<AllowedIpChange> {
    peer.allowed_ips().filter_map(|net| prefix_of(&net)).map(AllowedIpChange::Add).collect()
}

/// The same prefix in the words of the protocol.
pub fn prefix_of(net: &IpNet) -> Option<Prefix> {
    Prefix::new(net.addr(), net.prefix_len()).ok()
}

#[cfg(test)]
mod tests {
    use adit_proto::suite::Suite;

    use super::*;

    fn peer(number: u8) -> Peer {
        Peer {
            preshared_key: Some(PresharedKey::from_bytes([number; 32])),
            addresses: vec![[10, 86, 0, number].into()],
            suite: Suite::Aes256Gcm,
            ..Peer::new(format!("peer{number}").parse().unwrap(), PublicKey([number; 32]))
        }
    }

    fn only_change(old: &Peer, new: &Peer) -> PeerUpdate {
        let (commands, changes) = difference(std::slice::from_ref(old), std::slice::from_ref(new), |_| 0);
        assert_eq!(changes.changed, [new.name.to_string()]);
        match commands.as_slice() {
            [Command::SetPeer(update)] => update.clone(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn equal_configurations_need_nothing() {
        let (commands, changes) = difference(&[peer(1), peer(2)], &[peer(2), peer(1)], |_| 0);
        assert!(commands.is_empty(), "{commands:?}");
        assert!(changes.is_empty());
    }

    #[test]
    fn new_peers_are_introduced_whole_and_lost_ones_removed() {
        let (commands, changes) = difference(&[peer(1), peer(2)], &[peer(2), peer(3)], |_| 0);
        let [Command::RemovePeer(removed), Command::SetPeer(added)] = commands.as_slice() else {
            panic!("{commands:?}")
        };
        assert_eq!((removed.0[0], added.public_key.0[0]), (1, 3));
        assert_eq!(added.allowed_ips, [AllowedIpChange::Add("10.86.0.3/32".parse().unwrap())]);
        assert_eq!(added.suite, Some(Suite::Aes256Gcm));
        assert!(added.preshared_key.as_ref().unwrap().is_set());
        assert!(!added.update_only);
        assert_eq!((changes.added, changes.removed), (vec!["peer3".to_owned()], vec!["peer1".to_owned()]));
    }

    #[test]
    fn only_the_setting_that_differs_is_set() {
        let mut new = peer(1);
        new.persistent_keepalive_secs = 25;
        let update = only_change(&peer(1), &new);
        assert_eq!(update.persistent_keepalive_secs, Some(25));
        assert!(update.suite.is_none() && update.preshared_key.is_none() && update.endpoint.is_none());
        assert!(!update.replace_allowed_ips && update.update_only);

        let mut new = peer(1);
        new.extra_allowed_ips = vec!["192.168.7.0/24".parse().unwrap()];
        let update = only_change(&peer(1), &new);
        assert!(update.replace_allowed_ips);
        assert_eq!(update.allowed_ips.len(), 2);
        assert!(update.preshared_key.is_none());

        let mut new = peer(1);
        new.preshared_key = None;
        assert!(!only_change(&peer(1), &new).preshared_key.unwrap().is_set());
    }

    #[test]
    fn changed_limits_are_set_with_what_is_left_and_unchanged_ones_are_not() {
        let mut new = peer(1);
        new.limits.quota = Some("1GB".parse().unwrap());
        let (commands, changes) = difference(&[peer(1)], std::slice::from_ref(&new), |_| 400_000_000);
        let [Command::SetPeer(update)] = commands.as_slice() else { panic!("{commands:?}") };
        assert_eq!(update.limits.as_ref().unwrap().left_bytes, Some(600_000_000));
        assert!(update.preshared_key.is_none() && update.update_only);
        assert_eq!(changes.changed, ["peer1"]);
        assert!(difference(std::slice::from_ref(&new), std::slice::from_ref(&new), |_| 5).0.is_empty());
    }

    #[test]
    fn a_disabled_peer_is_as_good_as_none() {
        let disabled = Peer { enabled: false, ..peer(1) };
        let (commands, changes) = difference(&[peer(1)], std::slice::from_ref(&disabled), |_| 0);
        assert!(matches!(commands.as_slice(), [Command::RemovePeer(_)]));
        assert_eq!(changes.removed, ["peer1"]);
        let (commands, changes) = difference(std::slice::from_ref(&disabled), &[peer(1)], |_| 0);
        assert!(matches!(commands.as_slice(), [Command::SetPeer(_)]));
        assert_eq!(changes.added, ["peer1"]);
        assert!(difference(&[], &[disabled], |_| 0).0.is_empty());
    }

    #[test]
    fn a_fixed_endpoint_is_set_at_once_and_a_name_is_not() {
        let at = |text: &str| Peer { endpoint: Some(text.parse().unwrap()), ..peer(1) };
        assert_eq!(introduce(&at("192.0.2.1:5"), 0).endpoint.unwrap().remote, "192.0.2.1:5".parse().unwrap());
        assert_eq!(
            introduce(&at("[2001:db8::1]:5"), 0).endpoint.unwrap().remote,
            "[2001:db8::1]:5".parse().unwrap()
        );
        assert!(introduce(&at("vpn.example.org:5"), 0).endpoint.is_none());
    }
}

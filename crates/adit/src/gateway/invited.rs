//! The invited as the gateway sees them: peers of the packet engine with one address each, that the firewall keeps to
//! the inside API.

use std::collections::HashSet;
use std::net::IpAddr;
use std::time::SystemTime;

use adit_proto::event::{AllowedIpChange, Command, PeerUpdate};
use adit_proto::key::PublicKey;
use adit_proto::suite::Suite;
use ipnet::IpNet;

use super::prefix_of;
use crate::config::Config;
use crate::home::Home;
use crate::instance::unix_secs;
use crate::invite::{Invite, Invites};

/// Those who may knock. Invites that are over are among them for a while, to be told so.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Invited(Vec<Invite>);

impl Invited {
    /// Those of `home` that fit the configuration. A file that cannot be read invites nobody.
    pub fn load(home: &Home, config: &Config) -> Self {
        if config.gateway.inside_api.is_none() {
            return Self::default();
        }
        let list = match Invites::load(home, unix_secs(SystemTime::now())) {
            Ok(invites) => invites.list,
            Err(error) => {
                tracing::error!("nobody can join: {error:#}");
                Vec::new()
            }
        };
        let mut taken: HashSet<IpAddr> =
            config.peers.iter().flat_map(|peer| &peer.addresses).copied().collect();
        taken.extend(config.gateway.addresses().iter().map(IpNet::addr));
        let mut keys: HashSet<PublicKey> = config.peers.iter().map(|peer| peer.public_key).collect();
        // The configuration may have changed by hand since; it has the last word.
        let fits = |invite: &Invite| {
            config.gateway.network.contains(&invite.address)
                && taken.insert(invite.address.into())
                && keys.insert(invite.public_key)
        };
        Self(list.into_iter().filter(fits).collect())
    }

    /// Their addresses.
    pub fn addresses(&self) -> Vec<IpAddr> {
        self.0.iter().map(|invite| invite.address.into()).collect()
    }

    /// Their keys.
    pub fn keys(&self) -> HashSet<PublicKey> {
        self.0.iter().map(|invite| invite.public_key).collect()
    }

    /// Whether nobody is invited.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// What takes those away that are not in `new`.
    pub fn removal(&self, new: &Self) -> Vec<Command> {
        self.0.iter().filter(|it| !new.has(it)).map(|it| Command::RemovePeer(it.public_key)).collect()
    }

    /// What makes those known that are not in `old`. The suite is the one that every adit speaks.
    pub fn introduction(&self, old: &Self) -> Vec<Command> {
        self.0.iter().filter(|it| !old.has(it)).map(|it| Command::SetPeer(introduce(it))).collect()
    }

    fn has(&self, invite: &Invite) -> bool {
        self.0.iter().any(|it| it.public_key == invite.public_key && it.address == invite.address)
    }
}

fn introduce(invite: &Invite) -> PeerUpdate {
    let mut update = PeerUpdate::new(invite.public_key);
    update.suite = Some(Suite::ChaCha20Poly1305);
    update.preshared_key = Some(invite.preshared_key.clone());
    update.replace_allowed_ips = true;
    let address = IpNet::from(IpAddr::from(invite.address));
    update.allowed_ips = prefix_of(&address).map(AllowedIpChange::Add).into_iter().collect();
    update
}

#[cfg(test)]
mod tests {
    use adit_proto::key::PresharedKey;

    use super::*;
    use crate::config::{Layers, Source};
    use crate::{keys, private_file};

    fn invite(number: u8, address: [u8; 4]) -> Invite {
        Invite {
            name: format!("p{number}").parse().unwrap(),
            public_key: PublicKey([number; 32]),
            preshared_key: PresharedKey::from_bytes([number; 32]),
            address: address.into(),
            created: 0,
            expires: u64::MAX,
            uses: 1,
            used: Vec::new(),
            revoked: None,
            terms: crate::invite::Terms::default(),
        }
    }

    fn keys_of(commands: &[Command]) -> Vec<(u8, bool)> {
        let key = |command: &Command| match command {
            Command::SetPeer(update) => (update.public_key.0[0], true),
            Command::RemovePeer(key) => (key.0[0], false),
            other => panic!("{other:?}"),
        };
        commands.iter().map(key).collect()
    }

    #[test]
    fn only_what_differs_comes_and_goes() {
        let old = Invited(vec![invite(1, [10, 9, 0, 14]), invite(2, [10, 9, 0, 13])]);
        let new = Invited(vec![invite(2, [10, 9, 0, 13]), invite(3, [10, 9, 0, 12])]);
        assert_eq!(keys_of(&old.removal(&new)), [(1, false)]);
        assert_eq!(keys_of(&new.introduction(&old)), [(3, true)]);
        assert!(old.removal(&old).is_empty() && old.introduction(&old).is_empty());
    }

    #[test]
    fn an_invite_that_the_configuration_contradicts_invites_nobody() {
        let directory = tempfile::tempdir().unwrap();
        let home = Home::new(Some(directory.path())).unwrap();
        home.create().unwrap();
        let config = |more: &str| {
            let key = keys::secret_text(&[99; 32]);
            let text = format!(
                "config_version = 1\n[gateway]\nprivate_key = \"{}\"\nnetwork = \"10.9.0.0/28\"\n{more}",
                key.as_str()
            );
            Config::parse(&Source::new("test", text), "/".as_ref(), &Layers::default()).unwrap()
        };
        let mut invites = Invites::load(&home, 0).unwrap();
        invites.list = vec![
            invite(1, [10, 9, 0, 14]),
            invite(2, [10, 8, 0, 14]),
            invite(3, [10, 9, 0, 1]),
            invite(4, [10, 9, 0, 2]),
            invite(5, [10, 9, 0, 14]),
        ];
        invites.save().unwrap();
        let peer = "[[peer]]\nname = \"x\"\naddresses = [\"10.9.0.2\"]\n\
                    public_key = \"xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg=\"\n";
        let numbers = |config: &Config| {
            Invited::load(&home, config).0.iter().map(|it| it.public_key.0[0]).collect::<Vec<_>>()
        };
        assert_eq!(
            numbers(&config(peer)),
            [1],
            "another network, the gateway's, a peer's and a double one go"
        );
        assert_eq!(numbers(&config("")), [1, 4]);
        assert!(numbers(&config("inside_api = \"off\"\n")).is_empty());
        private_file::write(&home.state_dir.join("invites.json"), b"{").unwrap();
        assert!(numbers(&config("")).is_empty());
    }
}

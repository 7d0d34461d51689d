//! The invited as the gateway sees them: peers of the packet engine with one address each, that the firewall keeps to
//! the inside API.

use std::collections::HashSet;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use adit_proto::event::{AllowedIpChange, Command, PeerUpdate};
use adit_proto::key::PublicKey;
use adit_proto::suite::Suite;
use ipnet::IpNet;

use super::prefix_of;
use crate::config::Config;
use crate::home::Home;
use crate::invite::{Invite, Invites};
use crate::wall_clock;

/// Those who may knock. Invites that are over are among them for a while, to be told so.
#[derive(Clone, Debug, Default)]
pub struct Invited {
    list: Vec<Invite>,
    /// Those that were used a moment ago and can be used again.
    just_used: Vec<(PublicKey, Instant)>,
}

impl Invited {
    /// Those of `home` that fit the configuration. A file that cannot be read invites nobody.
    pub fn load(home: &Home, config: &Config) -> Self {
        if config.gateway.inside_api.is_none() {
            return Self::default();
        }
        let list = match Invites::load(home, wall_clock::now()) {
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
        Self { list: list.into_iter().filter(fits).collect(), just_used: Vec::new() }
    }

    /// Their addresses.
    pub fn addresses(&self) -> Vec<IpAddr> {
        self.list.iter().map(|invite| invite.address.into()).collect()
    }

    /// Their keys.
    pub fn keys(&self) -> HashSet<PublicKey> {
        self.list.iter().map(|invite| invite.public_key).collect()
    }

    /// Whether nobody is invited.
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// What takes those away that are not in `new`.
    pub fn removal(&self, new: &Self) -> Vec<Command> {
        self.list.iter().filter(|it| !new.has(it)).map(|it| Command::RemovePeer(it.public_key)).collect()
    }

    /// What makes those known that are not in `old`. The suite is the one that every adit speaks.
    pub fn introduction(&self, old: &Self) -> Vec<Command> {
        self.list.iter().filter(|it| !old.has(it)).map(|it| Command::SetPeer(introduce(it))).collect()
    }

    /// The same, knowing which of them were used since `old`.
    pub fn following(mut self, old: &Self) -> Self {
        self.just_used.clone_from(&old.just_used);
        let uses = |list: &Invited, key: &PublicKey| {
            list.list.iter().find(|it| it.public_key == *key).map(|it| it.used.len())
        };
        for invite in &self.list {
            let before = uses(old, &invite.public_key);
            if before.is_some_and(|count| count < invite.used.len())
                && invite.used.len() < invite.uses as usize
            {
                self.just_used.retain(|(key, _)| *key != invite.public_key);
                self.just_used.push((invite.public_key, Instant::now()));
            }
        }
        self
    }

    /// What makes those strangers again that were used longer than `takes` ago, if there are any: the next who uses the
    /// same key may have a clock that is behind, and its initiations would look like old ones.
    pub fn after_uses(&mut self, takes: Duration) -> Option<Vec<Command>> {
        let (done, waiting) = self.just_used.drain(..).partition(|(_, at)| at.elapsed() >= takes);
        self.just_used = waiting;
        let done: Vec<(PublicKey, Instant)> = done;
        let of = |key: &PublicKey| self.list.iter().find(|it| it.public_key == *key);
        let commands: Vec<Command> = done
            .iter()
            .filter_map(|(key, _)| of(key))
            .flat_map(|invite| [Command::RemovePeer(invite.public_key), Command::SetPeer(introduce(invite))])
            .collect();
        (!commands.is_empty()).then_some(commands)
    }

    fn has(&self, invite: &Invite) -> bool {
        self.list.iter().any(|it| it.public_key == invite.public_key && it.address == invite.address)
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

    fn of(list: Vec<Invite>) -> Invited {
        Invited { list, just_used: Vec::new() }
    }

    #[test]
    fn an_invite_for_several_knows_nobody_once_a_use_is_over() {
        let mut several = invite(1, [10, 9, 0, 14]);
        several.uses = 2;
        let before = of(vec![several.clone(), invite(2, [10, 9, 0, 13])]);
        several.used.push(crate::invite::Use {
            public_key: PublicKey([9; 32]),
            name: "x".parse().unwrap(),
            at: 0,
            is_settled: true,
        });
        let mut now = of(vec![several.clone(), invite(2, [10, 9, 0, 13])]).following(&before);
        assert!(now.after_uses(Duration::from_secs(60)).is_none(), "its answer may be on its way");
        assert_eq!(keys_of(&now.after_uses(Duration::ZERO).unwrap()), [(1, false), (1, true)]);
        assert!(now.after_uses(Duration::ZERO).is_none());
        several.uses = 1;
        assert!(of(vec![several]).following(&before).after_uses(Duration::ZERO).is_none(), "used up");
    }

    #[test]
    fn only_what_differs_comes_and_goes() {
        let old = of(vec![invite(1, [10, 9, 0, 14]), invite(2, [10, 9, 0, 13])]);
        let new = of(vec![invite(2, [10, 9, 0, 13]), invite(3, [10, 9, 0, 12])]);
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
            Invited::load(&home, config).list.iter().map(|it| it.public_key.0[0]).collect::<Vec<_>>()
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

//! How a peer joins with an invite, on the gateway's side.
//!
//! ```text
//!   invites.json: this key takes a use ─► adit.toml: the peer ─► invites.json: settled ─► reload ─► answer
//! ```
//!
//! Each step is on the disk before the next begins. Whoever asks again with the same key, because the gateway was
//! killed or the answer was lost, gets the same lease; whoever asks with another key after the last use gets none.

use std::sync::Arc;

use adit_proto::key::PublicKey;
use adit_proto::suite::Suite;
use anyhow::Context;

use crate::config::{Config, Document, Layers, Peer, PeerName};
use crate::control::{self, Answer, Verb};
use crate::events::{Event, EventLog};
use crate::home::Home;
use crate::invite::{Invite, Invites, Standing, Terms, Use};
use crate::keys;
use crate::lease::{self, Lease};
use crate::state::{Leases, Lock};
use crate::wall_clock;

/// Where peers join the gateway of a home.
#[derive(Debug)]
pub struct Office {
    home: Home,
    layers: Layers,
    interface: String,
}

/// What somebody who is invited says about itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Application {
    /// Its own key.
    pub public_key: PublicKey,
    /// The suites that its host speaks well.
    pub suites: Vec<Suite>,
}

/// Nothing was written down: whoever asked need not keep its key.
#[derive(Debug, thiserror::Error)]
#[error("nothing was changed")]
pub struct Untouched;

/// What came of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It is a peer now.
    Joined(Box<Lease>),
    /// It is not, and why; for people on both sides.
    Refused(String),
}

impl Office {
    /// The office of the gateway that runs behind `interface`.
    pub fn new(home: Home, layers: Layers, interface: String) -> Arc<Self> {
        Arc::new(Self { home, layers, interface })
    }

    /// Makes a peer of whoever came with the key `invited`. Blocks on the disk.
    ///
    /// # Errors
    /// The configuration or a file cannot be read or changed; asking again later may help. With [`Untouched`] in the
    /// chain nobody but the log knows of it.
    pub fn enrol(&self, invited: &PublicKey, application: &Application) -> anyhow::Result<Outcome> {
        let now = wall_clock::now();
        let (peer, terms, config) = match self.write_down(invited, application, now)? {
            Written::Peer(peer, terms, config) => (peer, terms, config),
            Written::Refused(reason) => {
                let who = Some(keys::public_text(&application.public_key));
                let refused = Event::Refused { reason: reason.clone(), count: 1, who };
                self.note(&Config::load(&self.home, &self.layers)?, &refused);
                return Ok(Outcome::Refused(reason));
            }
        };
        let lease = Lease::of(&self.home, &config, &peer, &terms)?;
        // The gateway hears of it as of any other change to its file.
        match control::request(&self.home, &self.interface, Verb::Reload)? {
            Answer::Reloaded(_) => Ok(Outcome::Joined(Box::new(lease))),
            other => anyhow::bail!("to the new peer the gateway said {other:?}"),
        }
    }

    fn note(&self, config: &Config, event: &Event) {
        EventLog::new(&self.home, config.log.events).record(event);
    }

    fn write_down(
        &self,
        invited: &PublicKey,
        application: &Application,
        now: u64,
    ) -> anyhow::Result<Written> {
        let _lock = Lock::hold(&self.home).context(Untouched)?;
        let config = Config::load(&self.home, &self.layers).context(Untouched)?;
        let mut invites = Invites::load(&self.home, now).context(Untouched)?;
        let Some(at) = invites.list.iter().position(|invite| invite.public_key == *invited) else {
            return Ok(Written::Refused("this invite is not known any more".to_owned()));
        };
        let invite = &invites.list[at];
        let terms = invite.terms.clone();
        let key = application.public_key;
        let known = config.peers.iter().find(|peer| peer.public_key == key).cloned();
        let earlier = invite.used.iter().find(|it| it.public_key == key);
        match (earlier, known) {
            (Some(_), Some(peer)) => {
                settle(&mut invites, at, &key)?;
                return Ok(Written::Peer(Box::new(peer), terms, Box::new(config)));
            }
            (Some(Use { is_settled: true, .. }), None) => {
                let reason = "the peer that joined with this key was removed since; ask for a new invite";
                return Ok(Written::Refused(reason.to_owned()));
            }
            (None, Some(_)) => {
                return Ok(Written::Refused("this key belongs to another peer already".to_owned()));
            }
            (Some(_), None) => {}
            (None, None) => {
                if let Some(reason) = refusal(invite, now) {
                    return Ok(Written::Refused(reason));
                }
                let taken_by_gateway = config.gateway.private_key.public_key() == key;
                if taken_by_gateway || invites.list.iter().any(|it| it.public_key == key) {
                    return Ok(Written::Refused("this key belongs to somebody else already".to_owned()));
                }
                let name = free_name(&config, invite).context(Untouched)?;
                let new = Use { public_key: key, name, at: now, is_settled: false };
                invites.list[at].used.push(new);
                invites.save().context(Untouched)?;
            }
        }
        let mut leases = Leases::load(&self.home)?;
        // Also the one it speaks from at this moment, though this may be the last use.
        let mut held = invites.open_addresses(now);
        held.insert(invites.list[at].address.into());
        let used = invites.list[at].used.iter().find(|it| it.public_key == key).context("just written")?;
        let peer = Peer {
            preshared_key: Some(keys::generate_preshared()?),
            addresses: leases.next(&config, &held)?,
            suite: lease::suite_for(&application.suites),
            tags: terms.tags.clone(),
            ..Peer::new(used.name.clone(), key)
        };
        let mut document = Document::open(&self.home.config_file())?;
        document.add_peer(&peer)?;
        document.check()?;
        leases.save(&self.home)?;
        document.save()?;
        self.note(&config, &Event::enrolled(&peer, &format!("invite {}", invites.list[at].name)));
        settle(&mut invites, at, &key)?;
        let config = Config::load(&self.home, &self.layers)?;
        Ok(Written::Peer(Box::new(peer), terms, Box::new(config)))
    }
}

enum Written {
    Peer(Box<Peer>, Terms, Box<Config>),
    Refused(String),
}

/// From now on a peer that is missing was removed.
fn settle(invites: &mut Invites, at: usize, key: &PublicKey) -> anyhow::Result<()> {
    let mut uses = invites.list[at].used.iter_mut();
    match uses.find(|it| it.public_key == *key && !it.is_settled) {
        Some(unsettled) => {
            unsettled.is_settled = true;
            invites.save()
        }
        None => Ok(()),
    }
}

/// Why an invite cannot be accepted, if it cannot.
fn refusal(invite: &Invite, now: u64) -> Option<String> {
    let ago = |at: u64| crate::invite::duration_text(now.saturating_sub(at));
    let reason = match invite.standing(now) {
        Standing::Open => return None,
        Standing::UsedUp(at) => {
            let names: Vec<&str> = invite.used.iter().map(|it| it.name.as_str()).collect();
            format!("this invite was used already, {} ago, by `{}`", ago(at), names.join("`, `"))
        }
        Standing::Expired(at) => format!("this invite expired {} ago", ago(at)),
        Standing::Revoked(at) => format!("this invite was revoked {} ago", ago(at)),
    };
    Some(format!("{reason}; a new one comes from `adit invite {}` on the gateway", invite.name))
}

/// The name of the invite, or with a number when a peer has it.
fn free_name(config: &Config, invite: &Invite) -> anyhow::Result<PeerName> {
    let is_taken = |name: &PeerName| {
        config.peers.iter().any(|peer| peer.name == *name) || invite.used.iter().any(|it| it.name == *name)
    };
    if !is_taken(&invite.name) {
        return Ok(invite.name.clone());
    }
    let base: String = invite.name.as_str().chars().take(PeerName::MAX_BYTES - 6).collect();
    let numbered = (2..100_000u32).filter_map(|number| format!("{base}-{number}").parse().ok());
    numbered.into_iter().find(|name| !is_taken(name)).context("every name like this is taken")
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use adit_proto::key::PresharedKey;

    use super::*;

    struct Gateway {
        _directory: tempfile::TempDir,
        home: Home,
        office: Arc<Office>,
    }

    const NOW: u64 = 1_000;
    const INVITED: PublicKey = PublicKey([200; 32]);

    /// A gateway that is not running, with an invite.
    fn gateway(uses: u32) -> Gateway {
        let directory = tempfile::tempdir().unwrap();
        let home = Home::new(Some(directory.path())).unwrap();
        home.create().unwrap();
        let key = keys::secret_text(&[1; 32]);
        let text = format!(
            "config_version = 1\n[gateway]\nprivate_key = \"{}\"\nendpoint = \"192.0.2.1:51820\"\n\
             network = \"10.9.0.0/28\"\n",
            key.as_str()
        );
        crate::private_file::write(&home.config_file(), text.as_bytes()).unwrap();
        let mut invites = Invites::load(&home, NOW).unwrap();
        invites.list.push(Invite {
            name: "laptop".parse().unwrap(),
            public_key: INVITED,
            preshared_key: PresharedKey::from_bytes([9; 32]),
            address: [10, 9, 0, 14].into(),
            created: NOW,
            expires: NOW + 600,
            uses,
            used: Vec::new(),
            revoked: None,
            terms: Terms { tags: vec!["office".to_owned()], ..Terms::default() },
        });
        invites.save().unwrap();
        let office = Office::new(home.clone(), Layers::default(), "adit0".to_owned());
        Gateway { _directory: directory, home, office }
    }

    impl Gateway {
        fn ask(&self, key: u8, now: u64) -> Result<Peer, String> {
            let application =
                Application { public_key: PublicKey([key; 32]), suites: vec![Suite::ChaCha20Poly1305] };
            match self.office.write_down(&INVITED, &application, now).unwrap() {
                Written::Peer(peer, ..) => Ok(*peer),
                Written::Refused(reason) => Err(reason),
            }
        }

        fn config(&self) -> Config {
            Config::load_file(Path::new(&self.home.config_file()), &Layers::default()).unwrap()
        }

        fn change(&self, change: impl FnOnce(&mut Invite)) {
            let mut invites = Invites::load(&self.home, NOW).unwrap();
            change(&mut invites.list[0]);
            invites.save().unwrap();
        }
    }

    #[test]
    fn who_is_invited_becomes_a_peer_once() {
        let gateway = gateway(1);
        let peer = gateway.ask(2, NOW).unwrap();
        assert_eq!((peer.name.as_str(), peer.tags.as_slice()), ("laptop", &["office".to_owned()][..]));
        assert_eq!(peer.addresses, ["10.9.0.2".parse::<std::net::IpAddr>().unwrap()]);
        assert_eq!(peer.suite, Suite::ChaCha20Poly1305);
        assert_eq!(gateway.config().peers.len(), 1);
        let reason = gateway.ask(3, NOW + 90).unwrap_err();
        assert!(reason.contains("used already, 90 s ago, by `laptop`"), "{reason}");
        assert_eq!(gateway.config().peers.len(), 1);
    }

    #[test]
    fn who_asks_again_gets_the_same_lease() {
        let gateway = gateway(1);
        let first = gateway.ask(2, NOW).unwrap();
        let again = gateway.ask(2, NOW + 60).unwrap();
        assert_eq!((first.addresses, first.preshared_key), (again.addresses, again.preshared_key));
        assert_eq!(gateway.config().peers.len(), 1);
    }

    #[test]
    fn a_gateway_killed_between_the_steps_goes_on_with_the_same_key_only() {
        let gateway = gateway(1);
        let name: PeerName = "laptop".parse().unwrap();
        gateway.change(|invite| {
            invite.used.push(Use { public_key: PublicKey([2; 32]), name, at: NOW, is_settled: false });
        });
        assert!(gateway.ask(3, NOW).is_err());
        assert_eq!(gateway.ask(2, NOW).unwrap().name.as_str(), "laptop");
        assert_eq!(gateway.config().peers.len(), 1);
    }

    #[test]
    fn a_gateway_that_can_write_nothing_says_that_nothing_was_changed() {
        let gateway = gateway(1);
        let ask = || {
            let application = Application { public_key: PublicKey([2; 32]), suites: Vec::new() };
            gateway.office.write_down(&INVITED, &application, NOW).map(|_| ())
        };
        // A directory in the place of the new file is in the way of whoever is root too.
        let way = format!("{}.{}.new", "invites.json", std::process::id());
        let way = gateway.home.state_dir.join(way);
        std::fs::create_dir(&way).unwrap();
        std::fs::write(way.join("x"), "").unwrap();
        let error = ask().unwrap_err();
        assert!(error.is::<Untouched>(), "{error:#}");
        assert!(gateway.config().peers.is_empty());
        std::fs::remove_dir_all(&way).unwrap();
        // Half-way there is something to go on from.
        let way = gateway.home.state_dir.join(format!("{}.{}.new", "leases.json", std::process::id()));
        std::fs::create_dir(&way).unwrap();
        std::fs::write(way.join("x"), "").unwrap();
        let error = ask().unwrap_err();
        assert!(!error.is::<Untouched>(), "{error:#}");
        std::fs::remove_dir_all(&way).unwrap();
        ask().unwrap();
        assert_eq!(gateway.config().peers.len(), 1);
    }

    #[test]
    fn a_removed_peer_does_not_come_back_with_its_old_invite() {
        let gateway = gateway(2);
        let peer = gateway.ask(2, NOW).unwrap();
        let mut document = Document::open(&gateway.home.config_file()).unwrap();
        assert!(document.remove_peer(&peer.name));
        document.save().unwrap();
        assert!(gateway.ask(2, NOW).unwrap_err().contains("was removed since"));
        assert!(gateway.ask(3, NOW).is_ok(), "the second use is still there");
    }

    #[test]
    fn an_invite_for_several_gives_each_a_name_and_a_lease() {
        let gateway = gateway(3);
        let peers: Vec<Peer> = (2..5).map(|key| gateway.ask(key, NOW).unwrap()).collect();
        let names: Vec<&str> = peers.iter().map(|peer| peer.name.as_str()).collect();
        assert_eq!(names, ["laptop", "laptop-2", "laptop-3"]);
        assert!(peers[0].addresses != peers[1].addresses && peers[1].addresses != peers[2].addresses);
        assert!(gateway.ask(5, NOW).is_err());
    }

    #[test]
    fn an_invite_that_expired_or_was_revoked_or_is_unknown_says_so() {
        let gateway = gateway(1);
        let reason = gateway.ask(2, NOW + 700).unwrap_err();
        assert!(reason.contains("expired 100 s ago") && reason.contains("`adit invite laptop`"), "{reason}");
        gateway.change(|invite| invite.revoked = Some(NOW + 5));
        assert!(gateway.ask(2, NOW + 10).unwrap_err().contains("was revoked 5 s ago"));
        gateway.change(|invite| invite.public_key = PublicKey([201; 32]));
        assert!(gateway.ask(2, NOW).unwrap_err().contains("not known"));
        assert!(gateway.config().peers.is_empty());
        gateway.change(|invite| (invite.public_key, invite.revoked) = (INVITED, None));
        assert!(gateway.ask(2, NOW).is_ok(), "the same invite as it was");
    }

    #[test]
    fn a_key_of_somebody_else_is_refused() {
        let gateway = gateway(2);
        gateway.ask(2, NOW).unwrap();
        let own = gateway.config().gateway.private_key.public_key();
        for key in [own, INVITED] {
            let application = Application { public_key: key, suites: Vec::new() };
            let outcome = gateway.office.write_down(&INVITED, &application, NOW).unwrap();
            assert!(matches!(outcome, Written::Refused(_)));
        }
        assert_eq!(gateway.config().peers.len(), 1);
    }
}

//! The invites of a gateway, in `invites.json` of its state directory.
//!
//! An invite that was answered, ran out or was revoked is kept for a day, so that whoever tries it is told what became
//! of it, and so that a client whose connection broke in the middle gets the same answer again.

use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::time::Duration;

use adit_proto::key::{PresharedKey, PublicKey};
use anyhow::{Context, bail};
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::config::{Config, PeerName};
use crate::home::Home;
use crate::keys::{self, SecretText};
use crate::private_file::{self, ReadError};

const SCHEMA: u32 = 1;
/// How long an invite that is over is kept.
const KEPT_SECS: u64 = 24 * 60 * 60;
/// How many that are over are kept; the oldest go first.
const KEPT_MOST: usize = 64;
/// How many may wait for an answer at a time.
pub const OPEN_MOST: usize = 256;

/// Every invite of a gateway that is still told from none.
#[derive(Debug)]
pub struct Invites {
    path: PathBuf,
    /// In the order in which they were made.
    pub list: Vec<Invite>,
    /// ` --home DIR`, for what a person is told to run.
    flag: String,
}

/// An invite. It holds no way to accept it: that takes the secret of its URL.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Invite {
    /// The name that the first peer of it gets.
    pub name: PeerName,
    /// The key of the invited.
    pub public_key: PublicKey,
    /// The second secret of their session.
    pub preshared_key: PresharedKey,
    /// The inside address of the invited.
    pub address: Ipv4Addr,
    /// When it was made, in seconds since 1970, as every time here.
    pub created: u64,
    /// When it runs out.
    pub expires: u64,
    /// How many may join with it.
    pub uses: u32,
    /// Who has joined with it.
    pub used: Vec<Use>,
    /// When it was revoked.
    pub revoked: Option<u64>,
    /// What those who join get.
    pub terms: Terms,
}

/// A peer that joined with an invite.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Use {
    /// Its own key.
    pub public_key: PublicKey,
    /// Its name.
    pub name: PeerName,
    /// When.
    pub at: u64,
    /// Whether it is in the configuration; a gateway that was killed half-way has not got that far.
    pub is_settled: bool,
}

/// What the profile of a client says beyond its lease.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Terms {
    /// The networks to send through the tunnel beside the gateway's own; everything, without a list.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub split: Option<Vec<IpNet>>,
    /// DNS servers to use.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub dns: Vec<IpAddr>,
    /// Words that the operator sorts peers by.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tags: Vec<String>,
}

/// What can be done with an invite.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It can be accepted.
    Open,
    /// All that it was for have joined, the last at this time.
    UsedUp(u64),
    /// It ran out at this time.
    Expired(u64),
    /// It was taken back at this time.
    Revoked(u64),
}

impl Invite {
    /// What can be done with it at the time `now`.
    pub fn standing(&self, now: u64) -> Standing {
        let last_use = self.used.iter().map(|it| it.at).max().unwrap_or(self.created);
        if let Some(at) = self.revoked {
            Standing::Revoked(at)
        } else if self.used.len() >= self.uses as usize {
            Standing::UsedUp(last_use)
        } else if now >= self.expires {
            Standing::Expired(self.expires)
        } else {
            Standing::Open
        }
    }

    /// Whether it can be accepted at the time `now`.
    pub fn is_open(&self, now: u64) -> bool {
        self.standing(now) == Standing::Open
    }
}

impl Standing {
    /// When it was over.
    pub fn since(self) -> Option<u64> {
        match self {
            Self::Open => None,
            Self::UsedUp(at) | Self::Expired(at) | Self::Revoked(at) => Some(at),
        }
    }
}

impl Invites {
    /// Takes back every open invite that the owner of this key joined with, and says for whom they were made: whoever
    /// still has the URL would come back under a new key.
    pub fn revoke_used_by(&mut self, key: &PublicKey, now: u64) -> Vec<PeerName> {
        let used = |invite: &Invite| invite.used.iter().any(|it| it.public_key == *key);
        let open = self.list.iter_mut().filter(|invite| invite.is_open(now) && used(invite));
        open.map(|invite| {
            invite.revoked = Some(now);
            invite.name.clone()
        })
        .collect()
    }

    /// Reads the invites of `home`; those that have been over for long are left out.
    ///
    /// # Errors
    /// The file is there and cannot be read.
    pub fn load(home: &Home, now: u64) -> anyhow::Result<Self> {
        let path = home.state_dir.join("invites.json");
        let list = match private_file::read(&path) {
            Ok(bytes) => parse(&bytes).with_context(|| {
                format!("{} is damaged; remove it, and invite again who has not joined yet", path.display())
            })?,
            Err(ReadError::Missing(_)) => Vec::new(),
            Err(error) => {
                let fix = error.fix();
                return Err(anyhow::Error::new(error).context(fix));
            }
        };
        let mut invites = Self { path, list, flag: home.flag() };
        invites.forget(now);
        Ok(invites)
    }

    /// Writes them down.
    ///
    /// # Errors
    /// The file cannot be written; it is as it was.
    pub fn save(&self) -> anyhow::Result<()> {
        private_file::write(&self.path, &print(&self.list)?)
    }

    /// Leaves out what has been over for a day, and the oldest of too many.
    fn forget(&mut self, now: u64) {
        let over = |invite: &Invite| invite.standing(now).since();
        self.list.retain(|invite| over(invite).is_none_or(|at| now.saturating_sub(at) < KEPT_SECS));
        while self.list.iter().filter(|invite| over(invite).is_some()).count() > KEPT_MOST {
            self.drop_oldest_over(now);
        }
    }

    /// Leaves out the invite that has been over for the longest; whether there was one.
    fn drop_oldest_over(&mut self, now: u64) -> bool {
        let over = self.list.iter().enumerate();
        let oldest = over.filter_map(|(at, invite)| Some((invite.standing(now).since()?, at))).min();
        oldest.map(|(_, at)| self.list.remove(at)).is_some()
    }

    /// The addresses that are the invited's.
    pub fn addresses(&self) -> HashSet<IpAddr> {
        self.list.iter().map(|invite| invite.address.into()).collect()
    }

    /// The addresses that no lease may have: those of invites that can be accepted. One that is over loses its address,
    /// and with it its voice, when a peer needs it.
    pub fn open_addresses(&self, now: u64) -> HashSet<IpAddr> {
        self.list.iter().filter(|invite| invite.is_open(now)).map(|invite| invite.address.into()).collect()
    }

    /// The highest IPv4 address that is nobody's: leases are given from the lowest on. An invite that is over gives
    /// its address away when there is no other.
    ///
    /// # Errors
    /// The network is full.
    pub fn free_address(&mut self, config: &Config, now: u64) -> anyhow::Result<Ipv4Addr> {
        let network = config.gateway.network;
        loop {
            let mut taken = self.addresses();
            taken.extend(config.peers.iter().flat_map(|peer| &peer.addresses));
            taken.extend(config.gateway.addresses().iter().map(|net| net.addr()));
            let first = u32::from(network.network()) + 1;
            let last = u32::from(network.broadcast()).saturating_sub(1);
            let free: Vec<Ipv4Addr> = (first..=last)
                .rev()
                .map(Ipv4Addr::from)
                .filter(|it| !taken.contains(&(*it).into()))
                .take(2)
                .collect();
            match free.as_slice() {
                // The second is for the lease of whoever joins.
                [free, _] => return Ok(*free),
                _ if self.drop_oldest_over(now) => {}
                _ => bail!(
                    "{network} has no room: an invite needs an address, and whoever joins another; remove a peer \
                     with `adit peer rm NAME{0}`, revoke an invite with `adit invite revoke NAME{0}`, or widen `network`",
                    self.flag
                ),
            }
        }
    }
}

/// How long from now, as `10m`, `2h`, `7d` or `90s` say it.
///
/// # Errors
/// It is none of these, or longer than a year.
pub fn parse_lifetime(text: &str) -> Result<Duration, String> {
    const FIX: &str = "write a number with s, m, h or d, for example 10m, 2h or 7d";
    let unit = text.chars().last().filter(char::is_ascii_alphabetic).ok_or(FIX)?;
    let number =
        text.strip_suffix(unit).filter(|it| !it.is_empty() && it.bytes().all(|b| b.is_ascii_digit()));
    let number: u64 = number.and_then(|it| it.parse().ok()).ok_or(FIX)?;
    let secs = match unit {
        's' => Some(number),
        'm' => number.checked_mul(60),
        'h' => number.checked_mul(3600),
        'd' => number.checked_mul(86_400),
        _ => return Err(FIX.to_owned()),
    };
    match secs {
        Some(0) => Err("an invite that expires at once invites nobody".to_owned()),
        Some(secs @ ..=31_536_000) => Ok(Duration::from_secs(secs)),
        _ => Err("an invite lasts a year at most".to_owned()),
    }
}

#[derive(Serialize, Deserialize)]
struct Page {
    schema: u32,
    invites: Vec<Line>,
}

#[derive(Serialize, Deserialize)]
struct Line {
    name: String,
    public_key: String,
    preshared_key: SecretText,
    address: Ipv4Addr,
    created: u64,
    expires: u64,
    uses: u32,
    used: Vec<UseLine>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    revoked: Option<u64>,
    #[serde(flatten)]
    terms: Terms,
}

#[derive(Serialize, Deserialize)]
struct UseLine {
    public_key: String,
    name: String,
    at: u64,
    is_settled: bool,
}

fn parse(bytes: &[u8]) -> anyhow::Result<Vec<Invite>> {
    let page: Page = serde_json::from_slice(bytes)?;
    if page.schema != SCHEMA {
        bail!("it has schema {}, not {SCHEMA}", page.schema);
    }
    page.invites.into_iter().map(invite).collect()
}

fn invite(line: Line) -> anyhow::Result<Invite> {
    let name = |text: &str| -> anyhow::Result<PeerName> { Ok(text.parse()?) };
    let joined = |line: UseLine| -> anyhow::Result<Use> {
        let public_key = keys::parse_public(&line.public_key)?;
        Ok(Use { public_key, name: name(&line.name)?, at: line.at, is_settled: line.is_settled })
    };
    Ok(Invite {
        name: name(&line.name)?,
        public_key: keys::parse_public(&line.public_key)?,
        preshared_key: keys::parse_preshared(&line.preshared_key.0)?,
        address: line.address,
        created: line.created,
        expires: line.expires,
        uses: line.uses,
        used: line.used.into_iter().map(joined).collect::<anyhow::Result<_>>()?,
        revoked: line.revoked,
        terms: line.terms,
    })
}

fn print(list: &[Invite]) -> anyhow::Result<Zeroizing<Vec<u8>>> {
    let joined = |it: &Use| UseLine {
        public_key: keys::public_text(&it.public_key),
        name: it.name.to_string(),
        at: it.at,
        is_settled: it.is_settled,
    };
    let line = |invite: &Invite| Line {
        name: invite.name.to_string(),
        public_key: keys::public_text(&invite.public_key),
        preshared_key: SecretText(keys::secret_text(invite.preshared_key.as_bytes())),
        address: invite.address,
        created: invite.created,
        expires: invite.expires,
        uses: invite.uses,
        used: invite.used.iter().map(joined).collect(),
        revoked: invite.revoked,
        terms: invite.terms.clone(),
    };
    let page = Page { schema: SCHEMA, invites: list.iter().map(line).collect() };
    // Room for all of it: a buffer that grows leaves copies of the keys behind.
    let uses = list.iter().map(|invite| invite.used.len() + invite.terms.entries() + 8).sum::<usize>();
    let mut text = Zeroizing::new(Vec::with_capacity(1024 + 256 * uses));
    serde_json::to_writer_pretty(&mut *text, &page)?;
    text.push(b'\n');
    Ok(text)
}

impl Terms {
    fn entries(&self) -> usize {
        self.split.as_ref().map_or(0, Vec::len) + self.dns.len() + self.tags.len()
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::{Layers, Source};

    fn an_invite(number: u8, uses: u32) -> Invite {
        Invite {
            name: format!("laptop-{number}").parse().unwrap(),
            public_key: PublicKey([number; 32]),
            preshared_key: PresharedKey::from_bytes([number; 32]),
            address: Ipv4Addr::new(10, 9, 0, number),
            created: 1_000,
            expires: 1_600,
            uses,
            used: Vec::new(),
            revoked: None,
            terms: Terms {
                split: Some(vec!["192.168.1.0/24".parse().unwrap()]),
                dns: vec!["9.9.9.9".parse().unwrap()],
                tags: vec!["office".to_owned()],
            },
        }
    }

    fn joined(number: u8, at: u64) -> Use {
        let name = format!("p{number}").parse().unwrap();
        Use { public_key: PublicKey([number; 32]), name, at, is_settled: number.is_multiple_of(2) }
    }

    fn home() -> (tempfile::TempDir, Home) {
        let directory = tempfile::tempdir().unwrap();
        let home = Home::new(Some(directory.path())).unwrap();
        home.create().unwrap();
        (directory, home)
    }

    fn config(network: &str) -> Config {
        let key = keys::secret_text(&[1; 32]);
        let text = format!(
            "config_version = 1\n[gateway]\nprivate_key = \"{}\"\nnetwork = \"{network}\"\n",
            key.as_str()
        );
        Config::parse(&Source::new("test", text), Path::new("."), &Layers::default()).unwrap()
    }

    #[test]
    fn an_invite_is_open_until_it_is_used_up_expired_or_revoked() {
        let mut invite = an_invite(2, 2);
        assert_eq!(invite.standing(1_599), Standing::Open);
        assert_eq!(invite.standing(1_600), Standing::Expired(1_600));
        invite.used.push(joined(8, 1_100));
        assert!(invite.is_open(1_200));
        invite.used.push(joined(9, 1_300));
        assert_eq!(invite.standing(1_400), Standing::UsedUp(1_300));
        assert_eq!(invite.standing(9_999), Standing::UsedUp(1_300), "that is why it is over");
        invite.revoked = Some(1_350);
        assert_eq!(invite.standing(1_400), Standing::Revoked(1_350));
    }

    #[test]
    fn whoever_is_removed_does_not_come_back_with_an_open_invite() {
        let (_directory, home) = home();
        let mut invites = Invites::load(&home, 1_100).unwrap();
        let (mut of_it, mut used_up) = (an_invite(2, 2), an_invite(3, 1));
        of_it.used.push(joined(8, 1_050));
        used_up.used.push(joined(8, 1_050));
        invites.list = vec![of_it, used_up, an_invite(4, 2)];
        assert_eq!(invites.revoke_used_by(&PublicKey([9; 32]), 1_100), []);
        assert!(invites.list[0].is_open(1_100));
        assert_eq!(invites.revoke_used_by(&PublicKey([8; 32]), 1_100), [invites.list[0].name.clone()]);
        assert_eq!(invites.list[0].standing(1_100), Standing::Revoked(1_100));
        assert!(invites.list[2].is_open(1_100), "it is for others");
    }

    #[test]
    fn invites_survive_their_file() {
        let (_directory, home) = home();
        let mut invites = Invites::load(&home, 1_100).unwrap();
        assert!(invites.list.is_empty());
        let mut second = an_invite(3, 5);
        second.used.push(joined(7, 1_050));
        second.revoked = Some(1_060);
        second.terms = Terms::default();
        invites.list = vec![an_invite(2, 1), second];
        invites.save().unwrap();
        assert_eq!(Invites::load(&home, 1_100).unwrap().list, invites.list);
        std::fs::write(&invites.path, "{").unwrap();
        let error = format!("{:#}", Invites::load(&home, 1_100).unwrap_err());
        assert!(error.contains("is damaged"), "{error}");
    }

    #[test]
    fn what_has_been_over_for_a_day_is_forgotten_and_what_is_open_never() {
        let (_directory, home) = home();
        let mut invites = Invites::load(&home, 0).unwrap();
        let mut open = an_invite(1, 1);
        open.expires = u64::MAX;
        invites.list = (2..150).map(|number| an_invite(number, 1)).chain([open]).collect();
        invites.save().unwrap();
        assert_eq!(Invites::load(&home, 1_500).unwrap().list.len(), 149);
        assert_eq!(Invites::load(&home, 1_600).unwrap().list.len(), KEPT_MOST + 1, "the others have expired");
        assert_eq!(Invites::load(&home, 1_600 + KEPT_SECS).unwrap().list.len(), 1);
    }

    #[test]
    fn addresses_come_from_the_top_and_one_is_left_for_who_joins() {
        let config = config("10.9.0.0/29");
        let (_directory, home) = home();
        let mut invites = Invites::load(&home, 1_000).unwrap();
        for (number, last) in [6, 5, 4, 3].into_iter().enumerate() {
            let address = invites.free_address(&config, 1_000).unwrap();
            assert_eq!(address, Ipv4Addr::new(10, 9, 0, last));
            invites.list.push(Invite { address, ..an_invite(number as u8 + 2, 1) });
        }
        let error = invites.free_address(&config, 1_000).unwrap_err().to_string();
        assert!(
            error.contains("no room") && error.contains(&format!("revoke NAME{}`", home.flag())),
            "{error}"
        );
        invites.list[1].revoked = Some(1_001);
        assert_eq!(invites.free_address(&config, 1_002).unwrap(), Ipv4Addr::new(10, 9, 0, 5));
        assert_eq!(invites.list.len(), 3);
    }

    #[test]
    fn lifetimes_have_a_unit() {
        for (text, secs) in [("90s", 90), ("10m", 600), ("2h", 7_200), ("7d", 604_800), ("365d", 31_536_000)]
        {
            assert_eq!(parse_lifetime(text), Ok(Duration::from_secs(secs)), "{text}");
        }
        for bad in ["", "10", "m", "0m", "-1m", "1.5h", "10 m", "1w", "366d", "99999999999999999999d", "+1m"]
        {
            assert!(parse_lifetime(bad).is_err(), "{bad}");
        }
    }
}

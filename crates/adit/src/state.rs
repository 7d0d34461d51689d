//! The lock and the memory of leases: what the verbs that change a gateway share.

use std::collections::HashSet;
use std::fs::File;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;

use anyhow::{Context, bail};
use serde::{Deserialize, Serialize};

use crate::config::Config;
use crate::home::Home;
use crate::private_file;

/// The first host of a network is the gateway.
const FIRST_PEER: u64 = 2;

/// The files that only change under the lock.
const LOCKED: [&str; 3] = ["adit.toml", "invites.json", "leases.json"];

/// The right to change the configuration of a home, held by one process at a time.
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

impl Lock {
    /// Makes the directories of `home` and waits for whoever changes it now.
    ///
    /// # Errors
    /// The directories or the lock file cannot be made.
    pub fn hold(home: &Home) -> anyhow::Result<Self> {
        home.create()?;
        let lock = Self { _file: private_file::lock(&home.state_dir.join("config.lock"))? };
        // Who was killed while it held the lock left half a file, and there may be keys in it.
        for directory in [&home.config_dir, &home.state_dir] {
            private_file::remove_unfinished(directory, |name| LOCKED.contains(&name));
        }
        Ok(lock)
    }
}

/// Which leases were given, so that an address is not given to another peer soon after it was free:
/// firewalls, logs and people still know it by its old name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Leases {
    schema: u32,
    /// The number of the host that was given last, counted from the start of the network.
    last_host: u64,
    /// ` --home DIR`, for what a person is told to run.
    #[serde(skip)]
    flag: String,
}

impl Leases {
    /// Reads what `home` remembers.
    ///
    /// # Errors
    /// The file is there and cannot be read.
    pub fn load(home: &Home) -> anyhow::Result<Self> {
        let path = path(home);
        let flag = home.flag();
        match std::fs::read(&path) {
            Ok(bytes) => {
                serde_json::from_slice(&bytes).map(|known: Self| Self { flag, ..known }).with_context(|| {
                    format!("{} is damaged; remove it, it only remembers freed addresses", path.display())
                })
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                Ok(Self { schema: 1, last_host: 0, flag })
            }
            Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
        }
    }

    /// Gives the next free addresses, one of each network, with the same number in both. Those in `invited` are
    /// taken.
    ///
    /// # Errors
    /// The network is full.
    pub fn next(&mut self, config: &Config, invited: &HashSet<IpAddr>) -> anyhow::Result<Vec<IpAddr>> {
        let mut used = invited.clone();
        used.extend(config.peers.iter().flat_map(|peer| &peer.addresses));
        let most = most_hosts(config);
        let after = u64::max(self.last_host, FIRST_PEER - 1) + 1;
        let numbers = (after..=most).chain(FIRST_PEER..after.min(most + 1));
        for number in numbers {
            let addresses = addresses(config, number);
            if addresses.iter().all(|address| !used.contains(address)) {
                self.last_host = number;
                return Ok(addresses);
            }
        }
        let network = config.gateway.network;
        bail!(
            "every address of {network} is leased; remove a peer with `adit peer rm NAME{}`, or widen `network`",
            self.flag
        )
    }

    /// Writes what `home` remembers.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn save(&self, home: &Home) -> anyhow::Result<()> {
        private_file::write(&path(home), serde_json::to_string(self)?.as_bytes())
    }
}

fn path(home: &Home) -> PathBuf {
    home.state_dir.join("leases.json")
}

/// The last host number that both networks have; the very last address of IPv4 is for broadcasts.
fn most_hosts(config: &Config) -> u64 {
    let v4 = (1u64 << (32 - config.gateway.network.prefix_len())) - 2;
    let v6 = config.gateway.network6.map_or(u128::MAX, |network| (1u128 << (128 - network.prefix_len())) - 1);
    v4.min(u64::try_from(v6).unwrap_or(u64::MAX))
}

fn addresses(config: &Config, number: u64) -> Vec<IpAddr> {
    let v4 = u32::from(config.gateway.network.network()).saturating_add(number as u32);
    let v6 = config.gateway.network6.map(|network| u128::from(network.network()) + u128::from(number));
    std::iter::once(IpAddr::V4(Ipv4Addr::from(v4))).chain(v6.map(|v6| Ipv6Addr::from(v6).into())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Layers, Source};
    use std::path::Path;

    fn config(network: &str, leases: &[&str]) -> Config {
        let mut text = format!(
            "config_version = 1\n[gateway]\nprivate_key = \"{}\"\n{network}\n",
            crate::keys::secret_text(&[1; 32]).as_str()
        );
        for (index, lease) in leases.iter().enumerate() {
            let key = crate::keys::generate_private().unwrap().public_key();
            let key = crate::keys::public_text(&key);
            text +=
                &format!("[[peer]]\nname = \"p{index}\"\npublic_key = \"{key}\"\naddresses = [{lease}]\n");
        }
        Config::parse(&Source::new("test", text), Path::new("."), &Layers::default()).unwrap()
    }

    fn leases() -> Leases {
        Leases { schema: 1, last_host: 0, flag: String::new() }
    }

    #[test]
    fn both_networks_give_the_same_number() {
        let config = config("network = \"10.1.0.0/24\"\nnetwork6 = \"fd00:1::/64\"", &[]);
        let next = leases().next(&config, &HashSet::new()).unwrap();
        assert_eq!(next, ["10.1.0.2".parse::<IpAddr>().unwrap(), "fd00:1::2".parse().unwrap()]);
    }

    #[test]
    fn a_freed_address_is_given_again_only_after_all_others() {
        let home = tempfile::tempdir().unwrap();
        let home = Home::new(Some(home.path())).unwrap();
        home.create().unwrap();
        let network = "network = \"10.1.0.0/29\"";
        let mut given = Vec::new();
        for _ in 0..5 {
            let config = config(network, &[]);
            let mut leases = Leases::load(&home).unwrap();
            given.extend(leases.next(&config, &HashSet::new()).unwrap());
            leases.save(&home).unwrap();
        }
        let expected: Vec<IpAddr> = (2..7).map(|host| Ipv4Addr::new(10, 1, 0, host).into()).collect();
        assert_eq!(given, expected);
        let config = config(network, &["\"10.1.0.2\""]);
        let again = Leases::load(&home).unwrap().next(&config, &HashSet::new()).unwrap();
        assert_eq!(again, [IpAddr::from([10, 1, 0, 3])]);
    }

    #[test]
    fn a_full_network_says_so_and_one_free_address_is_found() {
        let config_of = |leases: &[&str]| config("network = \"10.1.0.0/29\"", leases);
        let all = ["\"10.1.0.2\"", "\"10.1.0.3\"", "\"10.1.0.4\"", "\"10.1.0.5\"", "\"10.1.0.6\""];
        let full = config_of(&all);
        let error =
            Leases { schema: 1, last_host: 6, flag: String::new() }.next(&full, &HashSet::new()).unwrap_err();
        assert!(error.to_string().contains("every address of 10.1.0.0/29 is leased"), "{error}");
        let flag = " --home /a".to_owned();
        let error = Leases { schema: 1, last_host: 6, flag }.next(&full, &HashSet::new()).unwrap_err();
        assert!(error.to_string().contains("`adit peer rm NAME --home /a`"), "{error}");
        let one_free = config_of(&all[1..]);
        assert_eq!(
            Leases { schema: 1, last_host: 6, flag: String::new() }.next(&one_free, &HashSet::new()).unwrap(),
            [IpAddr::from([10, 1, 0, 2])]
        );
    }

    #[test]
    fn an_address_of_an_invite_is_no_lease() {
        let config = config("network = \"10.1.0.0/24\"", &[]);
        let invited = HashSet::from(["10.1.0.2".parse().unwrap()]);
        assert_eq!(leases().next(&config, &invited).unwrap(), [IpAddr::from([10, 1, 0, 3])]);
    }

    #[test]
    fn leases_given_by_hand_are_passed_over() {
        let config = config("network = \"10.1.0.0/24\"", &["\"10.1.0.2\", \"10.1.0.3\"", "\"10.1.0.5\""]);
        let mut leases = leases();
        assert_eq!(leases.next(&config, &HashSet::new()).unwrap(), [IpAddr::from([10, 1, 0, 4])]);
        assert_eq!(leases.next(&config, &HashSet::new()).unwrap(), [IpAddr::from([10, 1, 0, 6])]);
    }
}

use std::fs;
use std::path::PathBuf;

use adit_proto::key::StaticSecret;
use anyhow::Context;
use sha2::{Digest, Sha256};

use crate::home::Home;
use crate::invite::InviteUrl;
use crate::private_file::{self, ReadError};
use crate::{keys, profile};

/// Our key while we join, in a file: the gateway may know it already when this process is killed.
pub(super) struct Pending {
    path: PathBuf,
    private_key: StaticSecret,
    /// Whether an earlier run left it, which may have reached the gateway.
    was_there: bool,
}

impl Pending {
    /// Goes on with the key of an earlier run with the same invite, or makes one.
    pub(super) fn start(home: &Home, url: &InviteUrl) -> anyhow::Result<Self> {
        let invited = url.secret.keys(&url.gateway).private_key.public_key();
        let digest = Sha256::digest(invited.0);
        let number = u64::from_be_bytes(*digest.first_chunk().context("a digest has 32 bytes")?);
        let path = profile::directory(home).join(format!(".joining-{number:016x}"));
        match private_file::read(&path) {
            Ok(bytes) => {
                let key =
                    std::str::from_utf8(&bytes).ok().and_then(|text| keys::parse_private(text.trim()).ok());
                if let Some(private_key) = key {
                    return Ok(Self { path, private_key, was_there: true });
                }
            }
            Err(ReadError::Missing(_)) => {}
            Err(error) => return Err(error.into()),
        }
        let private_key = keys::generate_private()?;
        private_file::write(&path, keys::secret_text(private_key.as_bytes()).as_bytes())?;
        Ok(Self { path, private_key, was_there: false })
    }

    pub(super) fn private_key(&self) -> &StaticSecret {
        &self.private_key
    }

    /// The next run goes on with the same key.
    pub(super) fn keep(self) {}

    /// The gateway has not heard of the key in this run.
    pub(super) fn give_up(self) {
        if !self.was_there {
            let _ = self.end();
        }
    }

    /// The key is in a profile now, or worth nothing.
    pub(super) fn end(self) -> anyhow::Result<()> {
        fs::remove_file(&self.path).with_context(|| format!("cannot remove {}", self.path.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::invite::InviteSecret;

    fn url(secret: u8) -> InviteUrl {
        InviteUrl {
            endpoint: "192.0.2.1:51820".parse().unwrap(),
            gateway: adit_proto::key::PublicKey([7; 32]),
            secret: InviteSecret::from_bytes([secret; 16]),
            address: [10, 9, 0, 14].into(),
            inside_api: "10.9.0.1:9585".parse().unwrap(),
            others: Vec::new(),
            tls_pin: None,
            server_name: None,
            vouched_for: false,
        }
    }

    #[test]
    fn the_same_invite_goes_on_with_the_same_key_until_it_is_settled() {
        let directory = tempfile::tempdir().unwrap();
        let home = Home::new(Some(directory.path())).unwrap();
        profile::create_directory(&home).unwrap();
        let key = |pending: &Pending| pending.private_key.clone();
        let first = Pending::start(&home, &url(1)).unwrap();
        let other = Pending::start(&home, &url(2)).unwrap();
        assert!(key(&first) != key(&other));
        let kept = key(&first);
        first.keep();
        let again = Pending::start(&home, &url(1)).unwrap();
        assert!(key(&again) == kept);
        again.give_up();
        let again = Pending::start(&home, &url(1)).unwrap();
        assert!(key(&again) == kept, "an earlier run may have reached the gateway");
        again.end().unwrap();
        other.give_up();
        assert_eq!(fs::read_dir(profile::directory(&home)).unwrap().count(), 0, "nothing is left");
        assert!(key(&Pending::start(&home, &url(1)).unwrap()) != kept);
    }
}

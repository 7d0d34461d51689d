//! Who may use a listener that others can reach.

use std::collections::HashMap;
use std::fmt;
use std::net::{IpAddr, Ipv6Addr};
use std::path::Path;
use std::str::FromStr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

use super::gate::source_of;
use crate::private_file;

/// Wrong passwords from one address within a second; after that the right one is refused too.
const FAILURES: u32 = 5;
/// Sources whose failures are remembered; those of all others are counted together.
const REMEMBERED: usize = 1_024;
const OTHERS: IpAddr = IpAddr::V6(Ipv6Addr::UNSPECIFIED);

/// `USER:file:PATH` or `USER:env:NAME`: where a password is, never the password.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuthSource {
    user: String,
    secret: Secret,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Secret {
    File(String),
    Environment(String),
}

impl FromStr for AuthSource {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        const FORM: &str =
            "write USER:file:PATH or USER:env:NAME; a password itself would show in the process list";
        let (user, place) = text.split_once(':').ok_or(FORM)?;
        let secret = match place.split_once(':') {
            Some(("file", path)) if !path.is_empty() => Secret::File(path.to_owned()),
            Some(("env", name)) if !name.is_empty() => Secret::Environment(name.to_owned()),
            _ => return Err(FORM.to_owned()),
        };
        if user.is_empty() || user.len() > 255 || user.chars().any(char::is_control) {
            return Err("the user name has 1 to 255 bytes and no control characters".to_owned());
        }
        Ok(Self { user: user.to_owned(), secret })
    }
}

/// The user and password that a listener asks for. Both are kept as digests, so that comparing them takes the
/// same time whatever was said.
#[derive(Clone)]
pub(super) struct Credentials {
    user: [u8; 32],
    password: [u8; 32],
    failures: Arc<Mutex<HashMap<IpAddr, (Instant, u32)>>>,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Credentials(hidden)")
    }
}

impl Credentials {
    pub(super) fn load(source: &AuthSource) -> anyhow::Result<Self> {
        let password: Zeroizing<Vec<u8>> = match &source.secret {
            Secret::File(path) => private_file::read(Path::new(path))
                .map_err(|error| anyhow::anyhow!("{error}; {}", error.fix()))?,
            Secret::Environment(name) => Zeroizing::new(
                std::env::var_os(name)
                    .with_context(|| {
                        format!(
                            "the password for --auth is to be in the variable {name}, which is not set; set it, or keep \
                             the password in a file: --auth USER:file:PATH"
                        )
                    })?
                    .into_encoded_bytes(),
            ),
        };
        let end = password.iter().rposition(|byte| !matches!(byte, b'\n' | b'\r')).map_or(0, |at| at + 1);
        let password = password.get(..end).unwrap_or_default();
        if password.is_empty() || password.len() > 255 {
            let place = match &source.secret {
                Secret::File(path) => format!("file {path}"),
                Secret::Environment(name) => format!("variable {name}"),
            };
            bail!(
                "the password for --auth in the {place} has {} bytes; SOCKS5 carries 1 to 255: write another one there",
                password.len()
            );
        }
        Ok(Self {
            user: Sha256::digest(source.user.as_bytes()).into(),
            password: Sha256::digest(password).into(),
            failures: Arc::default(),
        })
    }

    /// Whether a client at `from` may come in.
    pub(super) fn admit(&self, from: IpAddr, user: &[u8], password: &[u8]) -> bool {
        let now = Instant::now();
        let mut failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        let fresh = |since: &Instant| now.duration_since(*since) < Duration::from_secs(1);
        let mut from = source_of(from);
        if failures.len() >= REMEMBERED && !failures.contains_key(&from) {
            failures.retain(|_, (since, _)| fresh(since));
            if failures.len() >= REMEMBERED {
                from = OTHERS;
            }
        }
        if failures.get(&from).is_some_and(|(since, count)| fresh(since) && *count >= FAILURES) {
            return false;
        }
        let digest = |bytes: &[u8]| -> [u8; 32] { Sha256::digest(bytes).into() };
        let right = self.user.ct_eq(&digest(user)) & self.password.ct_eq(&digest(password));
        if bool::from(right) {
            return true;
        }
        let entry = failures.entry(from).or_insert((now, 0));
        if !fresh(&entry.0) {
            *entry = (now, 0);
        }
        entry.1 += 1;
        false
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn credentials() -> Credentials {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(&file, "secret\n").unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
        let source: AuthSource = format!("alice:file:{}", file.path().display()).parse().unwrap();
        let credentials = Credentials::load(&source).unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
        let exposed = Credentials::load(&source).unwrap_err().to_string();
        assert!(exposed.contains("chmod 600"), "{exposed}");
        credentials
    }

    #[test]
    fn only_the_right_user_with_the_right_password_comes_in() {
        let credentials = credentials();
        let from = "127.0.0.1".parse().unwrap();
        assert!(credentials.admit(from, b"alice", b"secret"));
        for (user, password) in [("alice", "secret\n"), ("alice", ""), ("bob", "secret"), ("", "")] {
            assert!(!credentials.admit(from, user.as_bytes(), password.as_bytes()), "{user} {password}");
        }
        assert!(!format!("{credentials:?}").contains("secret"));
    }

    #[test]
    fn after_five_failures_in_a_second_even_the_right_password_waits_but_not_that_of_others() {
        let credentials = credentials();
        let [guesser, other] = ["192.0.2.1", "192.0.2.2"].map(|it| it.parse().unwrap());
        for _ in 0..FAILURES {
            assert!(!credentials.admit(guesser, b"alice", b"guess"));
        }
        assert!(!credentials.admit(guesser, b"alice", b"secret"));
        assert!(credentials.admit(other, b"alice", b"secret"));
        std::thread::sleep(Duration::from_millis(1_050));
        assert!(credentials.admit(guesser, b"alice", b"secret"));
    }

    #[test]
    fn who_has_many_addresses_guesses_no_faster() {
        let ours = credentials();
        let at = |number: u32| IpAddr::V6(Ipv6Addr::from_bits((0x2001_0db8_u128 << 96) | u128::from(number)));
        for number in 0..FAILURES {
            assert!(!ours.admit(at(number), b"alice", b"guess"));
        }
        assert!(!ours.admit(at(99), b"alice", b"secret"), "one network is one source");

        // More sources than are remembered are counted together. The clock of a loaded machine does not matter: what
        // is remembered is as of now.
        let ours = credentials();
        let fill = |count: u32| {
            let mut failures = ours.failures.lock().unwrap();
            let soon = Instant::now() + Duration::from_secs(600);
            failures.extend((0..count).map(|number| (IpAddr::V4((0x0a00_0000 + number).into()), (soon, 1))));
        };
        fill(1_024);
        let unknown = |number: u32| IpAddr::V4((0x0b00_0000 + number).into());
        assert!(ours.admit(unknown(0), b"alice", b"secret"));
        for number in 0..FAILURES {
            assert!(!ours.admit(unknown(number), b"alice", b"guess"));
        }
        ours.failures.lock().unwrap().get_mut(&OTHERS).unwrap().0 = Instant::now() + Duration::from_secs(600);
        assert!(!ours.admit(unknown(99), b"alice", b"secret"));
        assert!(
            ours.admit("10.0.0.1".parse().unwrap(), b"alice", b"secret"),
            "who is remembered counts alone"
        );
        assert_eq!(ours.failures.lock().unwrap().len(), REMEMBERED + 1);
    }

    #[test]
    fn a_password_that_is_not_there_says_where_it_should_be() {
        let wrong = |source: &str| Credentials::load(&source.parse().unwrap()).unwrap_err().to_string();
        let unset = wrong("alice:env:ADIT_TEST_NO_SUCH_VARIABLE");
        assert!(unset.contains("--auth") && unset.contains("which is not set; set it"), "{unset}");
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
        let path = file.path().display().to_string();
        let empty = wrong(&format!("alice:file:{path}"));
        assert!(empty.contains(&path) && empty.contains("has 0 bytes"), "{empty}");
    }

    #[test]
    fn a_password_on_the_command_line_is_refused() {
        assert!("alice:file:/x".parse::<AuthSource>().is_ok());
        assert!("alice:env:X".parse::<AuthSource>().is_ok());
        for bad in ["alice:secret", "alice", ":file:/x", "alice:file:", "a\nb:file:/x"] {
            assert!(bad.parse::<AuthSource>().is_err(), "{bad:?}");
        }
    }
}

//! What the profiles of clients say about the certificate of their gateway, and whether that still holds.
//!
//! A certificate that the usual authorities vouch for is renewed every few months, as a rule with another key: profiles say
//! so, and have no pin. Any other is recognised by the pin of its key, and whoever changes that key is told.

use std::fs;
use std::path::PathBuf;

use super::{Certificate, PIN_PREFIX};
use crate::config::ProfileSetting;
use crate::home::Home;
use crate::{private_file, web};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;

/// How a client recognises its gateway by TLS.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub enum Recognition {
    /// Not at all: the gateway takes no connections.
    #[default]
    None,
    /// By the pin of its certificate, as [`pin_of`](super::pin_of) makes it.
    Pin(String),
    /// By the authorities that the client's host trusts.
    Authorities,
}

impl Recognition {
    /// By what clients recognise `certificate` best when they come by the name or address `host`.
    ///
    /// # Errors
    /// The certificate cannot be read or made.
    pub fn of(certificate: &Certificate, host: Option<&str>) -> anyhow::Result<Self> {
        let pin = certificate.pin()?;
        let vouched = host
            .zip(web::authorities_of_host().ok())
            .is_some_and(|(host, authorities)| certificate.is_vouched_for(host, authorities));
        Ok(if vouched { Self::Authorities } else { Self::Pin(pin) })
    }

    /// The line of a profile.
    pub fn setting(&self) -> Option<ProfileSetting> {
        match self {
            Self::None => None,
            Self::Pin(pin) => Some(ProfileSetting::new("tls_pin", pin)),
            Self::Authorities => Some(ProfileSetting::new("tls_verify", "webpki")),
        }
    }

    /// The pin as an invite carries it.
    pub fn pin_bytes(&self) -> Option<[u8; 32]> {
        let Self::Pin(pin) = self else { return None };
        BASE64_STANDARD.decode(pin.strip_prefix(PIN_PREFIX)?).ok()?.try_into().ok()
    }
}

/// The pin that profiles were last given, in a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GivenPin(PathBuf);

impl GivenPin {
    /// That of the gateway of `home`.
    pub fn of(home: &Home) -> Self {
        Self(home.state_dir.join("stream.pin"))
    }

    /// A profile was given this. What cannot be noted is not warned of later.
    pub fn note(&self, given: &Recognition) {
        let outcome = match given {
            Recognition::Pin(pin) if self.read().as_ref() == Some(pin) => Ok(()),
            Recognition::Pin(pin) => private_file::write(&self.0, format!("{pin}\n").as_bytes()),
            Recognition::Authorities => match fs::remove_file(&self.0) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error.into()),
                _ => Ok(()),
            },
            Recognition::None => Ok(()),
        };
        if let Err(error) = outcome {
            tracing::debug!("the pin that profiles have is not noted: {error:#}");
        }
    }

    fn read(&self) -> Option<String> {
        Some(fs::read_to_string(&self.0).ok()?.trim().to_owned())
    }

    /// What to tell about a certificate that has the pin `now`.
    pub fn warning(&self, now: Option<&str>) -> Option<String> {
        let (given, now) = (self.read()?, now?);
        (given != now).then(|| {
            format!(
                "the key of the certificate has changed: clients whose profile has the old pin get no connection by TLS or \
                 WebSocket. Put the old key back and renew with it (certbot: `--reuse-key`), or write `tls_pin = {now}` \
                 into their profiles; this is said until the next profile is given out"
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pin_that_was_given_and_holds_no_more_is_warned_of() {
        let directory = tempfile::tempdir().unwrap();
        let given = GivenPin(directory.path().join("stream.pin"));
        assert_eq!(given.warning(Some("sha256:a")), None, "no profile has a pin");
        given.note(&Recognition::Pin("sha256:a".to_owned()));
        assert_eq!(given.warning(Some("sha256:a")), None);
        assert!(given.warning(Some("sha256:b")).unwrap().contains("tls_pin = sha256:b"));
        given.note(&Recognition::None);
        assert!(given.warning(Some("sha256:b")).is_some());
        given.note(&Recognition::Pin("sha256:b".to_owned()));
        assert_eq!(given.warning(Some("sha256:b")), None);
        given.note(&Recognition::Authorities);
        assert_eq!(given.warning(Some("sha256:c")), None);
    }
}

//! The certificate of a gateway: from files that somebody keeps fresh, or made here once and kept.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use anyhow::{Context, anyhow, bail};
use rcgen::{CertificateParams, KeyPair};
use sha2::{Digest, Sha256};
use tokio_rustls::rustls::client::danger::ServerCertVerifier;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use tokio_rustls::rustls::server::{NoServerSessionStorage, ParsedCertificate};
use tokio_rustls::rustls::version::TLS13;
use tokio_rustls::rustls::{RootCertStore, ServerConfig};

use super::trust::verifier;
use super::{ALPN, pin_text, provider};
use crate::private_file;

/// Where a certificate comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Certificate {
    /// A chain and a key in PEM, as ACME clients leave them; read again when they change.
    Files {
        /// The chain, our certificate first.
        chain: PathBuf,
        /// Its key.
        key: PathBuf,
    },
    /// Made here, once, for this name, and kept in this file.
    SelfMade {
        /// Certificate and key in PEM.
        file: PathBuf,
        /// The name in it.
        name: String,
    },
}

/// A certificate in use, and what it was read from.
pub(super) struct Shown {
    pub(super) config: Arc<ServerConfig>,
    pub(super) files: Stamps,
    pub(super) pin: Option<String>,
}

/// What tells a file from others: when it was written, its length, and which it is. Any difference counts, for a file may
/// be put there that is older than the one before.
pub(super) type Stamp = Option<(SystemTime, u64, u64)>;

/// Those of the chain and the key.
pub(super) type Stamps = [Stamp; 2];

/// What is there now.
pub(super) fn stamp_of(path: &Path) -> Stamp {
    let about = std::fs::metadata(path).ok()?;
    Some((about.modified().ok()?, about.len(), about.ino()))
}

impl Certificate {
    /// Reads it, or makes it when it is to be made here and is not there yet.
    pub(super) fn load(&self) -> anyhow::Result<Shown> {
        let before = self.stamps();
        let (chain, key) = self.read()?;
        // One that was not there has been made by now.
        let files = if before == [None, None] { self.stamps() } else { before };
        let pin = chain.first().and_then(pin_of);
        let mut config = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&TLS13])?
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .context("the certificate and its key do not belong together")?;
        config.alpn_protocols = vec![ALPN.to_vec()];
        // Nothing to resume, nothing before the handshake is over: less that a stranger can make us keep.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        config.max_early_data_size = 0;
        Ok(Shown { config: Arc::new(config), files, pin })
    }

    /// The pin of the certificate, for the profiles of clients.
    ///
    /// # Errors
    /// It cannot be read or made.
    pub fn pin(&self) -> anyhow::Result<String> {
        let (chain, _) = self.read()?;
        chain.first().and_then(pin_of).context("the certificate cannot be understood")
    }

    /// The same, when that makes nothing: `None` also when it cannot be read, which loading it tells.
    pub fn pin_if_there(&self) -> Option<String> {
        match self {
            Self::SelfMade { file, .. } if !file.exists() => None,
            _ => self.pin().ok(),
        }
    }

    /// Whether `authorities` vouch for it now as the certificate of the host with this name or address.
    pub(super) fn is_vouched_for(&self, host: &str, authorities: RootCertStore) -> bool {
        let (Self::Files { .. }, Ok((chain, _))) = (self, self.read()) else { return false };
        let (Some((own, others)), Ok(name)) = (chain.split_first(), ServerName::try_from(host)) else {
            return false;
        };
        verifier(authorities)
            .is_ok_and(|it| it.verify_server_cert(own, others, &name, &[], UnixTime::now()).is_ok())
    }

    /// What it would be read from now.
    pub(super) fn stamps(&self) -> Stamps {
        match self {
            Self::Files { chain, key } => [stamp_of(chain), stamp_of(key)],
            Self::SelfMade { file, .. } => [stamp_of(file); 2],
        }
    }

    fn read(&self) -> anyhow::Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)> {
        match self {
            Self::Files { chain, key } => {
                let read = |path: &Path| {
                    std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))
                };
                let wrong = |path: &Path, what: &str| anyhow!("{} holds no {what} in PEM", path.display());
                let certificates = certificates_of(&read(chain)?);
                if certificates.is_empty() {
                    bail!(wrong(chain, "certificate"));
                }
                let private = PrivateKeyDer::from_pem_slice(&read(key)?).map_err(|_| wrong(key, "key"))?;
                Ok((certificates, private))
            }
            Self::SelfMade { file, name } => {
                let pem = match std::fs::read(file) {
                    Ok(pem) => pem,
                    Err(error) if error.kind() == std::io::ErrorKind::NotFound => make(file, name)?,
                    Err(error) => bail!("cannot read {}: {error}", file.display()),
                };
                let key = PrivateKeyDer::from_pem_slice(&pem).map_err(|_| {
                    anyhow!("{} holds no key; remove the file, and it is made anew", file.display())
                })?;
                Ok((certificates_of(&pem), key))
            }
        }
    }
}

fn certificates_of(pem: &[u8]) -> Vec<CertificateDer<'static>> {
    CertificateDer::pem_slice_iter(pem).filter_map(Result::ok).collect()
}

fn make(file: &Path, name: &str) -> anyhow::Result<Vec<u8>> {
    let key = KeyPair::generate().context("cannot make a key for the certificate")?;
    let params = CertificateParams::new(vec![name.to_owned()])
        .with_context(|| format!("{name:?} cannot be the name in a certificate"))?;
    let certificate = params.self_signed(&key).context("cannot make the certificate")?;
    let pem = format!("{}{}", certificate.pem(), key.serialize_pem());
    private_file::write(file, pem.as_bytes())?;
    Ok(pem.into_bytes())
}

/// What a certificate is recognised by: its public key, so that one renewed with the same key stays itself.
pub fn pin_of(certificate: &CertificateDer<'_>) -> Option<String> {
    let parsed = ParsedCertificate::try_from(certificate).ok()?;
    Some(pin_text(&Sha256::digest(parsed.subject_public_key_info())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_is_made_once_and_keeps_its_pin() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("stream.pem");
        let made = Certificate::SelfMade { file: file.clone(), name: "vpn.example.org".to_owned() };
        let pin = made.pin().unwrap();
        assert!(pin.starts_with("sha256:") && pin.len() == 7 + 44, "{pin}");
        assert_eq!(made.pin().unwrap(), pin);
        assert!(made.load().is_ok());
        use std::os::unix::fs::PermissionsExt;
        assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
        std::fs::remove_file(&file).unwrap();
        assert_ne!(made.pin().unwrap(), pin, "another key is another pin");
    }

    #[test]
    fn authorities_vouch_for_what_they_signed_and_only_by_its_name() {
        use rcgen::{BasicConstraints, IsCa, Issuer};

        let directory = tempfile::tempdir().unwrap();
        let authority = |name: &str| {
            let key = KeyPair::generate().unwrap();
            let mut params = CertificateParams::new(Vec::new()).unwrap();
            params.distinguished_name.push(rcgen::DnType::CommonName, name);
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            let certificate = params.self_signed(&key).unwrap();
            let mut roots = RootCertStore::empty();
            roots.add(certificate.der().clone()).unwrap();
            (roots, Issuer::new(params, key))
        };
        let ((ours, issuer), (others, _)) = (authority("ours"), authority("others"));
        let key = KeyPair::generate().unwrap();
        let names = vec!["vpn.example.org".to_owned(), "192.0.2.1".to_owned()];
        let signed = CertificateParams::new(names).unwrap().signed_by(&key, &issuer).unwrap();
        let [chain, private] = ["chain.pem", "key.pem"].map(|name| directory.path().join(name));
        std::fs::write(&chain, signed.pem()).unwrap();
        std::fs::write(&private, key.serialize_pem()).unwrap();
        let files = Certificate::Files { chain, key: private };
        for (host, roots, expected) in [
            ("vpn.example.org", &ours, true),
            ("192.0.2.1", &ours, true),
            ("www.example.org", &ours, false),
            ("vpn.example.org", &others, false),
            ("vpn.example.org", &RootCertStore::empty(), false),
        ] {
            assert_eq!(files.is_vouched_for(host, roots.clone()), expected, "{host}");
        }
        let made = Certificate::SelfMade {
            file: directory.path().join("stream.pem"),
            name: "vpn.example.org".to_owned(),
        };
        assert_eq!(made.pin_if_there(), None, "nothing is made by asking");
        assert!(made.pin().is_ok() && !made.is_vouched_for("vpn.example.org", ours));
    }

    #[test]
    fn a_file_replaced_by_an_older_one_is_another() {
        let directory = tempfile::tempdir().unwrap();
        let [chain, key] = ["chain.pem", "key.pem"].map(|name| directory.path().join(name));
        std::fs::write(&chain, "one").unwrap();
        std::fs::write(&key, "key").unwrap();
        let files = Certificate::Files { chain: chain.clone(), key };
        let before = files.stamps();
        assert_eq!(files.stamps(), before, "nothing changed");
        let newer = directory.path().join("newer.pem");
        std::fs::write(&newer, "two").unwrap();
        let long_ago = SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(1_000_000_000);
        std::fs::File::options().write(true).open(&newer).unwrap().set_modified(long_ago).unwrap();
        std::fs::rename(&newer, &chain).unwrap();
        assert_ne!(files.stamps(), before);

        let file = directory.path().join("stream.pem");
        let made = Certificate::SelfMade { file, name: "x".to_owned() };
        assert_eq!(made.load().ok().unwrap().files, made.stamps(), "one made just now is not a change");
    }

    #[test]
    fn files_that_hold_no_certificate_are_named() {
        let directory = tempfile::tempdir().unwrap();
        let [chain, key] = ["chain.pem", "key.pem"].map(|name| directory.path().join(name));
        let files = Certificate::Files { chain: chain.clone(), key: key.clone() };
        let error = |files: &Certificate| format!("{:#}", files.load().err().unwrap());
        assert!(error(&files).contains("chain.pem"));
        let pair = KeyPair::generate().unwrap();
        let certificate = CertificateParams::new(vec!["a".to_owned()]).unwrap().self_signed(&pair).unwrap();
        std::fs::write(&chain, certificate.pem()).unwrap();
        std::fs::write(&key, "nonsense").unwrap();
        assert!(error(&files).contains("key.pem holds no key"));
        std::fs::write(&key, KeyPair::generate().unwrap().serialize_pem()).unwrap();
        assert!(error(&files).contains("do not belong together"), "{}", error(&files));
        std::fs::write(&key, pair.serialize_pem()).unwrap();
        assert!(files.load().is_ok());
    }
}

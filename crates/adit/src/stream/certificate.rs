//! The certificate of a gateway: from files that somebody keeps fresh, or made here once and kept.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use anyhow::{Context, anyhow, bail};
use rcgen::{CertificateParams, KeyPair};
use sha2::{Digest, Sha256};
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::server::{NoServerSessionStorage, ParsedCertificate};
use tokio_rustls::rustls::version::TLS13;

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
    pub(super) changed: Option<SystemTime>,
}

impl Certificate {
    /// Reads it, or makes it when it is to be made here and is not there yet.
    pub(super) fn load(&self) -> anyhow::Result<Shown> {
        let changed = self.changed();
        let (chain, key) = self.read()?;
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
        Ok(Shown { config: Arc::new(config), changed })
    }

    /// The pin of the certificate, for the profiles of clients.
    ///
    /// # Errors
    /// It cannot be read or made.
    pub fn pin(&self) -> anyhow::Result<String> {
        let (chain, _) = self.read()?;
        chain.first().and_then(pin_of).context("the certificate cannot be understood")
    }

    /// When what it is read from was last written.
    pub(super) fn changed(&self) -> Option<SystemTime> {
        let (first, second) = match self {
            Self::Files { chain, key } => (chain, key),
            Self::SelfMade { file, .. } => (file, file),
        };
        let at = |path: &Path| std::fs::metadata(path).and_then(|it| it.modified()).ok();
        at(first).max(at(second))
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

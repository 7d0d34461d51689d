//! Whether a client takes a server for its gateway before the session has proved it.

use std::env;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use tokio_rustls::rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use tokio_rustls::rustls::client::{VerifierBuilderError, WebPkiServerVerifier};
use tokio_rustls::rustls::crypto::{CryptoProvider, verify_tls13_signature};
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use tokio_rustls::rustls::version::TLS13;
use tokio_rustls::rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme,
};

use super::certificate::{Stamp, pin_of, stamp_of};
use super::link::LinkError;
use super::{ALPN, provider};
use crate::config::stream::TlsVerify;
use crate::web::authorities_of_host;

/// What TLS asks of the server.
///
/// # Errors
/// What it is to be recognised by is not there: a pin, or authorities.
pub(super) fn client_config(verify: TlsVerify, pin: Option<&str>) -> Result<Arc<ClientConfig>, LinkError> {
    config_with(provider(), verify, pin)
}

/// The same, of a client with other cryptography.
pub(super) fn config_with(
    provider: Arc<CryptoProvider>,
    verify: TlsVerify,
    pin: Option<&str>,
) -> Result<Arc<ClientConfig>, LinkError> {
    let failed = |error: &dyn std::error::Error| LinkError::Tls(io::Error::other(error.to_string()));
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(&[&TLS13])
        .map_err(|error| failed(&error))?;
    let mut config = match verify {
        TlsVerify::WebPki => {
            static AUTHORITIES: Mutex<Authorities> = Mutex::new(Authorities { last: None });
            let mut authorities = AUTHORITIES.lock().unwrap_or_else(PoisonError::into_inner);
            let verifier = authorities.verifier(stamps_of_authorities(), authorities_of_host)?;
            builder.dangerous().with_custom_certificate_verifier(verifier).with_no_client_auth()
        }
        TlsVerify::Pin => {
            let verifier = Arc::new(Sight { pin: Some(pin.ok_or(LinkError::NoPin)?.to_owned()), provider });
            builder.dangerous().with_custom_certificate_verifier(verifier).with_no_client_auth()
        }
        TlsVerify::Off => {
            let verifier = Arc::new(Sight { pin: None, provider });
            builder.dangerous().with_custom_certificate_verifier(verifier).with_no_client_auth()
        }
    };
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.enable_early_data = false;
    config.resumption = tokio_rustls::rustls::client::Resumption::disabled();
    Ok(Arc::new(config))
}

/// The authorities of this host, as they were last read.
#[derive(Debug)]
struct Authorities {
    last: Option<(Vec<Stamp>, Arc<WebPkiServerVerifier>)>,
}

impl Authorities {
    /// Takes whom they vouch for. They are read again when `now` is another than it was, or when that failed.
    fn verifier(
        &mut self,
        now: Vec<Stamp>,
        read: impl FnOnce() -> Result<RootCertStore, String>,
    ) -> Result<Arc<WebPkiServerVerifier>, LinkError> {
        if let Some((_, verifier)) = self.last.as_ref().filter(|(then, _)| *then == now) {
            return Ok(Arc::clone(verifier));
        }
        self.last = None;
        let verifier = verifier(read().map_err(LinkError::NoAuthorities)?)
            .map_err(|error| LinkError::Tls(io::Error::other(error.to_string())))?;
        self.last = Some((now, Arc::clone(&verifier)));
        Ok(verifier)
    }
}

/// What is where [`authorities_of_host`] reads. A directory is another when a file in it comes or goes.
fn stamps_of_authorities() -> Vec<Stamp> {
    let file = env::var_os("SSL_CERT_FILE").map(PathBuf::from);
    let directories: Vec<PathBuf> =
        env::var_os("SSL_CERT_DIR").iter().flat_map(|it| env::split_paths(it).collect::<Vec<_>>()).collect();
    if file.is_some() || !directories.is_empty() {
        return file.iter().chain(&directories).map(|place| stamp_of(place)).collect();
    }
    let found = openssl_probe::probe();
    found.cert_file.iter().chain(&found.cert_dir).map(|place| stamp_of(place)).collect()
}

/// Takes whom `authorities` vouch for.
pub(super) fn verifier(
    authorities: RootCertStore,
) -> Result<Arc<WebPkiServerVerifier>, VerifierBuilderError> {
    WebPkiServerVerifier::builder_with_provider(Arc::new(authorities), provider()).build()
}

/// Recognises a certificate by its pin, or takes any; either way the server must have its key.
#[derive(Debug)]
struct Sight {
    pin: Option<String>,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Sight {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        match &self.pin {
            Some(pin) if pin_of(end_entity).as_ref() != Some(pin) => {
                Err(CertificateError::ApplicationVerificationFailure.into())
            }
            _ => Ok(ServerCertVerified::assertion()),
        }
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("TLS 1.2 is never negotiated".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(
            message,
            certificate,
            signature,
            &self.provider.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use rcgen::{CertificateParams, KeyPair};

    use super::*;

    fn authority() -> RootCertStore {
        let params = CertificateParams::new(vec!["an authority".to_owned()]).unwrap();
        let mut store = RootCertStore::empty();
        store.add(params.self_signed(&KeyPair::generate().unwrap()).unwrap().der().clone()).unwrap();
        store
    }

    #[test]
    fn authorities_are_read_once_and_again_when_they_changed_or_could_not_be_read() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("authorities.pem");
        std::fs::write(&file, "one").unwrap();
        let reads = Cell::new(0);
        let mut authorities = Authorities { last: None };
        let mut ask = |found: Result<RootCertStore, String>| {
            authorities.verifier(vec![stamp_of(&file)], || {
                reads.set(reads.get() + 1);
                found
            })
        };
        assert!(matches!(ask(Err("none".to_owned())), Err(LinkError::NoAuthorities(_))));
        let first = ask(Ok(authority())).unwrap();
        assert_eq!(reads.get(), 2, "what failed is tried again");
        let second = ask(Err("not asked".to_owned())).unwrap();
        assert!(Arc::ptr_eq(&first, &second) && reads.get() == 2);
        std::fs::write(&file, "another").unwrap();
        let third = ask(Ok(authority())).unwrap();
        assert!(!Arc::ptr_eq(&first, &third) && reads.get() == 3);
        std::fs::remove_file(&file).unwrap();
        assert!(ask(Err("gone".to_owned())).is_err(), "nobody is trusted by what is not there any more");
    }
}

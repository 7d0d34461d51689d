//! Whether a client takes a server for its gateway before the session has proved it.

use std::io;
use std::sync::Arc;

use tokio_rustls::rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use tokio_rustls::rustls::client::{VerifierBuilderError, WebPkiServerVerifier};
use tokio_rustls::rustls::crypto::{CryptoProvider, verify_tls13_signature};
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use tokio_rustls::rustls::version::TLS13;
use tokio_rustls::rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme,
};

use super::certificate::pin_of;
use super::link::LinkError;
use super::{ALPN, provider};
use crate::config::stream::TlsVerify;
use crate::web::authorities_of_host;

/// What TLS asks of the server.
///
/// # Errors
/// What it is to be recognised by is not there: a pin, or authorities.
pub(super) fn client_config(verify: TlsVerify, pin: Option<&str>) -> Result<Arc<ClientConfig>, LinkError> {
    let provider = provider();
    let failed = |error: &dyn std::error::Error| LinkError::Tls(io::Error::other(error.to_string()));
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(&[&TLS13])
        .map_err(|error| failed(&error))?;
    let mut config = match verify {
        TlsVerify::WebPki => {
            let verifier = verifier(authorities_of_host().map_err(LinkError::NoAuthorities)?)
                .map_err(|error| failed(&error))?;
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

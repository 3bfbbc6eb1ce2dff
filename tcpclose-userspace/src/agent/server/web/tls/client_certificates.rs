//! Verification of client certificates.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::{WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{CertificateError, DigitallySignedStruct, DistinguishedName, Error, SignatureScheme};
use webpki::EndEntityCert;

/// The five policies of Go: verified or not, mandatory or not; restricted to certain names or not.
pub struct Clients {
    /// Verifies by the CA; `None`: any certificate is accepted if the client has its key.
    pub verifier: Option<Arc<dyn ClientCertVerifier>>,
    pub mandatory: bool,
    /// If not empty, a certificate must have one of these as a subject alternative name.
    pub sans: Vec<String>,
    pub algorithms: WebPkiSupportedAlgorithms,
}

impl fmt::Debug for Clients {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Clients").field("mandatory", &self.mandatory).field("sans", &self.sans).finish()
    }
}

impl ClientCertVerifier for Clients {
    fn client_auth_mandatory(&self) -> bool {
        self.mandatory
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.verifier.as_ref().map_or(&[], |verifier| verifier.root_hint_subjects())
    }

    fn verify_client_cert(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        if let Some(verifier) = &self.verifier {
            verifier.verify_client_cert(certificate, intermediates, now)?;
        }
        if !self.sans.is_empty() && !has_any(certificate, &self.sans) {
            return Err(CertificateError::ApplicationVerificationFailure.into());
        }
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, certificate, dss, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, dss, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

/// Whether one of `sans` is literally a DNS name, an address or a URI of the certificate.
fn has_any(certificate: &CertificateDer<'_>, sans: &[String]) -> bool {
    let Ok(certificate) = EndEntityCert::try_from(certificate) else { return false };
    let allowed = |name: &str| sans.iter().any(|san| san == name);
    let address = |san: &String| {
        san.parse::<IpAddr>().is_ok_and(|address| {
            certificate.verify_is_valid_for_subject_name(&ServerName::from(address)).is_ok()
        })
    };
    certificate.valid_dns_names().any(allowed)
        || certificate.valid_uri_names().any(allowed)
        || sans.iter().any(address)
}

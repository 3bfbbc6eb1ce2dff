//! TLS for the metrics port, by rustls: the settings of a web configuration ([`settings`]), what rustls needs of them, and
//! the handshake. `no_tls` takes its place in a build without it.

mod client_certificates;
mod settings;

use std::io;
use std::path::Path;
use std::sync::Arc;

use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::version::{TLS12, TLS13};
use rustls::{CipherSuite, RootCertStore, ServerConfig, SupportedCipherSuite};
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use crate::agent::server::web::tls::client_certificates::Clients;
use crate::failure::Failure;

pub use crate::agent::server::web::tls::settings::{ClientAuth, Pem, Settings, TlsVersion, settings};

/// Accepts TLS connections.
#[derive(Clone, Debug)]
pub struct Acceptor(Arc<ServerConfig>);

impl Acceptor {
    /// The handshake with a client.
    ///
    /// # Errors
    /// When it fails: a wrong certificate, an old version, a scanner.
    pub async fn accept(self, stream: TcpStream) -> io::Result<TlsStream<TcpStream>> {
        TlsAcceptor::from(self.0).accept(stream).await
    }
}

/// Reads a file that the configuration names.
pub type Read<'a> = &'a mut dyn FnMut(&Path) -> Result<Vec<u8>, Failure>;

const NEW_PAIR: &str = "name a certificate and its private key, both in PEM";

/// # Errors
/// When a certificate or a key is missing or invalid, or the two do not belong together.
pub fn server(tls: &Settings, read: Read<'_>) -> Result<Acceptor, Failure> {
    let mut provider = ring::default_provider();
    if let Some(suites) = &tls.suites {
        choose_suites(&mut provider.cipher_suites, suites);
    }
    if !tls.curves.is_empty() {
        let all = std::mem::take(&mut provider.kx_groups);
        let group = |name| all.iter().copied().find(|group| group.name() == name);
        provider.kx_groups = tls.curves.iter().filter_map(|name| group(*name)).collect();
    }
    let provider = Arc::new(provider);
    let versions: Vec<_> = [(TlsVersion::Tls13, &TLS13), (TlsVersion::Tls12, &TLS12)]
        .into_iter()
        .filter(|(version, _)| (tls.min_version..=tls.max_version).contains(version))
        // Without suites of TLS 1.2, only 1.3 is spoken.
        .filter(|(version, _)| {
            *version == TlsVersion::Tls13 || tls.suites.as_ref().is_none_or(|s| !s.is_empty())
        })
        .map(|(_, version)| version)
        .collect();
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(&versions)
        .map_err(|why| Failure::new("TLS", why, "choose other versions or cipher_suites"))?;

    let builder = match clients(tls, &provider, read)? {
        Some(clients) => builder.with_client_cert_verifier(Arc::new(clients)),
        None => builder.with_no_client_auth(),
    };
    let chain = certificates(&tls.cert, read)?;
    let key = key(&tls.key, read)?;
    let mut config = builder.with_single_cert(chain, key).map_err(|why| {
        Failure::new(format!("{} and {}", named(&tls.cert), named(&tls.key)), why, NEW_PAIR)
    })?;
    config.ignore_client_order = tls.prefer_server;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    // No session resumption: a scraper keeps its connection, strangers cannot make the agent keep sessions,
    // and no session outlives its certificate.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(Acceptor(Arc::new(config)))
}

/// Keeps the suites of TLS 1.3, and the `named` ones of TLS 1.2, in that order.
fn choose_suites(all: &mut Vec<SupportedCipherSuite>, named: &[CipherSuite]) {
    let tls12 = named.iter().filter_map(|name| all.iter().copied().find(|suite| suite.suite() == *name));
    let tls12: Vec<SupportedCipherSuite> = tls12.collect();
    all.retain(|suite| suite.tls13().is_some());
    all.extend(tls12);
}

/// `None` if no client certificate is requested.
fn clients(
    tls: &Settings,
    provider: &Arc<CryptoProvider>,
    read: Read<'_>,
) -> Result<Option<Clients>, Failure> {
    if tls.client_auth == ClientAuth::None {
        return Ok(None);
    }
    let mut verifier = None;
    if let Some(ca) = tls.client_ca.as_ref().filter(|_| tls.client_auth.verifies()) {
        let mut roots = RootCertStore::empty();
        let wrong = |why: &dyn std::fmt::Display| {
            Failure::new(named(ca), why, "name a PEM file with the certificates of a CA")
        };
        for certificate in certificates(ca, read)? {
            roots.add(certificate).map_err(|why| wrong(&why))?;
        }
        let built =
            WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(provider)).build();
        verifier = Some(built.map_err(|why| wrong(&why))?);
    }
    Ok(Some(Clients {
        verifier,
        mandatory: tls.client_auth.requires(),
        sans: tls.allowed_sans.clone(),
        algorithms: provider.signature_verification_algorithms,
    }))
}

fn named(pem: &Pem) -> String {
    match pem {
        Pem::File(path) => path.display().to_string(),
        Pem::Inline(_) => "the web configuration".to_owned(),
    }
}

fn content(pem: &Pem, read: Read<'_>) -> Result<Vec<u8>, Failure> {
    match pem {
        Pem::File(path) => read(path),
        Pem::Inline(text) => Ok(text.as_bytes().to_vec()),
    }
}

fn certificates(pem: &Pem, read: Read<'_>) -> Result<Vec<CertificateDer<'static>>, Failure> {
    let content = content(pem, read)?;
    let wrong =
        |why: &dyn std::fmt::Display| Failure::new(named(pem), why, "name a PEM file with certificates");
    let all: Result<Vec<_>, pem::Error> = CertificateDer::pem_slice_iter(&content).collect();
    match all {
        Ok(all) if all.is_empty() => Err(wrong(&"there is no certificate in it")),
        Ok(all) => Ok(all),
        Err(why) => Err(wrong(&why)),
    }
}

fn key(pem: &Pem, read: Read<'_>) -> Result<PrivateKeyDer<'static>, Failure> {
    let content = content(pem, read)?;
    PrivateKeyDer::from_pem_slice(&content).map_err(|why| {
        let encrypted = content.windows(9).any(|word| word == b"ENCRYPTED");
        match why {
            pem::Error::NoItemsFound if encrypted => {
                Failure::new(named(pem), "the key is encrypted", "decrypt it: openssl pkey -in KEY -out NEW")
            }
            pem::Error::NoItemsFound => Failure::new(named(pem), "there is no private key in it", NEW_PAIR),
            why => Failure::new(named(pem), why, NEW_PAIR),
        }
    })
}

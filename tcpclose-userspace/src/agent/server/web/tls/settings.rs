//! The section `tls_server_config`. Pure.

use std::fmt;
use std::path::{Path, PathBuf};

use rustls::{CipherSuite, NamedGroup};

use crate::agent::server::web::fields::{Field, choice};
use crate::agent::server::web::yaml::{Node, YamlValue, short};
use crate::failure::Failure;

#[derive(Debug, PartialEq, Eq)]
pub struct Settings {
    pub cert: Pem,
    pub key: Pem,
    pub client_ca: Option<Pem>,
    pub client_auth: ClientAuth,
    /// If not empty, a client's certificate must have one of them.
    pub allowed_sans: Vec<String>,
    /// Those of TLS 1.2, in order of preference; those of 1.3 are always on, as in Go. `None`: all.
    pub suites: Option<Vec<CipherSuite>>,
    /// In order of preference; empty: all.
    pub curves: Vec<NamedGroup>,
    pub min_version: TlsVersion,
    pub max_version: TlsVersion,
    /// The server's order of preference counts, not the client's.
    pub prefer_server: bool,
}

/// Certificates or a key.
#[derive(PartialEq, Eq)]
pub enum Pem {
    File(PathBuf),
    /// In the web configuration itself.
    Inline(String),
}

impl fmt::Debug for Pem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => path.fmt(f),
            Self::Inline(_) => f.write_str("inline"),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum TlsVersion {
    Tls12,
    Tls13,
}

/// Go's policies for client certificates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClientAuth {
    None,
    /// Requested; any certificate is accepted.
    Request,
    RequireAny,
    VerifyIfGiven,
    RequireAndVerify,
}

impl ClientAuth {
    pub const fn verifies(self) -> bool {
        matches!(self, Self::VerifyIfGiven | Self::RequireAndVerify)
    }

    pub const fn requires(self) -> bool {
        matches!(self, Self::RequireAny | Self::RequireAndVerify)
    }
}

const CLIENT_AUTH: [(&str, ClientAuth); 6] = [
    ("NoClientCert", ClientAuth::None),
    ("RequestClientCert", ClientAuth::Request),
    ("RequireAnyClientCert", ClientAuth::RequireAny),
    // A former name, which the toolkit still accepts.
    ("RequireClientCert", ClientAuth::RequireAny),
    ("VerifyClientCertIfGiven", ClientAuth::VerifyIfGiven),
    ("RequireAndVerifyClientCert", ClientAuth::RequireAndVerify),
];

/// Go's names.
const SUITES: [(&str, CipherSuite); 9] = [
    ("TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384", CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384),
    ("TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256", CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256),
    (
        "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256",
        CipherSuite::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256,
    ),
    ("TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384", CipherSuite::TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384),
    ("TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256", CipherSuite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256),
    ("TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256", CipherSuite::TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256),
    ("TLS_AES_128_GCM_SHA256", CipherSuite::TLS13_AES_128_GCM_SHA256),
    ("TLS_AES_256_GCM_SHA384", CipherSuite::TLS13_AES_256_GCM_SHA384),
    ("TLS_CHACHA20_POLY1305_SHA256", CipherSuite::TLS13_CHACHA20_POLY1305_SHA256),
];

const CURVES: [(&str, NamedGroup); 3] = [
    ("X25519", NamedGroup::X25519),
    ("CurveP256", NamedGroup::secp256r1),
    ("CurveP384", NamedGroup::secp384r1),
];

const VERSIONS: [(&str, TlsVersion); 2] = [("TLS12", TlsVersion::Tls12), ("TLS13", TlsVersion::Tls13)];

const TLS_KEYS: [&str; 13] = [
    "cert",
    "key",
    "client_ca",
    "cert_file",
    "key_file",
    "client_auth_type",
    "client_ca_file",
    "client_allowed_sans",
    "min_version",
    "max_version",
    "cipher_suites",
    "prefer_server_cipher_suites",
    "curve_preferences",
];

/// The section `tls_server_config` of `file`, checked; `None`: no TLS. The files that it names are not read yet.
pub fn settings(field: &Field<'_, '_>, file: &Path) -> Result<Option<Settings>, Failure> {
    let fields = field.table(&TLS_KEYS)?;
    if fields.entries.is_empty() {
        return Ok(None);
    }
    let pem = |inline: &str, path: &str| match (fields.at(inline).text()?, fields.at(path).text()?) {
        (Some(_), Some(_)) => {
            Err(fields.at(inline).wrong(format_args!("{path} is set too"), "keep one of them"))
        }
        (Some(text), None) => Ok(Some(Pem::Inline(text.to_owned()))),
        (None, Some(path)) => Ok(Some(Pem::File(file.parent().unwrap_or(Path::new("")).join(path)))),
        (None, None) => Ok(None),
    };
    let missing = |what: &str| field.wrong(format_args!("{what} is missing"), format!("set {what}_file"));
    let cert = pem("cert", "cert_file")?.ok_or_else(|| missing("cert"))?;
    let key = pem("key", "key_file")?.ok_or_else(|| missing("key"))?;
    let client_ca = pem("client_ca", "client_ca_file")?;

    let auth = fields.at("client_auth_type");
    let client_auth = auth.choice(&CLIENT_AUTH)?.unwrap_or(ClientAuth::None);
    if client_auth.verifies() && client_ca.is_none() {
        return Err(auth.wrong("verifying client certificates needs a CA", "set client_ca_file"));
    }
    if !client_auth.verifies() && client_ca.is_some() {
        let todo = "write client_auth_type: RequireAndVerifyClientCert, or remove the CA";
        return Err(auth.wrong("client_ca is set, but this client_auth_type verifies no certificates", todo));
    }
    let sans = fields.at("client_allowed_sans");
    let allowed_sans = allowed_sans(&sans)?;
    if !client_auth.requires() && sans.node.is_some_and(|node| node.value != YamlValue::Nothing) {
        let todo = "write client_auth_type: RequireAndVerifyClientCert";
        return Err(sans.wrong("clients need no certificate", todo));
    }

    let min = fields.at("min_version");
    let min_version = version(&min)?.unwrap_or(TlsVersion::Tls12);
    let max_version = version(&fields.at("max_version"))?.unwrap_or(TlsVersion::Tls13);
    if min_version > max_version {
        return Err(min.wrong("it is above max_version", "lower it, or raise max_version"));
    }
    let suites = suites(&fields.at("cipher_suites"))?;
    if max_version == TlsVersion::Tls12 && suites.as_ref().is_some_and(Vec::is_empty) {
        let todo = "add one of TLS 1.2, for example TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256";
        return Err(fields
            .at("cipher_suites")
            .wrong("all suites are of TLS 1.3, and max_version is TLS12", todo));
    }
    let curves = fields.at("curve_preferences").texts()?;
    let curves: Result<Vec<NamedGroup>, Failure> =
        curves.iter().map(|(place, text)| choice(place, text, &CURVES)).collect();
    Ok(Some(Settings {
        cert,
        key,
        client_ca,
        client_auth,
        allowed_sans,
        suites,
        curves: curves?,
        min_version,
        max_version,
        prefer_server: fields.at("prefer_server_cipher_suites").flag(true)?,
    }))
}

fn version(field: &Field<'_, '_>) -> Result<Option<TlsVersion>, Failure> {
    if matches!(field.text()?, Some("TLS10" | "TLS11")) {
        return Err(field.wrong("TLS below 1.2 is not supported", "write TLS12 or TLS13"));
    }
    field.choice(&VERSIONS)
}

/// DNS names, addresses and URIs.
fn allowed_sans(field: &Field<'_, '_>) -> Result<Vec<String>, Failure> {
    let sans = field.texts()?;
    if sans.is_empty() && matches!(field.node, Some(Node { value: YamlValue::List(_), .. })) {
        return Err(field.wrong("an empty list refuses every client", "add a name, or remove the key"));
    }
    // A URI may contain an @ too.
    if let Some((place, text)) = sans.iter().find(|(_, text)| text.contains('@') && !text.contains(':')) {
        let todo = "write DNS names, addresses or URIs of certificates";
        return Err(place.wrong(format_args!("{}: e-mail addresses are not supported", short(text)), todo));
    }
    Ok(sans.into_iter().map(|(_, text)| text.to_owned()).collect())
}

/// Those of TLS 1.2.
fn suites(field: &Field<'_, '_>) -> Result<Option<Vec<CipherSuite>>, Failure> {
    let named = field.texts()?;
    if named.is_empty() {
        return Ok(None);
    }
    let suites: Result<Vec<(&str, CipherSuite)>, Failure> =
        named.iter().map(|(place, text)| Ok((*text, choice(place, text, &SUITES)?))).collect();
    // In Go's names, those of TLS 1.3 have no key exchange.
    Ok(Some(
        suites?.into_iter().filter(|(name, _)| name.contains("_WITH_")).map(|(_, suite)| suite).collect(),
    ))
}

//! Parses and checks the file. Every key of the format is known; unsupported values are refused and nothing
//! is ignored, since a line that an operator wrote to keep strangers out must not be without effect.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bcrypt::HashParts;
use hyper::header::{HeaderName, HeaderValue};
use rustls::{CipherSuite, NamedGroup};

use crate::agent::server::web::fields::{Field, FieldLocation, choice, nearest};
use crate::agent::server::web::rate_limit::Rate;
use crate::agent::server::web::yaml;
use crate::agent::server::web::yaml::{Node, Value, short};
use crate::failure::Failure;

/// The file, checked. The files that it names are not read yet.
#[derive(Debug, Default)]
pub struct WebConfig {
    /// `None`: no TLS.
    pub tls: Option<Tls>,
    /// Sent with each answer.
    pub headers: Vec<(HeaderName, HeaderValue)>,
    pub users: Users,
    pub rate: Option<Rate>,
}

/// User names and bcrypt hashes of passwords. Without users no password is needed.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Users(pub BTreeMap<String, String>);

impl fmt::Debug for Users {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.0.keys()).finish()
    }
}

#[derive(Debug, PartialEq, Eq)]
pub struct Tls {
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
    pub min_version: Version,
    pub max_version: Version,
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
pub enum Version {
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

const VERSIONS: [(&str, Version); 2] = [("TLS12", Version::Tls12), ("TLS13", Version::Tls13)];

/// The headers that the toolkit can set, with the accepted values if these are fixed.
const HEADERS: [(&str, &[&str]); 5] = [
    ("Content-Security-Policy", &[]),
    ("Strict-Transport-Security", &[]),
    ("X-Content-Type-Options", &["nosniff"]),
    ("X-Frame-Options", &["deny", "sameorigin"]),
    ("X-XSS-Protection", &[]),
];

const SECTIONS: [&str; 4] = ["tls_server_config", "http_server_config", "basic_auth_users", "rate_limit"];

/// A check takes about a second of CPU at this cost (65 ms at 10, doubling with each further one), and every
/// client that reaches the port can request one after another.
const HIGHEST_COST: u32 = 14;

const LONGEST_INTERVAL: Duration = Duration::from_secs(86_400);

/// Parses `bytes`, the content of `file`. Paths in it are relative to the folder of `file`.
///
/// # Errors
/// The first error, with its line.
pub fn parse(bytes: &[u8], file: &Path) -> Result<WebConfig, Failure> {
    let name = file.display().to_string();
    if bytes.len() > yaml::LARGEST {
        return Err(Failure::new(
            name,
            "it is larger than 1 MiB",
            "put certificates into files of their own (cert_file)",
        ));
    }
    let Ok(text) = std::str::from_utf8(bytes) else {
        return Err(Failure::new(name, "it is not UTF-8", "write it in UTF-8"));
    };
    let root = yaml::tree(text)
        .map_err(|wrong| Failure::new(format!("{name}, line {}", wrong.line), wrong.why, wrong.todo))?;
    let place = FieldLocation { file: &name, line: root.line, path: String::new() };
    let fields = place.table(&root, &SECTIONS)?;
    Ok(WebConfig {
        tls: tls(&fields.at("tls_server_config"), file)?,
        headers: headers(&fields.at("http_server_config"))?,
        users: users(&fields.at("basic_auth_users"))?,
        rate: rate(&fields.at("rate_limit"))?,
    })
}

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

fn tls(field: &Field<'_, '_>, file: &Path) -> Result<Option<Tls>, Failure> {
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
        return Err(auth.wrong("there is no CA to verify certificates by", "set client_ca_file"));
    }
    if !client_auth.verifies() && client_ca.is_some() {
        let todo = "write client_auth_type: RequireAndVerifyClientCert, or remove the CA";
        return Err(auth.wrong("client_ca is set, and no certificate is verified by it", todo));
    }
    let sans = fields.at("client_allowed_sans");
    let allowed_sans = allowed_sans(&sans)?;
    if !client_auth.requires() && sans.node.is_some_and(|node| node.value != Value::Nothing) {
        let todo = "write client_auth_type: RequireAndVerifyClientCert";
        return Err(sans.wrong("clients need no certificate", todo));
    }

    let min = fields.at("min_version");
    let min_version = version(&min)?.unwrap_or(Version::Tls12);
    let max_version = version(&fields.at("max_version"))?.unwrap_or(Version::Tls13);
    if min_version > max_version {
        return Err(min.wrong("it is above max_version", "lower it, or raise max_version"));
    }
    let suites = suites(&fields.at("cipher_suites"))?;
    if max_version == Version::Tls12 && suites.as_ref().is_some_and(Vec::is_empty) {
        let todo = "add one of TLS 1.2, for example TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256";
        return Err(fields
            .at("cipher_suites")
            .wrong("all suites are of TLS 1.3, and max_version is TLS12", todo));
    }
    let curves = fields.at("curve_preferences").texts()?;
    let curves: Result<Vec<NamedGroup>, Failure> =
        curves.iter().map(|(place, text)| choice(place, text, &CURVES)).collect();
    Ok(Some(Tls {
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

fn version(field: &Field<'_, '_>) -> Result<Option<Version>, Failure> {
    if matches!(field.text()?, Some("TLS10" | "TLS11")) {
        return Err(field.wrong("TLS below 1.2 is not supported", "write TLS12 or TLS13"));
    }
    field.choice(&VERSIONS)
}

/// DNS names, addresses and URIs.
fn allowed_sans(field: &Field<'_, '_>) -> Result<Vec<String>, Failure> {
    let sans = field.texts()?;
    if sans.is_empty() && matches!(field.node, Some(Node { value: Value::List(_), .. })) {
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

fn headers(field: &Field<'_, '_>) -> Result<Vec<(HeaderName, HeaderValue)>, Failure> {
    let fields = field.table(&["http2", "headers"])?;
    let http2 = fields.at("http2");
    if http2.flag(false)? {
        return Err(http2.wrong("HTTP/2 is not supported", "remove it: Prometheus speaks HTTP/1.1 as well"));
    }
    let known = HEADERS.map(|(name, _)| name);
    let field = fields.at("headers");
    let Some(node) = field.node else { return Ok(Vec::new()) };
    let mut headers = Vec::new();
    for (key, value) in field.place.entries(node)? {
        let field = Field { place: field.place.below(key), node: Some(value) };
        let Some((name, values)) = HEADERS.iter().find(|(name, _)| *name == key.name) else {
            let todo = format!("did you mean {}?", nearest(&key.name, known.into_iter()));
            return Err(field.wrong("this header cannot be set", todo));
        };
        let Some(text) = field.text()? else { continue };
        if !values.is_empty() && !values.contains(&text) {
            let todo = format!("write {}", values.join(" or "));
            return Err(field.wrong(format_args!("{:?} is not a value of this header", short(text)), todo));
        }
        let (Ok(name), Ok(value)) = (HeaderName::try_from(*name), HeaderValue::try_from(text)) else {
            return Err(field.wrong("not a valid header value", "write one line of ASCII"));
        };
        headers.push((name, value));
    }
    Ok(headers)
}

fn users(field: &Field<'_, '_>) -> Result<Users, Failure> {
    let Some(node) = field.node else { return Ok(Users::default()) };
    let mut users = BTreeMap::new();
    for (key, value) in field.place.entries(node)? {
        let field = Field { place: field.place.below(key), node: Some(value) };
        if key.name.contains(':') || key.name.is_empty() {
            return Err(field.wrong("not a valid user name", "write a name without a colon"));
        }
        const MAKE: &str = "make one: htpasswd -nBC 10 NAME";
        let hash = field.text()?.ok_or_else(|| field.wrong("there is no password hash", MAKE))?;
        let Ok(parts) = hash.parse::<HashParts>() else {
            return Err(field.wrong("not a bcrypt hash", MAKE));
        };
        let cost = parts.get_cost();
        if cost > HIGHEST_COST {
            let seconds = 1_u64 << (cost - HIGHEST_COST).min(32);
            let why = format!(
                "a check of bcrypt cost {cost} takes {seconds} s of CPU or more, the limit is {HIGHEST_COST}"
            );
            return Err(field.wrong(why, MAKE));
        }
        if cost < 4 {
            return Err(field.wrong(format_args!("a cost of {cost} is below 4"), MAKE));
        }
        users.insert(key.name.clone(), hash.to_owned());
    }
    Ok(Users(users))
}

fn rate(field: &Field<'_, '_>) -> Result<Option<Rate>, Failure> {
    let fields = field.table(&["interval", "burst"])?;
    let (interval, burst) = (fields.at("interval"), fields.at("burst"));
    const WRITE: &str = "write for example 1s or 500ms";
    let every = match interval.text()? {
        None | Some("0") => Duration::ZERO,
        Some(text) => humantime::parse_duration(text).map_err(|_| interval.wrong("not a duration", WRITE))?,
    };
    if every > LONGEST_INTERVAL {
        return Err(interval.wrong("longer than a day", WRITE));
    }
    let tokens = match burst.text()? {
        None => 0,
        Some(text) => text.parse::<u32>().map_err(|_| burst.wrong("not a number", "write for example 20"))?,
    };
    match (every.is_zero(), tokens) {
        (true, 0) => Ok(None),
        (true, _) if interval.node.is_some() => Ok(None),
        (true, _) => Err(burst.wrong("burst needs an interval", WRITE)),
        (false, 0) => Err(burst.wrong("every request would be refused", "write for example burst: 20")),
        (false, burst) => Ok(Some(Rate { interval: every, burst })),
    }
}

//! Parses and checks the file. Every key of the format is known; unsupported values are refused and nothing
//! is ignored, since a line that an operator wrote to keep strangers out must not be without effect.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::time::Duration;

use bcrypt::HashParts;
use hyper::header::{HeaderName, HeaderValue};

use crate::agent::server::web::fields::{Field, FieldLocation};
use crate::agent::server::web::rate_limit::Rate;
use crate::agent::server::web::tls;
use crate::agent::server::web::yaml;
use crate::agent::server::web::yaml::short;
use crate::failure::{Failure, did_you_mean};

/// The file, checked. The files that it names are not read yet.
#[derive(Debug, Default)]
pub struct WebConfig {
    /// `None`: no TLS.
    pub tls: Option<tls::Settings>,
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
        tls: tls::settings(&fields.at("tls_server_config"), file)?,
        headers: headers(&fields.at("http_server_config"))?,
        users: users(&fields.at("basic_auth_users"))?,
        rate: rate(&fields.at("rate_limit"))?,
    })
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
            let todo = did_you_mean(&key.name, known);
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
                "a password check at bcrypt cost {cost} takes {seconds} s of CPU or more (the limit is cost {HIGHEST_COST})"
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
    const WRITE: &str = "for example 1s or 500ms";
    let every = match interval.text()? {
        None | Some("0") => Duration::ZERO,
        Some(text) => humantime::parse_duration(text).map_err(|_| interval.wrong("not a duration", WRITE))?,
    };
    if every > LONGEST_INTERVAL {
        return Err(interval.wrong("longer than a day", WRITE));
    }
    let tokens = match burst.text()? {
        None => 0,
        Some(text) => text.parse::<u32>().map_err(|_| burst.wrong("not a number", "for example 20"))?,
    };
    match (every.is_zero(), tokens) {
        (true, 0) => Ok(None),
        (true, _) if interval.node.is_some() => Ok(None),
        (true, _) => Err(burst.wrong("burst needs an interval", WRITE)),
        (false, 0) => Err(burst.wrong("every request would be refused", "for example burst: 20")),
        (false, burst) => Ok(Some(Rate { interval: every, burst })),
    }
}

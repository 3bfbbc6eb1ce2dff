//! The names in `Host` that a browser may use: the check against DNS rebinding (RFC 9110, 7.4).
//!
//! The owner of a name can have it resolve to this agent's address, and then that page's scripts may read what the agent serves.
//! They cannot hide the name. What is for browsers is served under known names only. Everything else, the metrics above all, is
//! served under any name, since Prometheus scrapes by whatever name finds the host; but not to a browser, which cannot hide that
//! it is one: it adds `Accept-Language` to each request, and a script can change that but not take it off (Fetch standard,
//! HTTP-network-or-cache fetch).

use std::net::{Ipv4Addr, Ipv6Addr};

use hyper::header::{ACCEPT_LANGUAGE, HOST, HeaderMap, HeaderName, ORIGIN};
use hyper::{StatusCode, Uri};

use crate::agent::server::handlers::page::Page;
use crate::agent::server::response::{Answer, plain};
use crate::linux::host;
use crate::report::requests::PORTS_PATH;

const REFUSAL: &str = "browsers are not allowed to use this host name; use an IP address or the host's own name, or start \
                       the agent with --allowed-host NAME\n";

/// A name of `--allowed-host`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AllowedHost {
    /// Every name: the check is off.
    Any,
    /// In lower case, without the last dot.
    Name(String),
}

impl AllowedHost {
    /// # Errors
    /// When it is no host name.
    pub fn parse(text: &str) -> Result<Self, &'static str> {
        const WHY: &str = "not a host name; for example node1.example.com, without a port, or *";
        if text == "*" {
            return Ok(Self::Any);
        }
        let name = normal(text);
        let is_label = |label: &str| {
            (1..=63).contains(&label.len())
                && label.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'))
        };
        if name.len() <= 253 && name.split('.').all(is_label) { Ok(Self::Name(name)) } else { Err(WHY) }
    }
}

/// The refusal of a request to `uri` with these headers, which came by TCP.
pub fn refusal(allowed: &[AllowedHost], uri: &Uri, headers: &HeaderMap) -> Option<Answer> {
    refusal_on(&host::hostname(), allowed, uri, headers)
}

/// The same, on a host with the name `own`.
fn refusal_on(own: &str, allowed: &[AllowedHost], uri: &Uri, headers: &HeaderMap) -> Option<Answer> {
    let is_for_browsers = uri.path() == PORTS_PATH || Page::at(uri.path()).is_some();
    if !is_for_browsers && !is_of_browser(headers) {
        return None;
    }
    let is_known = |name: &str| is_known(own, allowed, name);
    // No browser leaves it out.
    let named = headers.get_all(HOST).iter().all(|value| value.to_str().is_ok_and(is_known));
    let addressed = uri.authority().is_none_or(|authority| is_known(authority.as_str()));
    (!named || !addressed).then(|| plain(StatusCode::MISDIRECTED_REQUEST, REFUSAL))
}

fn is_of_browser(headers: &HeaderMap) -> bool {
    const SITE: HeaderName = HeaderName::from_static("sec-fetch-site");
    [ACCEPT_LANGUAGE, ORIGIN, SITE].iter().any(|name| headers.contains_key(name))
}

/// Whether nobody else can own the name of `authority`, a host with or without a port.
fn is_known(own: &str, allowed: &[AllowedHost], authority: &str) -> bool {
    if allowed.contains(&AllowedHost::Any) {
        return true;
    }
    if let Some(rest) = authority.strip_prefix('[') {
        return rest.split_once(']').is_some_and(|(address, port)| {
            address.parse::<Ipv6Addr>().is_ok() && (port.is_empty() || port.starts_with(':'))
        });
    }
    let name = normal(authority.rsplit_once(':').map_or(authority, |(name, _)| name));
    let own = normal(own);
    // A name without a dot is nobody's to register, so the first part of a longer one is the host's too.
    let short = own.split('.').next().unwrap_or_default();
    let is_own = !name.is_empty() && (name == own || name == short);
    name.parse::<Ipv4Addr>().is_ok()
        || name == "localhost"
        || name.ends_with(".localhost")
        || is_own
        || allowed.iter().any(|allowed| matches!(allowed, AllowedHost::Name(known) if *known == name))
}

/// Names are compared in lower case, and without the dot of the root.
fn normal(name: &str) -> String {
    name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase()
}

#[cfg(test)]
mod tests {
    use super::*;
    use hyper::header::HeaderValue;

    const OWN: &str = "Node1.example.com";

    fn status(path: &str, hosts: &[&str], browser: bool, allowed: &[AllowedHost]) -> u16 {
        let mut headers = HeaderMap::new();
        for host in hosts {
            headers.append(HOST, HeaderValue::from_str(host).unwrap());
        }
        if browser {
            headers.insert(ACCEPT_LANGUAGE, HeaderValue::from_static(""));
        }
        let refused = refusal_on(OWN, allowed, &path.parse().unwrap(), &headers);
        refused.map_or(200, |answer| answer.status().as_u16())
    }

    #[test]
    fn a_strangers_name_reads_nothing_in_a_browser() {
        for host in ["evil.example", "evil.example:9923", "127.0.0.1.evil.example", "node1.evil.example", ""]
        {
            for path in ["/", "/page.js", "/ports", "/metrics", "/healthz", "/readyz", "/x"] {
                assert_eq!(status(path, &[host], true, &[]), 421, "{host} {path}");
            }
        }
        // Whichever way it names it.
        assert_eq!(status("http://evil.example/ports", &["127.0.0.1"], true, &[]), 421);
        assert_eq!(status("/ports", &["127.0.0.1", "evil.example"], true, &[]), 421);
    }

    #[test]
    fn what_is_for_browsers_needs_a_known_name_of_everybody() {
        for path in ["/", "/page.css", "/ports"] {
            assert_eq!(status(path, &["tcpclose.monitoring.svc"], false, &[]), 421, "{path}");
        }
    }

    #[test]
    fn scrapes_come_by_any_name() {
        for host in ["tcpclose.monitoring.svc.cluster.local:9923", "node7", "evil.example", ""] {
            for path in ["/metrics", "/healthz", "/readyz", "/x"] {
                assert_eq!(status(path, &[host], false, &[]), 200, "{host} {path}");
            }
        }
        // HTTP/1.0.
        assert_eq!(status("/ports", &[], false, &[]), 200);
    }

    #[test]
    fn addresses_and_the_hosts_own_names_are_known() {
        for host in [
            "127.0.0.1:9923",
            "10.1.2.3",
            "[::1]:9923",
            "[fe80::1]",
            "localhost:9923",
            "LOCALHOST.",
            "demo.localhost",
            "node1:9923",
            "NODE1.example.com",
            "node1.example.com.:9923",
        ] {
            assert_eq!(status("/ports", &[host], true, &[]), 200, "{host}");
        }
        for host in
            ["[::1", "[evil.example]", "[::1]evil.example", "node1.example.org", "user@127.0.0.1", "::1"]
        {
            assert_eq!(status("/ports", &[host], true, &[]), 421, "{host}");
        }
        assert!(!is_known("", &[], ""), "a host without a name");
    }

    #[test]
    fn more_names_can_be_allowed() {
        let allowed = ["Tcpclose.Example.", "other"].map(|name| AllowedHost::parse(name).unwrap());
        for (host, expected) in [
            ("tcpclose.example:80", 200),
            ("TCPCLOSE.example", 200),
            ("other", 200),
            ("x.tcpclose.example", 421),
        ] {
            assert_eq!(status("/", &[host], true, &allowed), expected, "{host}");
        }
        assert_eq!(status("/", &["evil.example"], true, &[AllowedHost::parse("*").unwrap()]), 200);
        for wrong in ["", ".", "a..b", "a:80", "http://a", "a b", "*.a", "a/b", "ä.example", &"a".repeat(64)]
        {
            assert!(AllowedHost::parse(wrong).is_err(), "{wrong}");
        }
    }
}

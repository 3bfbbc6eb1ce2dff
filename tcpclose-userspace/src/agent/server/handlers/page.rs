//! The page at `/`: a few files in the binary. They draw what `/metrics` tells, and name the host by `/ports`; they fetch
//! nothing else, so the page shows what a scrape does, on either listener.

use std::sync::LazyLock;

use bytes::Bytes;
use http_body_util::Full;
use hyper::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, ETAG, HeaderMap, HeaderName, HeaderValue,
    IF_NONE_MATCH, REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS,
};
use hyper::{Response, StatusCode};

/// A file of the page.
#[derive(Debug, PartialEq, Eq)]
struct File {
    path: &'static str,
    kind: &'static str,
    text: &'static str,
}

const SCRIPT: &str = "text/javascript; charset=utf-8";

const FILES: [File; 7] = [
    File { path: "/", kind: "text/html; charset=utf-8", text: include_str!("page/page.html") },
    File { path: "/page.css", kind: "text/css; charset=utf-8", text: include_str!("page/page.css") },
    File { path: "/page.js", kind: SCRIPT, text: include_str!("page/page.js") },
    File { path: "/metrics.js", kind: SCRIPT, text: include_str!("page/metrics.js") },
    File { path: "/ports.js", kind: SCRIPT, text: include_str!("page/ports.js") },
    File { path: "/words.js", kind: SCRIPT, text: include_str!("page/words.js") },
    File { path: "/icon.svg", kind: "image/svg+xml", text: include_str!("page/icon.svg") },
];

/// Only the page's own scripts run, and they fetch from their own agent only; nothing inline, no other
/// origin, no frame. No text becomes markup (trusted types), since a label of `/metrics` may hold the name of
/// any program.
const POLICY: HeaderValue = HeaderValue::from_static(
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none'; \
     form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'",
);

/// Browsers revalidate each time; the answer is 304 as long as the agent is the same.
const CACHED: HeaderValue = HeaderValue::from_static("no-cache");

/// A file of the page, by its path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Page(&'static File);

impl Page {
    pub fn at(path: &str) -> Option<Self> {
        FILES.iter().find(|file| file.path == path).map(Self)
    }

    pub fn path(self) -> &'static str {
        self.0.path
    }

    /// The file, or 304 if the client has it.
    pub fn answer(self, request: &HeaderMap) -> Response<Full<Bytes>> {
        let tag = HeaderValue::from_str(&TAG).ok();
        let known = tag.is_some() && request.get_all(IF_NONE_MATCH).iter().any(has_our_tag);
        let mut answer = Response::default();
        if known {
            *answer.status_mut() = StatusCode::NOT_MODIFIED;
        } else {
            *answer.body_mut() = Full::new(Bytes::from_static(self.0.text.as_bytes()));
        }
        let headers = answer.headers_mut();
        let fixed: [(HeaderName, HeaderValue); 5] = [
            (CONTENT_TYPE, HeaderValue::from_static(self.0.kind)),
            (CACHE_CONTROL, CACHED),
            (CONTENT_SECURITY_POLICY, POLICY),
            (X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
            (REFERRER_POLICY, HeaderValue::from_static("no-referrer")),
        ];
        headers.extend(fixed);
        headers.extend(tag.map(|tag| (ETAG, tag)));
        answer
    }
}

/// One for all files: they belong together.
static TAG: LazyLock<String> = LazyLock::new(|| {
    let all: String = FILES.iter().map(|file| file.text).collect();
    format!("\"{:08x}\"", crc32fast::hash(all.as_bytes()))
});

/// Whether an If-None-Match has our tag.
fn has_our_tag(tags: &HeaderValue) -> bool {
    let tags = tags.to_str().unwrap_or_default();
    tags.split(',').map(str::trim).any(|tag| tag == "*" || tag.trim_start_matches("W/") == *TAG)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(path: &str, tag: Option<&str>) -> Response<Full<Bytes>> {
        let mut request = HeaderMap::new();
        if let Some(tag) = tag {
            request.insert(IF_NONE_MATCH, HeaderValue::from_str(tag).unwrap());
        }
        Page::at(path).unwrap().answer(&request)
    }

    #[test]
    fn a_client_that_has_the_files_is_informed() {
        let first = ask("/", None);
        assert_eq!(first.status(), StatusCode::OK);
        let tag = first.headers()[ETAG].to_str().unwrap();
        for same in [tag.to_owned(), format!("W/{tag}"), format!("\"x\", {tag}"), "*".to_owned()] {
            let again = ask("/page.js", Some(&same));
            assert_eq!(again.status(), StatusCode::NOT_MODIFIED, "{same}");
            assert!(again.headers().contains_key(CONTENT_SECURITY_POLICY));
        }
        assert_eq!(ask("/page.js", Some("\"00000000\"")).status(), StatusCode::OK);
        assert!(Page::at("/page").is_none() && Page::at("").is_none() && Page::at("/page/page.js").is_none());
    }

    #[test]
    fn every_file_that_is_referred_to_exists_and_none_is_from_elsewhere() {
        for File { path, text, .. } in &FILES {
            for (at, _) in text.match_indices("://") {
                // A namespace's name, which nobody fetches.
                let line = text[at..].lines().next().unwrap();
                assert!(line.starts_with("://www.w3.org/2000/svg"), "{path}: {line}");
            }
            for inline in ["style=", "<script>", "<style", " onclick", "javascript:", "innerHTML"] {
                assert!(!text.contains(inline), "{path} has {inline}");
            }
        }
        let html = FILES[0].text;
        for attribute in ["src=\"", "href=\""] {
            for (at, _) in html.match_indices(attribute) {
                let target = html[at + attribute.len()..].split('"').next().unwrap();
                let answers = ["metrics", "healthz", "readyz"].contains(&target);
                let known = answers || target.starts_with('#') || Page::at(&format!("/{target}")).is_some();
                assert!(known, "{target}");
            }
        }
        for script in FILES.iter().filter(|file| file.kind == SCRIPT) {
            for (at, _) in script.text.match_indices("from \"./") {
                let target = script.text[at + 7..].split('"').next().unwrap();
                assert!(Page::at(target).is_some(), "{target}");
            }
        }
    }
}

//! Responses of the agent.

use std::io::{self, Write};

use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use http_body_util::Full;
use hyper::HeaderMap;
use hyper::header::{ACCEPT_ENCODING, CONTENT_ENCODING, CONTENT_TYPE, HeaderValue, VARY};
use hyper::{Response, StatusCode};
use serde::Serialize;

use crate::report::encoding::JSON;

const TEXT: &str = "text/plain; charset=utf-8";

const NOT_READY: &str = "not ready: the first dump is not complete\n";

pub type Answer = Response<Full<Bytes>>;

/// Why a request is not answered.
pub enum QueryError {
    /// The query is wrong: how.
    Request(String),
    Failed(anyhow::Error),
}

impl From<anyhow::Error> for QueryError {
    fn from(why: anyhow::Error) -> Self {
        Self::Failed(why)
    }
}

impl QueryError {
    pub fn answer(self) -> Answer {
        match self {
            Self::Request(why) => plain(StatusCode::BAD_REQUEST, format!("{why}\n")),
            Self::Failed(why) => plain(StatusCode::INTERNAL_SERVER_ERROR, format!("{why:#}\n")),
        }
    }
}

pub fn with_type(status: StatusCode, media_type: &'static str, body: impl Into<Bytes>) -> Answer {
    let mut answer = Response::new(Full::new(body.into()));
    *answer.status_mut() = status;
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(media_type));
    answer
}

pub fn plain(status: StatusCode, text: impl Into<Bytes>) -> Answer {
    with_type(status, TEXT, text)
}

/// `text`, compressed if `request` accepts that.
pub fn compressible(media_type: &'static str, text: String, request: &HeaderMap) -> Answer {
    let gzipped = accepts_gzip(request).then(|| gzip(text.as_bytes()).ok()).flatten();
    let is_gzipped = gzipped.is_some();
    let mut answer =
        with_type(StatusCode::OK, media_type, gzipped.map_or_else(|| Bytes::from(text), Bytes::from));
    answer.headers_mut().insert(VARY, HeaderValue::from_static("accept-encoding"));
    if is_gzipped {
        answer.headers_mut().insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
    }
    answer
}

/// Whether an Accept-Encoding names gzip, with another weight than 0 (RFC 9110, 12.5.3).
fn accepts_gzip(request: &HeaderMap) -> bool {
    let values = request.get_all(ACCEPT_ENCODING).iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).any(|coding| {
        let (name, weight) = coding.split_once(';').unwrap_or((coding, ""));
        let is_zero = weight.trim().strip_prefix("q=").is_some_and(|q| q.parse() == Ok(0.0));
        name.trim().eq_ignore_ascii_case("gzip") && !is_zero
    })
}

/// At the lowest level, since the agent has one thread: a scrape of 21 kB shrinks to 4 kB.
fn gzip(text: &[u8]) -> io::Result<Vec<u8>> {
    let mut encoder = GzEncoder::new(Vec::with_capacity(text.len() / 8), Compression::fast());
    encoder.write_all(text)?;
    encoder.finish()
}

pub fn json(document: &impl Serialize) -> Answer {
    match serde_json::to_vec(document) {
        Ok(json) => with_type(StatusCode::OK, JSON, json),
        Err(why) => plain(StatusCode::INTERNAL_SERVER_ERROR, format!("{why}\n")),
    }
}

/// JSON that is written already, or why there is none.
pub fn written_json(result: Result<Vec<u8>, QueryError>) -> Answer {
    match result {
        Ok(json) => with_type(StatusCode::OK, JSON, json),
        Err(why) => why.answer(),
    }
}

/// Before the first dump is complete.
pub fn not_ready() -> Answer {
    plain(StatusCode::SERVICE_UNAVAILABLE, NOT_READY)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gzip_is_for_those_who_accept_it() {
        let accepts = |values: &[&str]| {
            let mut request = HeaderMap::new();
            for value in values {
                request.append(ACCEPT_ENCODING, HeaderValue::from_str(value).unwrap());
            }
            accepts_gzip(&request)
        };
        for yes in [&["gzip"][..], &["deflate, GZIP;q=0.5"], &["br", "gzip; q=1"]] {
            assert!(accepts(yes), "{yes:?}");
        }
        for no in [&[][..], &["identity"], &["gzip;q=0"], &["gzip; q=0.00, br"], &["x-gzip"]] {
            assert!(!accepts(no), "{no:?}");
        }
    }
}

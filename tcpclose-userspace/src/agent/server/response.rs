//! Responses of the agent.

use bytes::Bytes;
use http_body_util::Full;
use hyper::header::{CONTENT_TYPE, HeaderValue};
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

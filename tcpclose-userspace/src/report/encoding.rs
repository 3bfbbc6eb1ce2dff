//! The encodings of a document: JSON and, on request, MessagePack with the same keys. With fifteen thousand sockets `stuck`
//! took 0.37 of `ss -tanp`'s time by MessagePack, and 0.44 by JSON (`cargo xtask bench`).

use hyper::header::{ACCEPT, CONTENT_TYPE, HeaderMap};
use serde::{Deserialize, Serialize};

use crate::report::sockets::Versioned;

/// The media type of JSON.
pub const JSON: &str = "application/json";
/// The media type of MessagePack, as registered with IANA.
const MESSAGE_PACK: &str = "application/vnd.msgpack";
/// What the command line accepts; an agent that knows only one encoding answers in that.
pub const ACCEPT_EITHER: &str = "application/vnd.msgpack, application/json;q=0.5";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    Json,
    MessagePack,
}

impl Form {
    /// The encoding that a request with `headers` accepts: JSON unless MessagePack is named.
    pub fn accepted(headers: &HeaderMap) -> Self {
        let ranges = headers.get_all(ACCEPT).iter().filter_map(|value| value.to_str().ok());
        match ranges.flat_map(|value| value.split(',')).any(names_message_pack) {
            true => Self::MessagePack,
            false => Self::Json,
        }
    }

    /// The encoding of an answer with `headers`.
    pub fn of(headers: &HeaderMap) -> Self {
        let kind = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
        if kind.is_some_and(names_message_pack) { Self::MessagePack } else { Self::Json }
    }

    pub fn media_type(self) -> &'static str {
        match self {
            Self::Json => JSON,
            Self::MessagePack => MESSAGE_PACK,
        }
    }

    /// # Errors
    /// Why `document` cannot be encoded, which would be a bug.
    pub fn write(self, document: &impl Serialize) -> Result<Vec<u8>, String> {
        match self {
            Self::Json => serde_json::to_vec(document).map_err(|why| why.to_string()),
            // With keys, so that absent values are left out, as in JSON.
            Self::MessagePack => rmp_serde::to_vec_named(document).map_err(|why| why.to_string()),
        }
    }

    /// The document in `body`.
    ///
    /// # Errors
    /// Why `body` is not a document of the version `expected`.
    pub fn read<T: Versioned>(self, body: &[u8], expected: u32) -> Result<T, String> {
        #[derive(Deserialize)]
        struct Version {
            schema: u32,
        }
        // The version matches most often, and reading it first would parse the body twice.
        let error = match self.parse::<T>(body) {
            Ok(document) if document.schema() == expected => return Ok(document),
            Ok(_) => None,
            Err(error) => Some(error),
        };
        match (self.parse(body), error) {
            (Ok(Version { schema }), _) if schema != expected => Err(format!(
                "it speaks schema {schema}, but this tcpclose {} reads schema {expected}: use the same version of both",
                env!("CARGO_PKG_VERSION")
            )),
            (Ok(_), None) => Err("its answer contradicts itself".to_owned()),
            (_, Some(error)) | (Err(error), None) => {
                Err(format!("its answer is no document of tcpclose ({error})"))
            }
        }
    }

    fn parse<'a, T: Deserialize<'a>>(self, body: &'a [u8]) -> Result<T, String> {
        match self {
            Self::Json => serde_json::from_slice(body).map_err(|why| why.to_string()),
            Self::MessagePack => rmp_serde::from_slice(body).map_err(|why| why.to_string()),
        }
    }
}

/// Whether a media range names MessagePack with a weight other than 0.
fn names_message_pack(range: &str) -> bool {
    let mut parts = range.split(';').map(str::trim);
    let refused = |part: &str| part.strip_prefix("q=").is_some_and(|weight| weight.parse() == Ok(0.0_f32));
    parts.next().is_some_and(|kind| kind.eq_ignore_ascii_case(MESSAGE_PACK)) && !parts.any(refused)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::sockets::{SCHEMA, SocketsDocument};

    /// Every key once, those that can be left out too.
    const FULL: &str = concat!(
        r#"{"schema":1,"host":"h","boot_id":"b","at":"2026-11-22T11:00:00.123456789Z","source":"agent","#,
        r#""incomplete":["a","b"],"sockets":[{"state":"last_ack","side":"client","port":8080,"#,
        r#""local":"[2001:db8::5]:8080","peer":"10.0.0.9:41234","cookie":"fffffffffff4fe4d","interface":3,"#,
        r#""inode":12345,"uid":4294967295,"netns":4026531840,"netns_id":7,"netns_name":"blue","#,
        r#""age":{"exact":false,"min_seconds":93.2,"max_seconds":null},"unread_bytes":1,"unsent_bytes":2,"#,
        r#""last_sent_seconds":null,"diagnosis":null,"owners":[{"pid":4242,"comm":"a\u001bpi","fd":17,"#,
        r#""exe":"/usr/bin/api","runs":"jvm","state":"stopped","unit":"api.service","container_id":"containerd://0123","#,
        r#""pod_uid":"2c48913c","fds_used":5,"fds_limit":18446744073709551615}],"#,
        r#""closed_by":{"pid":1,"comm":null,"seconds":0.1},"peer_owners":[{"pid":1,"comm":"","fd":2}]},"#,
        r#"{"state":"close_wait","side":"unknown","port":1,"local":"10.0.0.9:1","peer":"10.0.0.9:2","cookie":"0","#,
        r#""inode":0,"uid":0,"netns":1,"age":{"exact":true,"min_seconds":1.5,"max_seconds":1.5},"#,
        r#""unread_bytes":0,"unsent_bytes":0,"last_sent_seconds":1.0,"diagnosis":"still_sending","owners":[],"#,
        r#""listeners":[{"local":"0.0.0.0:80","interface":2,"inode":3,"queued":19,"candidate":true},"#,
        r#"{"local":"[::]:80","inode":4,"queued":1}],"#,
        r#""peer_owners":[{"pid":2,"comm":"b","fd":3,"listener":3,"candidate":true,"parent":1}],"peer_waits":true}]}"#,
    );

    #[test]
    fn both_forms_say_the_same() {
        let document: SocketsDocument = Form::Json.read(FULL.as_bytes(), SCHEMA).unwrap();
        let packed = Form::MessagePack.write(&document).unwrap();
        assert_eq!(Form::MessagePack.read::<SocketsDocument>(&packed, SCHEMA).unwrap(), document);
        assert_eq!(String::from_utf8(Form::Json.write(&document).unwrap()).unwrap(), FULL);
    }

    #[test]
    fn what_is_no_such_document_is_one_clear_line() {
        let document: SocketsDocument = Form::Json.read(FULL.as_bytes(), SCHEMA).unwrap();
        let packed = Form::MessagePack.write(&document).unwrap();
        let read = |body: &[u8]| Form::MessagePack.read::<SocketsDocument>(body, SCHEMA).unwrap_err();
        let later = Form::MessagePack.write(&SocketsDocument { schema: 2, ..document }).unwrap();
        assert!(read(&later).contains("speaks schema 2"));
        for cut in 0..packed.len() {
            assert!(read(&packed[..cut]).contains("no document of tcpclose"));
        }
        // Lengths that nothing follows: no memory is taken for them.
        for garbage in [&b"{}"[..], &[0xdf, 0xff, 0xff, 0xff, 0xff], &[0xdd; 5], &[0x91; 100_000], &[0xc1]] {
            assert!(read(garbage).contains("no document of tcpclose"));
        }
    }

    #[test]
    fn a_form_is_asked_for_by_name() {
        let asked = |accept: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(ACCEPT, accept.parse().unwrap());
            Form::accepted(&headers)
        };
        assert_eq!(Form::accepted(&HeaderMap::new()), Form::Json);
        for json in ["*/*", "application/json", "application/*", "application/vnd.msgpack;q=0", ""] {
            assert_eq!(asked(json), Form::Json, "{json}");
        }
        for packed in [ACCEPT_EITHER, "application/json, Application/vnd.msgpack ; q=0.1", MESSAGE_PACK] {
            assert_eq!(asked(packed), Form::MessagePack, "{packed}");
        }
    }
}

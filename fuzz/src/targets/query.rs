//! What a request asks: `METHOD PATH?QUERY` and, behind a line's end, its kind.

use hyper::Uri;
use tcpclose::agent::server::handlers::{exhaustion, page, sockets};
use tcpclose::failure::printable;
use tcpclose::kill::KillOrder;
use tcpclose::report::requests;
use tcpclose::report::watch::filter::WatchFilter;

/// Reads it as the agent does, behind its HTTP library.
pub fn read(bytes: &[u8]) {
    let at = bytes.iter().position(|&byte| byte == b'\n').unwrap_or(bytes.len());
    let (target, kind) = bytes.split_at(at);
    let kind = kind.get(1..).unwrap_or_default();
    let Ok(uri) = Uri::try_from(target) else { return };
    let query = uri.query().unwrap_or_default();
    let refusal = match uri.path() {
        requests::SOCKETS_PATH => match sockets::parse(query) {
            Ok(asked) => {
                // The answer names the bound in a header.
                if let Some(bound) = asked.older_than {
                    let printed = humantime::format_duration(bound).to_string();
                    assert_eq!(humantime::parse_duration(&printed), Ok(bound), "{query}");
                }
                return;
            }
            Err(why) => why,
        },
        requests::EXHAUSTION_PATH => match exhaustion::parse(query) {
            Ok(limit) => return assert!(limit <= 1000, "{query}"),
            Err(why) => why,
        },
        requests::WATCH_PATH => match WatchFilter::parse(query) {
            Ok(filter) => {
                assert_eq!(WatchFilter::parse(&filter.query()).as_ref(), Ok(&filter), "{query}");
                return;
            }
            Err(why) => why,
        },
        requests::KILL_PATH => match serde_json::from_slice::<KillOrder>(kind) {
            Ok(order) => {
                let Ok(text) = serde_json::to_vec(&order) else { panic!("{order:?} cannot be written") };
                match serde_json::from_slice::<KillOrder>(&text) {
                    Ok(again) => assert_eq!(without_times(again), without_times(order)),
                    Err(why) => panic!("{order:?}: {why}"),
                }
                return;
            }
            Err(why) => why.to_string(),
        },
        path => {
            let _ = page::Page::at(path);
            return;
        }
    };
    assert!(!refusal.is_empty() && !printable(&refusal).contains('\n'), "{refusal}");
}

/// Numbers with a point are read to within their last digit.
fn without_times(order: KillOrder) -> KillOrder {
    KillOrder { stuck_after_seconds: 0.0, max_age_seconds: None, ..order }
}

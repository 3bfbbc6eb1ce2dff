//! `GET /exhaustion?limit=20`: usage of ephemeral ports, by a fresh look.

use std::cell::RefCell;
use std::collections::HashMap;

use anyhow::Context;

use crate::collect;
use crate::linux::ephemeral_ports;
use crate::linux::host;
use crate::names::Flow;
use crate::report::exhaustion::document;
use crate::report::exhaustion::document::{ExhaustionInputs, Pick, TupleCloser};
use crate::report::exhaustion::port_table::Kind;
use crate::report::query;
use crate::report::requests::MOST_TUPLES;
use crate::report::sockets::DocumentSource;

use crate::agent::looks::Looks;
use crate::agent::port_usage::{Fullest, PortUsage};
use crate::agent::server::response::QueryError;
use crate::agent::tracking::Tracking;

/// TIME-WAITs of a tuple whose closers are looked up in the tracker; the agent does nothing else meanwhile.
const MOST_CLOSERS: usize = 2000;
/// Tuples that are described unless the query says otherwise.
const TUPLES: usize = 20;

/// Answers `query`, the part after the `?`.
pub async fn document(
    query: &str,
    tracking: &RefCell<Tracking>,
    usage: &RefCell<PortUsage>,
    looks: &Looks,
) -> Result<Vec<u8>, QueryError> {
    let limit = parse(query).map_err(QueryError::Request)?;
    let (scope, descriptors) = {
        let namespaces = &tracking.borrow().namespaces;
        (namespaces.scope(), namespaces.descriptors_known())
    };
    let look = move || {
        let found = scope.find(&descriptors)?;
        let port_use = ephemeral_ports::look(&found.places, document::BUDGET)?;
        let fullest = Fullest::of(&port_use);
        anyhow::Ok((port_use, fullest, found.denied, found.unread.words()))
    };
    let (port_use, fullest, denied, unread) =
        looks.take(look).await?.context("cannot dump the kernel's sockets")?;
    let at = host::wall_clock();
    let (closers, before, lookup) = {
        let mut tracking = tracking.borrow_mut();
        let mut usage = usage.borrow_mut();
        tracking.drain_all();
        usage.fullest = fullest;
        let (picks, _) = document::fullest(&port_use, limit);
        (closers(&picks, &tracking), usage.before(port_use.at_ns), tracking.probe.owners_lookup())
    };
    let describe = move || {
        let inputs = ExhaustionInputs {
            port_use: &port_use,
            before: before.as_deref(),
            closers: &closers,
            at,
            source: DocumentSource::Agent,
            denied: denied as usize,
            unread,
        };
        collect::exhaustion::assemble(&inputs, limit, lookup)
    };
    let document = looks.take(describe).await?.context("cannot read /proc")?;
    Ok(serde_json::to_vec(&document).context("cannot write the answer")?)
}

/// Reads the fields of a query.
///
/// # Errors
/// What is wrong with one.
pub fn parse(query: &str) -> Result<usize, String> {
    let fields = query::fields(query, &["limit"])?;
    fields.last().map_or(Ok(TUPLES), |(key, value)| query::number(key, value, 0..=MOST_TUPLES))
}

/// The closers of the TIME-WAITs of `picks` that are known from records, by cookie.
fn closers(picks: &[Pick<'_>], tracking: &Tracking) -> HashMap<u64, TupleCloser> {
    let now_ns = host::monotonic_ns();
    let mut closers = HashMap::new();
    for Pick { netns, tuple, taken, .. } in picks {
        for taken in taken.iter().filter(|taken| taken.kind != Kind::Other).take(MOST_CLOSERS) {
            let flow = Flow {
                local: tuple.local,
                remote: tuple.remote,
                local_port: taken.port,
                remote_port: tuple.remote_port,
            };
            let socket = tracking.find(netns.id, taken.cookie, &flow);
            if let Some(closer) = socket.and_then(|socket| socket.closer()) {
                let (pid, at_ns) = (closer.pid, closer.at_ns);
                closers.insert(taken.cookie, (pid.get(), now_ns.saturating_sub(at_ns)));
            }
        }
    }
    closers
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_is_read_or_refused() {
        assert_eq!(parse("").ok(), Some(TUPLES));
        assert_eq!(
            (parse("limit=3"), parse("limit=0"), parse("limit=1000")),
            (Ok(3), Ok(0), Ok(MOST_TUPLES))
        );
        assert_eq!(parse("limit=1001").unwrap_err(), "limit=1001: write a number from 0 to 1000");
        assert!(parse("limit=many").is_err_and(|why| why.contains("many")));
        assert!(parse("limit=3&later=1").is_err_and(|why| why.starts_with("later: unknown key")));
    }
}

//! `GET /v1/idle?silent_for=10m`: silent connections without keepalive, by a fresh look.

use std::cell::RefCell;

use anyhow::Context;

use crate::collect;
use crate::report::idle::IdleQuery;
use crate::report::sockets::DocumentSource;

use crate::agent::looks::Looks;
use crate::agent::malloc_trim;
use crate::agent::server::response::QueryError;
use crate::agent::tracking::Tracking;

/// Answers `query`, the part after the `?`.
pub async fn document(
    query: &str,
    tracking: &RefCell<Tracking>,
    looks: &Looks,
) -> Result<Vec<u8>, QueryError> {
    let wanted = IdleQuery::parse(query).map_err(QueryError::Request)?;
    let (scope, descriptors, lookup) = {
        let mut tracking = tracking.borrow_mut();
        let lookup = tracking.probe.owners_lookup();
        (tracking.namespaces.scope(), tracking.namespaces.descriptors_known(), lookup)
    };
    let look = move || {
        let document = collect::idle::document((scope, &descriptors), &wanted, DocumentSource::Agent, lookup);
        let written = document.map(|document| serde_json::to_vec(&document));
        // malloc would keep the memory of so many.
        malloc_trim::give_back();
        written
    };
    let written = looks.take(look).await?.context("cannot dump the kernel's sockets")?;
    Ok(written.context("cannot write the answer")?)
}

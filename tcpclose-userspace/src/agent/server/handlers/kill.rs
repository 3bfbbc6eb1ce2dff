//! `POST /v1/kill`: destroys one socket for the command line, where the agent was started with `--allow-kill`. The
//! command line chooses and paces; who may is decided here, and every one is logged with who asked.

use std::cell::RefCell;

use anyhow::Context;
use tokio::sync::oneshot;

use crate::failure::Failure;
use crate::kill::{KillOrder, KillOutcome, SCHEMA, execute};
use crate::linux::capabilities;
use crate::linux::host::Capability;
use crate::linux::users::UnixGroup;
use crate::report::requests::KILL_NOT_ALLOWED;

use crate::agent::server::handlers::sockets::QueryError;
use crate::agent::server::peer_creds::Caller;
use crate::agent::tracking::Tracking;

/// Where an [`KillOrder`] is sent.
pub const PATH: &str = "/v1/kill";

/// An order has some 400 bytes.
pub const LONGEST_ORDER: usize = 16 << 10;

/// Why `caller` may not have sockets destroyed here, as it is answered; `None` when it may.
pub fn forbidden(caller: &Caller, engine: &Tracking) -> Option<String> {
    if !engine.allow_kill {
        return Some(KILL_NOT_ALLOWED.to_owned());
    }
    let group = engine.kill_group.as_ref();
    (!caller.may_kill(group)).then(|| not_yours(caller, group))
}

fn not_yours(caller: &Caller, group: Option<&UnixGroup>) -> String {
    let who = match group {
        Some(group) => format!("only root and members of the group {}", group.name),
        None => "only root (there is no --kill-group)".to_owned(),
    };
    format!("{who} may have this agent destroy sockets, and this is {caller}\n")
}

/// # Errors
/// When the agent is to destroy sockets and may not.
pub fn require(allow_kill: bool) -> Result<(), Failure> {
    if !allow_kill || capabilities::holds(Capability::NetAdmin) {
        return Ok(());
    }
    Err(Failure::new(
        "--allow-kill",
        format!("this process lacks {}", Capability::NetAdmin.name()),
        "grant it, or leave the flag out",
    ))
}

/// Carries out the order in `body`. Returns its [`KillOutcome`] as JSON.
pub async fn kill(body: &[u8], caller: &Caller, engine: &RefCell<Tracking>) -> Result<Vec<u8>, QueryError> {
    let order: KillOrder = serde_json::from_slice(body)
        .map_err(|why| QueryError::Request(format!("no order of tcpclose: {why}")))?;
    if order.schema != SCHEMA {
        return Err(QueryError::Request(format!(
            "schema {}: this agent reads schema {SCHEMA}",
            order.schema
        )));
    }
    let described = format!(
        "{} with peer {} in {} (net:[{}], cookie {:x}), asked by {caller}",
        order.local,
        order.peer,
        order.state.name(),
        order.netns,
        order.cookie.0
    );
    // Another order that comes meanwhile searches for itself.
    let mut places = std::mem::take(&mut engine.borrow_mut().kill_places);
    let (tell, done) = oneshot::channel();
    let work = move || {
        let outcome = execute(&order, &mut places);
        // Who asked may have hung up.
        let _ = tell.send((outcome, places));
    };
    capabilities::with_everything_held(work).context("no thread for the order")?;
    let (outcome, places) = done.await.context("the order died")?;
    engine.borrow_mut().kill_places = places;
    match &outcome {
        KillOutcome::Destroyed => log::warn!("destroyed {described}"),
        KillOutcome::Spared { why } => log::info!("spared {described}: {why}"),
        KillOutcome::Refused { why, .. } => log::warn!("not destroyed: {described}: {why}"),
    }
    Ok(serde_json::to_vec(&outcome).context("the answer cannot be written")?)
}

//! `POST /v1/kill`: destroys one socket for the command line, if the agent was started with `--allow-kill`.
//! The command line chooses sockets and pace; the agent checks the permission, and logs every order with its
//! caller.

use anyhow::Context;
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use hyper::{Request, StatusCode};
use tokio::sync::oneshot;

use crate::failure::Failure;
use crate::kill::{KillOrder, KillOutcome, SCHEMA, execute};
use crate::linux::capabilities;
use crate::linux::host::Capability;
use crate::linux::users::UnixGroup;
use crate::report::requests;

use crate::agent::kill_permission::KillPermission;
use crate::agent::server::peer_creds::Caller;
use crate::agent::server::response::{Answer, QueryError, plain, written_json};

/// An order has some 400 bytes.
const LONGEST_ORDER: usize = 16 << 10;

/// `caller`: of the unix socket, on which alone orders are taken.
pub async fn answer(
    request: Request<Incoming>,
    caller: Option<&Caller>,
    permission: &KillPermission,
) -> Answer {
    let unknown = Caller::default();
    let caller = caller.unwrap_or(&unknown);
    if let Some(why) = refusal(caller, permission) {
        log::warn!("refused POST {}: {}", requests::KILL_PATH, why.trim_end());
        return plain(StatusCode::FORBIDDEN, why);
    }
    let body = match Limited::new(request.into_body(), LONGEST_ORDER).collect().await {
        Ok(body) => body.to_bytes(),
        Err(why) => return plain(StatusCode::BAD_REQUEST, format!("cannot read the order: {why}\n")),
    };
    written_json(kill(&body, caller, permission).await)
}

/// Why `caller` is not allowed to destroy sockets here; `None` if it is.
fn refusal(caller: &Caller, permission: &KillPermission) -> Option<String> {
    if !permission.allowed.get() {
        return Some(requests::KILL_NOT_ALLOWED.to_owned());
    }
    let group = permission.group.borrow();
    (!caller.may_kill(group.as_ref())).then(|| wrong_user(caller, group.as_ref()))
}

fn wrong_user(caller: &Caller, group: Option<&UnixGroup>) -> String {
    let allowed = match group {
        Some(group) => format!("only root and members of the group {}", group.name),
        None => "only root (there is no --kill-group)".to_owned(),
    };
    format!("{allowed} may destroy sockets through this agent; the caller is {caller}\n")
}

/// # Errors
/// When the agent is to destroy sockets and lacks the capability.
pub fn require(allow_kill: bool) -> Result<(), Failure> {
    if !allow_kill || capabilities::holds(Capability::NetAdmin) {
        return Ok(());
    }
    Err(Failure::new(
        "--allow-kill",
        format!("this process lacks {}", Capability::NetAdmin.name()),
        "grant it, or remove the flag",
    ))
}

/// Carries out the order in `body`. Returns its [`KillOutcome`] as JSON.
async fn kill(body: &[u8], caller: &Caller, permission: &KillPermission) -> Result<Vec<u8>, QueryError> {
    let order: KillOrder = serde_json::from_slice(body)
        .map_err(|why| QueryError::Request(format!("not an order of tcpclose: {why}")))?;
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
    // An order that comes meanwhile searches for itself.
    let mut places = permission.places.take();
    let (sender, done) = oneshot::channel();
    let work = move || {
        let outcome = execute(&order, &mut places);
        // The client may have hung up.
        let _ = sender.send((outcome, places));
    };
    capabilities::with_everything_held(work).context("cannot start a thread")?;
    let (outcome, places) = done.await.context("the order's thread died")?;
    permission.places.replace(places);
    match &outcome {
        KillOutcome::Destroyed => log::warn!("destroyed {described}"),
        KillOutcome::Spared { why } => log::info!("spared {described}: {why}"),
        KillOutcome::Refused { why, .. } => log::warn!("cannot destroy {described}: {why}"),
    }
    Ok(serde_json::to_vec(&outcome).context("cannot write the answer")?)
}

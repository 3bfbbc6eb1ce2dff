//! `POST /v1/kill`: destroys one socket for the command line, where the agent was started with `--allow-kill`. The
//! command line chooses and paces; every one is logged here with who asked.

use std::cell::RefCell;
use std::fmt;

use anyhow::Context;
use tokio::net::UnixStream;
use tokio::task::spawn_blocking;

use crate::failure::Failure;
use crate::kernel::host::{Capability, has_cap};
use crate::kill::{Order, Outcome, SCHEMA, execute};

use super::engine::Engine;
use super::queries::Refused;

/// Where an [`Order`] is sent.
pub const PATH: &str = "/v1/kill";

/// What an agent without `--allow-kill` answers.
pub const NOT_ALLOWED: &str = "this agent was started without --allow-kill\n";

/// An order has some 400 bytes.
pub const LONGEST_ORDER: usize = 16 << 10;

/// Who asks, by the credentials of the unix socket: of the process that connected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Caller {
    /// As the agent's PID namespace numbers it; `None` where it has none there.
    pid: Option<i32>,
    uid: Option<u32>,
}

impl Caller {
    pub fn of(stream: &UnixStream) -> Self {
        let credentials = stream.peer_cred().ok();
        Self {
            pid: credentials.and_then(|credentials| credentials.pid()),
            uid: credentials.map(|credentials| credentials.uid()),
        }
    }
}

impl fmt::Display for Caller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.pid {
            Some(pid) => write!(f, "pid {pid}")?,
            None => f.write_str("pid unknown")?,
        }
        match self.uid {
            Some(uid) => write!(f, " uid {uid}"),
            None => f.write_str(" uid unknown"),
        }
    }
}

/// # Errors
/// When the agent is to destroy sockets and may not.
pub fn require(allow_kill: bool) -> Result<(), Failure> {
    if !allow_kill || has_cap(Capability::NetAdmin) {
        return Ok(());
    }
    Err(Failure::new(
        "--allow-kill",
        format!("this process lacks {}", Capability::NetAdmin.name()),
        "grant it, or leave the flag out",
    ))
}

/// Carries out the order in `body`. Returns its [`Outcome`] as JSON.
pub async fn kill(body: &[u8], caller: Caller, engine: &RefCell<Engine>) -> Result<Vec<u8>, Refused> {
    let order: Order = serde_json::from_slice(body)
        .map_err(|why| Refused::Request(format!("no order of tcpclose: {why}")))?;
    if order.schema != SCHEMA {
        return Err(Refused::Request(format!("schema {}: this agent reads schema {SCHEMA}", order.schema)));
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
    let done = spawn_blocking(move || (execute(&order, &mut places), places)).await;
    let (outcome, places) = done.context("the order died")?;
    engine.borrow_mut().kill_places = places;
    match &outcome {
        Outcome::Destroyed => log::warn!("destroyed {described}"),
        Outcome::Spared { why } => log::info!("spared {described}: {why}"),
        Outcome::Refused { why, .. } => log::warn!("not destroyed: {described}: {why}"),
    }
    Ok(serde_json::to_vec(&outcome).context("the answer cannot be written")?)
}

//! Asks the agent, on a thread of its own.

use std::path::Path;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use crate::client;
use crate::client::{Asked, Client};
use crate::commands::top::order::is_of;
use crate::failure::Failure;
use crate::metrics::port_labels::LabelSlot;
use crate::names::Phase;
use crate::report::api::PORTS as PATH;
use crate::report::ports;
use crate::report::ports::PortsDocument;
use crate::report::sockets::{SCHEMA, SocketsDocument, StuckSocket};

/// Between two questions after the ports.
const PORTS_EACH: Duration = Duration::from_secs(1);
/// Between two after sockets: each is a dump and a pass over all processes' files.
const SOCKETS_EACH: Duration = Duration::from_secs(5);
/// A state with more sockets than this is not listed: nobody reads them, and the agent would look for owners of all.
const MOST_SOCKETS: u64 = 20_000;

/// What came of asking.
pub enum Update {
    Ports(Box<PortsDocument>),
    Sockets(PortSockets),
    Trouble(Failure),
}

/// The sockets of one port.
pub struct PortSockets {
    pub label: LabelSlot,
    pub sockets: Vec<StuckSocket>,
    /// States that were not listed, in words.
    pub left_out: Vec<String>,
}

/// The thread that asks; it ends when this is dropped.
pub struct Poller {
    pub updates: Receiver<Update>,
    wants: Sender<Option<LabelSlot>>,
}

impl Poller {
    /// Asks the agent at `socket` once, and goes on asking.
    pub fn begin(socket: &Path) -> Result<(Self, PortsDocument), Failure> {
        let client = Client::new(socket, client::PATIENCE)?;
        let first = ports(&client, socket)?;
        let (updates, heard) = channel();
        let (wants, wanted) = channel();
        let mut asker = PollerThread { client, socket: socket.to_owned(), last: first.clone(), updates };
        let started = thread::Builder::new().name("asking".to_owned()).spawn(move || asker.run(&wanted));
        started.map_err(|why| Failure::new("cannot start", why, "report this"))?;
        Ok((Self { updates: heard, wants }, first))
    }

    /// From now on the sockets of `label` are wanted too.
    pub fn want(&self, label: Option<LabelSlot>) {
        // Who asks no more is noticed where its answers are taken.
        let _ = self.wants.send(label);
    }
}

fn ports(client: &Client, socket: &Path) -> Result<PortsDocument, Failure> {
    known(client.document(PATH, ports::SCHEMA)?, socket)
}

fn known<T>(asked: Asked<T>, socket: &Path) -> Result<T, Failure> {
    match asked {
        Asked::Document(document) => Ok(document),
        Asked::NoAgent => Err(client::none_there(socket)),
        Asked::Denied => Err(client::denied(socket)),
    }
}

struct PollerThread {
    client: Client,
    socket: std::path::PathBuf,
    last: PortsDocument,
    updates: Sender<Update>,
}

impl PollerThread {
    fn run(&mut self, wanted: &Receiver<Option<LabelSlot>>) {
        let mut label = None;
        let mut sockets_due = Instant::now();
        let mut ports_due = Instant::now() + PORTS_EACH;
        loop {
            let due = if label.is_some() { ports_due.min(sockets_due) } else { ports_due };
            match wanted.recv_timeout(due.saturating_duration_since(Instant::now())) {
                Ok(now) => {
                    if now != label {
                        sockets_due = Instant::now();
                    }
                    label = now;
                    continue;
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            let update = match label {
                Some(label) if sockets_due <= Instant::now() => {
                    let update = self.sockets(label).map(Update::Sockets);
                    sockets_due = Instant::now() + SOCKETS_EACH;
                    update
                }
                _ => {
                    let update = ports(&self.client, &self.socket);
                    ports_due = Instant::now() + PORTS_EACH;
                    update.map(|ports| {
                        self.last = ports.clone();
                        Update::Ports(Box::new(ports))
                    })
                }
            };
            if self.updates.send(update.unwrap_or_else(Update::Trouble)).is_err() {
                return;
            }
        }
    }

    /// The sockets of `label` in the states in which it has some.
    fn sockets(&self, label: LabelSlot) -> Result<PortSockets, Failure> {
        let mut sockets = Vec::new();
        let mut left_out = Vec::new();
        let port = self.last.ports.iter().find(|port| port.label() == label);
        let has =
            |phase| port.is_some_and(|port| port.states.iter().any(|of| of.state == phase && of.sockets > 0));
        for phase in Phase::ALL.into_iter().filter(|phase| has(*phase)) {
            let all = self.last.states.iter().find(|of| of.state == phase).map_or(0, |of| of.sockets);
            if all > MOST_SOCKETS {
                left_out.push(format!("{all} in {}", phase.name()));
                continue;
            }
            let target = format!("/v1/sockets?state={}", phase.name());
            let document: SocketsDocument = known(self.client.document(&target, SCHEMA)?, &self.socket)?;
            sockets
                .extend(document.sockets.into_iter().filter(|socket| is_of(socket, label, &self.last.ports)));
        }
        Ok(PortSockets { label, sockets, left_out })
    }
}

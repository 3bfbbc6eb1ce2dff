//! Asks the agent on its own thread.

use std::path::Path;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use crate::client;
use crate::client::Client;
use crate::commands::top::order::is_of;
use crate::failure::Failure;
use crate::linux::stacks::frames::Stack;
use crate::metrics::port_labels::PortLabel;
use crate::names::Phase;
use crate::report::ports;
use crate::report::ports::PortsDocument;
use crate::report::requests::{PORTS_PATH, SOCKETS_PATH};
use crate::report::sockets::{SCHEMA, SocketsDocument, StuckSocket};
use crate::report::verdict_group::VerdictGroup;

/// Between two requests for the ports.
const PORTS_EACH: Duration = Duration::from_secs(1);
/// Between two requests for sockets: each is a dump and a pass over all processes' files.
const SOCKETS_EACH: Duration = Duration::from_secs(5);
/// A state with more sockets than this is not listed: the agent would look for the owners of all.
const MOST_SOCKETS: u64 = 20_000;

/// An answer, or a failure.
pub enum Update {
    Ports(Box<PortsDocument>),
    Sockets(PortSockets),
    Trouble(Failure),
}

/// The sockets of one port.
pub struct PortSockets {
    pub label: PortLabel,
    pub sockets: Vec<StuckSocket>,
    /// The stacks that these have indices of.
    pub stacks: Vec<Stack>,
    /// The verdicts on their programs.
    pub verdicts: Vec<VerdictGroup>,
    /// States that were not listed, in words.
    pub left_out: Vec<String>,
}

/// The thread that asks; it ends when this is dropped.
pub struct Poller {
    pub updates: Receiver<Update>,
    wants: Sender<Option<PortLabel>>,
}

impl Poller {
    /// Asks the agent at `socket` once, and goes on asking.
    pub fn begin(socket: &Path) -> Result<(Self, PortsDocument), Failure> {
        let client = Client::new(socket, client::PATIENCE)?;
        let first = ports(&client, socket)?;
        let (updates, received) = channel();
        let (wants, wanted) = channel();
        let mut asker = PollerThread { client, socket: socket.to_owned(), last: first.clone(), updates };
        let started = thread::Builder::new().name("poller".to_owned()).spawn(move || asker.run(&wanted));
        started.map_err(|why| Failure::new("cannot start", why, "report this"))?;
        Ok((Self { updates: received, wants }, first))
    }

    /// From now on the sockets of `label` are wanted too.
    pub fn want(&self, label: Option<PortLabel>) {
        // The end of the thread shows where its answers are taken.
        let _ = self.wants.send(label);
    }
}

fn ports(client: &Client, socket: &Path) -> Result<PortsDocument, Failure> {
    client.document(PORTS_PATH, ports::SCHEMA)?.required(socket)
}

struct PollerThread {
    client: Client,
    socket: std::path::PathBuf,
    last: PortsDocument,
    updates: Sender<Update>,
}

impl PollerThread {
    fn run(&mut self, wanted: &Receiver<Option<PortLabel>>) {
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
    fn sockets(&self, label: PortLabel) -> Result<PortSockets, Failure> {
        let (mut sockets, mut stacks, mut verdicts) = (Vec::new(), Vec::new(), Vec::new());
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
            let target = format!("{SOCKETS_PATH}?state={}", phase.name());
            let document: SocketsDocument = self.client.document(&target, SCHEMA)?.required(&self.socket)?;
            let before = stacks.len() as u32;
            let of_label =
                document.sockets.into_iter().filter(|socket| is_of(socket, label, &self.last.ports));
            sockets.extend(of_label.map(|mut socket| {
                socket.stacks.iter_mut().for_each(|indices| indices.shift(before));
                socket
            }));
            stacks.extend(document.stacks);
            verdicts.extend(document.groups);
        }
        Ok(PortSockets { label, sockets, stacks, verdicts, left_out })
    }
}

//! State across restarts of the agent: which sockets are saved, and how the next agent takes them up.
//!
//! Only what the kernel does not keep is saved: entries, sides and roles of full sockets and of FIN-WAIT-2 minisockets.
//! That a TIME-WAIT was not entered after its timer was set is on its timer, and there may be hundreds of thousands of them.
//!
//! A saved socket is a claim, and the first dump checks it: a socket that the dump does not see is gone, and one that has
//! stepped on while no agent ran entered its state after the last save.

use tcpclose_common::event::{RecordHeader, flags};

use crate::names::Phase;
use crate::tracker::changes::ChangedSockets;
use crate::tracker::dump::DumpedSocket;
use crate::tracker::saved::{SavedSocket, SavedState};
use crate::tracker::socket::{EnteredAt, SocketKind, TrackedSocket};
use crate::tracker::table::Tracker;

impl Tracker {
    /// From here on, notes which sockets change.
    pub fn note_changes(&mut self) {
        self.changes = Some(ChangedSockets::all());
    }

    /// Takes up the sockets that an agent before this one has saved; the first dump shows which of them still hold.
    pub fn set_former(&mut self, former: SavedState) {
        self.former = Some(former).filter(|former| !former.is_empty());
    }

    /// Every socket of the host has been looked at: the other saved sockets are gone.
    pub fn forget_former(&mut self) {
        self.former = None;
    }

    /// Adds what the former agent knew to the socket at `at`, which has just been made of `seen`.
    pub(super) fn take_up(&mut self, at: usize, seen: &DumpedSocket) {
        let Some(former) = &mut self.former else { return };
        let Some(socket) = self.sockets.get_mut(at) else { return };
        let Some(saved) = former.take_seen(seen, socket.netns) else { return };
        let Some(since) = entry(&saved, socket, former.until_ns()) else { return };
        socket.since = since;
        // Without a cookie, another connection may have the flow by now. If it had, the kernel would remember no data
        // from before its time, and so prove an entry that contradicts the saved one.
        let proven = saved.cookie != 0 || (saved.phase == socket.phase && since.earliest_ns != 0);
        if proven && saved.leads_to(socket.phase, socket.kind) {
            saved.describe(socket);
        }
    }

    /// What the former agent knew of a socket that leaves `left` by the record of `head`, before the first dump.
    pub(super) fn former_of(
        &mut self,
        head: &RecordHeader,
        left: Phase,
        kind: SocketKind,
    ) -> Option<TrackedSocket> {
        if head.flags & flags::COOKIE == 0 || head.key == 0 {
            return None;
        }
        let same = |saved: &SavedSocket| {
            let ports =
                (saved.flow.local_port, saved.flow.remote_port) == (head.local_port, head.remote_port);
            ports && saved.phase == left && saved.since.latest_ns <= head.time_ns
        };
        let saved = self.former.as_mut()?.take_by_cookie(head.key, kind, same)?;
        let mut socket =
            TrackedSocket { flow: saved.flow, since: saved.since, ..TrackedSocket::of_record(head, left) };
        socket.set_kind(kind);
        saved.describe(&mut socket);
        Some(socket)
    }
}

/// When `socket`, whose `since` a dump proves, entered its phase, given what was `saved`: `None` if that was another
/// connection's.
fn entry(saved: &SavedSocket, socket: &TrackedSocket, until_ns: u64) -> Option<EnteredAt> {
    let proven = socket.since;
    let nothing_proven = proven.earliest_ns == 0;
    if saved.phase == socket.phase {
        if !saved.leads_to(socket.phase, socket.kind) || (saved.cookie == 0 && nothing_proven) {
            return None;
        }
        let both = EnteredAt {
            earliest_ns: proven.earliest_ns.max(saved.since.earliest_ns),
            latest_ns: proven.latest_ns.min(saved.since.latest_ns),
        };
        return (both.earliest_ns <= both.latest_ns).then_some(both);
    }
    // At the last save the flow was in another state, whosever it was. (A minisocket may have been in this one: without
    // hooks only the next dump shows its switch to TIME-WAIT. But it had been in the other before.)
    let floor = if saved.kind == SocketKind::Socket { until_ns } else { saved.since.earliest_ns };
    Some(EnteredAt { earliest_ns: proven.earliest_ns.max(floor).min(proven.latest_ns), ..proven })
}

#[cfg(test)]
mod tests;

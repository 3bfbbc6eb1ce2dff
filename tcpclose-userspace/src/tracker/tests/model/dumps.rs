//! What an agent gets of the model: records, unless they are lost, and dumps, which are no snapshots.

use crate::tracker::tests::model::host::{Host, Sock};
use crate::tracker::tests::*;

/// A dump under way.
pub struct Dump {
    started: u64,
    states: u32,
    seen: Vec<DumpedSocket>,
    skip: u8,
    /// Some of it is taken in.
    joined: bool,
}

impl Dump {
    const fn asked(&self) -> DumpScope {
        DumpScope { states: self.states, started_ns: self.started, first: false }
    }
}

impl Host {
    pub(super) fn send_step(&mut self, sock: &Sock, new: TcpState, flags: u16, err: u16) {
        let key = if self.backend.by_cookie { sock.cookie } else { sock.sk };
        let dead = if new == Close && sock.dead { DEAD } else { 0 };
        let flags = flags | dead | if sock.accepted { ACCEPTED } else { 0 };
        let head = self.bench.head(key, &sock.flow, self.now, (sock.state, new), flags);
        let err = if self.backend.events { err } else { 0 };
        let record = self
            .bench
            .record_of(RecordHeader { detail: HeaderDetail::of_errors(err, 0), ..head }, &sock.flow);
        self.send(record);
    }

    pub(super) fn hook(&mut self, at: usize, hook_kind: HookKind, new: TcpState, sk: u64) {
        let sock = self.socks[at];
        self.send_hook(&sock, hook_kind, (sock.state, new), sk);
    }

    pub(super) fn send_hook(
        &mut self,
        sock: &Sock,
        hook_kind: HookKind,
        step: (TcpState, TcpState),
        sk: u64,
    ) {
        if self.backend.hooks {
            let head = self.bench.head(sock.cookie, &sock.flow, self.now, step, 0);
            let head =
                RecordHeader { flags: HOOK | COOKIE, detail: HeaderDetail::of_hook(hook_kind), ..head };
            self.send(Record::Hook(HookRecord { head, subject: SocketOrRcvNxt::of_socket(sk) }, hook_kind));
        }
    }

    fn send(&mut self, record: Record) {
        self.truth.made += 1;
        if self.losing > 0 {
            self.losing -= 1;
            self.truth.lost += 1;
            self.lost_untold = true;
        } else {
            self.ring.push_back(record);
        }
    }

    pub fn drain(&mut self) {
        for record in self.ring.drain(..) {
            self.bench.tracker.record(&record, &mut self.bench.heard);
        }
        self.bench.tracker.settle(self.now, &mut self.bench.heard);
        if std::mem::take(&mut self.lost_untold) {
            self.bench.tracker.records_lost(self.now);
        }
    }

    /// What a dump meets of the sockets whose cookies are odd, or even.
    fn look(&self, dump: &mut Dump, odd: u64) {
        for sock in &self.socks {
            if sock.cookie % 2 != odd
                || dump.states & sock.state.bit() == 0
                || dump.skip != 0 && sock.cookie % 8 == u64::from(dump.skip)
            {
                continue;
            }
            let expires = if sock.is_minisocket() { sock.due - self.now } else { 0 };
            let seen = seen(sock.state, sock.kind, sock.flow, sock.cookie, self.now, expires);
            let age = self.now - sock.entered;
            let age = match sock.state {
                CloseWait => Age { min_ns: age / 2, max_ns: Some(2 * age + 1) },
                _ => seen.age,
            };
            dump.seen.push(DumpedSocket { age, ..seen });
        }
    }

    pub(super) fn begin_dump(&mut self, minisockets: bool, skip: u8) {
        let all = tcpclose_common::state::CLOSE_PHASE | TimeWait.bit() | Listen.bit();
        let states = if minisockets { FinWait2.bit() | TimeWait.bit() } else { all };
        let skip = if self.skipped { 0 } else { skip };
        self.skipped = skip != 0;
        let mut dump = Dump { started: self.now, states, seen: Vec::new(), skip, joined: false };
        self.bench.tracker.dump_started();
        self.look(&mut dump, 0);
        self.dump = Some(dump);
    }

    /// Takes in what the dump has met so far, while it goes on.
    pub(super) fn join_dump(&mut self) {
        let Some(mut dump) = self.dump.take() else { return };
        self.drain();
        let entered: &[(u32, u32)] = if dump.joined { &[] } else { &[(HERE, HERE)] };
        let Bench { tracker, heard, .. } = &mut self.bench;
        tracker.dump_chunk(&dump.asked(), &DumpChunk { entered, seen: &dump.seen }, heard);
        dump.seen.clear();
        dump.joined = true;
        self.dump = Some(dump);
    }

    pub(super) fn end_dump(&mut self) {
        let Some(mut dump) = self.dump.take() else { return };
        self.look(&mut dump, 1);
        self.dump = Some(dump);
        self.join_dump();
        let Some(dump) = self.dump.take() else { return };
        let Bench { tracker, heard, .. } = &mut self.bench;
        for suspect in tracker.dump_finished(&dump.asked(), &here(), 100, heard) {
            // As `agent::dumps` asks.
            let found = self.socks.iter().any(|sock| {
                sock.flow == suspect.flow
                    && (suspect.cookie == 0 || sock.cookie == suspect.cookie)
                    && Phase::of(sock.state).is_some()
            });
            if !found {
                tracker.gone(&suspect, self.now, heard);
            }
        }
    }

    /// A whole dump while nothing happens, when the last step is long enough ago to be compared.
    pub fn reconcile(&mut self) {
        self.end_dump();
        self.pass(S);
        self.begin_dump(false, 0);
        self.end_dump();
    }
}

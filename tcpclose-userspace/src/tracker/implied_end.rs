//! Ends that no record told: what vanished, and minisockets that dumps, or another socket's step, found gone.

use tcpclose_common::state::TcpState;

use crate::names::{Age, Outcome, Phase, TimeWaitEnd, UnmeasuredReason};

use crate::tracker::Tracker;
use crate::tracker::event::{EventSink, TrackerEvent};
use crate::tracker::socket::EnteredAt;
use crate::tracker::transition::{Evidence, PhaseChange, between};

impl Tracker {
    /// The full socket is gone, and no record said how.
    pub(super) fn vanish(&mut self, at: usize, now: u64, out: &mut impl EventSink) {
        let phase = self.lives[at].phase;
        out.fact(now, TrackerEvent::Unmeasured { phase, why: UnmeasuredReason::Lost });
        // No transition was seen; but who watches is to know that nothing more comes.
        if out.is_watched() {
            let life = &self.lives[at];
            let end = EnteredAt { earliest_ns: life.event_ns.max(life.seen_ns), latest_ns: now };
            let spent = self.spent(at, phase, end);
            let outcome = Some(Outcome::Unknown);
            let (from, to, told) = (phase.state(), TcpState::Close, Evidence::BY_DUMP);
            out.transition(
                PhaseChange { at_ns: now, from, to, spent, outcome, told }.of(life, self.inum_of(life.netns)),
            );
        }
        self.count(at, now, Outcome::Unknown, out);
        self.remove(at);
    }

    /// The same at the classic tracepoint, where another socket has the address now: what closed first may go on as a
    /// minisocket, which only a dump can tell; until then it is not over.
    pub(super) fn displaced(&mut self, at: usize, now: u64, out: &mut impl EventSink) {
        let phase = self.lives[at].phase;
        let next = match phase {
            Phase::FinWait1 | Phase::FinWait2 => Phase::FinWait2,
            Phase::Closing => Phase::TimeWait,
            Phase::CloseWait | Phase::LastAck | Phase::TimeWait => return self.vanish(at, now, out),
        };
        out.fact(now, TrackerEvent::Unmeasured { phase, why: UnmeasuredReason::Lost });
        self.enter(at, next, EnteredAt { earliest_ns: 0, latest_ns: now });
        self.hand_over(at, now, out);
    }

    /// The minisocket is gone, found out at `now`. Its end is when its timer was due, if it was; else the last that is
    /// known of it is taken for that: a dump's look, or, if none saw it, the record of the hand-over, where the phase was
    /// longer before that than what is unknown after. (Without BTF a RST in FIN-WAIT-2 looks like a hand-over too.)
    pub(super) fn end_minisocket(&mut self, at: usize, now: u64, told: Evidence, out: &mut impl EventSink) {
        self.end_minisocket_by(at, now, TimeWaitEnd::Early, told, out);
    }

    /// The same; `early` is what ended it if its timer did not.
    pub(super) fn end_minisocket_by(
        &mut self,
        at: usize,
        now: u64,
        early: TimeWaitEnd,
        told: Evidence,
        out: &mut impl EventSink,
    ) {
        let life = self.lives[at];
        let seen = life.seen_ns != 0;
        let expired = life.expires_ns() != 0 && life.expires_ns() <= now;
        let presumed = life.phase == Phase::TimeWait && !life.counted;
        let before = life.event_ns.saturating_sub(life.since.latest_ns);
        let last = match life.seen_ns {
            0 if before > now.saturating_sub(life.event_ns) => Some(life.event_ns),
            0 => None,
            // It was seen after its timer was due: timers are late.
            seen_ns if expired => Some(seen_ns.max(life.expires_ns())),
            seen_ns => Some(seen_ns),
        };
        let end = last.unwrap_or(now);
        if !presumed {
            out.fact(
                end,
                match last.map(|last| life.since.until(last)) {
                    Some(Some(ns)) => {
                        TrackerEvent::StateDuration { phase: life.phase, pair: life.pair(), ns }
                    }
                    Some(None) => TrackerEvent::Unmeasured { phase: life.phase, why: self.why(&life) },
                    None => {
                        TrackerEvent::Unmeasured { phase: life.phase, why: UnmeasuredReason::BetweenDumps }
                    }
                },
            );
        }
        // What was taken for TIME-WAIT and never found there went from CLOSING straight to CLOSE.
        let from = if presumed { TcpState::Closing } else { life.phase.state() };
        // FIN-WAIT-2 ran out of its timer: the peer's FIN never came.
        let outcome = if expired { Outcome::Timeout } else { Outcome::Unknown };
        let ended = EnteredAt { earliest_ns: last.unwrap_or(life.event_ns), latest_ns: now };
        let spent = if presumed { Age::UNKNOWN } else { between(life.since, ended) };
        let settled = if life.phase == Phase::TimeWait && !presumed { Outcome::Graceful } else { outcome };
        let step = PhaseChange { at_ns: end, from, to: TcpState::Close, spent, outcome: Some(settled), told };
        self.tell(&life, step, out);
        if life.phase == Phase::TimeWait && !presumed {
            let how = match (seen, expired) {
                (false, _) => TimeWaitEnd::Unknown,
                (true, true) => TimeWaitEnd::Expired,
                (true, false) => early,
            };
            out.fact(end, TrackerEvent::TimeWaitEnded { how });
        }
        self.count(at, end, outcome, out);
        self.remove(at);
    }
}

//! A finished connection as a textbook draws it: what each side sent, with measured sequence numbers and times. Missing
//! parts are `not observed`.

use std::fmt::Write as _;

use tcpclose_common::state::TcpState;

use crate::names::{Outcome, Role};
use crate::report::watch::handshake::ClosedConnection;
use crate::report::watch::line::Line;
use crate::ui::durations::span;
use crate::ui::labels::state;
use crate::ui::watch_columns::{netns, owner};

/// The numbers of the steps. No close has more.
const CIRCLED: [char; 8] = ['①', '②', '③', '④', '⑤', '⑥', '⑦', '⑧'];

/// Between the words of a step and the peer.
const WIRE: usize = 36;

/// Where the words of this side begin.
const INDENT: usize = 20;

/// What a step does on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Act {
    Sent(&'static str, Number),
    Received(&'static str, Number),
    /// Nothing passed.
    Ended(&'static str),
}

/// A sequence number beside an arrow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Number {
    Seq(Option<u32>),
    Ack(Option<u32>),
    /// The textbook has none here.
    None,
    /// The step itself was not seen.
    NotObserved,
}

impl Number {
    fn text(self) -> String {
        let known = |what, number: Option<u32>| match number {
            Some(number) => format!("{what}={number}"),
            None => format!("{what} not observed"),
        };
        match self {
            Self::Seq(number) => known("seq", number),
            Self::Ack(number) => known("ack", number),
            Self::None => String::new(),
            Self::NotObserved => "not observed".to_owned(),
        }
    }
}

/// Draws `connection`. `own_netns`: the namespace that is not named.
pub fn draw(connection: &ClosedConnection, own_netns: u32) -> String {
    let mut drawing = Drawing { text: header(connection, own_netns), ..Drawing::default() };
    let mut before = TcpState::Established;
    let mut numbers: (Option<u32>, Option<u32>) = (None, None);
    for step in &connection.steps {
        if !matches!(step.from, TcpState::Established | TcpState::SynRecv) {
            drawing.gap(before, step.from);
        } else if step.from == TcpState::SynRecv {
            drawing.state("SYN-RECEIVED");
        } else {
            drawing.state("ESTABLISHED");
        }
        if let Some(remark) = half_close(step, numbers) {
            drawing.remark(&remark);
        }
        let mut after = Some(span(step.spent())).filter(|_| step.from != TcpState::Established);
        for act in acts(step) {
            drawing.act(act, after.take());
        }
        drawing.state(&entered(step));
        before = step.to;
        let more = step.more.as_ref();
        numbers = (more.and_then(|more| more.snd), more.and_then(|more| more.rcv));
    }
    drawing.text
}

/// The ends, the time, the outcome and the roles.
fn header(connection: &ClosedConnection, own_netns: u32) -> String {
    let Some(last) = connection.steps.last() else { return String::new() };
    let first = connection.steps.first().unwrap_or(last);
    let mut text = format!("{}  local {}  peer {}  {}", first.time, last.local, last.peer, last.side.name());
    let elsewhere = netns(last, own_netns);
    if elsewhere != "-" {
        let _ = write!(text, "  netns {elsewhere}");
    }
    if last.owner.is_some() {
        let _ = write!(text, "  closed by {}", owner(last.owner.as_ref()));
    }
    let _ = writeln!(text, "  {}", connection.outcome().name());
    let (here, there) = match last.role {
        Role::Active => ("active closer (this side)", "passive closer (peer)"),
        Role::Passive => ("passive closer (this side)", "active closer (peer)"),
        Role::Simultaneous => ("simultaneous closer (this side)", "simultaneous closer (peer)"),
        Role::None => ("this side, no closer", "peer"),
        Role::Unknown => ("this side; first closer unknown", "peer"),
    };
    // Each above its own end of the wire.
    let rest = (WORDS + 1 + WIRE).saturating_sub(here.len()).max(there.len() + 2);
    let _ = writeln!(text, "{:INDENT$}{here}{there:>rest$}", "");
    text
}

/// The words of a step are as wide as the longest, `FIN received`.
const WORDS: usize = 12;

#[derive(Default)]
struct Drawing {
    text: String,
    acts: usize,
}

impl Drawing {
    /// A state that this side is in.
    fn state(&mut self, name: &str) {
        let _ = writeln!(self.text, "{:INDENT$}{name}", "");
    }

    fn remark(&mut self, remark: &str) {
        let _ = writeln!(self.text, "{:INDENT$}  {remark}", "");
    }

    /// An arrow. `after`: the time since the step before.
    fn act(&mut self, act: Act, after: Option<String>) {
        let sign = match act {
            Act::Ended(_) | Act::Sent("RST sent", _) | Act::Received("RST received", _) => '✕',
            Act::Sent(..) | Act::Received(..) => {
                self.acts += 1;
                CIRCLED.get(self.acts - 1).copied().unwrap_or('·')
            }
        };
        let after = after.map_or(String::new(), |after| format!("+{after}"));
        let what = match act {
            Act::Sent(what, number) => {
                let label = number.text();
                let label = if label.is_empty() { String::new() } else { format!(" {label} ") };
                let rest = WIRE.saturating_sub(label.chars().count() + 4);
                format!("{what:<WORDS$}  ──{label}{}▶", "─".repeat(rest))
            }
            Act::Received(what, number) => {
                let label = number.text();
                let label = if label.is_empty() { String::new() } else { format!(" {label} ") };
                let rest = WIRE.saturating_sub(label.chars().count() + 4);
                format!("{what:<WORDS$}  ◀{}{label}──", "─".repeat(rest))
            }
            Act::Ended(what) => what.to_owned(),
        };
        let width = INDENT - 5;
        let _ = writeln!(self.text, " {sign}  {after:<width$} {what}");
    }

    /// The steps between two states that were not observed; none where they are the same.
    fn gap(&mut self, before: TcpState, now: TcpState) {
        let way = way_to(now);
        let from = way.iter().position(|state| *state == before).map_or(0, |at| at + 1);
        if way.is_empty() || before == now {
            return;
        }
        if from == 0 {
            self.state("ESTABLISHED");
        }
        for state_now in way.get(from..).unwrap_or_default() {
            for act in usual_acts(*state_now) {
                self.act(*act, None);
            }
            self.state(&state(state_now.name()));
        }
    }
}

/// The states on the way from ESTABLISHED to this one, itself among them.
const fn way_to(state: TcpState) -> &'static [TcpState] {
    use TcpState::{CloseWait, Closing, FinWait1, FinWait2, LastAck};
    match state {
        FinWait1 => &[FinWait1],
        FinWait2 => &[FinWait1, FinWait2],
        Closing => &[FinWait1, Closing],
        CloseWait => &[CloseWait],
        LastAck => &[CloseWait, LastAck],
        _ => &[],
    }
}

/// The steps into a state that were not observed.
const fn usual_acts(state: TcpState) -> &'static [Act] {
    const UNSEEN: Number = Number::NotObserved;
    match state {
        TcpState::FinWait1 | TcpState::LastAck => &[Act::Sent("FIN sent", UNSEEN)],
        TcpState::FinWait2 => &[Act::Received("ACK received", UNSEEN)],
        TcpState::Closing | TcpState::CloseWait => {
            &[Act::Received("FIN received", UNSEEN), Act::Sent("ACK sent", UNSEEN)]
        }
        _ => &[],
    }
}

/// The acts of a step.
fn acts(step: &Line) -> Vec<Act> {
    use TcpState::{Close, CloseWait, Closing, FinWait1, FinWait2, LastAck, TimeWait};
    let more = step.more.as_ref();
    let (snd, rcv) = (more.and_then(|more| more.snd), more.and_then(|more| more.rcv));
    let fin_sent = Act::Sent("FIN sent", Number::Seq(snd));
    let ack_received = Act::Received("ACK received", Number::Ack(snd));
    // rcv_nxt has the FIN behind it already.
    let fin_received = Act::Received("FIN received", Number::Seq(rcv.map(|rcv| rcv.wrapping_sub(1))));
    let ack_sent = Act::Sent("ACK sent", Number::Ack(rcv));
    match (step.from, step.to) {
        (_, FinWait1 | LastAck) => vec![fin_sent],
        (_, FinWait2) => vec![ack_received],
        (_, Closing | CloseWait) => vec![fin_received, ack_sent],
        (Closing, TimeWait) => vec![ack_received],
        (_, TimeWait) => vec![fin_received, ack_sent],
        (from, Close) => match step.outcome.unwrap_or(Outcome::Unknown) {
            Outcome::Graceful if matches!(from, LastAck | Closing) => vec![ack_received],
            Outcome::Graceful => vec![fin_received, ack_sent],
            Outcome::ResetReceived => vec![Act::Received("RST received", Number::None)],
            Outcome::ResetSent => vec![Act::Sent("RST sent", Number::None)],
            Outcome::Aborted => {
                vec![Act::Ended("aborted by the program (linger 0, unread data, disconnect)")]
            }
            Outcome::Timeout => vec![Act::Ended("timed out: no answer from the peer")],
            Outcome::Destroyed => vec![Act::Ended("destroyed from outside (SOCK_DESTROY)")],
            Outcome::Unknown => vec![Act::Ended("ended; cause not observed")],
        },
        _ => Vec::new(),
    }
}

/// The state after a step, in words.
fn entered(step: &Line) -> String {
    let name = state(step.to.name());
    let length = step.more.as_ref().and_then(|more| more.time_wait_ms);
    match (step.to, length) {
        (TcpState::TimeWait, Some(ms)) if ms % 1000 == 0 => format!("{name}, 2MSL ({}s here)", ms / 1000),
        (TcpState::TimeWait, Some(ms)) => format!("{name}, 2MSL ({:.3}s here)", ms as f64 / 1000.0),
        (TcpState::TimeWait, None) => format!("{name}, 2MSL"),
        // TIME-WAIT was due.
        (TcpState::Close, _) if step.outcome == Some(Outcome::Graceful) && step.from != TcpState::LastAck => {
            format!("{name} (TIME-WAIT skipped: tcp_max_tw_buckets or memory exhausted)")
        }
        _ => name,
    }
}

/// The bytes in the direction that was still open, by the numbers before and at the step.
fn half_close(step: &Line, (snd, rcv): (Option<u32>, Option<u32>)) -> Option<String> {
    let more = step.more.as_ref()?;
    let fin = |next: Option<u32>| next.map(|next| next.wrapping_sub(1));
    let (way, before, now) = match (step.from, step.to) {
        (TcpState::CloseWait, TcpState::LastAck) => ("sent", snd, more.snd),
        (TcpState::FinWait2, TcpState::TimeWait) => ("received", rcv, fin(more.rcv)),
        (TcpState::FinWait2, TcpState::Close) if step.outcome == Some(Outcome::Graceful) => {
            ("received", rcv, fin(more.rcv))
        }
        _ => return None,
    };
    let bytes = now?.wrapping_sub(before?);
    // What is behind is no progress.
    (1..1 << 31).contains(&bytes).then(|| {
        let unit = if bytes == 1 { "byte" } else { "bytes" };
        format!("half-close: {bytes} {unit} {way} in {}", state(step.from.name()))
    })
}

#[cfg(test)]
mod tests;

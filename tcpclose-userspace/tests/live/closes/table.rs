//! What is played, and what each end is to be counted as.

use std::time::Duration;

use tcpclose::names::Outcome::{Aborted, Graceful, ResetReceived, Unknown};
use tcpclose::names::Phase;
use tcpclose::names::Phase::{CloseWait, Closing, FinWait1, FinWait2, LastAck, TimeWait};
use tcpclose::names::Role::{Active, None as NoFin, Passive, Simultaneous};
use tcpclose::names::Side;
use tcpclose::names::Side::{Client, Server};
use tcpclose::names::{Outcome, Role};

use super::stage::{self, By, Stage, Timeline};
use super::verdict::End;

const AT_ONCE: Duration = Duration::ZERO;
const HALF: Duration = Duration::from_millis(500);
const FIVE: Duration = Duration::from_secs(5);
/// Several dumps long, so that the phase cannot come and go between two.
const LONG: Duration = Duration::from_secs(6);

/// A way to close.
pub struct Case {
    pub name: &'static str,
    pub listens: bool,
    pub play: fn(Stage<'_>) -> Vec<Timeline>,
    /// In the order of the timelines.
    pub ends: &'static [End],
}

const fn end(side: Side, phases: &'static [Phase], role: Role, outcome: Outcome) -> End {
    End { side, phases, role, outcome, by_hooks: outcome, orphan: false }
}

/// An end that is closed, fd and all, while it waits in FIN-WAIT-2.
const fn orphan(side: Side, phases: &'static [Phase], role: Role, outcome: Outcome) -> End {
    End { side, phases, role, outcome, by_hooks: outcome, orphan: true }
}

const fn case(name: &'static str, play: fn(Stage<'_>) -> Vec<Timeline>, ends: &'static [End]) -> Case {
    Case { name, listens: true, play, ends }
}

/// A case of one socket, or of none, and no listener.
const fn alone(name: &'static str, play: fn(Stage<'_>) -> Vec<Timeline>, ends: &'static [End]) -> Case {
    Case { name, listens: false, play, ends }
}

const WAITS: &[Phase] = &[FinWait1, FinWait2, TimeWait];
const ANSWERS: &[Phase] = &[CloseWait, LastAck];

const CLIENT_THEN_SERVER: &[End] =
    &[orphan(Client, WAITS, Active, Graceful), end(Server, ANSWERS, Passive, Graceful)];
const SERVER_THEN_CLIENT: &[End] =
    &[orphan(Server, WAITS, Active, Graceful), end(Client, ANSWERS, Passive, Graceful)];

/// Every close.
pub const CASES: &[Case] = &[
    case(
        "the client closes, the server at once",
        |s| stage::orderly(&s, Client, By::Close, AT_ONCE),
        CLIENT_THEN_SERVER,
    ),
    case(
        "the client closes, the server after 0.5 s",
        |s| stage::orderly(&s, Client, By::Close, HALF),
        CLIENT_THEN_SERVER,
    ),
    case(
        "the client closes, the server after 5 s",
        |s| stage::orderly(&s, Client, By::Close, FIVE),
        CLIENT_THEN_SERVER,
    ),
    case(
        "the server closes, the client at once",
        |s| stage::orderly(&s, Server, By::Close, AT_ONCE),
        SERVER_THEN_CLIENT,
    ),
    case(
        "the server closes, the client after 0.5 s",
        |s| stage::orderly(&s, Server, By::Close, HALF),
        SERVER_THEN_CLIENT,
    ),
    case(
        "the server closes, the client after 5 s",
        |s| stage::orderly(&s, Server, By::Close, FIVE),
        SERVER_THEN_CLIENT,
    ),
    case(
        "the client half-closes, the server closes after 0.5 s",
        |s| stage::orderly(&s, Client, By::Shutdown, HALF),
        &[end(Client, WAITS, Active, Graceful), end(Server, ANSWERS, Passive, Graceful)],
    ),
    case(
        "the server half-closes, the client closes after 0.5 s",
        |s| stage::orderly(&s, Server, By::Shutdown, HALF),
        &[end(Server, WAITS, Active, Graceful), end(Client, ANSWERS, Passive, Graceful)],
    ),
    alone(
        "a self-connect closes",
        |s| stage::self_connect(&s),
        &[end(Client, &[FinWait1, Closing, TimeWait], Simultaneous, Graceful)],
    ),
    case(
        "the client half-closes, the server resets out of CLOSE-WAIT",
        |s| stage::reset_in_close_wait(&s, Client, LONG),
        &[
            end(Client, &[FinWait1, FinWait2], Active, ResetReceived),
            end(Server, &[CloseWait], Passive, Aborted),
        ],
    ),
    case(
        "the server half-closes, the client resets out of CLOSE-WAIT",
        |s| stage::reset_in_close_wait(&s, Server, LONG),
        &[
            end(Server, &[FinWait1, FinWait2], Active, ResetReceived),
            end(Client, &[CloseWait], Passive, Aborted),
        ],
    ),
    case(
        "the client resets",
        |s| stage::reset(&s, Client),
        &[end(Client, &[], NoFin, Aborted), end(Server, &[], NoFin, ResetReceived)],
    ),
    case(
        "the server resets",
        |s| stage::reset(&s, Server),
        &[end(Server, &[], NoFin, Aborted), end(Client, &[], NoFin, ResetReceived)],
    ),
    case(
        "the listener closes before it accepts",
        stage::listener_closes,
        &[end(Server, &[], NoFin, Aborted), end(Client, &[], NoFin, ResetReceived)],
    ),
    case(
        "the client closes before it is accepted, then the listener closes",
        |s| stage::client_closes_in_the_queue(s, LONG),
        // The RST meets the client's minisocket, and dumps cannot tell what ended that.
        &[
            End { by_hooks: ResetReceived, ..orphan(Client, &[FinWait1, FinWait2], Active, Unknown) },
            end(Server, &[CloseWait], Passive, Aborted),
        ],
    ),
    alone("nobody listens", |s| stage::refused(&s), &[]),
];

//! The cases, each one a line: its name, where it is played, the script, and per life of a kernel's socket the side, the
//! role, the states it goes through, how the connection ended and how its TIME-WAIT did.
//!
//! The truth stands here. What each backend reports of it stands in docs/coverage.toml ([`Truth::told`]).

use super::backends::Truth::{self, *};
use super::scene::Family::{self, Mapped, V4, V6};
use super::scene::Scene;
use super::stay::*;
use super::{active, local, minisockets, passive, resets, timeouts};

/// The network namespace that a case is played in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    /// What a new namespace has, and tcp_tw_reuse = 1.
    Plain,
    /// tcp_orphan_retries = 3, tcp_fin_timeout = 5, tcp_rfc1337 = 1.
    Odd,
    /// tcp_max_tw_buckets = 0.
    Full,
    /// One that goes when the script has ended. No agent is in it.
    Doomed,
}

/// One connection of a kernel's socket.
#[derive(Clone, Copy, Debug)]
pub struct Life {
    /// [`AcceptedHere`] or [`OpenedHere`].
    pub side: Truth,
    /// The value of the label `role`: every backend tells it.
    pub role: &'static str,
    pub stays: &'static [Stay],
    pub outcome: Truth,
    /// How its TIME-WAIT ended.
    pub waited: Option<Truth>,
}

pub struct Case {
    pub name: &'static str,
    pub place: Place,
    pub family: Family,
    pub script: fn(&mut Scene),
    pub lives: &'static [Life],
}

impl Case {
    /// Whether the kernel listens.
    pub fn listens(&self) -> bool {
        self.lives[0].side == AcceptedHere
    }

    /// Whether it ends with SOCK_DESTROY on a minisocket.
    pub fn destroys_a_minisocket(&self) -> bool {
        let is = |life: &Life| life.waited == Some(DestroyedTimeWait) || life.outcome == DestroyedMinisocket;
        self.lives.iter().any(is)
    }
}

const fn server(role: &'static str, stays: &'static [Stay], outcome: Truth) -> Life {
    Life { side: AcceptedHere, role, stays, outcome, waited: None }
}

const fn client(role: &'static str, stays: &'static [Stay], outcome: Truth) -> Life {
    Life { side: OpenedHere, role, stays, outcome, waited: None }
}

impl Life {
    const fn waited(self, how: Truth) -> Self {
        Self { waited: Some(how), ..self }
    }
}

const fn case(
    name: &'static str,
    place: Place,
    family: Family,
    script: fn(&mut Scene),
    lives: &'static [Life],
) -> Case {
    Case { name, place, family, script, lives }
}

const PASSIVE: &[Stay] = &[CLOSE_WAIT, LAST_ACK];
const AT_ONCE: &[Stay] = &[FIN_WAIT_1, FIN_WAIT_2, TIME_WAIT];
const LATER: &[Stay] = &[FIN_WAIT_1, ORPHAN, TIME_WAIT];
const CROSSED: &[Stay] = &[FIN_WAIT_1, CLOSING, TIME_WAIT];
const FW1: &[Stay] = &[FIN_WAIT_1];
const FW2: &[Stay] = &[FIN_WAIT_1, FIN_WAIT_2_CUT];
const BRIEF: &[Stay] = &[FIN_WAIT_1, FIN_WAIT_2_BRIEF];
const MINI: &[Stay] = &[FIN_WAIT_1, ORPHAN_CUT];
const NO_ROOM: &[Stay] = &[FIN_WAIT_1, ORPHAN_SKIPPED];
const CROSSING: &[Stay] = &[FIN_WAIT_1, CLOSING];
const CW: &[Stay] = &[CLOSE_WAIT];
const ELSEWHERE: &[Stay] = &[FIN_WAIT_1, FIN_WAIT_2_BRIEF, TIME_WAIT_ELSEWHERE];

const PASSIVE_LIFE: &[Life] = &[server("passive", PASSIVE, Graceful)];
const LATER_LIFE: &[Life] = &[server("active", LATER, GracefulWaited).waited(Expired)];
const AT_ONCE_LIFE: &[Life] = &[server("active", AT_ONCE, GracefulWaited).waited(Expired)];
const CROSSED_LIFE: &[Life] = &[server("simultaneous", CROSSED, GracefulWaited).waited(Expired)];

use Place::{Doomed, Full, Odd, Plain};

#[rustfmt::skip]
pub static CASES: &[Case] = &[
    // The peer closes first.
    case("FIN", Plain, V4, passive::fin, PASSIVE_LIFE),
    case("FIN, IPv6", Plain, V6, passive::fin, PASSIVE_LIFE),
    case("FIN, v4-mapped", Plain, Mapped, passive::fin, PASSIVE_LIFE),
    case("FIN to a client", Plain, V4, passive::fin_to_a_client, &[client("passive", PASSIVE, Graceful)]),
    case("FIN to a client, IPv6", Plain, V6, passive::fin_to_a_client, &[client("passive", PASSIVE, Graceful)]),
    case("FIN with data", Plain, V4, passive::fin_with_data, PASSIVE_LIFE),
    case("FIN before its data", Plain, V6, passive::fin_out_of_order, PASSIVE_LIFE),
    case("FIN retransmitted", Plain, V4, passive::fin_retransmitted, PASSIVE_LIFE),
    case("keepalives in CLOSE-WAIT", Plain, V4, passive::keepalives_in_close_wait, PASSIVE_LIFE),
    case("RST not believed in CLOSE-WAIT", Plain, V6, passive::rst_not_believed, PASSIVE_LIFE),
    case("FIN ends the handshake", Plain, V4, passive::fin_ends_the_handshake, PASSIVE_LIFE),
    case("FIN before accept", Plain, V4, passive::fin_before_accept, PASSIVE_LIFE),
    case("FIN before accept, v4-mapped", Plain, Mapped, passive::fin_before_accept, PASSIVE_LIFE),
    case("goes on sending in CLOSE-WAIT", Plain, V4, passive::goes_on_sending, PASSIVE_LIFE),
    case("FIN lost in LAST-ACK", Plain, V4, passive::fin_lost_in_last_ack, PASSIVE_LIFE),
    case("shutdown in CLOSE-WAIT", Plain, V6, passive::shutdown_in_close_wait, PASSIVE_LIFE),

    // The kernel's end closes first, or both do.
    case("close, FIN later", Plain, V4, active::fin_comes_later, LATER_LIFE),
    case("close, FIN later, v4-mapped", Plain, Mapped, active::fin_comes_later, LATER_LIFE),
    case("client closes, FIN later, IPv6", Plain, V6, active::fin_comes_later_to_a_client, &[client("active", LATER, GracefulWaited).waited(Expired)]),
    case("close, FIN and ACK in one", Plain, V4, active::fin_and_ack_in_one, AT_ONCE_LIFE),
    case("close, FIN and ACK in one, IPv6", Plain, V6, active::fin_and_ack_in_one, AT_ONCE_LIFE),
    case("half-close, FIN later", Plain, V4, active::half_close, AT_ONCE_LIFE),
    case("half-close, close, FIN later", Plain, V6, active::half_close_then_close, LATER_LIFE),
    case("close on a shut window", Plain, V4, active::window_shut, AT_ONCE_LIFE),
    case("FIN retransmitted in TIME-WAIT", Plain, V4, active::fin_retransmitted, AT_ONCE_LIFE),
    case("FINs cross", Plain, V4, active::crossing, CROSSED_LIFE),
    case("FINs cross after half-close, IPv6", Plain, V6, active::crossing_half_closed, CROSSED_LIFE),
    case("self-connect", Plain, V4, active::self_connect, &[client("simultaneous", CROSSED, GracefulWaited).waited(Expired)]),
    case("both ends here", Plain, V4, active::two_ended, &[server("active", LATER, GracefulWaited).waited(Expired), client("passive", PASSIVE, Graceful)]),
    case("same socket again after TIME-WAIT", Plain, V4, active::same_socket_again, &[client("active", AT_ONCE, GracefulWaited).waited(Expired), client("passive", PASSIVE, Graceful)]),

    // RST.
    case("RST in ESTABLISHED", Plain, V4, resets::established, &[server("none", &[], ResetReceived)]),
    case("RST in FIN-WAIT-1, half-closed", Plain, V4, resets::fin_wait_1, &[server("active", FW1, ResetReceived)]),
    case("RST in FIN-WAIT-1", Plain, V6, resets::fin_wait_1_closed, &[server("active", FW1, ResetReceivedClosed)]),
    case("RST in FIN-WAIT-2, half-closed", Plain, V6, resets::fin_wait_2, &[server("active", FW2, ResetReceived)]),
    case("RST on FIN-WAIT-2 minisocket", Plain, V4, resets::fin_wait_2_minisocket, &[server("active", MINI, ResetReceivedMinisocket)]),
    case("RST in CLOSING", Plain, V4, resets::closing, &[server("simultaneous", CROSSING, ResetReceived)]),
    case("RST in CLOSE-WAIT", Plain, V4, resets::close_wait, &[server("passive", CW, ResetReceived)]),
    case("RST in LAST-ACK", Plain, V6, resets::last_ack, &[server("passive", PASSIVE, ResetReceived)]),
    case("data in FIN-WAIT-1", Plain, V4, resets::data_in_fin_wait_1, &[server("active", FW1, ResetSent)]),
    case("data in FIN-WAIT-2, reading ended", Plain, V6, resets::data_in_fin_wait_2, &[server("active", FW2, ResetSent)]),
    case("data on FIN-WAIT-2 minisocket", Plain, V4, resets::data_on_minisocket, &[server("active", MINI, ResetSentMinisocket)]),
    case("FIN with data on FIN-WAIT-2 minisocket", Plain, V6, resets::fin_with_data_on_minisocket, &[server("active", MINI, ResetSentMinisocket)]),
    case("SYN on FIN-WAIT-2 minisocket", Plain, V4, resets::syn_on_minisocket, &[server("active", MINI, ResetSentMinisocket)]),

    // The local program, or SOCK_DESTROY.
    case("linger 0", Plain, V4, local::linger_zero, &[server("none", &[], Aborted)]),
    case("linger 0 in CLOSE-WAIT", Plain, V6, local::linger_zero_in_close_wait, &[server("passive", CW, Aborted)]),
    case("unread data", Plain, V4, local::unread, &[server("none", &[], Aborted)]),
    case("unread data in CLOSE-WAIT", Plain, V4, local::unread_in_close_wait, &[server("passive", CW, Aborted)]),
    case("disconnect", Plain, V4, local::disconnect, &[server("none", &[], Aborted)]),
    case("disconnect in CLOSE-WAIT", Plain, V4, local::disconnect_in_close_wait, &[server("passive", CW, Aborted)]),
    case("disconnect in FIN-WAIT-2", Plain, V6, local::disconnect_in_fin_wait_2, &[server("active", FW2, Aborted)]),
    case("disconnect, connect again", Plain, V4, local::disconnect_and_again, &[client("passive", CW, Aborted), client("passive", PASSIVE, Graceful)]),
    case("listener closed", Plain, V4, local::listener_closed, &[server("none", &[], Aborted)]),
    case("listener closed, FIN there", Plain, V6, local::listener_closed_in_close_wait, &[server("passive", CW, Aborted)]),
    case("TCP_LINGER2 < 0", Plain, V4, local::linger2_negative, &[server("active", BRIEF, Aborted)]),
    case("TCP_LINGER2 < 0, close in FIN-WAIT-2", Plain, V4, local::linger2_negative_in_fin_wait_2, &[server("active", FW2, Aborted)]),
    case("SOCK_DESTROY in ESTABLISHED", Plain, V4, local::destroy, &[server("none", &[], Destroyed)]),
    case("SOCK_DESTROY in FIN-WAIT-1", Plain, V6, local::destroy_in_fin_wait_1, &[server("active", FW1, Destroyed)]),
    case("SOCK_DESTROY in FIN-WAIT-2", Plain, V4, local::destroy_in_fin_wait_2, &[server("active", FW2, Destroyed)]),
    case("SOCK_DESTROY in CLOSING", Plain, V4, local::destroy_in_closing, &[server("simultaneous", CROSSING, Destroyed)]),
    case("SOCK_DESTROY in CLOSE-WAIT", Plain, Mapped, local::destroy_in_close_wait, &[server("passive", CW, Destroyed)]),
    case("SOCK_DESTROY in LAST-ACK", Plain, V4, local::destroy_in_last_ack, &[server("passive", PASSIVE, Destroyed)]),

    // Silence.
    case("retries run out in FIN-WAIT-1", Odd, V4, timeouts::orphan_in_fin_wait_1, &[server("active", FW1, Timeout)]),
    case("retries run out in CLOSING", Odd, V6, timeouts::orphan_in_closing, &[server("simultaneous", CROSSING, Timeout)]),
    case("retries run out in LAST-ACK", Odd, V4, timeouts::orphan_in_last_ack, &[server("passive", PASSIVE, Timeout)]),
    case("user timeout", Plain, V4, timeouts::user_timeout, &[server("none", &[], Timeout)]),
    case("user timeout in FIN-WAIT-1", Plain, V6, timeouts::user_timeout_in_fin_wait_1, &[server("active", FW1, Timeout)]),
    case("keepalive", Plain, V4, timeouts::keepalive, &[server("none", &[], Timeout)]),
    case("keepalive in CLOSE-WAIT", Plain, V6, timeouts::keepalive_in_close_wait, &[server("passive", CW, Timeout)]),
    case("keepalive in FIN-WAIT-2", Plain, V4, timeouts::keepalive_in_fin_wait_2, &[server("active", FW2, Timeout)]),
    case("FIN-WAIT-2 expires", Odd, V4, timeouts::fin_wait_2, &[server("active", MINI, FinWait2Expired)]),
    case("FIN-WAIT-2 expires, TCP_LINGER2", Plain, V6, timeouts::fin_wait_2_by_linger2, &[server("active", MINI, FinWait2Expired)]),
    case("FIN-WAIT-2 expires in two halves", Plain, V4, timeouts::fin_wait_2_in_two_halves, &[server("active", MINI, FinWait2Expired)]),

    // What else can end a minisocket.
    case("RST on TIME-WAIT", Plain, V4, minisockets::reset, &[server("active", AT_ONCE, GracefulWaited).waited(Reset)]),
    case("RST on TIME-WAIT, tcp_rfc1337", Odd, V4, minisockets::reset_refused, AT_ONCE_LIFE),
    case("SYN onto TIME-WAIT", Plain, V4, minisockets::recycled, &[server("active", AT_ONCE, GracefulWaited).waited(Recycled), server("none", &[], ResetReceived)]),
    case("SYN onto TIME-WAIT, timestamps, IPv6", Plain, V6, minisockets::recycled_by_timestamp, &[server("active", AT_ONCE, GracefulWaited).waited(Recycled), server("passive", PASSIVE, Graceful)]),
    case("connect() reuses TIME-WAIT", Plain, V4, minisockets::reused, &[client("active", AT_ONCE, GracefulWaited).waited(Reused), client("none", &[], ResetReceived)]),
    case("connect() reuses TIME-WAIT, IPv6", Plain, V6, minisockets::reused, &[client("active", AT_ONCE, GracefulWaited).waited(Reused), client("none", &[], ResetReceived)]),
    case("SOCK_DESTROY on TIME-WAIT", Plain, V4, minisockets::destroyed, &[server("active", AT_ONCE, GracefulWaited).waited(DestroyedTimeWait)]),
    case("SOCK_DESTROY on FIN-WAIT-2 minisocket", Plain, V6, minisockets::destroyed_in_fin_wait_2, &[server("active", MINI, DestroyedMinisocket)]),
    case("no room for TIME-WAIT", Full, V4, minisockets::no_room, &[server("active", BRIEF, GracefulOverflow).waited(Overflow)]),
    case("no room for FIN-WAIT-2 minisocket", Full, V6, minisockets::no_room_for_fin_wait_2, &[server("active", NO_ROOM, FinWait2Overflow)]),
    case("namespace goes with TIME-WAIT", Doomed, V4, minisockets::purged, &[client("active", ELSEWHERE, GracefulElsewhere).waited(Purged)]),
];

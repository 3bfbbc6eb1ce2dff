//! Sockets that are in their phase before the agents are there.

use std::net::{Shutdown, TcpStream};
use std::sync::atomic::AtomicBool;
use std::thread::{scope, sleep};
use std::time::Duration;

use tcpclose::linux::sock_diag;
use tcpclose::names::Phase::{CloseWait, TimeWait};
use tcpclose::names::Side::Server;
use tcpclose::names::{Flow, Phase, Side};
use tcpclose::report::sockets::SocketsDocument;
use tcpclose_common::state::TcpState;

use super::common::dump_gaps::{self, Done};
use super::common::{Metrics, fence, free_port};
use super::left_out::Witness;
use super::rounds::{Round, Wrong};
use super::stage::{Bracket, By, Family, Stage, flow_of, now, orderly, seconds, state_of, until_state};
use super::starting;
use super::verdict::ENTRY;
use super::watcher::Watcher;

/// How long a connection stands before its client half-closes: the other bound of that phase's age.
const APART: Duration = Duration::from_millis(300);

/// A server's end that is in its phase, and its listener, which proves the side.
struct Older {
    family: Family,
    flow: Flow,
    port: u16,
    entered: Bracket,
    _stage: Stage<'static>,
}

/// One in CLOSE-WAIT, and both ends' descriptors.
struct Standing {
    older: Older,
    client: TcpStream,
    server: TcpStream,
    /// How long before the half-close the handshake can have been, seconds.
    width: f64,
}

/// Plays these beside new agents: for each family a server's TIME-WAIT and a server's CLOSE-WAIT.
pub fn round(families: &[Family]) -> Round<Family> {
    let starting = starting();
    let standing: Vec<Standing> = families.iter().map(|&family| stand(family)).collect();
    let waiting: Vec<Older> = families.iter().map(|&family| wait(family)).collect();
    // An age to be wrong about.
    sleep(Duration::from_secs(1));

    let mut watchers = Watcher::with_btf();
    watchers.push(Watcher::blind());
    let witness = Witness::begin(watchers.iter().map(|watcher| &watcher.agent));
    let mut wrong: Vec<Wrong<Family>> = Vec::new();
    let mut note = |agent: usize, found: Vec<(Family, String)>| {
        let named = |what| format!("{}: {what}", watchers[agent].name());
        wrong.extend(found.into_iter().map(|(play, what)| Wrong { agent, play, what: named(what) }));
    };
    // First what does not stay.
    for (agent, watcher) in watchers.iter().enumerate() {
        note(agent, ages_of_time_waits(watcher, &waiting));
    }
    let late: Vec<Family> =
        waiting.iter().filter(|older| state_of(&older.flow).is_none()).map(|older| older.family).collect();
    drop(starting);
    for (agent, watcher) in watchers.iter().enumerate() {
        note(agent, ages_of_close_waits(watcher, &standing));
    }

    let done = AtomicBool::new(false);
    scope(|threads| {
        threads.spawn(|| dump_gaps::watch(&Watcher::gaps_of(&watchers), &done));
        let _done = Done(&done);
        until_ended(&waiting);
    });
    let closed: Vec<Bracket> = standing.iter().map(close).collect();

    let ports: Vec<u16> = waiting.iter().map(|older| older.port).collect();
    let last: Vec<_> = watchers.iter().map(|watcher| watcher.once_none_is_left(&ports)).collect();
    let left_out = witness.left_out();
    for (agent, metrics) in last.iter().enumerate() {
        let waits = waiting.iter().filter_map(|older| judge_time_wait(metrics, older));
        let stood = standing.iter().zip(&closed);
        let stood = stood.filter_map(|(stood, end)| judge_close_wait(metrics, stood, *end));
        note(agent, waits.chain(stood).collect());
    }
    drop(standing);
    wrong.retain(|wrong| !late.contains(&wrong.play));
    Round { wrong, hopeless: Vec::new(), unclear: Vec::new(), late, left_out }
}

fn stage(family: Family) -> Stage<'static> {
    Stage::new(family, free_port(), true, &|_, _| {})
}

/// A TIME-WAIT of a server.
fn wait(family: Family) -> Older {
    let stage = stage(family);
    let waits = orderly(&stage, Server, By::Close, Duration::ZERO).remove(0);
    Older { family, flow: waits.flow, port: stage.port, entered: waits.steps[2], _stage: stage }
}

/// A CLOSE-WAIT of a server.
fn stand(family: Family) -> Standing {
    let stage = stage(family);
    let opening = now();
    let (client, server) = stage.connect();
    sleep(APART);
    let from = now();
    client.shutdown(Shutdown::Write).unwrap();
    let flow = flow_of(&server);
    until_state(&flow, |state| state == Some(TcpState::CloseWait));
    fence();
    let entered = Bracket { from, to: now() };
    let width = seconds(entered.to - opening);
    Standing {
        older: Older { family, flow, port: stage.port, entered, _stage: stage },
        client,
        server,
        width,
    }
}

/// The errors in the ages of TIME-WAITs that `watcher` reports, and in its gauges.
fn ages_of_time_waits(watcher: &Watcher, waiting: &[Older]) -> Vec<(Family, String)> {
    let mut wrong = Vec::new();
    let asking = now();
    let time_waits = watcher.sockets(TimeWait);
    let asked = Bracket { from: asking, to: now() };
    for older in waiting {
        let (least, most) = older.entered.until(asked);
        let age = age_of(&time_waits, older);
        // The timer tells the least age. It may have been set anew: nothing bounds the age from above.
        let is_right =
            |min| min >= least - ENTRY && (min <= most || min <= most_by_timer(&older.flow, asked.to));
        if !age.is_some_and(|(min, max)| max.is_none() && is_right(min)) {
            wrong.push((older.family, format!("TIME-WAIT is {age:?}, not {least} to {most} or more")));
        }
    }
    wrong.extend(gauges(watcher, waiting.iter(), TimeWait));
    wrong
}

/// For how long the timer of a TIME-WAIT had run at `at`, seconds: what the kernel itself says. A processor that a busy host keeps from
/// its ticks counts no jiffies, and a timer that is set then ends earlier by as much (net/ipv4/inet_timewait_sock.c,
/// __inet_twsk_schedule(), 5.10 to 7.3). One look of several falls between two such times.
fn most_by_timer(flow: &Flow, at: u64) -> f64 {
    const LENGTH: f64 = 60.0;
    /// What is left is told in jiffies, of 10 ms at most.
    const TICK: f64 = 0.01;
    let looks = (0..5).filter_map(|_| {
        sleep(Duration::from_millis(20));
        let looked = now();
        let left = sock_diag::lookup(flow, 0, None).unwrap()?.expires_ns?;
        Some(LENGTH - seconds(left) + TICK - seconds(looked - at))
    });
    looks.fold(0.0, f64::max)
}

/// The same of CLOSE-WAITs.
fn ages_of_close_waits(watcher: &Watcher, standing: &[Standing]) -> Vec<(Family, String)> {
    let mut wrong = Vec::new();
    for Standing { older, width, .. } in standing {
        let asking = now();
        let port = older.port.to_string();
        let printed = watcher.agent.stuck(&["--json", "--older-than", "0s", "--port", &port]);
        let asked = Bracket { from: asking, to: now() };
        let (least, most) = older.entered.until(asked);
        let age = age_of(&serde_json::from_slice(&printed.stdout).unwrap(), older);
        // The interval contains the true age, is not exact, and no wider than from handshake to FIN.
        let proven = age.is_some_and(|(min, max)| {
            max.is_some_and(|max| min <= most && max >= least && max > min && max - min <= width + ENTRY)
        });
        if !proven {
            wrong.push((older.family, format!("CLOSE-WAIT is {age:?}, not {least} to {most}")));
        }
    }
    wrong.extend(gauges(watcher, standing.iter().map(|standing| &standing.older), CloseWait));
    wrong
}

/// What is wrong with the gauges of sockets in `phase`, one a port.
fn gauges<'a>(
    watcher: &Watcher,
    sockets: impl Iterator<Item = &'a Older>,
    phase: Phase,
) -> Vec<(Family, String)> {
    let asking = now();
    let metrics = watcher.metrics();
    let asked = Bracket { from: asking, to: now() };
    let mut wrong = Vec::new();
    for older in sockets {
        let port = older.port.to_string();
        let labels = [("state", phase.name()), ("side", side_in(phase).name()), ("port", &*port)];
        let there = metrics.sum("tcpclose_sockets", &labels);
        let oldest = metrics.sum("tcpclose_oldest_socket_age_seconds", &labels);
        let (_, most) = older.entered.until(asked);
        let is_too_old =
            oldest > most && (phase != TimeWait || oldest > most_by_timer(&older.flow, asked.to));
        if there != 1.0 || is_too_old || (oldest == 0.0) == (phase == CloseWait) {
            wrong.push((older.family, format!("{there} in {phase:?}, the oldest {oldest}")));
        }
    }
    wrong
}

/// The side of an accepted socket that is older than the agent: a minisocket has no counters to prove one.
const fn side_in(phase: Phase) -> Side {
    match phase {
        TimeWait => Side::Unknown,
        _ => Server,
    }
}

/// The proven bounds of the age of `older` in `document`, which must know it for one of its port.
fn age_of(document: &SocketsDocument, older: &Older) -> Option<(f64, Option<f64>)> {
    let (local, peer) = (older.flow.local(), older.flow.remote());
    let socket = document.sockets.iter().find(|socket| socket.local == local && socket.peer == peer)?;
    assert_eq!((socket.side, socket.port), (side_in(socket.state), older.port));
    Some((socket.age.min_seconds, socket.age.max_seconds))
}

/// Waits until all have run out.
fn until_ended(waiting: &[Older]) {
    while waiting.iter().any(|older| state_of(&older.flow).is_some()) {
        sleep(Duration::from_millis(20));
    }
}

/// Ends the connection; when that was. The client's descriptor stays.
fn close(standing: &Standing) -> Bracket {
    let Standing { older, server, client: _client, .. } = standing;
    let from = now();
    server.shutdown(Shutdown::Write).unwrap();
    until_state(&older.flow, |state| state.is_none());
    fence();
    Bracket { from, to: now() }
}

/// Count and sum of the samples of `phase`.
fn samples(metrics: &Metrics, port: u16, phase: Phase) -> (f64, f64) {
    let port = port.to_string();
    let labels = [("state", phase.name()), ("side", side_in(phase).name()), ("port", &*port)];
    let of = |what| metrics.sum(&format!("tcpclose_state_duration_seconds_{what}"), &labels);
    (of("count"), of("sum"))
}

/// Role, side and number of the closes.
fn closes(metrics: &Metrics, port: u16) -> Vec<(String, String, f64)> {
    let port = port.to_string();
    let all = metrics.select("tcpclose_closes_total", &[]).filter(|(labels, _)| labels["port"] == port);
    all.map(|(labels, n)| (labels["role"].clone(), labels["side"].clone(), n)).collect()
}

/// What is wrong with the samples of a TIME-WAIT that has ended: its entry is not known, so that it makes none, and its close and other
/// phases were before the agent.
fn judge_time_wait(metrics: &Metrics, older: &Older) -> Option<(Family, String)> {
    let port = older.port.to_string();
    let all = metrics.sum("tcpclose_state_duration_seconds_count", &[("port", &port)]);
    let closes = closes(metrics, older.port);
    let reported = format!("{all} samples; closes are {closes:?}");
    (all != 0.0 || !closes.is_empty()).then_some((older.family, reported))
}

/// The same of a CLOSE-WAIT.
fn judge_close_wait(metrics: &Metrics, standing: &Standing, end: Bracket) -> Option<(Family, String)> {
    let Standing { older, width, .. } = standing;
    let (least, most) = older.entered.until(end);
    let (count, sum) = samples(metrics, older.port, CloseWait);
    let closes = closes(metrics, older.port);
    // A minute is long enough for the bounds' distance not to matter: the proven minimum is the sample.
    let right = count == 1.0
        && sum >= least - width - ENTRY
        && sum <= most
        && closes.contains(&("passive".to_owned(), "server".to_owned(), 1.0));
    let reported = format!("{count} CLOSE-WAITs, {sum} s, not {least}; closes are {closes:?}");
    (!right).then_some((older.family, reported))
}

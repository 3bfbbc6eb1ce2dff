//! Every way in which a connection ends, on real sockets: exactly the phases it went through are counted, on the right
//! port and side, each as long as the test's own clock says, and nothing is counted besides.
//!
//! Agents at every door of the state hook watch the same traffic. All closes run at the same time, each on a port of
//! its own, so that one minute of TIME-WAIT serves them all.

#![expect(
    clippy::unwrap_used,
    reason = "clippy's leave for tests does not reach helpers of an integration test"
)]

mod common;
#[path = "closes/stage.rs"]
mod stage;
#[path = "closes/verdict.rs"]
mod verdict;

use std::net::{Shutdown, TcpStream};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{scope, sleep};
use std::time::Duration;

use tcpclose_common::state::TcpState;
use tcpclose_userspace::query::document::Document;
use tcpclose_userspace::terms::Outcome::{Aborted, Graceful, ResetReceived, Unknown};
use tcpclose_userspace::terms::Phase::{self, CloseWait, Closing, FinWait1, FinWait2, LastAck, TimeWait};
use tcpclose_userspace::terms::Role::{Active, None as NoFin, Passive, Simultaneous};
use tcpclose_userspace::terms::Side::{self, Client, Server};
use tcpclose_userspace::terms::{Flow, Outcome, Role};

use common::{can_attach, free_port};
use stage::{
    Bracket, By, Family, Look, Stage, Timeline, fence, flow_of, now, seconds, state_of, until_state,
};
use verdict::{ENTRY, End, Run, Watcher, judge_standing, judge_totals};

const AT_ONCE: Duration = Duration::ZERO;
const HALF: Duration = Duration::from_millis(500);
const FIVE: Duration = Duration::from_secs(5);
/// Several dumps long, so that the phase cannot come and go between two.
const LONG: Duration = Duration::from_secs(6);

/// TCP_TIMEWAIT_LEN, and how late its timer can be at CONFIG_HZ=100, the worst (2.05 s at 250, 4.1 s at 1000).
const LENGTH: f64 = 60.0;
const LATENESS: f64 = 5.1;

/// A way to close.
struct Case {
    name: &'static str,
    listens: bool,
    play: fn(Stage<'_>) -> Vec<Timeline>,
    /// In the order of the timelines.
    ends: &'static [End],
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

/// What is played, and what each end is to be counted as.
const CASES: &[Case] = &[
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

#[test]
fn every_close_is_counted_as_it_was() {
    if !can_attach() {
        return;
    }
    let wrong: Mutex<Vec<String>> = Mutex::default();
    let mut watchers = Watcher::with_btf();
    // These prove sides by the sockets themselves: their dumps have not seen the listeners that come now. The last one
    // knows sides by its first dump alone.
    let ports: Vec<u16> = CASES.iter().flat_map(|_| Family::ALL).map(|_| free_port()).collect();
    let looking = Mutex::new(&[][..]);
    let look: Look<'_> = &|port, standing| {
        let watchers: &[Watcher] = *looking.lock().unwrap();
        let found = watchers.iter().flat_map(|watcher| judge_standing(watcher, port, standing));
        wrong.lock().unwrap().extend(found);
    };
    let stages: Vec<(&Case, Stage<'_>)> = CASES
        .iter()
        .flat_map(|case| Family::ALL.map(|family| (case, family)))
        .zip(&ports)
        .map(|((case, family), &port)| (case, Stage::new(family, port, case.listens, look)))
        .collect();
    watchers.push(Watcher::blind());
    let before: Vec<_> = watchers.iter().map(Watcher::metrics).collect();

    let done = AtomicBool::new(false);
    let runs = scope(|threads| {
        threads.spawn(|| note_gaps(&watchers, &done));
        let _done = Done(&done);
        *looking.lock().unwrap() = &watchers;
        let playing: Vec<_> = stages
            .into_iter()
            .map(|(case, stage)| {
                threads.spawn(|| {
                    let (name, port) = (format!("{}, {:?}", case.name, stage.family), stage.port);
                    Run { name, port, ends: case.ends, timelines: (case.play)(stage) }
                })
            })
            .collect();
        let mut runs: Vec<Run> = playing.into_iter().map(|thread| thread.join().unwrap()).collect();
        for watcher in &watchers {
            wrong.lock().unwrap().extend(time_wait_ages(watcher, &runs));
        }
        watch_the_ends(&mut runs, &wrong);
        runs
    });

    for (watcher, before) in watchers.iter().zip(&before) {
        let after = watcher.once_none_is_left(&ports);
        let mut wrong = wrong.lock().unwrap();
        wrong.extend(runs.iter().flat_map(|run| run.judge(watcher, &after)));
        wrong.extend(judge_totals(watcher, &runs, before, &after));
        println!("{}: {} closes, dumps {:.3} s apart", watcher.name(), runs.len(), watcher.gap());
    }
    let wrong = wrong.into_inner().unwrap();
    assert!(wrong.is_empty(), "{} are wrong:\n{}", wrong.len(), wrong.join("\n"));
}

/// Ends the thread that notes gaps, also when a test fails before it is done.
struct Done<'a>(&'a AtomicBool);

impl Drop for Done<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Notes how far apart dumps are, until `done`.
fn note_gaps(watchers: &[Watcher], done: &AtomicBool) {
    const PAUSE: Duration = Duration::from_millis(250);
    while !done.load(Ordering::Relaxed) {
        let before = now();
        sleep(PAUSE);
        // As late as this thread woke up, an agent may wake up too.
        let late = seconds(now() - before) - PAUSE.as_secs_f64();
        for watcher in watchers {
            watcher.note_gap(&watcher.metrics(), late);
        }
    }
}

/// Asks for every TIME-WAIT's age, once a dump has seen all of them.
fn time_wait_ages(watcher: &Watcher, runs: &[Run]) -> Vec<String> {
    let until = now() + 20_000_000_000;
    loop {
        let from = now();
        let document = watcher.sockets(TimeWait);
        let asked = Bracket { from, to: now() };
        let wrong: Vec<String> =
            runs.iter().flat_map(|run| run.judge_ages(watcher, &document, asked)).collect();
        if wrong.is_empty() || now() > until {
            return wrong;
        }
        sleep(Duration::from_millis(100));
    }
}

/// Watches every TIME-WAIT until it is gone, and adds that to its timeline.
fn watch_the_ends(runs: &mut [Run], wrong: &Mutex<Vec<String>>) {
    let mut waiting: Vec<(&str, &mut Timeline, Bracket)> = Vec::new();
    for run in runs {
        for (end, timeline) in run.ends.iter().zip(&mut run.timelines) {
            if end.waits() {
                let entered = timeline.steps[end.phases.len() - 1];
                waiting.push((&run.name, timeline, entered));
            }
        }
    }
    let until = now() + 100_000_000_000;
    let mut looked: Vec<u64> = waiting.iter().map(|(.., entered)| entered.from).collect();
    while !waiting.is_empty() {
        assert!(now() < until, "{} TIME-WAITs stay", waiting.len());
        sleep(Duration::from_millis(20));
        let before = now();
        // What is there after this, no timer had begun to end before.
        fence();
        let mut i = 0;
        while i < waiting.len() {
            let (name, timeline, entered) = &mut waiting[i];
            if state_of(&timeline.flow).is_some() {
                looked[i] = before;
                i += 1;
                continue;
            }
            let gone = Bracket { from: looked[i], to: now() };
            timeline.steps.push(gone);
            let (least, most) = entered.until(gone);
            if most < LENGTH - ENTRY || least > LENGTH + LATENESS {
                wrong.lock().unwrap().push(format!("{name}: TIME-WAIT lasted {least} to {most} s"));
            }
            waiting.swap_remove(i);
            looked.swap_remove(i);
        }
    }
}

/// A server's end that is in its phase before the agents are there.
struct Older {
    port: u16,
    flow: Flow,
    entered: Bracket,
}

#[test]
fn what_was_there_before_the_agent_has_its_true_age() {
    if !can_attach() {
        return;
    }
    let look: Look<'_> = &|_, _| {};
    let stage = |family| Stage::new(family, free_port(), true, look);
    let mut wrong: Vec<String> = Vec::new();

    // TIME-WAITs of servers, one a family; the listeners stay, and prove the side.
    let waiting: Vec<(Stage<'_>, Older)> = Family::ALL
        .into_iter()
        .map(|family| {
            let stage = stage(family);
            let waits = stage::orderly(&stage, Server, By::Close, AT_ONCE).remove(0);
            let older = Older { port: stage.port, flow: waits.flow, entered: waits.steps[2] };
            (stage, older)
        })
        .collect();
    // CLOSE-WAITs of servers: the client half-closes a while after the handshake, which is the other bound.
    let apart = Duration::from_millis(300);
    // The last: how long before the half-close that can have been.
    let mut standing: Vec<(Stage<'_>, Older, TcpStream, TcpStream, f64)> = Vec::new();
    for family in Family::ALL {
        let stage = stage(family);
        let opening = now();
        let (client, server) = stage.connect();
        sleep(apart);
        let from = now();
        client.shutdown(Shutdown::Write).unwrap();
        let flow = flow_of(&server);
        until_state(&flow, |state| state == Some(TcpState::CloseWait));
        fence();
        let entered = Bracket { from, to: now() };
        let older = Older { port: stage.port, flow, entered };
        standing.push((stage, older, client, server, seconds(entered.to - opening)));
    }
    // An age to be wrong about.
    sleep(Duration::from_secs(1));

    let mut watchers = Watcher::with_btf();
    watchers.push(Watcher::blind());
    for watcher in &watchers {
        let asking = now();
        let time_waits = watcher.sockets(TimeWait);
        let asked = Bracket { from: asking, to: now() };
        for (_, older) in &waiting {
            let (least, most) = older.entered.until(asked);
            let exact = age_of(&time_waits, older);
            if !exact
                .is_some_and(|(min, max)| max == Some(min) && min >= least - ENTRY && min <= most + ENTRY)
            {
                wrong.push(format!("{}: TIME-WAIT is {exact:?}, not {least} to {most}", watcher.name()));
            }
        }
        for (_, older, _, _, width) in &standing {
            let asking = now();
            let port = older.port.to_string();
            let said = watcher.agent.stuck(&["--json", "--older-than", "0s", "--port", &port]);
            let asked = Bracket { from: asking, to: now() };
            let (least, most) = older.entered.until(asked);
            let age = age_of(&serde_json::from_slice(&said.stdout).unwrap(), older);
            // The interval contains the true age, is not exact, and no wider than from handshake to FIN.
            let proven = age.is_some_and(|(min, max)| {
                max.is_some_and(|max| min <= most && max >= least && max > min && max - min <= width + ENTRY)
            });
            if !proven {
                wrong.push(format!("{}: CLOSE-WAIT is {age:?}, not {least} to {most}", watcher.name()));
            }
        }
        let asking = now();
        let metrics = watcher.metrics();
        let asked = Bracket { from: asking, to: now() };
        let older = waiting.iter().map(|(_, older)| (TimeWait, older));
        for (phase, older) in older.chain(standing.iter().map(|(_, older, ..)| (CloseWait, older))) {
            let port = older.port.to_string();
            let labels = [("state", phase.name()), ("side", "server"), ("port", &*port)];
            let there = metrics.sum("tcpclose_sockets", &labels);
            let oldest = metrics.sum("tcpclose_oldest_socket_age_seconds", &labels);
            let (_, most) = older.entered.until(asked);
            if there != 1.0 || oldest > most || (oldest == 0.0) == (phase == CloseWait) {
                wrong.push(format!("{}: {there} in {phase:?}, the oldest {oldest}", watcher.name()));
            }
        }
    }

    // The TIME-WAITs run out, watched by the agents and by the test.
    let done = AtomicBool::new(false);
    let mut ended: Vec<Bracket> = Vec::new();
    scope(|threads| {
        threads.spawn(|| note_gaps(&watchers, &done));
        let _done = Done(&done);
        let mut seen: Vec<Bracket> =
            waiting.iter().map(|(_, older)| Bracket { from: older.entered.from, to: 0 }).collect();
        while seen.iter().any(|end| end.to == 0) {
            sleep(Duration::from_millis(20));
            let before = now();
            fence();
            for (end, (_, older)) in seen.iter_mut().zip(&waiting).filter(|(end, _)| end.to == 0) {
                match state_of(&older.flow) {
                    Some(_) => end.from = before,
                    None => end.to = now(),
                }
            }
        }
        ended = seen;
    });
    let mut closed: Vec<Bracket> = Vec::new();
    for (_, older, _client, server, _) in &standing {
        let from = now();
        server.shutdown(Shutdown::Write).unwrap();
        until_state(&older.flow, |state| state.is_none());
        fence();
        closed.push(Bracket { from, to: now() });
    }

    for watcher in &watchers {
        let ports: Vec<u16> = waiting.iter().map(|(_, older)| older.port).collect();
        let metrics = watcher.once_none_is_left(&ports);
        let sample = |port: u16, phase: Phase| {
            let port = port.to_string();
            let labels = [("state", phase.name()), ("side", "server"), ("port", &*port)];
            let of = |what| metrics.sum(&format!("tcpclose_state_duration_seconds_{what}"), &labels);
            (of("count"), of("sum"))
        };
        let closes = |port: u16| {
            let port = port.to_string();
            let all =
                metrics.select("tcpclose_closes_total", &[]).filter(|(labels, _)| labels["port"] == port);
            all.map(|(labels, n)| (labels["role"].clone(), labels["side"].clone(), n)).collect::<Vec<_>>()
        };
        for ((_, older), end) in waiting.iter().zip(&ended) {
            let (least, most) = older.entered.until(*end);
            let (count, sum) = sample(older.port, TimeWait);
            if count != 1.0 || sum < least - ENTRY - watcher.gap() || sum > most + ENTRY {
                wrong.push(format!("{}: {count} TIME-WAITs, {sum} s, not {least}", watcher.name()));
            }
            // Its other phases, and its close, were before the agent.
            let port = older.port.to_string();
            let samples = metrics.sum("tcpclose_state_duration_seconds_count", &[("port", &port)]);
            if samples != 1.0 || !closes(older.port).is_empty() {
                wrong.push(format!("{}: {samples} samples, closes {:?}", watcher.name(), closes(older.port)));
            }
        }
        for ((_, older, _, _, width), end) in standing.iter().zip(&closed) {
            let (least, most) = older.entered.until(*end);
            let (count, sum) = sample(older.port, CloseWait);
            // A minute is long enough for the bounds' distance not to matter: the proven minimum is the sample.
            if count != 1.0 || sum < least - width - ENTRY || sum > most {
                wrong.push(format!("{}: {count} CLOSE-WAITs, {sum} s, not {least}", watcher.name()));
            }
            let closes = closes(older.port);
            if !closes.contains(&("passive".to_owned(), "server".to_owned(), 1.0)) {
                wrong.push(format!("{}: closes are {closes:?}", watcher.name()));
            }
        }
    }
    assert!(wrong.is_empty(), "{} are wrong:\n{}", wrong.len(), wrong.join("\n"));
}

/// The proven bounds of the age of `older` in `document`, which must know it for a server's of its port.
fn age_of(document: &Document, older: &Older) -> Option<(f64, Option<f64>)> {
    let (local, peer) = (older.flow.local(), older.flow.remote());
    let socket = document.sockets.iter().find(|socket| socket.local == local && socket.peer == peer)?;
    assert_eq!((socket.side, socket.port), (Server, older.port));
    Some((socket.age.min_seconds, socket.age.max_seconds))
}

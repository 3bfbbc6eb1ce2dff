//! All cases at once, and agents on every backend beside them.
//!
//! The `diag` backends see minisockets of their own network namespace only, so each namespace has agents of its own on
//! these; the hooks see every namespace, and have agents in one. All listeners are there before the agents, so that
//! each backend knows from its first dump who is a server.

use std::any::Any;
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::Command;
use std::sync::atomic::AtomicBool;
use std::thread::{self, sleep};
use std::time::{Duration, Instant};

use super::backends::Backend;
use super::common::dump_gaps::{self, Done, DumpGaps};
use super::common::{self, Agent, BINARY, Metrics};
use super::left_out::Witness;
use super::minisockets;
use super::place::{Netns, hide_btf, set_sysctl};
use super::report;
use super::rounds::{Round, until_reported};
use super::scene::{Family, Moment, Scene, now_ns};
use super::table::{CASES, Case, Place};
use super::verdict::{Dumps, Played, ends};

/// Ports of the cases: outside the local port range, and away from what other tests use.
const FIRST_PORT: u16 = 11_000;

/// TIME-WAIT, its coarse timer, and the dump that finds it gone.
const LAST_WAIT: Duration = Duration::from_secs(90);

/// Whatever an agent's dumps cost, nobody waits longer.
const MOST_WAIT: Duration = Duration::from_secs(240);

/// A namespace that nobody is in any more is taken down in the background (net/core/net_namespace.c, cleanup_net).
const PURGE_NS: u64 = 10_000_000_000;

/// An agent that watches.
pub struct Watcher {
    pub backend: Backend,
    pub place: Place,
    pub agent: Agent,
    /// What it had counted before the first case.
    before: Metrics,
    gaps: DumpGaps,
}

impl Watcher {
    /// Whether it can tell how a case at `place` went.
    pub fn sees(&self, place: Place) -> bool {
        self.backend.hooks() || self.place == place || (self.place == Place::Plain && place == Place::Doomed)
    }

    /// How its dumps went until now.
    pub fn dumps(&self) -> Dumps {
        Dumps { apart: self.gaps.apart(), took: self.gaps.took() }
    }

    /// How much a counter has grown since the first case.
    pub fn grown(&self, metrics: &Metrics, name: &str, labels: &[(&str, &str)]) -> f64 {
        metrics.sum(name, labels) - self.before.sum(name, labels)
    }
}

/// Plays every case, and fails when an agent told something else than the table.
/// What [`common::is_lacking`] calls SOCK_DESTROY on minisockets: tcp_abort() refuses it below 6.1.
const DESTROY_MINISOCKETS: &str = "destroy_minisockets";

pub fn play() {
    let mut numbers: Vec<usize> = (0..CASES.len()).collect();
    if common::is_lacking(DESTROY_MINISOCKETS) {
        let netns = Netns::new(&[]).unwrap();
        inside(&netns, || minisockets::destroy_refused(&mut Scene::set(1, FIRST_PORT, Family::V4, true)));
        numbers.retain(|&number| !CASES[number].destroys_a_minisocket());
        println!("not on this kernel: SOCK_DESTROY on minisockets");
    }
    until_reported(numbers, round);
}

/// Plays these cases of the table, by their places there.
fn round(numbers: &[usize]) -> Round<usize> {
    let places = make_places();
    let mut scenes = set_scenes(&places, numbers);
    let mut watchers = start_agents(&places);
    let full = &places[&Place::Full];
    inside(full, || set_sysctl("tcp_max_tw_buckets", "0").unwrap());
    settle(&mut watchers);
    let witness = Witness::begin(watchers.iter().map(|watcher| &watcher.agent));

    let over = AtomicBool::new(false);
    let watchers = &watchers;
    let played: Vec<Played> = thread::scope(|scope| {
        let agents: Vec<_> = watchers.iter().map(|watcher| (&watcher.agent, &watcher.gaps)).collect();
        let over = &over;
        scope.spawn(move || dump_gaps::watch(&agents, over));
        let _over = Done(over);
        let playing: Vec<_> = numbers
            .iter()
            .zip(&mut scenes)
            .map(|(&number, scene)| {
                let (places, case) = (&places, &CASES[number]);
                let run = move || Played {
                    number,
                    case,
                    port: port(number),
                    lives: match scene {
                        Some(scene) => play_in(&places[&case.place], case, scene),
                        None => play_doomed(&places[&Place::Plain], case, number),
                    },
                };
                thread::Builder::new().name(case.name.to_owned()).spawn_scoped(scope, run).unwrap()
            })
            .collect();
        let played: Vec<Played> = playing.into_iter().map(|playing| playing.join().unwrap()).collect();
        let done = Instant::now();
        loop {
            sleep(Duration::from_secs(1));
            if left(watchers) == 0.0 || done.elapsed() >= last_wait(watchers) {
                break;
            }
        }
        played
    });
    report::judge(watchers, &played, witness.left_out())
}

fn port(number: usize) -> u16 {
    FIRST_PORT + number as u16
}

fn make_places() -> BTreeMap<Place, Netns> {
    let sysctls: [(Place, &[(&str, &str)]); 3] = [
        (Place::Plain, &[("tcp_tw_reuse", "1")]),
        (Place::Odd, &[("tcp_orphan_retries", "3"), ("tcp_fin_timeout", "5"), ("tcp_rfc1337", "1")]),
        // Full once the agents have measured TIME-WAIT in it.
        (Place::Full, &[]),
    ];
    sysctls.into_iter().map(|(place, sysctls)| (place, Netns::new(sysctls).unwrap())).collect()
}

/// Runs `what` in `netns`, on a thread of its own.
fn inside<T: Send>(netns: &Netns, what: impl FnOnce() -> T + Send) -> T {
    let run = || {
        netns.enter().unwrap();
        what()
    };
    let done = thread::scope(|scope| scope.spawn(run).join());
    done.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// One scene a case; none for a case whose namespace is to go.
fn set_scenes(places: &BTreeMap<Place, Netns>, numbers: &[usize]) -> Vec<Option<Scene>> {
    let set = |&number: &usize| {
        let case = &CASES[number];
        let netns = places.get(&case.place)?;
        Some(inside(netns, || set_scene(case, number)))
    };
    numbers.iter().map(set).collect()
}

fn set_scene(case: &Case, number: usize) -> Scene {
    let at = u16::try_from(number + 1).expect("an address a case");
    Scene::set(at, port(number), case.family, case.listens())
}

fn play_in(netns: &Netns, case: &Case, scene: &mut Scene) -> Result<Vec<Vec<super::scene::Stayed>>, String> {
    netns.enter().map_err(|why| why.to_string())?;
    catch_unwind(AssertUnwindSafe(|| {
        (case.script)(scene);
        let did: Vec<Vec<_>> =
            scene.lives.iter().map(|stays| stays.iter().map(|stayed| stayed.stay).collect()).collect();
        let table: Vec<Vec<_>> = case.lives.iter().map(|life| life.stays.to_vec()).collect();
        assert_eq!(did, table, "the script and the table");
        scene.lives.clone()
    }))
    .map_err(|panic| printed(&*panic))
}

/// Plays a case in a namespace that has gone when this returns, or soon after. `home` is where to go from there.
fn play_doomed(home: &Netns, case: &Case, number: usize) -> Result<Vec<Vec<super::scene::Stayed>>, String> {
    let netns = Netns::enter_new().map_err(|why| why.to_string())?;
    let mut scene = set_scene(case, number);
    let mut lives = play_in(&netns, case, &mut scene)?;
    let before_ns = now_ns();
    home.enter().map_err(|why| why.to_string())?;
    drop((scene, netns));
    for stayed in lives.iter_mut().filter_map(|stays| stays.last_mut()) {
        stayed.left.get_or_insert(Moment { before_ns, after_ns: before_ns + PURGE_NS });
    }
    Ok(lives)
}

/// What a panic said.
fn printed(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref::<&str>().copied());
    text.unwrap_or("a panic").to_owned()
}

/// Agents on every backend that this kernel has. One that it has not is named, once, and why.
fn start_agents(places: &BTreeMap<Place, Netns>) -> Vec<Watcher> {
    let mut watchers = Vec::new();
    let only = std::env::var("TCPCLOSE_BACKENDS").ok();
    let asked = |backend: &Backend| {
        only.as_ref().is_none_or(|only| only.split(',').any(|one| one == backend.to_string()))
    };
    for backend in Backend::ALL.into_iter().filter(asked) {
        for (&place, netns) in places {
            if backend.hooks() && place != Place::Plain {
                continue;
            }
            match inside(netns, || start(backend)) {
                Ok(agent) => {
                    assert!(!is_lacking(backend), "{backend} starts, though this kernel is said to lack it");
                    let before = agent.metrics();
                    watchers.push(Watcher { backend, place, agent, before, gaps: DumpGaps::elsewhere() });
                }
                Err(why) if is_lacking(backend) => {
                    println!("not on this kernel: {backend}: {}", why.trim());
                    break;
                }
                Err(why) => {
                    assert!(may_lack(backend), "{backend} does not start: {why}");
                    eprintln!("\nSKIPPED: {backend}: {}\n", why.trim());
                    break;
                }
            }
        }
    }
    watchers
}

/// Whether a kernel may be without `backend`. `TCPCLOSE_NO_SKIP` says that this one is not.
fn may_lack(backend: Backend) -> bool {
    let has_btf = std::fs::exists("/sys/kernel/btf/vmlinux").unwrap_or(false);
    let optional = backend.hooks() || (backend.state_hook() == "btf" && !has_btf);
    optional && std::env::var_os("TCPCLOSE_NO_SKIP").is_none()
}

/// Whether this kernel is known to refuse the state hook of `backend`, or its time-wait backend.
fn is_lacking(backend: Backend) -> bool {
    [backend.state_hook(), backend.time_wait()].into_iter().any(common::is_lacking)
}

fn start(backend: Backend) -> Result<Agent, String> {
    if backend == Backend::BlindDiag {
        hide_btf().map_err(|why| format!("BTF cannot be hidden: {why}"))?;
    }
    let arguments = [
        ["--state-hook", backend.state_hook()],
        ["--time-wait", backend.time_wait()],
        ["--max-ports", "1000"],
        ["--dump-interval", "250ms"],
        // Each place has its own agents; what none may look at is a case of its own.
        ["--netns", "current"],
    ];
    let agent = Agent::try_start_by(Command::new(BINARY), &arguments.concat())?;
    let metrics = agent.metrics();
    for (hook, name) in [("state", backend.state_hook()), ("time_wait", backend.time_wait())] {
        if metrics.sum("tcpclose_hook_info", &[("hook", hook), ("backend", name)]) != 1.0 {
            return Err(format!("the agent is on another backend than {hook} {name}"));
        }
    }
    Ok(agent)
}

/// Waits until the agents have done with what they did to each other: each closes a connection of its own when it
/// starts, to measure TIME-WAIT. What they have counted then is no case's.
fn settle(watchers: &mut [Watcher]) {
    loop {
        sleep(Duration::from_secs(2));
        let mut quiet = true;
        for watcher in &mut *watchers {
            let now = watcher.agent.metrics();
            quiet &= watcher.grown(&now, "tcpclose_time_wait_ended_total", &[]) == 0.0;
            watcher.before = now;
        }
        if quiet {
            return;
        }
    }
}

/// How many sockets of cases are left, by all agents.
fn left(watchers: &[Watcher]) -> f64 {
    let mut left = 0.0;
    for watcher in watchers {
        let metrics = watcher.agent.metrics();
        for (number, case) in CASES.iter().enumerate() {
            if watcher.sees(case.place) {
                left += metrics.sum("tcpclose_sockets", &[("port", &port(number).to_string())]);
            }
        }
    }
    left
}

/// How long the last TIME-WAIT may take to be told of: an agent whose dumps are far apart, and says so, may be late.
fn last_wait(watchers: &[Watcher]) -> Duration {
    let apart = watchers.iter().map(|watcher| watcher.gaps.apart()).fold(0.0, f64::max);
    (LAST_WAIT + Duration::from_secs_f64(2.0 * apart)).min(MOST_WAIT)
}

/// How many TIME-WAITs of the cases that `watcher` sees ended how.
pub fn expected_ends(watcher: &Watcher, played: &[Played]) -> BTreeMap<&'static str, f64> {
    let seen = played.iter().filter(|played| {
        // Another namespace's are nothing that a dump could end.
        watcher.sees(played.case.place) && (watcher.backend.hooks() || played.case.place != Place::Doomed)
    });
    ends(seen, watcher.backend)
}

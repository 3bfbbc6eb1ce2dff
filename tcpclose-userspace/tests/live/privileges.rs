//! Least privilege: the agent as a user of its own with the capabilities of its unit has every feature, keeps what it goes on to
//! need and no more, and says what it lacks without each.

use crate::common;
use crate::kill::stage;
use crate::namespaces::named;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use common::nobody::Nobody;
use common::reader::Reader;
use common::{Agent, free_port, listen};
use named::{Named, Service};
use serde_json::Value;
use stage::{PATIENCE, Pair, grow_old, kill, refusal, text, through};

/// A user and group of nobody's.
const USER: u32 = 64_123;

/// Those of the unit, and the one more that `--allow-kill` takes: by setpriv's names and their numbers.
const CAPABILITIES: [(&str, u8); 6] = [
    ("dac_read_search", 2),
    ("net_admin", 12),
    ("sys_ptrace", 19),
    ("sys_admin", 21),
    ("perfmon", 38),
    ("bpf", 39),
];

fn bits(names: &[&str]) -> u64 {
    let chosen = CAPABILITIES.iter().filter(|(name, _)| names.contains(name));
    chosen.map(|(_, bit)| 1 << bit).sum()
}

/// All of them but `without`.
fn all_but(without: &[&str]) -> Vec<&'static str> {
    CAPABILITIES.iter().map(|(name, _)| *name).filter(|name| !without.contains(name)).collect()
}

/// The program as [`USER`] with these capabilities and no others, as a unit's User= and AmbientCapabilities= start it.
fn as_own_user(user: &Nobody, capabilities: &[&str]) -> Command {
    in_group(None, user, capabilities)
}

/// The same with a supplementary group, as SupplementaryGroups= adds it.
fn in_group(group: Option<u32>, user: &Nobody, capabilities: &[&str]) -> Command {
    let sets: String = capabilities.iter().map(|name| format!(",+{name}")).collect();
    let mut command = Command::new("setpriv");
    command.args([
        &format!("--reuid={USER}"),
        &format!("--regid={USER}"),
        &group.map_or("--clear-groups".to_owned(), |group| format!("--groups={group}")),
        &"--no-new-privs".to_owned(),
    ]);
    for set in ["inh-caps", "ambient-caps", "bounding-set"] {
        command.arg(format!("--{set}=-all{sets}"));
    }
    command.arg(user.folder().join("tcpclose"));
    command
}

fn start(user: &Nobody, capabilities: &[&str], arguments: &[&str]) -> Agent {
    let agent = Agent::try_start_as(USER, as_own_user(user, capabilities), arguments);
    agent.unwrap_or_else(|printed| panic!("with {capabilities:?}: {printed}"))
}

/// What it says when it is ready, up to its addresses.
fn summary(agent: &Agent) -> String {
    agent.address();
    agent.printed()
}

/// The lines of each thread's status: that of the first one first.
fn threads(agent: &Agent) -> Vec<BTreeMap<String, String>> {
    let status = |tid: &str| {
        // A thread of the pool may have ended.
        let text = fs::read_to_string(format!("/proc/{}/task/{tid}/status", agent.pid())).ok()?;
        let lines = text.lines().filter_map(|line| line.split_once(":\t"));
        Some(lines.map(|(key, value)| (key.to_owned(), value.to_owned())).collect())
    };
    let first = agent.pid().to_string();
    let others = fs::read_dir(format!("/proc/{first}/task")).unwrap();
    let others = others.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let others = others.filter(|tid| *tid != first);
    let all: Vec<String> = std::iter::once(first.clone()).chain(others).collect();
    all.iter().filter_map(|tid| status(tid)).collect()
}

fn set(status: &BTreeMap<String, String>, name: &str) -> u64 {
    u64::from_str_radix(&status[name], 16).unwrap()
}

/// The agent's first thread holds `held` and uses `used`; the others hold no more than `used`; whatever was executed would get
/// nothing.
fn assert_holds(agent: &Agent, held: &[&str], used: &[&str]) {
    let threads = threads(agent);
    assert_eq!(
        (set(&threads[0], "CapPrm"), set(&threads[0], "CapEff")),
        (bits(held), bits(used)),
        "{held:?}"
    );
    // One that is just beginning has given nothing up yet, and one that carried an order out may be just ending.
    let until = Instant::now() + PATIENCE;
    let more = |thread: &BTreeMap<String, String>| set(thread, "CapPrm") & !bits(used) != 0;
    while let Some(thread) = self::threads(agent)[1..].iter().find(|thread| more(thread)) {
        assert!(Instant::now() < until, "{thread:?}");
        sleep(Duration::from_millis(10));
    }
    for thread in &threads {
        assert_eq!((set(thread, "CapInh"), set(thread, "CapAmb"), &*thread["NoNewPrivs"]), (0, 0, "1"));
    }
}

/// Sockets to be seen: in CLOSE-WAIT since before any agent, here and in another network namespace.
struct Scene {
    netns: Named,
    there: Service,
    here: Pair,
    listener: std::net::TcpListener,
    port: u16,
}

impl Scene {
    fn new(what: &str) -> Self {
        let netns = Named::new(what);
        let (listener, port) = listen();
        let mut there = Service::listen(&netns, port);
        there.close(&netns, 1, 0);
        let here = Pair::new(&listener, port, b"");
        grow_old();
        Self { netns, there, here, listener, port }
    }

    fn stuck(&self, agent: &Agent) -> Seen {
        let output = agent.stuck(&["--json", "--older-than", "1ms", "--port", &self.port.to_string()]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let document: Value = serde_json::from_slice(&output.stdout).unwrap();
        let of = |inum: u64, is: bool| {
            let sockets = document["sockets"].as_array().unwrap().iter();
            sockets.filter(|socket| (socket["netns"] == inum) == is).cloned().collect::<Vec<Value>>()
        };
        let incomplete = document["incomplete"].as_array().unwrap().iter();
        let incomplete: Vec<&str> = incomplete.map(|remark| remark.as_str().unwrap()).collect();
        Seen {
            here: of(self.netns.inum, false),
            there: of(self.netns.inum, true),
            incomplete: incomplete.join("\n"),
        }
    }

    /// A step that the agent must tell by its events: one more CLOSE-WAIT in our namespace.
    fn assert_events_are_reported(&mut self, agent: &Agent) {
        let mut watch = Reader::json(agent, &["--port", &self.port.to_string()]);
        let before = agent.metrics().sum("tcpclose_events_received_total", &[]);
        drop(Pair::new(&self.listener, self.port, b""));
        let step = watch.step_when(PATIENCE, "a step", |_| true);
        assert_eq!((&step["port"], &step["from"]), (&self.port.into(), &"established".into()), "{step}");
        assert!(agent.metrics().sum("tcpclose_events_received_total", &[]) > before);
    }
}

struct Seen {
    here: Vec<Value>,
    there: Vec<Value>,
    incomplete: String,
}

impl Seen {
    /// What it says that it lacks a capability for. Other tests' namespaces may come and go.
    fn lacking(&self) -> Vec<&str> {
        self.incomplete.lines().filter(|remark| remark.contains("CAP_")).collect()
    }

    /// The socket of our namespace with its owner, this test, of whom nothing is missing but what `exe` says.
    fn assert_owner(&self, exe: bool) {
        let owners = self.here[0]["owners"].as_array().unwrap();
        assert_eq!(owners[0]["pid"], std::process::id(), "{owners:?}");
        assert!(owners[0]["comm"].is_string() && owners[0]["fd"].is_u64());
        assert_eq!(owners[0]["exe"].is_string(), exe, "{owners:?}");
    }
}

#[test]
#[ignore = "needs root"]
fn an_own_user_with_six_capabilities_has_every_feature_and_keeps_four() {
    let user = Nobody::new();
    for owners in ["task_file", "proc"] {
        let mut scene = Scene::new(owners);
        // Held by a descriptor of root's alone.
        let held = Named::new(&format!("held-{owners}"));
        let held_port = free_port();
        let mut service = Service::listen(&held, held_port);
        service.close(&held, 1, 0);
        let _descriptor = File::open(held.file()).unwrap();
        held.delete();
        let agent =
            start(&user, &all_but(&[]), &["--owners", owners, "--allow-kill", "--dump-interval", "50ms"]);
        let metrics = agent.metrics();
        assert_eq!(metrics.sum("tcpclose_hook_info", &[("hook", "state"), ("backend", "btf")]), 1.0);
        assert_eq!(metrics.sum("tcpclose_hook_info", &[("hook", "owners"), ("backend", owners)]), 1.0);
        let working = ["dac_read_search", "sys_ptrace", "sys_admin"];
        assert_holds(&agent, &[&working[..], &["net_admin"]].concat(), &working);
        let printed = summary(&agent);
        assert!(
            printed.contains(&format!(
                "user        {USER}; capabilities kept: CAP_DAC_READ_SEARCH, CAP_NET_ADMIN, CAP_SYS_PTRACE, CAP_SYS_ADMIN\n"
            )),
            "{printed}"
        );
        assert!(!printed.contains("without CAP"), "{printed}");

        let seen = scene.stuck(&agent);
        assert_eq!((seen.here.len(), seen.there.len(), seen.lacking()), (1, 1, vec![]));
        assert_eq!(seen.there[0]["netns_name"], scene.netns.name);
        seen.assert_owner(true);
        assert_eq!(seen.there[0]["owners"][0]["pid"], std::process::id());
        let held_sockets = agent.stuck(&["--json", "--older-than", "1ms", "--port", &held_port.to_string()]);
        let held_sockets: Value = serde_json::from_slice(&held_sockets.stdout).unwrap();
        assert_eq!(held_sockets["sockets"][0]["netns"], held.inum, "{held_sockets}");
        scene.assert_events_are_reported(&agent);

        let printed = text(&through(&agent, scene.port, &["--yes"]));
        assert!(printed.contains("destroyed 2 of 2"), "{printed}");
        scene.here.assert_destroyed();
        assert!(scene.there.half_closed[0].take_error().unwrap().is_some());
        assert_holds(&agent, &[&working[..], &["net_admin"]].concat(), &working);
    }
}

#[test]
#[ignore = "needs root"]
fn a_socket_for_a_group_of_its_users_takes_no_capability() {
    const GROUP: u32 = 64_301;
    let user = Nobody::new();
    let command = in_group(Some(GROUP), &user, &["bpf", "perfmon"]);
    let arguments = ["--socket-mode", "0660", "--socket-group", &GROUP.to_string()];
    let agent = Agent::try_start_as(USER, command, &arguments).unwrap();
    let file = fs::metadata(agent.socket()).unwrap();
    assert_eq!((file.mode() & 0o7777, file.uid(), file.gid()), (0o660, USER, GROUP));
    assert_holds(&agent, &[], &[]);
}

#[test]
#[ignore = "needs root"]
fn the_classic_tracepoint_is_read_and_mounted_by_an_own_user() {
    let user = Nobody::new();
    let mut scene = Scene::new("classic");
    let agent = start(&user, &all_but(&["net_admin"]), &["--state-hook", "tracepoint"]);
    scene.assert_events_are_reported(&agent);
    assert_holds(
        &agent,
        &["dac_read_search", "sys_ptrace", "sys_admin"],
        &["dac_read_search", "sys_ptrace", "sys_admin"],
    );
}

#[test]
#[ignore = "needs root"]
fn without_each_capability_that_is_reported_and_the_rest_works() {
    let user = Nobody::new();
    let mut scene = Scene::new("lacking");
    let refused = |without: &[&str], arguments: &[&str]| {
        let folder = tempfile::tempdir().unwrap();
        let mut command = as_own_user(&user, &all_but(without));
        command
            .args(["agent", "--listen", "127.0.0.1:0", "--socket"])
            .arg(folder.path().join("s"))
            .args(arguments);
        refusal(&command.stdin(Stdio::null()).output().unwrap())
    };
    // Each is a part of CAP_SYS_ADMIN, which an agent of all namespaces has.
    for (name, words) in [("bpf", "lacks CAP_BPF; "), ("perfmon", "lacks CAP_PERFMON; ")] {
        assert!(refused(&[name, "sys_admin"], &[]).contains(words));
        assert!(refused(&[name, "sys_admin"], &["--netns", "current"]).contains(words));
    }
    assert!(
        refused(&["net_admin"], &["--allow-kill"])
            .contains("--allow-kill: this process lacks CAP_NET_ADMIN; ")
    );

    let agent = start(&user, &all_but(&["net_admin"]), &[]);
    assert_holds(
        &agent,
        &all_but(&["net_admin", "bpf", "perfmon"]),
        &all_but(&["net_admin", "bpf", "perfmon"]),
    );
    let seen = scene.stuck(&agent);
    assert_eq!((seen.here.len(), seen.there.len(), seen.lacking()), (1, 1, vec![]));
    seen.assert_owner(true);
    let printed = refusal(&kill(scene.port, &["--yes", "--socket"]).arg(agent.socket()).output().unwrap());
    assert!(printed.contains("without --allow-kill"), "{printed}");

    let agent = start(&user, &all_but(&["sys_admin"]), &["--allow-kill"]);
    assert_holds(&agent, &["dac_read_search", "net_admin", "sys_ptrace"], &["dac_read_search", "sys_ptrace"]);
    assert!(summary(&agent).contains("CAP_SYS_ADMIN is needed to enter them"));
    let seen = scene.stuck(&agent);
    assert_eq!((seen.here.len(), seen.there.len()), (1, 0));
    assert!(seen.incomplete.contains("CAP_SYS_ADMIN is needed to enter them"), "{}", seen.incomplete);
    seen.assert_owner(true);
    scene.assert_events_are_reported(&agent);
    // One that nobody is to look for is not missed.
    let agent = start(&user, &all_but(&["sys_admin", "net_admin"]), &["--netns", "current"]);
    assert_eq!(scene.stuck(&agent).lacking(), [""; 0]);
    assert_holds(&agent, &["dac_read_search", "sys_ptrace"], &["dac_read_search", "sys_ptrace"]);

    let agent = start(&user, &all_but(&["sys_ptrace", "net_admin"]), &[]);
    assert_holds(&agent, &["dac_read_search", "sys_admin"], &["dac_read_search", "sys_admin"]);
    assert!(summary(&agent).contains("without CAP_SYS_PTRACE, other users' executables are unknown"));
    let seen = scene.stuck(&agent);
    // The other namespace has a name, by which it is found.
    assert_eq!((seen.here.len(), seen.there.len()), (1, 1));
    assert!(
        seen.incomplete.contains("CAP_SYS_PTRACE is needed to read other users' /proc/PID/exe"),
        "{}",
        seen.incomplete
    );
    seen.assert_owner(false);
    scene.assert_events_are_reported(&agent);

    let without = all_but(&["dac_read_search", "net_admin"]);
    let agent = start(&user, &without, &["--owners", "proc"]);
    assert_holds(&agent, &["sys_ptrace", "sys_admin"], &["sys_ptrace", "sys_admin"]);
    assert!(summary(&agent).contains("without CAP_DAC_READ_SEARCH, a walk over /proc"));
    let seen = scene.stuck(&agent);
    assert_eq!((seen.here.len(), seen.there.len()), (1, 1));
    assert!(
        seen.incomplete.contains("CAP_DAC_READ_SEARCH is needed to read other users' /proc/PID/fd"),
        "{}",
        seen.incomplete
    );
    assert!(seen.incomplete.contains("CAP_DAC_READ_SEARCH is needed to see those"), "{}", seen.incomplete);
    assert!(seen.here[0]["owners"].as_array().is_none_or(Vec::is_empty));
    scene.assert_events_are_reported(&agent);
    // The iterator asks for none of it.
    let agent = start(&user, &without, &[]);
    scene.stuck(&agent).assert_owner(true);
}

#[test]
#[ignore = "needs root"]
fn who_is_to_destroy_nothing_holds_no_cap_net_admin_and_a_reload_gives_it_up() {
    let user = Nobody::new();
    let working = all_but(&["net_admin", "bpf", "perfmon"]);
    // Given, and not wanted: neither a unit's user nor root keeps it.
    assert_holds(&start(&user, &all_but(&[]), &[]), &working, &working);
    assert_holds(&Agent::start(&[]), &working, &working);

    let folder = tempfile::tempdir().unwrap();
    fs::set_permissions(folder.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let file = folder.path().join("tcpclose.toml");
    fs::write(&file, "allow-kill = true\n").unwrap();
    let agent = start(&user, &all_but(&[]), &["--config", file.to_str().unwrap()]);
    assert_holds(&agent, &all_but(&["bpf", "perfmon"]), &working);
    // All of the summary, so that the next line is about the reload.
    agent.until_it_says("curl -s");
    let reload = |settings: &str, expected: &str| {
        assert_eq!(agent.reloaded(|| fs::write(&file, settings).unwrap()), expected);
    };
    reload("allow-kill = false\n", "tcpclose: reloaded: allow-kill");
    assert_holds(&agent, &working, &working);
    reload(
        "allow-kill = true\n",
        "tcpclose: reloaded: nothing has changed; restart the agent to apply allow-kill",
    );
    assert_holds(&agent, &working, &working);
    let (listener, port) = listen();
    let pair = Pair::new(&listener, port, b"");
    grow_old();
    assert!(refusal(&through(&agent, port, &["--yes"])).contains("without --allow-kill"));
    pair.assert_alive();
}

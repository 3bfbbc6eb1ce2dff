//! The agent: everything that runs, on one thread.
//!
//! * [`config`]: what it is told to do; [`reload`]: what of it can change while it runs.
//! * [`tracking`]: the one owner of probe, tracker and ledger.
//! * [`ring_loop`]: takes records from the ring, on a timer that backs off when nothing comes.
//! * [`reconcile`]: the first dumps, those that follow minisockets, and the reconcile; [`namespaces`]: where, [`cpu_budget`]: when.
//! * [`owners`]: whose the stuck sockets are, at an interval.
//! * [`crate::agent::server::handlers::metrics`]: `/metrics`. [`crate::agent::server::handlers::sockets`]: what the command line asks. [`server`]: who is served what. [`crate::agent::server::handlers::page`]: what a
//!   browser gets.
//! * [`watchers`]: who watches each step, [`crate::agent::server::handlers::watch`]: and how it is written to them.
//! * [`crate::agent::server::handlers::ports`]: the close phase by port, for whoever asks. [`crate::agent::server::handlers::exhaustion`]: how many of connect()'s ports are in use.
//! * [`crate::agent::server::handlers::kill`]: destroys a socket for the command line, where that was allowed to who asks: [`crate::agent::server::peer_creds`].
//! * [`crate::agent::server::listener`]: where they are served, or [`crate::agent::systemd::activation`]: where systemd has them served. [`crate::agent::server::limits`]: to how many at a
//!   time, [`crate::agent::server::connections`]: and who goes when there are more,
//!   [`crate::agent::server::timeouts`]: or is too slow. [`crate::agent::server::access`]: who is let in at the metrics port.
//! * [`state_file`]: the file by which ages outlive the agent. [`instance_lock`]: what only one agent may have.
//! * [`crate::agent::systemd::notify`]: what systemd is told. [`signals`]: what ends the agent, at any moment.
//! * `memory`: what is free goes back to the kernel.
//!
//! Only what blocks (a dump, a walk over /proc) runs elsewhere, and brings its result back here: so nothing is locked.

pub mod config;
pub mod cpu_budget;
pub mod gauge_ages;
pub mod instance_lock;
mod malloc_trim;
pub mod namespaces;
pub mod netns_search;
pub mod owners;
pub mod reconcile;
pub mod reload;
pub mod ring_loop;
pub mod scheduler;
pub mod server;
pub mod signals;
pub mod state_file;
pub mod systemd;
pub mod tracking;
pub mod watchers;

use std::cell::RefCell;
use std::fmt::Write as _;
use std::io::{self, Write as _};
use std::ops::ControlFlow;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use log::LevelFilter;
use tokio::task::{LocalSet, spawn_blocking, spawn_local};
use tokio::time::timeout;

use crate::agent::config::Config;
use crate::agent::instance_lock::{LockWait, StateDir};
use crate::agent::reload::{Intervals, ReadSettings, Reload};
use crate::agent::server::access::ScrapeAccess;
use crate::agent::server::connections::Connections;
use crate::agent::server::listener::QuerySocket;
use crate::agent::signals::Signals;
use crate::agent::state_file::StateSaver;
use crate::agent::systemd::activation::Passed;
use crate::agent::systemd::notify::Notify;
use crate::agent::tracking::Tracking;
use crate::failure::Failure;
use crate::linux::capabilities;
use crate::linux::capabilities::KeptCapabilities;
use crate::linux::cgroup::namespace;
use crate::linux::netns::Scope;
use crate::linux::{host, time_wait_length, users};
use crate::probe;
use crate::probe::{Hook, OwnersHook, StateHook, TimeWaitHook};
use crate::report::watch::filter::WatchFilter;
use crate::report::watch::line::Item;

/// A dump that is under way when the agent is told to end is given this long.
const LAST_WAIT: Duration = Duration::from_secs(1);

/// How often who watches is asked whether it still wants to, when nothing comes.
pub const LOOK_UP: Duration = Duration::from_millis(500);

/// Runs until SIGTERM or SIGINT, of which one during the start ends the process at once. SIGHUP has it ask `again` for its
/// settings.
///
/// # Errors
/// When something that the agent needs is not to be had: a capability, a state hook, an address, the socket.
pub fn run(config: &Config, again: ReadSettings<'_>) -> Result<(), Failure> {
    let blocked = signals::block().map_err(cannot_start)?;
    malloc_trim::map_large_blocks();
    // All of it, so that the level can be raised as well: this is asked only after the level has been.
    env_logger::Builder::new().filter_level(LevelFilter::Trace).format_target(false).init();
    log::set_max_level(config.log_level);
    let enter = config.netns == Scope::All || namespace::is_narrow();
    let kept = KeptCapabilities { enter, kill: config.allow_kill };
    kept.begin();
    let signals = blocked.hear(move || kept.on_thread()).map_err(cannot_start)?;
    // What no waiting mends comes first.
    probe::require(config.state_hook)?;
    crate::agent::server::handlers::kill::require(config.allow_kill)?;
    let access = ScrapeAccess::open(config.web_config.as_deref())?;
    let passed = crate::agent::systemd::activation::take()?;
    let notify = Rc::new(Notify::from_environment());
    let connections = crate::agent::server::limits::connections(config.listen.len())?;

    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        // A dump, its lookups, a walk over /proc for a query; a password, a look at certificates.
        .max_blocking_threads(6)
        .on_thread_start(move || kept.on_thread())
        .build()
        .map_err(cannot_start)?;
    // The socket goes late, and the state directory last: an agent that waits for them finds the addresses free.
    let mut held = AtExit::default();
    let faces = Inbound { passed, access: Rc::new(access), connections, kept };
    let done = LocalSet::new()
        .block_on(&runtime, until_told_to_end(config, again, faces, &signals, &notify, &mut held));
    runtime.shutdown_timeout(LAST_WAIT);
    drop(held);
    done
}

/// What is let go of at the end, in this order.
#[derive(Default)]
struct AtExit {
    queries: Option<QuerySocket>,
    keeping: Option<StateSaver>,
    state_dir: Option<StateDir>,
}

/// Where the agent is asked, by whom, and by how many at a time; and what it may do.
struct Inbound {
    /// What systemd listens at for it.
    passed: Passed,
    access: Rc<ScrapeAccess>,
    connections: usize,
    kept: KeptCapabilities,
}

fn cannot_start(why: io::Error) -> Failure {
    Failure::new("cannot start", why, "report this")
}

/// Starts and serves.
async fn until_told_to_end(
    config: &Config,
    again: ReadSettings<'_>,
    faces: Inbound,
    signals: &Signals,
    notify: &Rc<Notify>,
    held: &mut AtExit,
) -> Result<(), Failure> {
    let done = tokio::select! {
        biased;
        () = signals.end() => Ok(()),
        done = start(config, again, faces, signals, notify, held) => done,
    };
    notify.stopping();
    if let Some(keeping) = held.keeping.take() {
        keeping.end(LAST_WAIT).await;
    }
    done
    // Returning ends every task of this thread.
}

/// Gets the agent everything that it needs, has it serve, and never returns but for a failure.
async fn start(
    config: &Config,
    again: ReadSettings<'_>,
    faces: Inbound,
    signals: &Signals,
    notify: &Rc<Notify>,
    held: &mut AtExit,
) -> Result<(), Failure> {
    let Inbound { passed, access, connections, kept } = faces;
    passed.never_block().map_err(cannot_start)?;
    // An address that is in use may be that of the agent whose socket is waited for.
    let early = if passed.metrics.is_empty() {
        match crate::agent::server::listener::listen(&config.listen) {
            Err(refused) if !refused.in_use() => return Err(refused.into()),
            early => early.ok(),
        }
    } else {
        Some(passed.metrics)
    };
    let mut patience = LockWait::new(config.wait);
    held.state_dir =
        instance_lock::state_dir(config.state_dir.as_deref(), &mut patience, signals.leftovers()).await?;
    let socket = held.queries.insert(match passed.queries {
        Some(listener) => QuerySocket::passed(listener),
        None => {
            let leftovers = signals.leftovers();
            crate::agent::server::listener::listen_for_queries(
                &config.socket,
                config.access,
                &mut patience,
                leftovers,
            )
            .await?
        }
    });
    let listeners = match early {
        Some(listeners) => listeners,
        None => crate::agent::server::listener::listen(&config.listen)?,
    };

    let boot_id = host::boot_id();
    let former = held.state_dir.as_ref().and_then(|dir| state_file::former(dir, &boot_id));
    let engine = attach(config).await?;
    engine.borrow_mut().web_config_wrong = access.is_wrong();
    kept.settle(|| engine.borrow_mut().probe.ring.is_readable());
    if let Some(former) = former {
        engine.borrow_mut().tracker.set_former(former);
    }

    let served = Endpoints {
        at: listeners
            .iter()
            .filter_map(|listener| crate::agent::server::listener::url(listener, access.speaks_tls()))
            .collect(),
        curl: access.curl(),
        queries: socket.to_string(),
    };
    let room = Rc::new(RefCell::new(Connections::new(connections)));
    for listener in listeners {
        spawn_local(server::serve_scrapes(
            listener,
            Rc::clone(&room),
            Rc::clone(&access),
            Rc::clone(&engine),
        ));
    }
    let unix = socket.listener.try_clone().map_err(cannot_start)?;
    spawn_local(server::serve_queries(unix, Connections::new(connections), Rc::clone(&engine)));
    spawn_local(ring_loop::run(Rc::clone(&engine), Rc::clone(notify)));

    first_dump(&engine).await?;
    engine.borrow_mut().tracker.forget_former();
    // The start has read the kernel's types, of which nothing is left in use.
    malloc_trim::give_back();
    spawn_local(crate::agent::server::handlers::ports::run(Rc::clone(&engine)));
    // Up to here nothing has been saved, and the loop may have been busy; from here on it is there to end in order.
    signals.started();
    if let Some(dir) = &held.state_dir {
        held.keeping = Some(StateSaver::begin(Rc::clone(&engine), &dir.path, &boot_id));
    }
    let addresses: Vec<&str> = served.at.iter().map(|(url, _)| url.as_str()).collect();
    notify.ready(&format!("watching; metrics at {}", addresses.join(" ")));
    // Nobody may be there to read it, which is no reason to end.
    let folder = held.state_dir.as_ref().map(|dir| dir.path.as_path());
    let _ = io::stderr().write_all(summary(&engine.borrow(), config, &served, folder).as_bytes());
    let intervals = Rc::new(Intervals::of(config));
    spawn_local(crate::agent::server::handlers::exhaustion::run(Rc::clone(&engine), Rc::clone(&intervals)));
    let mut reload = Reload::new(Rc::clone(&engine), access, Rc::clone(&intervals), config);
    tokio::select! {
        () = reconcile::run(engine, intervals) => {}
        () = reload.run(signals, again, notify) => {}
    }
    Ok(())
}

/// The probe at work, and what it is to fill.
async fn attach(config: &Config) -> Result<Rc<RefCell<Tracking>>, Failure> {
    // Before the probe is attached, which would count the connections that this makes.
    let time_wait_ns = spawn_blocking(time_wait_length::measure)
        .await
        .unwrap_or_else(|died| Err(died.into()))
        .inspect_err(|why| log::warn!("TIME-WAIT's length is not known until one is seen: {why}"))
        .ok();
    let probe = probe::Builder {
        state: config.state_hook,
        time_wait: config.time_wait,
        owners: config.owners,
        ring_size: config.ring_size,
        log_level: config.log_level,
    }
    .attach()?;
    let mut engine = Tracking::new(probe, config, time_wait_ns);
    if config.log_level >= LevelFilter::Debug {
        ring_loop::forward_the_probes_log(&mut engine.probe);
    }
    Ok(Rc::new(RefCell::new(engine)))
}

/// The first look at what is there already, by who drains: what a dump does not know, the records do, and the other way
/// round.
async fn first_dump(engine: &RefCell<Tracking>) -> Result<(), Failure> {
    reconcile::first(engine).await.map_err(|why| {
        let why = format!("the first dump of the kernel's sockets failed: {why:#}");
        Failure::new("cannot start", why, "load the modules inet_diag and tcp_diag")
    })
}

/// Watches without an agent, on its own: attaches, says so by `ready`, and hands what comes to `each` until that has
/// enough. Nothing is served, and nothing stays behind.
///
/// # Errors
/// When something that it needs is not to be had, as for [`run`], and what `each` fails with.
pub fn watch_alone(
    config: &Config,
    filter: WatchFilter,
    ready: impl FnOnce(&Tracking),
    mut each: impl FnMut(Option<Vec<Item>>) -> Result<ControlFlow<()>, Failure>,
) -> Result<(), Failure> {
    probe::require(config.state_hook)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(cannot_start)?;
    let done = LocalSet::new().block_on(&runtime, async {
        let engine = attach(config).await?;
        spawn_local(ring_loop::run(Rc::clone(&engine), Rc::default()));
        first_dump(&engine).await?;
        let Ok(mut lines) = crate::agent::server::handlers::watch::WatchStream::of(filter, &engine) else {
            return Ok(());
        };
        ready(&engine.borrow());
        spawn_local(reconcile::run(engine, Rc::new(Intervals::of(config))));
        loop {
            let items = timeout(LOOK_UP, lines.next()).await.ok();
            if each(items)?.is_break() {
                return Ok(());
            }
        }
    });
    runtime.shutdown_timeout(LAST_WAIT);
    done
}

/// Where the agent may be asked.
struct Endpoints {
    /// Addresses of metrics, with a remark or none.
    at: Vec<(String, &'static str)>,
    /// What to ask them with.
    curl: String,
    /// The unix socket.
    queries: String,
}

/// What is printed when the agent is ready.
fn summary(engine: &Tracking, config: &Config, served: &Endpoints, kept: Option<&Path>) -> String {
    let mut text = format!(
        "tcpclose {} watches how TCP connections end on {}\n",
        env!("CARGO_PKG_VERSION"),
        host::hostname()
    );
    let hook = match engine.probe.hook {
        StateHook::Btf => "btf (tp_btf, keyed by socket cookie)",
        StateHook::Tracepoint if engine.probe.reads_fields => "tracepoint (classic, facts by BTF offsets)",
        StateHook::Tracepoint => {
            "tracepoint (classic, no BTF: namespace, outcome and most sides are unknown)"
        }
    };
    let interval = humantime::format_duration(config.dump_interval);
    let length = match engine.tracker.time_wait_ns() {
        Some(ns) => format!("TIME-WAIT lasts {:.1} s here", ns as f64 / 1e9),
        None => "TIME-WAIT's length is not known yet".to_owned(),
    };
    let mut line = |name: &str, value: &str| {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "  {name:<11} {value}");
    };
    let not_in_use = |line: &mut dyn FnMut(&str, &str), hook| {
        for declined in engine.probe.declined.of(hook) {
            line("", &format!("not in use: {}", crate::failure::printable(&declined.reason)));
        }
    };
    line("state hook", hook);
    not_in_use(&mut line, Hook::State);
    not_in_use(&mut line, Hook::Reset);
    let seen = match engine.probe.time_wait {
        TimeWaitHook::Hooks => format!("hooks (fentry and fexit on the minisocket; {length})"),
        TimeWaitHook::Diag => format!("diag (sock_diag dump each {interval}; {length})"),
    };
    line("time wait", &seen);
    not_in_use(&mut line, Hook::TimeWait);
    for remark in namespaces(engine) {
        line("namespaces", &remark);
    }
    let owners = match engine.probe.owners {
        OwnersHook::TaskFile => "task_file (an iterator over all processes' files)",
        OwnersHook::Proc => "proc (a walk over /proc)",
    };
    line("owners", owners);
    not_in_use(&mut line, Hook::Owners);
    let mut privileges = capabilities::in_words().into_iter();
    let user = users::user_name(rustix::process::geteuid().as_raw());
    line("user", &format!("{user}; capabilities kept: {}", privileges.next().unwrap_or_default()));
    for lost in privileges {
        line("", &lost);
    }
    for (address, remark) in &served.at {
        line("metrics", &format!("{address}/metrics"));
        line("page", &format!("{address}/"));
        if !remark.is_empty() {
            line("", remark);
        }
    }
    match kept {
        Some(folder) => line("state", &folder.display().to_string()),
        None => line("state", "none: ages will not outlive this agent"),
    }
    line("queries", &served.queries);
    if config.allow_kill {
        let group = config.kill_group.as_ref().map(|group| format!(" and members of {}", group.name));
        let who = format!("root{}", group.unwrap_or_default());
        line("", &format!("{who} may destroy sockets through it: tcpclose kill (--allow-kill)"));
    }
    let socket = match config.socket.to_str() {
        Some(crate::report::requests::DEFAULT_SOCKET) | None => String::new(),
        Some(path) => format!(" --socket {path}"),
    };
    line("try", &format!("tcpclose stuck{socket}"));
    if let Some((address, _)) = served.at.first() {
        line("", &format!("{} {address}/metrics | grep tcpclose_sockets", served.curl));
    }
    text
}

/// What is looked at of the host's network namespaces.
fn namespaces(engine: &Tracking) -> Vec<String> {
    let namespaces = &engine.namespaces;
    let others = namespaces.places(None).len().saturating_sub(1);
    let own = "this one only; of others, what the hooks tell";
    match namespaces.scope() {
        Scope::Current => vec![own.to_owned()],
        Scope::All => {
            let refused = namespaces.refusals();
            let all = if others == 0 && !refused.is_empty() {
                own.to_owned()
            } else {
                format!("all ({} now)", others + 1)
            };
            [vec![all], refused, Vec::from_iter(namespaces.unsearched())].concat()
        }
    }
}

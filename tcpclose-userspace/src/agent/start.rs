//! Starts the agent, serves, and ends in order.

use std::cell::{Cell, RefCell};
use std::io::{self, Write as _};
use std::rc::Rc;
use std::time::Duration;

use log::LevelFilter;
use tokio::task::{LocalSet, spawn_blocking, spawn_local};

use crate::agent::config::Config;
use crate::agent::instance_lock;
use crate::agent::instance_lock::{LockWait, StateDir};
use crate::agent::kill_permission;
use crate::agent::malloc_trim;
use crate::agent::parts::Parts;
use crate::agent::port_usage;
use crate::agent::reconcile;
use crate::agent::reload::{ReadSettings, Reload};
use crate::agent::ring_loop;
use crate::agent::server::access::ScrapeAccess;
use crate::agent::server::connections::Connections;
use crate::agent::server::handlers::{kill, ports};
use crate::agent::server::listener::{QuerySocket, listen, listen_for_queries, url};
use crate::agent::server::{limits, serve};
use crate::agent::signals;
use crate::agent::signals::Signals;
use crate::agent::stacks::arming::StacksMode;
use crate::agent::stacks::collect;
use crate::agent::state_file;
use crate::agent::state_file::StateSaver;
use crate::agent::summary::{Endpoints, summary};
use crate::agent::systemd::activation;
use crate::agent::systemd::activation::Passed;
use crate::agent::systemd::notify::Notify;
use crate::agent::tracking::Tracking;
use crate::failure::Failure;
use crate::linux::capabilities::KeptCapabilities;
use crate::linux::cgroup::namespace;
use crate::linux::netns::Scope;
use crate::linux::{host, time_wait_length};
use crate::probe;

/// How long the end of the agent waits for a running dump, and for its last save.
pub const LAST_WAIT: Duration = Duration::from_secs(1);

/// Runs until SIGTERM or SIGINT; one of these during the start ends the process at once. At SIGHUP it takes
/// its settings from `read` again.
///
/// # Errors
/// When something that the agent needs is missing: a capability, a state hook, an address, the socket.
pub fn run(config: &Config, read: ReadSettings<'_>) -> Result<(), Failure> {
    let blocked = signals::block().map_err(cannot_start)?;
    malloc_trim::map_large_blocks();
    // The logger takes all levels, so that a reload can raise the level, which is checked before.
    env_logger::Builder::new().filter_level(LevelFilter::Trace).format_target(false).init();
    log::set_max_level(config.log_level);
    malloc_trim::avoid_huge_pages();
    let enter = config.netns == Scope::All || namespace::is_narrow();
    let takes_stacks = config.stacks != StacksMode::Off;
    let kept = KeptCapabilities { enter, kill: config.allow_kill, stacks: takes_stacks };
    kept.begin();
    let signals = blocked.listen(move || kept.on_thread()).map_err(cannot_start)?;
    if let Some(warning) = kill_permission::without_effect(config) {
        log::warn!("{warning}");
    }
    // First the checks that no waiting would change.
    probe::require(config.state_hook)?;
    kill::require(config.allow_kill)?;
    let access = ScrapeAccess::open(config.web_config.as_deref())?;
    let passed = activation::take()?;
    let notify = Rc::new(Notify::from_environment());
    let connections = limits::connections(config.listen.len(), takes_stacks)?;

    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        // A dump, its lookups, a walk over /proc for a query; a password, a check of certificate files.
        .max_blocking_threads(6)
        .on_thread_start(move || kept.on_thread())
        .build()
        .map_err(cannot_start)?;
    let mut held = AtExit::default();
    let inbound = Inbound { passed, access: Rc::new(access), connections, kept };
    let process = StartingAgent { config, read, signals: &signals, notify: &notify };
    let done = LocalSet::new().block_on(&runtime, process.until_stopped(inbound, &mut held));
    runtime.shutdown_timeout(LAST_WAIT);
    drop(held);
    signals.report_stop();
    done
}

/// Released at the end, in this order: an agent that waits for the socket and the state directory then finds
/// the addresses free.
#[derive(Default)]
struct AtExit {
    queries: Option<QuerySocket>,
    saver: Option<StateSaver>,
    state_dir: Option<StateDir>,
}

/// How clients reach the agent, and what it may do.
struct Inbound {
    /// Sockets that systemd listens at for it.
    passed: Passed,
    access: Rc<ScrapeAccess>,
    /// The limit of connections.
    connections: usize,
    kept: KeptCapabilities,
}

pub fn cannot_start(why: io::Error) -> Failure {
    Failure::new("cannot start", why, "report this")
}

/// What tells the agent what to do, and whom it tells.
struct StartingAgent<'a> {
    config: &'a Config,
    read: ReadSettings<'a>,
    signals: &'a Signals,
    notify: &'a Rc<Notify>,
}

impl StartingAgent<'_> {
    async fn until_stopped(&self, inbound: Inbound, held: &mut AtExit) -> Result<(), Failure> {
        let done = tokio::select! {
            biased;
            () = self.signals.end() => Ok(()),
            done = self.start(inbound, held) => done,
        };
        self.notify.stopping();
        if let Some(saver) = held.saver.take() {
            saver.end(LAST_WAIT).await;
        }
        done
        // Returning ends every task of this thread.
    }

    /// Starts everything and serves; returns only with a failure.
    async fn start(&self, inbound: Inbound, held: &mut AtExit) -> Result<(), Failure> {
        let Self { config, read, signals, notify } = *self;
        let Inbound { passed, access, connections, kept } = inbound;
        passed.set_nonblocking().map_err(cannot_start)?;
        // An address in use may be that of the agent whose socket is waited for.
        let early = if passed.metrics.is_empty() {
            match listen(&config.listen) {
                Err(refused) if !refused.in_use() => return Err(refused.into()),
                early => early.ok(),
            }
        } else {
            Some(passed.metrics)
        };
        let mut lock_wait = LockWait::new(config.wait);
        held.state_dir =
            instance_lock::state_dir(config.state_dir.as_deref(), &mut lock_wait, signals.leftovers())
                .await?;
        let socket = held.queries.insert(match passed.queries {
            Some(listener) => QuerySocket::passed(listener),
            None => {
                listen_for_queries(&config.socket, config.access, &mut lock_wait, signals.leftovers()).await?
            }
        });
        let listeners = match early {
            Some(listeners) => listeners,
            None => listen(&config.listen)?,
        };

        let boot_id = host::boot_id();
        let former = held.state_dir.as_ref().and_then(|dir| state_file::former(dir, &boot_id));
        let parts = attach(config, access.is_wrong()).await?;
        let tracking = &parts.tracking;
        kept.settle(|| tracking.borrow_mut().probe.ring.is_readable());
        if let Some(former) = former {
            tracking.borrow_mut().tracker.set_former(former);
        }

        let endpoints = Endpoints {
            addresses: listeners.iter().filter_map(|listener| url(listener, access.speaks_tls())).collect(),
            curl: access.curl(),
            queries: socket.to_string(),
        };
        let tcp_connections = Rc::new(RefCell::new(Connections::new(connections)));
        for listener in listeners {
            let (connections, access) = (Rc::clone(&tcp_connections), Rc::clone(&access));
            spawn_local(serve::serve_scrapes(listener, connections, access, parts.clone()));
        }
        let unix = socket.listener.try_clone().map_err(cannot_start)?;
        spawn_local(serve::serve_queries(unix, Connections::new(connections), parts.clone()));
        spawn_local(ring_loop::run(Rc::clone(tracking), Rc::clone(notify)));

        first_dump(tracking).await?;
        tracking.borrow_mut().tracker.forget_former();
        // The kernel's types, which the start has read, are no longer in use.
        malloc_trim::give_back();
        spawn_local(ports::run(Rc::clone(tracking), Rc::clone(&parts.rates)));
        // Up to here nothing was to be saved; from here on the loop ends the agent in order.
        signals.started();
        if let Some(dir) = &held.state_dir {
            held.saver = Some(StateSaver::begin(Rc::clone(tracking), &dir.path, &boot_id));
        }
        let addresses: Vec<&str> = endpoints.addresses.iter().map(|(url, _)| url.as_str()).collect();
        notify.ready(&format!("watching; metrics at {}", addresses.join(" ")));
        let folder = held.state_dir.as_ref().map(|dir| dir.path.as_path());
        let summary = summary(&tracking.borrow(), config, &endpoints, folder);
        // A closed standard error is no failure.
        let _ = io::stderr().write_all(summary.as_bytes());
        spawn_local(port_usage::run(
            Rc::clone(tracking),
            Rc::clone(&parts.port_usage),
            Rc::clone(&parts.intervals),
        ));
        spawn_local(collect::run(
            Rc::clone(tracking),
            Rc::clone(&parts.stacks),
            Rc::clone(&parts.stacks_wake),
        ));
        let mut reload = Reload::new(parts.clone(), access, config);
        tokio::select! {
            () = reconcile::run(parts) => {}
            () = reload.run(signals, read, notify) => {}
        }
        Ok(())
    }
}

/// Attaches the probe, and makes what it fills.
pub async fn attach(config: &Config, web_config_wrong: Rc<Cell<bool>>) -> Result<Parts, Failure> {
    // Before the probe is attached, which would count the connections of this measurement.
    let time_wait_ns = spawn_blocking(time_wait_length::measure)
        .await
        .unwrap_or_else(|died| Err(died.into()))
        .inspect_err(|why| {
            log::warn!(
                "cannot measure the length of TIME-WAIT: {why} (it is unknown until the first one ends)"
            )
        })
        .ok();
    let probe = probe::Builder {
        state: config.state_hook,
        time_wait: config.time_wait,
        owners: config.owners,
        stacks: config.stacks != StacksMode::Off,
        ring_size: config.ring_size,
        log_level: config.log_level,
    }
    .attach()?;
    let mut tracking = Tracking::new(probe, config, time_wait_ns);
    if config.log_level >= LevelFilter::Debug {
        ring_loop::forward_probe_log(&mut tracking.probe);
    }
    Ok(Parts::new(tracking, config, web_config_wrong))
}

/// The first dump, with the ring loop running: records tell what the dump misses, and the other way round.
pub async fn first_dump(tracking: &RefCell<Tracking>) -> Result<(), Failure> {
    reconcile::first(tracking).await.map_err(|why| {
        let why = format!("the first dump of the kernel's sockets failed: {why:#}");
        Failure::new("cannot start", why, "load the modules inet_diag and tcp_diag")
    })
}

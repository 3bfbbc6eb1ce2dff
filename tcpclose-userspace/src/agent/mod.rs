//! The agent: the long-running process. All of it runs on one thread, so nothing is locked; what blocks (a
//! dump, a walk over /proc) runs elsewhere and hands its result back.
//!
//! * [`start`]: starts everything, serves, and ends in order; [`summary`]: prints what was started.
//!   [`watch_alone`]: watches without an agent.
//! * [`config`]: the settings; [`reload`]: those that may change while it runs; [`intervals`]: those that
//!   loops read.
//! * [`parts`]: what a running agent consists of; each part owns its data, and a task gets the parts that it
//!   needs.
//! * [`tracking`]: probe, tracker and metrics; [`tracker_output`], [`watchers`]: where its events go.
//!   `silent_hook`: a state hook that reports nothing.
//! * [`ring_loop`]: takes records from the ring buffer, on a timer that backs off when none come.
//! * [`reconcile`]: the loop of dumps; [`scheduler`]: which one is due, pure; [`dump_targets`]: where;
//!   [`dump`]: one dump; [`dump_stats`], [`gauge_ages`]: how old its results are; [`reconcile_requests`]: a
//!   user asks for one.
//! * [`namespaces`], [`netns_search`]: the network namespaces that are dumped, and the search for them.
//! * [`owners`]: owners of stuck sockets, at an interval; [`port_usage`]: ephemeral ports in use.
//!   [`cpu_budget`]: the pauses.
//! * [`server`]: the HTTP server; [`kill_permission`]: who may destroy sockets through it; [`looks`]: the turns of requests that look at
//!   all sockets.
//! * [`state_file`]: the file by which ages outlive the agent; [`instance_lock`]: one agent at a time.
//! * [`systemd`]: socket activation and notifications; [`signals`]: what ends the agent, at any moment;
//!   [`leftovers`]: what must be removed then.
//! * `malloc_trim`: returns free memory to the kernel, and takes no huge pages.

pub mod config;
pub mod cpu_budget;
pub mod dump;
pub mod dump_stats;
pub mod dump_targets;
pub mod gauge_ages;
pub mod instance_lock;
pub mod intervals;
pub mod kill_permission;
pub mod leftovers;
pub mod looks;
mod malloc_trim;
mod mptcp;
pub mod namespaces;
pub mod netns_search;
pub mod owners;
pub mod parts;
pub mod port_usage;
pub mod reconcile;
pub mod reconcile_requests;
pub mod reload;
pub mod ring_loop;
pub mod scheduler;
pub mod server;
pub mod signals;
mod silent_hook;
pub mod stacks;
pub mod start;
pub mod state_file;
pub mod summary;
pub mod systemd;
pub mod tracker_output;
pub mod tracking;
pub mod watch_alone;
pub mod watchers;

pub use start::run;
pub use watch_alone::watch_alone;

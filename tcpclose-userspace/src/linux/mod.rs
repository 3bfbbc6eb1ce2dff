//! Everything that needs a kernel.
//!
//! * [`crate::probe::offsets`]: field offsets from BTF.
//! * [`crate::probe::tracefs`]: tracefs, for the classic tracepoint.
//! * [`crate::probe`]: load and attach the eBPF programs, the best backend first.
//! * [`crate::probe::backend::fentry`]: fentry and fexit on the minisocket's functions; `kept_links`: their links, which outlive the process.
//! * [`crate::probe::backend::task_file`]: the iterator over all tasks' files.
//! * [`crate::probe::ring`]: drain the ring buffer; `consumer`: through a window on it.
//! * [`crate::probe::prog_stats`]: how often the programs ran.
//! * [`sock_diag`]: dump and look up TCP sockets; [`lookups`]: many at a time; [`age`]: what their fields prove of their age.
//! * [`destroy`]: end one socket by SOCK_DESTROY.
//! * [`proc_net`]: the kernel's own counters of TCP.
//! * [`netns`]: finds network namespaces, and goes into them.
//! * [`netns_dump`]: dumps of several network namespaces; [`netns_counters`]: with the kernel's sums beside.
//! * [`time_wait_length`]: how long TIME-WAIT lasts on this host.
//! * [`owners`]: which processes hold a socket; [`proc_fd`]: what they have open; [`process`]: what is known of one;
//!   [`cgroup`]: of its place; [`executables`]: what runs its program, told by a process of its own; [`elf`]: by a file.
//! * [`ephemeral_ports`]: which ports connect() may take, and which sockets have them.
//! * [`host`]: names, clocks, limits. [`users`]: users and groups.
//! * [`capabilities`]: capabilities, and how they are given up.

pub mod age;
pub mod capabilities;
pub mod cgroup;
pub mod elf;
pub mod ephemeral_ports;
pub mod executables;
pub mod host;
pub mod netns;
pub mod netns_counters;
pub mod netns_dump;
pub mod owners;
pub mod proc_fd;
pub mod proc_net;
pub mod process;
pub mod sock_diag;
pub mod time_wait_length;
pub mod users;

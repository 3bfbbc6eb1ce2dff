//! Everything that needs a kernel.
//!
//! * [`layout`]: field offsets from BTF.
//! * [`tracefs`]: tracefs, for the classic door.
//! * [`probe`]: load and attach the eBPF programs, best door first.
//! * [`hooks`]: fentry and fexit on the minisocket's functions; `kept_links`: their links, which outlive the process.
//! * [`task_file`]: the iterator over all tasks' files.
//! * [`ring`]: drain the ring buffer; `consumer`: through a window on it.
//! * [`runs`]: how often the programs ran.
//! * [`sock_diag`]: dump and look up TCP sockets; [`lookups`]: many at a time; [`age`]: what their fields prove of their age.
//! * [`destroy`]: end one socket by SOCK_DESTROY.
//! * [`mib`]: the kernel's own counters of TCP.
//! * [`netns`]: finds network namespaces, and goes into them.
//! * [`survey`]: dumps of several network namespaces; [`account`]: with the kernel's sums beside.
//! * [`time_wait`]: how long TIME-WAIT lasts on this host.
//! * [`owners`]: which processes hold a socket; [`files`]: what they have open; [`process`]: what is known of one;
//!   [`cgroup`]: of its place; [`executables`]: what runs its program, told by a process of its own; [`elf`]: by a file.
//! * [`ephemeral`]: which ports connect() may take, and which sockets have them.
//! * [`host`]: names, clocks, limits. [`accounts`]: users and groups.
//! * [`privileges`]: capabilities, and how they are given up.

pub mod account;
pub mod accounts;
pub mod age;
pub mod cgroup;
mod consumer;
pub mod destroy;
pub mod elf;
pub mod ephemeral;
pub mod executables;
pub mod files;
pub mod hooks;
pub mod host;
mod kept_links;
pub mod layout;
pub mod lookups;
pub mod mib;
pub mod netns;
pub mod owners;
pub mod privileges;
pub mod probe;
pub mod process;
pub mod ring;
pub mod runs;
pub mod sock_diag;
pub mod survey;
pub mod task_file;
pub mod time_wait;
pub mod tracefs;

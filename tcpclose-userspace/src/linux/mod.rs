//! Interfaces of Linux other than the probe's.
//!
//! * [`sock_diag`]: dumps, looks up and destroys TCP sockets; [`age`]: what their fields prove of their age.
//! * [`proc_net`]: the kernel's own TCP counters.
//! * [`netns`]: finds and enters network namespaces; [`netns_dump`]: dumps several; [`netns_counters`]: with the kernel's sums;
//!   [`local_addresses`]: the addresses of one.
//! * [`time_wait_length`]: how long TIME-WAIT lasts on this host.
//! * [`owners`]: the processes that hold a socket; [`proc_fd`]: their open files; [`process`]: what is known of one;
//!   [`cgroup`]: its unit, container and pod; [`executables`]: its runtime, which a helper process reads; [`elf`]: from a file.
//! * [`stacks`]: names the frames of user stacks.
//! * [`ephemeral_ports`]: the ports that connect() may take, and the sockets that have them.
//! * [`host`]: names, clocks, limits. [`users`]: users and groups. [`capabilities`]: capabilities, and how they are dropped.

pub mod age;
pub mod capabilities;
pub mod cgroup;
pub mod elf;
pub mod ephemeral_ports;
pub mod executables;
pub mod host;
pub mod local_addresses;
pub mod netns;
pub mod netns_counters;
pub mod netns_dump;
pub mod owners;
pub mod proc_fd;
pub mod proc_net;
pub mod process;
pub mod sock_diag;
pub mod stacks;
pub mod time_wait_length;
pub mod users;

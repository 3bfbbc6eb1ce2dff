//! How many of the ports that connect() may take are in use, for each pair of ends. Pure.
//!
//! connect() gives a socket without a port one of `ip_local_port_range`, without `ip_local_reserved_ports`, that no other
//! socket has with the same local address, remote address and remote port (`__inet_hash_connect()`,
//! `__inet_check_established()`, 5.8 to 6.18): ports run out for each such tuple on its own. First it tries the ports of
//! one parity, then of the other; with an odd number of ports one attempt skips one.
//!
//! connect() skips a port that bind() has taken, whatever its address (`tb->fastreuse >= 0`): listeners, connections that they
//! accepted, and sockets that are bound and not connected count for every tuple. The kernel does not show that a connected
//! socket was bound before: it counts for its own tuple only, and so connect() can fail before a tuple is full.
//!
//! A TIME-WAIT keeps its port until it ends, unless connect() may reuse it (`tcp_twsk_unique()`): see
//! [`Reuse`](crate::linux::ephemeral_ports::Reuse).
//!
//! * [`port_table`]: the sockets of a namespace by tuple. [`change`]: the change between two samples.
//! * [`document`]: the JSON document.

pub mod change;
pub mod document;
pub mod port_table;

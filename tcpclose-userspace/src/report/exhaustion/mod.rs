//! How many of the ports that connect() may take are in use, for each pair of ends. Pure.
//!
//! connect() gives a socket without a port one of `ip_local_port_range`, but for `ip_local_reserved_ports`, that no other
//! socket has with the same local address, remote address and remote port (`__inet_hash_connect()`,
//! `__inet_check_established()`, 5.8 to 6.18): ports run out for each such tuple on its own. First it tries the ports of
//! one parity, then of the other; of a range with an odd number of ports one attempt leaves one out.
//!
//! A port that bind() has taken, whatever its address, connect() passes over (`tb->fastreuse >= 0`): listeners, what was
//! accepted by them, and sockets that are bound and not connected count for every tuple. Of a socket that was bound and then
//! connected the kernel does not tell that it was: it counts for its own tuple alone.
//!
//! A TIME-WAIT has its port until it ends, unless connect() may take it again (`tcp_twsk_unique()`): see [`Reuse`](crate::linux::ephemeral_ports::Reuse).
//!
//! * [`port_table`]: the sockets of a namespace by tuple. [`change`]: two samples of the same tuples, and the change between them. [`document`]: the JSON document.

pub mod change;
pub mod document;
pub mod port_table;

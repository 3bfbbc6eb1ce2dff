//! The agent's HTTP server: aggregates on TCP, everything on the unix socket.
//!
//! * [`listener`]: its sockets; [`serve`]: accepts connections and speaks TLS and HTTP on them.
//! * [`limits`], [`connections`], [`timeouts`]: how many clients it serves, which one goes for a new one, and
//!   how slow one may be.
//! * [`access`], [`web`]: who may scrape; [`allowed_hosts`]: the host names that browsers may use; [`peer_creds`]: who asks on the
//!   unix socket.
//! * [`routes`]: the table of paths; [`respond`]: hands a request to its handler; [`handlers`]: the answers.

pub mod access;
pub mod allowed_hosts;
pub mod connections;
pub mod handlers;
pub mod limits;
pub mod listener;
pub mod peer_creds;
pub mod respond;
pub mod response;
pub mod routes;
pub mod serve;
pub mod timeouts;
pub mod web;

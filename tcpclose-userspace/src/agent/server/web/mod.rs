//! `--web-config`: who may scrape, and over what, in the format of Prometheus' exporter toolkit.
//!
//! * [`config`]: the file, from bytes to what it asks for, or one line of what is wrong. Pure, as are [`yaml`] and [`fields`],
//!   which it stands on, and [`rate_limit`], the rate limit.
//! * [`loaded`]: the same with the files read that it names, and whether they have changed since.
//! * [`tls`]: what rustls makes of it; [`client_certificates`]: whose certificates are taken.
//! * [`passwords`]: basic authentication; [`password_queue`]: whose password is checked next; [`source`]: whose requests count together.

pub mod client_certificates;
pub mod config;
mod fields;
pub mod loaded;
mod password_queue;
pub mod passwords;
pub mod rate_limit;
pub mod source;
pub mod tls;
pub mod yaml;

#[cfg(test)]
mod config_tests;

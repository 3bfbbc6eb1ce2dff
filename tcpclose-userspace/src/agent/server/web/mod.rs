//! `--web-config`: access to the metrics port, in the format of Prometheus' exporter toolkit.
//!
//! * [`config`]: parses and checks the file. Pure, as are [`yaml`] and [`fields`], which it uses, and
//!   [`rate_limit`].
//! * [`loaded`]: the configuration with the contents of the files that it names; notices when they change.
//! * [`tls`]: its settings, the configuration of rustls, and the certificates of clients (feature `tls`).
//! * [`passwords`]: basic authentication; [`password_queue`]: the order of password checks; [`source`]: the
//!   network of a client, by which requests are counted.

pub mod config;
mod fields;
pub mod loaded;
mod password_queue;
pub mod passwords;
pub mod rate_limit;
pub mod source;
#[cfg_attr(not(feature = "tls"), path = "no_tls.rs")]
pub mod tls;
pub mod yaml;

#[cfg(test)]
#[cfg(feature = "tls")]
mod config_tests;

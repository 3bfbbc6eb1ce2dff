//! systemd: socket activation and notifications.

pub mod activation;
pub mod notify;

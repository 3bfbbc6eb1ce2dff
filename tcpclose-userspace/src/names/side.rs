//! The ends of a connection.

use std::ops::RangeInclusive;

word! {
    /// Which end of the connection this socket is.
    #[derive(Default)]
    pub enum Side {
        /// Accepted here.
        Server = "server",
        /// Opened here.
        Client = "client",
        /// Neither is proven.
        #[default]
        Unknown = "unknown",
    }
}

impl Side {
    /// The service port of a connection with these ports, on a host with the local port range `ephemeral`
    /// (`ip_local_port_range`): the local one on the server side, the remote one on the client side.
    pub fn service_port(self, local: u16, remote: u16, ephemeral: &RangeInclusive<u16>) -> u16 {
        match self {
            Self::Server => local,
            Self::Client => remote,
            Self::Unknown if ephemeral.contains(&local) => remote,
            Self::Unknown => local,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_service_port_is_local_on_the_server_and_remote_on_the_client() {
        let ephemeral = 32768..=60999;
        assert_eq!(Side::Server.service_port(40000, 80, &ephemeral), 40000);
        assert_eq!(Side::Client.service_port(40000, 80, &ephemeral), 80);
        assert_eq!(Side::Unknown.service_port(8080, 50000, &ephemeral), 8080);
        assert_eq!(Side::Unknown.service_port(50000, 8080, &ephemeral), 8080);
    }
}

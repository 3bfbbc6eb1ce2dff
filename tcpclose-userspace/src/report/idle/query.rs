//! What is asked for at `GET /v1/idle`.

use std::time::Duration;

use crate::report::query;
use crate::report::requests::IDLE_PATH;

/// The most sockets that one answer lists.
pub const MOST_SOCKETS: usize = 100_000;

/// What is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IdleQuery {
    /// The shortest silence.
    pub silent_for: Duration,
    /// Service ports; all if empty.
    pub ports: Vec<u16>,
    pub pid: Option<u32>,
    /// The inode of the only network namespace that is wanted.
    pub netns: Option<u32>,
    /// How many sockets are listed.
    pub sockets: usize,
}

/// The silence from which a connection counts as idle, by default: longer than the pauses of most protocols, and about what NAT gateways
/// and load balancers remember.
pub const DEFAULT_SILENCE: Duration = Duration::from_secs(600);

impl Default for IdleQuery {
    fn default() -> Self {
        Self { silent_for: DEFAULT_SILENCE, ports: Vec::new(), pid: None, netns: None, sockets: 0 }
    }
}

impl IdleQuery {
    /// Reads the part after the `?`.
    ///
    /// # Errors
    /// What is wrong with a field.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut wanted = Self::default();
        for (key, value) in query::fields(text, &["silent_for", "port", "pid", "netns", "sockets"])? {
            let number = |most: usize| query::number(key, value, 0..=most);
            match key {
                "silent_for" => wanted.silent_for = query::duration(key, value)?,
                "port" => {
                    let port = query::number(key, value, 1..=usize::from(u16::MAX))?;
                    wanted.ports.extend(u16::try_from(port));
                }
                "pid" => wanted.pid = u32::try_from(number(i32::MAX as usize)?).ok(),
                "netns" => wanted.netns = u32::try_from(number(u32::MAX as usize)?).ok(),
                _ => wanted.sockets = number(MOST_SOCKETS)?,
            }
        }
        Ok(wanted)
    }

    /// The path and query of the request.
    pub fn target(&self) -> String {
        let Self { silent_for, ports, pid, netns, sockets } = self;
        let silent_ms = silent_for.as_millis();
        let mut target =
            format!("{IDLE_PATH}?silent_for={silent_ms}ms&sockets={}", (*sockets).min(MOST_SOCKETS));
        ports.iter().for_each(|port| target.push_str(&format!("&port={port}")));
        pid.iter().for_each(|pid| target.push_str(&format!("&pid={pid}")));
        netns.iter().for_each(|netns| target.push_str(&format!("&netns={netns}")));
        target
    }

    pub fn silent_ns(&self) -> u64 {
        u64::try_from(self.silent_for.as_nanos()).unwrap_or(u64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_is_read_as_it_is_written() {
        let query = IdleQuery {
            silent_for: Duration::from_millis(1500),
            ports: vec![80, 443],
            pid: Some(42),
            netns: Some(4_026_531_840),
            sockets: 7,
        };
        for query in [query, IdleQuery::default()] {
            let target = query.target();
            let (path, fields) = target.split_once('?').unwrap();
            assert_eq!((path, IdleQuery::parse(fields)), (IDLE_PATH, Ok(query)));
        }
        assert_eq!(IdleQuery::parse(""), Ok(IdleQuery::default()));
        for (wrong, why) in [
            ("silent_for=soon", "silent_for=soon: "),
            ("port=0", "port=0: write a number from 1 to 65535"),
            ("sockets=100001", "sockets=100001: write a number from 0 to 100000"),
            ("limit=1", "limit: unknown key; this path has silent_for, port, pid, netns and sockets"),
        ] {
            assert!(IdleQuery::parse(wrong).unwrap_err().starts_with(why), "{wrong}");
        }
    }
}

//! What the kernel itself says of the network namespace that the calling thread is in, by every way there is.

use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind;
use std::process::Command;

use tcpclose::linux::sock_diag;
use tcpclose_common::state::TcpState;

/// Three counts of the same sockets, at three moments: equal only while nothing changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kernel {
    /// TIME-WAITs, by `sock_diag`.
    pub time_waits: usize,
    /// FIN-WAIT-2 minisockets, by `sock_diag`.
    pub fin_wait_2s: usize,
    /// FIN-WAIT-2 of a full socket: they are in the gauge, and are no minisockets.
    pub full_fin_wait_2s: usize,
    /// Lines of `ss -tan state time-wait`; `None` where there is no `ss`.
    pub ss: Option<usize>,
    /// `tw` of /proc/net/sockstat.
    pub tw: usize,
}

impl Kernel {
    pub fn look() -> Self {
        let states = TcpState::FinWait2.bit() | TcpState::TimeWait.bit();
        let dump = sock_diag::dump(states, false).unwrap();
        assert_eq!(dump.malformed, 0);
        let count = |state, minisocket| {
            dump.sockets.iter().filter(|s| s.state == state && s.minisocket == minisocket).count()
        };
        Self {
            time_waits: count(TcpState::TimeWait, true),
            fin_wait_2s: count(TcpState::FinWait2, true),
            full_fin_wait_2s: count(TcpState::FinWait2, false),
            ss: ss(),
            tw: proc_net("sockstat", "TCP:", "tw"),
        }
    }

    /// Whether all ways of counting agree.
    pub fn agrees(&self) -> bool {
        self.tw == self.time_waits + self.fin_wait_2s && self.ss.is_none_or(|ss| ss == self.time_waits)
    }
}

/// Lines of `ss -tan state time-wait`, without its heading.
fn ss() -> Option<usize> {
    match Command::new("ss").args(["-H", "-tan", "state", "time-wait"]).output() {
        Ok(done) => {
            assert!(done.status.success(), "ss: {}", String::from_utf8_lossy(&done.stderr));
            Some(done.stdout.iter().filter(|&&byte| byte == b'\n').count())
        }
        Err(why) if why.kind() == ErrorKind::NotFound => None,
        Err(why) => panic!("ss: {why}"),
    }
}

/// TCPTimeWaitOverflow.
pub fn overflows() -> usize {
    proc_net("netstat", "TcpExt:", "TCPTimeWaitOverflow")
}

/// A number of a file in /proc/net, of this thread's namespace: either `name value` in one line, or a line of names
/// above one of values.
fn proc_net(file: &str, group: &str, name: &str) -> usize {
    let text = fs::read_to_string(format!("/proc/thread-self/net/{file}")).unwrap();
    let lines: Vec<Vec<&str>> = text
        .lines()
        .filter_map(|line| line.strip_prefix(group))
        .map(|line| line.split_ascii_whitespace().collect())
        .collect();
    let pairs: BTreeMap<&str, &str> = match lines.as_slice() {
        [one] => one.chunks_exact(2).map(|pair| (pair[0], pair[1])).collect(),
        [names, values] => names.iter().copied().zip(values.iter().copied()).collect(),
        _ => panic!("{file} has another shape: {text}"),
    };
    pairs[name].parse().unwrap()
}

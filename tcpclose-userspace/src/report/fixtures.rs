//! Sockets and owners for tests.

use tcpclose_common::state::TcpState;

use crate::linux::cgroup::Workload;
use crate::linux::process::Process;
use crate::linux::sock_diag::Socket;
use crate::names::{Age, Diagnosis, Flow, Phase, Side};
use crate::report::sockets::{Cookie, Owner, StuckSocket};

pub const SECOND: u64 = 1_000_000_000;
pub const MINUTE: u64 = 60 * SECOND;

pub fn dumped_socket(state: TcpState, local: &str, remote: &str, inode: u32) -> Socket {
    let flow = Flow::new(local.parse().unwrap(), remote.parse().unwrap());
    Socket { cookie: u64::from(inode), inode, ..Socket::made_up(state, flow) }
}

pub fn close_wait(unread: u32) -> Socket {
    Socket { unread, ..dumped_socket(TcpState::CloseWait, "10.0.0.5:8080", "10.0.0.9:41234", 7) }
}

pub fn owner(pid: u32, comm: &str, fds: (u64, u64)) -> Owner {
    let process =
        Process { comm: comm.into(), fds_used: Some(fds.0), fds_limit: Some(fds.1), ..Process::default() };
    Owner { pid, fd: 5, process: process.into(), ..Owner::default() }
}

pub fn in_place(owner: Owner, place: Workload) -> Owner {
    Owner { process: Process { place, ..(*owner.process).clone() }.into(), ..owner }
}

pub fn socket(age_seconds: u64, owners: &[Owner]) -> StuckSocket {
    StuckSocket {
        state: Phase::CloseWait,
        side: Side::Server,
        port: 8080,
        local: "10.0.0.5:8080".parse().unwrap(),
        peer: "10.0.0.9:41234".parse().unwrap(),
        cookie: Cookie(1),
        interface: 0,
        inode: 7,
        uid: 1000,
        netns: 1,
        netns_id: 0,
        netns_name: None,
        age: Age::exact(age_seconds * 1_000_000_000).into(),
        unread_bytes: 0,
        unsent_bytes: 0,
        last_sent_seconds: None,
        written_bytes: None,
        last_write: None,
        mptcp: false,
        diagnosis: Some(Diagnosis::NotClosed),
        cause: None,
        retransmits: None,
        peer_window: None,
        timer_seconds: None,
        owners: owners.to_vec(),
        listeners: Vec::new(),
        closed_by: None,
        peer_owners: Vec::new(),
        peer_waits: false,
        stacks: None,
    }
}

//! The reconcile's dump of many TIME-WAITs, against `ss` and against a dump that nobody decodes.

use std::io;
use std::process::Command;

use anyhow::{Result, ensure};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_SOCK_DIAG};
use serde_json::json;
use tcpclose::linux::{host, sock_diag};
use tcpclose_common::state::TcpState;

use crate::Setting;
use crate::load::{self, Load, PORT};
use crate::process;
use crate::report::{Figure, Spread, cell, reached};

const SOCKETS: usize = 100_000;

/// CPU seconds of each way, turn by turn.
#[derive(Clone, Debug, Default, serde::Serialize)]
pub struct Dumps {
    /// A sock_diag dump whose answers are thrown away.
    pub bare: Vec<f64>,
    /// The agent's, decoded.
    pub ours: Vec<f64>,
    pub ss: Vec<f64>,
}

/// Dumps so many TIME-WAITs in turns.
pub fn run(sockets: usize, turns: usize) -> Result<Dumps> {
    load::in_a_namespace(|| {
        Load::listen(PORT)?.time_waits(sockets)?;
        let states = TcpState::TimeWait.bit() | TcpState::FinWait2.bit();
        let mut dumps = Dumps::default();
        for _ in 0..turns {
            let before = host::thread_cpu_ns();
            let bytes = bare_dump(states)?;
            dumps.bare.push((host::thread_cpu_ns() - before) as f64 / 1e9);
            ensure!(bytes > sockets * 50, "the bare dump had {bytes} bytes of answers");
            let dump = sock_diag::dump(states, true)?;
            ensure!(dump.sockets.len() >= sockets, "the dump had {} sockets", dump.sockets.len());
            dumps.ours.push(dump.cpu_ns as f64 / 1e9);
            let mut ss = Command::new("ss");
            dumps.ss.push(process::time(ss.args(["-tan", "state", "time-wait"]))?.cpu);
        }
        Ok(dumps)
    })
}

/// Asks for every TCP socket in `states`, and counts the bytes of the answers.
fn bare_dump(states: u32) -> io::Result<usize> {
    const TCPDIAG_GETSOCK: u16 = 18;
    const NLM_F_REQUEST_DUMP: u16 = 0x301;
    const NLMSG_DONE: u16 = 3;
    // struct nlmsghdr, then struct inet_diag_req (include/uapi/linux/inet_diag.h): states at 52 of its 60 bytes.
    let mut request = [0; 76];
    request[..4].copy_from_slice(&76u32.to_ne_bytes());
    request[4..6].copy_from_slice(&TCPDIAG_GETSOCK.to_ne_bytes());
    request[6..8].copy_from_slice(&NLM_F_REQUEST_DUMP.to_ne_bytes());
    request[68..72].copy_from_slice(&states.to_ne_bytes());
    let netlink = Socket::new(NETLINK_SOCK_DIAG)?;
    netlink.connect(&SocketAddr::new(0, 0))?;
    netlink.send(&request, 0)?;
    let mut buffer = Vec::with_capacity(1 << 16);
    let mut bytes = 0;
    loop {
        buffer.clear();
        netlink.recv(&mut buffer, 0)?;
        bytes += buffer.len();
        // The kernel puts NLMSG_DONE into a datagram of its own, or at the end of one: its length is 20.
        let done = |at: usize| buffer.get(at + 4..at + 6) == Some(&NLMSG_DONE.to_ne_bytes());
        if done(0) || buffer.len().checked_sub(20).is_some_and(done) {
            return Ok(bytes);
        }
    }
}

pub fn measure(setting: &Setting) -> Result<Figure> {
    let dumps = run(SOCKETS, setting.pairs)?;
    let spread = |cpu: &[f64]| Spread::of(cpu.iter().copied());
    let median = |cpu: &[f64]| spread(cpu).map_or(0.0, |cpu| cpu.median);
    let ss = median(&dumps.ss);
    let row = |name: &str, cpu: &[f64], verdict: String| {
        vec![name.to_owned(), cell(spread(cpu), 1e3, 1), format!("{:.2}", median(cpu) / ss), verdict]
    };
    let met = reached(median(&dumps.ours) <= ss / 2.0, "≤ 1/2 of ss");
    Ok(Figure {
        name: "dump",
        title: "Dump of 100,000 TIME-WAITs",
        method: format!(
            "CPU time of one dump, {} turns, in a namespace with {SOCKETS} TIME-WAITs: sock_diag with the \
             answers thrown away; the agent's dump, decoded; `ss -tan state time-wait` to /dev/null, the \
             whole process. Milliseconds, median (quartiles).",
            setting.pairs
        ),
        columns: vec!["who", "CPU ms", "÷ ss", "to reach"],
        rows: vec![
            row("ss -tan state time-wait", &dumps.ss, "–".to_owned()),
            row("tcpclose's dump", &dumps.ours, met),
            row("bare sock_diag dump", &dumps.bare, "–".to_owned()),
        ],
        samples: json!(dumps),
    })
}

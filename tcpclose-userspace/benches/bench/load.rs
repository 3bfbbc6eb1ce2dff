//! Connections over loopback, in network namespaces made for them: whole ones as fast as one core can, TIME-WAITs, and
//! CLOSE-WAITs that other processes hold.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener, TcpStream};
use std::process::{Child, Command, ExitCode, Stdio};
use std::thread::{scope, sleep};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rustix::thread::{CpuSet, sched_setaffinity};

use crate::place::{self, Netns};

/// TIME-WAITs that a namespace of ours may have: more than any run makes, so that none is skipped. The kernel's own
/// default is half the size of its table.
pub const MOST_TIME_WAITS: &str = "2000000";

/// Outside the local port range: has a name with the agent at once.
pub const PORT: u16 = 20_080;

/// After a namespace is dropped the kernel ends its TIME-WAITs in a worker; the next run is not to pay for that.
const SETTLE: Duration = Duration::from_millis(500);

/// Runs `run` in a new network namespace with loopback up. What it starts is there too.
pub fn in_a_namespace<T: Send>(run: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    let ran = scope(|scope| {
        let thread = scope.spawn(|| {
            let _netns = Netns::enter_new().context("no network namespace")?;
            place::set_sysctl("tcp_max_tw_buckets", MOST_TIME_WAITS)?;
            run()
        });
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    });
    sleep(SETTLE);
    ran
}

/// A listener, and the connections to it that have been made.
pub struct Load {
    listener: TcpListener,
    made: u32,
}

impl Load {
    pub fn listen(port: u16) -> io::Result<Self> {
        Ok(Self { listener: TcpListener::bind((Ipv4Addr::UNSPECIFIED, port))?, made: 0 })
    }

    pub fn made(&self) -> u32 {
        self.made
    }

    /// Both ends of a connection. Each goes to an address of its own, so that no TIME-WAIT is in its way and the ports
    /// do not run out.
    fn connect(&mut self) -> io::Result<(TcpStream, TcpStream)> {
        let port = self.listener.local_addr()?.port();
        let [_, a, b, c] = self.made.to_be_bytes();
        let to = SocketAddrV4::new(Ipv4Addr::new(127, 1 + (a & 0x3f), b, c), port);
        let client = TcpStream::connect(to)?;
        let (server, _) = self.listener.accept()?;
        self.made += 1;
        Ok((client, server))
    }

    /// One whole connection: the client closes first, then the server.
    pub fn whole(&mut self) -> io::Result<()> {
        let (client, server) = self.connect()?;
        drop(client);
        drop(server);
        Ok(())
    }

    /// Whole connections for as long as that; how many, and how long it was.
    pub fn for_a_while(&mut self, duration: Duration) -> io::Result<(u32, Duration)> {
        let (begun, before) = (Instant::now(), self.made);
        while begun.elapsed() < duration {
            for _ in 0..64 {
                self.whole()?;
            }
        }
        Ok((self.made - before, begun.elapsed()))
    }

    /// So many TIME-WAITs.
    pub fn time_waits(&mut self, count: usize) -> io::Result<()> {
        (0..count).try_for_each(|_| self.whole())
    }

    /// So many connections, both ends open.
    pub fn open(&mut self, count: usize) -> io::Result<Vec<(TcpStream, TcpStream)>> {
        (0..count).map(|_| self.connect()).collect()
    }
}

/// Keeps the calling thread on the last CPU. What it starts stays there too.
pub fn pin() -> Result<()> {
    let cpus = std::thread::available_parallelism()?.get();
    let mut set = CpuSet::new();
    set.set(cpus - 1);
    Ok(sched_setaffinity(None, &set)?)
}

/// Sockets that a process holds in CLOSE-WAIT: as many as the usual limit of open files lets it.
const HELD_BY_ONE: usize = 15_000;

/// Processes that hold CLOSE-WAITs; ended when dropped.
pub struct Holders(Vec<Child>);

impl Holders {
    /// As many CLOSE-WAITs as that, in the caller's namespace. The connections' other ends are orphans.
    pub fn of(count: usize) -> Result<Self> {
        let mut holders = Self(Vec::new());
        let mut left = count;
        while left > 0 {
            let share = left.min(HELD_BY_ONE);
            let port = PORT + 1 + holders.0.len() as u16;
            let mut command = Command::new(std::env::current_exe()?);
            command.env(HOLD, format!("{share},{port}")).stdin(Stdio::piped()).stdout(Stdio::piped());
            let mut child = command.spawn()?;
            let stdout = child.stdout.take().context("no pipe")?;
            holders.0.push(child);
            let mut line = String::new();
            BufReader::new(stdout).read_line(&mut line)?;
            ensure!(line == READY, "a holder of CLOSE-WAITs ended");
            left -= share;
        }
        Ok(holders)
    }
}

impl Drop for Holders {
    fn drop(&mut self) {
        for child in &mut self.0 {
            drop(child.stdin.take());
            let _ = child.wait();
        }
    }
}

/// Tells a process of this program that it is to hold sockets: how many, and on which port.
const HOLD: &str = "TCPCLOSE_BENCH_HOLD";
const READY: &str = "ready\n";

pub fn asked_to_hold() -> Option<(usize, u16)> {
    let words = std::env::var(HOLD).ok()?;
    let (count, port) = words.split_once(',')?;
    Some((count.parse().ok()?, port.parse().ok()?))
}

/// Holds CLOSE-WAITs until standard input ends.
pub fn hold((count, port): (usize, u16)) -> ExitCode {
    let held = Load::listen(port).and_then(|mut load| {
        let half = |_| load.connect().map(|(_, server)| server);
        (0..count).map(half).collect::<io::Result<Vec<TcpStream>>>()
    });
    match held {
        Ok(_held) => {
            let reported = io::stdout().write_all(READY.as_bytes()).and_then(|()| io::stdout().flush());
            let _ = reported.and_then(|()| io::stdin().read(&mut [0]));
            ExitCode::SUCCESS
        }
        Err(why) => {
            eprintln!("{count} CLOSE-WAITs cannot be held: {why}");
            ExitCode::FAILURE
        }
    }
}

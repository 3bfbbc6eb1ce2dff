//! Asks a helper process to name stacks.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use crate::linux::capabilities;
use crate::linux::stacks::helper::{self, NameReply, NameRequest};

static KILLED: AtomicU64 = AtomicU64::new(0);

/// How many helpers were killed at their deadline.
pub fn killed() -> u64 {
    KILLED.load(Ordering::Relaxed)
}

/// A helper process, started when it is first asked.
#[derive(Debug, Default)]
pub struct Namer {
    helper: Option<NamingHelper>,
    /// Helpers that were killed and have not ended, since they wait for a file system, and whose files those are.
    hanging: Vec<(Child, Files)>,
}

/// Whose files a helper reads: those of a user, or of one of root's processes, which are most of a host's services.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Files {
    OfUser(u32),
    OfProcess { pid: u32, began_ns: u64 },
}

impl Files {
    const fn of(request: &NameRequest, uid: u32) -> Self {
        let NameRequest { pid, began_ns, .. } = *request;
        if uid == 0 { Self::OfProcess { pid, began_ns } } else { Self::OfUser(uid) }
    }
}

#[derive(Debug)]
struct NamingHelper {
    child: Child,
    socket: UnixStream,
}

/// The time limit does not count what a helper waited for a processor, up to so many times the limit: a busy machine is no file
/// system that hangs.
const MOST_WAITING: u32 = 5;

/// The most helpers that may hang after they were killed: then no other is started.
const MOST_HANGING: usize = 16;

impl Namer {
    /// Names stacks of a process of the user `uid`, within `time` without what the helper waits for a processor.
    ///
    /// # Errors
    /// When no helper can be started, or it does not answer in time.
    pub fn name(&mut self, request: &NameRequest, uid: u32, time: Duration) -> io::Result<NameReply> {
        self.hanging.retain_mut(|(child, _)| matches!(child.try_wait(), Ok(None)));
        let files = Files::of(request, uid);
        if self.hanging.len() >= MOST_HANGING || self.hanging.iter().any(|(_, of)| *of == files) {
            return Err(io::Error::other("an earlier helper process hangs on the same files"));
        }
        let mut helper = match self.helper.take() {
            Some(helper) => helper,
            None => NamingHelper::start()?,
        };
        match helper.ask(request, time) {
            Ok(reply) => {
                self.helper = Some(helper);
                Ok(reply)
            }
            Err(why) => {
                KILLED.fetch_add(1, Ordering::Relaxed);
                // It has not been waited for, so its pid is still its own.
                let _ = helper.child.kill();
                self.hanging.push((helper.child, files));
                Err(why)
            }
        }
    }

    /// Ends the helper, which has nothing to do for now.
    pub fn rest(&mut self) {
        if let Some(NamingHelper { mut child, socket }) = self.helper.take() {
            drop(socket);
            // It has answered, so it reads no file and ends.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl Drop for Namer {
    fn drop(&mut self) {
        self.rest();
    }
}

impl NamingHelper {
    fn start() -> io::Result<Self> {
        let (socket, theirs) = UnixStream::pair()?;
        // This very program, whatever file its path leads to by now.
        let mut command = Command::new("/proc/self/exe");
        command
            .arg0("tcpclose")
            .arg(helper::COMMAND)
            .env_clear()
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let child = capabilities::passing_on(|| command.spawn())?;
        Ok(Self { child, socket })
    }

    fn ask(&mut self, request: &NameRequest, time: Duration) -> io::Result<NameReply> {
        let (begun, waited) = (Instant::now(), self.waited_for_processor());
        self.socket.set_write_timeout(Some(time))?;
        helper::send(&mut self.socket, request)?;
        loop {
            let waited = self.waited_for_processor().saturating_sub(waited).min(time * MOST_WAITING);
            let left = (time + waited).saturating_sub(begun.elapsed());
            if left.is_zero() {
                return Err(io::Error::new(
                    io::ErrorKind::TimedOut,
                    format!("the helper process did not answer in {}s", time.as_secs()),
                ));
            }
            if is_readable(&self.socket, left)? {
                break;
            }
        }
        self.socket.set_read_timeout(Some(time))?;
        let reply = helper::receive(&mut self.socket)?;
        reply.ok_or_else(|| io::Error::other("the helper process has ended"))
    }

    /// How long it was ready to run while others ran, since it began (`run_delay`: kernel/sched/stats.h, sched_info_arrive(), 5.10 to
    /// 6.18; fs/proc/base.c, proc_pid_schedstat()). Zero where the kernel does not tell.
    fn waited_for_processor(&self) -> Duration {
        let times = std::fs::read_to_string(format!("/proc/{}/schedstat", self.child.id()));
        let waited = times.ok().and_then(|times| times.split(' ').nth(1)?.parse().ok());
        Duration::from_nanos(waited.unwrap_or(0))
    }
}

/// Waits for `time` at most until something can be read, or the other end is gone.
fn is_readable(socket: &UnixStream, time: Duration) -> io::Result<bool> {
    let time = Timespec::try_from(time).map_err(io::Error::other)?;
    match poll(&mut [PollFd::new(socket, PollFlags::IN)], Some(&time)) {
        Ok(ready) => Ok(ready > 0),
        Err(Errno::INTR) => Ok(false),
        Err(why) => Err(why.into()),
    }
}

//! What runs the executables of other users' processes, told by reading them.
//!
//! Whoever owns an executable decides whether an open of it comes back. A lease that is held on it breaks after 45 s
//! (fs/locks.c, __break_lease(); O_NONBLOCK makes that EWOULDBLOCK, 5.8 to 6.18), and a file on FUSE or NFS answers when its server
//! does; a local user can have an overlay on a FUSE mount of their own, through which root's accesses count as theirs
//! (fs/overlayfs/file.c, ovl_open()). Such a wait does not end by a signal (fs/fuse/dev.c, request_wait_answer()). So this process never opens
//! one: it takes hold of it by O_PATH, which calls no file system (fs/open.c, do_dentry_open()), and a [`helper`], this
//! program once more and without any capability, opens and reads. What it has not answered in time is unknown and is named.

mod file_key;
pub mod helper;

use std::io;
use std::mem;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, Once, PoisonError};
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustc_hash::FxHashMap;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType, recv, socketpair};

use crate::linux::executables::file_key::{FileKey, file_key};
use crate::linux::executables::helper::{HelperAnswer, HelperVerdict};
use crate::names::Runtime;

/// For how long one question waits for executables.
pub const WITHIN: Duration = Duration::from_secs(2);

/// Executables that a helper has at a time.
const AT_A_TIME: usize = 32;

/// Helpers that were killed and did not end. Each hangs on files of somebody's making: with so many, no other is started.
const MOST_HANGING: usize = 4;

/// Whether this program has the command [`helper::COMMAND`]; a test's or a benchmark's has not.
static HAS_COMMAND: AtomicBool = AtomicBool::new(false);

static KILLED: AtomicU64 = AtomicU64::new(0);
static HANGING: Mutex<Vec<Hanging>> = Mutex::new(Vec::new());

/// To be called by a program that runs [`helper::serve`] when it is told [`helper::COMMAND`].
pub fn has_command() {
    HAS_COMMAND.store(true, Ordering::Relaxed);
}

/// How many helpers were killed at their deadline.
pub fn killed() -> u64 {
    KILLED.load(Ordering::Relaxed)
}

/// What was told of executables.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RuntimeAnswers {
    /// By pid. An executable that this user may not read has none.
    pub runs: FxHashMap<u32, Runtime>,
    /// Processes whose executables were not answered for: the file's server, a lease on it, or no helper to ask.
    pub unanswered: Vec<u32>,
}

struct Hanging {
    child: Child,
    /// What it hangs on.
    on: Vec<FileKey>,
}

struct Question {
    key: FileKey,
    /// The processes that run it.
    pids: Vec<u32>,
}

/// Somebody to ask: a helper that starts while the questions are still being gathered.
pub struct HelperHandle {
    helper: Option<Helper>,
    /// What earlier helpers hang on.
    known: Vec<FileKey>,
}

struct Helper {
    child: Child,
    socket: OwnedFd,
}

impl HelperHandle {
    pub fn begin() -> Self {
        let (hanging, known) = hanging();
        let may = HAS_COMMAND.load(Ordering::Relaxed) && hanging < MOST_HANGING;
        let helper = may.then(|| Helper::start().map_err(said_once).ok()).flatten();
        Self { helper, known }
    }

    /// What runs the executables of the processes `pids`. Returns by `until`, or shortly after.
    pub fn ask(self, pids: Vec<u32>, until: Instant) -> RuntimeAnswers {
        let mut told = RuntimeAnswers::default();
        if !HAS_COMMAND.load(Ordering::Relaxed) {
            return told;
        }
        let (asked, hung): (Vec<Question>, Vec<Question>) =
            questions(pids).into_iter().partition(|question| !self.known.contains(&question.key));
        told.unanswered.extend(hung.into_iter().flat_map(|question| question.pids));
        let Some(helper) = self.helper else {
            told.unanswered.extend(asked.into_iter().flat_map(|question| question.pids));
            return told;
        };
        let states = converse(&helper.socket, &asked, until);
        let mut on = Vec::new();
        for (Question { key, pids }, state) in asked.into_iter().zip(states) {
            match state {
                QuestionState::Answered(HelperVerdict::Runs(runs)) => {
                    told.runs.extend(pids.into_iter().map(|pid| (pid, runs)));
                }
                QuestionState::Answered(HelperVerdict::Refused) => {}
                QuestionState::Answered(HelperVerdict::Leased) | QuestionState::Waiting => {
                    told.unanswered.extend(pids)
                }
                QuestionState::Sent => {
                    on.push(key);
                    told.unanswered.extend(pids);
                }
            }
        }
        helper.end(on);
        told
    }
}

impl Helper {
    fn start() -> io::Result<Self> {
        let (socket, theirs) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        // This very program, whatever lies at its path by now.
        let child = Command::new("/proc/self/exe")
            .arg0("tcpclose")
            .arg(helper::COMMAND)
            .env_clear()
            .stdin(Stdio::from(theirs))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        Ok(Self { child, socket })
    }

    /// It ends by itself when nobody can ask any more, and is killed where it hangs `on` something.
    fn end(self, on: Vec<FileKey>) {
        /// A process that nothing keeps ends in a millisecond; on a busy machine it waits for its turn.
        const MOMENT: Duration = Duration::from_millis(200);
        let Self { mut child, socket } = self;
        drop(socket);
        if !on.is_empty() {
            KILLED.fetch_add(1, Ordering::Relaxed);
            // It is not waited for yet, so the number is still its own.
            let _ = child.kill();
        }
        let (begun, mut pause) = (Instant::now(), Duration::from_micros(100));
        while begun.elapsed() < MOMENT {
            if !matches!(child.try_wait(), Ok(None)) {
                return;
            }
            sleep(pause);
            pause *= 2;
        }
        let _ = child.kill();
        all_hanging().push(Hanging { child, on });
    }
}

/// How many helpers have not ended, and on what they hang.
fn hanging() -> (usize, Vec<FileKey>) {
    let mut all = all_hanging();
    all.retain_mut(|hanging| matches!(hanging.child.try_wait(), Ok(None)));
    (all.len(), all.iter().flat_map(|hanging| hanging.on.iter().copied()).collect())
}

fn all_hanging() -> MutexGuard<'static, Vec<Hanging>> {
    HANGING.lock().unwrap_or_else(PoisonError::into_inner)
}

fn said_once(why: io::Error) {
    static SAID: Once = Once::new();
    SAID.call_once(|| {
        log::warn!(
            "executables are not read: no helper process can be started: {why} (allow this program to execute itself)"
        );
    });
}

/// One question for each executable, in order of pid.
fn questions(mut pids: Vec<u32>) -> Vec<Question> {
    pids.sort_unstable();
    let mut at: FxHashMap<FileKey, usize> = FxHashMap::default();
    let mut questions: Vec<Question> = Vec::new();
    for pid in pids {
        let Some(key) = file_key(CWD, &path(pid)) else { continue };
        let index = *at.entry(key).or_insert(questions.len());
        match questions.get_mut(index) {
            Some(question) => question.pids.push(pid),
            None => questions.push(Question { key, pids: vec![pid] }),
        }
    }
    questions
}

fn path(pid: u32) -> String {
    format!("/proc/{pid}/exe")
}

/// Takes hold of an executable without opening it.
fn hold(question: &Question) -> Option<OwnedFd> {
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let mut held = question.pids.iter().filter_map(|&pid| openat(CWD, path(pid), flags, Mode::empty()).ok());
    // One process may have ended, or execute something else by now.
    held.find(|file| file_key(file, "") == Some(question.key))
}

/// How far a question has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum QuestionState {
    Waiting,
    Sent,
    Answered(HelperVerdict),
}

/// Asks `questions` and takes answers until there are no more, the helper is gone, or it is `until`.
fn converse(socket: &OwnedFd, questions: &[Question], until: Instant) -> Vec<QuestionState> {
    let mut states = vec![QuestionState::Waiting; questions.len()];
    let (mut next, mut sent) = (0, 0_usize);
    while sent > 0 || next < questions.len() {
        while sent < AT_A_TIME
            && let (Some(question), Some(state)) = (questions.get(next), states.get_mut(next))
        {
            let done = hold(question).map(|file| helper::ask(socket, next as u32, &file));
            *state = match done {
                None => QuestionState::Answered(HelperVerdict::Refused),
                Some(Ok(())) => QuestionState::Sent,
                Some(Err(Errno::AGAIN)) if sent > 0 => break,
                Some(Err(_)) => return states,
            };
            sent += usize::from(*state == QuestionState::Sent);
            next += 1;
        }
        if sent == 0 {
            continue;
        }
        if !is_readable(socket, until) {
            break;
        }
        let mut bytes = [0; HelperAnswer::SIZE];
        match recv(socket, &mut bytes, RecvFlags::DONTWAIT) {
            Ok((_, HelperAnswer::SIZE)) => {
                if let Some(HelperAnswer { index, verdict }) = HelperAnswer::decode(bytes)
                    && let Some(state) = states.get_mut(index as usize)
                    && mem::replace(state, QuestionState::Answered(verdict)) == QuestionState::Sent
                {
                    sent -= 1;
                }
            }
            Err(Errno::AGAIN | Errno::INTR) => {}
            // It has ended.
            Ok(_) | Err(_) => break,
        }
    }
    states
}

/// Waits until there is something to take, or until it is `until`.
fn is_readable(socket: &OwnedFd, until: Instant) -> bool {
    loop {
        let left = until.saturating_duration_since(Instant::now());
        let Ok(left) = Timespec::try_from(left) else { return false };
        let mut fds = [PollFd::new(socket, PollFlags::IN)];
        match poll(&mut fds, Some(&left)) {
            Err(Errno::INTR) => {}
            Ok(ready) => return ready > 0,
            Err(_) => return false,
        }
    }
}

#[cfg(test)]
mod tests;

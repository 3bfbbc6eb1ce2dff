//! The runtime of other users' processes, found by reading their executables.
//!
//! The owner of an executable decides whether an open of it returns. A lease that is held on it breaks after 45 s
//! (fs/locks.c, __break_lease(); O_NONBLOCK makes that EWOULDBLOCK, 5.8 to 6.18), and a file on FUSE or NFS answers
//! when its server does; a local user can have an overlay on a FUSE mount of their own, through which root's accesses
//! count as theirs (fs/overlayfs/file.c, ovl_open()). Such a wait does not end by a signal (fs/fuse/dev.c,
//! request_wait_answer()). So this process never opens one: it holds the file by O_PATH, which calls no file system
//! (fs/open.c, do_dentry_open()), and a [`helper`], another process of this program without any capability, opens and
//! reads it. Executables that it has not read in time are reported as unknown.

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

/// The time limit for reading executables.
pub const WITHIN: Duration = Duration::from_secs(2);

/// The most executables that a helper reads at a time.
const AT_A_TIME: usize = 32;

/// The most helpers that may hang after they were killed, each on files of some user: then no other is started.
const MOST_HANGING: usize = 4;

/// Whether this program has the command [`helper::COMMAND`]; tests and benchmarks have not.
static HAS_COMMAND: AtomicBool = AtomicBool::new(false);

static KILLED: AtomicU64 = AtomicU64::new(0);
static HANGING: Mutex<Vec<Hanging>> = Mutex::new(Vec::new());

/// To be called by a program that runs [`helper::serve`] for [`helper::COMMAND`].
pub fn has_command() {
    HAS_COMMAND.store(true, Ordering::Relaxed);
}

/// How many helpers were killed at their deadline.
pub fn killed() -> u64 {
    KILLED.load(Ordering::Relaxed)
}

/// What helpers have found out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RuntimeAnswers {
    /// Runtimes by pid, without those whose executable this user is not allowed to read.
    pub runs: FxHashMap<u32, Runtime>,
    /// Processes whose executables were not read: the file's server hangs, a lease is held on it, or no helper runs.
    pub unanswered: Vec<u32>,
}

struct Hanging {
    child: Child,
    /// The files that it hangs on.
    on: Vec<FileKey>,
}

struct Question {
    key: FileKey,
    /// The processes that run this file.
    pids: Vec<u32>,
}

/// A helper, which starts while the questions are still being collected.
pub struct HelperHandle {
    helper: Option<Helper>,
    /// The files that earlier helpers hang on.
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
        let helper = may.then(|| Helper::start().map_err(warn_once).ok()).flatten();
        Self { helper, known }
    }

    /// The runtimes of the processes `pids`. Returns by `until`, or shortly after.
    pub fn ask(self, pids: Vec<u32>, until: Instant) -> RuntimeAnswers {
        let mut answers = RuntimeAnswers::default();
        if !HAS_COMMAND.load(Ordering::Relaxed) {
            return answers;
        }
        let (asked, hung): (Vec<Question>, Vec<Question>) =
            questions(pids).into_iter().partition(|question| !self.known.contains(&question.key));
        answers.unanswered.extend(hung.into_iter().flat_map(|question| question.pids));
        let Some(helper) = self.helper else {
            answers.unanswered.extend(asked.into_iter().flat_map(|question| question.pids));
            return answers;
        };
        let states = converse(&helper.socket, &asked, until);
        let mut on = Vec::new();
        for (Question { key, pids }, state) in asked.into_iter().zip(states) {
            match state {
                QuestionState::Answered(HelperVerdict::Runs(runs)) => {
                    answers.runs.extend(pids.into_iter().map(|pid| (pid, runs)));
                }
                QuestionState::Answered(HelperVerdict::Refused) => {}
                QuestionState::Answered(HelperVerdict::Leased) | QuestionState::Waiting => {
                    answers.unanswered.extend(pids)
                }
                QuestionState::Sent => {
                    on.push(key);
                    answers.unanswered.extend(pids);
                }
            }
        }
        helper.end(on);
        answers
    }
}

impl Helper {
    fn start() -> io::Result<Self> {
        let (socket, theirs) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        // This very program, whatever file its path leads to by now.
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

    /// Closes the socket, which ends the helper; kills it where it hangs `on` files.
    fn end(self, on: Vec<FileKey>) {
        /// A helper that does not hang ends in a millisecond, later on a busy machine.
        const MOMENT: Duration = Duration::from_millis(200);
        let Self { mut child, socket } = self;
        drop(socket);
        if !on.is_empty() {
            KILLED.fetch_add(1, Ordering::Relaxed);
            // It has not been waited for, so its pid is still its own.
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

/// How many helpers have not ended, and the files that they hang on.
fn hanging() -> (usize, Vec<FileKey>) {
    let mut all = all_hanging();
    all.retain_mut(|hanging| matches!(hanging.child.try_wait(), Ok(None)));
    (all.len(), all.iter().flat_map(|hanging| hanging.on.iter().copied()).collect())
}

fn all_hanging() -> MutexGuard<'static, Vec<Hanging>> {
    HANGING.lock().unwrap_or_else(PoisonError::into_inner)
}

fn warn_once(why: io::Error) {
    static WARNED: Once = Once::new();
    WARNED.call_once(|| {
        log::warn!(
            "cannot start a helper process to read executables: {why} (allow this program to execute itself)"
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

/// Holds an executable by O_PATH, without opening it.
fn hold(question: &Question) -> Option<OwnedFd> {
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let mut held = question.pids.iter().filter_map(|&pid| openat(CWD, path(pid), flags, Mode::empty()).ok());
    // A process may have ended, or execute another file by now.
    held.find(|file| file_key(file, "") == Some(question.key))
}

/// The state of a question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum QuestionState {
    Waiting,
    Sent,
    Answered(HelperVerdict),
}

/// Sends `questions` and receives answers until all are in, the helper is gone, or it is `until`.
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
            // The helper has ended.
            Ok(_) | Err(_) => break,
        }
    }
    states
}

/// Waits for a message, or until it is `until`.
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

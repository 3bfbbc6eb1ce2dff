use std::ffi::CString;
use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::thread::{self, JoinHandle};

use rustix::fs::FileType;

use crate::linux::executables::*;

/// A helper on a thread of this process, without what only a process of its own can give up.
fn helper() -> (OwnedFd, JoinHandle<()>) {
    let (ours, theirs) =
        socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
    (ours, thread::spawn(move || helper::serve_for_a_test(theirs)))
}

/// What a helper says of the file at `path`.
fn reported_of(path: &Path) -> HelperVerdict {
    let (socket, thread) = helper();
    let held = openat(CWD, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).unwrap();
    helper::ask(&socket, 7, &held).unwrap();
    let mut bytes = [0; HelperAnswer::SIZE];
    recv(&socket, &mut bytes, RecvFlags::empty()).unwrap();
    drop(socket);
    thread.join().unwrap();
    let HelperAnswer { index, verdict } = HelperAnswer::decode(bytes).unwrap();
    assert_eq!(index, 7);
    verdict
}

#[test]
fn only_regular_files_are_opened_and_none_is_waited_for() {
    let folder = tempfile::tempdir().unwrap();
    assert_eq!(reported_of(&std::env::current_exe().unwrap()), HelperVerdict::Runs(Runtime::Native));
    let fifo = folder.path().join("fifo");
    rustix::fs::mknodat(CWD, &fifo, FileType::Fifo, Mode::RUSR, 0).unwrap();
    for no_file in [&*fifo, folder.path(), Path::new("/dev/null")] {
        assert_eq!(reported_of(no_file), HelperVerdict::Refused, "{}", no_file.display());
    }
}

/// F_SETLEASE wants the file to be the caller's and opened by nobody else.
#[test]
fn a_leased_file_is_recognized() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("leased");
    fs::copy("/bin/true", &path).unwrap();
    let leased = File::open(&path).unwrap();
    // SAFETY: neither call has a pointer for an argument, and SIGIO, which a break of the lease sends, is nobody's here.
    unsafe {
        libc::signal(libc::SIGIO, libc::SIG_IGN);
        assert_eq!(libc::fcntl(leased.as_raw_fd(), libc::F_SETLEASE, libc::F_WRLCK), 0);
    }
    assert_eq!(reported_of(&path), HelperVerdict::Leased);
    drop(leased);
    assert_eq!(reported_of(&path), HelperVerdict::Runs(Runtime::Native));
}

/// Fewer are asked at a time than there are, and nobody answers for a process that is gone.
#[test]
fn each_question_is_answered() {
    let (socket, thread) = helper();
    let own = std::process::id();
    let [own_key] = questions(vec![own]).iter().map(|question| question.key).collect::<Vec<_>>()[..] else {
        panic!("one")
    };
    let mut asked: Vec<Question> =
        (0..2 * AT_A_TIME + 3).map(|_| Question { key: own_key, pids: vec![u32::MAX, own] }).collect();
    asked.push(Question { key: own_key, pids: vec![u32::MAX] });
    asked.push(Question { key: (0, 0, 0), pids: vec![own] });
    let states = converse(&socket, &asked, Instant::now() + Duration::from_secs(60));
    let (answered, gone) = states.split_at(2 * AT_A_TIME + 3);
    assert!(
        answered.iter().all(|state| *state == QuestionState::Answered(HelperVerdict::Runs(Runtime::Native)))
    );
    assert!(gone.iter().all(|state| *state == QuestionState::Answered(HelperVerdict::Refused)));
    drop(socket);
    thread.join().unwrap();
}

/// A helper that never answers, and one that has ended.
#[test]
fn what_is_not_answered_is_not_waited_for() {
    let own = || questions(vec![std::process::id()]);
    let (socket, theirs) =
        socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
    assert_eq!(converse(&socket, &own(), Instant::now()), [QuestionState::Sent]);
    drop(theirs);
    let states = converse(&socket, &own(), Instant::now() + Duration::from_secs(3600));
    assert_eq!(states, [QuestionState::Waiting]);
}

#[test]
fn processes_that_run_one_file_make_one_question() {
    let mut other = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
    let (own, pid) = (std::process::id(), other.id());
    // A child that was just forked runs this program still.
    let exe = CString::new(fs::canonicalize("/bin/sleep").unwrap().as_os_str().as_bytes()).unwrap();
    while rustix::fs::readlink(path(pid), Vec::new()).unwrap() != exe {
        sleep(Duration::from_millis(1));
    }
    let mut asked: Vec<Vec<u32>> =
        questions(vec![pid, own, u32::MAX, own]).into_iter().map(|question| question.pids).collect();
    asked.sort();
    let mut expected = vec![vec![own, own], vec![pid]];
    expected.sort();
    assert_eq!(asked, expected);
    other.kill().unwrap();
    other.wait().unwrap();
}

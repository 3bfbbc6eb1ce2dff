//! The helper process that opens and reads executables for the main one, which kills it when it does not answer.

use std::fs::File;
use std::io::{self, ErrorKind, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::process::ExitCode;
use std::sync::Arc;
use std::thread;

use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, send, sendmsg,
};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::linux::capabilities;
use crate::linux::elf;
use crate::linux::executables::file_key::file_key;
use crate::names::Runtime;

/// The command that runs this program as a helper. It is not for people.
pub const COMMAND: &str = "read-executables";

/// What a helper has found out about a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HelperVerdict {
    Runs(Runtime),
    /// The helper is not allowed to read it, or it is not a regular file.
    Refused,
    /// A process holds a lease on it.
    Leased,
}

/// A helper's answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HelperAnswer {
    /// The index of the question.
    pub index: u32,
    pub verdict: HelperVerdict,
}

impl HelperAnswer {
    pub const SIZE: usize = 5;

    const VERDICTS: [HelperVerdict; 4] = [
        HelperVerdict::Runs(Runtime::Native),
        HelperVerdict::Runs(Runtime::Go),
        HelperVerdict::Refused,
        HelperVerdict::Leased,
    ];

    fn encode(self) -> [u8; Self::SIZE] {
        let code = Self::VERDICTS.iter().position(|verdict| *verdict == self.verdict);
        let [a, b, c, d] = self.index.to_le_bytes();
        // A verdict without a code is invalid to the reader too.
        [a, b, c, d, code.map_or(u8::MAX, |code| code as u8)]
    }

    /// `None` for bytes that no helper writes.
    pub fn decode([a, b, c, d, code]: [u8; Self::SIZE]) -> Option<Self> {
        let verdict = *Self::VERDICTS.get(usize::from(code))?;
        Some(Self { index: u32::from_le_bytes([a, b, c, d]), verdict })
    }
}

/// Asks the helper at the other end of `socket` about the file that `file` holds. Never waits.
pub fn ask(socket: impl AsFd, index: u32, file: &OwnedFd) -> Result<(), Errno> {
    let fds = [file.as_fd()];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    control.push(SendAncillaryMessage::ScmRights(&fds));
    let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
    sendmsg(socket, &[IoSlice::new(&index.to_le_bytes())], &mut control, flags).map(drop)
}

/// Runs as a helper, with the socket as standard input; ends when the other end is closed.
pub fn serve() -> ExitCode {
    let served = confine().and_then(|()| serve_on(&Arc::new(io::stdin().as_fd().try_clone_to_owned()?)));
    match served {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("tcpclose: {COMMAND}: {why} (tcpclose runs this command itself)");
            ExitCode::from(crate::failure::Failure::EXIT)
        }
    }
}

/// Drops every privilege beyond the user's own.
fn confine() -> io::Result<()> {
    const MEMORY: u64 = 64 << 20;
    capabilities::give_up_all()?;
    let most = getrlimit(Resource::As).maximum.map_or(MEMORY, |most| most.min(MEMORY));
    // A seccomp filter can refuse this; reads are bounded anyway.
    let _ = setrlimit(Resource::As, Rlimit { current: Some(most), maximum: Some(most) });
    Ok(())
}

/// Answers the questions on `socket`, each on a thread of its own, so that no file delays others.
fn serve_on(socket: &Arc<OwnedFd>) -> io::Result<()> {
    /// A thread here has a few hundred bytes of its own.
    const STACK: usize = 128 << 10;
    while let Some((index, file)) = question(socket)? {
        let socket = Arc::clone(socket);
        let answer = move || {
            let verdict = judge(&file);
            drop(file);
            // The other end may be gone.
            let _ = send(&*socket, &HelperAnswer { index, verdict }.encode(), SendFlags::NOSIGNAL);
        };
        thread::Builder::new().stack_size(STACK).spawn(answer)?;
    }
    Ok(())
}

/// The next question; `None` when the other end is closed.
fn question(socket: &OwnedFd) -> io::Result<Option<(u32, OwnedFd)>> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut index = [0; 4];
    let received = loop {
        let mut into = [IoSliceMut::new(&mut index)];
        match recvmsg(socket, &mut into, &mut control, RecvFlags::CMSG_CLOEXEC) {
            Err(Errno::INTR) => {}
            received => break received?,
        }
    };
    let file = control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut files) => files.next(),
        _ => None,
    });
    match (received.bytes, file) {
        (0, _) => Ok(None),
        (4, Some(file)) => Ok(Some((u32::from_le_bytes(index), file))),
        _ => Err(io::Error::new(ErrorKind::InvalidData, "malformed question")),
    }
}

/// Opens and reads the file that `held` holds.
fn judge(held: &OwnedFd) -> HelperVerdict {
    // The same file, opened for reading without walking a path.
    let path = format!("/proc/self/fd/{}", held.as_raw_fd());
    // The kind is checked before opening, which would start a device and wait for a pipe.
    if file_key(held, "").is_none() {
        return HelperVerdict::Refused;
    }
    let flags = libc::O_NONBLOCK | libc::O_NOCTTY;
    match File::options().read(true).custom_flags(flags).open(path) {
        Ok(file) if elf::is_go(&file) => HelperVerdict::Runs(Runtime::Go),
        Ok(_) => HelperVerdict::Runs(Runtime::Native),
        Err(why) if why.kind() == ErrorKind::WouldBlock => HelperVerdict::Leased,
        Err(_) => HelperVerdict::Refused,
    }
}

#[cfg(test)]
pub(super) fn serve_for_a_test(socket: OwnedFd) {
    serve_on(&Arc::new(socket)).unwrap();
}

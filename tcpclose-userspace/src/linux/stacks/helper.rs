//! The helper process that names stacks for the agent, which kills it when it does not answer.
//!
//! It reads files that other users own, and maps them: one that is truncated meanwhile ends this process, and nothing else.

use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::process::ExitCode;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::linux::capabilities;
use crate::linux::host;
use crate::linux::process;
use crate::linux::stacks::frames::{RawStack, Stack};
use crate::linux::stacks::process_files::ProcessFiles;
use crate::linux::stacks::{generated, symbols};

/// The command that runs this program as a helper. It is not for people.
pub const COMMAND: &str = "name-stacks";

/// Stacks of a process to name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NameRequest {
    pub pid: u32,
    /// When the process began, which tells it from a later one with its pid.
    pub began_ns: u64,
    pub stacks: Vec<RawStack>,
}

/// The helper's answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NameReply {
    /// In the order of the request; or why the process cannot be read.
    pub stacks: Result<Vec<Stack>, String>,
    /// CPU time that it took.
    pub cpu_ns: u64,
}

/// The largest message, bytes.
const LARGEST: u32 = 32 << 20;

/// Runs as a helper, with the socket as standard input; ends when the other end is closed.
pub fn serve() -> ExitCode {
    let served =
        confine().and_then(|()| serve_on(&mut UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?)));
    match served {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("tcpclose: {COMMAND}: {why} (tcpclose runs this command itself)");
            ExitCode::from(crate::failure::Failure::EXIT)
        }
    }
}

/// Keeps only what reading other processes takes.
fn confine() -> io::Result<()> {
    /// Of data; mapped files do not count.
    const MEMORY: u64 = 64 << 20;
    capabilities::keep_for_reading_processes()?;
    let most = getrlimit(Resource::Data).maximum.map_or(MEMORY, |most| most.min(MEMORY));
    // A seccomp filter can refuse these; the agent's deadline holds anyway.
    let _ = setrlimit(Resource::Data, Rlimit { current: Some(most), maximum: Some(most) });
    // Others go first; but with 19 it would get not a hundredth of a processor that is busy.
    let _ = rustix::process::nice(5);
    Ok(())
}

fn serve_on(socket: &mut UnixStream) -> io::Result<()> {
    while let Some(request) = receive::<NameRequest>(socket)? {
        let before = host::thread_cpu_ns();
        let stacks = name(&request);
        let cpu_ns = host::thread_cpu_ns().saturating_sub(before);
        send(socket, &NameReply { stacks, cpu_ns })?;
    }
    Ok(())
}

fn name(request: &NameRequest) -> Result<Vec<Stack>, String> {
    let NameRequest { pid, began_ns, stacks } = request;
    let files = ProcessFiles::of(*pid);
    // Whatever was opened is of the process that has the pid now.
    if process::started(*pid).is_none_or(|(began, _)| began != *began_ns) {
        return Err("the process has ended".to_owned());
    }
    let mut files = files.map_err(|why| why.to_string())?;
    stacks.iter().for_each(|stack| files.open_for(stack));
    let mut named: Vec<Stack> = stacks.iter().map(|stack| files.frames(stack)).collect();
    symbols::name(&mut named, &files);
    generated::name(&mut named, *pid, &files);
    Ok(named)
}

/// Sends a message: its length, then MessagePack.
///
/// # Errors
/// When the other end is gone.
pub fn send(socket: &mut UnixStream, message: &impl Serialize) -> io::Result<()> {
    let bytes = rmp_serde::to_vec_named(message).map_err(io::Error::other)?;
    let length = u32::try_from(bytes.len()).ok().filter(|length| *length <= LARGEST);
    let length = length.ok_or_else(|| io::Error::other("the message is too large"))?;
    socket.write_all(&length.to_le_bytes())?;
    socket.write_all(&bytes)
}

/// Receives a message; `None` when the other end was closed in between.
///
/// # Errors
/// When the other end is gone in the middle of a message, or this is none.
pub fn receive<T: DeserializeOwned>(socket: &mut UnixStream) -> io::Result<Option<T>> {
    let mut length = [0; 4];
    match socket.read_exact(&mut length) {
        Err(why) if why.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        read => read?,
    }
    let length = u32::from_le_bytes(length);
    if length > LARGEST {
        return Err(io::Error::other("the message is too large"));
    }
    let mut bytes = vec![0; length as usize];
    socket.read_exact(&mut bytes)?;
    rmp_serde::from_slice(&bytes).map(Some).map_err(io::Error::other)
}

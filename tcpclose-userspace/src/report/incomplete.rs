//! What a document lacks, one sentence each.

use crate::linux::executables;
use crate::linux::host::Capability;
use crate::linux::owners;
use crate::linux::owners::Owners;
use crate::linux::sock_diag::Dump;
use crate::names::{Diagnosis, Phase};
use crate::report::accept_queues;
use crate::report::accept_queues::AcceptQueues;
use crate::report::sockets::StuckSocket;

/// The capabilities that a search for owners needs to read other users' processes.
pub const NEEDED: [Capability; 2] = [Capability::SysPtrace, Capability::DacReadSearch];

/// `CAP_SYS_PTRACE is needed to read other users' /proc/PID/fd`; `None` where none of [`NEEDED`] is `missing`.
pub fn needed(missing: &[Capability]) -> Option<String> {
    let names: Vec<&str> = missing.iter().map(|capability| capability.name()).collect();
    let what = match names.as_slice() {
        [] => return None,
        [one] => format!("{one} is"),
        all => format!("{} are", all.join(" and ")),
    };
    Some(format!("{what} needed to read other users' /proc/PID/fd"))
}

/// The owners that may be missing since `denied` processes do not let this one read which files they have.
pub fn unreadable(denied: u32, missing: &[Capability]) -> Option<String> {
    let processes = match denied {
        0 => return None,
        1 => "1 process was".to_owned(),
        n => format!("{n} processes were"),
    };
    Some(match needed(missing) {
        Some(needed) => format!("owners may be missing: {needed} ({processes} not read)"),
        None => format!("owners may be missing: {processes} not read, since the kernel refused it"),
    })
}

/// What a dump and a search for owners did not see. `missing`: of [`NEEDED`], the capabilities that the search lacked.
pub fn incomplete(
    dump: &Dump,
    owners: &Owners,
    sockets: &[StuckSocket],
    missing: &[Capability],
) -> Vec<String> {
    let mut incomplete: Vec<String> = unknown_owners(owners, sockets, missing).into_iter().collect();
    incomplete.extend(unknown_listeners(sockets));
    incomplete.extend(unanswered(owners));
    incomplete.extend(unknown_programs(owners, missing));
    incomplete.extend(of_the_dump(dump));
    incomplete
}

/// What a dump did not see.
pub fn of_the_dump(dump: &Dump) -> Vec<String> {
    let mut incomplete = Vec::new();
    if dump.malformed > 0 {
        incomplete.push(format!("{} answers of the kernel could not be decoded", dump.malformed));
    }
    if dump.interrupted {
        incomplete.push("the kernel's table changed during the dump: sockets may be missing".to_owned());
    }
    incomplete
}

/// Sockets of namespaces that were not dumped, whose owners only the iterator over files finds.
pub fn of_undumped(owners: &Owners, sockets: usize) -> Option<String> {
    (sockets > 0 && !owners.knows_cookies()).then(|| {
        "owners in those namespaces are unknown: only the kernel's iterator over files (task_file) finds them, and it is not in use"
            .to_owned()
    })
}

/// Namespaces that were skipped, whose `sockets` are missing: this process is not allowed to enter `refused`, nor
/// to inspect the processes of `denied`.
pub fn not_inspected(sockets: &str, refused: usize, denied: usize) -> Vec<String> {
    let others = |n: usize| match n {
        1 => "1 other network namespace".to_owned(),
        n => format!("{n} other network namespaces"),
    };
    let mut words = Vec::new();
    if refused > 0 {
        words.push(format!(
            "{sockets} in {} are missing: CAP_SYS_ADMIN is needed to enter them",
            others(refused)
        ));
    }
    if denied > 0 {
        words.push(format!(
            "{sockets} in {} are missing: CAP_SYS_PTRACE and CAP_SYS_ADMIN are needed to enter the namespaces of other processes",
            others(denied)
        ));
    }
    words
}

/// How many owners are unknown, and why.
fn unknown_owners(owners: &Owners, sockets: &[StuckSocket], missing: &[Capability]) -> Option<String> {
    let held = |socket: &&StuckSocket| socket.inode != 0 || socket.state == Phase::CloseWait;
    let unknown = sockets
        .iter()
        .filter(held)
        .filter(|socket| !lacks_listener(socket))
        .filter(|socket| socket.owners.is_empty() && socket.closed_by.is_none())
        .count();
    let sockets = if unknown == 1 { "1 socket".to_owned() } else { format!("{unknown} sockets") };
    if unknown == 0 {
        return None;
    }
    let elsewhere = "possible holders: another PID namespace, a descriptor in flight over a unix socket, a call that still uses a closed descriptor, \
        io_uring on a kernel that does not list its sockets, or the kernel itself";
    if !owners.unanswered.is_empty() {
        // [`unanswered`] names the processes.
        return Some(format!("owners of {sockets} are unknown"));
    }
    Some(match (owners.denied, needed(missing)) {
        (0, _) => {
            format!("owners of {sockets} are unknown: no process in this /proc holds them ({elsewhere})")
        }
        (_, Some(needed)) => format!("owners of {sockets} are unknown: {needed}"),
        (denied, None) => format!(
            "owners of {sockets} are unknown: tcpclose may not list the files of {denied} {}, and no other process holds them \
             ({elsewhere})",
            if denied == 1 { "process" } else { "processes" }
        ),
    })
}

fn lacks_listener(socket: &StuckSocket) -> bool {
    socket.diagnosis == Some(Diagnosis::NotAccepted) && socket.listeners.is_empty()
}

/// How many sockets wait in unknown accept queues.
fn unknown_listeners(sockets: &[StuckSocket]) -> Option<String> {
    match sockets.iter().filter(|socket| lacks_listener(socket)).count() {
        0 => None,
        1 => Some(
            "the listener of 1 socket that was not accepted is unknown: no matching listener has connections in its queue".to_owned(),
        ),
        n => Some(format!(
            "the listeners of {n} sockets that were not accepted are unknown: no matching listener has connections in its queue"
        )),
    }
}

/// How many listeners were left out, where there are more than can be named.
pub fn too_many_listeners(queues: &[AcceptQueues]) -> Option<String> {
    let cut = queues.iter().map(AcceptQueues::cut).max().filter(|cut| *cut > 0)?;
    Some(format!(
        "sockets that were not accepted may belong to up to {cut} more listeners: only the {} with the longest queues are shown",
        accept_queues::MOST
    ))
}

/// The processes that were not read in time.
pub fn unanswered(owners: &Owners) -> Vec<String> {
    let descriptors = (!owners.unanswered.is_empty()).then(|| {
        format!(
            "owners may be missing: the descriptors of {} were not all read within {:?}",
            processes(&owners.unanswered),
            owners::WITHIN
        )
    });
    let executables = (!owners.unread.is_empty()).then(|| {
        format!(
            "the runtime of {} is unknown: the executable was not read within {:?} (a lease on it, a file system that does not \
             answer, or no helper process)",
            processes(&owners.unread),
            executables::WITHIN
        )
    });
    descriptors.into_iter().chain(executables).collect()
}

/// Their number, and the first of them.
fn processes(pids: &[u32]) -> String {
    const NAMED: usize = 5;
    let what = if pids.len() == 1 { "process" } else { "processes" };
    let named: Vec<String> = pids.iter().take(NAMED).map(u32::to_string).collect();
    let more = if pids.len() > NAMED { ", …" } else { "" };
    format!("{} {what} (pid {}{more})", pids.len(), named.join(", "))
}

/// How many executables are unknown, and why.
fn unknown_programs(owners: &Owners, missing: &[Capability]) -> Option<String> {
    let unknown = owners.processes.values().filter(|process| process.exe.is_none()).count();
    let processes = if unknown == 1 { "1 process".to_owned() } else { format!("{unknown} processes") };
    (unknown > 0 && missing.contains(&Capability::SysPtrace)).then(|| {
        format!(
            "the executables of {processes} are unknown: {} is needed to read other users' /proc/PID/exe",
            Capability::SysPtrace.name()
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn owners_that_may_be_missing_come_with_what_is_needed() {
        assert_eq!((unreadable(0, &NEEDED), needed(&[])), (None, None));
        assert_eq!(
            unreadable(164, &NEEDED).as_deref(),
            Some(
                "owners may be missing: CAP_SYS_PTRACE and CAP_DAC_READ_SEARCH are needed to read other users' /proc/PID/fd \
                 (164 processes were not read)"
            )
        );
        assert_eq!(
            unreadable(1, &[]).as_deref(),
            Some("owners may be missing: 1 process was not read, since the kernel refused it")
        );
        assert_eq!(
            needed(&[Capability::SysPtrace]).as_deref(),
            Some("CAP_SYS_PTRACE is needed to read other users' /proc/PID/fd")
        );
    }
}

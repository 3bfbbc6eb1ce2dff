//! The document of `GET /v1/sockets` and `tcpclose stuck --json`.
//!
//! Readers ignore unknown keys, so that keys can be added; [`SCHEMA`] changes only when a key changes its meaning or is
//! removed.

use std::borrow::Cow;
use std::cmp::Reverse;
use std::net::SocketAddr;
use std::ops::Deref;
use std::sync::{Arc, LazyLock};

use rustc_hash::{FxHashMap, FxHashSet};
use serde::de::Deserializer;
use serde::{Deserialize, Serialize, Serializer};

use crate::linux::cgroup::Workload;
use crate::linux::process::Process;
use crate::linux::stacks::frames::Stack;
use crate::names::words::{named, named_or_null};
use crate::names::{Age, Cause, Diagnosis, Phase, Side};
use crate::names::{ProcessState, Runtime, words};
use crate::report::chain_link::Chain;
use crate::report::envelope::document;
pub use crate::report::envelope::{DocumentSource, Versioned};
use crate::report::stack_indices::StackIndices;
use crate::report::verdict_group::VerdictGroup;

/// The version of the document that this build writes and reads.
pub const SCHEMA: u32 = 1;

impl Versioned for SocketsDocument {
    fn schema(&self) -> u32 {
        self.schema
    }
}

document! {
    /// The close-phase sockets in one state.
    #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
    pub struct SocketsDocument: SCHEMA {} {
        pub sockets: Vec<StuckSocket>,
        /// The user stacks that sockets have indices of.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        pub stacks: Vec<Stack>,
        /// The verdicts of the agent on those in CLOSE-WAIT that are stuck, as of its last look.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        pub groups: Vec<VerdictGroup>,
        /// The chains through proxies, if the command line asks for them.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        pub chains: Vec<Chain>,
    }
}

/// How far to search for owners.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Depth {
    /// Owners of the sockets themselves.
    Owners,
    /// Owners of local peers too, which are looked up first.
    WithPeers,
}

/// A socket in a close-phase state.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StuckSocket {
    #[serde(with = "named")]
    pub state: Phase,
    #[serde(with = "named")]
    pub side: Side,
    /// The service port: the local one on the server side, the remote one on the client side.
    pub port: u16,
    pub local: SocketAddr,
    pub peer: SocketAddr,
    /// The socket cookie, as `ss -e` writes `sk:`.
    pub cookie: Cookie,
    /// The interface that the socket is bound to; 0 for none.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub interface: u32,
    /// An MPTCP socket; its subflows are not listed. It cannot be destroyed.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub mptcp: bool,
    /// 0 for a socket that no program holds.
    pub inode: u32,
    pub uid: u32,
    /// The inode of the socket's network namespace.
    pub netns: u32,
    /// Distinguishes that namespace from a later one with its inode: the low half of its cookie, on kernels with
    /// cookies. 0 where it is unknown.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub netns_id: u32,
    /// The namespace's name as `ip netns` shows it, if any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub netns_name: Option<String>,
    pub age: AgeSeconds,
    /// Bytes of data that wait for the program; the FIN is not counted.
    pub unread_bytes: u32,
    /// Bytes that the peer has not acknowledged yet.
    pub unsent_bytes: u32,
    /// Time since data was last sent, or since the handshake; `null` where no dump has it.
    pub last_sent_seconds: Option<f64>,
    /// Bytes that the program has written since the connection opened, in CLOSE-WAIT.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub written_bytes: Option<u64>,
    /// Time since the program last wrote to it, in CLOSE-WAIT; absent if it never did, and where that is not known. What the kernel
    /// sends again is no write.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_write: Option<AgeSeconds>,
    /// `null` in states other than CLOSE-WAIT.
    #[serde(with = "named_or_null")]
    pub diagnosis: Option<Diagnosis>,
    /// Why it is still in FIN-WAIT-1, FIN-WAIT-2, CLOSING or LAST-ACK; absent in other states, and where nothing is wrong.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "named_or_null")]
    pub cause: Option<Cause>,
    /// In these states: timeouts in a row without an acknowledgment.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retransmits: Option<u8>,
    /// In these states: the peer's window, in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peer_window: Option<u32>,
    /// In these states: the time left on the running timer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timer_seconds: Option<f64>,
    /// Every process that holds the socket; of a socket that was not accepted, the holders of the listeners in whose queues it
    /// can be. Empty when unknown.
    pub owners: Vec<Owner>,
    /// The listeners in whose queues a socket that was not accepted can be, the longest queue first; empty when none is known.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub listeners: Vec<Listener>,
    /// The process that closed the socket, or waits in close() (SO_LINGER), if no descriptor holds it any more and the agent saw the
    /// close.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub closed_by: Option<ClosedBy>,
    /// Every process that holds the peer's end, where that is in the same network namespace.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub peer_owners: Vec<Owner>,
    /// In CLOSE-WAIT: that end is in FIN-WAIT-2 (or about to be), and a process holds it: it has sent its FIN, and may wait for an
    /// answer.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub peer_waits: bool,
    /// The stacks of its program that were taken, while its process was armed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stacks: Option<StackIndices>,
}

impl StuckSocket {
    /// The owner to look at first: the one with the longest queue; of several processes one that cannot act, and then one that is not
    /// the parent of another of them, for that is the worker as a rule.
    pub fn first_owner(&self) -> Option<&Owner> {
        if let [] | [_] = self.owners.as_slice() {
            return self.owners.first();
        }
        let queued = |owner: &Owner| self.listener_of(owner).map_or(0, |listener| listener.queued);
        let parents: FxHashSet<u32> = self.owners.iter().filter_map(|owner| owner.parent).collect();
        let may_act =
            |owner: &Owner| !matches!(owner.state, Some(ProcessState::Stopped | ProcessState::Traced));
        self.owners
            .iter()
            .min_by_key(|owner| (Reverse(queued(owner)), may_act(owner), parents.contains(&owner.pid)))
    }

    /// The listener that `owner` holds.
    pub fn listener_of(&self, owner: &Owner) -> Option<&Listener> {
        let inode = owner.listener?;
        self.listeners.iter().find(|listener| listener.inode == inode)
    }

    /// Whether its owners only may have it in their queues.
    pub fn has_candidates(&self) -> bool {
        self.owners.iter().any(|owner| owner.candidate)
    }
}

fn is_zero(n: &u32) -> bool {
    *n == 0
}

impl StuckSocket {
    /// Proven to have been neglected for `bound` seconds or longer: in its state, and without a write of its program. One that is
    /// still sending is judged by its age alone.
    pub fn is_past(&self, bound: f64) -> bool {
        self.age.is_past(bound) && self.write_counts().is_none_or(|write| write.is_past(bound))
    }

    /// May have been neglected for so long, but that is not proven.
    pub fn may_be_past(&self, bound: f64) -> bool {
        let may = |age: &AgeSeconds| age.is_past(bound) || age.may_be_past(bound);
        !self.is_past(bound) && may(&self.age) && self.write_counts().is_none_or(|write| may(&write))
    }

    /// Whether its program is proven to have written to it within so many seconds, and after the peer's FIN.
    pub fn is_written_to(&self, within: f64) -> bool {
        /// As in the diagnosis: a write may appear too young.
        const LATE_TICKS: f64 = 0.2;
        self.last_write.is_some_and(|write| {
            write.max_seconds.is_some_and(|max| max < within)
                && self.age.max_seconds.is_none_or(|age| write.min_seconds + LATE_TICKS <= age)
        })
    }

    fn write_counts(&self) -> Option<AgeSeconds> {
        self.last_write.filter(|_| self.diagnosis != Some(Diagnosis::StillSending))
    }
}

impl SocketsDocument {
    /// Keeps the details of a process only where it first appears, and its pid and descriptors elsewhere: a quarter of the cost
    /// of writing and reading fifteen thousand sockets of one process.
    pub fn name_owners_once(&mut self) {
        let mut named = FxHashSet::default();
        for owner in self.every_owner().filter(|owner| !named.insert(owner.pid)) {
            owner.process = no_details();
        }
    }

    /// Undoes [`Self::name_owners_once`].
    pub fn name_every_owner(&mut self) {
        let mut named: FxHashMap<u32, Arc<Process>> = FxHashMap::default();
        for owner in self.every_owner() {
            let first = named.entry(owner.pid).or_insert_with(|| owner.process.clone());
            if owner.comm.is_empty() {
                owner.process = first.clone();
            }
        }
    }

    fn every_owner(&mut self) -> impl Iterator<Item = &mut Owner> {
        self.sockets.iter_mut().flat_map(|socket| socket.owners.iter_mut().chain(&mut socket.peer_owners))
    }
}

fn is_false(yes: &bool) -> bool {
    !*yes
}

/// A listener in whose queue a socket can be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listener {
    pub local: SocketAddr,
    /// The interface that it is bound to; 0 for none.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub interface: u32,
    pub inode: u32,
    /// The connections in its queue.
    pub queued: u32,
    /// It is not proven that the socket is in this queue: several may have it, or it was made for
    /// another address (TPROXY, sk_lookup).
    #[serde(default, skip_serializing_if = "is_false")]
    pub candidate: bool,
}

/// A process that holds a socket, and its descriptor.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Owner {
    pub pid: u32,
    pub fd: u32,
    /// The inode of the listener that the descriptor is, where it is not the socket itself.
    pub listener: Option<u32>,
    /// As [`Listener::candidate`].
    pub candidate: bool,
    /// The process, shared by all sockets that it holds.
    pub process: Arc<Process>,
}

impl Deref for Owner {
    type Target = Process;

    fn deref(&self) -> &Process {
        &self.process
    }
}

/// [`Owner`] as it is encoded.
#[derive(Serialize, Deserialize)]
struct Flat<'a> {
    pid: u32,
    /// May hold control characters: escape it for a terminal.
    comm: Cow<'a, str>,
    fd: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    listener: Option<u32>,
    #[serde(default, skip_serializing_if = "is_false")]
    candidate: bool,
    /// The process that started it, or that it was left to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    parent: Option<u32>,
    /// The path of its executable below its own root. May hold control characters too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    exe: Option<Cow<'a, str>>,
    /// What executes it: `jvm`, `python`, `go` or `native`.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "named_or_null")]
    runs: Option<Runtime>,
    /// Why it did not act when it was looked at: `stopped`, `traced`, `uninterruptible` or `zombie`.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "named_or_null")]
    state: Option<ProcessState>,
    /// The systemd unit that it runs in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    unit: Option<Cow<'a, str>>,
    /// `containerd://<64 hexadecimal digits>`; without the runtime where its cgroups do not show that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    container_id: Option<Cow<'a, str>>,
    /// The uid of its Kubernetes pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pod_uid: Option<Cow<'a, str>>,
    /// File descriptors that the process has in use.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    fds_used: Option<u64>,
    /// The process's soft limit of open files.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    fds_limit: Option<u64>,
}

impl Serialize for Owner {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        let Self { pid, fd, listener, candidate, process } = self;
        let Process { comm, parent, exe, runs, state, place, fds_used, fds_limit } = &**process;
        let flat = Flat {
            pid: *pid,
            comm: comm.into(),
            fd: *fd,
            listener: *listener,
            candidate: *candidate,
            parent: *parent,
            exe: exe.as_deref().map(Cow::from),
            runs: *runs,
            state: *state,
            unit: place.unit.as_deref().map(Cow::from),
            container_id: place.container_id.as_deref().map(Cow::from),
            pod_uid: place.pod_uid.as_deref().map(Cow::from),
            fds_used: *fds_used,
            fds_limit: *fds_limit,
        };
        flat.serialize(to)
    }
}

impl<'de> Deserialize<'de> for Owner {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let Flat {
            pid,
            comm,
            fd,
            listener,
            candidate,
            parent,
            exe,
            runs,
            state,
            unit,
            container_id,
            pod_uid,
            fds_used,
            fds_limit,
        } = Flat::deserialize(from)?;
        let owned = |text: Option<Cow<'_, str>>| text.map(Cow::into_owned);
        let place =
            Workload { unit: owned(unit), container_id: owned(container_id), pod_uid: owned(pod_uid) };
        let (comm, exe) = (comm.into_owned(), owned(exe));
        let process = Process { comm, parent, exe, runs, state, place, fds_used, fds_limit };
        let process = if process.is_nothing() { no_details() } else { Arc::new(process) };
        Ok(Self { pid, fd, listener, candidate, process })
    }
}

/// A process without details; one shared value.
fn no_details() -> Arc<Process> {
    static NO_DETAILS: LazyLock<Arc<Process>> = LazyLock::new(Arc::default);
    NO_DETAILS.clone()
}

/// The process that ended this side's stream, by close() or an earlier shutdown().
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ClosedBy {
    pub pid: u32,
    /// `null` when it has ended since.
    pub comm: Option<String>,
    /// How long ago that was.
    pub seconds: f64,
}

impl From<(u32, u64)> for ClosedBy {
    fn from((pid, ago_ns): (u32, u64)) -> Self {
        Self { pid, comm: None, seconds: seconds(ago_ns) }
    }
}

/// [`Age`] in seconds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct AgeSeconds {
    /// The entry was seen: both bounds are the age.
    pub exact: bool,
    pub min_seconds: f64,
    /// `null` where no bound is proven.
    pub max_seconds: Option<f64>,
}

impl From<Age> for AgeSeconds {
    fn from(age: Age) -> Self {
        Self { exact: age.is_exact(), min_seconds: seconds(age.min_ns), max_seconds: age.max_ns.map(seconds) }
    }
}

impl AgeSeconds {
    /// Proven to be `bound` seconds or longer.
    pub fn is_past(&self, bound: f64) -> bool {
        self.min_seconds >= bound
    }

    /// May be `bound` seconds or longer, but that is not proven.
    pub fn may_be_past(&self, bound: f64) -> bool {
        !self.is_past(bound) && self.max_seconds.is_none_or(|max| max >= bound)
    }
}

/// Nanoseconds as seconds.
pub fn seconds(ns: u64) -> f64 {
    ns as f64 / 1e9
}

/// A socket cookie; in JSON in hexadecimal without leading zeros.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Cookie(pub u64);

impl Serialize for Cookie {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        if to.is_human_readable() {
            to.collect_str(&format_args!("{:x}", self.0))
        } else {
            to.serialize_u64(self.0)
        }
    }
}

impl<'de> Deserialize<'de> for Cookie {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        if !from.is_human_readable() {
            return u64::deserialize(from).map(Self);
        }
        words::text(from, |text| u64::from_str_radix(text, 16).map(Self).map_err(|why| why.to_string()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The sample of the design, key by key and in its order.
    const SAMPLE: &str = concat!(
        r#"{"schema":1,"host":"h","boot_id":"b","at":"2026-11-22T11:00:00.123456789Z","source":"agent","#,
        r#""incomplete":[],"sockets":[{"state":"close_wait","side":"server","port":8080,"local":"10.0.0.5:8080","#,
        r#""peer":"10.0.0.9:41234","cookie":"4fe4d","inode":12345,"uid":1000,"netns":4026531840,"#,
        r#""age":{"exact":true,"min_seconds":93.2,"max_seconds":93.2},"unread_bytes":0,"unsent_bytes":0,"#,
        r#""last_sent_seconds":93.4,"diagnosis":"not_closed","owners":[{"pid":4242,"comm":"api","fd":17,"unit":"api.service","#,
        r#""container_id":"containerd://0123","pod_uid":"2c48913c"}]}]}"#,
    );

    #[test]
    fn reads_and_writes_the_document_as_promised() {
        let document: SocketsDocument = serde_json::from_str(SAMPLE).unwrap();
        let socket = &document.sockets[0];
        assert_eq!((socket.cookie, socket.diagnosis), (Cookie(0x4fe4d), Some(Diagnosis::NotClosed)));
        assert_eq!(serde_json::to_string(&document).unwrap(), SAMPLE);
    }

    #[test]
    fn owners_that_are_named_once_are_all_named_again() {
        let mut document: SocketsDocument = serde_json::from_str(SAMPLE).unwrap();
        let mut other = document.sockets[0].clone();
        (other.cookie, other.owners[0].fd) = (Cookie(2), 18);
        other.peer_owners = vec![Owner { pid: 1, fd: 7, ..Owner::default() }];
        document.sockets.extend([other.clone(), other]);
        let whole = document.clone();
        document.name_owners_once();
        assert_eq!(document.sockets[1].owners, [Owner { pid: 4242, fd: 18, ..Owner::default() }]);
        let text = serde_json::to_string(&document).unwrap();
        let mut read: SocketsDocument = serde_json::from_str(&text).unwrap();
        read.name_every_owner();
        assert_eq!(read, whole);
    }

    #[test]
    fn the_worker_with_the_longest_queue_is_looked_at_first() {
        use crate::report::fixtures::{owner, socket};
        let of = |pid, parent, listener| {
            let Owner { process, .. } = owner(pid, "a", (1, 2));
            let process = Process { parent, ..(*process).clone() }.into();
            Owner { pid, fd: 3, listener, candidate: listener.is_some(), process }
        };
        let master_and_workers = [of(1, None, None), of(2, Some(1), None), of(3, Some(1), None)];
        let first = |socket: &StuckSocket| socket.first_owner().map(|owner| owner.pid);
        assert_eq!(first(&socket(60, &master_and_workers)), Some(2));
        assert_eq!(first(&socket(60, &master_and_workers[..1])), Some(1));
        assert_eq!(first(&socket(60, &[])), None);
        let queue = |inode, queued| Listener {
            local: "0.0.0.0:80".parse().unwrap(),
            interface: 0,
            inode,
            queued,
            candidate: true,
        };
        let waiting = StuckSocket {
            listeners: vec![queue(9, 16), queue(8, 3)],
            ..socket(60, &[of(1, None, Some(8)), of(2, Some(1), Some(8)), of(3, Some(1), Some(9))])
        };
        assert_eq!(first(&waiting), Some(3));
        assert!(waiting.has_candidates());
    }

    #[test]
    fn understands_what_a_newer_agent_adds() {
        let newer = SAMPLE
            .replace(r#""fd":17"#, r#""fd":17,"runs":"beam","zone":"a""#)
            .replace("not_closed", "not_anything")
            .replace(r#""max_seconds":93.2"#, r#""max_seconds":null"#);
        let document: SocketsDocument = serde_json::from_str(&newer).unwrap();
        assert_eq!(document.sockets[0].diagnosis, Some(Diagnosis::Unknown));
        assert_eq!(document.sockets[0].age.max_seconds, None);
        assert!(serde_json::from_str::<SocketsDocument>(&SAMPLE.replace("close_wait", "limbo")).is_err());
        let null = SAMPLE.replace(r#""not_closed""#, "null");
        assert_eq!(serde_json::from_str::<SocketsDocument>(&null).unwrap().sockets[0].diagnosis, None);
    }

    #[test]
    fn an_age_is_past_a_bound_by_its_minimum_only() {
        let age = AgeSeconds::from(Age { min_ns: 59_000_000_000, max_ns: None });
        assert!(!age.is_past(60.0) && age.may_be_past(60.0) && age.is_past(59.0) && !age.may_be_past(59.0));
        let age = AgeSeconds::from(Age::exact(60_000_000_000));
        assert!(age.exact && age.is_past(60.0) && !age.may_be_past(61.0));
    }
}

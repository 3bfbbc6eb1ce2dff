//! The document of `tcpclose verify --json`.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::linux::proc_net::SockStat;
use crate::report::verify::{AuditRow, BackendsInUse, NetnsSample};

/// What `tcpclose verify --json` prints.
#[derive(Debug, Serialize)]
pub(super) struct Audit {
    /// [`SCHEMA`](super::SCHEMA).
    pub(super) schema: u32,
    pub(super) host: String,
    pub(super) boot_id: String,
    /// Time of the second sample, RFC 3339, UTC.
    pub(super) at: String,
    /// From the first sample to the second.
    pub(super) seconds: f64,
    /// The inode of the agent's network namespace.
    pub(super) netns: u32,
    /// Every sampled one.
    pub(super) namespaces: Vec<Namespace>,
    /// The key is that of the first version of the document.
    #[serde(rename = "rungs")]
    pub(super) backends: BackendsInUse,
    /// Events that the agent reports as lost meanwhile.
    pub(super) lost: i64,
    pub(super) rows: Vec<AuditRow>,
    /// The kernel's counts meanwhile in all of them, including those that are not compared.
    pub(super) counters: BTreeMap<&'static str, u64>,
    /// The sums over all of them at the end; `orphan` is the host's, since the kernel counts it so.
    pub(super) sockstat: SockStat,
    pub(super) incomplete: Vec<String>,
}

#[derive(Debug, Serialize)]
pub(super) struct Namespace {
    pub(super) netns: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) netns_name: Option<String>,
    pub(super) counters: BTreeMap<&'static str, u64>,
    pub(super) sockstat: SockStat,
}

impl Namespace {
    /// The namespace of `sample`, which was `earlier` in the first one; `None` if it has gone.
    pub(super) fn new(sample: &NetnsSample, earlier: Option<&NetnsSample>) -> Option<Self> {
        let after = sample.after.as_ref()?;
        let before = earlier.and_then(|sample| sample.before.as_ref());
        let counted = |(name, n): (&&'static str, &u64)| {
            (*name, n.saturating_sub(before.map_or(0, |before| before.counters.get(name))))
        };
        Some(Self {
            netns: sample.netns.inum,
            netns_name: sample.netns.name.clone(),
            counters: after.counters.0.iter().map(counted).collect(),
            sockstat: after.stat,
        })
    }
}

/// The counts of all of them.
pub(super) fn counted(namespaces: &[Namespace]) -> BTreeMap<&'static str, u64> {
    let mut sum = BTreeMap::new();
    for (name, n) in namespaces.iter().flat_map(|namespace| &namespace.counters) {
        *sum.entry(*name).or_default() += n;
    }
    sum
}

pub(super) fn sockstat(namespaces: &[Namespace]) -> SockStat {
    namespaces.iter().map(|namespace| namespace.sockstat).fold(SockStat::default(), |sum, of| SockStat {
        inuse: sum.inuse + of.inuse,
        orphan: sum.orphan.max(of.orphan),
        tw: sum.tw + of.tw,
    })
}

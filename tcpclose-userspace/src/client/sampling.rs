//! Looks at every network namespace, around a reading of the agent's metrics.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, ErrorKind};
use std::thread::sleep;
use std::time::Duration;

use crate::client::{Client, Said};
use crate::failure::Failure;
use crate::linux::netns;
use crate::linux::netns::{Descriptors, Netns, NetnsPath};
use crate::linux::netns_counters;
use crate::linux::netns_counters::{NetnsCounters, SampleOrder};
use crate::report::verify::samples::Samples;
use crate::report::verify::{AuditSample, DumpedSockets, KernelSample, NetnsSample};

/// Between two looks namespaces are searched for so often, for one may come and go.
const SEARCH: Duration = Duration::from_secs(1);

/// What has been seen so far.
pub struct Sampler<'a> {
    client: &'a Client,
    /// Every namespace that was ever looked into.
    known: BTreeMap<u32, Netns>,
    /// The inode of every one that a search has found.
    found: BTreeSet<u32>,
    /// Those of the last search.
    last: BTreeSet<u32>,
    /// Of the last journey and search: which may not be entered, or whose processes may not be looked at.
    refused: BTreeSet<u32>,
    denied: u32,
}

/// Namespaces that are not looked into, which the agent may count all the same.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Unseen {
    pub refused: usize,
    pub denied: usize,
    /// Those that were there for a while.
    pub gone: usize,
}

impl Unseen {
    pub fn any(self) -> bool {
        self != Self::default()
    }

    /// In words.
    pub fn words(self) -> Vec<String> {
        let mut words =
            crate::report::incomplete::not_looked_at("the kernel's numbers", self.refused, self.denied);
        if self.gone > 0 {
            let which = match self.gone {
                1 => "1 network namespace has gone meanwhile: what was counted in it last is".to_owned(),
                n => format!("{n} network namespaces have gone meanwhile: what was counted in them last is"),
            };
            words.push(format!("{which} missing from the kernel's numbers"));
        }
        words
    }
}

impl<'a> Sampler<'a> {
    pub fn new(client: &'a Client) -> Self {
        Self {
            client,
            known: BTreeMap::new(),
            found: BTreeSet::new(),
            last: BTreeSet::new(),
            refused: BTreeSet::new(),
            denied: 0,
        }
    }

    /// Reads the agent's metrics between two journeys through all namespaces.
    pub fn look(&mut self) -> Result<AuditSample, Failure> {
        let before = self.journey(SampleOrder::DumpThenSums)?;
        let metrics = match self.client.get("/metrics")? {
            Said::Answer(answer) => answer.expect_ok().map_err(|why| self.client.failure(why))?,
            Said::NoAgent | Said::Denied => return Err(self.client.failure("it has gone".to_owned())),
        };
        let after = self.journey(SampleOrder::SumsThenDump)?;
        let sight = |netns: &Netns| NetnsSample { netns: netns.clone(), before: None, after: None };
        let mut namespaces: BTreeMap<u32, NetnsSample> =
            self.known.iter().map(|(id, netns)| (*id, sight(netns))).collect();
        for account in before {
            let sight = namespaces.entry(account.netns.id).or_insert_with(|| sight(&account.netns));
            sight.before = Some(view(account));
        }
        for account in after {
            let sight = namespaces.entry(account.netns.id).or_insert_with(|| sight(&account.netns));
            sight.after = Some(view(account));
        }
        Ok(AuditSample { namespaces, metrics: Samples::parse(&String::from_utf8_lossy(&metrics.body)) })
    }

    /// What the kernel says of every namespace: a dump, and sums that were read before.
    pub fn views(&mut self) -> Result<BTreeMap<u32, KernelSample>, Failure> {
        let accounts = self.journey(SampleOrder::SumsThenDump)?;
        Ok(accounts.into_iter().map(|account| (account.netns.id, view(account))).collect())
    }

    /// Sleeps, and looks out for namespaces that come and go.
    pub fn pause(&mut self, time: Duration) -> Result<(), Failure> {
        let mut left = time;
        while left > SEARCH {
            sleep(SEARCH);
            left -= SEARCH;
            self.search(&Descriptors::NONE)?;
        }
        sleep(left);
        Ok(())
    }

    /// What has not been seen, as of `look`, the last one.
    pub fn unseen(&self, look: &AuditSample) -> Unseen {
        let known: BTreeSet<u32> = self.known.values().map(|netns| netns.inum).collect();
        let left = look
            .namespaces
            .values()
            .filter(|sight| sight.after.is_none() && !self.refused.contains(&sight.netns.inum));
        let passed = self.found.iter().filter(|inum| !known.contains(inum) && !self.last.contains(inum));
        Unseen {
            refused: self.refused.len(),
            denied: self.denied as usize,
            gone: left.count() + passed.count(),
        }
    }

    fn search(&mut self, descriptors: &Descriptors) -> Result<Vec<NetnsPath>, Failure> {
        let found = netns::find(descriptors).map_err(|error| Failure::new("/proc", error, "mount it"))?;
        self.last = found.places.iter().map(|place| place.inum).collect();
        self.found.extend(&self.last);
        self.denied = found.denied;
        Ok(found.places)
    }

    fn journey(&mut self, order: SampleOrder) -> Result<Vec<NetnsCounters>, Failure> {
        let places = self.search(&Descriptors::All)?;
        let accounts = netns_counters::accounts(&places, order).map_err(|error: io::Error| {
            let todo = "mount /proc, and load the modules inet_diag and tcp_diag";
            Failure::new("the kernel's account of TCP", error, todo)
        })?;
        let refused = accounts.failed.iter().filter(|(_, why)| why.kind() == ErrorKind::PermissionDenied);
        self.refused = refused.map(|(place, _)| place.inum).collect();
        self.known.extend(accounts.taken.iter().map(|account| (account.netns.id, account.netns.clone())));
        Ok(accounts.taken)
    }
}

fn view(account: NetnsCounters) -> KernelSample {
    let NetnsCounters { counters, stat, sockets, .. } = account;
    KernelSample { counters, stat, sockets: DumpedSockets::new(&sockets) }
}
